"""The objective from hidden states on, in chunks: no tensor of all tokens by the vocabulary exists.

    L = alpha * CE + (1 - alpha) * T^2 * D(teacher_T, student_T)

Response rows are taken some at a time. Of each chunk the loss and its gradient for the hidden states are computed in
one pass, so that nothing is kept for a backward pass but a tensor of the hidden states' own shape; and one of the
head's, where the head is trained: under LoRA it is frozen, and no gradient is computed for it. What is left are the
head products alone (student's logits, gradients, and the teacher's logits where hidden states were stored) and some
passes over a chunk.

Below, z are the student's logits divided by T, q their softmax, p the teacher's; a slope is a derivative for z. For
the forward KL it is q - p (Hinton et al. 2015, arXiv 1503.02531, section 2); for the reverse KL q * (log q/p - D); for
the JSD (GKD, arXiv 2306.13649, equation 1) (1 - beta) * q * (log q/m - KL(q || m)). Where an architecture scales or
caps its logits, slopes are multiplied by that function's own.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from primekd.config import LossConfig
from primekd.losses.plain import log_mixture
from primekd.losses.products import gradient_of, logits_of
from primekd.models.logits import PLAIN, LogitTransform
from primekd.signals.rows import DenseRows, HiddenRows, SampledRows, SignalRows, TopKRows

TILE = 128
CHUNK_ELEMENTS = {"cpu": 3 * 2**22, "cuda": 2**26}  # of the logits at a time, in each of up to six float32 buffers


def chunked_loss(
    hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, teacher: SignalRows | None, loss: LossConfig,
    tokens: Tensor | float, transform: LogitTransform = PLAIN,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The whole objective over the response rows of one micro-batch.

    In float32 it is the plain float64 loss to within 1e-5 of its size (1e-6 nats where it is near 0), and so is its
    gradient. With bfloat16 states and head the logits are still exact in float32; the gradient is rounded to bfloat16,
    as the states' own is. A top-k row's student tail below 1e-38 counts as 1e-38. Nothing flows to the teacher.

    Args:
        hidden: (N, D), row t predicting targets[t].
        head, bias: the output head, (V, D) and (V,) or None. They get a gradient where they ask for one.
        targets: (N,) token ids.
        teacher: N signal rows, or None for plain fine-tuning (alpha is then taken as 1).
        tokens: response tokens in the global batch, over which the mean is taken.
        transform: what the student's architecture does behind its head. The teacher's rows have their own.

    Returns:
        The scalar loss, and its detached parts {"ce", "kd"} (kd with its factor T^2), both means over `tokens`.

    Raises:
        ValueError: sparse rows are asked for a loss that they cannot serve.
    """
    sparse = isinstance(teacher, TopKRows | SampledRows)
    if sparse and (loss.divergence != "forward_kl" or loss.temperature != teacher.temperature):
        raise ValueError("sparse rows serve the forward KL at their own temperature only")
    value, ce, kd = _ChunkedLoss.apply(hidden, head, bias, targets, teacher, loss, tokens, transform)
    return value, {"ce": ce, "kd": kd}


