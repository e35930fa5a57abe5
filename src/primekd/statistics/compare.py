"""Two files of answers to the same questions, compared pair by pair."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from primekd.assessment.logs import COLUMNS, LogRow, read_log
from primekd.assessment.reading import RULES
from primekd.config import DataConfig
from primekd.foundation import MANIFEST, UserError, clean, read_manifest
from primekd.statistics.grade_file import Columns, grade_rows, read_rows
from primekd.statistics.inference import LEVEL, accuracy, compare_verdicts
from primekd.statistics.sentences import MOSTLY, would_show
from primekd.tasks import NUMBERS, Task, task_of
from primekd.tasks.clusters import cluster_of, item_of

Pair = tuple[LogRow, LogRow]  # the answers of two files to one item
SIDES = ("first", "second")


def read_answers(path: Path, columns: Columns | None, extractor: str) -> list[LogRow]:
    """A per-item log or, with `columns`, any CSV of answers, graded. Raises UserError if it cannot be read."""
    if columns:
        return grade_rows(path, columns, extractor)
    _, cells = read_rows(path)[0]
    if missing := [name for name in COLUMNS if name not in cells]:
        fix = "name its columns (--response-column, --gold-column), or grade it with `primekd grade --out` first"
        raise UserError(f"{path} is no per-item log: {fix} (a log has {', '.join(missing)} too).")
    task = _task_of(path)
    rows = read_log(path, task)
    return rows if task.end_matters else [replace(row, truncated=False) for row in rows]


def _task_of(path: Path) -> Task:
    """The task of the logs beside a log, by their manifest; numbers where there is none."""
    for file in (folder / MANIFEST for folder in path.resolve().parents[:2]):
        with contextlib.suppress(UserError):  # a file of that name may be anybody's
            if data := (read_manifest(file).get("config") or {}).get("data") if file.is_file() else None:
                return task_of(DataConfig.model_construct(task=data["task"]))
    return NUMBERS


def check_extractors(first: list[LogRow], second: list[LogRow]) -> None:
    """Raises UserError if no one extractor has all of its kind of rules that fired: verdicts of two do not compare."""
    fired = {row.rule for row in (*first, *second)} & set().union(*RULES.values())  # others are of other tasks
    if not any(fired <= set(rules) for rules in RULES.values()):
        rules = clean(", ".join(sorted(fired)))
        raise UserError(f"The logs were graded by different extractors (rules {rules}): use one.")


def pair_up(first: list[LogRow], second: list[LogRow]) -> list[Pair]:
    """The items of two files, by id. Raises UserError if an id stands twice, or items, questions or golds differ."""
    a, b = ({row.id: row for row in rows} for rows in (first, second))
    if len(a) < len(first) or len(b) < len(second):
        raise UserError("One of the files has an id twice: give each item an id of its own in a column `id`.")
    if a.keys() != b.keys():
        only = sorted(a.keys() ^ b.keys())
        first_few = clean(", ".join(only[:5]))
        raise UserError(f"The files have other items: {len(only)} ids stand in one alone ({first_few} …).")
    for key in a:
        if a[key].gold != b[key].gold or (a[key].question and b[key].question and a[key].question != b[key].question):
            raise UserError(f"Item {clean(key, 60)} has another question or gold value in the second file.")
    return [(a[key], b[key]) for key in a]


def compare(pairs: list[Pair], adjudicated: bool = False) -> dict[str, Any]:
    """Accuracies with Wilson intervals, their paired difference (second minus first) and p as of `Comparison`, by
    people's decisions where there are any if `adjudicated`. Raises UserError if there are fewer than two pairs."""
    if len(pairs) < 2:
        raise UserError("One item alone shows nothing: compare files of two or more.")
    key = "correct_adjudicated" if adjudicated else "correct"
    verdicts = [[getattr(row, key) for row in side] for side in zip(*pairs, strict=True)]
    first, second = ({"": np.array(side)} for side in verdicts)
    found = compare_verdicts(second, first, [cluster_of(row.id) for row, _ in pairs])
    difference, *interval = found.effect.estimate
    shares = {}
    for name, side in zip(SIDES, verdicts, strict=True):
        share, *ends = accuracy(side, [item_of(row.id) for row, _ in pairs])
        shares[name] = {"correct": sum(side), "accuracy": share, "ci95": ends}
    result = {
        "n": len(pairs),
        **shares,
        "both": sum(a and b for a, b in zip(*verdicts, strict=True)),
        "only_first": found.test.only_second,
        "only_second": found.test.only_first,
        "difference": difference,
        "difference_ci95": interval,
        "mcnemar_p": found.test.p,
        "p": found.p,
        "templates": found.clusters if found.grouped else None,
        "detectable_difference": found.detectable(LEVEL),
        "truncated": [float(np.mean([row.truncated for row in side])) for side in zip(*pairs, strict=True)],
        "adjudicated": adjudicated,
        "changed": [row.id for (row, _), a, b in zip(pairs, *verdicts, strict=True) if a != b],
    }
    return result | {"says": in_words(result)}


def in_words(result: dict[str, Any]) -> str:
    points, (low, high) = 100 * result["difference"], (100 * x for x in result["difference_ci95"])
    p = result["p"]
    exact = not result["templates"] or p == result["mcnemar_p"]  # the larger one counts
    test = "exact McNemar" if exact else f"clustered by {result['templates']} groups of items"
    said = f"{points:+.2f} points [{low:+.2f}, {high:+.2f}], {test} {'p < 0.001' if p < 0.001 else f'p = {p:.3f}'}"
    for name, share in zip(SIDES, result["truncated"], strict=True):
        if share > MOSTLY:
            return f"Nothing is claimed, as {share:.0%} of the {name} file's answers were cut off: {said}."
    if p < LEVEL and points:
        more = "more" if points > 0 else "fewer"
        return f"The second file answers {more} questions correctly than the first: {said}."
    return f"No difference can be claimed: {said}; {would_show(result['detectable_difference'])}."


def say_comparison(result: dict[str, Any], names: tuple[str, str]) -> str:
    lines = []
    for key, name in zip(SIDES, names, strict=True):
        one = result[key]
        low, high = one["ci95"]
        lines.append(f"{name}: {one['correct']} of {result['n']}, {one['accuracy']:.2%} [{low:.2%}, {high:.2%}]")
    lines.append(
        f"right in both {result['both']}, only in the first {result['only_first']}, only in the second "
        f"{result['only_second']}"
    )
    return "\n".join([*lines, result["says"]])
