"""Answers and gold values -> the per-item log, one row an item."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from primekd.assessment.answers import Answer
from primekd.assessment.extract import NOT_FOUND, extract
from primekd.assessment.numbers import format_value
from primekd.assessment.tables import Count, Flag, Name, read_records
from primekd.items import Item, parse_answer
from primekd.provenance import write_text

COLUMNS = (
    "id", "question", "gold", "response", "response_tokens", "truncated", "extracted", "rule", "span", "correct",
    "adjudicated",
)  # fmt: skip


def _as_value(text: str) -> str:
    """A value as logs write it: 18 for what a spreadsheet made 18.0. Raises ValueError if it is none."""
    return format_value(parse_answer(text))


def _as_decision(text: str) -> str:
    """A person's value; a true minus one is written -1.0, for -1 says that there is no answer."""
    return text if text in ("", "-1.0") else _as_value(text)


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
    extracted: Annotated[str, BeforeValidator(lambda text: text and _as_value(text))]
    rule: Name
    span: Annotated[str, BeforeValidator(_as_span)]
    correct: Flag
    adjudicated: Annotated[str, BeforeValidator(_as_decision)] = ""

    @property
    def correct_adjudicated(self) -> bool:
        """The verdict by a person's value where one was decided on, else the automatic one."""
        if not self.adjudicated:
            return self.correct
        return self.adjudicated != NOT_FOUND and Fraction(self.adjudicated) == Fraction(self.gold)


def grade_answer(item: Item, answer: Answer, extractor: str = "published") -> LogRow:
    """Extracts an answer's number and compares it, as a number, with the gold value."""
    gold = format_value(Fraction(item.answer))
    row = LogRow(item.id, item.question, gold, answer.text, len(answer.ids), answer.truncated, "", "", "", False)
    return grade_row(row, extractor)


def grade_row(row: LogRow, extractor: str = "published") -> LogRow:
    """A row with its answer extracted and graded by today's rules. What a person decided stays.

    `truncated` may be None on the way in: then it is judged from the text.
    """
    found = extract(row.response, extractor, row.truncated, row.question)
    return replace(
        row,
        truncated=found.truncated,
        extracted=found.text,
        rule=found.rule,
        span="" if found.span is None else f"{found.span[0]}:{found.span[1]}",
        correct=found.value is not None and found.value == Fraction(row.gold),
    )


def grade_answers(items: Iterable[Item], answers: Iterable[Answer], extractor: str = "published") -> list[LogRow]:
    """Grades every item. Raises ValueError if an answer is not the one to its item."""
    rows = []
    for item, answer in zip(items, answers, strict=True):
        if item.id != answer.item_id:
            raise ValueError(f"the answer to {answer.item_id} stands where {item.id} was asked")
        rows.append(grade_answer(item, answer, extractor))
    return rows


def write_log(path: Path, rows: Iterable[LogRow]) -> None:
    """Writes a per-item log."""
    text = io.StringIO()
    text.write(",".join(COLUMNS) + "\n")
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # a lone \r is lost without quotes
    for row in rows:
        writer.writerow(int(v) if isinstance(v := getattr(row, column), bool) else v for column in COLUMNS)
    write_text(path, text.getvalue())


def read_log(path: Path) -> list[LogRow]:
    """Reads a per-item log.

    Raises:
        UserError: the file is absent, lacks columns, or has a row that cannot be read.
    """
    return read_records(path, LogRow)
