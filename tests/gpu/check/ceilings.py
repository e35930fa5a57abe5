"""What the chip does at most: bfloat16 products and copies, measured, not read from a data sheet."""

import gc

import torch

from benchmarks.timing import spread, time_once
from check.sizes import Sizes

ROUNDS = 10
WARM_UP = 3


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def median_seconds(run) -> float:
    """Median of some calls after a few that do not count."""
    for _ in range(WARM_UP):
        run()
    return spread([time_once(run) for _ in range(ROUNDS)])["median"]


def products_per_s(sizes: Sizes) -> float:
    """bfloat16 operations a second of a large square product of random numbers: on zeros a chip is faster."""
    n = sizes.square
    a, b = (torch.randn(n, n, device=device()).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / median_seconds(lambda: torch.mm(a, b, out=out))


def bytes_per_s(sizes: Sizes) -> float:
    """Bytes read and written a second by a copy that is many times as large as any cache."""
    a = torch.randn(sizes.copied // 4, device=device())
    b = torch.empty_like(a)
    return 2 * sizes.copied / median_seconds(lambda: b.copy_(a))


def release() -> None:
    """Gives memory back between two measurements."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
