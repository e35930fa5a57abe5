"""Training examples and their micro-batches: every step sees the same sequences, however many processes there are."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset, DataLoader, Sampler
from transformers import TrainingArguments

from primekd.config import TrainConfig
from primekd.models.chat import StudentSequence, build_prompt, encode_response, join
from primekd.signals import Asked, SignalReader
from primekd.tasks.protocol import Item, Unlabelled
from primekd.tasks.text_shards import Blocks

IGNORED = -100
APART = 1_000_003  # between the draws of two seeds, which add the epoch: else one's second were the other's first


@dataclass(frozen=True)
class Example:
    """One sequence to train on; `item_id`: of its rows. `gold`: a second one, for the cross-entropy alone."""

    item_id: str
    sequence: StudentSequence
    gold: StudentSequence | None = None


def longest_sequence(examples: Sequence[Example]) -> int:
    """Tokens of the longest sequence, gold solutions included."""
    if hasattr(examples, "lengths"):  # text on disk: nothing is read to know it
        return max(examples.lengths, default=0)
    return max((len(s.input_ids) for e in examples for s in (e.sequence, e.gold) if s), default=0)


def trained_tokens(examples: Sequence[Example]) -> int:
    """Tokens that are learned in one pass."""
    return examples.tokens if hasattr(examples, "tokens") else sum(sum(e.sequence.response_mask) for e in examples)


def gold_examples(tokenizer, items: Sequence[Item]) -> list[Example]:
    """The student's prompt with the gold solution as response."""
    return [
        Example(item.id, join(build_prompt(tokenizer, item.messages), encode_response(tokenizer, item.solution)))
        for item in items
    ]


def teacher_examples(
    tokenizer, items: Sequence[Item | Unlabelled], reader: SignalReader, gold: bool = False
) -> list[Example]:
    """The student's plain prompt, the teacher's response and, with `gold`, the item's solution for cross-entropy."""
    solutions = [example.sequence for example in gold_examples(tokenizer, items)] if gold else [None] * len(items)
    return [
        Example(item.id, join(build_prompt(tokenizer, item.messages), reader.item(item.id).response_ids), solution)
        for item, solution in zip(items, solutions, strict=True)
    ]


def prompt_examples(tokenizer, items: Sequence[Item | Unlabelled]) -> list[Example]:
    """The student's plain prompts, for responses that it writes itself."""
    return [Example(item.id, join(build_prompt(tokenizer, item.messages), [])) for item in items]


def block_example(name: str, ids: Sequence[int]) -> Example:
    """A block of text whose every token is a label, but for the first one, which nothing predicts."""
    return Example(name, join(list(ids[:1]), list(ids[1:])))