@torch.no_grad()
def row_losses(
    hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, teacher: SignalRows | None, loss: LossConfig,
    transform: LogitTransform = PLAIN, top: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `chunked_loss` sums up, row by row and without gradients, and the student's most probable tokens.

    Args:
        hidden, head, bias, targets, teacher, transform: as there; any divergence.
        top: so many tokens of each row are looked up; with the forward KL alone, as others overwrite the logits.

    Returns:
        Cross-entropy and divergence of each row in nats, (N,) float32 both; the divergence without the factor T^2, and
        0 without a teacher. Ids (N, top) and probabilities (N, top) at temperature 1.
    """
    ce, kd = torch.empty(2, len(hidden), device=hidden.device).unbind()
    ids, probs = torch.zeros(len(hidden), top, dtype=torch.int64, device=ce.device), ce.new_empty(len(hidden), top)
    for rows, of_ce, of_kd, buffers in _in_chunks(hidden, head, bias, targets, teacher, loss, transform):
        ce[rows], kd[rows] = of_ce, of_kd
        if top:
            z = buffers["z"] if loss.temperature == 1 or teacher is None else buffers["z"].mul_(loss.temperature)
            best, normaliser = z.topk(top, dim=-1), of_ce[:, None] + z.gather(1, targets[rows, None])
            ids[rows], probs[rows] = best.indices, (best.values - normaliser).exp()
    return ce, kd, ids, probs


class _ChunkedLoss(torch.autograd.Function):
    """Keeps the gradients from the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(ctx, hidden, head, bias, targets, teacher, loss, tokens, transform):
        # The head's are summed over chunks, so in float32; a row of the hidden states' belongs to one chunk.
        kinds = zip((hidden, head, bias), ctx.needs_input_grad, (hidden.dtype, *[torch.float32] * 2), strict=False)
        gradients = [torch.zeros_like(t, dtype=dtype) if needed else None for t, needed, dtype in kinds]
        sums = torch.zeros(2, dtype=torch.float64, device=hidden.device)  # of the cross-entropy and the divergence
        for rows, ce, kd, buffers in _in_chunks(hidden, head, bias, targets, teacher, loss, transform):
            sums += torch.stack([ce.sum(dtype=torch.float64), kd.sum(dtype=torch.float64)])
            if any(ctx.needs_input_grad):
                slopes = buffers["slopes"].div_(tokens if transform.scale == 1 else tokens / transform.scale)
                if transform.soft_cap is not None:
                    slopes.mul_(buffers["bend"])
                _add_gradients(gradients, rows, slopes, hidden, head, buffers)
        ctx.save_for_backward(*gradients)
        alpha = 1.0 if teacher is None else loss.alpha
        ce, kd = (sums * torch.tensor([1.0, loss.temperature**2], device=sums.device) / tokens).float()
        value = alpha * ce + (1 - alpha) * kd
        ctx.mark_non_differentiable(ce, kd)
        return value, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx, by_loss, *of_parts):
        return *(None if g is None else g * by_loss.to(g.dtype) for g in ctx.saved_tensors), *[None] * 5


def _add_gradients(
    gradients: list[Tensor | None], rows: slice, slopes: Tensor, hidden: Tensor, head: Tensor, buffers: "_Buffers"
) -> None:
    """Adds a chunk's part, of its dL/dlogits (C, V), to the gradients of hidden (N, D), head (V, D) and bias (V,)."""
    of_hidden, of_head, of_bias = gradients
    rounded = buffers.get("rounded", head.dtype) if head.dtype == hidden.dtype != torch.float32 else None
    if of_hidden is not None:
        gradient_of(slopes, head, of_hidden[rows], rounded)
    if of_head is not None:
        if rounded is None:
            of_head.addmm_(slopes.T, hidden[rows].float())
        else:
            of_head += rounded.copy_(slopes).T @ hidden[rows]
    if of_bias is not None:
        of_bias += slopes.sum(0)


def chunk_rows(vocabulary: int, device: str) -> int:
    """Rows of logits that are taken at a time; many of them are a multiple of a GPU's tile of a product, 128."""
    rows = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cuda"]) // vocabulary
    return max(1, rows - rows % TILE if rows > TILE else rows)


class _Buffers:
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


def _in_chunks(
    hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, teacher: SignalRows | None, loss: LossConfig,
    transform: LogitTransform,
) -> Iterator[tuple[slice, Tensor, Tensor, _Buffers]]:  # fmt: skip
    """Some rows after the others: which ones, CE (C,), D (C,), and buffers, (C, V): "slopes" is dL/dlogits, and under a
    soft cap "bend" what it has still to be multiplied by."""
    size = max(1, min(len(hidden), chunk_rows(len(head), hidden.device.type)))
    buffers = _Buffers(size, len(head), hidden)
    for start in range(0, len(hidden), size):
        rows = slice(start, min(start + size, len(hidden)))
        part = None if teacher is None else teacher.part(rows)
        buffers.rows = rows.stop - rows.start
        z = transform.apply_(logits_of(hidden[rows], head, bias, out=buffers["z"]))
        if transform.soft_cap is not None:
            transform.bend(z, out=buffers["bend"])
        yield rows, *_chunk(buffers, z, targets[rows, None], part, loss), buffers


