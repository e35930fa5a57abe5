"""What the per-item logs add up to (summary.csv)."""

from dataclasses import dataclass

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
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
