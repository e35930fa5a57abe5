"""What counts can show: intervals and paired tests, all from statsmodels and scipy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.05


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
    return Estimate(sum(correct) / len(correct), float(low), float(high))


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact McNemar test on paired verdicts, two-sided."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    table = [[int((a & b).sum()), only_a], [only_b, int((~a & ~b).sum())]]
    p = 1.0 if only_a + only_b == 0 else float(mcnemar(table, exact=True).pvalue)
    return McNemar(only_a, only_b, min(p, 1.0))


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


def _bootstrap(columns, statistic, samples: int) -> Estimate:
    data = tuple(np.asarray(c, dtype=float) for c in columns)
    result = bootstrap(
        data, statistic, paired=True, vectorized=True, n_resamples=samples, confidence_level=1 - LEVEL,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Estimate(float(statistic(*data)), float(low), float(high))
