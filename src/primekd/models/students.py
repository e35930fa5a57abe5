"""Students before and after training: what is trained, and the folder that it is kept in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from primekd.config import Architecture, LoraSettings, StudentConfig
from primekd.foundation.errors import UserError
from primekd.models.built import written
from primekd.models.folders import model_folder
from primekd.models.loading import best_device, load_model
from primekd.models.reference import base_name
from primekd.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def new_student(student: StudentConfig, seed: int, start: Path | None = None):
    """A peft model with a fresh adapter, or fresh weights, drawn by `seed`; or the weights of the folder `start`."""
    if start is not None:
        return load_model(f"path:{start}", "float32")
    if student.from_scratch:
        return scratch_model(student.from_scratch, load_tokenizer(student), seed, student.layers_of)
    return lora_model(student.model, student.dtype, student.lora, seed, student.quantization)


def save_student(model, folder: Path, student: StudentConfig, weights: "dict[str, Tensor] | None" = None) -> list[Path]:
    """Writes adapter/ or model/ whole or not at all; returns its files. `weights`: where `model` holds only shards."""
    if not student.from_scratch:
        return save_adapter(model, folder, student.model, weights)

    def write(target: Path) -> None:  # with its tokenizer, so that `path:` reads it
        model.save_pretrained(target, state_dict=weights)
        load_tokenizer(student).save_pretrained(target)

    return written(folder / "model", write)


def scratch_model(
    architecture: Architecture, tokenizer: "PreTrainedTokenizerBase", seed: int, layers_of: str | None = None
) -> "PreTrainedModel":
    """A model with random weights, or with those of `layers_of`, in float32, all of which are trained, on the best
    device here. Raises UserError if transformers does not know the architecture, it does not know a setting, or sizes
    do not fit."""
    from transformers import AutoModelForCausalLM, GenerationConfig, set_seed

    with _explained(architecture):
        config = scratch_config(architecture, tokenizer, layers_of)
        set_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    if layers_of:
        take_layers(model, layers_of)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=sorted({eos, *tokenizer.stop_ids}))
    return model.float().to(best_device())


def take_layers(model: "PreTrainedModel", reference: str) -> None:
    """Gives a model from scratch the weights of one that is as large but for its layers (`scratch_config`): embeddings,
    head and last norm, and as many of its layers, evenly spread from the first on (Distily's half of SmolLM-135M has
    every second). What a vocabulary is padded with is cut off embeddings and head."""
    import torch

    source = load_model(reference, "float32")
    taken, other = spread(source.config.num_hidden_layers, model.config.num_hidden_layers), source.state_dict()
    for name, own in model.state_dict().items():
        before, found, behind = name.partition(".layers.")
        number, _, rest = behind.partition(".")
        given = other[f"{before}.layers.{taken[int(number)]}.{rest}" if found else name]
        with torch.no_grad():
            own.copy_(given[: len(own)] if len(given) == source.config.vocab_size else given)


def spread(layers: int, own: int) -> list[int]:
    """Which of so many layers a student with `own` of them takes."""
    return [number * layers // own for number in range(own)]


def scratch_config(
    architecture: Architecture, tokenizer: "PreTrainedTokenizerBase", layers_of: str | None = None
) -> "PretrainedConfig":
    """The configuration of a student from scratch; what is not said is that of the model whose layers it begins with,
    such as the base of its rotary positions. Raises UserError as `scratch_model`, or if that model differs in more than
    layers and context."""
    from transformers import AutoConfig

    source = AutoConfig.from_pretrained(model_folder(layers_of)).to_dict() if layers_of else {}
    given = architecture.model_dump(exclude_none=True)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with _explained(architecture):
        for key in given.keys() & source.keys() - {"num_hidden_layers", "max_position_embeddings", "initializer_range"}:
            if given[key] != source[key]:
                raise ValueError(f"student.layers_of has {key} {source[key]}, and it {given[key]}")
        if source and source["vocab_size"] < len(tokenizer):
            raise ValueError(f"student.layers_of knows {source['vocab_size']} tokens of {len(tokenizer)}")
        layers, fewer = source.get("num_hidden_layers", 0), given.get("num_hidden_layers", 0)
        if source and fewer > layers:
            raise ValueError(f"student.layers_of has {layers} layers, and it {fewer}")
        for key, value in source.items():  # what is said of each layer
            if isinstance(value, list) and len(value) == layers:
                source[key] = [value[place] for place in spread(layers, fewer)]
        kind = given.pop("model_type")
        own = {key: value for key, value in source.items() if key not in ("model_type", "dtype")} | given | ids
        config = AutoConfig.for_model(kind, **own | {"vocab_size": len(tokenizer)})
        known = {*type(config)().to_dict(), *config.attribute_map}
        if unknown := sorted(given.keys() - known):
            raise ValueError(f"it has no {unknown[0]}")
    return config


@contextlib.contextmanager
def _explained(architecture: Architecture) -> Iterator[None]:
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason, kind = " ".join(str(error).split()), architecture.model_type
        raise UserError(f"student.from_scratch cannot be made as a {kind} ({reason}): mend the profile.") from error


def lora_model(model: str, dtype: str, lora: LoraSettings, seed: int, quantization: str | None = None):
    """A peft model with a fresh adapter in float32 over a frozen base in `dtype`, or in 4 bits computing in it."""
    from transformers import set_seed

    set_seed(seed)
    return with_adapter(load_model(model, dtype, quantization), lora, dtype)


def with_adapter(base, lora: LoraSettings, dtype: str):
    """A loaded model with a fresh adapter in float32; `dtype` is what the base computes in."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    student = get_peft_model(base, config)
    if dtype == "bfloat16":
        for module in student.modules():  # the trainer's autocast does the casting; peft's own would undo it
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False
    return student


def save_adapter(student, folder: Path, model: str, weights: "dict[str, Tensor] | None" = None) -> list[Path]:
    """Writes adapter/ whole or not at all; returns its files. `weights`: where `student` itself holds only shards."""
    for config in student.peft_config.values():
        config.base_model_name_or_path, config.revision = base_name(model)  # not the path of this machine

    def write(target: Path) -> None:
        student.save_pretrained(target, state_dict=weights, save_embedding_layers=False)
        (target / "README.md").unlink(missing_ok=True)  # peft's empty model card

    return written(folder / "adapter", write)
