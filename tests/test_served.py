"""Students are scored as they were trained: adapters beside the weights, or merged where that is lost."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import save_llama, small_profile
from transformers import AutoModelForCausalLM

from primekd.assessment import serving
from primekd.assessment.answers import answers_folder
from primekd.assessment.held_out import held_out_folder
from primekd.assessment.score import Model, score_models
from primekd.assessment.serving import choose_serving
from primekd.capture.jobs import held_out_job, open_signals
from primekd.capture.run import capture
from primekd.config import LoraSettings, LossConfig
from primekd.foundation import read_json
from primekd.foundation.errors import UserError
from primekd.models.attention import choose_attention
from primekd.models.chat import build_prompt, encode_response
from primekd.models.served import MergeError, load_merged, measure_merge
from primekd.models.students import lora_model, save_adapter
from primekd.tasks.load import load_items
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.examples import IGNORED
from primekd.training.objective import StudentObjective

LORA = LoraSettings(rank=2, alpha=4, target_modules="all-linear")


@pytest.fixture(scope="module")
def off_grid(tmp_path_factory, tokenizer) -> str:
    """A checkpoint in float32, as a dequantised one is."""
    return save_llama(tmp_path_factory.mktemp("off-grid"), tokenizer, seed=3)


@pytest.fixture(scope="module")
def on_grid(tmp_path_factory, off_grid, tokenizer) -> str:
    """The same one in bfloat16, as most are published."""
    folder = tmp_path_factory.mktemp("on-grid")
    AutoModelForCausalLM.from_pretrained(off_grid.removeprefix("path:"), dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"path:{folder}"


def trained(model: str, folder: Path, size: float):
    """A student whose adapter changes weights by about `size`, on disk and as it is in training."""
    student = lora_model(model, "bfloat16", LORA, seed=0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=size, generator=torch.Generator().manual_seed(0))
    save_adapter(student, folder, model)
    return student.eval(), folder / "adapter"


SMALL, NORMAL = 2e-4, 0.1


@torch.no_grad()
def states_in_training(student, tokenizer, prompt: list[int], response: list[int]) -> torch.Tensor:
    choose_attention(student.get_base_model(), 256)  # as build_trainer does
    objective = StudentObjective(student, LossConfig(), len(tokenizer))
    ids = torch.tensor([[*prompt, *response]])
    labels = torch.tensor([[IGNORED] * len(prompt) + response])
    return objective.response_states(ids, torch.ones_like(ids), labels)[0]  # (T, D)


@pytest.fixture(scope="module")
def pairs(tokenizer, items):
    few = items[:3]
    return [build_prompt(tokenizer, i.question) for i in few], [encode_response(tokenizer, i.solution) for i in few]


@pytest.fixture
def profile(output, lively):
    def make(model: str, **changes):
        counts = {"train_items": 2, "validation_items": 2, "test_items": 3}
        student = {"model": model, "dtype": "bfloat16"}
        return small_profile(
            output, teacher={"model": lively}, student=student, data=counts, max_new_tokens=4, **changes
        )

    return make


def engines(profile, adapter: Path, served: dict) -> TransformersEngine:
    return Model("base-KD", adapter, {}).open(profile, served)


# Which form.


def test_on_the_grid_a_small_adapter_stays_beside_and_the_student_is_the_trained_one(
    on_grid, profile, tokenizer, pairs, tmp_path
):
    student, adapter = trained(on_grid, tmp_path, SMALL)
    scored = profile(on_grid)
    served = choose_serving(scored, "base-KD", load_items(scored, "test"), adapter, {})
    assert served["adapter"] == "beside" and served["on_grid"] == 1 and served["kl_merging"] > 0
    beside = engines(scored, adapter, served)
    merged = TransformersEngine(on_grid, "bfloat16", 1, adapter, merged=True)
    for prompt, response in zip(*pairs, strict=True):
        expected = states_in_training(student, tokenizer, prompt, response)
        [found] = beside.score([prompt], [response], "hidden")
        assert torch.equal(found, expected)  # the same products in the same precision
        [lost] = merged.score([prompt], [response], "hidden")
        assert not torch.equal(lost, expected)


def test_merging_into_weights_on_the_grid_takes_most_of_a_small_adapter(on_grid, tmp_path):
    student, adapter = trained(on_grid, tmp_path, SMALL)
    merged = load_merged(on_grid, "bfloat16", adapter)
    change = kept = 0.0
    for name, layer in student.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            wanted = layer.get_delta_weight("default").detach().double()
            found = merged.get_submodule(name).weight.detach().double() - layer.base_layer.weight.double()
            change, kept = change + float((wanted * wanted).sum()), kept + float((wanted * found).sum())
    assert change > 0 and abs(kept / change) < 0.3


def test_off_the_grid_an_adapter_is_merged(off_grid, profile, tmp_path):
    _, adapter = trained(off_grid, tmp_path, NORMAL)
    scored = profile(off_grid)
    served = choose_serving(scored, "base-KD", load_items(scored, "test"), adapter, {})
    assert served["adapter"] == "merged" and served["on_grid"] < 0.5
    assert 0 < served["kl_merging"] <= served["kl_noise"]
    assert not any("lora_" in name for name, _ in engines(scored, adapter, served).model.named_parameters())


def test_one_layer_on_the_grid_is_enough_to_keep_an_adapter_beside(off_grid, tokenizer, profile, tmp_path):
    """Merging takes that layer's adapter away, however small its share of all weights is."""
    base = AutoModelForCausalLM.from_pretrained(off_grid.removeprefix("path:"), dtype=torch.float32)
    weight = base.get_decoder().layers[1].self_attn.q_proj.weight
    weight.data = weight.data.bfloat16().float()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = f"path:{tmp_path / 'base'}"
    _, adapter = trained(model, tmp_path, NORMAL)
    scored = profile(model)
    assert choose_serving(scored, "base-KD", load_items(scored, "test"), adapter, {})["adapter"] == "beside"


