"""Both engines against plain forwards of the model, and against each other on the same file."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from conftest import POCKET, ROOT, small_profile
from transformers import AutoModelForCausalLM

from primekd.foundation.errors import UserError
from primekd.models.chat import build_prompt, encode_response
from primekd.teachers import Response, Sampling, open_engine
from primekd.teachers.transformers_engine import TransformersEngine

QUESTIONS = [
    "How many?",
    "Tom has 3 apples and buys 4. How many has he?",
    "2 + 2 =",
    "Name a number, any number, but a small one.",
]
RESPONSES = ["7", "He has seven apples, I think.", "4", "One"]


@pytest.fixture(scope="module")
def engine(lively) -> TransformersEngine:
    return TransformersEngine(lively, "float32", batch_size=3)


@pytest.fixture(scope="module")
def model(lively):
    """The same checkpoint without this project."""
    return AutoModelForCausalLM.from_pretrained(lively.removeprefix("path:"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    return [build_prompt(tokenizer, question) for question in QUESTIONS]


@pytest.fixture(scope="module")
def responses(tokenizer) -> list[list[int]]:
    return [encode_response(tokenizer, text) for text in RESPONSES]


@torch.no_grad()
def plain_greedy(model, prompt: list[int], tokens: int, vocabulary: int) -> list[int]:
    """The likeliest real token again and again, by whole forwards without a cache."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1, :vocabulary].argmax()))
    return ids[len(prompt) :]


# Scoring.


@pytest.mark.parametrize("want", ["logits", "hidden"])
def test_row_t_is_what_predicts_response_token_t(want, engine, model, prompts, responses, tokenizer):
    rows = engine.score(prompts, responses, want)
    for prompt, response, found in zip(prompts, responses, rows, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0]
        expected = torch.stack([logits[len(prompt) + t - 1, : len(tokenizer)] for t in range(len(response))])
        logits_found = found if want == "logits" else found.float() @ engine.head().float().T
        assert logits_found.shape == (len(response), len(tokenizer))
        torch.testing.assert_close(logits_found, expected, rtol=1e-4, atol=1e-4)


def test_rows_do_not_depend_on_the_batch_they_are_scored_in(engine, prompts, responses):
    together = engine.score(prompts, responses, "hidden")
    for n in range(len(prompts)):
        (alone,) = engine.score([prompts[n]], [responses[n]], "hidden")
        torch.testing.assert_close(together[n], alone, rtol=1e-4, atol=1e-4)


