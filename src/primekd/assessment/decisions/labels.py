"""Answers of the published logs that were labelled by reading them: ids and values, without the texts."""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

from primekd.foundation.errors import UserError
from primekd.foundation.provenance import project_root, relative_name

KINDS = ("stated", "implied", "none", "ambiguous")
SETS = ("validation", "development")
_VALUE = re.compile(r"-?[0-9]+(?:\.[0-9]+|/0*[1-9][0-9]*)?")


@dataclass(frozen=True)
class Label:
    """Which value one answer commits to for its question, right or wrong.

    `kind`: stated in words; implied by the last line of the reasoning; none; or ambiguous (left out of every count).
    `set`: development labels were looked at while the validated rules were written, validation labels were not.
    `first`, `second`: what two readings gave by themselves (a value or a kind), empty where there was one alone.
    """

    log: str
    id: str
    answer_sha256: str
    set: str
    kind: str
    value: str
    first: str
    second: str

    @property
    def number(self) -> Fraction | None:
        return Fraction(self.value) if self.value else None


def labels_file() -> Path:
    """assessment/labels/published-logs.csv of the checkout."""
    return project_root() / "assessment" / "labels" / "published-logs.csv"


def read_labels(path: Path | None = None) -> list[Label]:
    """All labels. Raises UserError if the file is missing, or for the line of a row that cannot be read."""
    path = path or labels_file()
    if not path.is_file():
        raise UserError(f"{relative_name(path)} is missing.")
    names = [f.name for f in fields(Label)]
    labels = []
    with open(path, encoding="utf-8", newline="") as handle:
        for line, row in enumerate(csv.DictReader(handle), start=2):
            if list(row) != names or None in row.values():
                raise UserError(f"{relative_name(path)} line {line}: its columns must be {','.join(names)}.")
            label = Label(**row)
            fits = bool(_VALUE.fullmatch(label.value)) if label.kind in ("stated", "implied") else not label.value
            if label.kind not in KINDS or label.set not in SETS or not fits:
                raise UserError(f"{relative_name(path)} line {line}: kind, set and value do not fit together.")
            labels.append(label)
    return labels


@dataclass(frozen=True)
class LabelCounts:
    """The labels of one set by kind; how many answers were read twice, and how often both readings gave the same."""

    set: str
    n: int
    stated: int
    implied: int
    none: int
    ambiguous: int
    read_twice: int
    agreed: int


def count_labels(labels: Iterable[Label]) -> list[LabelCounts]:
    """One row a set."""
    labels = list(labels)
    rows = []
    for name in SETS:
        chosen = [label for label in labels if label.set == name]
        twice = [label for label in chosen if label.first and label.second]
        agreed = sum(label.first == label.second for label in twice)
        kinds = (sum(label.kind == kind for label in chosen) for kind in KINDS)
        rows.append(LabelCounts(name, len(chosen), *kinds, len(twice), agreed))
    return rows
