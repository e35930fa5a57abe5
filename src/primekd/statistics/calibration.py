"""How sure models are of their answers, and whether they are right as often: calibration, its error, ranking. Intervals
are bootstrap percentiles over items, or over what these share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from primekd.assessment.inside.confidence import SureRow
from primekd.config import CONTROL
from primekd.foundation import Estimated, MaybeEstimated, nested, table_row
from primekd.statistics.inference import LEVEL, Estimate, places_of

CALIBRATION, RELIABILITY = "calibration.csv", "reliability.csv"
SAMPLES = 1000
BINS = 10
ANSWER, VALUE, MINUS = "answer", "value", " minus control"  # what a confidence is of, and a difference


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
    return nested((row.model, row.id, row) for row in rows if confidence_of(row, kind) is not None)
