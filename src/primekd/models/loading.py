"""Loading a causal language model for transformers."""

import os
import warnings
from typing import TYPE_CHECKING

from primekd.foundation.errors import UserError
from primekd.models.folders import model_folder, require_transformers_format
from primekd.models.quantized import keep_layout, nf4_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(text: str, dtype: str, quantization: str | None = None) -> "PreTrainedModel":
    """A causal language model in evaluation mode on the best device here.

    Computes in `dtype`, float32 or bfloat16; quantization nf4 keeps the linear layers in 4 bits. Raises UserError if
    the model cannot be read, or bitsandbytes is missing.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    # peft still asks by the old name; the warning would print this machine's paths into every executed notebook.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    require_transformers_format(text)
    device = best_device()
    options = {}
    if quantization == "nf4":
        if _is_sharded():
            raise UserError("4-bit students are not sharded: launch them with configs/accelerate/multi-gpu.yaml.")
        options = {"quantization_config": nf4_config(dtype), "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_folder(text),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    except (SafetensorError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The model {text} cannot be read ({reason}): fetch or make it again.") from error
    return (keep_layout(model) if quantization else model.to(device)).eval()


def best_device() -> str:
    """The device that a model is put on."""
    import torch

    # What FSDP is going to shard may be too large for one card; it moves the shards itself.
    return "cuda" if torch.cuda.is_available() and not _is_sharded() else "cpu"


def _is_sharded() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"
