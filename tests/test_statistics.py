"""Intervals and paired tests: against known values, against simulation, and where they could claim too much."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student_t
from statsmodels.stats.multitest import multipletests

from primekd.assessment.statistics import (
    McNemar,
    accuracy,
    accuracy_difference,
    compare_all,
    detectable_difference,
    holm,
    mcnemar_exact,
    over_seeds,
    ratio,
    ratio_difference,
)

# Accuracies.


def test_the_wilson_interval_has_its_known_value():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    found = accuracy([True] * 81 + [False] * 182)
    assert found.value == pytest.approx(81 / 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert accuracy([False] * 10).low == 0 and accuracy([False] * 10).high > 0.2


@pytest.mark.parametrize("n", [1, 2, 8, 128, 1319])
def test_the_wilson_interval_ends_at_none_and_at_all(n):
    """Without a right answer the interval is [0, z^2 / (n + z^2)], and with all of them its mirror image."""
    z2 = norm.isf(0.025) ** 2
    none, every = accuracy([False] * n), accuracy([True] * n)
    assert (none.value, none.low, every.value, every.high) == (0, 0, 1, 1)
    assert none.high == pytest.approx(z2 / (n + z2)) and every.low == pytest.approx(n / (n + z2))


@pytest.mark.parametrize("only_first, only_second", [(0, 0), (1, 0), (5, 5), (10, 2), (0, 9), (30, 12)])
def test_mcnemar_is_the_exact_binomial_test_on_the_discordant_pairs(only_first, only_second):
    first = [True] * only_first + [False] * only_second + [True] * 4 + [False] * 3
    second = [False] * only_first + [True] * only_second + [True] * 4 + [False] * 3
    found = mcnemar_exact(first, second)
    discordant = only_first + only_second
    expected = binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(second, first).p == pytest.approx(found.p)


def test_holm_multiplies_by_the_number_of_tests_that_are_left():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    p = [0.2, 0.001, 0.04, 0.04]
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert holm([]) == []


def test_holm_keeps_the_order_given_and_never_sinks_below_a_smaller_p():
    p = [0.012, 0.5, 0.011, 0.0001, 0.012]
    adjusted = holm(p)
    assert adjusted == pytest.approx([0.044, 0.5, 0.044, 0.0005, 0.044])
    for other in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert holm([p[i] for i in other]) == pytest.approx([adjusted[i] for i in other])
    assert max(holm([0.9, 0.9, 0.9])) == 1


def test_a_mean_a_token_weighs_items_by_their_tokens():
    found = ratio([10.0, 1.0], [1, 10], samples=200)
    assert found.value == pytest.approx(1.0)
    assert 0.1 <= found.low <= found.value <= found.high <= 10


def test_a_paired_difference_of_equal_models_is_zero_with_no_width():
    values = list(np.random.default_rng(0).normal(size=20))
    found = ratio_difference(values, values, [3] * 20, samples=200)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    # Shifted by a constant a token, pairing leaves nothing to chance.
    shifted = ratio_difference([v + 6 for v in values], values, [3] * 20, samples=200)
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((2, 2, 2))


def test_a_bootstrap_interval_is_the_same_every_time_and_covers_a_normal_one():
    values = np.random.default_rng(1).normal(5, 2, size=400)
    first, second = (ratio(values, np.ones(400), samples=2000) for _ in range(2))
    assert first == second
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_an_accuracy_difference_is_first_minus_second():
    found = accuracy_difference([True] * 8 + [False] * 2, [True] * 5 + [False] * 5, samples=500)
    assert found.value == pytest.approx(0.3) and found.low >= 0 and found.high <= 0.7


# A family of comparisons.


def verdicts(seed: int, share: float, n: int = 60) -> list[bool]:
    return list(np.random.default_rng(seed).random(n) < share)


def test_comparing_the_other_way_round_mirrors_every_number():
    pairs = [
        (verdicts(1, 0.6), verdicts(2, 0.3)),
        (verdicts(3, 0.5), verdicts(4, 0.5)),
        (verdicts(5, 1), verdicts(6, 0)),
    ]
    for one, other in zip(compare_all(pairs, 500), compare_all([p[::-1] for p in pairs], 500), strict=True):
        assert (one.test.only_first, one.test.only_second) == (other.test.only_second, other.test.only_first)
        assert (one.test.p, one.p_holm, one.mde) == pytest.approx((other.test.p, other.p_holm, other.mde))
        d, m = one.difference, other.difference
        assert (d.value, d.low, d.high) == pytest.approx((-m.value, -m.high, -m.low))


def test_a_family_is_adjusted_as_one_and_each_pair_stands_for_itself():
    pairs = [(verdicts(1, 0.6), verdicts(2, 0.3)), (verdicts(3, 0.5), verdicts(4, 0.5))]
    both = compare_all(pairs, 200)
    assert [c.p_holm for c in both] == pytest.approx(holm([c.test.p for c in both]))
    for pair, found in zip(pairs, both, strict=True):
        (alone,) = compare_all([pair], 200)
        assert (alone.test, alone.difference, alone.mde) == (found.test, found.difference, found.mde)
        assert alone.p_holm == pytest.approx(alone.test.p) and found.p_holm >= found.test.p
    assert compare_all([], 200) == []


def test_a_model_differs_in_nothing_from_itself():
    same = verdicts(1, 0.5)
    (found,) = compare_all([(same, same)], 200)
    assert (found.test.p, found.p_holm) == (1, 1)
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert found.mde > 0, "that nothing was seen does not mean that everything would have been"


# What could have been seen.


def power(difference: float, discordant: float, n: int, exact: bool) -> float:
    """Share of 40,000 simulated studies in which McNemar's test, two-sided at 5 %, finds the difference."""
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    first, second, _ = np.random.default_rng(3).multinomial(n, shares, size=40_000).T
    if exact:
        return float((2 * binom.cdf(np.minimum(first, second), first + second, 0.5) < 0.05).mean())
    return float((np.abs(first - second) > norm.isf(0.025) * np.sqrt(first + second)).mean())


