"""vLLM: what is asked of it and how its answers are read; and, where it is installed, the real engine on a CPU."""

import importlib.util
import json
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from conftest import POCKET, agree, save_llama, small_profile

from primekd.assessment import score as scoring
from primekd.assessment.answers import answer_inputs
from primekd.config import LoraSettings, TeacherConfig
from primekd.foundation import read_json
from primekd.foundation.errors import UserError
from primekd.models.chat import build_prompt
from primekd.studies import assess as assessing
from primekd.tasks.load import load_answer_sets
from primekd.teachers import Response, Sampling, TopLogprobs, vllm_engine
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.teachers.vllm_engine import (
    VllmEngine,
    by_column,
    ended_bar,
    generation_settings,
    response_rows,
    scoring_settings,
    students_config,
)
from primekd.teachers.vllm_loading import (
    import_vllm,
    lora_rank,
    require_gpus,
    require_servable,
    start_options,
    text_config,
)


def teacher(model: str = POCKET, **values) -> TeacherConfig:
    return TeacherConfig(**{"engine": "vllm", "model": model, "context_tokens": 256} | values)


# What is asked.


def test_responses_are_drawn_from_the_raw_distribution_and_ended_by_ours_alone():
    (greedy,) = generation_settings(Sampling(7), ends={7, 2}, count=1)
    assert greedy["temperature"] == 0 and greedy["max_tokens"] == 7 and "seed" not in greedy
    # vLLM takes further end tokens from generation_config.json, whatever `generation_config` says.
    assert greedy["ignore_eos"] and greedy["stop_token_ids"] == [2, 7]
    assert (greedy["top_k"], greedy["top_p"], greedy["min_p"], greedy["repetition_penalty"]) == (0, 1, 0, 1)
    assert not greedy["detokenize"]


def test_every_prompt_has_its_own_seed_and_the_same_one_again():
    first, again, other = (generation_settings(Sampling(7, 1.0, seed), [2], 3) for seed in (1, 1, 2))
    assert first == again != other
    assert len({settings["seed"] for settings in first}) == 3


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_temperatures_that_vllm_refuses_or_changes_are_one_sentence(temperature):
    with pytest.raises(UserError, match="temperatures from 0.01 to 2.*teacher.sampling_temperature"):
        generation_settings(Sampling(7, temperature), [2], 1)


def test_a_score_asks_for_the_prompts_own_log_probs_and_one_token():
    asked = scoring_settings(5)
    assert asked["prompt_logprobs"] == 5 and asked["max_tokens"] == 1 and asked["flat_logprobs"]


def test_the_profile_decides_on_gpus_memory_and_quantisation():
    part = {"tensor_parallel": 3, "pipeline_parallel": 2, "backend": "ray", "gpu_memory_utilization": 0.5}
    options = start_options(teacher(batch_size=5, vllm=part), 9, [], cpu=False)
    assert (options["tensor_parallel_size"], options["pipeline_parallel_size"]) == (3, 2)
    assert (options["distributed_executor_backend"], options["gpu_memory_utilization"]) == ("ray", 0.5)
    assert (options["max_num_seqs"], options["max_logprobs"], options["max_model_len"]) == (5, 9, 257)
    assert options["generation_config"] == "vllm" and options["logprobs_mode"] == "raw_logprobs"
    assert options["hf_overrides"] == {"head_dtype": "float32"} and "enable_lora" not in options
    assert not options["enable_prefix_caching"] and options["load_format"] == "safetensors"
    quantised = start_options(teacher(vllm={"quantization": "bitsandbytes"}), 9, [], cpu=False)
    assert (quantised["quantization"], quantised["load_format"]) == ("bitsandbytes", "auto")
    assert "hf_overrides" not in quantised  # vLLM refuses a float32 head on a quantised model


