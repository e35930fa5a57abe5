"""From a profile to its task and the task's items."""

from importlib import import_module
from typing import TYPE_CHECKING

from primekd.tasks.protocol import Item, Task
from primekd.tasks.splits import SPLITS, refuse_duplicates

if TYPE_CHECKING:
    from primekd.config import DataConfig, Profile


def task_of(data: "DataConfig") -> Task:
    """The task that the section `data` of a profile names."""
    return import_module(data.task_module).TASK


def load_items(profile: "Profile", split: str, count: int | None = None) -> list[Item]:
    """The profile's items of one split: train, validation, test, or teacher (for `prepare-teacher` alone).

    Raises:
        UserError: the source is not to be had, holds too few items, or holds an item twice.
    """
    data = profile.data
    counts = {"train": data.train_items, "validation": data.validation_items, "test": data.test_items}
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}")
    items = task_of(data).items(data, split, counts.get(split, 0) if count is None else count, profile.seed)
    refuse_duplicates(items, data.task)
    return items
