"""The losses of a model's hidden states, as training computes them; apart from tokens.py, which only reads logs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from primekd.assessment.tokens import TokenFit
from primekd.config import LossConfig
from primekd.losses import row_losses

if TYPE_CHECKING:
    from primekd.signals.rows import SignalRows
    from primekd.teachers.transformers_engine import TransformersEngine


def losses_of(
    engine: "TransformersEngine", states: Sequence[Tensor], responses: Sequence[list[int]],
    teacher: "SignalRows | None", top: int = 0, divergence: str = "forward_kl",
) -> list[tuple[float, TokenFit]]:  # fmt: skip
    """Hidden states (T, D) of some responses -> of each the cross-entropy, summed over its tokens in nats, and its
    tokens' divergence from the teacher (0 without one) and `top` most probable tokens."""
    if not responses:
        return []
    head, lengths = engine.head(), [len(response) for response in responses]
    targets = torch.tensor([token for response in responses for token in response], device=head.device)
    teacher = None if teacher is None else teacher.to(head.device)
    # At temperature 1, unless a top-k store was captured for another one.
    loss = LossConfig(divergence=divergence, temperature=getattr(teacher, "temperature", 1.0))
    hidden = torch.cat(list(states)).to(head.device)
    by_row = row_losses(hidden, head, engine.bias(), targets, teacher, loss, engine.transform, top)
    ce, *fits = (values.cpu().split(lengths) for values in by_row)
    return [(float(own.double().sum()), TokenFit(*fit)) for own, *fit in zip(ce, *fits, strict=True)]
