"""The per-item log, one row an item: its schema, reading and writing, and the judgement of an answer."""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field, ValidationInfo

from primekd.assessment.reading import NOT_FOUND, Extraction, extract, looks_cut
from primekd.config import Profile
from primekd.foundation.tables import Count, Flag, Name, read_records, write_csv
from primekd.tasks import NUMBERS, Item, Task, task_of

if TYPE_CHECKING:
    from primekd.assessment.answers import Answer

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


def grade_answer(item: Item, answer: "Answer", extractor: str = "published", task: Task = NUMBERS) -> LogRow:
    gold, tokens = task.write(item.answer), len(answer.ids)
    row = LogRow(item.id, item.question, gold, answer.text, tokens, answer.truncated, "", "", "", False)
    return grade_row(row, extractor, task)


def grade_row(row: LogRow, extractor: str = "published", task: Task = NUMBERS) -> LogRow:
    """A row with its answer judged by today's rules. What a person decided stays. `truncated` may be None on the way
    in: then it is judged from the text. `extractor`: finds the number in an answer, where the task asks for one."""

    def read(response: str, question: str) -> Extraction:
        return extract(response, extractor, row.truncated, question)

    judged = task.judge(Item(row.id, row.question, "", task.parse(row.gold)), row.response, read)
    return replace(
        row,
        truncated=looks_cut(row.response) if row.truncated is None else row.truncated,
        extracted=NOT_FOUND if judged.value is None else task.write(judged.value),
        rule=judged.rule,
        span="" if judged.span is None else f"{judged.span[0]}:{judged.span[1]}",
        correct=judged.correct,
    )


def grade_answers(
    items: Iterable[Item], answers: "Iterable[Answer]", extractor: str = "published", task: Task = NUMBERS
) -> list[LogRow]:
    """Grades every item. Raises ValueError if an answer is not the one to its item."""
    rows = []
    for item, answer in zip(items, answers, strict=True):
        if item.id != answer.item_id:
            raise ValueError(f"the answer to {answer.item_id} stands where {item.id} was asked")
        rows.append(grade_answer(item, answer, extractor, task))
    return rows
