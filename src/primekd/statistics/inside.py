"""Inside the students: attention as a difference from the control, calibration, arithmetic, kinds of tokens, and
whether any of it goes along with accuracy. Intervals are bootstrap percentiles over items, or over what these share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from primekd.assessment.inside.confidence import SureRow
from primekd.config import CONTROL, load_arms
from primekd.foundation.tables import Estimated, MaybeEstimated, table_row
from primekd.statistics.contrasts import by_seed
from primekd.statistics.inference import LEVEL, holm_of, places_of

ATTENTION, HEADS, PAIRS, EXPLAINED = "attention.csv", "heads.csv", "pairs.csv", "explained.csv"
CALIBRATION, RELIABILITY = "calibration.csv", "reliability.csv"
SAMPLES = 1000
BINS = 10
SHOWN_HEADS = 10
EVERY = "all"  # layers
ANSWER, VALUE = "answer", "value"  # what a confidence is of
NO, PERHAPS, UNKNOWN = "no", "perhaps", "unknown"
BESIDE = ("treatment", "placebo", "positive-control")  # roles whose shifts are held against each other


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


@table_row
class CalibrationRow:
    """Whether a model is as often right as it is sure. `kind`: of the whole answer the mean probability of a token
    (geometric), or of the value alone the product over its tokens, of answers in which one was read. `ece`: expected
    calibration error over BINS bins of equal width, `ece_expected`: that of a calibrated model on so many answers (see
    `error_within`); `brier`: mean squared distance of confidence and verdict; `auroc`: the chance that a right answer
    is surer than a wrong one, None where all are right or wrong. `entropy`, `margin`: nats a token of the answer."""

    model: str
    kind: str
    n: int
    right: float
    confidence: float
    ece: Estimated
    ece_expected: float
    brier: Estimated
    auroc: MaybeEstimated
    entropy: float
    margin: float


@dataclass(frozen=True)
class ReliabilityRow:
    """The answers of a model whose confidence lies in one bin: how many, their mean confidence and share of right."""

    model: str
    kind: str
    bin: int
    n: int
    confidence: float
    right: float


@dataclass(frozen=True)
class ExplainedRow:
    """Whether a measure's shift from the control goes along with accuracy over `arms`, each the mean of its seeds:
    Spearman's rank correlation, its p over permutations of arms, Holm-adjusted over all measures. `primed`: the mean
    size of the shift in the primed arms, `placebo`, `shuffled` that in the controls, None where there are none. A
    measure that shifts as much there explains nothing. `explains`: NO, PERHAPS or, where it correlates and an arm that
    it has to be held against was not run, UNKNOWN."""

    measure: str
    arms: int
    rho: float
    p: float
    p_holm: float | None
    primed: float | None
    placebo: float | None
    shuffled: float | None
    explains: str


def drawn_weights(groups: Sequence[str], samples: int = SAMPLES) -> np.ndarray:
    """(samples, items): how often each item is in each sample of the groups, drawn with replacement."""
    places, count = places_of(groups)
    return np.random.default_rng(0).multinomial(count, [1 / count] * count, samples)[:, places].astype(float)


def limits(values: np.ndarray) -> np.ndarray:
    """(samples, …) -> (2, …): the 95 % interval."""
    return np.percentile(values, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)], axis=0)


def mean_of(values_I_K: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((K,) means over items, (2, K) their intervals)."""
    drawn = weights @ values_I_K / weights.sum(1, keepdims=True)
    return values_I_K.mean(0), limits(drawn)


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
        mean, ends = (part.reshape(-1, layers + 1, len(measures)) for part in mean_of(difference, weights))
        own = with_all[:, place].mean(0)
        rows += [
            AttentionRow(
                name, label, measure, float(control[n, m]), float(own[n, m]), float(mean[0, n, m]),
                float(ends[0, n, m]), float(ends[1, n, m]),
            )
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
            found = _with_ends(values[:, place, layer, head, at["total_variation"]], weights)
            rows.append(HeadRow(name, layer, head, *found, *others))
    return rows


def _furthest(moved: np.ndarray) -> list[tuple[int, int]]:
    """(layers, heads) -> the (layer, head) of the SHOWN_HEADS largest, the largest first."""
    order = np.argsort(-moved, axis=None, kind="stable")[:SHOWN_HEADS]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, moved.shape), strict=True)]


