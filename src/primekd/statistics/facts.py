"""What completions of facts add up to, beside what cannot be right, and what may be said of two models' likeness."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from primekd.assessment.completions import OTHERS, RANDOM, CompletionRow
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.foundation.tables import Estimated, MaybeEstimated, read_records, table_row
from primekd.statistics.contrasts import by_seed, compared, sides
from primekd.statistics.families import Planned
from primekd.statistics.inference import UNKNOWN, accuracy, clustered, holm_in_families, ratio
from primekd.tasks.clusters import cluster_of

LIKENESS = {"cosine": 2.0, "rouge_precision": 1.0, "rouge_recall": 1.0}  # how far two means may lie apart


@table_row
class FactRow:
    """A model's completions. accuracy: the share that holds an accepted keyword, Wilson's 95 % interval. cosine and
    ROUGE-L: means over items, percentile bootstrap; reached: the share that the cosine is of the way from right answers
    to other questions (0) to the right answer (1). perplexity of the held-out documents, exp of nats a token, and KL to
    the teacher, where the vocabulary is its; bootstrap over documents."""

    model: str
    n: int
    accuracy: MaybeEstimated
    cosine: Estimated
    reached: float
    rouge_precision: Estimated
    rouge_recall: Estimated
    perplexity: MaybeEstimated
    kl: MaybeEstimated


def fact_rows(
    folder: Path, logs: Mapping[str, Sequence[LogRow]], held_out: Sequence[HeldOutRow], samples: int
) -> list[FactRow]:
    """A row a model, and of what cannot be right, from completions/. Raises UserError if a file cannot be read."""
    found = _read(folder, (*logs, OTHERS, RANDOM))
    floor = float(np.mean([row.cosine for row in found[OTHERS]]))
    rows = []
    for name, completions in found.items():
        shares = accuracy([row.correct for row in logs[name]]) if name in logs else UNKNOWN
        ones = np.ones(len(completions))
        cosine, *rouge = (ratio([getattr(r, key) for r in completions], ones, samples) for key in LIKENESS)
        fit = _fit([row for row in held_out if row.model == name], samples)
        reached = (cosine.value - floor) / (1 - floor)
        rows.append(FactRow(name, len(completions), *shares, *cosine, reached, *rouge[0], *rouge[1], *fit))
    return rows


def _read(folder: Path, names: Iterable[str]) -> dict[str, list[CompletionRow]]:
    return {name: read_records(folder / "completions" / f"{name}.csv", CompletionRow) for name in names}


def _fit(rows: Sequence[HeldOutRow], samples: int) -> tuple[float | None, ...]:
    """Perplexity and KL, each with its interval."""
    if not rows:
        return UNKNOWN * 2
    nats = ratio([row.nll_gold for row in rows], [row.gold_tokens for row in rows], samples)
    if any(row.kl is None for row in rows):
        return (*np.exp(nats).tolist(), *UNKNOWN)
    return (*np.exp(nats).tolist(), *ratio([row.kl for row in rows], [row.teacher_tokens for row in rows], samples))


@table_row
class FactContrastRow:
    """A planned contrast in one of LIKENESS: model minus reference, mean over items and trainings, as of `clustered`,
    the interval no wider than such differences are. p_holm: adjusted over all of these tests of its family;
    contrasts.csv has families of its own."""

    model: str
    reference: str
    measure: str
    difference: Estimated
    p: float
    p_holm: float


def fact_contrasts(folder: Path, models: Iterable[str], planned: Planned) -> list[FactContrastRow]:
    """The planned contrasts in every likeness, on the same items. Raises UserError as `fact_rows`."""
    found = _read(folder, models)
    groups, effects = [cluster_of(row.id) for row in next(iter(found.values()), [])], {}
    for measure in LIKENESS:
        values = compared(by_seed({m: np.array([getattr(r, measure) for r in rows]) for m, rows in found.items()}))
        for pair in planned:
            effects[pair, measure] = clustered(*sides(values, *pair), np.ones(len(groups)), groups)
    adjusted = holm_in_families({test: e.p for test, e in effects.items()}, planned)
    ends = {test: np.clip(e.estimate, -LIKENESS[test[1]], LIKENESS[test[1]]).tolist() for test, e in effects.items()}
    return [FactContrastRow(*t[0], t[1], *ends[t], e.p, adjusted[t]) for t, e in effects.items()]
