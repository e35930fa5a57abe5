"""Inside the students: attention as a difference from the control, and whether what is found in there goes along with
accuracy. Intervals are bootstrap percentiles over items, or over what these share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
from scipy.stats import rankdata

from primekd.config import CONTROL, load_arms, of_role, split_seed
from primekd.foundation.tables import Estimated, table_row
from primekd.statistics.calibration import drawn_weights, limits
from primekd.statistics.contrasts import by_seed
from primekd.statistics.inference import LEVEL, holm_of

ATTENTION, HEADS, PAIRS, EXPLAINED = "attention.csv", "heads.csv", "pairs.csv", "explained.csv"
SHOWN_HEADS = 10
EVERY = "all"  # layers
NO, PERHAPS, UNKNOWN = "no", "perhaps", "unknown"
BESIDE = ("treatment", "placebo", "positive-control")  # roles whose shifts are held against each other
BASELINE = "baseline"


@table_row
class AttentionRow:
    """A measure of the heads of one layer, or of all: means over prompts of control and model, their difference."""

    model: str
    layer: str
    measure: str
    control: float
    value: float
    difference: Estimated


@table_row
class HeadRow:
    """One of the heads whose maps lie furthest from the control's: total variation, differences of other measures."""

    model: str
    layer: int
    head: int
    total_variation: Estimated
    entropy: float
    first: float
    previous: float
    induction: float


@table_row
class PairRow:
    """Two students' maps of all heads (EVERY), or of one of those furthest apart: total variation, and cosine."""

    model: str
    reference: str
    layer: str
    head: str
    total_variation: Estimated
    cosine: float


@dataclass(frozen=True)
class ExplainedRow:
    """Whether a measure's shift from the control goes along with accuracy over `arms`, each the mean of its seeds:
    Spearman's rank correlation, its p over permutations of arms, Holm-adjusted over all measures. `primed`: the mean
    size of the shift in the primed arms, `placebo`, `shuffled` that in the controls; `apart`: that between a primed
    training and an unprimed one, `seeds`: that between two trainings of an arm, of distances the distance itself; None
    where there are none. A measure that shifts as much in a control, or that another seed moves as far as a priming,
    explains nothing. `explains`: NO, PERHAPS or, where it correlates and something that it has to be held against was
    not run, UNKNOWN."""

    measure: str
    arms: int
    rho: float
    p: float
    p_holm: float | None
    primed: float | None
    placebo: float | None
    shuffled: float | None
    apart: float | None
    seeds: float | None
    explains: str


DISTANCES = {"total_variation": lambda row: row.total_variation, "cosine": lambda row: 1 - row.cosine}


