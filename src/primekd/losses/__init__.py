"""The distillation objectives: `plain` from whole logits, `chunked` from hidden states in chunks."""

from primekd.losses.chunked import chunked_loss, row_losses
from primekd.losses.plain import (
    cross_entropy_sum,
    distillation_loss,
    divergence,
    forward_kl,
    forward_kl_sampled,
    forward_kl_topk,
    jsd,
    reverse_kl,
)

__all__ = [
    "cross_entropy_sum",
    "distillation_loss",
    "divergence",
    "forward_kl",
    "forward_kl_sampled",
    "forward_kl_topk",
    "chunked_loss",
    "jsd",
    "reverse_kl",
    "row_losses",
]
