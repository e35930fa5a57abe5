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
    and `p` are clustered by both. All of these are of the automatic verdicts; the last three columns are the accuracy
    (or difference) with the values that people decided on.
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
    accuracy_adjudicated: float
    accuracy_adjudicated_low: float
    accuracy_adjudicated_high: float


def by_strategy(logs: dict[str, list[LogRow]], adjudicated: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """Strategy -> seed's name -> verdicts in the order of the items. The profile's own seed has the name ''.

    Args:
        adjudicated: by people's values where they decided on one, else by the automatic verdict alone.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for model, log in logs.items():
        match = _SEED.fullmatch(model)
        strategy, seed = (match["strategy"], match["seed"]) if match else (model, "")
        verdicts = [r.correct_adjudicated if adjudicated else r.correct for r in log]
        found.setdefault(strategy, {})[seed] = np.array(verdicts, dtype=float)
    return found


def seed_rows(logs: dict[str, list[LogRow]]) -> list[SeedRow]:
    """Rows for every strategy with two seeds or more, and for every planned contrast with two seeds in common.

    A reference that is not trained (the control) has the same verdicts under every seed.
    """
    automatic, decided = (_values(by_strategy(logs, adjudicated)) for adjudicated in (False, True))
    return [_row(*pair, values_I_S, decided[pair]) for pair, values_I_S in automatic.items()]


def _values(verdicts: dict[str, dict[str, np.ndarray]]) -> dict[tuple[str, str], np.ndarray]:
    """(strategy, reference or '') -> verdicts or their differences: a row an item, a column a seed."""
    values = {
        (strategy, ""): np.stack(list(seeds.values()), axis=1) for strategy, seeds in verdicts.items() if len(seeds) > 1
    }
    for model, reference in planned_contrasts(verdicts):
        first, second = verdicts[model], verdicts[reference]
        if len(second) == 1 and reference == "control":
            second = dict.fromkeys(first, next(iter(second.values())))
        shared = [seed for seed in first if seed in second]
        if len(shared) > 1:
            values[model, reference] = np.stack([first[s] - second[s] for s in shared], axis=1)
    return values


def _row(model: str, reference: str, values_I_S: np.ndarray, decided_I_S: np.ndarray) -> SeedRow:
    effects, decided = over_seeds(values_I_S), over_seeds(decided_I_S)
    items, seeds = values_I_S.shape
    return SeedRow(
        model, reference, seeds, items, *_parts(effects, reference), effects.seed_sd, effects.item_se, effects.seed_se,
        effects.p if reference else None, *_parts(decided, reference),
    )  # fmt: skip


def _parts(effects: SeedEffects, reference: str) -> tuple[float, float, float]:
    e = effects.estimate
    return e.value, max(e.low, -1.0 if reference else 0.0), min(e.high, 1.0)  # t with few seeds reaches beyond
