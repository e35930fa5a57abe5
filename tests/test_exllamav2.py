"""The ExLlamaV2 engine against its traps. There is no CUDA here: the package is a FAKE (tests/fake_exllamav2.py) with
the real one's signatures and habits; what the real kernels do is for tests/gpu."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import fake_exllamav2 as fake
import pytest
import torch
from conftest import POCKET

from primekd.config import TeacherConfig
from primekd.foundation.errors import UserError
from primekd.models.logits import LogitTransform
from primekd.signals import HiddenRows
from primekd.teachers import Response, Sampling
from primekd.teachers.exllamav2_engine import ExLlamaV2Engine

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11], [20, 30]]
RESPONSES = [[12, 13], [14], [15, 16, 17, 2], [40, 41, 42]]


class Tokens:
    """transformers' tokenizer, as far as the engine looks at it."""

    eos_token_id = fake.EOS

    def __len__(self):
        return fake.VOCABULARY


@pytest.fixture
def folder(tmp_path) -> Path:
    """An EXL2 folder as the converter leaves it, without weights worth the name."""
    quantization = {"quant_method": "exl2", "version": "0.3.2", "bits": 4.5, "head_bits": 6}
    (tmp_path / "config.json").write_text(json.dumps({"rope_theta": 1e5, "quantization_config": quantization}))
    (tmp_path / "output.safetensors").write_bytes(b"fake")
    return tmp_path


@pytest.fixture
def package(monkeypatch):
    fake.install(monkeypatch)
    monkeypatch.setattr("primekd.teachers.exllamav2_engine.load_tokenizer", lambda _: Tokens())
    return fake


def make(folder: Path, batch_size: int = 3, context_tokens: int = 200, **exllamav2) -> ExLlamaV2Engine:
    return ExLlamaV2Engine(
        TeacherConfig(
            engine="exllamav2",
            model=f"path:{folder}",
            batch_size=batch_size,
            context_tokens=context_tokens,
            exllamav2=exllamav2 or None,
        )
    )


def raw_logits(engine: ExLlamaV2Engine, ids: list[int]) -> torch.Tensor:
    """(S, columns) of the fake model, without any sampler."""
    return engine.model.forward(torch.tensor([ids]))[0].float()


def greedy(engine: ExLlamaV2Engine, prompt: list[int], most: int) -> Response:
    """The likeliest token of the tokenizer again and again."""
    ids = list(prompt)
    for _ in range(most):
        ids.append(int(raw_logits(engine, ids)[-1, : fake.VOCABULARY].argmax()))
        if ids[-1] == fake.EOS:
            break
    return Response(ids[len(prompt) :], truncated=ids[-1] != fake.EOS)


# Loading.


def test_weights_fill_the_gpus_with_a_lazy_cache_for_a_whole_batch(package, folder):
    engine = make(folder, cache_type="Q6")
    assert fake.ExLlamaV2.loads == [("load_autosplit", 3 * 256)]
    assert type(engine.generator.cache) is fake.ExLlamaV2Cache_Q6
    # Not the model's own maximum of 131,072 tokens, and whole pages.
    assert engine.model.config.max_seq_len == engine.model.config.max_input_len == 256
    assert make(folder, cache_tokens=300).generator.cache.max_seq_len == 512


@pytest.mark.parametrize("cache_type, kind", [("FP16", "Cache"), ("Q8", "Cache_Q8"), ("Q4", "Cache_Q4")])
def test_a_given_split_loads_before_its_cache(cache_type, kind, package, folder):
    engine = make(folder, gpu_split=(20.0, 24.0), cache_type=cache_type)
    assert fake.ExLlamaV2.loads == [("load", [20.0, 24.0])] and not engine.generator.cache.lazy
    assert type(engine.generator.cache).__name__ == f"ExLlamaV2{kind}"


def test_tensor_parallel_knows_its_cache_and_offers_logits_alone(package, folder):
    engine = make(folder, tensor_parallel=True, cache_type="Q4")
    assert fake.ExLlamaV2.loads == [("load_tp", None, 768, fake.ExLlamaV2Cache_Q4)]
    assert engine.generator.cache.base is fake.ExLlamaV2Cache_Q4 and engine.offers == {"logits"}
    with pytest.raises(ValueError, match="no hidden"):
        engine.score(PROMPTS, RESPONSES, "hidden")
    engine.close()  # whose head was never asked for


def test_without_flash_attn_one_sequence_at_a_time_and_causal_attention(monkeypatch, package, folder, capsys):
    """Release 0.3.2 gives SDPA no mask at all (measured on its own modules: 1.6 nats a token off)."""
    fake.install(monkeypatch, flash=False)
    engine = make(folder)
    assert not engine.paged and not engine.generator.paged and engine.generator.cache.max_seq_len == 256
    assert engine.model.config.no_sdpa and engine.model.config.no_xformers
    assert "one at a time" in capsys.readouterr().out
    assert engine.generate(PROMPTS, Sampling(6)) == [greedy(engine, prompt, 6) for prompt in PROMPTS]
    assert engine.generator.most_at_once == 1
    with pytest.raises(UserError, match="tensor_parallel needs flash-attn"):
        make(folder, tensor_parallel=True)


