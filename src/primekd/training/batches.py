"""Micro-batches shared out over processes: every optimiser step sees the same sequences, however many there are."""

import math
from collections.abc import Iterator, Sequence

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Sampler

from primekd.models.chat import StudentSequence
from primekd.training.examples import Example

FILLER = Example("", StudentSequence([0], [False]))  # has no response token, so it adds nothing to any sum


def group_by_length(order: Sequence[int], lengths: Sequence[int], step: int, window: int) -> list[int]:
    """Sorts a permutation by length within windows, so that sequences of about one length share a batch.

    The sequences of a window of `window` optimiser steps are dealt to its steps by length; the steps then stand in the
    order in which the permutation first names one of theirs. So lengths come in no order over time, and every epoch
    has other steps. Sequences stand by length within a step too, for its micro-batches.

    Args:
        order: a permutation of the indices of `lengths`.
        step: sequences a step.
        window: steps a window; with 1 the steps are the permutation's own.
    """
    grouped: list[int] = []
    for start in range(0, len(order), step * window):
        part = list(order[start : start + step * window])
        place = {index: number for number, index in enumerate(part)}
        short = len(part) % step  # an incomplete step stays the epoch's last one
        tail = sorted(part[len(part) - short :], key=lambda index: -lengths[index])
        part = sorted(part[: len(part) - short], key=lambda index: -lengths[index])
        steps = [part[first : first + step] for first in range(0, len(part), step)]
        grouped += [index for chosen in sorted(steps, key=lambda s: min(map(place.get, s))) for index in chosen] + tail
    return grouped


class ProcessBatches(Sampler[list[int]]):
    """The micro-batches of one process: rounds of one micro-batch a process are dealt out in order.

    The order is one permutation an epoch, grouped by length, the same on every process. Where the last round is not
    whole, index `items` fills it up, so that all processes take as many forward passes; the data set keeps `FILLER`
    there.

    Args:
        lengths: of the sequences, in tokens.
        size: sequences a micro-batch.
        process, processes: this one's rank and how many there are.
        step, window: as of `group_by_length`.
        seed: of the permutations, with the epoch; None keeps the given order.
    """

    def __init__(
        self, lengths: Sequence[int], size: int, process: int, processes: int, step: int, window: int,
        seed: int | None = None,
    ):  # fmt: skip
        self.lengths, self.items, self.batch_size = lengths, len(lengths), size
        self.process, self.processes, self.step, self.window = process, processes, step, window
        self._shuffled = None if seed is None else SeedableRandomSampler(range(self.items), data_seed=seed)

    def __len__(self) -> int:
        return math.ceil(self.items / (self.batch_size * self.processes))

    def set_epoch(self, epoch: int) -> None:
        if self._shuffled is not None:
            self._shuffled.set_epoch(epoch)

    def _order(self) -> list[int]:
        if self._shuffled is None:
            return list(range(self.items))
        return group_by_length(list(self._shuffled), self.lengths, self.step, self.window)

    def __iter__(self) -> Iterator[list[int]]:
        order, per_round = self._order(), self.batch_size * self.processes
        if self.processes > 1:
            order += [self.items] * (len(self) * per_round - len(order))
        for start in range(self.process * self.batch_size, len(order), per_round):
            yield order[start : start + self.batch_size]


class ProcessLoader(DataLoader):
    """A loader over ProcessBatches; the Trainer tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
