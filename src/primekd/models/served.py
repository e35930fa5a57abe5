"""A student as it answers: its base with the adapter beside the weights, as it was trained, or merged into them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from primekd.foundation import MANIFEST, UserError, read_json, read_manifest, relative_name
from primekd.foundation.memory import release_gpu_memory
from primekd.models.folders import model_hash
from primekd.models.loading import load_model
from primekd.models.reference import SCHEMES, base_name
from primekd.models.template import turn_end


@dataclass(frozen=True)
class MergeError:
    """What merging an adapter into weights of lower precision does to a student, in nats a token.

    `on_grid`: the share of an adapted layer's weights that the precision holds exactly, in the layer where it is
    largest: a checkpoint may be trained further in some layers alone. Where nearly all are, as in a bfloat16
    checkpoint, a sum rounds back to the old weight wherever the change is less than half a step."""

    kl_merging: float  # KL(beside || merged), both with products in float32, so that no other rounding hides it
    kl_noise: float  # KL(products in float32 || in the precision), the adapter beside the weights in both
    on_grid: float
    tokens: int  # that the means were taken over

    @property
    def is_lost(self) -> bool:
        """Whether a merged student is, within the noise of its precision, the one that was trained.

        Never on the grid: nothing but the merge rounds such weights, and what it takes from the adapter is no noise."""
        return self.on_grid <= 0.5 and self.kl_merging <= self.kl_noise


def load_beside(model: str, dtype: str, adapter: Path, quantization: str | None = None) -> nn.Module:
    """A model in `dtype`, or in 4 bits computing in it, with a LoRA adapter beside its weights.

    The adapter is rounded to `dtype`, as autocast does in training at every product."""
    student = _with_adapter(load_model(model, dtype, quantization), model, adapter)
    return _ready(_cast_adapter(student, dtype).get_base_model())


def load_merged(
    model: str, dtype: str, adapter: Path, weights: str | None = None, quantization: str | None = None
) -> nn.Module:
    """A model with a LoRA adapter merged into its weights in float32, then in `dtype`. `weights`: the precision of
    training, where `dtype` is finer: they are rounded to it. Weights in 4 bits (`quantization`) are dequantised."""
    precision = weights or "float32"
    base = load_model(model, precision, quantization)
    student = _cast_adapter(_with_adapter(base.dequantize() if quantization else base, model, adapter), precision)
    _untie(student)
    return _ready(cast_weights(cast_weights(student, "float32").merge_and_unload(), dtype))


def effective_weight(layer: nn.Module) -> Tensor:
    """The weight that a linear layer multiplies by: its own, or with an adapter beside it their sum, in float32."""
    if not hasattr(layer, "get_delta_weight"):  # peft itself is not imported: a teacher needs none of its 50 MB
        return layer.weight.detach()
    change = sum(layer.get_delta_weight(name).float() for name in layer.active_adapters)
    return (_base_weight(layer).float() + change).detach()


def cast_weights(model: nn.Module, dtype: str) -> nn.Module:
    """Parameters in `dtype`; buffers stay, or bfloat16 would round the frequencies of rotary positions."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


def plain_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> GenerationConfig:
    """Our own, greedy unless `settings` say more: a checkpoint's may carry penalties, temperature, other ends."""
    columns = model.get_output_embeddings().weight.shape[0]
    return GenerationConfig(
        eos_token_id=sorted(turn_end(tokenizer).stops),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=list(range(len(tokenizer), columns)) or None,  # padded columns are no tokens
        **{"do_sample": False} | settings,
    )


