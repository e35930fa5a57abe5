"""The planned contrasts of a study over all seeds that were trained (contrasts.csv), and these seeds (seeds.csv)."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.config import NO_STUDENTS, UNTRAINED, of_role, split_seed
from primekd.foundation import Estimated, MaybeEstimated, nested, table_row
from primekd.statistics import inference
from primekd.statistics.families import Pair, Planned
from primekd.tasks.clusters import cluster_of

T = TypeVar("T")
FITS = {"kl": "teacher_tokens", "nll_gold": "gold_tokens"}  # measure of a held-out row -> what it is a sum over


@table_row
class ContrastRow:
    """A strategy against a reference on the same items, over all their seeds. Differences are model minus reference.
    Intervals and p are those of `Comparison` (accuracy) and `clustered`; `p_mcnemar` is McNemar's exact one. The
    columns `p_holm` are adjusted over one family: its planned contrasts in all measures. `mde` is the smallest true
    difference in accuracy that these tests find in 80 % of repetitions at the first of Holm's thresholds. `seeds`,
    `reference_seeds`: trainings on each side, the latter empty for an untrained control. `clusters`: templates, or
    items. `only_model`, `only_reference`: items that one side alone has right, empty with several seeds. `truncated`,
    `reference_truncated`: shares of answers that were cut off. kl and nll_gold may be unknown."""

    model: str
    reference: str
    seeds: int
    reference_seeds: int | None
    clusters: int
    only_model: int | None
    only_reference: int | None
    p_mcnemar: float | None
    p: float
    p_holm: float
    accuracy: Estimated
    truncated: float
    reference_truncated: float
    kl: MaybeEstimated
    kl_p: float | None
    kl_p_holm: float | None
    nll_gold: MaybeEstimated
    nll_gold_p: float | None
    nll_gold_p_holm: float | None
    mde: float
    p_adjudicated: float
    p_holm_adjudicated: float
    accuracy_adjudicated: Estimated


def by_seed(of_models: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Arm -> seed -> what each of its models has. The profile's own seed has the name ''."""
    return nested((*split_seed(model), value) for model, value in of_models.items())


def compared(of_arms: Mapping[str, Mapping[str, T]]) -> dict[str, dict[str, T]]:
    """The same without further seeds of the baseline where it alone of several arms has some: then they are its
    negative control, and say nothing of how far another seed moves any other arm."""
    several = [arm for arm, seeds in of_arms.items() if len(seeds) > 1]
    lonely = several == of_role("baseline")[:1] and any(arm not in (*NO_STUDENTS, *several) for arm in of_arms)
    return {arm: {s: one for s, one in seeds.items() if not (s and lonely)} for arm, seeds in of_arms.items()}


def verdicts_of(logs: dict[str, list[LogRow]], adjudicated: bool = False) -> dict[str, inference.Seeds]:
    """Arm -> seed -> verdicts in the items' order; `adjudicated`: by people's values where they decided on one."""
    key = "correct_adjudicated" if adjudicated else "correct"
    return by_seed({model: np.array([getattr(r, key) for r in log], float) for model, log in logs.items()})


def sides(
    of_strategies: Mapping[str, Mapping[str, T]], model: str, reference: str
) -> tuple[dict[str, T], dict[str, T]]:
    """Both strategies' trainings by seed. A control that is not trained is the same under every seed."""
    first, second = dict(of_strategies[model]), dict(of_strategies[reference])
    return first, dict.fromkeys(first, next(iter(second.values()))) if _is_untrained(second, reference) else second


def _is_untrained(by_seed: Mapping[str, T], reference: str) -> bool:
    """Students from scratch have a control of each seed: that one was trained."""
    return reference in UNTRAINED and len(by_seed) == 1


def compare_accuracies(
    logs: dict[str, list[LogRow]], planned: Planned, adjudicated: bool = False
) -> dict[Pair, inference.Comparison]:
    """The comparison of both sides' verdicts for every planned contrast."""
    if not logs:
        return {}
    verdicts, groups = compared(verdicts_of(logs, adjudicated)), [cluster_of(r.id) for r in next(iter(logs.values()))]
    return {pair: inference.compare_verdicts(*sides(verdicts, *pair), groups) for pair in planned}


