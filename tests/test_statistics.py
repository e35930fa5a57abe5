"""Intervals and paired tests: against known values, against simulation, and where they could claim too much."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student_t
from statsmodels.regression.linear_model import WLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from primekd.statistics.inference import (
    Effect,
    Estimate,
    McNemar,
    accuracy,
    clustered,
    compare_verdicts,
    detectable_difference,
    holm,
    mcnemar_exact,
    mean_verdicts,
    ratio,
)
from primekd.tasks.clusters import cluster_of

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
    pairs = ratio([1.0, 4.0, 60.0], [1, 4, 60], samples=200)  # totals are drawn with their own counts
    assert (pairs.low, pairs.value, pairs.high) == (1, 1, 1)


def test_a_bootstrap_interval_is_the_same_every_time_and_covers_a_normal_one():
    values = np.random.default_rng(1).normal(5, 2, size=400)
    first, second = (ratio(values, np.ones(400), samples=2000) for _ in range(2))
    assert first == second
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


# Two models on the same items.


def one(values) -> dict[str, np.ndarray]:
    """A single training's values."""
    return {"": np.asarray(values, float)}


def alone(n: int) -> list[str]:
    """Items that share nothing."""
    return [f"q{i}" for i in range(n)]


def bounds(effect: Effect) -> tuple[float, float, float]:
    return effect.estimate.value, effect.estimate.low, effect.estimate.high


def test_a_paired_difference_of_equal_models_is_zero_with_no_width():
    values = np.random.default_rng(0).normal(size=20)
    found = clustered(one(values), one(values), [3] * 20, alone(20))
    assert (*bounds(found), found.p) == (0, 0, 0, 1)
    # Shifted by a constant a token, pairing leaves nothing to chance.
    assert bounds(clustered(one(values + 6), one(values), [3] * 20, alone(20))) == pytest.approx((2, 2, 2))


def test_an_accuracy_difference_is_first_minus_second():
    found = compare_verdicts(one([1] * 8 + [0] * 2), one([1] * 5 + [0] * 5), alone(10)).effect
    assert found.estimate.value == pytest.approx(0.3) and found.estimate.low < 0.01 and found.estimate.high <= 0.7


@pytest.mark.parametrize("templates", [2, 8, 40])
def test_clustered_errors_are_those_of_weighted_least_squares(templates):
    """A ratio of sums is a mean of the ratios, weighted by the counts; statsmodels clusters its errors."""
    rng = np.random.default_rng(templates)
    counts, groups = rng.integers(20, 60, 80).astype(float), [f"t{i % templates}" for i in range(80)]
    first, second = rng.gamma(2, counts), rng.gamma(2, counts)
    found = clustered(one(first), one(second), counts, groups)
    model = WLS((first - second) / counts, np.ones(80), weights=counts)
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": [i % templates for i in range(80)]}, use_t=True)
    assert found.error == pytest.approx(float(fit.bse[0])) and found.df == templates - 1
    assert found.p == pytest.approx(float(fit.pvalues[0]))
    assert bounds(found) == pytest.approx((float(fit.params[0]), *map(float, fit.conf_int()[0])))


def test_items_of_one_template_count_less_than_items_that_share_nothing():
    """Twenty of 64 items, all of two templates: by items nobody would doubt it, by templates there are two of eight."""
    better = [float(i % 8 < 2 or i == 3) for i in range(64)]
    groups = [f"t{i % 8}" for i in range(64)]
    by_item, by_template = (compare_verdicts(one(better), one([0] * 64), g) for g in (alone(64), groups))
    assert by_item.p < 1e-4 and by_item.p == by_item.test.p
    assert by_template.p > 0.1 and by_template.p == by_template.effect.p
    assert bounds(by_template.effect)[1] < 0 < bounds(by_item.effect)[1]
    assert by_template.detectable(0.05) > by_item.detectable(0.05)
    assert (by_item.grouped, by_template.grouped, by_template.clusters) == (False, True, 8)


def test_where_templates_agree_by_chance_the_exact_test_still_holds():
    """Each of four templates has one item more right: no spread at all, and yet four against none is p = 0.125."""
    found = compare_verdicts(one([1, 0] * 4), one([0] * 8), [f"t{i // 2}" for i in range(8)])
    assert found.effect.p == 0 and found.p == found.test.p == 0.125
    # One template alone says nothing of templates, so that its items stand for themselves.
    same = compare_verdicts(one([1, 0] * 4), one([0] * 8), ["t"] * 8)
    apart = compare_verdicts(one([1] * 8), one([0] * 8), [f"t{n % 4}" for n in range(8)])
    assert apart.p == 2 * 0.5**4 and apart.test.p == 2 * 0.5**8  # eight items of four templates, all of them alike
    both = {"": np.ones(8), "1": np.ones(8)}
    assert compare_verdicts(both, {"": np.zeros(8), "1": np.zeros(8)}, [f"t{n % 4}" for n in range(8)]).p == 2 * 0.5**4
    assert not same.grouped and same.effect == compare_verdicts(one([1, 0] * 4), one([0] * 8), alone(8)).effect