def test_on_a_cpu_the_cache_holds_the_batch_and_not_the_machines_memory():
    cache = start_options(teacher(batch_size=2), 9, [], cpu=True)["kv_cache_memory_bytes"]
    assert cache == 2 * 30 * 3 * 64 * 2 * (257 + 128) * 2  # keys and values, layers, heads, width, bytes, tokens, batch
    assert start_options(teacher(batch_size=512), 9, [], cpu=True)["kv_cache_memory_bytes"] == 2 << 30


def test_the_room_for_adapters_is_that_of_the_largest(tmp_path):
    folders = []
    for rank, pattern in ((4, {}), (16, {"q_proj": 20})):
        folders.append(tmp_path / str(rank))
        folders[-1].mkdir()
        (folders[-1] / "adapter_config.json").write_text(json.dumps({"r": rank, "rank_pattern": pattern}))
    assert lora_rank(folders[:1]) == 8 and lora_rank(folders) == 32
    options = start_options(teacher(), 9, folders, cpu=False)
    assert options["enable_lora"] and options["max_lora_rank"] == 32
    (folders[0] / "adapter_config.json").write_text('{"r": 1024}')
    with pytest.raises(UserError, match="up to rank 512, not 1024"):
        lora_rank(folders)


# What is refused before vLLM starts.


def test_heads_that_cannot_be_split_are_one_sentence():
    with pytest.raises(UserError, match=r"9 attention heads \(3 key-value heads\).*cannot be split into 2"):
        require_servable(teacher(vllm={"tensor_parallel": 2}))
    require_servable(teacher(vllm={"tensor_parallel": 3}))


