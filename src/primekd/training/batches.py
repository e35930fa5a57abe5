"""Micro-batches shared out over processes: every optimiser step sees the same sequences, however many there are."""

import math
from collections.abc import Iterator

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Sampler

from primekd.chat import StudentSequence
from primekd.training.examples import Example

FILLER = Example("", StudentSequence([0], [False]))  # has no response token, so it adds nothing to any sum


class ProcessBatches(Sampler[list[int]]):
    """The micro-batches of one process: rounds of one micro-batch a process are dealt out in order.

    The order is one permutation an epoch, the same on every process. Where the last round is not whole, index `items`
    fills it up, so that all processes take as many forward passes; the data set keeps `FILLER` there.

    Args:
        items: how many there are.
        size: sequences a micro-batch.
        process, processes: this one's rank and how many there are.
        seed: of the permutations, with the epoch; None keeps the given order.
    """

    def __init__(self, items: int, size: int, process: int, processes: int, seed: int | None = None):
        self.items, self.batch_size, self.process, self.processes = items, size, process, processes
        self._order = range(items) if seed is None else SeedableRandomSampler(range(items), data_seed=seed)

    def __len__(self) -> int:
        return math.ceil(self.items / (self.batch_size * self.processes))

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self._order, SeedableRandomSampler):
            self._order.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        order, per_round = list(self._order), self.batch_size * self.processes
        if self.processes > 1:
            order += [self.items] * (len(self) * per_round - len(order))
        for start in range(self.process * self.batch_size, len(order), per_round):
            yield order[start : start + self.batch_size]


class ProcessLoader(DataLoader):
    """A loader over ProcessBatches; the Trainer tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
