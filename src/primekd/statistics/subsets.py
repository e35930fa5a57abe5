"""The study's own contrasts again on matched items: what the teacher got right, what it said as long (subsets.csv); and
what it gains to choose among students on the items that they are judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from primekd.assessment.logs import LogRow
from primekd.capture.judged import JudgedRow
from primekd.config import Arm, load_arms
from primekd.foundation import nested
from primekd.foundation.tables import read_records
from primekd.statistics.contrasts import contrast
from primekd.statistics.families import MAIN, Pair, Planned
from primekd.statistics.inference import holm_of

ALL_RIGHT, SAME_LENGTH = "all right", "same length"
CLOSE = 1.1  # the longer response over the shorter one, in tokens, at most
# McNemar's exact test needs six discordant items for p < 0.05; with one item in five discordant, 30 have them.
FEWEST = 30
Taught = Mapping[str, Mapping[str, tuple[bool, int]]]  # arm -> item -> (right, tokens) of the teacher's answer


@dataclass(frozen=True)
class SubsetRow:
    """A contrast of the main family on `n` of the `asked` items that the teacher answered under every prompt, columns
    as in contrasts.csv; p is adjusted over the table. `subset`: all right, what the teacher answered rightly under
    every prompt; same length, where its answers under the two arms' prompts are within 10 % of the shorter one's
    tokens. Fewer than FEWEST items test nothing (p and interval are empty), fewer than two say nothing."""

    subset: str
    n: int
    asked: int
    model: str
    reference: str
    seeds: int | None = None
    clusters: int | None = None
    truncated: float | None = None
    reference_truncated: float | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    p: float | None = None
    p_holm: float | None = None


FROM_CONTRASTS = [f.name for f in fields(SubsetRow) if f.name not in ("subset", "n", "asked", "model", "reference")]


def read_taught(path: Path) -> Taught:
    """The teacher's answers to the test items, if the file is there. Raises UserError if a row cannot be read."""
    rows = read_records(path, JudgedRow, needed=False)
    return nested((row.arm, row.id, (row.correct, row.tokens)) for row in rows if row.split == "test")


def subset_rows(logs: dict[str, list[LogRow]], taught: Taught, planned: Planned) -> list[SubsetRow]:
    """The contrasts of the main family on matched items; nothing where the teacher's answers are not known."""
    main = [pair for pair, family in planned.items() if family == MAIN] if taught else []
    if not main:
        return []
    asked = len(set.intersection(*(set(answers) for answers in taught.values())))
    all_right = set.intersection(*({i for i, (right, _) in answers.items() if right} for answers in taught.values()))
    rows = [_row(logs, ALL_RIGHT, asked, pair, all_right) for pair in main]
    alike = {pair: ids for pair in main if (ids := _same_length(taught, pair)) is not None}
    rows += [_row(logs, SAME_LENGTH, asked, pair, ids) for pair, ids in alike.items()]
    adjusted = holm_of({(row.subset, row.model, row.reference): row.p for row in rows if row.p is not None})
    return [replace(row, p_holm=adjusted.get((row.subset, row.model, row.reference))) for row in rows]


def _same_length(taught: Taught, pair: Pair) -> set[str] | None:
    """None where both arms have their text from one prompt, or one from none."""
    arms = load_arms()
    prompts = [arms[name].cell[0] if name in arms else "" for name in pair]
    if prompts[0] == prompts[1] or not all(prompt in taught for prompt in prompts):
        return None
    first, second = (taught[prompt] for prompt in prompts)
    pairs = {i: sorted((first[i][1], second[i][1])) for i in first.keys() & second.keys()}
    return {i for i, (shorter, longer) in pairs.items() if longer <= CLOSE * shorter}


def _row(logs: dict[str, list[LogRow]], subset: str, asked: int, pair: Pair, ids: set[str]) -> SubsetRow:
    kept = {model: [row for row in log if row.id in ids] for model, log in logs.items()}
    n = len(next(iter(kept.values())))
    if n < 2:
        return SubsetRow(subset, n, asked, *pair)
    (found,) = contrast(kept, [], {pair: MAIN})
    row = SubsetRow(subset, n, asked, *pair, **{name: getattr(found, name) for name in FROM_CONTRASTS})
    return row if n >= FEWEST else replace(row, p=None, accuracy_low=None, accuracy_high=None)


@dataclass(frozen=True)
class SelectionRow:
    """Students that differ in settings alone. `chosen`: accuracy of the best, on the half of the items that it was
    chosen on; `chosen_other`: on the other half; `mean`, `mean_other`: of all of them. Means over both halves."""

    models: str
    chosen: float
    mean: float
    chosen_other: float
    mean_other: float


def selection_rows(logs: Mapping[str, Sequence[LogRow]], arms: Mapping[str, Arm], baseline: str) -> list[SelectionRow]:
    """One row, of the baseline's student and those with another loss; none where there are fewer than three."""
    others = {name for name, arm in arms.items() if arm.role == "other-loss" and arm.variant_of == baseline}
    models = [name for name in logs if name in {baseline, *others}]
    if len(models) < 3:
        return []
    right_M_I = np.array([[row.correct for row in logs[name]] for name in models], float)
    halves = [right_M_I[:, first::2].mean(1) for first in (0, 1)]  # (M,) each
    found = [(own.max(), own.mean(), other[own.argmax()], other.mean()) for own, other in (halves, halves[::-1])]
    return [SelectionRow(" ".join(models), *map(float, np.mean(found, axis=0)))]