def test_a_checkpoint_with_code_of_its_own_is_one_sentence_and_no_question(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked whether to run it"))
    monkeypatch.setattr("primekd.teachers.vllm_loading.model_folder", lambda model: tmp_path)
    (tmp_path / "strange.py").write_text("raise SystemExit('run')")
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "strange.StrangeConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="configuration of hub:a/b cannot be read.*trust_remote_code"):
        text_config("hub:a/b")


def test_more_stages_than_layers_and_more_tokens_than_positions_are_one_sentence(lively):
    with pytest.raises(UserError, match="has 2 layers: lower teacher.vllm.pipeline_parallel"):
        require_servable(teacher(lively, vllm={"pipeline_parallel": 3}))
    with pytest.raises(UserError, match="has 512 positions, and 513 tokens are asked for"):
        require_servable(teacher(lively, context_tokens=513))


def test_an_exl2_model_is_one_sentence(tmp_path, tokenizer):
    reference = save_llama(tmp_path, tokenizer, seed=0)
    config = read_json(tmp_path / "config.json") | {"quantization_config": {"quant_method": "exl2", "bits": 6.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantised as EXL2, which vLLM does not read"):
        require_servable(teacher(reference))


def test_a_missing_vllm_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"vllm is not installed: pip install -e '\.\[vllm\]'"):
        import_vllm()


GIB = 2**30


@pytest.mark.parametrize(
    "count, free, total, part, sentence",
    [
        (0, 0, 1, {}, "finds no GPU here"),
        (2, 80, 80, {"tensor_parallel": 3}, "asks for 3 GPUs.*and 2 are here"),
        (1, 60, 80, {}, "GPU 0 has 60.0 of 80.0 GiB free.*asks for 72.0"),
        (1, 0.1, 0.1, {}, "need 0.3 GiB on each of 1 GPUs, and 0.1 are usable"),
        (1, 80, 80, {}, None),
        (1, 80, 80, {"tensor_parallel": 3, "backend": "ray"}, None),  # the others are on another node
    ],
)
def test_too_few_gpus_or_too_little_memory_is_one_sentence(count, free, total, part, sentence, monkeypatch):
    """Fakes: the GPUs' number and memory. The weights are the pocket model's, in bfloat16."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (int(free * GIB), int(total * GIB)))
    if sentence is None:
        require_gpus(teacher(vllm=part))
        return
    with pytest.raises(UserError, match=sentence):
        require_gpus(teacher(vllm=part))


# How answers are read. Fake: vLLM's RequestOutput, of which the flat log-probs alone are used.

Flat = namedtuple("Flat", "start_indices end_indices token_ids logprobs")


class FakeFlat(Flat):
    def __len__(self) -> int:
        return len(self.start_indices)


def test_vllms_bar_tells_of_each_response_and_not_of_requests_that_are_added(capsys):
    told = []
    bar = ended_bar(lambda: told.append(1))
    assert list(bar(["a", "b"], desc="Adding requests")) == ["a", "b"] and told == []
    shown = bar(total=2, desc="Processed prompts", dynamic_ncols=True, postfix="est. speed")
    for count in (1, 2):
        shown.update(1)
        assert len(told) == shown.n == count and shown.format_dict["elapsed"] >= 0
    shown.close()
    assert capsys.readouterr() == ("", "")


def fake_output(entries: list[list[tuple[int, float]]]) -> SimpleNamespace:
    """Entry 0 is empty, as vLLM's is; every other one begins with the token that stands there."""
    ends = [sum(map(len, entries[: n + 1])) for n in range(len(entries))]
    flat = [pair for entry in entries for pair in entry]
    return SimpleNamespace(
        prompt_logprobs=FakeFlat([0, *ends[:-1]], ends, [token for token, _ in flat], [value for _, value in flat])
    )


ENTRIES = [
    [],
    [(11, -1.0), (11, -1.0), (5, -2.0)],  # of the prompt's second token: no row
    [(12, -0.5), (12, -0.5), (6, -3.0)],
    [(13, -9.0), (7, -0.1), (8, -4.0)],  # a token that is not among the likeliest
]


def test_row_t_predicts_response_token_t_and_shows_the_likeliest_alone():
    rows = response_rows(fake_output(ENTRIES), [10, 11, 12, 13], prompt_length=2, shown=2)
    assert rows.ids.tolist() == [[12, 6], [7, 8]]
    torch.testing.assert_close(rows.log_probs, torch.tensor([[-0.5, -3.0], [-0.1, -4.0]]))


@pytest.mark.parametrize(
    "entries, sequence, shown",
    [
        (ENTRIES[:-1], [10, 11, 12, 13], 2),  # prefix caching used to leave entries out
        (ENTRIES, [10, 11, 12, 14], 2),
        (ENTRIES, [10, 11, 12, 13], 3),
    ],
)
def test_other_log_probs_than_were_asked_for_are_refused(entries, sequence, shown):
    with pytest.raises(UserError, match="other log-probs than it was asked for"):
        response_rows(fake_output(entries), sequence, 2, shown)


def test_rows_of_every_token_are_put_in_the_vocabularys_order():
    rows = response_rows(fake_output([[], [(0, -3.0), (2, -0.2), (1, -2.0), (0, -3.0)]]), [1, 0], 1, 3)
    torch.testing.assert_close(by_column(rows), torch.tensor([[-3.0, -2.0, -0.2]]))


@pytest.mark.parametrize("ids", [[0, 2, 0], [0, 1, 3]])
def test_rows_that_do_not_show_every_token_are_refused(ids):
    with pytest.raises(UserError, match="do not name every token once"):
        by_column(TopLogprobs(torch.tensor([[0, 1, 2], ids]), torch.zeros(2, 3)))


# Students.


def test_answers_depend_on_the_engine_unless_it_is_transformers(ci, items, tmp_path):
    by_vllm = small_profile(tmp_path, assess={"engine": "vllm"})
    plain = answer_inputs(ci, items, None)
    assert "engine" not in plain  # as before there was a choice: published answers stay current
    assert answer_inputs(by_vllm, items, None) == plain | {"engine": "vllm"}


def test_students_have_room_for_the_longest_question_and_answer(items, tokenizer, tmp_path):
    profile = small_profile(tmp_path, assess={"engine": "vllm"})
    config = students_config(profile, items)
    longest = max(len(build_prompt(tokenizer, item.question)) for item in items)
    assert config.context_tokens == longest + profile.max_new_tokens
    assert (config.model, config.dtype, config.batch_size) == (profile.student.model, profile.student.dtype, 8)


def test_students_may_have_several_gpus_and_no_other_weights(items, output, tmp_path):
    part = {"tensor_parallel": 3, "gpu_memory_utilization": 0.5}
    profile = small_profile(tmp_path, assess={"engine": "vllm", "vllm": part})
    options = start_options(students_config(profile, items), 1, [], cpu=False)
    assert (options["tensor_parallel_size"], options["gpu_memory_utilization"]) == (3, 0.5)
    reader = SimpleNamespace(manifest={"shards": {}})
    plain = small_profile(tmp_path, assess={"engine": "vllm"})
    assert assessing._inputs(profile, items, [], reader) == assessing._inputs(plain, items, [], reader)
    kept = set(assessing._inputs(plain, items, [], reader)["assess"])
    assert kept == {"batch_size", "bootstrap_samples", "extractor"}
    for other in ({"quantization": "bitsandbytes"}, {"full_logprobs": True}):
        with pytest.raises(UserError, match="assess.vllm.*answer as they were trained"):
            small_profile(tmp_path, assess={"engine": "vllm", "vllm": other})


def test_4_bit_students_are_one_sentence(items, tmp_path):
    profile = small_profile(tmp_path, assess={"engine": "vllm"}, student={"quantization": "nf4"})
    with pytest.raises(UserError, match="nf4: set assess.engine to transformers"):
        students_config(profile, items)


def test_all_models_answer_from_one_server_that_is_closed_and_not_started_again(items, output, tmp_path, monkeypatch):
    """Fake: the server, which answers with the number of the adapter that it wears."""
    profile = small_profile(tmp_path, assess={"engine": "vllm", "samples": 2})
    asked, log = [(profile, items), *load_answer_sets(profile)], []

    def open_students(profile, items, adapters):
        log.append("open")
        return SimpleNamespace(
            wearing=lambda adapter: SimpleNamespace(
                generate=lambda prompts, sampling: (
                    [Response([adapters.index(adapter) if adapter else 99], True)] * len(prompts)
                )
            ),
            close=lambda: log.append("close"),
        )

    monkeypatch.setattr(vllm_engine, "open_students", open_students)
    students = [scoring.Model(name, tmp_path / name, {"adapter/w": name}) for name in ("base-KD", "ai-KD")]
    for _ in range(2):
        scoring._answer_with_vllm(asked, [scoring.Model("control"), *students], False)
    assert log == ["open", "close"]
    for name, token in (("control", 99), ("base-KD", 0), ("ai-KD", 1)):
        block = read_json(profile.runs / "answers" / name / "block-00000.json")
        assert [row["ids"] for row in block["rows"]] == [[token]] * len(items)
        drawn = read_json(profile.runs / "answers-samples" / name / "block-00000.json")
        assert [row["ids"] for row in drawn["rows"]] == [[token]] * 2 * profile.data.test_items
        served = read_json(profile.runs / "answers" / name / "manifest.json")["served"]
        assert served == (None if name == "control" else {"adapter": "beside"})


# The real engine: only where vLLM is installed, which has to be an environment of its own.

real = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (pip install -e '.[vllm]')"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer) -> str:
    """As `lively`: padded columns that win every softmax. vLLM's CPU attention wants heads of 32 or more."""
    return save_llama(tmp_path_factory.mktemp("wide"), tokenizer, seed=1, head_dim=32)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, model) -> list:
    """Two students of all linear layers, with weights that make a difference."""
    from primekd.models.students import lora_model, save_adapter

    folders = []
    for seed in (0, 1):
        student = lora_model(model, "float32", LoraSettings(rank=4, alpha=8, target_modules="all-linear"), seed=seed)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(seed))
        folder = tmp_path_factory.mktemp(f"student-{seed}")
        save_adapter(student, folder, model)
        folders.append(folder / "adapter")
    return folders