def test_the_identity_names_format_cache_and_versions(package, folder):
    found = make(folder, cache_type="Q8").identity()
    assert {found[k] for k in ("engine", "cache_type", "exllamav2", "flash_attn")} == {
        "exllamav2", "Q8", "0.3.2", "none"
    }  # fmt: skip
    assert (found["bits_per_weight"], found["head_bits"]) == (4.5, 6) and len(found["model_sha256"]) == 64


# Generation.


def test_greedy_is_the_raw_model_in_batches(package, folder):
    """The package's defaults would penalise repetition, which the toy model does without end."""
    engine = make(folder)
    told = []
    found = engine.generate(PROMPTS, Sampling(8, ended=lambda: told.append(engine.generator.num_remaining_jobs())))
    assert found == [greedy(engine, prompt, 8) for prompt in PROMPTS]
    assert len(told) == len(PROMPTS) and told[0] > 0, "all of them only at the end"
    assert engine.generator.most_at_once == 3
    engine._settings = lambda _: None  # the package's own
    assert engine.generate(PROMPTS, Sampling(8)) != found


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_settings_neither_penalise_nor_truncate(temperature, package, folder):
    settings = make(folder)._settings(Sampling(8, temperature))
    expected = {"token_repetition_penalty": 1.0, "temperature": temperature or 1.0, "top_k": 0 if temperature else 1}
    neutral = {
        f.name: f.default
        for f in dataclasses.fields(settings)
        if f.name not in {"token_repetition_penalty", "temperature", "top_k", "top_p", "token_bias"}
    }
    assert vars(settings).items() >= (expected | neutral | {"top_p": 0.0}).items()


def test_the_end_of_turn_is_kept_though_it_lies_under_held(package, folder, monkeypatch):
    engine = make(folder)
    free = engine.generate(PROMPTS, Sampling(8))
    end = free[1].ids[3]
    monkeypatch.setattr(engine, "tokenizer", SimpleNamespace(eos_token_id=end))
    for before, after in zip(free, engine.generate(PROMPTS, Sampling(8)), strict=True):
        stop = before.ids.index(end) + 1 if end in before.ids else 8
        assert after == Response(before.ids[:stop], truncated=end not in before.ids)


def test_tokens_that_go_missing_are_no_response(package, folder, monkeypatch):
    receive = fake.ExLlamaV2DynamicJob.receive
    monkeypatch.setattr(fake.ExLlamaV2DynamicJob, "receive", lambda *a: receive(*a) | {"token_ids": torch.ones(1, 0)})
    with pytest.raises(UserError, match="tokens of 4"):
        make(folder).generate(PROMPTS[:1], Sampling(4))


def test_padded_columns_are_never_generated(package, folder):
    """One of two always has the largest logit, and the sampler's own cut lies beyond both."""
    engine = make(folder)
    assert raw_logits(engine, PROMPTS[0])[-1].argmax() in (fake.VOCABULARY, fake.VOCABULARY + 1)
    drawn = engine.generate(PROMPTS, Sampling(8)) + engine.generate(PROMPTS, Sampling(8, temperature=2.0))
    assert all(token < fake.VOCABULARY for response in drawn for token in response.ids)