def test_templates_that_differ_are_claimed_by_items_too_often_and_by_clusters_as_seldom_as_is_said():
    rng, claimed = np.random.default_rng(4), {"items": 0, "templates": 0}
    groups = [f"t{i % 8}" for i in range(128)]
    for _ in range(400):
        difference = rng.normal(0, 0.05, 8)[np.arange(128) % 8] + rng.normal(0, 0.1, 128)
        for name, g in (("items", alone(128)), ("templates", groups)):
            claimed[name] += clustered(one(difference), {}, np.ones(128), g).p < 0.05
    assert claimed["items"] > 0.25 * 400 and claimed["templates"] < 0.08 * 400


@pytest.mark.parametrize(
    "item_id, template",
    [
        ("gsm-symbolic-16-135582963912256", "gsm-symbolic-16"),
        ("7-49", "7"),
        ("test-12", "test-12"),
        ("q1", "q1"),
        ("7", "7"),
    ],
)
def test_an_items_template_stands_in_its_id(item_id, template):
    assert cluster_of(item_id) == template


def verdicts(seed: int, share: float, n: int = 60) -> dict[str, np.ndarray]:
    return one(np.random.default_rng(seed).random(n) < share)


@pytest.mark.parametrize("groups", [alone(60), [f"t{i % 6}" for i in range(60)]], ids=["items", "templates"])
def test_comparing_the_other_way_round_mirrors_every_number(groups):
    for pair in (verdicts(1, 0.6), verdicts(2, 0.3)), (verdicts(3, 0.5), verdicts(4, 0.5)):
        one_way, other = compare_verdicts(*pair, groups), compare_verdicts(*pair[::-1], groups)
        assert (one_way.test.only_first, one_way.test.only_second) == (other.test.only_second, other.test.only_first)
        assert (one_way.p, one_way.detectable(0.01)) == pytest.approx((other.p, other.detectable(0.01)))
        value, low, high = bounds(other.effect)
        assert bounds(one_way.effect) == pytest.approx((-value, -high, -low))


def test_a_model_differs_in_nothing_from_itself():
    same = verdicts(1, 0.5)
    found = compare_verdicts(same, same, alone(60))
    none_of_60 = proportion_confint(0, 60, method="wilson")[1]  # that no item differs does not mean that none would
    assert (found.p, *bounds(found.effect)) == (1, 0, -none_of_60, none_of_60)
    assert found.detectable(0.05) > 0, "that nothing was seen does not mean that everything would have been"


# What could have been seen.


def power(difference: float, discordant: float, n: int, level: float) -> float:
    """Share of 40,000 simulated studies in which McNemar's exact test, two-sided at `level`, finds the difference."""
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    first, second, _ = np.random.default_rng(3).multinomial(n, np.clip(shares, 0, 1), size=40_000).T
    return float((2 * binom.cdf(np.minimum(first, second), first + second, 0.5) < level).mean())


@pytest.mark.parametrize("level", [0.05, 0.05 / 12, 0.05 / 36])
@pytest.mark.parametrize(
    "n, only_first, only_second", [(128, 1, 0), (128, 39, 0), (128, 60, 60), (300, 40, 50), (1319, 40, 60)]
)
def test_the_detectable_difference_is_found_by_this_test_in_four_of_five_simulated_studies(
    n, only_first, only_second, level
):
    found = detectable_difference(McNemar(only_first, only_second, 1.0), n, level)
    discordant = max((only_first + only_second) / n, found)
    assert power(found, discordant, n, level) == pytest.approx(0.80, abs=0.01)
    # A difference of two thirds of it would be missed more often than not.
    assert power(found * 2 / 3, max((only_first + only_second) / n, found * 2 / 3), n, level) < 0.55


def test_what_was_promised_before_the_threshold_was_counted_is_missed_mostly():
    """12.1 points of 31 in 128 discordant items were printed beside claims at 0.05 / 12: two of five, not four."""
    assert power(0.121, 31 / 128, 128, 0.05 / 12) < 0.5
    assert detectable_difference(McNemar(29, 2, 1.0), 128, 0.05 / 12) > 0.15


