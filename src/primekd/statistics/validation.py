"""Extractors against people: labels (coverage, precision and Cohen's kappa, a stratum at a time), and blind audits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from statsmodels.stats.inter_rater import cohens_kappa

from primekd.assessment.decisions.decisions import AUDIT, Decision, answer_hash, as_read, automatic_value, by_answer
from primekd.assessment.decisions.labels import SETS, Label
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import EXTRACTORS, RULES, extract
from primekd.foundation.tables import Estimated, MaybeEstimated, table_row
from primekd.statistics.inference import UNKNOWN, Estimate, accuracy

ALL_MODELS = "all"  # the last row of audit.csv


@table_row
class ValidationRow:
    """One extractor on one stratum of labelled answers, without ambiguous labels. `with_value`: answers that commit to
    a value; `found`: where the extractor gives one. Coverage: share of with_value that has one. Precision: share of
    found that is the labelled value. Kappa: agreement beyond chance, every value and "none" being a category."""

    set: str
    extractor: str
    stratum: str
    n: int
    with_value: int
    found: int
    coverage: MaybeEstimated
    precision: MaybeEstimated
    kappa: MaybeEstimated


@dataclass(frozen=True)
class Judged:
    """A labelled answer beside what one extractor reads in it."""

    label: Label
    truncated: bool
    published_rule: str
    rule: str
    value: Fraction | None


def judge(labels: list[Label], answers: dict[tuple[str, str], LogRow], extractor: str) -> list[Judged]:
    """Reads every labelled answer that has an unambiguous label. `answers`: (log, id) -> the logged answer."""
    judged = []
    for label in (label for label in labels if label.kind != "ambiguous"):
        row = answers[label.log, label.id]
        found = extract(row.response, extractor, row.truncated, row.question)
        published = extract(row.response, "published", row.truncated).rule
        judged.append(Judged(label, row.truncated, published, found.rule, found.value))
    return judged


def validate(labels: list[Label], answers: dict[tuple[str, str], LogRow]) -> list[ValidationRow]:
    """Every extractor on all, ended, truncated, each log and rule that fired; validated by its own rules too."""
    rows = []
    for name in SETS:
        chosen = [label for label in labels if label.set == name]
        for extractor in EXTRACTORS:
            strata = _strata(judge(chosen, answers, extractor), extractor)
            rows += [_row(name, extractor, stratum, judged) for stratum, judged in strata.items()]
    return rows


def _strata(judged: list[Judged], extractor: str) -> dict[str, list[Judged]]:
    strata = {"all": judged, "ended": [j for j in judged if not j.truncated]}
    strata["truncated"] = [j for j in judged if j.truncated]
    for log in dict.fromkeys(j.label.log for j in judged):
        strata[f"log {log}"] = [j for j in judged if j.label.log == log]
    for rule in sorted({j.published_rule for j in judged}):
        strata[f"rule {rule}"] = [j for j in judged if j.published_rule == rule]
    for rule in RULES[extractor] if extractor == "validated" else ():
        if own := [j for j in judged if j.rule == rule]:
            strata[f"by {rule}"] = own
    return strata


def _row(name: str, extractor: str, stratum: str, judged: list[Judged]) -> ValidationRow:
    valued = [j.value is not None for j in judged if j.label.number is not None]
    right = [j.value == j.label.number for j in judged if j.value is not None]
    return ValidationRow(
        name, extractor, stratum, len(judged), len(valued), len(right),
        *(accuracy(valued) if valued else UNKNOWN), *(accuracy(right) if right else UNKNOWN),
        *(kappa([(j.label.number, j.value) for j in judged]) or UNKNOWN),
    )  # fmt: skip


def kappa(pairs: list[tuple[Fraction | None, Fraction | None]]) -> Estimate | None:
    """Cohen's kappa of two readings of the same answers; None where chance alone explains everything or nothing."""
    kinds = list(dict.fromkeys(value for pair in pairs for value in pair))
    if len(kinds) < 2:
        return None
    place = {value: i for i, value in enumerate(kinds)}
    table = np.zeros((len(kinds), len(kinds)))
    for first, second in pairs:
        table[place[first], place[second]] += 1
    with np.errstate(invalid="ignore", divide="ignore"):  # one reading without any spread has no variance
        found = cohens_kappa(table)
    bounds = [found.kappa, found.kappa_low, found.kappa_upp]
    if not np.all(np.isfinite(bounds)):
        return None
    value, low, high = (round(float(np.clip(x, -1, 1)), 6) + 0.0 for x in bounds)
    return Estimate(value, low, high)


@table_row
class AuditRow:
    """How often the automatic value of an answer differed from the one a person read blind; `rate` is a share."""

    model: str
    n: int
    errors: int
    rate: Estimated


def audit_rows(profile_name: str, logs: dict[str, list[LogRow]], decisions: Iterable[Decision]) -> list[AuditRow]:
    """Error rate of the automatic grading by each answer's latest audit, a row a model, then `all`; empty without."""
    found = by_answer(profile_name, (d for d in decisions if d.purpose == AUDIT))
    differs: dict[str, list[bool]] = {}
    for model, log in logs.items():
        for row in log:
            if made := found.get((model, row.id, answer_hash(row.question, row.response))):
                differs.setdefault(model, []).append(as_read(made[-1].value) != automatic_value(row))
    if differs:
        differs[ALL_MODELS] = [verdict for verdicts in differs.values() for verdict in verdicts]
    return [AuditRow(model, len(found), sum(found), *accuracy(found)) for model, found in differs.items()]


def audit_scope(audited: Iterable[str], models: Iterable[str], named: Callable[[str], str] = str) -> str:
    """Which of the study's `models` the row of all `audited` ones covers, in words; empty for all, or no audit."""
    audited, models = set(audited), list(models)
    missing = [named(model) for model in models if model not in audited]
    if not audited or not missing:
        return ""
    covered = [named(model) for model in models if model in audited]
    return f"The row of all covers {', '.join(covered)} alone; no answer was looked at of {', '.join(missing)}."
