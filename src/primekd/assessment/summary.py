"""summary.csv and contrasts.csv: what the per-item logs add up to, and what may be claimed of them."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from primekd.assessment.grade import LogRow
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.statistics import (
    LEVEL,
    Estimate,
    accuracy,
    accuracy_difference,
    holm,
    mcnemar_exact,
    ratio,
    ratio_difference,
)
from primekd.config import Profile
from primekd.errors import UserError
from primekd.provenance import relative_name, write_text
from primekd.strategies import load_strategies

CONTROL, TEACHER, BASE = "control", "teacher", "base-KD"


@dataclass(frozen=True)
class SummaryRow:
    """One model. Accuracies are shares; kl and nll are nats a token, empty for the teacher itself."""

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


@dataclass(frozen=True)
class ContrastRow:
    """`model` against `reference` on the same items. Differences are model minus reference.

    `p` is McNemar's exact one; `p_holm` is adjusted over all contrasts of the family (`against`).
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
    kl: float
    kl_low: float
    kl_high: float
    nll_gold: float
    nll_gold_low: float
    nll_gold_high: float


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


def planned_contrasts(models: Iterable[str]) -> dict[str, list[str]]:
    """Reference -> models compared with it: every student with the control, every other KD strategy with base-KD."""
    students = [m for m in models if m not in (CONTROL, TEACHER)]
    kd = [name for name, s in load_strategies().items() if s.teacher and name != BASE]
    return {CONTROL: students, BASE: [m for m in students if m in kd]}


def summarise(logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], samples: int) -> list[SummaryRow]:
    """One row a model."""
    rows = []
    for model, log in logs.items():
        share = accuracy([r.correct for r in log])
        fit = [r for r in held_out if r.model == model]
        kl = ratio([r.kl for r in fit], [r.teacher_tokens for r in fit], samples) if fit else None
        nll = ratio([r.nll_gold for r in fit], [r.gold_tokens for r in fit], samples) if fit else None
        rows.append(
            SummaryRow(
                model, title_of(model), len(log), sum(r.correct for r in log), *_parts(share),
                sum(r.truncated for r in log), sum(r.rule == "none" for r in log),
                sum(r.response_tokens for r in log) / len(log), *_parts(kl), *_parts(nll),
            )
        )  # fmt: skip
    return rows


def _parts(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)


def contrast(logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], samples: int) -> list[ContrastRow]:
    """The planned contrasts, Holm-adjusted within each family of one reference."""
    rows = []
    for reference, models in planned_contrasts(logs).items():
        if reference not in logs:
            continue
        tests = [mcnemar_exact(_verdicts(logs[m]), _verdicts(logs[reference])) for m in models]
        adjusted = holm([t.p for t in tests])
        for model, test, p_holm in zip(models, tests, adjusted, strict=True):
            difference = accuracy_difference(_verdicts(logs[model]), _verdicts(logs[reference]), samples)
            kl, nll = _fit_differences(held_out, model, reference, samples)
            counts = (test.only_first, test.only_second, test.p, p_holm)
            rows.append(ContrastRow(model, reference, *counts, *_parts(difference), *_parts(kl), *_parts(nll)))
    return rows


def _verdicts(log: list[LogRow]) -> list[bool]:
    return [r.correct for r in log]


def _fit_differences(held_out: list[HeldOutRow], model: str, reference: str, samples: int) -> tuple[Estimate, Estimate]:
    first = {r.id: r for r in held_out if r.model == model}
    second = {r.id: r for r in held_out if r.model == reference}
    if first.keys() != second.keys():
        raise ValueError(f"{model} and {reference} were measured on different items")
    pairs = [(first[i], second[i]) for i in first]
    kl = ratio_difference(
        [a.kl for a, _ in pairs], [b.kl for _, b in pairs], [a.teacher_tokens for a, _ in pairs], samples
    )
    nll = ratio_difference(
        [a.nll_gold for a, _ in pairs], [b.nll_gold for _, b in pairs], [a.gold_tokens for a, _ in pairs], samples
    )
    return kl, nll


def write_summary(profile: Profile, logs: dict[str, list[LogRow]], held_out: list[HeldOutRow]) -> list[Path]:
    """Writes summary.csv and contrasts.csv; returns their paths."""
    samples = profile.assess.bootstrap_samples
    files = {
        "summary.csv": (SummaryRow, summarise(logs, held_out, samples)),
        "contrasts.csv": (ContrastRow, contrast(logs, held_out, samples)),
    }
    for name, (kind, rows) in files.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in asdict(row).items()} for row in rows)
        write_text(profile.logs / name, text.getvalue())
    return [profile.logs / name for name in files]


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of summary.csv or contrasts.csv as text. Raises UserError if it is absent."""
    if not path.is_file():
        raise UserError(f"{relative_name(path)} is missing: run the assessment first.")
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


# Measure -> (the direction in which more is better, in words for better, for worse).
MEASURES = {
    "accuracy": (1, "more correct answers", "fewer correct answers"),
    "kl": (-1, "closer to the unprimed teacher", "further from the unprimed teacher"),
    "nll_gold": (-1, "gold solutions more likely", "gold solutions less likely"),
}


def claims(contrasts: list[dict[str, str]]) -> list[str]:
    """What the contrasts allow to be said, a sentence for each reference and measure."""
    sentences = []
    for reference in dict.fromkeys(row["reference"] for row in contrasts):
        rows = [r for r in contrasts if r["reference"] == reference]
        for measure, (direction, better, worse) in MEASURES.items():
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