def test_where_models_hardly_differed_no_difference_is_promised_that_needs_more_discordant_items():
    """A true difference of d needs a share of d discordant items: with fewer it cannot be, let alone be found."""
    for n, discordant in ((50, 0), (50, 3), (128, 1), (128, 5), (1319, 0), (1319, 4)):
        assert detectable_difference(McNemar(discordant, 0, 1.0), n, 0.05) > discordant / n


def test_more_items_show_smaller_differences_and_more_discordant_ones_hide_them():
    items = [20, 40, 80, 160, 320, 640, 1319]
    for share in (0, 0.05, 0.2, 0.45):
        found = [detectable_difference(McNemar(round(share * n), round(share * n), 1.0), n, 0.05) for n in items]
        assert all(a > b for a, b in zip(found, found[1:], strict=False)), (share, found)
    hidden = [detectable_difference(McNemar(half, half, 1.0), 400, 0.05) for half in (0, 20, 50, 100, 200)]
    assert hidden == sorted(hidden) and hidden[1] < hidden[-1]
    split = [detectable_difference(McNemar(*both, 1.0), 128, 0.05) for both in ((39, 0), (0, 39), (20, 19))]
    assert split[0] == split[1] == split[2]
    stricter = [detectable_difference(McNemar(20, 19, 1.0), 128, 0.05 / tests) for tests in (1, 12, 36)]
    assert stricter[0] < stricter[1] < stricter[2]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_two_or_three_items_show_nothing(n):
    tests = McNemar(0, 0, 1.0), McNemar(n, 0, 1.0)
    assert [detectable_difference(test, n, 0.05) for test in tests] == [1, 1]


@pytest.mark.parametrize("df, level", [(1, 0.05), (2, 0.05 / 36), (7, 0.05 / 36), (127, 0.05 / 12)])
def test_a_t_test_finds_the_detectable_effect_in_four_of_five_simulated_studies(df, level):
    found = Effect(Estimate(0, 0, 0), 1, 0.02, 0, 0.02, df).detectable(level, math.inf)
    rng = np.random.default_rng(df)
    t = (rng.normal(found, 0.02, 40_000)) / (0.02 * np.sqrt(rng.chisquare(df, 40_000) / df))
    assert float((2 * student_t.sf(np.abs(t), df) < level).mean()) == pytest.approx(0.80, abs=0.01)


def test_a_difference_is_found_beside_the_error_that_it_comes_with():
    """Of 192 items of 12 templates two differ: the error seen is tiny, that of a difference large enough is not."""
    second, level = np.zeros(192), 0.05 / 45
    first = second.copy()
    first[[0, 50]] = 1
    found = compare_verdicts({"": first}, {"": second}, [f"t{n // 16}" for n in range(192)]).detectable(level)
    counts = np.random.default_rng(0).binomial(16, found, (20_000, 12))
    t = counts.mean(1) / (counts.std(1, ddof=1) / np.sqrt(12))
    assert 0.75 < float((2 * student_t.sf(t, 11) < level).mean()) < 0.9 and found > 0.09


def test_what_few_groups_could_show_is_not_promised_where_all_would_differ_alike():
    """Of eight groups that say the same the p of signs is 0.008 at best: no difference is found at 0.05 / 36."""
    none, groups = np.zeros(32), [f"t{n // 4}" for n in range(32)]
    found = compare_verdicts({"": none}, {"": none}, groups)
    assert compare_verdicts({"": none + 1}, {"": none}, groups).p == pytest.approx(2 * 0.5**8)
    assert found.detectable(0.05 / 36) == 1 and found.detectable(0.05) < 1
    halves = Effect(Estimate(0, 0, 0), 1, 0.0, 0, 1e-9, 31)  # of items that differ by a half or not at all
    assert halves.detectable(0.05, 32, step=0.5) == pytest.approx(halves.detectable(0.05, 32) / 2)


# Several seeds.


def over_seeds(table_I_S: np.ndarray) -> Effect:
    """A table of items that share nothing, a column a seed."""
    seeds = {str(n): column for n, column in enumerate(np.asarray(table_I_S, float).T)}
    return clustered(seeds, {}, np.ones(len(table_I_S)), alone(len(table_I_S)))


