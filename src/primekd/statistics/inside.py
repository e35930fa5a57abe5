"""Inside the students: attention as a difference from the control, calibration, arithmetic, kinds of tokens, and
whether any of it goes along with accuracy. Intervals are bootstrap percentiles over items, or over what these share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from primekd.assessment.inside.confidence import SureRow
from primekd.config import CONTROL, load_arms
from primekd.foundation.tables import Estimated, MaybeEstimated, table_row
from primekd.statistics.contrasts import by_seed
from primekd.statistics.inference import LEVEL, Estimate, holm_of, places_of

ATTENTION, HEADS, PAIRS, EXPLAINED = "attention.csv", "heads.csv", "pairs.csv", "explained.csv"
CALIBRATION, RELIABILITY = "calibration.csv", "reliability.csv"
SAMPLES = 1000
BINS = 10
SHOWN_HEADS = 10
EVERY = "all"  # layers
ANSWER, VALUE, MINUS = "answer", "value", " minus control"  # what a confidence is of, and a difference
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
    is surer than a wrong one, None where all are right or wrong. `log_prob`: nats a token of the kind; `entropy`,
    `margin`: of the answer. A kind with MINUS: all of it less the control's, on the `n` items that both have."""

    model: str
    kind: str
    n: int
    right: float
    confidence: float
    ece: Estimated
    ece_expected: float | None
    brier: Estimated
    auroc: MaybeEstimated
    log_prob: Estimated
    entropy: Estimated
    margin: Estimated


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
    """(1 + samples, items): each item once; then how often each is in a sample of groups, drawn with replacement."""
    places, count = places_of(groups)
    drawn = np.random.default_rng(0).multinomial(count, [1 / count] * count, samples)[:, places]
    return np.concatenate([np.ones((1, len(groups))), drawn])


def limits(values: np.ndarray) -> np.ndarray:
    """(samples, …) -> (2, …): the 95 % interval."""
    return np.percentile(values, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)], axis=0)


def ends_of(drawn: np.ndarray) -> Estimate | tuple[None, ...]:
    """What the items give once and in samples, (1 + samples,), nan where they give nothing -> with its interval."""
    known = drawn[~np.isnan(drawn)]
    return (None,) * 3 if np.isnan(drawn[0]) else Estimate(float(drawn[0]), *limits(known[1:]).tolist())


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
    gaps = bin_gaps(confidence, right, weights)
    errors = np.abs(gaps).sum(1)
    chance = np.random.default_rng(0).random((SAMPLES, len(right))) < confidence
    calibrated = calibration_error(confidence, chance, np.ones(chance.shape))
    below = max(np.quantile(sizes, 1 - LEVEL) for sizes in (np.abs(gaps[1:] - gaps[0]).sum(1), calibrated))
    error, high = float(errors[0]), float(limits(errors[1:])[1])
    return error, max(0.0, error - float(below)), max(error, high), float(calibrated.mean())


def ranking(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same shapes: the area under the ROC curve, ties by half; nan where a sample has one verdict alone."""
    yes, no = right > 0, right == 0
    above = confidence[yes][:, None], confidence[no][None]
    wins = (above[0] > above[1]) + 0.5 * (above[0] == above[1])
    pairs = weights[:, yes].sum(1) * weights[:, no].sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((weights[:, yes] @ wins) * weights[:, no]).sum(1) / pairs


def sure_and_right(rows: Iterable[SureRow], kind: str) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([(confidence_of(row, kind), row.correct) for row in rows], float).T)


def measured(rows: Sequence[SureRow], kind: str, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of a CalibrationRow -> (samples,), nan where a sample has no such number; weights (samples, rows)."""
    (sure, right), value = sure_and_right(rows, kind), "" if kind == ANSWER else "value_"
    total = lambda name: weights @ np.array([getattr(row, name) for row in rows], float)  # noqa: E731
    found = {"ece": calibration_error(sure, right, weights), "auroc": ranking(sure, right, weights)}
    means = {"right": right, "confidence": sure, "brier": (sure - right) ** 2}
    found |= {name: weights @ column / weights.sum(1) for name, column in means.items()}
    found |= {name: total(name) / total("tokens") for name in ("entropy", "margin")}
    return found | {"log_prob": total(f"{value}log_prob") / total(f"{value}tokens")}


def calibration_rows(rows: Sequence[SureRow], groups: Mapping[str, str]) -> list[CalibrationRow]:
    """Two rows a model, of answer and value, behind each its difference from the control; `groups`: what is shared."""
    found = []
    for kind in (ANSWER, VALUE):
        known = _known(rows, kind)
        for model, own in known.items():
            control = {} if model == CONTROL else known.get(CONTROL, {})
            pairs = (own, {}), ({item: own[item] for item in own if item in control}, control)
            found += [_calibration(kind, one, minus, groups) for one, minus in pairs if len(one) > 1]
    return found


def _calibration(
    kind: str, own: Mapping[str, SureRow], control: Mapping[str, SureRow], groups: Mapping[str, str]
) -> CalibrationRow:
    """Of a model's answers; where `control` has any, less its answers to the same items, in the same samples."""
    rows, weights = [*own.values()], drawn_weights([groups[item] for item in own])
    found = measured(rows, kind, weights)
    if control:
        minus = measured([control[item] for item in own], kind, weights)
        found = {name: drawn - minus[name] for name, drawn in found.items()}
    error = (*ends_of(found["ece"]), None) if control else error_within(*sure_and_right(rows, kind), weights)
    others = [end for name in ("brier", "auroc", "log_prob", "entropy", "margin") for end in ends_of(found[name])]
    means = float(found["right"][0]), float(found["confidence"][0])
    return CalibrationRow(rows[0].model, kind + MINUS * bool(control), len(rows), *means, *error, *others)


def reliability_rows(rows: Sequence[SureRow]) -> list[ReliabilityRow]:
    """A row for each bin of a model in which an answer lies."""
    found = []
    for kind in (ANSWER, VALUE):
        for model, own in _known(rows, kind).items():
            sure, right = sure_and_right(own.values(), kind)
            for b in np.unique(places := bins_of(sure)).tolist():
                means = (float(column[places == b].mean()) for column in (sure, right))
                found.append(ReliabilityRow(model, kind, b, int((places == b).sum()), *means))
    return found


def _known(rows: Sequence[SureRow], kind: str) -> dict[str, dict[str, SureRow]]:
    """Model -> item -> its row, where there is a confidence of this kind."""
    found: dict[str, dict[str, SureRow]] = {}
    for row in rows:
        if confidence_of(row, kind) is not None:
            found.setdefault(row.model, {})[row.id] = row
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