def contrast(logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], planned: Planned) -> list[ContrastRow]:
    """The planned contrasts, Holm-adjusted in families. Raises ValueError if items differ, or there is one alone."""
    automatic, decided = (compare_accuracies(logs, planned, adjudicated) for adjudicated in (False, True))
    fits = {measure: _compare_fits(held_out, measure, list(automatic)) for measure in FITS}
    tests = {(pair, measure): effect.p for measure, found in fits.items() for pair, effect in found.items()}
    adjusted, adjusted_decided = (
        inference.holm_in_families(tests | {(pair, "accuracy"): c.p for pair, c in found.items()}, planned)
        for found in (automatic, decided)
    )
    sizes = Counter(planned[pair] for pair, _ in adjusted)  # tests of each family
    truncated = compared(by_seed({model: np.mean([r.truncated for r in log]) for model, log in logs.items()}))
    rows = []
    for pair, one in automatic.items():
        first, second = sides(truncated, *pair)
        of_fits = []
        for measure in FITS:
            effect = fits[measure].get(pair)
            of_fits += (*effect.estimate, effect.p, adjusted[pair, measure]) if effect else (None,) * 5
        two = decided[pair]
        rows.append(
            ContrastRow(
                *pair, len(first), None if _is_untrained(truncated[pair[1]], pair[1]) else len(second), one.clusters,
                *(one.test or inference.UNKNOWN),
                one.p, adjusted[pair, "accuracy"], *one.effect.estimate,
                float(np.mean(list(first.values()))), float(np.mean(list(second.values()))),
                *of_fits, one.detectable(inference.LEVEL / sizes[planned[pair]]),
                two.p, adjusted_decided[pair, "accuracy"], *two.effect.estimate,
            )
        )  # fmt: skip
    return rows


def _compare_fits(held_out: Iterable[HeldOutRow], measure: str, pairs: list[Pair]) -> dict[Pair, inference.Effect]:
    """The difference of a held-out measure a token for each pair; without those where it was not measured."""
    sums, counts, groups = fits_of(held_out, measure)
    if not sums:
        return {}
    if missing := {model for pair in pairs for model in pair} - sums.keys():
        raise ValueError(f"{sorted(missing)[0]} and others were measured on different items")
    sums = compared(sums)
    return {pair: inference.clustered(*sides(sums, *pair), counts, groups) for pair in pairs}


def fits_of(held_out: Iterable[HeldOutRow], measure: str) -> tuple[dict[str, inference.Seeds], list[int], list[str]]:
    """(arm -> seed -> (items,) sums of a held-out measure, tokens an item, clusters); empty where it was not measured.
    Raises ValueError if the models were measured on different items."""
    rows = nested((row.model, row.id, row) for row in held_out)
    items = next(iter(rows.values()), {})  # id -> any model's row
    for model, own in rows.items():
        if own.keys() != items.keys():
            raise ValueError(f"{model} and {next(iter(rows))} were measured on different items")
    if any(getattr(row, measure) is None for own in rows.values() for row in own.values()):
        return {}, [], []
    sums = by_seed({m: np.array([getattr(own[i], measure) for i in items], float) for m, own in rows.items()})
    return sums, [getattr(row, FITS[measure]) for row in items.values()], [cluster_of(i) for i in items]


@table_row
class SeedRow:
    """A strategy's mean accuracy over its seeds, or with a reference the difference of two strategies' means.
    `seed_sd`: standard deviation of the seeds' own; `item_se`, `seed_se`: standard errors clustered by item (or
    template) and by seed, as interval and `p` are by both, all of the automatic verdicts."""

    model: str
    reference: str
    seeds: int
    n: int
    accuracy: Estimated
    seed_sd: float
    item_se: float
    seed_se: float
    p: float | None
    accuracy_adjudicated: Estimated


def seed_rows(logs: dict[str, list[LogRow]], planned: Planned) -> list[SeedRow]:
    """Rows for every strategy with two seeds or more, and for every planned contrast with two or more on both sides."""
    if not logs:
        return []
    groups = [cluster_of(r.id) for r in next(iter(logs.values()))]
    effects: list[dict[Pair, inference.Effect]] = []  # (strategy, reference or '') -> its mean, or their difference
    for adjudicated in (False, True):
        several = {arm: s for arm, s in compared(verdicts_of(logs, adjudicated)).items() if len(s) > 1}
        differences = {pair: c.effect for pair, c in compare_accuracies(logs, planned, adjudicated).items()}
        means = {(arm, ""): inference.mean_verdicts(seeds, groups) for arm, seeds in several.items()}
        effects.append(means | differences)
    automatic, decided = effects
    return [
        SeedRow(
            *pair, e.seeds, len(groups), *e.estimate, e.seed_sd, e.group_se, e.seed_se, e.p if pair[1] else None,
            *decided[pair].estimate,
        )
        for pair, e in automatic.items() if e.seeds > 1
    ]  # fmt: skip
