"""Several training seeds of one strategy: what other items, and what another training, would change (seeds.csv)."""

from dataclasses import dataclass

from primekd.assessment.logs import LogRow
from primekd.statistics.contrasts import compare_accuracies, compared, verdicts_of
from primekd.statistics.families import Planned
from primekd.statistics.inference import Effect, mean_verdicts
from primekd.tasks.clusters import cluster_of


@dataclass(frozen=True)
class SeedRow:
    """A strategy's mean accuracy over its seeds or, with a reference, the difference of two strategies' means.

    Accuracies are shares, and their intervals end where shares do. `seed_sd`: standard deviation of the seeds' own
    accuracies (or differences); `item_se` and `seed_se`: standard errors clustered by item (by template where items
    have one) and by seed; the interval and `p` are clustered by both. All of these are of the automatic verdicts; the
    last three columns are the accuracy (or difference) with the values that people decided on.
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


def seed_rows(logs: dict[str, list[LogRow]], planned: Planned) -> list[SeedRow]:
    """Rows for every strategy with two seeds or more, and for every planned contrast with two or more on both sides;
    the control, which is not trained, has the same verdicts under every seed."""
    if not logs:
        return []
    automatic, decided = (_effects(logs, planned, adjudicated) for adjudicated in (False, True))
    items = len(next(iter(logs.values())))
    return [
        SeedRow(
            *pair, e.seeds, items, *e.estimate, e.seed_sd, e.group_se, e.seed_se, e.p if pair[1] else None,
            *decided[pair].estimate,
        )
        for pair, e in automatic.items()
        if e.seeds > 1
    ]  # fmt: skip


def _effects(logs: dict[str, list[LogRow]], planned: Planned, adjudicated: bool) -> dict[tuple[str, str], Effect]:
    """(strategy, reference or '') -> its mean, or their difference."""
    groups = [cluster_of(r.id) for r in next(iter(logs.values()))]
    means = {
        (strategy, ""): mean_verdicts(seeds, groups)
        for strategy, seeds in compared(verdicts_of(logs, adjudicated)).items() if len(seeds) > 1
    }  # fmt: skip
    return means | {pair: c.effect for pair, c in compare_accuracies(logs, planned, adjudicated).items()}
