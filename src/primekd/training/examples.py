"""Training examples and the collator: prompt + response, labels on the response alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from primekd.chat import StudentSequence, build_prompt, encode_response, join
from primekd.items import Item
from primekd.signals import SignalReader

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One sequence to train on; `item_id` is how its signal rows are found."""

    item_id: str
    sequence: StudentSequence


def gold_examples(tokenizer, items: Sequence[Item]) -> list[Example]:
    """The student's prompt with the gold solution as response."""
    return [
        Example(item.id, join(build_prompt(tokenizer, item.question), encode_response(tokenizer, item.solution)))
        for item in items
    ]


def teacher_examples(tokenizer, items: Sequence[Item], reader: SignalReader) -> list[Example]:
    """The student's plain prompt with the teacher's response; the teacher's primed prompt is not used."""
    return [
        Example(item.id, join(build_prompt(tokenizer, item.question), reader.item(item.id).response_ids))
        for item in items
    ]


@dataclass(frozen=True)
class Collator:
    """Pads on the right. Labels are unshifted (the model shifts) and IGNORED outside the response."""

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor | list[str]]:
        """Returns input_ids, attention_mask, labels, each (B, S) int64, and item_ids, a list of B."""
        longest = max(len(e.sequence.input_ids) for e in examples)
        input_ids = torch.full((len(examples), longest), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for row, example in enumerate(examples):
            ids = torch.tensor(example.sequence.input_ids)
            mask = torch.tensor(example.sequence.response_mask)
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
            labels[row, : len(ids)][mask] = ids[mask]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "item_ids": [e.item_id for e in examples],
        }
