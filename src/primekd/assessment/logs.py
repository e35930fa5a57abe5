"""The per-item log, one row an item: its schema, reading and writing."""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationInfo

from primekd.assessment.reading import NOT_FOUND
from primekd.config import Profile
from primekd.foundation.tables import Count, Flag, Name, read_records, write_csv
from primekd.tasks.load import task_of
from primekd.tasks.numbers import NUMBERS
from primekd.tasks.protocol import Task

TOKENS = "tokens.safetensors"  # the tokens of all models, beside their logs (tokens.py)


def _as_value(text: str, info: ValidationInfo) -> str:
    """A value as logs write it: 18 for what a spreadsheet made 18.0. Raises ValueError if the task knows no such."""
    task = info.context or NUMBERS
    return task.write(task.parse(text))


def _as_decision(text: str, info: ValidationInfo) -> str:
    """A person's value; a true minus one is written -1.0, for -1 says that there is no answer."""
    return text if text in ("", "-1.0") else _as_value(text, info)


def _as_span(text: str) -> str:
    if not re.fullmatch(r"(?:[0-9]{1,9}:[0-9]{1,9})?", text):
        raise ValueError(f"{text[:20]!r} is no start:end")
    return ":".join(str(int(place)) for place in text.split(":")) if text else ""


@dataclass(frozen=True)
class LogRow:
    """One item of a per-item log, which is read through the types here. `adjudicated`: empty where nobody decided."""

    id: Name
    question: str
    gold: Annotated[str, BeforeValidator(_as_value)]
    response: str
    response_tokens: Count
    truncated: Flag
    extracted: Annotated[str, BeforeValidator(lambda text, info: text and _as_value(text, info))]
    rule: Name
    span: Annotated[str, BeforeValidator(_as_span)]
    correct: Flag
    adjudicated: Annotated[str, BeforeValidator(_as_decision)] = ""

    @property
    def correct_adjudicated(self) -> bool:
        """The verdict by a person's value where one was decided on, else the automatic one."""
        if not self.adjudicated:
            return self.correct
        if self.adjudicated == NOT_FOUND:
            return False
        return self.gold == (NOT_FOUND if self.adjudicated == "-1.0" else self.adjudicated)  # equal values, equal texts


COLUMNS = tuple(f.name for f in fields(LogRow))


def write_log(path: Path, rows: Iterable[LogRow]) -> None:
    """Writes a per-item log."""
    cells = ((int(v) if isinstance(v := getattr(row, column), bool) else v for column in COLUMNS) for row in rows)
    write_csv(path, COLUMNS, cells, csv.QUOTE_NONNUMERIC)  # a lone \r is lost without quotes


def read_log(path: Path, task: Task = NUMBERS) -> list[LogRow]:
    """Reads a per-item log, whose values are the task's. Raises UserError if it is absent or damaged."""
    return read_records(path, LogRow, context=task)


@dataclass(frozen=True)
class Listed:
    """A row of summary.csv, as far as it names a log."""

    model: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f]{1,100}$")]


def read_logs(profile: Profile) -> dict[str, list[LogRow]]:
    """Model -> its log, in the order of summary.csv. Raises UserError if one is missing or cannot be read."""
    models = [row.model for row in read_records(profile.logs / "summary.csv", Listed)]
    return {model: read_log(profile.logs / f"{model}.csv", task_of(profile.data)) for model in models}
