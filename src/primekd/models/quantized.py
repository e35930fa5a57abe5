"""4-bit bases for QLoRA students: bitsandbytes NF4 with double quantisation (arXiv 2305.14314)."""

import importlib.util
import logging
from typing import TYPE_CHECKING

from primekd.foundation.errors import UserError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

# It recommends downloaded kernels wherever it is imported, also by peft for students that are not quantised.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def nf4_config(dtype: str) -> "BitsAndBytesConfig":
    """Linear layers in NF4, their scales quantised again, products in `dtype`; embeddings, norms and head stay in it.

    No further preparation is needed: norms are computed in float32 by the architectures themselves, peft freezes the
    base, and without gradient checkpointing inputs need no gradient. Raises UserError without bitsandbytes.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "student.quantization nf4 needs bitsandbytes: `pip install -e '.[bitsandbytes]'`, or leave it out."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def keep_layout(model: "PreTrainedModel") -> "PreTrainedModel":
    """Keeps bitsandbytes from repacking weights in a CPU's first pass without gradients.

    Repacked weights have rounded scales and give no gradient, so that training would stop at the first validation.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