def _with_ends(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """(I,) -> its mean and the interval's ends."""
    mean, ends = mean_of(values[:, None], weights)
    return float(mean[0]), float(ends[0, 0]), float(ends[1, 0])


def pair_rows(pairs: Sequence[tuple[str, str]], values: np.ndarray, groups: Sequence[str]) -> list[PairRow]:
    """values (I, pairs, layers, heads, BETWEEN) -> of each pair a row of all heads, then its SHOWN_HEADS."""
    weights, rows = drawn_weights(groups), []
    for place, pair in enumerate(pairs):
        own, cosines = values[:, place, ..., 0], values[:, place, ..., 1].mean(0)
        found = _with_ends(own.mean((1, 2)), weights)
        rows.append(PairRow(*pair, EVERY, EVERY, *found, float(cosines.mean())))
        for layer, head in _furthest(own.mean(0)):
            found = _with_ends(own[:, layer, head], weights)
            rows.append(PairRow(*pair, str(layer), str(head), *found, float(cosines[layer, head])))
    return rows


def confidence_of(row: SureRow, kind: str) -> float | None:
    """Between 0 and 1; None where there is none of this kind."""
    if kind == ANSWER:
        return float(np.exp(row.log_prob / row.tokens)) if row.tokens else None
    return None if row.value_log_prob is None else float(np.exp(row.value_log_prob))


def bins_of(confidence: np.ndarray) -> np.ndarray:
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def bin_gaps(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(I,), (I,) or (samples, I), (samples, I) -> (samples, BINS): share of right less confidence, by share of all."""
    moved, places = weights * (right - confidence), bins_of(confidence)
    return np.stack([moved[:, places == b].sum(1) for b in range(BINS)], 1) / weights.sum(1, keepdims=True)


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same -> (samples,): the mean of |share of right - confidence| of the answers' bins (Naeini et al. 2015)."""
    return np.abs(bin_gaps(confidence, right, weights)).sum(1)


def error_within(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> tuple[float, float, float, float]:
    """Calibration error, the ends of its interval, and what a model that is calibrated would show on so many answers. A
    sum of sizes is too large by what chance adds to each, so that its percentiles leave out the 0 of a model that is
    calibrated. It lies no further from the true one than the sizes of all bins' own errors add up to: the lower end is
    so far below, by what bootstrap samples show and by what verdicts drawn from the confidences do (where all answers
    are right there is nothing to draw). The upper end is the percentile, which is rather too high."""
    once = np.ones((1, len(right)))
    gaps, drawn = bin_gaps(confidence, right, once), bin_gaps(confidence, right, weights)
    chance = np.random.default_rng(0).random((SAMPLES, len(right))) < confidence
    calibrated = calibration_error(confidence, chance, np.broadcast_to(once, chance.shape))
    error = float(np.abs(gaps).sum())
    below = max(np.quantile(sizes, 1 - LEVEL) for sizes in (np.abs(drawn - gaps).sum(1), calibrated))
    high = float(limits(np.abs(drawn).sum(1))[1])
    return error, max(0.0, error - float(below)), max(error, high), float(calibrated.mean())


def ranking(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same shapes: the area under the ROC curve, ties by half; nan where a sample has one verdict alone."""
    yes, no = right > 0, right == 0
    above = confidence[yes][:, None], confidence[no][None]
    wins = (above[0] > above[1]) + 0.5 * (above[0] == above[1])
    pairs = weights[:, yes].sum(1) * weights[:, no].sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((weights[:, yes] @ wins) * weights[:, no]).sum(1) / pairs


def calibration_rows(rows: Sequence[SureRow], groups: Mapping[str, str]) -> list[CalibrationRow]:
    """Two rows a model, of the answer and of the value; `groups`: what each item shares with others."""
    found = []
    for kind in (ANSWER, VALUE):
        for model, own in _by_model(rows).items():
            known = [(row, c) for row in own if (c := confidence_of(row, kind)) is not None]
            if len(known) < 2:
                continue
            sure, right = np.array([c for _, c in known]), np.array([row.correct for row, _ in known], float)
            weights = drawn_weights([groups[row.id] for row, _ in known])
            once = np.ones((1, len(known)))
            error = error_within(sure, right, weights)
            brier = _with_ends((sure - right) ** 2, weights)
            tokens = sum(row.tokens for row, _ in known)
            found.append(
                CalibrationRow(
                    model, kind, len(known), float(right.mean()), float(sure.mean()), *error,
                    *brier, *_ranked(sure, right, once, weights),
                    sum(row.entropy for row, _ in known) / tokens, sum(row.margin for row, _ in known) / tokens,
                )
            )  # fmt: skip
    return found


def _ranked(sure: np.ndarray, right: np.ndarray, once: np.ndarray, weights: np.ndarray) -> tuple[float | None, ...]:
    if right.min() == right.max():
        return None, None, None
    drawn = ranking(sure, right, weights)
    return float(ranking(sure, right, once)[0]), *map(float, limits(drawn[~np.isnan(drawn)]))


def reliability_rows(rows: Sequence[SureRow]) -> list[ReliabilityRow]:
    """A row for each bin of a model in which an answer lies."""
    found = []
    for kind in (ANSWER, VALUE):
        for model, own in _by_model(rows).items():
            known = [(c, row.correct) for row in own if (c := confidence_of(row, kind)) is not None]
            places = bins_of(np.array([c for c, _ in known]))
            for b in sorted(set(places.tolist())):
                inside = [pair for pair, place in zip(known, places, strict=True) if place == b]
                sure, right = (float(np.mean(column)) for column in zip(*inside, strict=True))
                found.append(ReliabilityRow(model, kind, b, len(inside), sure, right))
    return found


def _by_model(rows: Sequence[SureRow]) -> dict[str, list[SureRow]]:
    found: dict[str, list[SureRow]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return found


def explained_rows(
    shifts: Mapping[str, Mapping[str, float]], accuracies: Mapping[str, float], permutations: int = 10_000
) -> list[ExplainedRow]:
    """shifts: measure -> student -> shift from the control. A measure with fewer than four arms is left out. Seeds of
    an arm are no points of their own: they share what was done to them."""
    known, rows = load_arms(), []
    for measure, found in shifts.items():
        students = [model for model in found if model in accuracies and model != CONTROL]
        sides = (by_seed({m: column[m] for m in students}) for column in (found, accuracies))
        x, y = ({arm: float(np.mean([*seeds.values()])) for arm, seeds in side.items()} for side in sides)
        if len(x) < 4:
            continue
        rho, p = _permuted(rankdata([*x.values()]), rankdata([*y.values()]), permutations)
        sizes = [[abs(x[arm]) for arm in x if arm in known and known[arm].role == role] for role in BESIDE]
        beside = [float(np.mean(own)) if own else None for own in sizes]
        rows.append(ExplainedRow(measure, len(x), rho, p, None, *beside, NO))
    adjusted = holm_of({row.measure: row.p for row in rows})
    rows = [replace(row, p_holm=adjusted[row.measure]) for row in rows]
    return [replace(row, explains=_explains(row)) for row in rows]


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
    if row.p_holm >= LEVEL:
        return NO
    if None in (row.primed, row.placebo, row.shuffled):
        return UNKNOWN
    return PERHAPS if row.primed > max(row.placebo, row.shuffled) else NO
