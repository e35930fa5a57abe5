"""Splits: which items each owns, their hash, and refusals of items that stand twice or in two splits."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from primekd.foundation import UserError, hash_json
from primekd.tasks.protocol import Item

if TYPE_CHECKING:
    from primekd.config import DataConfig

SPLITS = ("train", "validation", "test", "teacher")
# Each split of generated items owns some of the 100 buckets that a question's hash falls into, so that no
# question can stand in two splits, whatever the seeds.
BUCKETS = {"test": range(0, 15), "validation": range(15, 20), "train": range(20, 40), "teacher": range(40, 100)}


def bucket_of(question: str) -> int:
    """0 to 99, from the question's text alone."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100


def side_of(split: str) -> str:
    """The side of a data set that a split is taken from: test items from `test`, all others from `train`."""
    return "test" if split == "test" else "train"


def start_of(data: "DataConfig", split: str) -> int:
    """The place among its side's rows at which a split begins."""
    return {"train": 0, "test": 0, "validation": data.train_items}.get(split, data.train_items + data.validation_items)


def take(rows: Sequence[Item], data: "DataConfig", split: str, count: int) -> list[Item]:
    """`count` of a side's rows: validation items follow training items, a teacher's those. UserError if too few."""
    start = start_of(data, split)
    if start + count > len(rows):
        has = f"the source has {len(rows)} in all: lower data.train_items, data.validation_items or data.test_items"
        raise UserError(f"The profile asks for {count} {split} items from place {start} on, and {has}.")
    return list(rows[start : start + count])


def hash_items(items: Iterable[Item]) -> str:
    """sha256 over the items, in order."""
    return hash_json([item.fingerprint() for item in items])


def refuse_duplicates(items: Sequence[Item], where: str) -> None:
    """Raises UserError if an item id stands twice."""
    if twice := [name for name, times in Counter(item.id for item in items).items() if times > 1]:
        raise UserError(f"{where}: the item id {twice[0]!r} occurs twice. Give each item its own, or leave ids out.")


def refuse_overlap(items: Sequence[Item], name: str, others: dict[str, list[Item]]) -> None:
    """Raises UserError if a question of `items` stands in another split too: its score would be worth nothing."""
    own = {item.question for item in items}
    for split, rows in others.items():
        if shared := [item.id for item in rows if item.question in own]:
            raise UserError(
                f"{len(shared)} questions stand in the {name} items and in the {split} items too (first: {shared[0]}): "
                "mend the data that the profile names."
            )
