"""What the per-item logs add up to: summary.csv, and by every extractor extractors.csv and accuracies.csv."""

import csv
import io
from dataclasses import dataclass
from fractions import Fraction

from primekd.assessment.decisions.decisions import as_read, as_written
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import EXTRACTORS, extract
from primekd.statistics.families import title_of
from primekd.statistics.inference import UNKNOWN, accuracy, ratio
from primekd.tasks.clusters import item_of


@dataclass(frozen=True)
class SummaryRow:
    """One model. Accuracies are shares; kl and nll are nats a token, empty for the teacher itself, kl also where the
    teacher's text alone was kept."""

    model: str
    title: str
    n: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    truncated: int
    not_found: int
    mean_response_tokens: float
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    nll_gold: float | None
    nll_gold_low: float | None
    nll_gold_high: float | None
    adjudicated: int
    correct_adjudicated: int
    accuracy_adjudicated: float
    accuracy_adjudicated_low: float
    accuracy_adjudicated_high: float


def summarise(logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], samples: int) -> list[SummaryRow]:
    """One row a model."""
    rows = []
    for model, log in logs.items():
        right, decided = [r.correct for r in log], [r.correct_adjudicated for r in log]
        items = [item_of(r.id) for r in log]
        fit = [r for r in held_out if r.model == model]
        measured = any(r.kl is not None for r in fit)  # it cannot be where the teacher's text alone was kept
        kl = ratio([r.kl for r in fit], [r.teacher_tokens for r in fit], samples) if measured else UNKNOWN
        nll = ratio([r.nll_gold for r in fit], [r.gold_tokens for r in fit], samples) if fit else UNKNOWN
        rows.append(
            SummaryRow(
                model, title_of(model), len(log), sum(right), *accuracy(right, items),
                sum(r.truncated for r in log), sum(r.rule == "none" for r in log),
                sum(r.response_tokens for r in log) / len(log), *kl, *nll,
                sum(bool(r.adjudicated) for r in log), sum(decided), *accuracy(decided, items),
            )
        )  # fmt: skip
    return rows


@dataclass(frozen=True)
class AccuracyRow:
    """One model under one extractor. `found`: answers in which it found a value. Adjudicated: by a person's value where
    one was decided on, else by the extractor's."""

    model: str
    extractor: str
    n: int
    found: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    correct_adjudicated: int
    accuracy_adjudicated: float
    accuracy_adjudicated_low: float
    accuracy_adjudicated_high: float


@dataclass(frozen=True)
class Reading:
    """One answer under every extractor: name -> value, None where it found none. `adjudicated`: a person's value as
    logs write it, empty where nobody decided."""

    model: str
    id: str
    gold: str
    values: dict[str, Fraction | None]
    adjudicated: str = ""

    def correct(self, extractor: str, adjudicated: bool = False) -> bool:
        """Whether an extractor's value, or with `adjudicated` that of a person who decided, is the gold value."""
        decided = adjudicated and self.adjudicated
        return (as_read(self.adjudicated) if decided else self.values[extractor]) == Fraction(self.gold)


def read_all(model: str, log: list[LogRow]) -> list[Reading]:
    """Reads every answer of one model with every extractor."""
    readings = []
    for row in log:
        found = {name: extract(row.response, name, row.truncated, row.question).value for name in EXTRACTORS}
        readings.append(Reading(model, row.id, row.gold, found, row.adjudicated))
    return readings


def accuracies(model: str, readings: list[Reading]) -> list[AccuracyRow]:
    """One row an extractor."""
    rows, items = [], [item_of(r.id) for r in readings]
    for name in EXTRACTORS:
        found = sum(r.values[name] is not None for r in readings)
        by_both = ([r.correct(name, adjudicated) for r in readings] for adjudicated in (False, True))
        counted = (part for verdicts in by_both for part in (sum(verdicts), *accuracy(verdicts, items)))
        rows.append(AccuracyRow(model, name, len(readings), found, *counted))
    return rows


def readings_text(readings: list[Reading]) -> str:
    """extractors.csv, -1 where no value was found and -1.0 for a true minus one."""
    text = io.StringIO()
    rows = ([r.model, r.id, r.gold, *(as_written(r.values[name]) for name in EXTRACTORS)] for r in readings)
    csv.writer(text, lineterminator="\n").writerows([["model", "id", "gold", *EXTRACTORS], *rows])
    return text.getvalue()
