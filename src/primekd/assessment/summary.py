"""What the per-item logs add up to (summary.csv, contrasts.csv), and what may be claimed of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from primekd.assessment.grade import LogRow
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.statistics import (
    LEVEL,
    Estimate,
    accuracy,
    compare_all,
    ratio,
    ratio_difference,
)
from primekd.strategies import BASE, CONTROL, FINE_TUNE, TEACHER, load_strategies


@dataclass(frozen=True)
class SummaryRow:
    """One model. Accuracies are shares; kl and nll are nats a token, empty for the teacher itself.

    kl is empty for every model where the teacher's text alone was kept.
    """

    model: str
    title: str
    n: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    truncated: int
    not_found: int
    mean_response_tokens: float
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    nll_gold: float | None
    nll_gold_low: float | None
    nll_gold_high: float | None
    adjudicated: int
    correct_adjudicated: int
    accuracy_adjudicated: float
    accuracy_adjudicated_low: float
    accuracy_adjudicated_high: float


@dataclass(frozen=True)
class ContrastRow:
    """`model` against `reference` on the same items. Differences are model minus reference.

    `p` is McNemar's exact one; `p_holm` is adjusted over all planned contrasts. `mde` is the smallest true difference
    that would be found in 80 % of repetitions. Without held-out rows, kl and nll are empty; with a teacher's
    text alone, kl is.
    """

    model: str
    reference: str
    only_model: int
    only_reference: int
    p: float
    p_holm: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    nll_gold: float | None
    nll_gold_low: float | None
    nll_gold_high: float | None
    mde: float
    p_adjudicated: float
    p_holm_adjudicated: float
    accuracy_adjudicated: float
    accuracy_adjudicated_low: float
    accuracy_adjudicated_high: float


def title_of(model: str) -> str:
    """The published title of a model; a further seed is named behind it."""
    if model in (CONTROL, TEACHER):
        return {"control": "No distillation", "teacher": "Teacher, unprimed"}[model]
    for name, strategy in load_strategies().items():
        if model == name:
            return strategy.title
        if model.startswith(f"{name}-seed"):
            return f"{strategy.title} (seed {model.removeprefix(f'{name}-seed')})"
    return model


def planned_contrasts(models: Iterable[str]) -> list[tuple[str, str]]:
    """(model, reference): every student with the control, every other KD strategy with base-KD, every KD student with
    base-fine-tune; only where both are among `models`."""
    models = list(models)
    students = [m for m in models if m not in (CONTROL, TEACHER)]
    kd = [name for name, s in load_strategies().items() if s.teacher]
    taught = [m for m in students if m in kd]
    pairs = [(m, CONTROL) for m in students]
    pairs += [(m, BASE) for m in taught if m != BASE]
    pairs += [(m, FINE_TUNE) for m in taught]
    return [(m, reference) for m, reference in pairs if reference in models]


def summarise(logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], samples: int) -> list[SummaryRow]:
    """One row a model."""
    rows = []
    for model, log in logs.items():
        share, decided = accuracy(_verdicts(log)), accuracy(_adjudicated(log))
        fit = [r for r in held_out if r.model == model]
        kl = ratio([r.kl for r in fit], [r.teacher_tokens for r in fit], samples) if _has_kl(fit) else None
        nll = ratio([r.nll_gold for r in fit], [r.gold_tokens for r in fit], samples) if fit else None
        rows.append(
            SummaryRow(
                model, title_of(model), len(log), sum(r.correct for r in log), *_parts(share),
                sum(r.truncated for r in log), sum(r.rule == "none" for r in log),
                sum(r.response_tokens for r in log) / len(log), *_parts(kl), *_parts(nll),
                sum(bool(r.adjudicated) for r in log), sum(_adjudicated(log)), *_parts(decided),
            )
        )  # fmt: skip
    return rows


def _has_kl(rows: Iterable[HeldOutRow]) -> bool:
    """Whether a KL was measured; it cannot be where the teacher's text alone was kept."""
    return any(r.kl is not None for r in rows)


def _parts(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)