def mean_of(values_I_K: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(3, K): means over items, and the ends of their intervals."""
    drawn = weights @ values_I_K / weights.sum(1, keepdims=True)
    return np.stack([drawn[0], *limits(drawn[1:])])


def attention_rows(
    names: Sequence[str], measures: Sequence[str], values: np.ndarray, groups: Sequence[str]
) -> list[AttentionRow]:
    """values (I, 1 + students, layers, measures): means over heads, the control first."""
    weights, rows, layers = drawn_weights(groups), [], values.shape[2]
    with_all = np.concatenate([values.mean(2, keepdims=True), values], 2)
    labels = [EVERY, *map(str, range(layers))]
    control = with_all[:, 0].mean(0)  # (1 + layers, measures)
    for place, name in enumerate(names, 1):
        difference = (with_all[:, place] - with_all[:, 0]).reshape(len(values), -1)
        found = mean_of(difference, weights).reshape(3, layers + 1, len(measures))
        own = with_all[:, place].mean(0)
        rows += [
            AttentionRow(name, label, measure, float(control[n, m]), float(own[n, m]), *found[:, n, m].tolist())
            for n, label in enumerate(labels) for m, measure in enumerate(measures)
        ]  # fmt: skip
    return rows


def head_rows(
    names: Sequence[str], measures: Sequence[str], values: np.ndarray, groups: Sequence[str]
) -> list[HeadRow]:
    """values (I, 1 + students, layers, heads, measures) -> the SHOWN_HEADS of each student that moved most."""
    weights, rows, at = drawn_weights(groups), [], {measure: n for n, measure in enumerate(measures)}
    means = values.mean(0)
    shift = means - means[:1]
    for place, name in enumerate(names, 1):
        for layer, head in _furthest(means[place, ..., at["total_variation"]]):
            others = [float(shift[place, layer, head, at[m]]) for m in ("entropy", "first", "previous", "induction")]
            found = mean_of(values[:, place, layer, head, at["total_variation"]][:, None], weights)[:, 0].tolist()
            rows.append(HeadRow(name, layer, head, *found, *others))
    return rows


def _furthest(moved: np.ndarray) -> list[tuple[int, int]]:
    """(layers, heads) -> the (layer, head) of the SHOWN_HEADS largest, the largest first."""
    order = np.argsort(-moved, axis=None, kind="stable")[:SHOWN_HEADS]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, moved.shape), strict=True)]


def pair_rows(pairs: Sequence[tuple[str, str]], values: np.ndarray, groups: Sequence[str]) -> list[PairRow]:
    """values (I, pairs, layers, heads, BETWEEN) -> of each pair a row of all heads, then its SHOWN_HEADS."""
    weights, rows = drawn_weights(groups), []
    for place, pair in enumerate(pairs):
        own, cosines = values[:, place, ..., 0], values[:, place, ..., 1].mean(0)
        found = mean_of(own.mean((1, 2))[:, None], weights)[:, 0].tolist()
        rows.append(PairRow(*pair, EVERY, EVERY, *found, float(cosines.mean())))
        for layer, head in _furthest(own.mean(0)):
            found = mean_of(own[:, layer, head, None], weights)[:, 0].tolist()
            rows.append(PairRow(*pair, str(layer), str(head), *found, float(cosines[layer, head])))
    return rows


def explained_rows(
    shifts: Mapping[str, Mapping[str, float]], accuracies: Mapping[str, float], pairs: Sequence[PairRow] = (),
    permutations: int = 10_000,
) -> list[ExplainedRow]:  # fmt: skip
    """shifts: measure -> student -> shift from the control; `pairs`: students held against each other. A measure with
    fewer than four arms is left out. Seeds of an arm are no points of their own: they share what was done to them."""
    known, rows = load_arms(), []
    for measure, found in shifts.items():
        students = [model for model in found if model in accuracies and model != CONTROL]
        sides = [by_seed({m: column[m] for m in students}) for column in (found, accuracies)]
        x, y = ({arm: float(np.mean([*seeds.values()])) for arm, seeds in side.items()} for side in sides)
        if len(x) < 4:
            continue
        rho, p = _permuted(rankdata([*x.values()]), rankdata([*y.values()]), permutations)
        sizes = [[abs(x[arm]) for arm in x if arm in known and known[arm].role == role] for role in BESIDE]
        sizes += _between(pairs, measure) if measure in DISTANCES else _apart(sides[0])
        beside = [float(np.mean(own)) if own else None for own in sizes]
        rows.append(ExplainedRow(measure, len(x), rho, p, None, *beside, NO))
    adjusted = holm_of({row.measure: row.p for row in rows})
    rows = [replace(row, p_holm=adjusted[row.measure]) for row in rows]
    return [replace(row, explains=_explains(row)) for row in rows]


def _apart(shifts: Mapping[str, Mapping[str, float]]) -> list[list[float]]:
    """Arm -> seed -> shift: sizes of the differences between a primed and an unprimed training, and between two of one
    arm. Training against training in both, so that without any effect of a priming they are alike."""
    primed, unprimed = ([arm for arm in of_role(role, load_arms()) if arm in shifts] for role in (BESIDE[0], BASELINE))
    across = [pair for base in unprimed[:1] for arm in primed
              for pair in product(shifts[arm].values(), shifts[base].values())]  # fmt: skip
    within = [pair for own in shifts.values() for pair in combinations(own.values(), 2)]
    return [[abs(one - other) for one, other in found] for found in (across, within)]


def _between(pairs: Sequence[PairRow], measure: str) -> list[list[float]]:
    """The same of a distance: that of two students from the control says nothing of how far they are apart."""
    primed, unprimed = (of_role(role, load_arms()) for role in (BESIDE[0], BASELINE))
    distances = [(split_seed(row.model)[0], split_seed(row.reference)[0], DISTANCES[measure](row))
                 for row in pairs if row.layer == EVERY]  # fmt: skip
    across = [distance for one, other, distance in distances if one in primed and other in unprimed[:1]]
    return [across, [distance for one, other, distance in distances if one == other]]


def _permuted(x: np.ndarray, y: np.ndarray, permutations: int) -> tuple[float, float]:
    """Correlation of ranks, and the share of permutations with one as far from 0, the given order among them."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    if not scale:
        return 0.0, 1.0
    generator = np.random.default_rng(0)
    drawn = np.array([generator.permutation(y) @ x for _ in range(permutations)]) / scale
    rho = float(x @ y) / scale
    return rho, float((1 + (np.abs(drawn) >= abs(rho) - 1e-12).sum()) / (permutations + 1))


def _explains(row: ExplainedRow) -> str:
    held = ((row.primed, row.placebo), (row.primed, row.shuffled), (row.apart, row.seeds))
    if row.p_holm >= LEVEL or any(None not in pair and pair[0] <= pair[1] for pair in held):
        return NO
    return UNKNOWN if any(None in pair for pair in held) else PERHAPS