def test_items_come_back_in_the_order_asked_for(engine, prompts, responses):
    """Batches are made by length; the answers must not be."""
    assert [len(r) for r in engine.score(prompts, responses, "hidden")] == [len(r) for r in responses]
    backwards = engine.score(prompts[::-1], responses[::-1], "hidden")
    for found, expected in zip(backwards[::-1], engine.score(prompts, responses, "hidden"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_padded_columns_are_cut_before_anything_else_sees_them(engine, model, prompts, responses, tokenizer):
    with torch.no_grad():
        raw = model(torch.tensor([prompts[0]])).logits
    assert raw.shape[-1] == len(tokenizer) + 64 and int(raw[0, -1].argmax()) >= len(tokenizer)  # they would win
    assert engine.vocab_size == len(tokenizer)
    assert engine.head().shape[0] == engine.score(prompts[:1], responses[:1], "logits")[0].shape[-1] == len(tokenizer)


def test_an_architecture_whose_head_does_not_give_its_logits_offers_logits_alone(
    engine, model, prompts, responses, monkeypatch
):
    """Gemma 2 caps its logits, Granite scales them: hidden @ head is not what such a model says."""

    class Scaled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.device, self.generation_config = inner, inner.device, None
            self.config, self.dtype = inner.config, inner.dtype
            self.get_decoder, self.get_output_embeddings = inner.get_decoder, inner.get_output_embeddings

        def forward(self, **inputs):
            output = self.inner(**inputs)
            return SimpleNamespace(logits=output.logits / 8)

    monkeypatch.setattr("primekd.teachers.transformers_engine.load_model", lambda *_: Scaled(model))
    scaled = TransformersEngine(engine.reference, "float32")
    assert engine.offers == {"hidden", "logits"} and scaled.offers == {"logits"}
    (rows,) = scaled.score(prompts[:1], responses[:1], "logits")
    torch.testing.assert_close(rows * 8, engine.score(prompts[:1], responses[:1], "logits")[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="hidden states"):
        scaled.score(prompts[:1], responses[:1], "hidden")


# Generation.


def test_greedy_generation_is_the_raw_models_whatever_the_checkpoints_configuration(
    engine, model, prompts, tokenizer, lively
):
    """The checkpoint asks for sampling, a repetition penalty and no repeated token; none of it may be heard."""
    from transformers import GenerationConfig

    asked = GenerationConfig.from_pretrained(lively.removeprefix("path:"))
    assert asked.repetition_penalty == 5.0 and asked.do_sample
    for prompt, found in zip(prompts, engine.generate(prompts, Sampling(8)), strict=True):
        expected = plain_greedy(model, prompt, 8, len(tokenizer))
        end = expected.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in expected else 8
        assert found.ids == expected[:end]


def test_padded_columns_are_never_generated(engine, model, prompts, tokenizer):
    drawn = engine.generate(prompts, Sampling(8)) + engine.generate(prompts, Sampling(8, temperature=1.5, seed=1))
    assert all(token < len(tokenizer) for response in drawn for token in response.ids)


def test_generation_ends_at_the_end_of_turn_and_says_what_was_cut(engine, prompts, monkeypatch):
    """The third token of the first answer is made the end of turn: it is kept, and nothing after it."""
    free = engine.generate(prompts, Sampling(8))
    end = free[0].ids[2]
    monkeypatch.setattr(engine, "tokenizer", SimpleNamespace(eos_token_id=end, pad_token_id=end))
    found = engine.generate(prompts, Sampling(8))
    for before, after in zip(free, found, strict=True):
        stop = before.ids.index(end) + 1 if end in before.ids else len(before.ids)
        assert after == Response(before.ids[:stop], truncated=end not in before.ids)
    assert not found[0].truncated and any(response.truncated for response in found)


def test_an_end_of_turn_at_the_last_allowed_token_is_no_truncation(engine, prompts, monkeypatch):
    (free,) = engine.generate(prompts[:1], Sampling(3))
    assert free.ids[2] not in free.ids[:2]
    monkeypatch.setattr(engine, "tokenizer", SimpleNamespace(eos_token_id=free.ids[2], pad_token_id=0))
    assert engine.generate(prompts[:1], Sampling(3)) == [Response(free.ids, truncated=False)]


def test_sampling_is_repeatable_by_seed_and_differs_between_seeds(engine, prompts):
    drawn = [engine.generate(prompts, Sampling(8, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_sampling_draws_from_the_whole_distribution_at_its_temperature(engine, model, prompts, tokenizer):
    """No top-k: at a high temperature most draws lie outside the 50 likeliest tokens, which a default would keep to."""
    with torch.no_grad():
        logits = model(torch.tensor([prompts[0]])).logits[0, -1, : len(tokenizer)]
    likeliest = set((logits / 20).topk(50).indices.tolist())
    drawn = [r.ids[0] for r in engine.generate([prompts[0]] * 30, Sampling(1, temperature=20.0, seed=3))]
    expected = (logits / 20).softmax(-1)[list(likeliest)].sum()
    assert expected < 0.2 and sum(token in likeliest for token in drawn) < 15


def test_an_adapter_is_merged_into_the_model_that_is_served(engine, lively, prompts, responses, tmp_path):
    from primekd.config import LoraSettings
    from primekd.models.students import lora_model, save_adapter

    student = lora_model(lively, "float32", LoraSettings(rank=2, alpha=4), seed=0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    save_adapter(student, tmp_path, lively)
    served = TransformersEngine(lively, "float32", adapter=tmp_path / "adapter")
    (rows,) = served.score(prompts[:1], responses[:1], "logits")
    with torch.no_grad():
        logits = student.eval()(torch.tensor([prompts[0] + responses[0]])).logits[0]
    first = len(prompts[0]) - 1
    expected = logits[first : first + len(responses[0]), : engine.vocab_size]
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(rows, engine.score(prompts[:1], responses[:1], "logits")[0], atol=0.1)


# llama.cpp.


def test_llamacpp_refuses_a_model_that_is_no_gguf_file(lively, tmp_path):
    profile = small_profile(tmp_path, teacher={"engine": "llamacpp", "model": lively})
    with pytest.raises(UserError, match="needs a .gguf file.*set teacher.engine: transformers"):
        open_engine(profile)


def test_a_missing_package_of_an_engine_is_one_sentence(tmp_path, monkeypatch):
    api = {"model": "m", "usd_per_million_input": 0, "usd_per_million_output": 0, "max_spend_usd": 0}
    profile = small_profile(tmp_path, teacher={"engine": "api", "api": api})
    for name in [name for name in sys.modules if name.startswith("primekd.teachers.api")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(UserError, match=r"api needs the Python package tenacity.*pip install -e '\.\[api\]'"):
        open_engine(profile)


def ask_llamacpp(reference: str, prompts: list[list[int]], forced: list[int]) -> dict:
    """What llama.cpp says. Run in a process of its own: a crash inside the library must not end the test run."""
    from primekd.capture.run import measure_reconstruction
    from primekd.signals import StoredItem
    from primekd.teachers.llamacpp_engine import LlamaCppEngine

    torch.set_num_threads(1)  # llama.cpp takes as many; they spin, which is slow where the cores are shared
    engine = LlamaCppEngine(reference, context_tokens=256)
    greedy = engine.generate(prompts, Sampling(10))
    ids = [response.ids for response in greedy]
    logits = engine.score(prompts, ids, "logits")
    stored = [StoredItem(str(n), p, r, True) for n, (p, r) in enumerate(zip(prompts, ids, strict=True))]
    try:
        engine.score([prompts[0]], [[5] * 300], "logits")
        too_long = "accepted"
    except UserError as error:
        too_long = str(error)
    sampled = [engine.generate(prompts[:1], Sampling(4, temperature=1.5, seed=seed))[0].ids for seed in (1, 1, 2)]
    return {
        "greedy": greedy,
        "after the rest": engine.generate(prompts[:1], Sampling(4))[0].ids,
        "sampled": sampled,
        "logits": [rows.numpy() for rows in logits],
        "again": [rows.numpy() for rows in engine.score(prompts, ids, "logits")],
        "forced": engine.score([prompts[0]], [forced], "logits")[0].numpy(),
        "hidden shape": tuple(engine.score(prompts[:1], ids[:1], "hidden")[0].shape),
        "head shape": tuple(engine.head().shape),
        "reconstruction": measure_reconstruction(engine, stored, engine.score(prompts, ids, "hidden")),
        "too long": too_long,
        "identity": engine.identity(),
    }


@pytest.fixture(scope="module")
def pocket_prompts(tokenizer) -> list[list[int]]:
    return [build_prompt(tokenizer, "A kid has 8 pencils and his brother has 5. How many have they?")]


@pytest.fixture(scope="module")
def llamacpp(tokenizer, pocket_prompts) -> dict:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        forced = encode_response(tokenizer, "They have 13 pencils.")
        return pool.submit(ask_llamacpp, POCKET, pocket_prompts, forced).result(timeout=300)


@pytest.fixture(scope="module")
def pocket_engine() -> TransformersEngine:
    """The same file, dequantised, in float32."""
    return TransformersEngine(POCKET, "float32")


@pytest.mark.slow
def test_both_engines_begin_a_greedy_answer_alike(llamacpp, pocket_engine, pocket_prompts, tokenizer):
    for ours, theirs in zip(pocket_engine.generate(pocket_prompts, Sampling(10)), llamacpp["greedy"], strict=True):
        assert theirs.ids[:4] == ours.ids[:4]
        assert len(theirs.ids) == 10 or theirs.ids[-1] == tokenizer.eos_token_id
        assert theirs.truncated == (theirs.ids[-1] != tokenizer.eos_token_id)


@pytest.mark.slow
def test_both_engines_score_the_same_file_nearly_alike(llamacpp, pocket_engine, pocket_prompts):
    """llama.cpp quantises activations too, so its logits are near, not equal."""
    theirs = torch.cat([torch.from_numpy(rows) for rows in llamacpp["logits"]])
    ours = torch.cat(pocket_engine.score(pocket_prompts, [r.ids for r in llamacpp["greedy"]], "logits"))
    assert theirs.shape == ours.shape
    p, q = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
    assert (p.exp() * (p - q)).sum(-1).mean() < 0.02
    assert (p.argmax(-1) == q.argmax(-1)).double().mean() >= 0.9


@pytest.mark.slow
def test_a_greedy_llamacpp_answer_is_the_top_1_of_its_own_scored_rows(llamacpp):
    """Row t predicts token t: rows shifted by one would not agree."""
    ids = torch.tensor([token for response in llamacpp["greedy"] for token in response.ids])
    rows = torch.cat([torch.from_numpy(rows) for rows in llamacpp["logits"]])
    assert (rows.argmax(-1) == ids).double().mean() >= 0.9


@pytest.mark.slow
def test_forced_rows_of_llamacpp_stand_at_the_right_places(llamacpp, pocket_engine, pocket_prompts, tokenizer):
    forced = encode_response(tokenizer, "They have 13 pencils.")
    (ours,) = pocket_engine.score([pocket_prompts[0]], [forced], "logits")
    p, q = (torch.as_tensor(x).double().log_softmax(-1) for x in (llamacpp["forced"], ours))
    assert (p.exp() * (p - q)).sum(-1).max() < 0.1


@pytest.mark.slow
def test_llamacpps_hidden_state_and_head_rebuild_its_logits_within_the_stated_error(llamacpp, tokenizer):
    assert llamacpp["hidden shape"] == (len(llamacpp["greedy"][0].ids), 576)
    assert llamacpp["head shape"] == (len(tokenizer), 576)
    assert llamacpp["reconstruction"]["mean_kl_nats"] < 5e-3
    assert llamacpp["reconstruction"]["top1_agreement"] >= 0.9


@pytest.mark.slow
def test_llamacpp_says_the_same_when_it_is_asked_again(llamacpp):
    for first, second in zip(llamacpp["logits"], llamacpp["again"], strict=True):
        assert (first == second).all()
    assert llamacpp["after the rest"] == llamacpp["greedy"][0].ids[:4]
    assert llamacpp["sampled"][0] == llamacpp["sampled"][1] != llamacpp["sampled"][2]


@pytest.mark.slow
def test_a_sequence_that_does_not_fit_llamacpps_context_is_one_sentence(llamacpp):
    assert "does not fit: raise teacher.context_tokens" in llamacpp["too long"]


@pytest.mark.slow
def test_identities_name_engine_version_and_model_hash_and_no_machine_path(llamacpp, engine):
    for identity in (llamacpp["identity"], engine.identity()):
        assert identity["engine"] in ("llamacpp", "transformers") and len(identity["model_sha256"]) == 64
    assert str(ROOT) not in str(llamacpp["identity"])


def test_a_dequantised_copy_that_was_cut_short_is_built_again(tmp_path, monkeypatch):
    from primekd.models import built

    def build(target):
        (target / "model.safetensors").write_bytes(b"0123456789")
        return {"made": True}

    folder = tmp_path / "cache"
    built.build_once(folder, build)
    (folder / "model.safetensors").write_bytes(b"01234")
    built.build_once(folder, build)
    assert (folder / "model.safetensors").read_bytes() == b"0123456789"
