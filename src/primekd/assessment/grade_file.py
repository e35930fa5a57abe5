"""Grading any CSV file of answers."""

import csv
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from primekd.assessment.answers import Answer
from primekd.assessment.extract import EXTRACTORS, RULES
from primekd.assessment.extract.ending import is_cut
from primekd.assessment.grade import LogRow, grade_answer, write_log
from primekd.assessment.statistics import accuracy
from primekd.errors import UserError
from primekd.items import Item, parse_answer

TRUNCATION_COLUMN, LENGTH_COLUMN, ID_COLUMN, QUESTION_COLUMN = "truncated", "response_tokens", "id", "question"
PILE = 0.05  # share of answers that have the greatest length; if it is more, that length was the limit


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what. Without `question`, a column of that name is used where there is one."""

    response: str
    gold: str
    question: str | None = None


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
            if not columns:
                raise UserError(f"{path} is empty.")
            if missing := [name for name in needed if name not in columns]:
                raise UserError(f"{path} has no column {missing[0]!r}: it has {', '.join(columns)}.")
            if len(set(columns)) < len(columns):
                raise UserError(f"{path} has two columns of one name: {', '.join(columns)}.")
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 CSV: {error}.") from error
    if not rows:
        raise UserError(f"{path} has no rows.")
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise UserError(f"{path} row {number} has more cells than columns: quote cells that hold a comma.")
    return rows


def check_extractor(name: str) -> None:
    """Raises UserError if there is no extractor of that name."""
    if name not in EXTRACTORS:
        raise UserError(f"No extractor is called {name!r}: choose from {', '.join(EXTRACTORS)}.")


def token_limit(rows: list[dict[str, str]], response: str) -> int | None:
    """The limit of new tokens that the answers ran into; None where their lengths show none.

    Where there was a limit, many answers have exactly its length, and most of these stop in the middle of a sentence.
    """
    lengths = [int(n) for row in rows if (n := row.get(LENGTH_COLUMN) or "").isdecimal()]
    if len(lengths) < len(rows):
        return None
    most = max(lengths)
    pile = [row[response] or "" for row, length in zip(rows, lengths, strict=True) if length == most]
    many = len(pile) > max(1, PILE * len(rows))
    return most if many and sum(is_cut(text) for text in pile) > len(pile) / 2 else None


def grade_rows(path: Path, columns: Columns, extractor: str = "published") -> list[LogRow]:
    """Grades every row of a file.

    Whether an answer was truncated is taken from a column `truncated`, else from the pile of answers that have the
    greatest `response_tokens`, else judged from its text.

    Raises:
        UserError: the file cannot be read, or a gold value is no number; the sentence names the row.
    """
    check_extractor(extractor)
    rows = read_csv(path, [columns.response, columns.gold, *([columns.question] if columns.question else [])])
    asked = columns.question or (QUESTION_COLUMN if QUESTION_COLUMN in rows[0] else None)
    for number, row in enumerate(rows, start=2):
        if (flag := (row.get(TRUNCATION_COLUMN) or "").strip().lower()) not in FLAGS:
            raise UserError(f"{path} row {number}: {TRUNCATION_COLUMN!r} is {flag[:20]!r}, neither 1 nor 0.")
    limit = None if TRUNCATION_COLUMN in rows[0] else token_limit(rows, columns.response)
    return [
        _grade(path, n, row, replace(columns, question=asked), extractor, limit) for n, row in enumerate(rows, start=2)
    ]


def _grade(path: Path, number: int, row: dict[str, str], columns: Columns, extractor: str, limit: int | None) -> LogRow:
    try:
        answer = parse_answer(row[columns.gold] or "")
    except ValueError as error:
        raise UserError(f"{path} row {number}: the gold value in {columns.gold!r} {error}.") from error
    item = Item(
        row.get(ID_COLUMN) or str(number - 1), row[columns.question] or "" if columns.question else "", "", answer
    )
    length = row.get(LENGTH_COLUMN) or ""
    tokens = int(length) if length.isdecimal() else 0
    graded = grade_answer(
        item, Answer(item.id, [], _is_truncated(row, tokens, limit), row[columns.response] or ""), extractor
    )
    return replace(graded, response_tokens=tokens)


FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": None}


def _is_truncated(row: dict[str, str], tokens: int, limit: int | None) -> bool | None:
    if TRUNCATION_COLUMN in row:
        return FLAGS[(row[TRUNCATION_COLUMN] or "").strip().lower()]
    return None if limit is None else tokens >= limit


def grade_file(path: Path, columns: Columns, out: Path | None = None, extractor: str = "published") -> dict[str, Any]:
    """Grades a file; with `out`, writes its per-item log (an unknown length is 0 there).

    Returns:
        n, correct, accuracy, ci95 (Wilson), truncated, rules (how often each fired) and extractor.

    Raises:
        UserError: as `grade_rows`.
    """
    if out and out.exists() and path.exists() and out.samefile(path):
        raise UserError(f"{out} is the file that is graded: name another one for the log.")
    log = grade_rows(path, columns, extractor)
    if out:
        write_log(out, log)
    share = accuracy([r.correct for r in log])
    fired = Counter(r.rule for r in log)
    return {
        "n": len(log),
        "correct": sum(r.correct for r in log),
        "accuracy": share.value,
        "ci95": [share.low, share.high],
        "truncated": sum(r.truncated for r in log),
        "rules": {rule: fired[rule] for rule in RULES[extractor]},
        "extractor": extractor,
    }


def say_result(result: dict[str, Any]) -> str:
    """The result in words."""
    low, high = result["ci95"]
    rules = ", ".join(f"{rule} {count}" for rule, count in result["rules"].items())
    return (
        f"{result['correct']} of {result['n']} correct: {result['accuracy']:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}), {result['truncated']} truncated\n"
        f"rules that fired ({result['extractor']}): {rules}"
    )
