"""What completions of facts add up to, beside what cannot be right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from primekd.assessment.completions import OTHERS, RANDOM, CompletionRow, read_completions
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.statistics.inference import accuracy

DRAWS = 2000


@dataclass(frozen=True)
class FactRow:
    """A model's completions. accuracy: the share that holds an accepted keyword, Wilson's 95 % interval. cosine: the
    mean over items, percentile bootstrap; reached: the share that it is of the way from right answers to other
    questions (0) to the right answer (1). ROUGE-L's means. perplexity of the held-out documents, exp of nats a token,
    and KL to the teacher, where the vocabulary is its."""

    model: str
    n: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    cosine: float
    cosine_low: float
    cosine_high: float
    reached: float
    rouge_precision: float
    rouge_recall: float
    perplexity: float | None
    kl: float | None


def fact_rows(folder: Path, logs: Mapping[str, Sequence[LogRow]], held_out: Sequence[HeldOutRow]) -> list[FactRow]:
    """A row a model, and of what cannot be right, from completions/<model>.csv beside the logs. Raises UserError if one
    cannot be read."""
    found = {name: read_completions(folder / "completions" / f"{name}.csv") for name in (*logs, OTHERS, RANDOM)}
    floor = float(np.mean([row.cosine for row in found[OTHERS]]))
    rows = []
    for name, completions in found.items():
        fit = [row for row in held_out if row.model == name]
        shares = accuracy([row.correct for row in logs[name]]) if name in logs else (None, None, None)
        rows.append(_row(name, completions, shares, floor, fit))
    return rows


def _row(name: str, rows: Sequence[CompletionRow], shares: tuple, floor: float, fit: Sequence[HeldOutRow]) -> FactRow:
    values = np.array([row.cosine for row in rows])
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    means = [float(np.mean([getattr(row, key) for row in rows])) for key in ("rouge_precision", "rouge_recall")]
    mean = float(values.mean())
    return FactRow(
        name, len(rows), *shares, mean, float(low), float(high), (mean - floor) / (1 - floor), *means, *_fit(fit)
    )


def _fit(rows: Sequence[HeldOutRow]) -> tuple[float | None, float | None]:
    if not rows:
        return None, None
    kl = None if any(row.kl is None for row in rows) else sum(row.kl for row in rows)
    tokens = sum(row.gold_tokens for row in rows)
    return float(np.exp(sum(row.nll_gold for row in rows) / tokens)), kl and kl / sum(
        row.teacher_tokens for row in rows
    )
