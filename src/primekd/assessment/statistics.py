"""What counts can show: intervals and paired tests, all from statsmodels and scipy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import bootstrap
from scipy.stats import t as student_t
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_power_het
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class McNemar:
    """Paired comparison of two models on the same items: how often only the first, or only the second, was right."""

    only_first: int
    only_second: int
    p: float


def accuracy(correct: Sequence[bool]) -> Estimate:
    """Share of correct items with its Wilson interval."""
    low, high = proportion_confint(sum(correct), len(correct), alpha=LEVEL, method="wilson")
    # At 0 or all of them, rounding leaves bounds such as 9e-19.
    return Estimate(sum(correct) / len(correct), round(float(low), 12), round(float(high), 12))


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact McNemar test on paired verdicts, two-sided."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    table = [[int((a & b).sum()), only_a], [only_b, int((~a & ~b).sum())]]
    p = 1.0 if only_a + only_b == 0 else float(mcnemar(table, exact=True).pvalue)
    return McNemar(only_a, only_b, min(p, 1.0))


def detectable_difference(test: McNemar, items: int) -> float:
    """The smallest true difference in accuracy, as a share, that so many items would show in 80 % of repetitions.

    From the power of the normal approximation to McNemar's test, two-sided at 5 %, if as large a share of the items is
    discordant as was seen here, or as the difference itself needs. 1 where no difference is found so often. Without a
    correction for several contrasts, so that it is a lower bound.
    """
    seen = (test.only_first + test.only_second) / items

    def missing_power(difference: float) -> float:
        discordant = max(seen, difference)  # a difference of 5 points needs 5 in 100 items on which only one is right
        at_none, at_difference = np.sqrt(discordant), np.sqrt(discordant - difference**2)
        return float(normal_power_het(difference, items, LEVEL, at_none, at_difference)) - POWER

    largest = 1 - 1e-9
    return float(brentq(missing_power, 1e-9, largest)) if missing_power(largest) > 0 else 1.0


@dataclass(frozen=True)
class SeedEffects:
    """A mean over items and seeds. `item_se`, `seed_se`: what other items alone, or other seeds alone, would change."""

    estimate: Estimate
    seed_sd: float
    item_se: float
    seed_se: float
    p: float


def over_seeds(values_I_S: np.ndarray) -> SeedEffects:
    """Mean of an (items, seeds) table with errors clustered by item and by seed (Cameron, Gelbach and Miller 2011).

    The interval and p (of the mean being 0) use the two-way clustered error and Student's t with seeds - 1 degrees of
    freedom, so that two seeds claim little. `seed_sd` is the standard deviation of the seeds' own means.

    Raises:
        ValueError: there are fewer than two items or two seeds, so that nothing says how they vary.
    """
    items, seeds = values_I_S.shape
    if min(items, seeds) < 2:
        raise ValueError(f"{items} item(s) under {seeds} seed(s) do not say how items and seeds vary: two of each do")
    y = np.asarray(values_I_S, float).ravel()
    item, seed = np.repeat(np.arange(items), seeds), np.tile(np.arange(seeds), items)
    model = OLS(y, np.ones_like(y))

    def fit(groups):
        return model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)

    by_item, by_seed = fit(item), fit(seed)
    # In small tables the two-way estimate can fall below one of the one-way ones, or below zero; the larger one holds.
    fits = [by_item, by_seed, fit(np.column_stack([item, seed]))]
    with np.errstate(invalid="ignore"):
        error = max(float(f.bse[0]) for f in fits if np.isfinite(f.bse[0]))
    mean = float(y.mean())
    half = float(student_t.ppf(1 - LEVEL / 2, seeds - 1)) * error
    p = float(2 * student_t.sf(abs(mean) / error, seeds - 1)) if error > 0 else float(mean == 0)
    sd = float(np.std(values_I_S.mean(axis=0), ddof=1))
    return SeedEffects(Estimate(mean, mean - half, mean + half), sd, float(by_item.bse[0]), float(by_seed.bse[0]), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def ratio(totals: Sequence[float], counts: Sequence[float], samples: int) -> Estimate:
    """Sum of totals over sum of counts (a mean a token), with a bootstrap interval over items."""

    def statistic(t, c, axis=-1):
        return t.sum(axis) / c.sum(axis)

    return _bootstrap((totals, counts), statistic, samples)


def ratio_difference(
    first: Sequence[float], second: Sequence[float], counts: Sequence[float], samples: int
) -> Estimate:
    """Mean a token of `first` minus that of `second` on the same items, with a paired bootstrap interval over items."""

    def statistic(a, b, c, axis=-1):
        return (a - b).sum(axis) / c.sum(axis)

    return _bootstrap((first, second, counts), statistic, samples)


def accuracy_difference(first: Sequence[bool], second: Sequence[bool], samples: int) -> Estimate:
    """Accuracy of `first` minus that of `second` on the same items, with a paired bootstrap interval."""
    ones = np.ones(len(first))
    return ratio_difference(np.asarray(first, float), np.asarray(second, float), ones, samples)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items; the difference is first minus second. `p_holm` is adjusted over a whole family."""

    test: McNemar
    p_holm: float
    difference: Estimate
    mde: float


def compare_all(pairs: Sequence[tuple[Sequence[bool], Sequence[bool]]], samples: int) -> list[Comparison]:
    """A family of paired comparisons of verdicts."""
    tests = [mcnemar_exact(first, second) for first, second in pairs]
    adjusted = holm([t.p for t in tests])
    return [
        Comparison(t, p, accuracy_difference(first, second, samples), detectable_difference(t, len(first)))
        for t, p, (first, second) in zip(tests, adjusted, pairs, strict=True)
    ]


def _bootstrap(columns, statistic, samples: int) -> Estimate:
    data = tuple(np.asarray(c, dtype=float) for c in columns)
    result = bootstrap(
        data, statistic, paired=True, vectorized=True, n_resamples=samples, confidence_level=1 - LEVEL,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Estimate(float(statistic(*data)), float(low), float(high))
