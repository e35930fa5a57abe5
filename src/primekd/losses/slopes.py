"""Divergences of a chunk of rows, and their slopes, from buffers that are written over.

Below, z are the student's logits divided by T, q their softmax, p the teacher's; a slope is a derivative for z. For
the forward KL it is q - p (Hinton et al. 2015, arXiv 1503.02531, section 2); for the reverse KL q * (log q/p - D); for
the JSD (GKD, arXiv 2306.13649, equation 1) (1 - beta) * q * (log q/m - KL(q || m)). Of any other divergence it is
q * (g - sum q * g), g its derivative for q: -(1 - beta) * p/m of the skewed forward KL, log q/m - beta * q/m of the
skewed reverse KL (DistiLLM, arXiv 2402.03898). A scale or cap behind the head multiplies them by its own slope."""

import torch
from torch import Tensor

from primekd.config import LossConfig
from primekd.signals.rows import SampledRows, TopKRows


class Buffers:
    """Tensors of one chunk, (rows, V), by name; made once, since new pages cost as much as the arithmetic."""

    def __init__(self, size: int, columns: int, hidden: Tensor):
        self._shape, self._device = (size, columns), hidden.device
        self.rounded = hidden.dtype == torch.bfloat16  # so the teacher's product may be as the student's
        self._all: dict[str, Tensor] = {}
        self.rows = size

    def get(self, name: str, dtype: torch.dtype) -> Tensor:
        if name not in self._all:
            self._all[name] = torch.empty(self._shape, dtype=dtype, device=self._device)
        return self._all[name][: self.rows]

    def __getitem__(self, name: str) -> Tensor:
        return self.get(name, torch.float32)


