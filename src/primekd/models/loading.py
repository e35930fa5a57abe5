"""Loading a causal language model for transformers, plain or in 4 bits.

The 4 bits of QLoRA students are bitsandbytes NF4 with double quantisation (arXiv 2305.14314)."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from primekd.foundation.errors import UserError
from primekd.models.folders import model_folder, quantisation

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

# It recommends downloaded kernels wherever it is imported, also by peft for students that are not quantised.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def load_model(text: str, dtype: str, quantization: str | None = None) -> "PreTrainedModel":
    """A causal language model in evaluation mode on the best device here. Computes in `dtype`; quantization nf4 keeps
    linear layers in 4 bits. UserError if it, or bitsandbytes, is not there."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    # peft still asks by the old name; the warning would print this machine's paths into every executed notebook.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    if (method := quantisation(folder := model_folder(text))) in ("exl2", "exl3"):
        raise UserError(
            f"{text} is quantised as {method.upper()}, which transformers cannot read: set teacher.engine to "
            "exllamav2, or name the unquantised model (a student is always trained from that)."
        )
    device = best_device()
    options = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    if quantization == "nf4":
        if _is_sharded():
            raise UserError("4-bit students are not sharded: launch them with configs/accelerate/multi-gpu.yaml.")
        options |= {"quantization_config": _nf4_config(dtype), "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
    except (SafetensorError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The model {text} cannot be read ({reason}): fetch or make it again.") from error
    if not quantization:
        return model.to(device).eval()
    for module in model.modules():
        # bitsandbytes would repack weights in a CPU's first pass without gradients. Repacked weights have rounded
        # scales and give no gradient, so that training would stop at the first validation.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def _nf4_config(dtype: str) -> "BitsAndBytesConfig":
    """Linear layers in NF4, their scales quantised again, products in `dtype`; embeddings, norms and head stay in it.
    No further preparation is needed: norms are computed in float32 by the architectures themselves, peft freezes the
    base, and without gradient checkpointing inputs need no gradient."""
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantization: nf4 needs bitsandbytes: `pip install -e '.[bitsandbytes]'`, or drop it.")
    how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=getattr(torch, dtype), **how)


def best_device() -> str:
    import torch

    # What FSDP is going to shard may be too large for one card; it moves the shards itself.
    return "cuda" if torch.cuda.is_available() and not _is_sharded() else "cpu"


def _is_sharded() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def refuse_too_long(model, tokens: Mapping[str, int], what: str, fix: str) -> None:
    """Raises UserError if an item's tokens, of which the last one is not read, do not fit into a model's context."""
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for name, count in tokens.items():
        if most and count - 1 > most:
            raise UserError(f"{name}: {what} {count} tokens, more than the model's context of {most} holds: {fix}.")
