"""Answers of the published logs that were labelled by reading them: ids and values, without the texts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from primekd.foundation import UserError, project_root, read_records, relative_name

KINDS = ("stated", "implied", "none", "ambiguous")
SETS = ("validation", "development")
_VALUE = re.compile(r"-?[0-9]+(?:\.[0-9]+|/0*[1-9][0-9]*)?")


@dataclass(frozen=True)
class Label:
    """Which value one answer commits to, right or wrong. `kind`: stated in words; implied by the last line of the
    reasoning; none; or ambiguous. `set`: development labels were seen while the validated rules were written. `first`,
    `second`: what two readings gave, a value or a kind, if there were two."""

    log: str
    id: str
    answer_sha256: str
    set: Literal[SETS]
    kind: Literal[KINDS]
    value: str
    first: str
    second: str

    def __post_init__(self) -> None:
        if not (_VALUE.fullmatch(self.value) if self.kind in ("stated", "implied") else not self.value):
            raise ValueError("kind and value do not fit together")

    @property
    def number(self) -> Fraction | None:
        return Fraction(self.value) if self.value else None


def labels_file() -> Path:
    return project_root() / "assessment" / "labels" / "published-logs.csv"


def read_labels(path: Path | None = None) -> list[Label]:
    """All labels. Raises UserError if the file is missing, or for the first row that cannot be read."""
    path = path or labels_file()
    if not path.is_file():
        raise UserError(f"{relative_name(path)} is missing.")
    return read_records(path, Label, fix="mend it")


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
    labels = list(labels)
    rows = []
    for name in SETS:
        chosen = [label for label in labels if label.set == name]
        twice = [label for label in chosen if label.first and label.second]
        agreed = sum(label.first == label.second for label in twice)
        kinds = (sum(label.kind == kind for label in chosen) for kind in KINDS)
        rows.append(LabelCounts(name, len(chosen), *kinds, len(twice), agreed))
    return rows