@pytest.mark.parametrize(
    "error, lost",
    [
        (MergeError(1e-5, 1e-4, 0.3, 9), True),
        (MergeError(2e-4, 1e-4, 0.3, 9), False),
        (MergeError(1e-9, 1e-4, 1.0, 9), False),
        (MergeError(0.0, 0.0, 0.0, 9), True),
    ],
)
def test_a_merge_is_lost_in_the_noise_off_the_grid_alone(error, lost):
    assert error.is_lost == lost


def test_merged_weights_are_rounded_and_positions_are_not(off_grid, tmp_path):
    """Frequencies of rotary positions in bfloat16 would turn every position by up to half a percent."""
    _, adapter = trained(off_grid, tmp_path, NORMAL)
    merged = load_merged(off_grid, "bfloat16", adapter)
    plain = AutoModelForCausalLM.from_pretrained(off_grid.removeprefix("path:"), dtype=torch.bfloat16)
    assert merged.dtype == torch.bfloat16
    for (name, found), (_, expected) in zip(merged.named_buffers(), plain.named_buffers(), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected), name


# An adapter of the head, or of an embedding that the head shares.


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_of_the_head_or_the_embedding_is_served_as_it_was_trained(
    on_grid, tokenizer, pairs, tmp_path, target, tied
):
    base = AutoModelForCausalLM.from_pretrained(on_grid.removeprefix("path:"), dtype=torch.float32)
    if tied:
        base.config.tie_word_embeddings = True
        base.tie_weights()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = f"path:{tmp_path / 'base'}"
    student = lora_model(model, "float32", LoraSettings(rank=2, alpha=4, target_modules=("q_proj", target)), seed=0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    save_adapter(student, tmp_path, model)
    prompt, response = pairs[0][0], pairs[1][0]
    with torch.no_grad():
        logits = student.eval()(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1, : len(tokenizer)]
    for merged in (False, True):
        engine = TransformersEngine(model, "float32", 1, tmp_path / "adapter", merged=merged)
        assert engine.transform is not None  # held-out fit is measured from hidden states
        [hidden] = engine.score([prompt], [response], "hidden")
        for found in (*engine.score([prompt], [response], "logits"), engine.last_logits(hidden)):
            torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)
    error = measure_merge(model, "float32", tmp_path / "adapter", [prompt], [response], len(tokenizer))
    assert error.kl_merging < 1e-6


# What is kept of it.


def test_the_choice_stands_in_the_manifests_and_a_resumed_run_keeps_it(on_grid, profile, tmp_path, monkeypatch):
    _, adapter = trained(on_grid, tmp_path, SMALL)
    scored, model = profile(on_grid), Model("base-KD", adapter, {"adapter/x": "1"})
    job = held_out_job(scored)
    capture(job)
    items, reader = load_items(scored, "test"), open_signals(job)
    first = score_models(scored, items, [model], reader)["base-KD"]
    served = first.served["held_out"]
    assert first.served["answers"] == served and served["adapter"] == "beside" and served["tokens"] > 0
    for folder in (answers_folder(scored, "base-KD"), held_out_folder(scored, "base-KD")):
        assert read_json(folder / "manifest.json")["served"] == served
    assert read_json(answers_folder(scored, "base-KD") / "manifest.json")["inputs"]["served"] == "beside"

    # Stopped after the answers' first block: what would be measured now is not asked.
    monkeypatch.setattr(serving, "_measure", lambda *_: pytest.fail("measured again"))
    (answers_folder(scored, "base-KD") / "manifest.json").unlink()
    (held_out_folder(scored, "base-KD") / "manifest.json").unlink()
    assert score_models(scored, items, [model], reader)["base-KD"] == first
    # Another adapter is another student.
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        score_models(scored, items, [Model("base-KD", adapter, {"adapter/x": "2"})], reader)


# In float32.


def test_scoring_in_float32_takes_the_weights_that_were_trained(off_grid, profile, tokenizer, pairs, tmp_path):
    """Base and adapter are rounded as in training, and nothing else is."""
    student, adapter = trained(off_grid, tmp_path, NORMAL)
    scored = profile(off_grid, assess={"dtype": "float32"})
    served = choose_serving(scored, "base-KD", load_items(scored, "test"), adapter, {})
    assert served == {"adapter": "merged"}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.data = parameter.data.bfloat16().float()
    prompt, response = pairs[0][0], pairs[1][0]
    without = (Model("control").open(scored), student.disable_adapter())
    for engine, adapted in ((engines(scored, adapter, served), nullcontext()), without):
        with adapted, torch.no_grad():
            logits = student(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1, : len(tokenizer)]
        [found] = engine.score([prompt], [response], "logits")
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_float32_is_refused_where_it_is_not_to_be_had(profile, off_grid, output):
    with pytest.raises(UserError, match="assess.*vLLM serves students in their own precision"):
        profile(off_grid, assess={"dtype": "float32", "engine": "vllm"})
    with pytest.raises(UserError, match="4-bit students"):
        small_profile(output, student={"quantization": "nf4"}, assess={"dtype": "float32"})
