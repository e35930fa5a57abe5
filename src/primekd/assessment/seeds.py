"""Several training seeds of one strategy: what other items, and what another training, would change (seeds.csv)."""

import re
from dataclasses import dataclass

import numpy as np

from primekd.assessment.grade import LogRow
from primekd.assessment.statistics import SeedEffects, over_seeds
from primekd.assessment.summary import planned_contrasts

_SEED = re.compile(r"(?P<strategy>.+)-seed(?P<seed>\d+)")


@dataclass(frozen=True)
class SeedRow:
    """A strategy's mean accuracy over its seeds or, with a reference, the difference of two strategies' means.

    Accuracies are shares, and their intervals end where shares do. `seed_sd`: standard deviation of the seeds' own
    accuracies (or differences); `item_se` and `seed_se`: standard errors clustered by item and by seed; the interval
    and `p` are clustered by both.
    """

    model: str
    reference: str
    seeds: int
    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    seed_sd: float
    item_se: float
    seed_se: float
    p: float | None


def by_strategy(logs: dict[str, list[LogRow]]) -> dict[str, dict[str, np.ndarray]]:
    """Strategy -> seed's name -> verdicts in the order of the items. The profile's own seed has the name ''."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for model, log in logs.items():
        match = _SEED.fullmatch(model)
        strategy, seed = (match["strategy"], match["seed"]) if match else (model, "")
        found.setdefault(strategy, {})[seed] = np.array([r.correct for r in log], dtype=float)
    return found


def seed_rows(logs: dict[str, list[LogRow]]) -> list[SeedRow]:
    """Rows for every strategy with two seeds or more, and for every planned contrast with two seeds in common.

    A reference that is not trained (the control) has the same verdicts under every seed.
    """
    verdicts = by_strategy(logs)
    rows = []
    for strategy, seeds in verdicts.items():
        if len(seeds) > 1:
            rows.append(_row(strategy, "", np.stack(list(seeds.values()), axis=1)))
    for model, reference in planned_contrasts(verdicts):
        first, second = verdicts[model], verdicts[reference]
        if len(second) == 1 and reference == "control":
            second = dict.fromkeys(first, next(iter(second.values())))
        shared = [seed for seed in first if seed in second]
        if len(shared) > 1:
            rows.append(_row(model, reference, np.stack([first[s] - second[s] for s in shared], axis=1)))
    return rows


def _row(model: str, reference: str, values_I_S: np.ndarray) -> SeedRow:
    effects: SeedEffects = over_seeds(values_I_S)
    e = effects.estimate
    items, seeds = values_I_S.shape
    low, high = max(e.low, -1.0 if reference else 0.0), min(e.high, 1.0)  # t with few seeds reaches beyond
    return SeedRow(
        model, reference, seeds, items, e.value, low, high, effects.seed_sd, effects.item_se, effects.seed_se,
        effects.p if reference else None,
    )  # fmt: skip
