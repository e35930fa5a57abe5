"""What counts can show: intervals and paired tests, over items, templates and training seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, bootstrap, chi2, norm
from scipy.stats import t as student_t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

T = TypeVar("T")
LEVEL = 0.05
POWER = 0.8


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


UNKNOWN = (None, None, None)  # in place of an Estimate


class McNemar(NamedTuple):
    """Paired comparison of two models on the same items: how often only the first, or only the second, was right."""

    only_first: int
    only_second: int
    p: float


def accuracy(correct: Sequence[bool], items: Sequence[str] = ()) -> Estimate:
    """Share of correct answers with its Wilson interval, or clustered by `items` (answers,) that have several."""
    right, independent = sum(correct), len(correct)
    share = right / independent
    if 1 < (count := len(set(items))) < len(items):
        effect = mean_verdicts({"": np.asarray(correct, float)}, items)
        if effect.error > 0:
            return effect.estimate
        right, independent = share * count, count  # all items say the same: as if each had one answer
    low, high = proportion_confint(right, independent, alpha=LEVEL, method="wilson")
    # At 0 or all of them, rounding leaves bounds such as 9e-19.
    return Estimate(share, round(float(low), 12), round(float(high), 12))


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact McNemar test on paired verdicts, two-sided."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    table = [[int((a & b).sum()), only_a], [only_b, int((~a & ~b).sum())]]
    p = 1.0 if only_a + only_b == 0 else float(mcnemar(table, exact=True).pvalue)
    return McNemar(only_a, only_b, min(p, 1.0))


def sign_flips_exact(differences: Sequence[float]) -> McNemar:
    """Exact two-sided test that signs are drawn by chance (Fisher 1935, randomisation test), over all signs of the
    differences that are not 0: (items,) multiples of 0.5. McNemar's for +1 and -1, for sums of several verdicts too."""
    halves = np.rint(2 * np.asarray(differences)).astype(int)
    chance = np.ones(1)  # of each sum, from the least to the greatest
    for size in abs(halves[halves != 0]):
        either = np.zeros(2 * size + 1)
        either[[0, -1]] = 0.5
        chance = np.convolve(chance, either)
    sums = np.arange(len(chance)) - len(chance) // 2
    p = float(chance[abs(sums) >= abs(halves.sum())].sum())
    return McNemar(int((halves > 0).sum()), int((halves < 0).sum()), min(p, 1.0))


def detectable_difference(test: McNemar, items: int, level: float) -> float:
    """The smallest true difference in accuracy, as a share, that the exact test, two-sided at `level`, finds with
    POWER, with as many discordant items as were seen here, or as the difference needs; 1 where there is none."""
    seen = (test.only_first + test.only_second) / items
    discordant = np.arange(1, items + 1)  # how many there can be, and from how many on one side on the test rejects
    enough = binom.isf(level / 2, discordant, 0.5) + 1

    def missing_power(difference: float) -> float:
        share = max(seen, difference)  # a difference of 5 points needs 5 in 100 items on which only one is right
        one_side = (1 + difference / share) / 2
        rejected = binom.sf(enough - 1, discordant, one_side) + binom.cdf(discordant - enough, discordant, one_side)
        return float(binom.pmf(discordant, items, share) @ rejected) - POWER

    largest = 1 - 1e-9
    return float(brentq(missing_power, 1e-9, largest)) if missing_power(largest) > 0 else 1.0


Seeds = Mapping[str, np.ndarray]  # a training's seed -> (items,) verdicts, or sums over an item's tokens


