"""TRL's distillation losses. TRL is installed for the benchmark alone: only what needs this module loads it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from trl.experimental.gkd import GKDTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.distillation_trainer import _chunked_divergence_loss
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from benchmarks.objectives import Case, backward
from primekd.config import LossConfig


def run_dense(case: Case) -> float:
    """GKDTrainer's loss on whole logits, with the cross-entropy that it leaves out."""
    student = F.linear(case.hidden, case.head)
    with torch.no_grad():
        teacher = F.linear(case.rows.hidden, case.rows.head)
    divergence = GKDTrainer.generalized_jsd_loss(
        student, teacher, beta=_beta(case.loss), temperature=case.loss.temperature
    )
    return _mixed(case, F.cross_entropy(student.float(), case.targets), divergence)


def run_chunked(case: Case) -> float:
    """DistillationTrainer's chunked divergence and SFTTrainer's chunked cross-entropy."""
    log_probs = ChunkedLogProbFunction.apply(
        case.hidden, case.head, None, case.targets, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ()
    )[0]
    divergence, _, _ = _chunked_divergence_loss(
        case.hidden[None],
        case.rows.hidden[None],
        case.head,
        case.rows.head,
        torch.ones_like(case.targets)[None],
        _beta(case.loss),
        temperature=case.loss.temperature,
    )
    return _mixed(case, -log_probs.mean(), divergence)


def _mixed(case: Case, cross_entropy: Tensor, divergence: Tensor) -> float:
    kd = case.loss.temperature**2 * divergence
    return backward(case, case.loss.alpha * cross_entropy + (1 - case.loss.alpha) * kd)


def _beta(loss: LossConfig) -> float:
    # TRL's ends are swapped against the paper's formula: 0 is the forward KL, 1 the reverse one.
    return {"forward_kl": 0.0, "reverse_kl": 1.0}.get(loss.divergence, loss.beta)