def test_sampling_is_seeded_and_each_prompt_has_draws_of_its_own(package, folder):
    engine = make(folder)
    drawn = [engine.generate([[5, 6]] * 4, Sampling(8, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({tuple(response.ids) for response in drawn[0]}) > 1


def test_sampling_draws_from_the_whole_distribution(package, folder):
    engine = make(folder)
    drawn = engine.generate([[5, 6]] * 300, Sampling(1, temperature=50.0))
    assert len({response.ids[0] for response in drawn}) > 60  # the default top_k would leave 50


# Scoring.


@pytest.mark.parametrize("want", ["logits", "hidden"])
def test_row_t_is_what_predicts_response_token_t(want, package, folder):
    engine = make(folder)
    found = engine.score(PROMPTS, RESPONSES, want)
    for prompt, response, rows in zip(PROMPTS, RESPONSES, found, strict=True):
        logits = rows if want == "logits" else rows.float() @ engine.head().float().T
        assert logits.shape == (len(response), fake.VOCABULARY)  # padded columns are cut
        expected = raw_logits(engine, prompt + response)[len(prompt) - 1 : -1, : fake.VOCABULARY]
        torch.testing.assert_close(logits, expected, rtol=5e-3, atol=5e-2)


def test_batches_hold_what_one_forward_can(package, folder, monkeypatch):
    engine, shapes = make(folder, batch_size=8), []
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda ids, **k: shapes.append(tuple(ids.shape)) or forward(ids, **k))
    prompts = [[5] * length for length in (60, 3, 61, 62, 63, 64)]
    rows = engine.score(prompts, [[7, 8]] * 6, "logits")
    assert shapes == [(3, 65), (3, 62)]  # 256 tokens at most, longest first
    for prompt, found in zip(prompts, rows, strict=True):
        expected = raw_logits(engine, [*prompt, 7])[len(prompt) - 1 :, : fake.VOCABULARY]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


def test_a_soft_capped_and_scaled_head_is_told_with_its_hidden_states(package, folder, monkeypatch):
    plain, plain_logits = fake.ExLlamaV2Config.__init__, fake.ExLlamaV2.logits

    def capped(self, model_dir=None):
        plain(self, model_dir)
        self.final_logit_softcapping, self.logit_scale = 5.0, 0.25

    monkeypatch.setattr(fake.ExLlamaV2Config, "__init__", capped)
    monkeypatch.setattr(fake.ExLlamaV2, "logits", lambda self, states: plain_logits(self, states / 4))
    engine = make(folder)
    assert engine.transform == LogitTransform(0.25, 5.0) and engine.offers == {"hidden", "logits"}
    (hidden,), (own,) = (
        engine.score(PROMPTS[:1], RESPONSES[:1], "hidden"),
        engine.own_logits(PROMPTS[:1], RESPONSES[:1]),
    )
    torch.testing.assert_close(
        HiddenRows(hidden, engine.head(), engine.transform).to_logits(), own, rtol=1e-2, atol=2e-2
    )


def test_a_head_that_does_something_else_to_its_logits_offers_them_alone(package, folder, monkeypatch):
    plain = fake.ExLlamaV2.logits
    monkeypatch.setattr(fake.ExLlamaV2, "logits", lambda self, states: plain(self, states).clamp(max=1.0))
    engine = make(folder)
    assert engine.transform is None and engine.offers == {"logits"}


# Bad input.


def test_a_sequence_too_long_is_refused(package, folder):
    engine = make(folder)
    with pytest.raises(UserError, match="205 tokens does not fit: raise teacher.context_tokens"):
        engine.generate([[5] * 200], Sampling(5))
    with pytest.raises(UserError, match="does not fit"):
        engine.score([[5] * 200], [[6, 7]], "logits")


@pytest.mark.parametrize(
    "config, said",
    [
        ({}, "is not quantised: convert it"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised as gptq"),
        ({"quantization_config": {"quant_method": "exl3"}}, "is quantised as exl3"),
        (
            {"quantization_config": {"quant_method": "exl2"}, "rope_parameters": {"rope_theta": 5e5}},
            "rope_parameters.*passes over: write rope_theta",
        ),
        (
            {
                "quantization_config": {"quant_method": "exl2"},
                "rope_theta": 5e5,
                "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5},
            },
            "rope_scaling",
        ),
    ],
)
def test_another_format_is_named(config, said, package, folder):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        make(folder)


def test_a_gguf_file_is_refused_before_it_is_unpacked(package):
    with pytest.raises(UserError, match="needs an EXL2 folder.*is a GGUF file"):
        ExLlamaV2Engine(TeacherConfig(engine="exllamav2", model=POCKET))


def test_no_gpu_no_package_and_an_old_one(folder, monkeypatch, package):
    fake.install(monkeypatch, version="0.1.7")
    with pytest.raises(UserError, match=r"0\.1\.7 has wrong positions of Llama 3\.1: install 0\.1\.8 or newer"):
        make(folder)
    fake.install(monkeypatch, version="0.1.8+cu121.torch2.4.0")
    assert make(folder).paged
    monkeypatch.setitem(__import__("sys").modules, "exllamav2", None)
    with pytest.raises(UserError, match="exllamav2"):
        make(folder)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="runs on NVIDIA GPUs alone, and torch"):
        make(folder)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Insufficient VRAM for model and cache"),
        AssertionError("Insufficient space in device allocation"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_too_little_gpu_memory_is_one_sentence(error, package, folder, monkeypatch):
    engine = make(folder)
    monkeypatch.setattr(fake.ExLlamaV2, "fails", error)
    for attempt in (
        lambda: make(folder),
        lambda: engine.score(PROMPTS, RESPONSES, "logits"),
        lambda: engine.generate(PROMPTS, Sampling(4)),
    ):
        with pytest.raises(UserError, match="memory is too small.*: lower teacher.batch_size"):
            attempt()


def test_a_model_it_cannot_read_is_named(package, folder, monkeypatch):
    monkeypatch.setattr(fake.ExLlamaV2, "fails", ValueError(" ## Could not find lm_head.* in model"))
    with pytest.raises(UserError, match="cannot load .*Could not find lm_head.*fetch or convert it again"):
        make(folder)


def test_a_closed_engine_holds_neither_model_nor_cache(package, folder):
    engine = make(folder)
    engine.close()
    assert not {"model", "generator", "_weight"} & vars(engine).keys()