@pytest.mark.parametrize(
    "n, only_first, only_second", [(128, 39, 0), (128, 60, 60), (300, 40, 50), (1319, 40, 60), (1319, 250, 150)]
)
def test_the_detectable_difference_is_found_in_four_of_five_simulated_studies(n, only_first, only_second):
    """Within 2 points of 80 % for the normal approximation; the exact test, which has less power, within 5 below."""
    found = detectable_difference(McNemar(only_first, only_second, 1.0), n)
    discordant = (only_first + only_second) / n
    assert power(found, discordant, n, exact=False) == pytest.approx(0.80, abs=0.02)
    assert 0.75 < power(found, discordant, n, exact=True) < 0.82
    # A difference of two thirds of it would be missed more often than not.
    assert power(found * 2 / 3, discordant, n, exact=False) < 0.55


@pytest.mark.parametrize("n, discordant", [(50, 0), (50, 3), (128, 1), (128, 5), (1319, 0), (1319, 4)])
def test_where_models_hardly_differed_no_difference_is_promised_that_needs_more_discordant_items(n, discordant):
    """A true difference of d needs a share of d discordant items: with fewer it cannot be, let alone be found."""
    found = detectable_difference(McNemar(discordant, 0, 1.0), n)
    assert found > discordant / n
    # All of them on one side; so few are counted, not measured, and the exact test is the one that is run.
    assert 0.72 < power(found, found, n, exact=True) < 0.84


def test_more_items_show_smaller_differences_and_more_discordant_ones_hide_them():
    items = [20, 40, 80, 160, 320, 640, 1319, 5000]
    for share in (0, 0.05, 0.2, 0.45):
        found = [detectable_difference(McNemar(round(share * n), round(share * n), 1.0), n) for n in items]
        assert all(a > b for a, b in zip(found, found[1:], strict=False)), (share, found)
    counts = [detectable_difference(McNemar(10, 10, 1.0), n) for n in items]
    assert all(a > b for a, b in zip(counts, counts[1:], strict=False))
    hidden = [detectable_difference(McNemar(half, half, 1.0), 400) for half in (0, 20, 50, 100, 200)]
    assert hidden == sorted(hidden) and hidden[1] < hidden[-1]
    split = [detectable_difference(McNemar(*both, 1.0), 128) for both in ((39, 0), (0, 39), (20, 19))]
    assert split[0] == split[1] == split[2]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_two_or_three_items_show_nothing(n):
    assert detectable_difference(McNemar(0, 0, 1.0), n) == detectable_difference(McNemar(n, 0, 1.0), n) == 1


# Several seeds.


