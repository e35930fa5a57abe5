"""Answers and gold values -> the per-item log, one row an item."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from primekd.assessment.answers import Answer
from primekd.assessment.extract import NOT_FOUND, extract
from primekd.assessment.numbers import format_value
from primekd.errors import UserError
from primekd.items import Item, parse_answer
from primekd.provenance import relative_name, write_text

COLUMNS = (
    "id", "question", "gold", "response", "response_tokens", "truncated", "extracted", "rule", "span", "correct",
    "adjudicated",
)  # fmt: skip


@dataclass(frozen=True)
class LogRow:
    """One item of a per-item log. `adjudicated` is empty where no person decided."""

    id: str
    question: str
    gold: str
    response: str
    response_tokens: int
    truncated: bool
    extracted: str
    rule: str
    span: str
    correct: bool
    adjudicated: str = ""

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
        UserError: the file is absent, has other columns, or a row that cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{relative_name(path)} is missing: run the assessment first.")
    csv.field_size_limit(2**24)
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UserError(f"{relative_name(path)} is no per-item log: its columns must be {','.join(COLUMNS)}.")
            return [_row(values) for values in reader]
    except (TypeError, ValueError, KeyError, csv.Error) as error:
        raise UserError(
            f"{relative_name(path)} has a row that cannot be read ({error}): run the assessment again."
        ) from error


def _row(values: dict[str, str]) -> LogRow:
    if None in values or None in values.values():
        raise ValueError("it has not one cell a column")
    parse_answer(values["gold"])
    Fraction(values["adjudicated"] or 0)
    flags = {name: values[name] == "1" for name in ("truncated", "correct")}
    return LogRow(**{**values, **flags, "response_tokens": int(values["response_tokens"])})
