"""4-bit students on bitsandbytes' own CPU kernels: training, scoring beside the adapter, and what is refused."""

import copy
import importlib.util

import pytest
import torch
from conftest import save_llama, small_profile

from primekd.config import LoraSettings, LossConfig, TrainConfig
from primekd.foundation import write_json, write_manifest
from primekd.foundation.errors import UserError
from primekd.models import load_model
from primekd.models.served import require_same_base
from primekd.models.students import lora_model
from primekd.teachers import Sampling
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.distill import distill, student_inputs
from primekd.training.examples import gold_examples
from primekd.training.trainer import build_trainer

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
ALL = LoraSettings(rank=2, alpha=4, target_modules="all-linear")
TRAIN = TrainConfig(
    optimizer="adamw", learning_rate=0.02, epochs=3, batch_size=4, micro_batch_size=2, evaluations_per_epoch=2
)


@pytest.fixture
def trainer(lively, tokenizer, items, tmp_path):
    def make(dtype="float32"):
        examples = gold_examples(tokenizer, items[:4])
        student = lora_model(lively, dtype, ALL, 0, "nf4")
        return build_trainer(
            student, tokenizer, examples, examples[:2], None, LossConfig(), TRAIN, tmp_path / f"c-{dtype}", 0
        )

    return make


def codes(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_is_nf4_with_quantised_scales_and_only_the_float32_adapter_is_trained(trainer, lively, dtype):
    from bitsandbytes.nn import Linear4bit

    made = trainer(dtype)
    layers = [m for m in made.model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 2 * 7  # every linear layer of both blocks, the output head not
    for layer in layers:
        assert layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested
        assert layer.compute_dtype == getattr(torch, dtype)
    trained = {n: p for n, p in made.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 14 and all("lora_" in n and p.dtype == torch.float32 for n, p in trained.items())
    before = codes(made.model)
    made.train()
    assert all(torch.equal(before[name], code) for name, code in codes(made.model).items())
    assert all(p.abs().sum() > 0 for n, p in trained.items() if "lora_B" in n)
    losses = [e["loss"] for e in made.state.log_history if "loss" in e]
    assert losses[-1] < losses[0]


@needs_bitsandbytes
def test_a_validation_leaves_the_gradients_as_they_were(trainer, tokenizer):
    """bitsandbytes repacks a CPU's weights in the first pass without gradients; no gradient passes them afterwards."""
    made = trainer("bfloat16")
    batch = next(iter(made.get_train_dataloader()))

    def gradients() -> list[torch.Tensor]:
        made.model.train().zero_grad()
        made.compute_loss(made.model, copy.deepcopy(batch)).backward()
        return [p.grad.clone() for p in made.model.parameters() if p.requires_grad]

    first = gradients()
    made.evaluate()
    for one, other in zip(first, gradients(), strict=True):
        assert torch.equal(one, other)
    assert sum(g.abs().sum() > 0 for g in first) == 14  # lora_B of every layer, the lowest included


@needs_bitsandbytes
def test_a_4_bit_student_is_scored_on_the_base_it_was_trained_on(output, tokenizer):
    profile = small_profile(
        output, student={"quantization": "nf4"}, data={"train_items": 4, "validation_items": 2, "test_items": 2},
        train={"optimizer": "adamw", "learning_rate": 0.05},
    )  # fmt: skip
    plain = small_profile(output, data=profile.data.model_dump(mode="json"))
    inputs = [student_inputs(p, "base-fine-tune", 0, None)["student"] for p in (profile, plain)]
    assert inputs[0] == inputs[1] | {"quantization": "nf4"}

    folder = distill(profile, "base-fine-tune")
    student = profile.student
    control = TransformersEngine(student.model, student.dtype, 2, quantization="nf4")
    scored = TransformersEngine(student.model, student.dtype, 2, folder / "adapter", "nf4")
    assert codes(control.model).keys() and not codes(TransformersEngine(student.model, student.dtype).model)
    weights = {name.replace(".base_layer", ""): code for name, code in codes(scored.model).items()}
    assert all(torch.equal(weights[name], code) for name, code in codes(control.model).items())

    trained = lora_model(student.model, student.dtype, student.lora, 0, "nf4")
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(trained, load_file(folder / "adapter" / "adapter_model.safetensors"))
    ids = list(range(40, 60))
    with torch.no_grad():
        expected = trained.eval()(torch.tensor([ids])).logits[0, 9:-1, : len(tokenizer)]
    [found] = scored.score([ids[:10]], [ids[10:]], "logits")
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    [untrained] = control.score([ids[:10]], [ids[10:]], "logits")
    assert (found - untrained).abs().max() > 1e-3
    assert len(scored.generate([ids], Sampling(4))[0].ids) <= 4


def test_without_bitsandbytes_one_sentence_says_what_to_install(lively, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(UserError, match=r"needs bitsandbytes: .*pip install -e '\.\[bitsandbytes\]'"):
        load_model(lively, "float32", "nf4")


def test_a_4_bit_base_is_not_sharded(lively, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="not sharded.*multi-gpu.yaml"):
        load_model(lively, "float32", "nf4")


# Adapters of another base model.


@pytest.fixture
def adapter(lively, tmp_path):
    from primekd.models.students import save_adapter

    save_adapter(lora_model(lively, "float32", ALL, 0), tmp_path / "student", lively)
    return tmp_path / "student" / "adapter"


def test_an_adapter_of_another_base_model_is_refused(adapter, tokenizer, tmp_path, lively):
    other = save_llama(tmp_path / "other", tokenizer, seed=9)
    with pytest.raises(UserError, match=f"adapter of {lively.removeprefix('path:')}, not of {other}"):
        TransformersEngine(other, "float32", adapter=adapter)
    TransformersEngine(lively, "float32", adapter=adapter)


def test_an_adapter_trained_over_other_weights_of_the_same_name_is_refused(adapter, lively):
    inputs = {"student": {"model_sha256": "0" * 64}}
    write_manifest(adapter.parent, "adapter", inputs, [adapter / "adapter_config.json"])
    with pytest.raises(UserError, match="other weights"):
        require_same_base(adapter, lively)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path, lively, tokenizer):
    from primekd.models.students import save_adapter

    student = lora_model(lively, "float32", ALL, 0)
    weights = {n: torch.zeros(*p.shape[:-1], p.shape[-1] + 1) for n, p in student.named_parameters() if "lora_" in n}
    save_adapter(student, tmp_path, lively, weights)
    with pytest.raises(UserError, match="does not fit"):
        TransformersEngine(lively, "float32", adapter=tmp_path / "adapter")


def test_an_adapter_from_elsewhere_names_the_hub_model_plainly(adapter):
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct"})
    with pytest.raises(UserError, match="adapter of meta-llama"):
        require_same_base(adapter, "hub:meta-llama/Llama-3.2-1B-Instruct")
    require_same_base(adapter, "hub:meta-llama/Llama-3.1-8B-Instruct@abc123")