def start(model: str, **options) -> VllmEngine:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("this vLLM is built for GPUs: tests/gpu holds what is to be run there")
    config = teacher(model, dtype="float32", batch_size=4, vllm={"full_logprobs": True})
    return VllmEngine(config, top_k=6, **options)


@pytest.fixture(scope="module")
def engine(model):
    engine = start(model)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(model) -> TransformersEngine:
    return TransformersEngine(model, "float32")


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    questions = ("How many?", "Tom has 3 apples and buys 4. How many has he?", "2 + 2 =", "Name a number.", "Which?")
    return [build_prompt(tokenizer, question) for question in questions]


@real
@pytest.mark.slow
def test_vllm_answers_as_transformers_does(engine, reference, prompts, tokenizer):
    found = engine.generate(prompts, Sampling(12))
    assert found == reference.generate(prompts, Sampling(12))
    assert len({tuple(response.ids) for response in found}) > 1


@real
@pytest.mark.slow
def test_vllm_scores_as_transformers_does(engine, reference, prompts):
    responses = [response.ids for response in engine.generate(prompts, Sampling(12))]
    (whole, top) = (engine.score(prompts, responses, want) for want in ("logits", "top"))
    for ours, rows, shown in zip(reference.score(prompts, responses, "logits"), whole, top, strict=True):
        expected = ours.log_softmax(-1)
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-3)  # padded columns took no part of the mass
        torch.testing.assert_close(shown.log_probs, expected.topk(6).values, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(expected.gather(-1, shown.ids), shown.log_probs, rtol=1e-4, atol=1e-3)
    found = agree(reference, engine, prompts, responses)
    assert found.top1_agreement == 1 and found.max_kl_nats < 1e-5


@real
@pytest.mark.slow
def test_vllm_draws_no_padded_column_and_repeats_by_seed(engine, prompts, tokenizer):
    drawn = [engine.generate(prompts[:1] * 3, Sampling(8, 1.5, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0] != drawn[0][1]
    assert all(token < len(tokenizer) for responses in drawn for r in responses for token in r.ids)


@real
@pytest.mark.slow
def test_vllm_keeps_the_end_of_turn_and_nothing_after_it(engine, prompts, monkeypatch):
    (free,) = engine.generate(prompts[:1], Sampling(8))
    end = next(token for n, token in enumerate(free.ids) if n and token not in free.ids[:n])
    monkeypatch.setattr(engine, "tokenizer", SimpleNamespace(eos_token_id=end))
    assert engine.generate(prompts[:1], Sampling(8)) == [Response(free.ids[: free.ids.index(end) + 1], False)]


@real
@pytest.mark.slow
def test_students_answer_as_their_merged_weights_do(model, adapters, reference, prompts):
    engine, plain = start(model, adapters=adapters), reference.generate(prompts, Sampling(12))
    for adapter in adapters:
        merged = TransformersEngine(model, "float32", adapter=adapter).generate(prompts, Sampling(12))
        assert engine.wearing(adapter).generate(prompts, Sampling(12)) == merged != plain
    assert engine.wearing(None).generate(prompts, Sampling(12)) == plain
    assert not engine.offers  # vLLM 0.32 cannot score where adapters may be worn
    engine.close()


@real
@pytest.mark.slow
def test_what_vllm_cannot_do_is_one_sentence(engine, prompts):
    with pytest.raises(UserError, match="does not fit: raise teacher.context_tokens"):
        engine.generate(prompts[:1], Sampling(256))
    with pytest.raises(UserError, match="neither hidden states nor the head"):
        engine.head()
    with pytest.raises(ValueError, match="not hidden"):
        engine.score(prompts[:1], [[5]], "hidden")
    assert engine.identity()["vllm"] and engine.identity()["head_dtype"] == "float32"
