"""Which attention a student is trained with."""

from collections.abc import Sequence

import torch
from torch import nn

from primekd.training.examples import Example

PLAIN_ATTENTION_TOKENS = 256


def choose_attention(model: nn.Module, examples: Sequence[Example]) -> None:
    """Plain products instead of fused attention where those are faster: bfloat16 on a CPU, short sequences.

    torch's fused attention takes twice as long there, forth and back. What plain attention keeps for the backward pass
    grows with the square of the length.
    """
    longest = max((len(example.sequence.input_ids) for example in examples), default=0)
    if model.device.type == "cpu" and model.dtype == torch.bfloat16 and longest <= PLAIN_ATTENTION_TOKENS:
        model.set_attn_implementation("eager")
