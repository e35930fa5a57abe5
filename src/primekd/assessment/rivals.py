"""Every answer read by every extractor: extractors.csv, and accuracies.csv with what that does to each model."""

from dataclasses import dataclass
from fractions import Fraction

from primekd.assessment.extract import EXTRACTORS, NOT_FOUND, extract
from primekd.assessment.grade import LogRow
from primekd.assessment.statistics import accuracy


@dataclass(frozen=True)
class AccuracyRow:
    """One model under one extractor. `found`: answers in which it found a value."""

    model: str
    extractor: str
    n: int
    found: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True)
class Reading:
    """One answer under every extractor: name -> value as logs write it, and whether it is the gold value."""

    model: str
    id: str
    gold: str
    values: dict[str, str]
    correct: dict[str, bool]


def read_all(model: str, log: list[LogRow]) -> list[Reading]:
    """Reads every answer of one model with every extractor."""
    readings = []
    for row in log:
        found = {name: extract(row.response, name, row.truncated, row.question) for name in EXTRACTORS}
        gold = Fraction(row.gold)
        readings.append(
            Reading(
                model, row.id, row.gold,
                {name: e.text for name, e in found.items()},
                {name: e.value is not None and e.value == gold for name, e in found.items()},
            )
        )  # fmt: skip
    return readings


def accuracies(model: str, readings: list[Reading]) -> list[AccuracyRow]:
    """One row an extractor."""
    rows = []
    for name in EXTRACTORS:
        share = accuracy([r.correct[name] for r in readings])
        found = sum(r.values[name] != NOT_FOUND for r in readings)
        right = sum(r.correct[name] for r in readings)
        rows.append(AccuracyRow(model, name, len(readings), found, right, share.value, share.low, share.high))
    return rows


def readings_text(readings: list[Reading]) -> str:
    """extractors.csv. Ids and values alone: no cell can need quotes, except ids that hold a comma or a quote."""
    lines = [",".join(["model", "id", "gold", *EXTRACTORS])]
    for r in readings:
        lines.append(",".join([r.model, _quoted(r.id), r.gold, *(r.values[name] for name in EXTRACTORS)]))
    return "\n".join(lines) + "\n"


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\r\n') else cell