def contrast(logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], samples: int) -> list[ContrastRow]:
    """The planned contrasts, Holm-adjusted over all of them."""
    pairs = planned_contrasts(logs)
    automatic = compare_all([(_verdicts(logs[m]), _verdicts(logs[r])) for m, r in pairs], samples)
    decided = compare_all([(_adjudicated(logs[m]), _adjudicated(logs[r])) for m, r in pairs], samples)
    rows = []
    for (model, reference), one, two in zip(pairs, automatic, decided, strict=True):
        kl, nll = _fit_differences(held_out, model, reference, samples)
        rows.append(
            ContrastRow(
                model, reference, one.test.only_first, one.test.only_second, one.test.p, one.p_holm,
                *_parts(one.difference), *_parts(kl), *_parts(nll), one.mde,
                two.test.p, two.p_holm, *_parts(two.difference),
            )
        )  # fmt: skip
    return rows


def _verdicts(log: list[LogRow]) -> list[bool]:
    return [r.correct for r in log]


def _adjudicated(log: list[LogRow]) -> list[bool]:
    return [r.correct_adjudicated for r in log]


def _fit_differences(
    held_out: list[HeldOutRow], model: str, reference: str, samples: int
) -> tuple[Estimate | None, Estimate | None]:
    first = {r.id: r for r in held_out if r.model == model}
    second = {r.id: r for r in held_out if r.model == reference}
    if not first and not second:
        return None, None
    if first.keys() != second.keys():
        raise ValueError(f"{model} and {reference} were measured on different items")
    pairs = [(first[i], second[i]) for i in first]
    kl = None
    if _has_kl(first.values()):
        kl = ratio_difference(
            [a.kl for a, _ in pairs], [b.kl for _, b in pairs], [a.teacher_tokens for a, _ in pairs], samples
        )
    nll = ratio_difference(
        [a.nll_gold for a, _ in pairs], [b.nll_gold for _, b in pairs], [a.gold_tokens for a, _ in pairs], samples
    )
    return kl, nll


# Measure -> (the direction in which more is better, in words for better, for worse).
MEASURES = {
    "accuracy": (1, "more correct answers", "fewer correct answers"),
    "kl": (-1, "closer to the unprimed teacher", "further from the unprimed teacher"),
    "nll_gold": (-1, "gold solutions more likely", "gold solutions less likely"),
}


def sentence(row: dict[str, str]) -> str:
    """One contrast of contrasts.csv in words: what may be claimed of the accuracies, and what could have been seen."""
    model, reference = title_of(row["model"]), title_of(row["reference"])
    points, low, high, mde = (_points(row[key]) for key in ("accuracy", "accuracy_low", "accuracy_high", "mde"))
    p = Decimal(row["p_holm"])
    said = "p < 0.001" if p < Decimal("0.001") else f"p = {p.quantize(Decimal('0.001'), ROUND_HALF_UP)}"
    span = f"{points} points [{low}, {high}], Holm-adjusted {said}"
    if float(p) < LEVEL and float(row["accuracy"]):
        more = "more" if float(row["accuracy"]) > 0 else "fewer"
        return f"{model} answers {more} questions correctly than {reference}: {span}."
    return (
        f"Between {model} and {reference} no difference can be claimed: {span}; so many items show a true difference "
        f"of {mde.lstrip('+')} points or more four times in five."
    )


def _points(share: str) -> str:
    """A share in points, rounded half up as in the tables."""
    points = (100 * Decimal(share)).quantize(Decimal("0.1"), ROUND_HALF_UP)
    return f"{points:+}" if points else "0.0"


def claims(contrasts: list[dict[str, str]]) -> list[str]:
    """What the contrasts allow to be said, a sentence for each reference and measure."""
    sentences = []
    for reference in dict.fromkeys(row["reference"] for row in contrasts):
        for measure, (direction, better, worse) in MEASURES.items():
            rows = [r for r in contrasts if r["reference"] == reference and r[measure]]
            if not rows:
                continue
            groups = {
                better: [title_of(r["model"]) for r in rows if _is_better(r, measure, direction)],
                worse: [title_of(r["model"]) for r in rows if _is_better(r, measure, -direction)],
            }
            found = "; ".join(f"{word}: {', '.join(names)}" for word, names in groups.items() if names)
            nothing = f"{better}: no difference can be claimed for any student"
            sentences.append(f"Against {title_of(reference)} — {found or nothing}.")
    return sentences


def _is_better(row: dict[str, str], measure: str, direction: int) -> bool:
    if measure == "accuracy":
        return float(row["p_holm"]) < LEVEL and direction * float(row["accuracy"]) > 0
    bounds = direction * float(row[f"{measure}_low"]), direction * float(row[f"{measure}_high"])
    return min(bounds) > 0
