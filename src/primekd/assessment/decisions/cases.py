"""Which answers a person is asked to look at: those no rule settles, and random samples for a blind look."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from primekd.assessment.decisions import decisions as kept
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import extract
from primekd.config import Profile
from primekd.foundation import UserError, hash_json, relative_name
from primekd.tasks import task_of
from primekd.tasks.numbers import NumberTask

Logs = dict[str, list[LogRow]]


@dataclass(frozen=True)
class Case:
    """One answer that a person is asked about, without gold value and verdict. `automatic`, `rule` and `span` ([start,
    end) of the response) are what the published rules read; `why`: for which it is listed, empty in an audit."""

    model: str
    id: str
    question: str
    response: str
    truncated: bool
    automatic: Fraction | None
    rule: str
    span: tuple[int, int] | None
    why: tuple[str, ...] = ()

    @property
    def answer_sha256(self) -> str:
        return kept.answer_hash(self.question, self.response)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model, self.id, self.answer_sha256


def open_cases(
    profile: Profile, logs: Logs, decisions: Iterable[kept.Decision], models: Iterable[str] = (), seed: int = 0
) -> list[Case]:
    """Answers that rules do not settle and nobody has decided on, in an order that mixes the models at random, the
    same for the same seed. Raises UserError if one of `models` (all, if empty) has no log."""
    decided = kept.by_answer(profile.name, decisions)
    cases = [case for case in _all_cases(profile, logs, models, with_why=True) if case.why and case.key not in decided]
    return _shuffled(cases, seed, kept.REVIEW)


def audit_sample(
    profile: Profile, logs: Logs, decisions: Iterable[kept.Decision], who: str, count: int, models: Iterable[str] = (),
    seed: int = 0,
) -> list[Case]:  # fmt: skip
    """A random sample of all answers, whatever rule fired and whatever the verdict, for a blind second look: of those
    that `who` has not decided on. One that was left half way goes on with the rest (same seed), so that nobody can pass
    over the awkward ones. Raises UserError if a model has no log."""
    seen = kept.by_answer(profile.name, (d for d in decisions if d.who == who))
    cases = [case for case in _all_cases(profile, logs, models, with_why=False) if case.key not in seen]
    return _shuffled(cases, seed, kept.AUDIT)[:count]


def _shuffled(cases: list[Case], seed: int, purpose: str) -> list[Case]:
    """A random order in which every answer has its own place: it stays when others are decided, added or left out."""
    return sorted(cases, key=lambda case: hash_json([seed, purpose, *case.key]))


def decides_on(profile: Profile) -> bool:
    """Whether a person's decision can be on the answers of a profile's task, which it is on numbers alone."""
    return isinstance(task_of(profile.data), NumberTask)


def _all_cases(profile: Profile, logs: Logs, models: Iterable[str], with_why: bool) -> Iterator[Case]:
    if not decides_on(profile):
        raise UserError(f"{profile.name}: people decide on answers that are numbers, which those to this task are not.")
    models = list(models) or list(logs)
    if unknown := [model for model in models if model not in logs]:
        raise UserError(f"{relative_name(profile.logs)} has no model {unknown[0]!r}: it has {', '.join(logs)}.")
    for model in dict.fromkeys(models):
        try:
            for row in logs[model]:
                span = tuple(map(int, row.span.split(":"))) if row.span else None
                said = row.id, row.question, row.response, row.truncated, kept.automatic_value(row), row.rule, span
                yield Case(model, *said, _reasons(row) if with_why else ())
        except ValueError as error:
            path = relative_name(profile.logs / f"{model}.csv")
            raise UserError(f"{path} has a row that cannot be read ({error}): run the assessment again.") from error


def _reasons(row: LogRow) -> tuple[str, ...]:
    """Why no rule settles an answer; empty where the published and the validated rules agree on its value. Both are run
    here, whichever of them the log was graded by: no table has a place for `ambiguous`."""
    found = extract(row.response, "validated", row.truncated, row.question)
    published = extract(row.response, "published", row.truncated, row.question).value
    reasons = []
    if published is None:
        reasons.append("the published rules found no number")
    if found.ambiguous:
        reasons.append("the validated rules call it ambiguous")
    elif found.value is None:
        reasons.append("the validated rules found no value")
    if None not in (found.value, published) and found.value != published:
        both = ", ".join(map(kept.as_written, (published, found.value)))
        reasons.append(f"published and validated rules differ: {both}")
    return tuple(reasons)
