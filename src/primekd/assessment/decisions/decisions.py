"""Decisions that people made on answers: read, saved, applied. A decision belongs to one answer of one model, known by
the hash of question and answer: an answer that changed is another answer, and nothing decided before is applied to it.
Where several people decided on one, the latest counts."""

import contextlib
import csv
import fcntl
import os
import re
import subprocess
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from primekd.assessment.logs import LogRow
from primekd.assessment.reading import NOT_FOUND
from primekd.assessment.reading.numbers import find_numbers
from primekd.foundation import UserError, disk_errors, hash_json, project_root, relative_name
from primekd.foundation.manifests import Digest
from primekd.foundation.tables import read_cells, read_records, write_csv
from primekd.tasks.numbers import format_value

REVIEW, AUDIT = "review", "audit"
ACCEPT, CORRECT, NONE = "accept", "correct", "none"
_VALUE = re.compile(r"-?[0-9]{1,4000}(?:\.[0-9]{1,4000}|/[0-9]{1,4000})?")  # int() takes 4,300 digits, no more


def answer_hash(question: str, response: str) -> str:
    """sha256 that stands for one answer to one question."""
    return hash_json([question, response])


def as_written(value: Fraction | None) -> str:
    """A value as logs write it: -1 where no answer was given, so that a true minus one is written -1.0."""
    if value is None:
        return NOT_FOUND
    return "-1.0" if value == -1 else format_value(value)


def as_read(text: str) -> Fraction | None:
    """The inverse of `as_written`. Raises ValueError if the text is no value."""
    if text == NOT_FOUND:
        return None
    if not _VALUE.fullmatch(text) or re.search(r"/0+$", text):
        raise ValueError(f"{text[:40]!r} is no value")
    return Fraction(text)


def automatic_value(row: LogRow) -> Fraction | None:
    """What the published rules read in an answer; None where they found nothing (a log writes both as -1)."""
    return None if row.rule == "none" else Fraction(row.extracted)


def parse_typed(text: str) -> Fraction:
    """The number that a person typed. Raises UserError unless it is exactly one number."""
    bare = text.strip().removeprefix("+").removesuffix(".").removesuffix("%").strip()
    numbers = find_numbers(bare)
    if len(numbers) != 1 or bare[: numbers[0].start].strip() or bare[numbers[0].end :].strip("% "):
        raise UserError(f"{text.strip()[:40]!r} is no number: type one such as 18, -4, 2.5 or 1/3.")
    return numbers[0].value


def check_who(who: str | None) -> str:
    """The name of the person who decides, trimmed. Raises UserError if it is empty or cannot stand on one line."""
    name = (who or "").strip()
    if not name:
        raise UserError("Nobody is named as the one who decides: pass --who NAME, or set git's user.name.")
    if any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in name):
        raise UserError("The name of the one who decides may hold no line break and no control character.")
    return name


def _value(text: str) -> str:
    as_read(text)
    return text


def _person(text: str) -> str:
    try:
        check_who(text)
    except UserError as error:
        raise ValueError("empty, or with control characters") from error
    return text


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() is None:
        raise ValueError("the time has no offset from UTC")
    return text


@dataclass(frozen=True)
class Decision:
    """One row of assessment/adjudications.csv, all text. `automatic` is what the published rules read then, `value`
    what the person decided, both by `as_written`. `when` is ISO 8601 with its offset."""

    profile: str
    model: str
    id: str
    answer_sha256: Digest
    automatic: Annotated[str, AfterValidator(_value)]
    decision: Literal["accept", "correct", "none"]
    value: Annotated[str, AfterValidator(_value)]
    who: Annotated[str, AfterValidator(_person)]
    when: Annotated[str, AfterValidator(_moment)]
    purpose: Literal["review", "audit"]

    def __post_init__(self) -> None:
        if (self.value == NOT_FOUND) != (self.decision == NONE):
            raise ValueError("the value does not fit the decision")


COLUMNS = tuple(f.name for f in fields(Decision))


def default_who() -> str:
    """git's user.name, else $USER. Raises UserError if there is neither."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "config", "user.name"]
        done = subprocess.run(asked, cwd=project_root(), capture_output=True, text=True, timeout=20)
        if done.stdout.strip():
            return check_who(done.stdout)
    return check_who(os.environ.get("USER"))


def decisions_file() -> Path:
    return project_root() / "assessment" / "adjudications.csv"


def read_decisions() -> list[Decision]:
    """Every decision in the order of the file, if there is one. Raises UserError if a row cannot be read."""
    path = decisions_file()
    if not path.is_file() or not path.stat().st_size:
        return []
    for place, cells in read_cells(path, COLUMNS)[:1]:
        if more := [name for name in cells if name not in COLUMNS]:  # it would be lost with the next decision
            raise UserError(f"{relative_name(path)} {place}: it has a column too many, {more[0]!r}: take it out.")
    return read_records(path, Decision, fix="mend or remove it")


def add_decision(decision: Decision) -> None:
    """Saves a decision behind all others. Raises UserError, and writes nothing, if a row cannot be read."""
    with _locked(decisions_file()) as path:
        write_csv(path, COLUMNS, map(astuple, [*read_decisions(), decision]), csv.QUOTE_ALL)


def remove_decision(decision: Decision) -> None:
    """Takes back one decision; those of others stay. Raises UserError as `add_decision` does."""
    with _locked(decisions_file()) as path:
        kept = read_decisions()
        if decision in kept:
            del kept[len(kept) - 1 - kept[::-1].index(decision)]  # the last of equal rows
            write_csv(path, COLUMNS, map(astuple, kept), csv.QUOTE_ALL)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Holds the lock of a file's folder, so that two people who decide at once lose nothing; leaves no lock file."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(folder)


def by_answer(profile_name: str, decisions: Iterable[Decision]) -> dict[tuple[str, str, str], list[Decision]]:
    """(model, id, hash of the answer) -> the decisions of one profile on it, the latest last."""
    found: dict[tuple[str, str, str], list[Decision]] = {}
    for decision in sorted(decisions, key=lambda d: datetime.fromisoformat(d.when)):  # equal times keep their order
        if decision.profile == profile_name:
            found.setdefault((decision.model, decision.id, decision.answer_sha256), []).append(decision)
    return found


def apply_decisions(profile_name: str, model: str, rows: list[LogRow], decisions: Iterable[Decision]) -> list[LogRow]:
    """The rows of one model's log with `adjudicated` set where a person decided, and empty everywhere else. An audit
    that agrees with the automatic value adjudicates nothing by itself; one that differs does."""
    found = by_answer(profile_name, decisions)
    return [
        replace(row, adjudicated=_adjudicated(row, found.get((model, row.id, answer_hash(row.question, row.response)))))
        for row in rows
    ]


def _adjudicated(row: LogRow, decisions: list[Decision] | None) -> str:
    if not decisions:
        return ""
    value = as_read(decisions[-1].value)
    if value == automatic_value(row) and all(d.purpose == AUDIT for d in decisions):
        return ""
    return as_written(value)


def count_stale(profile_name: str, logs: dict[str, list[LogRow]], decisions: Iterable[Decision]) -> int:
    """How many decisions of a profile are for answers that its logs do not hold any more."""
    held = {(model, row.id, answer_hash(row.question, row.response)) for model, log in logs.items() for row in log}
    return sum(len(made) for answer, made in by_answer(profile_name, decisions).items() if answer not in held)
