"""The objective from hidden states on, in chunks: no tensor of all tokens by the vocabulary exists.

    L = alpha * CE + (1 - alpha) * scale * T^2 * D(teacher_T, student_T)

Of each chunk of response rows the loss and its gradient for the hidden states are computed in one pass, so that nothing
is kept for a backward pass but a tensor of the hidden states' own shape, and one of the head's where the head is
trained (under LoRA it is frozen). What is left are the head products and some passes over a chunk."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from primekd.config import LossConfig
from primekd.losses.products import gradient_of, logits_of
from primekd.losses.slopes import DENSE, Buffers, forward_kl_and_p, log_normaliser, sampled, topk
from primekd.models.logits import PLAIN, LogitTransform
from primekd.signals.rows import DenseRows, HiddenRows, SampledRows, SignalRows, TopKRows

TILE = 128
CHUNK_ELEMENTS = {"cpu": 3 * 2**22, "cuda": 2**26}  # of the logits at a time, in each of up to six float32 buffers


def chunked_loss(
    hidden: Tensor, head: Tensor | None, bias: Tensor | None, targets: Tensor, teacher: SignalRows | None,
    loss: LossConfig, tokens: Tensor | float, transform: LogitTransform = PLAIN, weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The whole objective over the response rows of one micro-batch. Nothing flows to the teacher.

    In float32 it is the plain float64 loss to within 1e-5 of its size (1e-6 nats where it is near 0), and so is its
    gradient. With bfloat16 states and head the logits are still exact in float32; the gradient is rounded to bfloat16,
    as the states' own is. A top-k row's student tail below 1e-38 counts as 1e-38.

    Args:
        hidden: (N, D), row t predicting targets[t], (N,) token ids.
        head, bias: the output head, (V, D) and (V,) or None. They get a gradient where they ask for one. Without a head
            `hidden` are the logits themselves, (N, V).
        teacher: N signal rows, or None for plain fine-tuning (alpha is then taken as 1).
        tokens: response tokens in the global batch, over which the mean is taken.
        transform: what the student's architecture does behind its head. The teacher's rows have their own.
        weights: (N, 2), what a row's cross-entropy and divergence count; None for alpha and (1 - alpha) * scale of all.

    Returns the scalar loss and its detached parts {"ce", "kd"} (kd with its factor T^2), both means over `tokens`
    without weights. Raises ValueError if sparse rows are asked for a loss that they cannot serve."""
    sparse = isinstance(teacher, TopKRows | SampledRows)
    if sparse and (loss.divergence != "forward_kl" or loss.temperature != teacher.temperature):
        raise ValueError("sparse rows serve the forward KL at their own temperature only")
    if weights is None:
        alpha = 1.0 if teacher is None else loss.alpha
        both = [[alpha, (1 - alpha) * loss.divergence_scale]]
        weights = hidden.new_tensor(both, dtype=torch.float32).expand(len(hidden), 2)
    value, ce, kd = _ChunkedLoss.apply(hidden, head, bias, targets, teacher, loss, tokens, transform, weights)
    return value, {"ce": ce, "kd": kd}


def distillation_loss(
    logits: Tensor, targets: Tensor, teacher: SignalRows | None, loss: LossConfig, tokens: Tensor | float,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """`chunked_loss` of whole student logits (N, V), row t predicting targets[t]."""
    return chunked_loss(logits, None, None, targets, teacher, loss, tokens, weights=weights)


@torch.no_grad()
def row_losses(
    hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, teacher: SignalRows | None, loss: LossConfig,
    transform: LogitTransform = PLAIN, top: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `chunked_loss` sums up, row by row and without gradients, and the student's `top` most probable tokens (with
    the forward KL alone, as others overwrite the logits).

    Returns cross-entropy and divergence of each row in nats, (N,) float32 both; the divergence without the factor T^2,
    and 0 without a teacher. Ids (N, top) and probabilities (N, top) at temperature 1."""
    ce, kd = torch.empty(2, len(hidden), device=hidden.device).unbind()
    weights = torch.ones(len(hidden), 2, device=hidden.device)
    ids, probs = torch.zeros(len(hidden), top, dtype=torch.int64, device=ce.device), ce.new_empty(len(hidden), top)
    for rows, of_ce, of_kd, buffers in _in_chunks(hidden, head, bias, targets, teacher, loss, transform, weights):
        ce[rows], kd[rows] = of_ce, of_kd
        if top:
            z = buffers["z"] if loss.temperature == 1 or teacher is None else buffers["z"].mul_(loss.temperature)
            best, normaliser = z.topk(top, dim=-1), of_ce[:, None] + z.gather(1, targets[rows, None])
            ids[rows], probs[rows] = best.indices, (best.values - normaliser).exp()
    return ce, kd, ids, probs


class _ChunkedLoss(torch.autograd.Function):
    """Keeps the gradients from the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(ctx, hidden, head, bias, targets, teacher, loss, tokens, transform, weights):
        # The head's are summed over chunks, so in float32; a row of the hidden states' belongs to one chunk.
        kinds = zip((hidden, head, bias), ctx.needs_input_grad, (hidden.dtype, *[torch.float32] * 2), strict=False)
        gradients = [torch.zeros_like(t, dtype=dtype) if needed else None for t, needed, dtype in kinds]
        # Of the cross-entropy and the divergence, as they are and by their weights.
        sums = torch.zeros(2, 2, dtype=torch.float64, device=hidden.device)
        for rows, ce, kd, buffers in _in_chunks(hidden, head, bias, targets, teacher, loss, transform, weights):
            both = torch.stack([ce, kd], -1).double()  # (C, 2)
            sums += torch.stack([both.sum(0), (both * weights[rows]).sum(0)])
            if any(ctx.needs_input_grad):
                slopes = buffers["slopes"].div_(tokens if transform.scale == 1 else tokens / transform.scale)
                if transform.soft_cap is not None:
                    slopes.mul_(buffers["bend"])
                of_hidden, of_head, of_bias = gradients
                half = head is not None and head.dtype == hidden.dtype != torch.float32
                rounded = buffers.get("rounded", head.dtype) if half else None
                if head is None:
                    of_hidden[rows] = slopes
                elif of_hidden is not None:
                    gradient_of(slopes, head, of_hidden[rows], rounded)
                if of_head is not None and half:
                    of_head += rounded.copy_(slopes).T @ hidden[rows]
                elif of_head is not None:
                    of_head.addmm_(slopes.T, hidden[rows].float())
                if of_bias is not None:
                    of_bias += slopes.sum(0)
        ctx.save_for_backward(*gradients)
        sums = sums * torch.tensor([1.0, loss.temperature**2], device=sums.device) / tokens
        (ce, kd), value = sums[0].float(), sums[1].sum().float()
        ctx.mark_non_differentiable(ce, kd)
        return value, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx, by_loss, *of_parts):
        # In float32: an alpha of 0.1 in bfloat16 is 0.1001.
        return *(None if g is None else (g.float() * by_loss).to(g.dtype) for g in ctx.saved_tensors), *[None] * 6