class TextExamples(Sequence[list[Example]]):
    """Blocks `first` to `end` of a profile's text in their own order, read when they are asked for. `apart`: whether a
    block's documents are examples of their own, so that none sees another; if not, it is one running text."""

    def __init__(self, blocks: Blocks, first: int, end: int, apart: bool):
        self._blocks, self._first, self._apart = blocks, first, apart
        self.lengths = [blocks.block_tokens] * (end - first)
        self.tokens = sum(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> list[Example]:
        """The examples of one block; what is one token long has nothing to predict."""
        if not 0 <= place < len(self):
            raise IndexError(place)
        ids, lengths = self._blocks[self._first + place]
        parts = np.split(ids, np.cumsum(lengths)[:-1]) if self._apart else [ids]
        return [
            block_example(f"{self._first + place}.{number}", part.tolist())
            for number, part in enumerate(parts) if len(part) > 1
        ]  # fmt: skip


class AskedBatches(Sequence[list[Asked]]):
    """What a signal source will be asked in each micro-batch of `size` blocks, read when it is asked for."""

    def __init__(self, examples: TextExamples, size: int):
        self._examples, self._size = examples, size

    def __len__(self) -> int:
        return -(-len(self._examples) // self._size)

    def __getitem__(self, number: int) -> list[Asked]:
        places = range(number * self._size, min((number + 1) * self._size, len(self._examples)))
        sequences = [(e.item_id, e.sequence.input_ids) for place in places for e in self._examples[place]]
        return [Asked(name, list(ids[:1]), list(ids[1:])) for name, ids in sequences]


def document_examples(documents: Sequence[np.ndarray], block_tokens: int) -> list[Example]:
    """Held-out documents (n,), each one example of at most a block: what lies behind is left out."""
    return [block_example(str(n), ids[:block_tokens].tolist()) for n, ids in enumerate(documents) if len(ids) > 1]


def asked_of(item_ids: Sequence[str], input_ids: Tensor, labels: Tensor) -> list[Asked]:
    """What a signal source is asked about the first sequences of a micro-batch, (B, S) both: those that have labels.
    Raises ValueError if the labels of a sequence do not stand together, or its first token is one."""
    asked = []
    for item_id, ids, own in zip(item_ids, input_ids.tolist(), labels.tolist(), strict=False):  # gold solutions follow
        places = [place for place, label in enumerate(own) if label != IGNORED]
        if not places:
            continue
        first, end = places[0], places[-1] + 1
        if first == 0 or end - first != len(places):
            raise ValueError(f"the labels of {item_id!r} are no response behind a prompt")
        asked.append(Asked(item_id, ids[:first], own[first:end]))
    return asked


@dataclass(frozen=True)
class Collator:
    """Pads on the right. Labels are unshifted (the model shifts) and IGNORED outside the response."""

    pad_token_id: int
    keeps: bool = False

    def __call__(self, given: Sequence[Example | list[Example]]) -> dict[str, Any]:
        """input_ids, attention_mask, labels, each (B, S) int64, and item_ids; with `keeps` the examples too, for a
        student that writes its own text. Gold solutions follow as further rows, in the same pass: B - len(item_ids)."""
        examples = [e for one in given for e in (one if isinstance(one, list) else [one])]  # a block holds several
        sequences = [e.sequence for e in examples] + [e.gold for e in examples if e.gold]
        rows = [(torch.tensor(s.input_ids), torch.tensor(s.response_mask)) for s in sequences]
        wanted = [torch.tensor(s.labels or s.input_ids) for s in sequences]
        batch = {
            "input_ids": pad_sequence([ids for ids, _ in rows], True, self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids, _ in rows], True),
            "labels": pad_sequence(
                [torch.where(mask, own, IGNORED) for own, (_, mask) in zip(wanted, rows, strict=True)], True, IGNORED
            ),
        }
        return batch | {"item_ids": [e.item_id for e in examples]} | ({"examples": examples} if self.keeps else {})


FILLER = Example("", StudentSequence([0], [False]))  # has no response token, so it adds nothing to any sum


def group_by_length(order: Sequence[int], lengths: Sequence[int], step: int, window: int) -> list[int]:
    """Sorts a permutation of the indices of `lengths` so that sequences of about one length share a batch: those of a
    window of `window` optimiser steps (of `step` sequences) are dealt to its steps by length; the steps stand in the
    order in which the permutation first names one of theirs, so that lengths come in no order."""
    grouped: list[int] = []
    for start in range(0, len(order), step * window):
        part = list(order[start : start + step * window])
        place = {index: number for number, index in enumerate(part)}
        cut = len(part) - len(part) % step  # an incomplete step stays the epoch's last one
        part, tail = (sorted(some, key=lambda index: -lengths[index]) for some in (part[:cut], part[cut:]))
        steps = [part[first : first + step] for first in range(0, cut, step)]
        grouped += [index for chosen in sorted(steps, key=lambda s: min(map(place.get, s))) for index in chosen] + tail
    return grouped


class ProcessBatches(Sampler[list[int]]):
    """The micro-batches, of `size` sequences, of one process: rounds of one a process are dealt out in order, which is
    one permutation an epoch, grouped by length, the same on every process; without a `seed` the given one. Index
    `items` (`FILLER`) fills up the last round, so that all processes take as many forward passes."""

    def __init__(
        self, lengths: Sequence[int], size: int, process: int, processes: int, step: int, window: int,
        seed: int | None = None,
    ):  # fmt: skip
        self.lengths, self.items, self.batch_size = lengths, len(lengths), size
        self.process, self.processes, self.step, self.window = process, processes, step, window
        self._shuffled = None if seed is None else SeedableRandomSampler(range(self.items), data_seed=APART * seed)

    def __len__(self) -> int:
        return math.ceil(self.items / (self.batch_size * self.processes))

    def set_epoch(self, epoch: int) -> None:
        if self._shuffled is not None:
            self._shuffled.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        order, per_round = list(range(self.items)), self.batch_size * self.processes
        if self._shuffled is not None:
            order = group_by_length(list(self._shuffled), self.lengths, self.step, self.window)
        if self.processes > 1:
            order += [self.items] * (len(self) * per_round - len(order))
        for start in range(self.process * self.batch_size, len(order), per_round):
            yield order[start : start + self.batch_size]


class ProcessLoader(DataLoader):
    """Loads the ProcessBatches of some examples; the Trainer tells it the epoch."""

    def __init__(
        self, examples: Sequence[Example], train: TrainConfig, arguments: TrainingArguments, seed: int | None,
        collate: Collator,
    ):  # fmt: skip
        lengths = getattr(examples, "lengths", None) or [len(example.sequence.input_ids) for example in examples]
        batches = ProcessBatches(
            lengths, train.micro_batch_size, arguments.process_index, arguments.world_size, train.batch_size,
            train.length_window, seed,
        )  # fmt: skip
        filled, pinned = ConcatDataset([examples, [FILLER]]), arguments.dataloader_pin_memory
        super().__init__(filled, batch_sampler=batches, collate_fn=collate, pin_memory=pinned)

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
