"""Training examples and the collator: prompt + response, labels on the response alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from primekd.models.chat import StudentSequence, build_prompt, encode_response, join
from primekd.signals import SignalReader
from primekd.tasks.protocol import Item

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One sequence to train on; `item_id` is how its signal rows are found.

    `gold` is a second one for the cross-entropy, where that is taken on the gold solution.
    """

    item_id: str
    sequence: StudentSequence
    gold: StudentSequence | None = None


def longest_sequence(examples: Sequence[Example]) -> int:
    """Tokens of the longest sequence, gold solutions included."""
    return max((len(s.input_ids) for e in examples for s in (e.sequence, e.gold) if s), default=0)


def gold_examples(tokenizer, items: Sequence[Item]) -> list[Example]:
    """The student's prompt with the gold solution as response."""
    return [
        Example(item.id, join(build_prompt(tokenizer, item.messages), encode_response(tokenizer, item.solution)))
        for item in items
    ]


def teacher_examples(tokenizer, items: Sequence[Item], reader: SignalReader, gold: bool = False) -> list[Example]:
    """The student's plain prompt with the teacher's response; the teacher's primed prompt is not used.

    Args:
        gold: take the gold solution along, for the cross-entropy.
    """
    solutions = [example.sequence for example in gold_examples(tokenizer, items)] if gold else [None] * len(items)
    return [
        Example(item.id, join(build_prompt(tokenizer, item.messages), reader.item(item.id).response_ids), solution)
        for item, solution in zip(items, solutions, strict=True)
    ]


@dataclass(frozen=True)
class Collator:
    """Pads on the right. Labels are unshifted (the model shifts) and IGNORED outside the response."""

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor | list[str]]:
        """Returns input_ids, attention_mask, labels, each (B, S) int64, and item_ids, a list.

        Gold solutions follow as further rows of the same batch, so that they share its one pass: B - len(item_ids).
        """
        sequences = [e.sequence for e in examples] + [e.gold for e in examples if e.gold]
        longest = max(len(sequence.input_ids) for sequence in sequences)
        input_ids = torch.full((len(sequences), longest), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for row, sequence in enumerate(sequences):
            ids = torch.tensor(sequence.input_ids)
            mask = torch.tensor(sequence.response_mask)
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
            labels[row, : len(ids)][mask] = ids[mask]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "item_ids": [e.item_id for e in examples],
        }
