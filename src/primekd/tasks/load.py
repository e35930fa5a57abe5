"""From a profile to its task and the task's items."""

from dataclasses import replace
from importlib import import_module
from importlib.resources import files

from primekd.config import SAMPLES, TRANSFER, DataConfig, Profile
from primekd.foundation.errors import UserError
from primekd.tasks.clusters import sample_id, transfer_id
from primekd.tasks.protocol import Item, Task
from primekd.tasks.splits import SPLITS, refuse_duplicates, refuse_overlap

NEUTRAL = "neutral"  # a split of everyday questions and requests that have nothing to do with any task (neutral.txt)


def task_of(data: DataConfig) -> Task:
    return import_module(data.task_module).TASK


def load_items(profile: Profile, split: str, count: int | None = None) -> list[Item]:
    """The profile's items of one split: train, validation, test, teacher (for `prepare-teacher` alone), or neutral.

    Of an answer set they have ids of their own: the second set's, or as many of an item as it has samples. Raises
    UserError if the source is not to be had, holds too few items, or holds an item twice."""
    if split == NEUTRAL:
        return neutral_items(profile.assess.forgetting_items)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}")
    data = profile.data
    count = getattr(data, f"{split}_items", 0) if count is None else count
    items = task_of(data).items(data, split, count, profile.seed)
    refuse_duplicates(items, data.task)
    if profile.answer_set == TRANSFER:
        return [replace(item, id=transfer_id(item.id)) for item in items]
    if profile.answer_set == SAMPLES:
        numbers = range(1, profile.assess.samples + 1)
        return [replace(item, id=sample_id(item.id, number)) for item in items for number in numbers]
    return items


def load_answer_sets(profile: Profile) -> list[tuple[Profile, list[Item]]]:
    """What models answer beside the test items: a view of the profile for each set, and its items. Raises UserError if
    a question of the second set stands in the training, validation or test items too."""
    sets = [(view, load_items(view, "test")) for view in profile.answer_sets()]
    for view, items in sets:
        if view.answer_set == TRANSFER:
            splits = ("train", "validation", "test")
            refuse_overlap(items, "assess.transfer", {split: load_items(profile, split) for split in splits})
    return sets


def neutral_items(count: int) -> list[Item]:
    """The first `count` of the project's own prompts, whose kinds take turns. Nothing of them is graded: what a student
    says to them beside what its base says shows what else its training changed. Raises UserError if there are fewer."""
    prompts = files("primekd.tasks").joinpath("neutral.txt").read_text(encoding="utf-8").splitlines()
    if count > len(prompts):
        raise UserError(f"assess.forgetting_items is {count}, and there are {len(prompts)} neutral prompts: lower it.")
    return [Item(f"{NEUTRAL}-{number:03d}", prompt, "", "") for number, prompt in enumerate(prompts[:count], 1)]
