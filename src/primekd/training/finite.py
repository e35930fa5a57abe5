"""What stops a training that diverged, before anything of it is kept."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from primekd.foundation.errors import UserError

WATCHED = ("loss", "ce", "kd", "grad_norm", "eval_loss")


def require_finite_step(logs: Mapping[str, float], step: int) -> None:
    """Raises UserError if a loss or the gradient norm of a step is no finite number."""
    found = {name: logs[name] for name in WATCHED if name in logs and not math.isfinite(logs[name])}
    if found:
        _refuse(f"at step {step} ({', '.join(f'{name} {value}' for name, value in found.items())})")


def require_finite_weights(weights: Mapping[str, Tensor], step: int) -> None:
    """Raises UserError if a trained weight is no finite number."""
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        _refuse(f"by step {step} ({len(broken)} of {len(weights)} weight matrices are not finite, first {broken[0]})")


def _refuse(what: str) -> None:
    raise UserError(
        f"The training diverged {what}: lower train.learning_rate, clip gradients (train.max_grad_norm) or raise "
        "loss.temperature. No student is written; the last good checkpoint stays."
    )
