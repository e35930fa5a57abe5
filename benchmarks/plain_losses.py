"""The distillation objectives as plain functions of whole logits of N rows, in float32: what the chunked loss is held
against, by tests and in benchmarks.

    L = alpha * CE + (1 - alpha) * T^2 * D(teacher_T, student_T)

Sums over rows are divided by the number of response tokens in the global batch, so that padding, packing, micro-batches
and gradient accumulation change nothing. T^2 keeps the gradient's scale (Hinton et al. 2015, arXiv 1503.02531, 2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from primekd.config import LossConfig
from primekd.losses.slopes import log_mixture
from primekd.signals.rows import SampledRows, SignalRows, TopKRows


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || q) a row in nats, p and q the teacher's and student's softmax at `temperature`. (N, V) x2 -> (N,)."""
    log_p = (teacher_logits.float() / temperature).log_softmax(-1)
    log_q = (student_logits.float() / temperature).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q || p) a row in nats (MiniLLM, arXiv 2306.08543, at token level). (N, V) x2 -> (N,)."""
    return forward_kl(student_logits, teacher_logits, temperature)


def jsd(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence a row in nats (GKD, arXiv 2306.13649, equation 1), (N, V) x2 -> (N,):
    beta * KL(p || m) + (1 - beta) * KL(q || m) with m = beta * p + (1 - beta) * q."""
    log_p = (teacher_logits.float() / temperature).log_softmax(-1)
    log_q = (student_logits.float() / temperature).log_softmax(-1)
    log_m = log_mixture(log_p, log_q, beta)
    to_p = (log_p.exp() * (log_p - log_m)).sum(-1)
    to_q = (log_q.exp() * (log_q - log_m)).sum(-1)
    return beta * to_p + (1 - beta) * to_q


def skewed_forward_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float, beta: float) -> Tensor:
    """KL(p || beta * p + (1 - beta) * q) a row, at most -log(beta) nats (DistiLLM, arXiv 2402.03898, 3.1)."""
    log_p = (teacher_logits.float() / temperature).log_softmax(-1)
    log_q = (student_logits.float() / temperature).log_softmax(-1)
    return (log_p.exp() * (log_p - log_mixture(log_p, log_q, beta))).sum(-1)


def skewed_reverse_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float, beta: float) -> Tensor:
    """KL(q || beta * q + (1 - beta) * p) a row in nats: as above with the roles exchanged. (N, V) x2 -> (N,)."""
    return skewed_forward_kl(student_logits, teacher_logits, temperature, beta)


def forward_kl_topk(teacher: TopKRows, student_logits: Tensor) -> Tensor:
    """KL(p || q) a row over the K kept tokens and one bucket for all others, none renormalised. TopKRows of N, (N, V)
    -> (N,). By the log-sum inequality a lower bound of the full KL, tight as the bucket's mass goes to zero."""
    log_q = (student_logits.float() / teacher.temperature).log_softmax(-1)
    kept = log_q.gather(-1, teacher.ids)  # (N, K)
    log_p = teacher.log_probs.float()
    divergence = (log_p.exp() * (log_p - kept)).sum(-1)
    tail_p = teacher.tail_mass.float()
    log_tail_q = log_q.scatter(-1, teacher.ids, -torch.inf).logsumexp(-1)  # over the tail itself, no 1 - sum
    log_tail_p = tail_p.clamp(min=torch.finfo(torch.float32).tiny).log()
    # An empty tail (k = V, or mass below float32) adds nothing; -inf * 0 would be nan, in the gradient too. Nor does a
    # tail that is everything: such a row says nothing of the teacher, and one bucket has no divergence.
    empty = (tail_p == 0) | (tail_p == 1) | log_tail_q.isinf()
    safe_tail_q = torch.where(empty, log_tail_p, log_tail_q)
    return divergence + tail_p * (log_tail_p - safe_tail_q)


def forward_kl_sampled(teacher: SampledRows, student_logits: Tensor) -> Tensor:
    """KL(p || q) a row with the sample's weights for p, SampledRows of N, (N, V) -> (N,): linear in them, so its
    expectation over the draws is the full KL and its gradient's the full gradient. A single row can be below 0."""
    scaled = student_logits.float() / teacher.temperature
    log_q = scaled.gather(-1, teacher.ids) - scaled.logsumexp(-1, keepdim=True)  # (N, K)
    return -(teacher.weights.float() * log_q).sum(-1) - teacher.entropy.float()


def divergence(teacher: SignalRows, student_logits: Tensor, loss: LossConfig) -> Tensor:
    """The divergence that a profile names, a row in nats, without the factor T^2. N rows, (N, V) -> (N,)."""
    if isinstance(teacher, TopKRows | SampledRows):
        if loss.divergence != "forward_kl" or loss.temperature != teacher.temperature:
            raise ValueError("topk and sampled rows serve the forward KL at their own temperature only")
        own = forward_kl_topk if isinstance(teacher, TopKRows) else forward_kl_sampled
        return own(teacher, student_logits)
    pure = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}
    mixed = {"jsd": jsd, "skewed_forward_kl": skewed_forward_kl, "skewed_reverse_kl": skewed_reverse_kl}
    beta = () if loss.divergence in pure else (loss.beta,)
    return (pure | mixed)[loss.divergence](teacher.to_logits(), student_logits, loss.temperature, *beta)


def distillation_loss(
    student_logits: Tensor, targets: Tensor, teacher: SignalRows | None, loss: LossConfig, tokens: Tensor | float,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The whole objective, as `chunked_loss`, from student_logits (N, V), row t predicting targets[t]."""
    ce = F.cross_entropy(student_logits.float(), targets, reduction="none")
    kd = torch.zeros_like(ce) if teacher is None else divergence(teacher, student_logits, loss) * loss.temperature**2
    if weights is None:
        alpha = 1.0 if teacher is None else loss.alpha
        total = alpha * ce.sum() + (1 - alpha) * loss.divergence_scale * kd.sum()
    else:
        total = (weights[:, 0] * ce).sum() + (weights[:, 1] * kd).sum()
    return total / tokens, {"ce": ce.detach().sum() / tokens, "kd": kd.detach().sum() / tokens}