def chunk_rows(vocabulary: int, device: str) -> int:
    """Rows of logits that are taken at a time; many of them are a multiple of a GPU's tile of a product, 128."""
    rows = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cuda"]) // vocabulary
    return max(1, rows - rows % TILE if rows > TILE else rows)


def _in_chunks(
    hidden: Tensor, head: Tensor | None, bias: Tensor | None, targets: Tensor, teacher: SignalRows | None,
    loss: LossConfig, transform: LogitTransform, weights: Tensor,
) -> Iterator[tuple[slice, Tensor, Tensor, Buffers]]:  # fmt: skip
    """Some rows after others: which ones, CE, D (C,), and buffers (C, V): "slopes", dL/dlogits, and a cap's "bend"."""
    columns = hidden.shape[1] if head is None else len(head)
    size = max(1, min(len(hidden), chunk_rows(columns, hidden.device.type)))
    buffers = Buffers(size, columns, hidden)
    for start in range(0, len(hidden), size):
        rows = slice(start, min(start + size, len(hidden)))
        part = None if teacher is None else teacher.part(rows)
        buffers.rows = rows.stop - rows.start
        z, own = buffers["z"], hidden[rows]
        z = transform.apply_(z.copy_(own) if head is None else logits_of(own, head, bias, out=z))
        if transform.soft_cap is not None:
            transform.bend(z, out=buffers["bend"])
        yield rows, *_chunk(buffers, z, targets[rows, None], part, loss, weights[rows, :, None]), buffers


def _chunk(
    buffers: Buffers, z: Tensor, targets: Tensor, teacher: SignalRows | None, loss: LossConfig, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits (C, V), overwritten, targets (C, 1), weights (C, 2, 1) -> CE, D (C,); dL/dlogits is left as slopes."""
    of_ce, of_kd = weights.unbind(1)  # (C, 1) both
    slopes = torch.softmax(z, -1, out=buffers["slopes"])
    ce = log_normaliser(z, slopes) - z.gather(1, targets)[:, 0]
    if teacher is None:
        slopes.scatter_add_(1, targets, -torch.ones_like(ce)[:, None]).mul_(of_ce)
        return ce, torch.zeros_like(ce)
    dense = isinstance(teacher, DenseRows | HiddenRows)
    if dense and loss.temperature == 1 and loss.divergence == "forward_kl":  # one softmax serves both terms
        kd, p = forward_kl_and_p(buffers, z, slopes, _teacher_logits(teacher, buffers))
        slopes.mul_(of_ce + of_kd).sub_(p.mul_(of_kd)).scatter_add_(1, targets, -of_ce)
        return ce, kd
    if loss.temperature == 1:
        q = buffers["q"].copy_(slopes)
    else:
        q = torch.softmax(z.div_(loss.temperature), -1, out=buffers["q"])
    if isinstance(teacher, TopKRows):
        kd = topk(z, q, teacher)
    elif isinstance(teacher, SampledRows):
        kd = sampled(z, q, teacher)
    else:
        t = _teacher_logits(teacher, buffers).div_(loss.temperature)
        kd = DENSE[loss.divergence](buffers, z, q, t, loss)
    # T^2 of the loss and 1/T of z: dL/dlogits = weight * (softmax - onehot) + weight * T * slope.
    slopes.mul_(of_ce).addcmul_(q, of_kd, value=loss.temperature).scatter_add_(1, targets, -of_ce)
    return ce, kd


def _teacher_logits(teacher: SignalRows, buffers: Buffers) -> Tensor:
    out = buffers["t"]
    if isinstance(teacher, HiddenRows):
        return teacher.transform.apply_(logits_of(teacher.hidden, teacher.head, out=out, rounded=buffers.rounded))
    return out.copy_(teacher.logits)