def test_clustered_errors_of_a_small_table_are_those_computed_by_hand():
    """Residuals from the mean 0.5, summed a cluster, squared, over (items x seeds)^2, times G / (G - 1)."""
    table = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 0], [0, 1]], float)  # items' sums: 1 0 0 -1 0 0; seeds': 0 0
    found = over_seeds(table)
    by_item, by_cell = 6 / 5 * 2 / 144, 12 / 11 * 12 * 0.25 / 144
    assert found.item_se == pytest.approx(math.sqrt(by_item)) and found.seed_se == pytest.approx(0, abs=1e-12)
    assert by_item + 0 < by_cell  # so that the two-way variance is below zero, and the one-way one holds
    half = student_t.ppf(0.975, 1) * math.sqrt(by_item)
    e = found.estimate
    assert (e.value, e.low, e.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert found.seed_sd == 0
    # The other way round: items alike, seeds apart. One of two seeds knows everything, and nothing can be said.
    apart = over_seeds(np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert (apart.item_se, apart.seed_se) == pytest.approx((0, 0.5))
    assert apart.estimate.high - apart.estimate.value == pytest.approx(student_t.ppf(0.975, 1) * 0.5)


def test_a_table_with_differing_seeds_and_items_adds_both_variances():
    table = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], float)
    r = table - table.mean()
    cells = 18 / 17 * (r**2).sum() / 18**2
    by_item, by_seed = (groups / (groups - 1) * (r.sum(axis) ** 2).sum() / 18**2 for groups, axis in ((6, 1), (3, 0)))
    found = over_seeds(table)
    assert (found.item_se**2, found.seed_se**2) == pytest.approx((by_item, by_seed))
    error = math.sqrt(by_item + by_seed - cells)
    assert error > max(found.item_se, found.seed_se)
    half = student_t.ppf(0.975, 2) * error
    mean = table.mean()
    assert (found.estimate.low, found.estimate.high) == pytest.approx((mean - half, mean + half))
    assert found.p == pytest.approx(2 * student_t.sf(mean / error, 2))
    assert found.seed_sd == pytest.approx(np.std([5 / 6, 4 / 6, 1 / 6], ddof=1))


@pytest.mark.parametrize(
    "items, seeds, item_sd, seed_sd",
    [(60, 2, 0.3, 0.1), (60, 3, 0.3, 0.1), (60, 5, 0.3, 0.1), (60, 5, 0.0, 0.2), (60, 5, 0.3, 0.0), (20, 8, 0.2, 0.1)],
)
def test_intervals_over_seeds_cover_the_truth_and_claim_nothing_of_nothing_too_often(items, seeds, item_sd, seed_sd):
    """In 250 simulated studies each, at least 92 % hold the truth (0.25); p below 5 % says the same as the interval."""
    rng, studies, covered, claimed = np.random.default_rng(5), 250, 0, 0
    for _ in range(studies):
        noise = rng.normal(0, item_sd, (items, 1)) + rng.normal(0, seed_sd, (1, seeds))
        noise = noise + rng.normal(0, 0.3, (items, seeds))
        e = over_seeds(0.25 + noise).estimate
        covered += e.low <= 0.25 <= e.high
        claimed += over_seeds(noise).p < 0.05
    assert covered >= 0.92 * studies and claimed == studies - covered


def test_errors_of_items_alone_would_claim_too_much():
    """Why seeds are clusters: with five seeds that differ, an interval from items alone misses the truth often."""
    rng, missed = np.random.default_rng(6), 0
    for _ in range(100):
        found = over_seeds(rng.normal(0, 0.1, (1, 5)) + rng.normal(0, 0.3, (60, 5)))
        missed += abs(found.estimate.value) > 1.96 * found.item_se
    assert missed > 40


def test_two_seeds_claim_little():
    """Twenty points in 128 items, the same under both seeds, are no proof; with six seeds they are."""
    rng = np.random.default_rng(7)
    better = (rng.random((128, 6)) < 0.25).astype(float) - (rng.random((128, 6)) < 0.05)
    two, six = over_seeds(better[:, :2]), over_seeds(better)
    assert two.estimate.value > 0.15 and two.p > 0.05 and two.estimate.low < 0
    assert six.p < 0.01 and six.estimate.low > 0
    assert two.estimate.high - two.estimate.low > 3 * (six.estimate.high - six.estimate.low)


def test_seeds_without_any_variance():
    nothing = over_seeds(np.zeros((8, 3)))
    assert (nothing.estimate.value, nothing.estimate.low, nothing.estimate.high, nothing.p) == (0, 0, 0, 1)
    same = over_seeds(np.ones((8, 3)))
    assert (same.estimate.value, same.estimate.low, same.estimate.high, same.seed_sd) == (1, 1, 1, 0)
    # Seeds that are copies of each other leave the items' error, not none.
    copies = over_seeds(np.repeat(np.array([[1.0], [0.0], [0.0], [1.0], [1.0]]), 3, axis=1))
    assert copies.seed_sd == pytest.approx(0) and copies.seed_se == pytest.approx(0, abs=1e-12)
    assert copies.item_se > 0.2 and copies.estimate.high - copies.estimate.low > 1.5


@pytest.mark.parametrize("shape", [(1, 3), (8, 1), (1, 1)])
def test_one_item_or_one_seed_says_nothing_of_how_they_vary(shape):
    with pytest.raises(ValueError, match="two of each"):
        over_seeds(np.ones(shape))