@dataclass(frozen=True)
class Effect:
    """A mean, or a difference of two, with its 95 % interval and the p of its being 0. `group_se`, `seed_se`: standard
    errors from other items (or templates) alone, and other trainings alone. `error`, `df`: of interval and p."""

    estimate: Estimate
    seeds: int
    group_se: float
    seed_se: float
    error: float
    df: int

    @property
    def seed_sd(self) -> float:
        """Standard deviation of the seeds' own means (or differences)."""
        return self.seed_se * np.sqrt(self.seeds)

    @property
    def p(self) -> float:
        value = abs(self.estimate.value)
        return float(2 * student_t.sf(value / self.error, self.df)) if self.error > 0 else float(value == 0)

    def detectable(self, level: float, draws: float, step: float = 1.0, most: float = 1.0) -> float:
        """The smallest true difference, as a share, that this t test, two-sided at `level`, finds with POWER; `most`
        where there is none. The error is the one seen, or the least that a difference d over so many independent
        `draws` comes with: its variance is d (step - d) / draws, where all that differ do so one way, by a `step`."""
        # The power of a t test, over 4,000 equally probable values of the estimated error: scipy's noncentral t fails
        # at the far limits that one or two degrees of freedom need.
        spread = np.sqrt(chi2.ppf((np.arange(4000) + 0.5) / 4000, self.df) / self.df)
        limit = student_t.isf(level / 2, self.df) * spread

        def missing_power(shift: float) -> float:
            return float((norm.sf(limit - shift) + norm.sf(limit + shift)).mean()) - POWER

        errors = float(brentq(missing_power, 0, limit.max() + 5))  # as many of them as the difference has to be
        return min(most, max(errors * self.error, step * errors**2 / (draws + errors**2)))


def places_of(groups: Sequence[str]) -> tuple[np.ndarray, int]:
    """Each item's group as a number, and how many there are. Items of one group alone stand for themselves."""
    names, places = np.unique(np.asarray(groups), return_inverse=True)
    return (places, len(names)) if len(names) > 1 else (np.arange(len(groups)), len(groups))


def clustered(first: Seeds, second: Seeds, counts: Sequence[float], groups: Sequence[str]) -> Effect:
    """Mean a count of `first`, over all its seeds, minus that of `second`, with errors clustered by group and seed.
    Cameron, Gelbach and Miller 2011: the variance is that between groups, plus that between seeds, less that between
    the cells of both. Interval and p use Student's t with as many degrees of freedom as the fewer of groups and seeds
    have, less one, so that eight templates, or two seeds, claim little. Trainings of one seed are paired. Where a side
    has a single training nothing is known of how seeds vary: errors are clustered by group alone. `first`, `second`:
    sums an item; `second` may be empty, then it is the mean of `first` itself. `counts`: (items,) tokens an item, or
    ones. `groups`: what each item shares with others, such as its template. Raises ValueError if there are fewer than
    two items, so that nothing says how they vary."""
    counts = np.asarray(counts, float)
    if len(counts) < 2:
        raise ValueError(f"{len(counts)} item does not say how items vary: two do")
    value, errors_I_S = _errors(first, second, counts)
    places, group_count = places_of(groups)
    cells_G_S = np.zeros((group_count, errors_I_S.shape[1]))
    np.add.at(cells_G_S, places, errors_I_S)
    seeds = min(len(side) for side in (first, second) if side)
    by_group, by_seed = _variance(cells_G_S.sum(1), group_count), 0.0
    variance, df = by_group, group_count - 1
    if seeds > 1:
        by_seed = _variance(cells_G_S.sum(0), seeds)
        # In small tables the two-way variance can fall below one of the one-way ones; the larger one holds.
        variance = max(by_group, by_seed, by_group + by_seed - _variance(cells_G_S, cells_G_S.size))
        df = min(group_count, seeds) - 1
    error = float(np.sqrt(variance))
    half = float(student_t.ppf(1 - LEVEL / 2, df)) * error
    estimate = Estimate(value, value - half, value + half)
    return Effect(estimate, seeds, float(np.sqrt(by_group)), float(np.sqrt(by_seed)), error, df)


def _errors(first: Seeds, second: Seeds, counts: np.ndarray) -> tuple[float, np.ndarray]:
    """The estimate, and what every item (row) under every seed (column) adds to its error."""
    value, errors = 0.0, {}
    for sign, side in ((1, first), (-1, second)):
        mean = float(np.mean([values.sum() for values in side.values()]) / counts.sum()) if side else 0.0
        value += sign * mean
        for seed, values in side.items():
            own = sign * (values - mean * counts) / (counts.sum() * len(side))
            errors[seed] = errors.get(seed, 0) + own
    return value, np.stack(list(errors.values()), axis=1)


