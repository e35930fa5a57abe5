"""What the per-item logs add up to: summary.csv, and by every extractor extractors.csv and accuracies.csv."""

import csv
import io
from dataclasses import dataclass
from fractions import Fraction

from primekd.assessment.decisions.decisions import as_read, as_written
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import EXTRACTORS, extract
from primekd.foundation.tables import Estimated, MaybeEstimated, table_row
from primekd.statistics.families import title_of
from primekd.statistics.inference import UNKNOWN, accuracy, ratio
from primekd.tasks.clusters import item_of


@table_row
class SummaryRow:
    """One model. Accuracies are shares; kl and nll nats a token, empty where they were not measured."""

    model: str
    title: str
    n: int
    correct: int
    accuracy: Estimated
    truncated: int
    not_found: int
    mean_response_tokens: float
    kl: MaybeEstimated
    nll_gold: MaybeEstimated
    adjudicated: int
    correct_adjudicated: int
    accuracy_adjudicated: Estimated


def summarise(logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], samples: int) -> list[SummaryRow]:
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


@table_row
class AccuracyRow:
    """One model under one extractor; adjudicated by a person's value where there is one. `found`: any value."""

    model: str
    extractor: str
    n: int
    found: int
    correct: int
    accuracy: Estimated
    correct_adjudicated: int
    accuracy_adjudicated: Estimated


@dataclass(frozen=True)
class Reading:
    """One answer under every extractor, None where it found nothing. `adjudicated`: a person's value, or empty."""

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
