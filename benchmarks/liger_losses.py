"""Liger-Kernel's distillation losses: the chunked one in plain PyTorch, and the fused one in Triton.

Liger-Kernel is installed for a comparison alone: it is imported where its functions are called.
"""

from benchmarks.objectives import Case, backward

_BETA = {"forward_kl": 0.0, "reverse_kl": 1.0}  # its ends are swapped against GKD's formula, as TRL's are


def run_chunked(case: Case) -> float:
    """LigerFusedLinearJSDLoss, not compiled: what it compiles it compiles anew for every shape."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = case.loss
    soft = (1 - loss.alpha) * loss.temperature**2  # it leaves T^2 out
    liger = LigerFusedLinearJSDLoss(
        weight_hard_loss=loss.alpha, weight_soft_loss=soft, beta=_BETA.get(loss.divergence, loss.beta),
        temperature=loss.temperature, compiled=False,
    )  # fmt: skip
    return backward(case, liger(case.hidden, case.head, case.rows.hidden, case.rows.head, case.targets))


def run_fused(case: Case) -> float:
    """LigerFusedLinearJSD and LigerFusedLinearCrossEntropyLoss: Triton kernels, each with head products of its own."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    loss = case.loss
    jsd = LigerFusedLinearJSD(jsd_beta=_BETA.get(loss.divergence, loss.beta), temperature=loss.temperature)
    soft = jsd(case.hidden, case.head, case.rows.hidden, case.rows.head, None)
    hard = LigerFusedLinearCrossEntropyLoss()(case.head, case.hidden, case.targets)
    return backward(case, loss.alpha * hard + (1 - loss.alpha) * loss.temperature**2 * soft)
