"""The head products of a loss, exact where the inputs are of half precision: their results are kept in float32.

A bfloat16 product that is rounded to bfloat16 turns logits of 16 and more into eighths, and two equal models would then
differ. The factors themselves are exact: bfloat16 times bfloat16 fits into float32, and processors that multiply
bfloat16 add up in float32. So no precision is lost by multiplying in bfloat16 as long as the sum is not rounded."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}  # of the head in float32 at a time: 8 MB, which stay in a CPU's cache


def logits_of(
    states: Tensor, head: Tensor, bias: Tensor | None = None, out: Tensor | None = None, rounded: bool = False
) -> Tensor:
    """states (C, D) @ head (V, D).T + bias (V,) -> (C, V) float32, without rounding in between; into `out` if given.

    `rounded`: a CPU may round float32 factors to bfloat16. Of a 1.5B teacher's rows that is 2e-6 nats a token, and
    processors without its instructions keep float32 and are twice as fast all the same."""
    if out is None:
        out = torch.empty(len(states), len(head), dtype=torch.float32, device=states.device)
    if states.dtype == head.dtype and states.is_cuda and states.dtype.itemsize == 2:
        torch.mm(states, head.T, out_dtype=torch.float32, out=out)
    else:
        exact = states.dtype == head.dtype == torch.bfloat16
        states = states.float()
        with bfloat16_factors() if exact or rounded else contextlib.nullcontext():
            for rows, part in _float_blocks(head):
                torch.mm(states, part.T, out=out[:, rows])
    return out if bias is None else out.add_(bias.float())


def gradient_of(slopes: Tensor, head: Tensor, out: Tensor, rounded: Tensor | None) -> None:
    """slopes (C, V) float32 @ head (V, D) -> out (C, D). `rounded`: (C, V) in the type of head and out, if that is of
    half precision: the product is then taken in it, as its result is. It is written over."""
    if rounded is not None:
        torch.mm(rounded.copy_(slopes), head, out=out)
        return
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    for rows, part in _float_blocks(head):
        total.addmm_(slopes[:, rows], part)
    out.copy_(total)


def _float_blocks(head: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a head after the others in float32; all of it where nothing has to be converted on a GPU."""
    converted = head.dtype != torch.float32
    if head.is_cuda and not converted:
        yield slice(None), head
        return
    size = max(1, BLOCK_ELEMENTS["cuda" if head.is_cuda else "cpu"] // head.shape[1])
    # One block of memory for all: new pages would cost as much as the product of few rows.
    block = torch.empty_like(head[:size], dtype=torch.float32) if converted else None
    for start in range(0, len(head), size):
        part = head[start : start + size]
        yield slice(start, start + len(part)), part if block is None else block[: len(part)].copy_(part)


@contextlib.contextmanager
def bfloat16_factors() -> Iterator[None]:
    """Lets a CPU multiply float32 numbers as bfloat16 and sum in float32: exact for those that came from bfloat16."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