def _chunk(
    buffers: _Buffers, z: Tensor, targets: Tensor, teacher: SignalRows | None, loss: LossConfig
) -> tuple[Tensor, Tensor]:
    """Student's logits (C, V), which are overwritten, and targets (C, 1) -> CE (C,) and D (C,); dL/dlogits is left in
    the buffer of slopes."""
    slopes = torch.softmax(z, -1, out=buffers["slopes"])
    ce = log_normaliser(z, slopes) - z.gather(1, targets)[:, 0]
    if teacher is None:
        slopes.scatter_add_(1, targets, -torch.ones_like(ce)[:, None])
        return ce, torch.zeros_like(ce)
    dense = isinstance(teacher, DenseRows | HiddenRows)
    if dense and loss.temperature == 1 and loss.divergence == "forward_kl":  # one softmax serves both terms
        kd, p = _forward_kl_and_p(buffers, z, slopes, _teacher_logits(teacher, buffers))
        slopes.sub_(p.mul_(1 - loss.alpha)).scatter_add_(1, targets, torch.full_like(ce, -loss.alpha)[:, None])
        return ce, kd
    if loss.temperature == 1:
        q = buffers["q"].copy_(slopes)
    else:
        q = torch.softmax(z.div_(loss.temperature), -1, out=buffers["q"])
    if isinstance(teacher, TopKRows):
        kd = _topk(z, q, teacher)
    elif isinstance(teacher, SampledRows):
        kd = _sampled(z, q, teacher)
    else:
        t = _teacher_logits(teacher, buffers).div_(loss.temperature)
        kd = {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "jsd": _jsd}[loss.divergence](
            buffers, z, q, t, loss
        )
    # T^2 of the loss and 1/T of z: dL/dlogits = alpha * (softmax - onehot) + (1 - alpha) * T * slope.
    slopes.mul_(loss.alpha).add_(q, alpha=(1 - loss.alpha) * loss.temperature)
    slopes.scatter_add_(1, targets, torch.full_like(ce, -loss.alpha)[:, None])
    return ce, kd


def log_normaliser(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log sum exp of each row, (C, V) -> (C,), from its softmax: the largest one's logit minus its log-probability."""
    return logits.amax(-1) - probabilities.amax(-1).log()


def _teacher_logits(teacher: SignalRows, buffers: _Buffers) -> Tensor:
    out = buffers["t"]
    if isinstance(teacher, HiddenRows):
        return teacher.transform.apply_(logits_of(teacher.hidden, teacher.head, out=out, rounded=buffers.rounded))
    return out.copy_(teacher.logits)


# Each of these returns D a row, (C,), and turns q, which it is given as the softmax of z, into the slope of D.


def _forward_kl(buffers: _Buffers, z: Tensor, q: Tensor, t: Tensor, loss: LossConfig) -> Tensor:
    kd, p = _forward_kl_and_p(buffers, z, q, t)
    q.sub_(p)
    return kd


def _forward_kl_and_p(buffers: _Buffers, z: Tensor, q: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """D and the teacher's probabilities, (C,) and (C, V); q is left as it is."""
    p = torch.softmax(t, -1, out=buffers["p"])
    constant = log_normaliser(z, q) - log_normaliser(t, p)
    return t.sub_(z).mul_(p).sum(-1) + constant, p


def _reverse_kl(buffers: _Buffers, z: Tensor, q: Tensor, t: Tensor, loss: LossConfig) -> Tensor:
    constant = log_normaliser(t, torch.softmax(t, -1, out=buffers["p"])) - log_normaliser(z, q)
    z.sub_(t)
    mean = torch.mul(q, z, out=buffers["p"]).sum(-1)
    q.mul_(z.sub_(mean[:, None]))
    return mean + constant


def _jsd(buffers: _Buffers, z: Tensor, q: Tensor, t: Tensor, loss: LossConfig) -> Tensor:
    p, beta = torch.softmax(t, -1, out=buffers["p"]), loss.beta
    log_p = t.sub_(log_normaliser(t, p)[:, None])
    log_q = z.sub_(log_normaliser(z, q)[:, None])
    log_m = log_mixture(log_p, log_q, beta)
    to_p = p.mul_(log_p.sub_(log_m)).sum(-1)
    gap = log_q.sub_(log_m)
    to_q = torch.mul(q, gap, out=p).sum(-1)
    q.mul_(gap.sub_(to_q[:, None])).mul_(1 - beta)
    return beta * to_p + (1 - beta) * to_q


def _topk(z: Tensor, q: Tensor, teacher: TopKRows) -> Tensor:
    """As `plain.forward_kl_topk`: the kept tokens one by one, all others as one."""
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


def _sampled(z: Tensor, q: Tensor, teacher: SampledRows) -> Tensor:
    """As `plain.forward_kl_sampled`: the kept tokens with their weights."""
    weights = teacher.weights.float()
    whole = weights.sum(-1)
    log_q = z.gather(1, teacher.ids) - log_normaliser(z, q)[:, None]  # (C, K)
    q.mul_(whole[:, None]).scatter_add_(1, teacher.ids, -weights)
    return -(weights * log_q).sum(-1) - teacher.entropy.float()
