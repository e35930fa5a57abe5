"""What the per-item logs add up to (summary.csv)."""

from collections.abc import Iterable
from dataclasses import dataclass

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.statistics.families import title_of
from primekd.statistics.inference import Estimate, accuracy, ratio


@dataclass(frozen=True)
class SummaryRow:
    """One model. Accuracies are shares; kl and nll are nats a token, empty for the teacher itself.

    kl is empty for every model where the teacher's text alone was kept.
    """

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
        share, decided = accuracy(_verdicts(log)), accuracy(_adjudicated(log))
        fit = [r for r in held_out if r.model == model]
        kl = ratio([r.kl for r in fit], [r.teacher_tokens for r in fit], samples) if _has_kl(fit) else None
        nll = ratio([r.nll_gold for r in fit], [r.gold_tokens for r in fit], samples) if fit else None
        rows.append(
            SummaryRow(
                model, title_of(model), len(log), sum(r.correct for r in log), *_parts(share),
                sum(r.truncated for r in log), sum(r.rule == "none" for r in log),
                sum(r.response_tokens for r in log) / len(log), *_parts(kl), *_parts(nll),
                sum(bool(r.adjudicated) for r in log), sum(_adjudicated(log)), *_parts(decided),
            )
        )  # fmt: skip
    return rows


def _has_kl(rows: Iterable[HeldOutRow]) -> bool:
    """Whether a KL was measured; it cannot be where the teacher's text alone was kept."""
    return any(r.kl is not None for r in rows)


def _parts(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)


def _verdicts(log: list[LogRow]) -> list[bool]:
    return [r.correct for r in log]


def _adjudicated(log: list[LogRow]) -> list[bool]:
    return [r.correct_adjudicated for r in log]