@torch.inference_mode()
def measure_merge(
    model: str, dtype: str, adapter: Path, prompts: Sequence[list[int]], responses: Sequence[list[int]], vocabulary: int
) -> MergeError:
    """Compares the forms of one student on a few teacher-forced responses, from one load of its base.

    On the device are the float32 weights, in host memory the merged ones. Columns beyond `vocabulary` are padding."""
    student = _with_adapter(load_model(model, "float32"), model, adapter)
    _untie(student)
    layers = _adapted(student)
    on_grid = max(float((w.to(getattr(torch, dtype)) == w).double().mean()) for w in map(_base_weight, layers))
    merged = [effective_weight(layer).to(getattr(torch, dtype)).cpu() for layer in layers]
    in_dtype = own_logits(cast_weights(student, dtype), prompts, responses, vocabulary)
    beside = own_logits(cast_weights(student, "float32"), prompts, responses, vocabulary)
    for layer, weight in zip(layers, merged, strict=True):
        _base_weight(layer).copy_(weight)
    with student.disable_adapter():
        in_weights = own_logits(student, prompts, responses, vocabulary)
    del student, layers
    release_gpu_memory()
    return MergeError(mean_kl(beside, in_weights), mean_kl(beside, in_dtype), on_grid, sum(map(len, responses)))


def require_same_base(adapter: Path, model: str) -> None:
    """Refuses an adapter (a folder in peft's format) that was trained over another model than `model` refers to.

    Its adapter_config.json names the model, a student's manifest beside it has its hash too. Raises UserError."""
    config, name = adapter / "adapter_config.json", relative_name(adapter)
    if not config.is_file():
        raise UserError(f"{name} holds no adapter_config.json: train or fetch the adapter again.")
    base = read_json(config).get("base_model_name_or_path")
    # Adapters from elsewhere name a model plainly, older ones of ours by its reference.
    named, wanted = (base_name(x)[0] if x and x.partition(":")[0] in SCHEMES else x for x in (base, model))
    if named != wanted:
        raise UserError(f"{name} is an adapter of {base}, not of {model}: train it again, or name its own model.")
    manifest = adapter.parent / MANIFEST
    student = read_manifest(manifest)["inputs"].get("student") or {} if manifest.is_file() else {}
    if "model_sha256" in student and student["model_sha256"] != model_hash(model):
        raise UserError(f"{name} was trained over other weights of {model} than lie here: train it again.")


def _with_adapter(base, model: str, adapter: Path, key: str = "default"):
    """A base, or a peft model that has adapters already, with one more by the name `key`."""
    from peft import PeftModel
    from safetensors import SafetensorError

    require_same_base(adapter, model)
    try:
        if not isinstance(base, PeftModel):
            return PeftModel.from_pretrained(base, str(adapter), adapter_name=key)
        base.load_adapter(str(adapter), key)
        return base
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:  # layers that the model does not have
        name, reason = relative_name(adapter), " ".join(str(error).split())[:200]
        raise UserError(f"The adapter {name} does not fit {model} ({reason}): train it again.") from error


def _cast_adapter(student, dtype: str):
    for name, parameter in student.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return student


def _ready(student: nn.Module) -> nn.Module:
    # peft leaves the weights frozen, and torch's bfloat16 products on a CPU take a path for frozen weights that makes
    # generation three times slower (10.3 s instead of 3.1 s for 64 x 20 tokens). No gradient is taken either way.
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return student.eval()


def _adapted(student) -> list:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in student.modules() if isinstance(module, BaseTunerLayer)]


def _untie(student) -> None:
    """Gives adapted layers weights of their own: where head and embedding share one, an adapter changes one of them."""
    owners = [own for module in student.modules() for own in module.parameters(recurse=False)]
    for layer in _adapted(student):
        weight = _base_weight(layer)
        if sum(owned is weight for owned in owners) > 1:
            layer.get_base_layer().weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


def _base_weight(layer) -> Tensor:
    return layer.get_base_layer().weight


@torch.inference_mode()
def own_logits(
    model: nn.Module, prompts: Sequence[list[int]], responses: Sequence[list[int]], vocabulary: int
) -> list[Tensor]:
    """(T, V) float32 of each response as the model's own head gives them, in host memory."""
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        rows.append(model(input_ids=ids).logits[0, len(prompt) - 1 : -1, :vocabulary].float().cpu())
    return rows


def mean_kl(first: list[Tensor], second: list[Tensor]) -> float:
    """Mean KL(first || second) over all rows, in nats."""
    total = 0.0
    for one, other in zip(first, second, strict=True):
        p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)  # (T, V)
        total += float((p.exp() * (p - q)).sum())
    return total / sum(map(len, first))
