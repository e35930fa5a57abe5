"""MiniLLM's gradient (arXiv 2306.08543) as weights of the rows of the usual loss.

The reverse KL of whole responses, KL(q(y) || p(y)), has the gradient (section 2.2, policy gradient theorem)

    E_y~q [ sum_t  grad KL(q_t || p_t)  -  R_t+1 * grad log q(y_t) ],    R_t+1 = sum over s > t of log p(y_s) / q(y_s)

Its first term, of the single step, is the divergence of row t; the second, of what comes later, the cross-entropy of
the written token, weighted by R_t+1. So both are rows of `chunked_loss` with weights of their own. Where tokens were
drawn from a mixture with the teacher, both count w_t = q(y_t) / mixture(y_t) (section 2.2, "teacher-mixed sampling").
"""

import torch
from torch import Tensor

from primekd.config import LossConfig
from primekd.losses.chunked import row_losses
from primekd.signals.rows import HiddenRows, SignalRows


def minillm_weights(
    log_q: Tensor, log_p: Tensor, log_drawn: Tensor, lengths: list[int], clip: float, length_normalised: bool = True
) -> Tensor:
    """What the cross-entropy and the reverse KL of each row count, (N, 2) float32.

    Args:
        log_q, log_p, log_drawn: (N,), of each written token under the student, the teacher and what it was drawn from.
        lengths: tokens of each response; N in all.
        clip: a token whose ratio to what it was drawn from has already moved by more than this share in the direction
            that its reward asks for has no second term (PPO's clipped objective).
        length_normalised: R_t+1 is the mean of the later tokens' rewards, not their sum (the paper's R^Norm)."""
    ratio = (log_q - log_drawn).float().exp()
    later = torch.cat([_later(rewards, length_normalised) for rewards in (log_p - log_q).float().split(lengths)])
    spent = ((later > 0) & (ratio > 1 + clip)) | ((later < 0) & (ratio < 1 - clip))
    return torch.stack([torch.where(spent, 0.0, ratio * later), ratio], -1)


def _later(rewards: Tensor, mean: bool) -> Tensor:
    """Rewards (T,) of one response -> of each token the sum, or the mean, of those behind it; 0 for the last."""
    total = rewards.flip(0).cumsum(0).flip(0) - rewards
    behind = torch.arange(len(rewards) - 1, -1, -1, device=rewards.device)
    return total / behind.clamp(min=1) if mean else total


@torch.no_grad()
def log_prob_of(rows: SignalRows, targets: Tensor) -> Tensor:
    """What a teacher's rows of N give to the tokens (N,) that stand there, (N,) float32."""
    if isinstance(rows, HiddenRows):
        return -row_losses(rows.hidden, rows.head, None, targets, None, LossConfig(), rows.transform)[0]
    return rows.to_logits().float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
