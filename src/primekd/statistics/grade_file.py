"""Grading any CSV file of answers."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from primekd.assessment.answers import Answer
from primekd.assessment.logs import LogRow, grade_answer, write_log
from primekd.assessment.reading import EXTRACTORS, RULES
from primekd.assessment.reading.ending import is_cut
from primekd.foundation import Cells, UserError, as_count, as_flag, clean, read_cells
from primekd.statistics.inference import accuracy
from primekd.tasks import Item, parse_answer
from primekd.tasks.clusters import item_of

TRUNCATION_COLUMN, LENGTH_COLUMN, ID_COLUMN, QUESTION_COLUMN = "truncated", "response_tokens", "id", "question"
EMPTY = ("", "nan", "na", "n/a", "none", "null")
T = TypeVar("T")
COLUMN, LENGTHS, TEXT = "by its column", "by a pile of answers of the greatest length", "guessed from how the texts end"
PILE = 0.05  # share of answers that have the greatest length; if it is more, that length was the limit


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what. Without `question`, a column of that name is used where there is one."""

    response: str
    gold: str
    question: str | None = None


def read_rows(path: Path, needed: Iterable[str] = ()) -> list[tuple[str, Cells]]:
    """The place and cells of every row of a CSV file. Raises UserError if it has none, or as `read_cells`."""
    if not (rows := read_cells(path, needed, asked=True)):
        raise UserError(f"{path} has no rows.")
    return rows


def token_limit(rows: list[Cells], response: str) -> int | None:
    """The limit of new tokens, None where lengths show none: many answers have exactly its length, and most of these
    stop in the middle of a sentence. Raises ValueError if a length is neither empty nor a whole number."""
    lengths = [_optional(row, LENGTH_COLUMN, as_count) for row in rows]
    known = [length for length in lengths if length is not None]
    most = max(known, default=0)
    pile = [row[response] for row, length in zip(rows, lengths, strict=True) if length == most]
    many = len(pile) > max(1, PILE * len(known))
    return most if many and sum(is_cut(text) for text in pile) > len(pile) / 2 else None


def truncation_found(rows: list[Cells], response: str) -> str:
    """How it is known which answers were truncated: `COLUMN`, `LENGTHS` or, for rows that say neither, `TEXT`."""
    stated = TRUNCATION_COLUMN in rows[0]
    column, known = (TRUNCATION_COLUMN, COLUMN) if stated else (LENGTH_COLUMN, LENGTHS)
    said = 0
    if stated or token_limit(rows, response) is not None:
        said = sum(_optional(row, column, str) is not None for row in rows)
    return known if said == len(rows) else f"{known}, {len(rows) - said} {TEXT}" if said else TEXT


def grade_rows(path: Path, columns: Columns, extractor: str = "published") -> list[LogRow]:
    """Grades every row. Truncated is what a column says, else who is in the pile of answers of the greatest length,
    else as the text ends. Raises UserError if the file cannot be read, an id stands twice, or a gold value is no
    number."""
    if extractor not in EXTRACTORS:
        raise UserError(f"No extractor is called {extractor!r}: choose from {', '.join(EXTRACTORS)}.")
    rows = read_rows(path, [columns.response, columns.gold, *([columns.question] if columns.question else [])])
    cells = [row for _, row in rows]
    asked = columns.question or (QUESTION_COLUMN if QUESTION_COLUMN in cells[0] else None)
    _check(path, rows, columns.gold)
    limit = None if TRUNCATION_COLUMN in cells[0] else token_limit(cells, columns.response)
    graded = []
    for number, row in enumerate(cells, start=1):
        item = Item(row.get(ID_COLUMN) or str(number), row[asked] if asked else "", "", parse_answer(row[columns.gold]))
        tokens, truncated = _optional(row, LENGTH_COLUMN, as_count), _optional(row, TRUNCATION_COLUMN, as_flag)
        if limit is not None and tokens is not None:
            truncated = tokens >= limit
        one = grade_answer(item, Answer(item.id, [], truncated, row[columns.response]), extractor)
        graded.append(replace(one, response_tokens=tokens or 0))
    return graded


def _check(path: Path, rows: list[tuple[str, Cells]], gold: str) -> None:
    """Raises UserError if an id stands in several rows (it is their number where there is none), or a cell is unfit."""
    places: dict[str, list[str]] = {}
    for number, (place, row) in enumerate(rows, start=1):
        places.setdefault(row.get(ID_COLUMN) or str(number), []).append(place)
    if twice := [f"{clean(name, 60)} ({', '.join(at[:5])})" for name, at in places.items() if len(at) > 1]:
        raise UserError(f"{path}: an id may stand once; {'; '.join(twice[:3])}: give each row its own, or no ids.")
    for place, row in rows:
        for column, read in ((TRUNCATION_COLUMN, as_flag), (LENGTH_COLUMN, as_count)):
            try:
                _optional(row, column, read)
            except ValueError as error:
                raise UserError(f"{path} {place}: {column!r} is {error}.") from error
        try:
            parse_answer(row[gold])
        except ValueError as error:
            raise UserError(f"{path} {place}: the gold value in {gold!r} {error}.") from error


def _optional(row: Cells, column: str, read: Callable[[str], T]) -> T | None:
    """A cell of a column that a file may have; None where it is empty, as pandas or a person writes that."""
    cell = row.get(column, "").strip()
    return None if cell.lower() in EMPTY else read(cell)


def grade_file(path: Path, columns: Columns, out: Path | None = None, extractor: str = "published") -> dict[str, Any]:
    """Grades a file; with `out`, writes its per-item log (an unknown length is 0). Raises UserError as `grade_rows`."""
    if out and out.exists() and path.exists() and out.samefile(path):
        raise UserError(f"{out} is the file that is graded: name another one for the log.")
    log = grade_rows(path, columns, extractor)
    cells = [row for _, row in read_rows(path, [columns.response, columns.gold])]
    if out:
        write_log(out, log)
    share, *interval = accuracy([r.correct for r in log], [item_of(r.id) for r in log])
    fired = Counter(r.rule for r in log)
    return {
        "n": len(log),
        "correct": sum(r.correct for r in log),
        "accuracy": share,
        "ci95": interval,
        "truncated": sum(r.truncated for r in log),
        "rules": {rule: fired[rule] for rule in RULES[extractor]},
        "extractor": extractor,
        "truncated_found": truncation_found(cells, columns.response),
    }


def say_result(result: dict[str, Any]) -> str:
    low, high = result["ci95"]
    rules = ", ".join(f"{rule} {count}" for rule, count in result["rules"].items())
    return (
        f"{result['correct']} of {result['n']} correct: {result['accuracy']:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}), {result['truncated']} truncated ({result['truncated_found']})\n"
        f"rules that fired ({result['extractor']}): {rules}"
    )
