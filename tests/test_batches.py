"""Batches of about one length: what is dealt to which step, and in which order the steps come."""

import random

import pytest

from primekd.training.examples import ProcessBatches, group_by_length

STEP = 4


def permutation(items: int, seed: int = 0) -> list[int]:
    return random.Random(seed).sample(range(items), items)


def lengths_of(items: int) -> list[int]:
    return [random.Random(1 + i).randrange(20, 200) for i in range(items)]


def steps(order: list[int]) -> list[list[int]]:
    return [order[start : start + STEP] for start in range(0, len(order), STEP)]


def padding(order: list[int], lengths: list[int]) -> int:
    return sum(max(lengths[i] for i in s) * len(s) - sum(lengths[i] for i in s) for s in steps(order))


@pytest.mark.parametrize("items", [1, 3, 4, 17, 64, 66])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_every_sequence_comes_once_and_stays_in_its_window(items, window):
    order = permutation(items)
    grouped = group_by_length(order, lengths_of(items), STEP, window)
    size = STEP * window
    for start in range(0, items, size):
        assert sorted(grouped[start : start + size]) == sorted(order[start : start + size])


def test_a_window_of_one_step_keeps_the_steps():
    order = permutation(66)
    grouped = group_by_length(order, lengths_of(66), STEP, 1)
    assert [set(s) for s in steps(grouped)] == [set(s) for s in steps(order)]


def test_less_is_padding():
    order, lengths = permutation(256), lengths_of(256)
    plain, grouped = (padding(group_by_length(order, lengths, STEP, window), lengths) for window in (1, 8))
    assert grouped < plain / 3


def test_lengths_come_in_no_order_and_micro_batches_within_a_step_do():
    order, lengths = permutation(256), lengths_of(256)
    grouped = steps(group_by_length(order, lengths, STEP, 8))
    means = [sum(lengths[i] for i in s) / STEP for s in grouped[:8]]
    assert means != sorted(means) and means != sorted(means, reverse=True)
    assert all([lengths[i] for i in s] == sorted((lengths[i] for i in s), reverse=True) for s in grouped)


def test_an_incomplete_step_stays_the_last_one():
    # The trainer ends an epoch with it: anywhere else it would take a sequence from the next step.
    order = permutation(66)
    assert set(group_by_length(order, lengths_of(66), STEP, 3)[64:]) == set(order[64:])


def test_every_epoch_has_other_steps_and_a_seed_repeats_them():
    lengths = lengths_of(32)

    def epochs(seed: int) -> list[list[list[int]]]:
        batches, found = ProcessBatches(lengths, STEP, 0, 1, STEP, 2, seed), []
        for epoch in range(2):
            batches.set_epoch(epoch)
            found.append(list(batches))
        return found

    first, second = epochs(7)
    assert {frozenset(s) for s in first} != {frozenset(s) for s in second}
    assert epochs(7) == [first, second] != epochs(8)
    assert not {frozenset(s) for s in second} & {frozenset(s) for s in epochs(8)[0]}, "no seed repeats another's epochs"


def test_without_a_seed_the_given_order_is_kept():
    assert [i for batch in ProcessBatches(lengths_of(9), 2, 0, 1, STEP, 2) for i in batch] == list(range(9))
