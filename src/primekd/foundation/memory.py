"""GPU memory: one sentence where it runs out, and giving it back."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from primekd.foundation.errors import UserError


@contextmanager
def gpu_memory(setting: str) -> Iterator[None]:
    """Turns torch's error where a GPU's memory ran out into a UserError that says which `setting` is to be lowered."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"The GPU's memory ran out: lower {setting} in the profile.") from error


def release_gpu_memory() -> None:
    """Gives back what a model that is no longer referred to left in this process' allocator."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