def _variance(sums: np.ndarray, clusters: int) -> float:
    return float(clusters / (clusters - 1) * (sums**2).sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given: the smallest of n times n, the next times n - 1, and so on.
    statsmodels' multipletests gives the same, and collects garbage at every call, which takes half a second here."""
    p, order = np.asarray(p_values, float), np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return stepped[np.argsort(order, kind="stable")].tolist()


def holm_of(tests: Mapping[T, float]) -> dict[T, float]:
    return dict(zip(tests, holm(list(tests.values())), strict=True))


def holm_in_families(tests: Mapping[T, float], planned: Mapping[tuple[str, str], str]) -> dict[T, float]:
    """`tests`: (pair, what is compared) -> p, adjusted over the tests of the pair's family alone."""
    adjusted: dict[T, float] = {}
    for family in dict.fromkeys(planned.values()):
        adjusted |= holm_of({test: p for test, p in tests.items() if planned[test[0]] == family})
    return adjusted


def ratio(totals: Sequence[float], counts: Sequence[float], samples: int) -> Estimate:
    """Sum of totals over sum of counts (a mean a token), with a bootstrap interval over items."""

    def statistic(t, c, axis=-1):
        return t.sum(axis) / c.sum(axis)

    data = np.asarray(totals, float), np.asarray(counts, float)
    result = bootstrap(
        data, statistic, paired=True, vectorized=True, n_resamples=samples, confidence_level=1 - LEVEL,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Estimate(float(statistic(*data)), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """First minus second. `test`: None of several trainings. `clusters`: independent draws, at most `items`."""

    test: McNemar | None
    effect: Effect
    items: int
    clusters: int

    @property
    def grouped(self) -> bool:
        return self.clusters < self.items

    @property
    def p(self) -> float:
        """McNemar's; where items share templates the larger of that and the clustered t's, which several seeds have.
        Where all items differ alike, no error is known: then the test of signs, over as many as are independent."""
        alike = not self.effect.error and self.effect.estimate.value != 0
        own = 2 * 0.5**self.clusters if alike else self.effect.p
        if self.test is None:
            return own
        return max(self.test.p, own) if self.grouped else self.test.p

    def detectable(self, level: float) -> float:
        """The smallest true difference that the test behind `p` finds with POWER; of two tests the larger one."""
        exact = detectable_difference(self.test, self.items, level) if self.test else 0.0
        if self.test and not self.grouped:
            return exact
        # Where no error was seen nothing says that items of one group differ.
        draws = self.items if self.effect.error else self.clusters
        found = max(exact, self.effect.detectable(level, draws))
        # So large that all would often differ alike: that shows no error, and `p` is that of signs.
        return 1.0 if found**draws > 1 - POWER and 2 * 0.5**self.clusters >= level else found


def compare_verdicts(first: Seeds, second: Seeds, groups: Sequence[str]) -> Comparison:
    """Two models' verdicts on the same items, over all their trainings. Raises ValueError as `clustered` does."""
    effect = clustered(first, second, np.ones(len(groups)), groups)
    one_each = len(first) == len(second) == 1
    test = mcnemar_exact(*(next(iter(side.values())) for side in (first, second))) if one_each else None
    clusters = places_of(groups)[1]
    return Comparison(test, _as_share(effect, clusters, -1.0), len(groups), clusters)


def compare_sums(differences: Seeds, groups: Sequence[str], most: float) -> Comparison:
    """Differences of sums of verdicts, at most `most` an item, tested by signs. Raises ValueError as `clustered`."""
    clusters = places_of(groups)[1]
    effect = _as_share(clustered(differences, {}, np.ones(len(groups)), groups), clusters, -most, most)
    test = sign_flips_exact(next(iter(differences.values()))) if len(differences) == 1 else None
    return Comparison(test, effect, len(groups), clusters)


def _as_share(effect: Effect, clusters: int, lowest: float, highest: float = 1.0) -> Effect:
    """The same with an interval that ends where shares do: t with few degrees of freedom reaches beyond. Where all
    items say the same, so that none says how they vary, it goes as far as Wilson's of none of so many."""
    e = effect.estimate
    if not effect.error:
        far = highest * float(proportion_confint(0, clusters, alpha=LEVEL, method="wilson")[1])
        e = Estimate(e.value, e.value - far, e.value + far)
    return replace(effect, estimate=Estimate(e.value, max(e.low, lowest), min(e.high, highest)))


def mean_verdicts(seeds: Seeds, groups: Sequence[str]) -> Effect:
    """Mean accuracy over several trainings. Raises ValueError as `clustered` does."""
    return _as_share(clustered(seeds, {}, np.ones(len(groups)), groups), places_of(groups)[1], 0.0)