def test_clustered_errors_of_a_small_table_are_those_computed_by_hand():
    """Residuals from the mean 0.5, summed a cluster, squared, over (items x seeds)^2, times G / (G - 1)."""
    table = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 0], [0, 1]], float)  # items' sums: 1 0 0 -1 0 0; seeds': 0 0
    found = over_seeds(table)
    by_item, by_cell = 6 / 5 * 2 / 144, 12 / 11 * 12 * 0.25 / 144
    assert found.group_se == pytest.approx(math.sqrt(by_item)) and found.seed_se == pytest.approx(0, abs=1e-12)
    assert by_item + 0 < by_cell  # so that the two-way variance is below zero, and the one-way one holds
    half = student_t.ppf(0.975, 1) * math.sqrt(by_item)
    e = found.estimate
    assert (e.value, e.low, e.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert found.seed_sd == 0
    # The other way round: items alike, seeds apart. One of two seeds knows everything, and nothing can be said.
    apart = over_seeds(np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert (apart.group_se, apart.seed_se) == pytest.approx((0, 0.5))
    assert apart.estimate.high - apart.estimate.value == pytest.approx(student_t.ppf(0.975, 1) * 0.5)


def test_a_table_with_differing_seeds_and_items_adds_both_variances():
    table = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], float)
    r = table - table.mean()
    cells = 18 / 17 * (r**2).sum() / 18**2
    by_item, by_seed = (groups / (groups - 1) * (r.sum(axis) ** 2).sum() / 18**2 for groups, axis in ((6, 1), (3, 0)))
    found = over_seeds(table)
    assert (found.group_se**2, found.seed_se**2) == pytest.approx((by_item, by_seed))
    error = math.sqrt(by_item + by_seed - cells)
    assert error > max(found.group_se, found.seed_se)
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
        missed += abs(found.estimate.value) > 1.96 * found.group_se
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
    assert copies.group_se > 0.2 and copies.estimate.high - copies.estimate.low > 1.5


def test_one_item_says_nothing_of_how_items_vary():
    with pytest.raises(ValueError, match="1 item does not say"):
        over_seeds(np.ones((1, 3)))


def test_one_seed_leaves_the_error_of_items_alone():
    table = np.array([[1.0], [0.0], [0.0], [1.0]])
    found = over_seeds(table)
    assert (found.seeds, found.seed_se, found.df) == (1, 0, 3)
    assert found.error == found.group_se == pytest.approx(np.std(table, ddof=1) / 2)


def test_templates_and_seeds_are_both_clusters_and_the_fewer_of_them_count():
    rng = np.random.default_rng(8)
    seeds = {str(n): rng.random(40) for n in range(6)}
    found = clustered(seeds, {}, np.ones(40), [f"t{i % 4}" for i in range(40)])
    assert (found.seeds, found.df) == (6, 3)
    assert clustered(seeds, {}, np.ones(40), alone(40)).df == 5


def test_all_seeds_of_both_sides_are_used_and_those_of_one_name_are_paired():
    rng = np.random.default_rng(9)
    base, noise = rng.random(40), {seed: rng.normal(0, 0.2) for seed in ("", "1", "2", "3")}
    first = {seed: base + 0.1 + noise[seed] for seed in ("", "1", "2")}
    paired = clustered(first, {seed: base + noise[seed] for seed in ("", "1", "2")}, np.ones(40), alone(40))
    assert paired.estimate.value == pytest.approx(0.1) and paired.seed_se == pytest.approx(0, abs=1e-12)
    second = {"": base, "1": base, "3": base + noise["3"]}
    other = clustered(first, second, np.ones(40), alone(40))
    shift = (noise[""] + noise["1"] + noise["2"] - noise["3"]) / 3
    assert other.estimate.value == pytest.approx(0.1 + shift) and other.seed_se > 0.02
    # A side with one training says nothing of seeds; the other side's seeds are averaged all the same.
    single = clustered(first, {"": base}, np.ones(40), alone(40))
    assert (single.seeds, single.df) == (1, 39)
    assert single.estimate.value == pytest.approx(0.1 + (noise[""] + noise["1"] + noise["2"]) / 3)


def test_a_mean_of_verdicts_ends_where_shares_do():
    found = mean_verdicts({"": np.array([1.0, 1, 1, 0]), "1": np.array([1.0, 1, 0, 0])}, alone(4))
    assert 0 <= found.estimate.low < found.estimate.value < found.estimate.high <= 1
    none = np.zeros(200)
    nothing = compare_verdicts({"": none, "1": none}, {"": none, "1": none}, alone(200))
    single = compare_verdicts({"": none}, {"": none}, alone(200)).detectable(0.05)
    assert 0 < single < 0.06 < 0.5 < nothing.detectable(0.05) < 1, "with two seeds the t test has one degree of freedom"
    for share in (0.0, 1.0):
        alike = mean_verdicts({"": np.full(30, share), "1": np.full(30, share)}, alone(30)).estimate
        assert alike == pytest.approx((share, *proportion_confint(30 * share, 30, method="wilson")))