def log_normaliser(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log sum exp of each row, (C, V) -> (C,), from its softmax: the largest one's logit minus its log-probability."""
    return logits.amax(-1) - probabilities.amax(-1).log()


def log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """log(beta * p + (1 - beta) * q), (N, V) x2 -> (N, V)."""
    # From the larger of the two, so that equal distributions give exactly 0 (logaddexp rounds).
    gap = log_q - log_p
    above, below = torch.where(gap > 0, gap, 0.0), torch.where(gap > 0, 0.0, gap)
    from_q, from_p = (beta * torch.expm1(-above)).log1p(), ((1 - beta) * torch.expm1(below)).log1p()
    return torch.where(gap > 0, log_q + from_q, log_p + from_p)


# Each of these returns D a row, (C,), and turns q, which it is given as the softmax of z, into the slope of D.


def _forward_kl(buffers: Buffers, z: Tensor, q: Tensor, t: Tensor, loss: LossConfig) -> Tensor:
    kd, p = forward_kl_and_p(buffers, z, q, t)
    q.sub_(p)
    return kd


def forward_kl_and_p(buffers: Buffers, z: Tensor, q: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """D and the teacher's probabilities, (C,) and (C, V); q is left as it is."""
    p = torch.softmax(t, -1, out=buffers["p"])
    constant = log_normaliser(z, q) - log_normaliser(t, p)
    return t.sub_(z).mul_(p).sum(-1) + constant, p


def _reverse_kl(buffers: Buffers, z: Tensor, q: Tensor, t: Tensor, loss: LossConfig) -> Tensor:
    constant = log_normaliser(t, torch.softmax(t, -1, out=buffers["p"])) - log_normaliser(z, q)
    z.sub_(t)
    mean = torch.mul(q, z, out=buffers["p"]).sum(-1)
    q.mul_(z.sub_(mean[:, None]))
    return mean + constant


def _logs(buffers: Buffers, z: Tensor, q: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, log p and log q, (C, V) each, the logs in the place of t and z."""
    p = torch.softmax(t, -1, out=buffers["p"])
    return p, t.sub_(log_normaliser(t, p)[:, None]), z.sub_(log_normaliser(z, q)[:, None])


def _jsd(buffers: Buffers, z: Tensor, q: Tensor, t: Tensor, loss: LossConfig) -> Tensor:
    (p, log_p, log_q), beta = _logs(buffers, z, q, t), loss.beta
    log_m = log_mixture(log_p, log_q, beta)
    to_p = p.mul_(log_p.sub_(log_m)).sum(-1)
    gap = log_q.sub_(log_m)
    to_q = torch.mul(q, gap, out=p).sum(-1)
    q.mul_(gap.sub_(to_q[:, None])).mul_(1 - beta)
    return beta * to_p + (1 - beta) * to_q


def _skewed_forward_kl(buffers: Buffers, z: Tensor, q: Tensor, t: Tensor, loss: LossConfig) -> Tensor:
    (p, log_p, log_q), beta = _logs(buffers, z, q, t), loss.beta
    to_m = log_p.sub_(log_mixture(log_p, log_q, beta))  # log p/m
    kd = p.mul_(to_m).sum(-1)
    own = to_m.exp_().mul_(-(1 - beta))
    q.mul_(own.sub_(torch.mul(q, own, out=p).sum(-1)[:, None]))
    return kd


def _skewed_reverse_kl(buffers: Buffers, z: Tensor, q: Tensor, t: Tensor, loss: LossConfig) -> Tensor:
    (p, log_p, log_q), beta = _logs(buffers, z, q, t), loss.beta
    to_m = log_q.sub_(log_mixture(log_q, log_p, beta))  # log q/m
    kd = torch.mul(q, to_m, out=p).sum(-1)
    own = to_m.sub_(torch.exp(to_m, out=p), alpha=beta)
    q.mul_(own.sub_(torch.mul(q, own, out=p).sum(-1)[:, None]))
    return kd


DENSE = {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "jsd": _jsd}
DENSE |= {"skewed_forward_kl": _skewed_forward_kl, "skewed_reverse_kl": _skewed_reverse_kl}


def topk(z: Tensor, q: Tensor, teacher: TopKRows) -> Tensor:
    """KL(p || q) over the K kept tokens and one bucket for all others, none renormalised. By the log-sum inequality a
    lower bound of the full KL, tight as the bucket's mass goes to zero."""
    log_p, tail_p = teacher.log_probs.float(), teacher.tail_mass.float()
    p = log_p.exp()
    kept_q = q.gather(1, teacher.ids)  # (C, K)
    divergence = (p * (log_p - z.gather(1, teacher.ids) + log_normaliser(z, q)[:, None])).sum(-1)
    tail_q = q.scatter_(1, teacher.ids, 0.0).sum(-1)  # over the tail itself, no 1 - sum
    # A tail that is everything says nothing.
    tail_p = torch.where(tail_p == 1, 0.0, tail_p)
    ratio = tail_p / tail_q.clamp(min=torch.finfo(torch.float32).tiny)
    whole = p.sum(-1) + tail_p
    q.mul_((whole - ratio)[:, None])
    # Unfilled places repeat a token with no mass: its q is put back once, and 0 is taken from it.
    q.scatter_(1, teacher.ids, kept_q * whole[:, None]).scatter_add_(1, teacher.ids, -p)
    return divergence + torch.where(tail_p > 0, tail_p * ratio.log(), 0.0)


def sampled(z: Tensor, q: Tensor, teacher: SampledRows) -> Tensor:
    """KL(p || q) with the sample's weights for p: linear in them, so its expectation over the draws is the full KL, and
    its gradient's the full gradient. A single row can be below 0."""
    weights = teacher.weights.float()
    whole = weights.sum(-1)
    log_q = z.gather(1, teacher.ids) - log_normaliser(z, q)[:, None]  # (C, K)
    q.mul_(whole[:, None]).scatter_add_(1, teacher.ids, -weights)
    return -(weights * log_q).sum(-1) - teacher.entropy.float()
