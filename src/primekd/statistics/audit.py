"""How often a person who reads an answer blind sees another value than the automatic one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from primekd.assessment.decisions.decisions import (
    ALL_MODELS,
    AUDIT,
    Decision,
    answer_hash,
    as_read,
    automatic_value,
    by_answer,
)
from primekd.assessment.logs import LogRow
from primekd.statistics.inference import accuracy


@dataclass(frozen=True)
class AuditRow:
    """How often the automatic value of an answer differed from the one a person read blind; `rate` is a share."""

    model: str
    n: int
    errors: int
    rate: float
    rate_low: float
    rate_high: float


def audit_rows(profile_name: str, logs: dict[str, list[LogRow]], decisions: Iterable[Decision]) -> list[AuditRow]:
    """Error rate of the automatic grading by blind second looks, with its Wilson interval: a row a model, then `all`.
    An answer counts once, with its latest audit, against the value that the log holds now. Empty without audits."""
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
