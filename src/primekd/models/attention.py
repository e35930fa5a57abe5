"""Which attention a model is run with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

PLAIN_ATTENTION_TOKENS = 256


def choose_attention(model: nn.Module, tokens: int) -> None:
    """Plain products instead of fused attention where those are faster: bfloat16 on a CPU, short sequences.

    torch's fused attention takes twice as long there in training, and up to a fifth longer in reading. What plain
    attention keeps grows with the square of the length.

    Args:
        tokens: that the longest sequence has at most.
    """
    short = model.device.type == "cpu" and model.dtype == torch.bfloat16 and tokens <= PLAIN_ATTENTION_TOKENS
    if short and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


@contextmanager
def chosen_attention(model: nn.Module, tokens: int) -> Iterator[None]:
    """`choose_attention` for what runs inside."""
    before = model.config._attn_implementation
    choose_attention(model, tokens)
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
