"""Grading any CSV file of answers."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from primekd.assessment.answers import Answer
from primekd.assessment.extract import RULES
from primekd.assessment.grade import LogRow, grade_answer, write_log
from primekd.assessment.statistics import accuracy
from primekd.errors import UserError
from primekd.items import Item, parse_answer

TRUNCATION_COLUMN, LENGTH_COLUMN, ID_COLUMN = "truncated", "response_tokens", "id"


def read_csv(path: Path, needed: list[str]) -> list[dict[str, str]]:
    """Rows of a CSV file.

    Raises:
        UserError: it is absent, not UTF-8, empty, or lacks a needed column.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there.")
    csv.field_size_limit(2**24)
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            columns = reader.fieldnames or []
            if missing := [name for name in needed if name not in columns]:
                raise UserError(f"{path} has no column {missing[0]!r}: it has {', '.join(columns)}.")
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 CSV: {error}.") from error
    if not rows:
        raise UserError(f"{path} has no rows.")
    return rows


def grade_file(path: Path, response: str, gold: str, question: str | None, out: Path | None) -> dict[str, Any]:
    """Grades every row; returns n, correct, accuracy, ci95, truncated and how often each rule fired.

    `truncated` counts the column of that name; None where the file has none. An unknown length is 0 in the log.

    Raises:
        UserError: the file cannot be read, or a gold value is no number; the sentence names the row.
    """
    rows = read_csv(path, [response, gold, *([question] if question else [])])
    known = TRUNCATION_COLUMN in rows[0]
    log = [_grade(path, n, row, response, gold, question) for n, row in enumerate(rows, start=2)]
    if out:
        write_log(out, log)
    share = accuracy([r.correct for r in log])
    fired = Counter(r.rule for r in log)
    return {
        "n": len(log),
        "correct": sum(r.correct for r in log),
        "accuracy": share.value,
        "ci95": [share.low, share.high],
        "truncated": sum(r.truncated for r in log) if known else None,
        "rules": {rule: fired[rule] for rule in RULES},
    }


def _grade(path: Path, number: int, row: dict[str, str], response: str, gold: str, question: str | None) -> LogRow:
    try:
        answer = parse_answer(row[gold] or "")
    except ValueError as error:
        raise UserError(f"{path} row {number}: the gold value in {gold!r} {error}.") from error
    item = Item(row.get(ID_COLUMN) or str(number - 1), row[question] if question else "", "", answer)
    text = row[response] or ""
    cut = (row.get(TRUNCATION_COLUMN) or "").strip().lower() in {"1", "true", "yes"}
    length = row.get(LENGTH_COLUMN) or "0"
    graded = grade_answer(item, Answer(item.id, [], cut, text))
    return replace(graded, response_tokens=int(length) if length.isdecimal() else 0)


def say_result(result: dict[str, Any]) -> str:
    """The result in words."""
    low, high = result["ci95"]
    rules = ", ".join(f"{rule} {count}" for rule, count in result["rules"].items())
    return (
        f"{result['correct']} of {result['n']} correct: {result['accuracy']:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%})\n"
        f"rules that fired: {rules}"
    )
