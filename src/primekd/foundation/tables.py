"""CSV files of rows: written from dataclasses, and read into them, or refused in one sentence. A file may have been
through a spreadsheet or pandas: a byte order mark, semicolons or tabs, other line ends, another order of the columns
and further ones change nothing of what it says, nor do True for 1 and 50.0 for 50."""

import csv
import functools
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from primekd.foundation.errors import UserError, findings_text
from primekd.foundation.outside import clean
from primekd.foundation.storage import relative_name, write_text

T, K, L = TypeVar("T"), TypeVar("K"), TypeVar("L")
Cells = dict[str, str]
MOST = 1e15  # no count, sum or share here is greater
AGAIN = "run the assessment again"
FLAGS = {"1": True, "true": True, "yes": True, "1.0": True, "0": False, "false": False, "no": False, "0.0": False}


def nested(cells: Iterable[tuple[K, L, T]]) -> dict[K, dict[L, T]]:
    """Outer key -> inner key -> value of such triples, in their order; the last of equal keys counts."""
    found: dict[K, dict[L, T]] = {}
    for outer, inner, value in cells:
        found.setdefault(outer, {})[inner] = value
    return found


def as_flag(text: object) -> bool:
    """1, True, yes and 1.0, or their opposites. Raises ValueError for anything else."""
    if (word := str(text).strip().lower()) not in FLAGS:
        raise ValueError(f"{word[:20]!r}, neither 1 nor 0")
    return FLAGS[word]


def as_count(text: object) -> int:
    """A whole number that is not negative; 50.0 is 50. Raises ValueError for anything else."""
    if not (found := re.fullmatch(r"\s*([0-9]{1,15})(?:\.0*)?\s*", str(text))):
        raise ValueError(f"{str(text).strip()[:20]!r}, no whole number from 0 on")
    return int(found[1])


Flag = Annotated[bool, BeforeValidator(as_flag)]
Count = Annotated[int, BeforeValidator(as_count)]
Name = Annotated[str, Field(min_length=1)]
_ENDS = "with its interval"
Estimated = Annotated[float, _ENDS]  # of a `table_row`: a value and, in two more columns, the ends of its interval
MaybeEstimated = Annotated[float | None, _ENDS]


@dataclass_transform(frozen_default=True)
def table_row(kind: type[T]) -> type[T]:
    """A frozen dataclass of a table's columns; behind an estimated `x` stand `x_low` and `x_high`."""
    columns: dict[str, Any] = {}
    for name, hint in kind.__annotations__.items():
        estimated = _ENDS in getattr(hint, "__metadata__", ())
        columns |= dict.fromkeys((name, f"{name}_low", f"{name}_high") if estimated else (name,), hint)
    kind.__annotations__ = columns
    return dataclass(frozen=True)(kind)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable], quoting: int = csv.QUOTE_MINIMAL) -> None:
    """Writes rows of cells under a header; None is an empty cell, and floats have all their digits."""
    write_text(path, _csv_text(columns, rows, quoting))


def _csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]], quoting: int = csv.QUOTE_MINIMAL) -> str:
    text = io.StringIO()
    text.write(",".join(columns) + "\n")
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows(rows)
    return text.getvalue()


def write_records(path: Path, kind: type, rows: Iterable[Any]) -> None:
    """Writes rows of a dataclass as `read_records` reads them, all digits of floats; a tuple fills one cell."""
    cells = ([" ".join(map(repr, cell)) if isinstance(cell, tuple) else cell for cell in astuple(row)] for row in rows)
    write_csv(path, [f.name for f in fields(kind)], cells)


def write_table(path: Path, kind: type, rows: Iterable[Any]) -> Path:
    write_text(path, table_text(kind, rows))
    return path


def table_text(kind: type, rows: Iterable[Any]) -> str:
    """Rows of one dataclass under a header of its fields; floats with six digits, None as an empty cell."""
    return _csv_text([f.name for f in fields(kind)], (map(_cell, astuple(row)) for row in rows))


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def read_table(path: Path, kind: type | None = None) -> list[Cells]:
    """Rows of a table as text; with `kind`, only if they fit that dataclass. Raises UserError as `read_records`."""
    if kind is not None:
        read_records(path, kind)
    return [cells for _, cells in read_cells(path, [f.name for f in fields(kind)] if kind else ())]


def read_records(path: Path, kind: type[T], context: Any = None, needed: bool = True, fix: str = AGAIN) -> list[T]:
    """Rows of a file as instances of a dataclass, whose validators get `context`; ints are counts, floats finite.
    Raises UserError if it is absent (unless not `needed`), no CSV, lacks columns (named), or a row does not fit (and
    says `fix`)."""
    if not needed and not path.is_file():
        return []
    adapter, optional = _schema(kind)
    found = []
    for place, cells in read_cells(path, [f.name for f in fields(kind)]):
        given = {f.name: cells[f.name] for f in fields(kind)}
        try:
            given |= {name: None for name in optional if given[name] == ""}
            found.append(adapter.validate_python(given, context=context))
        except ValidationError as error:
            raise UserError(f"{relative_name(path)} {place}: {findings_text(error)}: {fix}.") from error
        for name, value in vars(found[-1]).items():
            low = 0 if isinstance(value, int) else -MOST
            if isinstance(value, int | float) and not low <= value <= MOST:  # nor is NaN
                raise UserError(f"{relative_name(path)} {place}: {name} is {value}, out of range: {fix}.")
    return found


@functools.cache
def _schema(kind: type) -> tuple[TypeAdapter, frozenset[str]]:
    """What checks a row, and the columns in which an empty cell stands for None."""
    hints = get_type_hints(kind)
    return TypeAdapter(kind), frozenset(name for name, hint in hints.items() if type(None) in get_args(hint))


def read_cells(path: Path, needed: Iterable[str], asked: bool = False) -> list[tuple[str, Cells]]:
    """The place (`row 3`) and the cells of every row that has any text, by column. `asked`: a person named the file and
    the columns; sentences then call it as that person did, and say which columns it has. Raises UserError if the file
    is absent, no UTF-8 or no CSV, lacks columns, or a row has not one cell a column."""
    name, needed = str(path) if asked else relative_name(path), list(needed)
    if not path.is_file():
        raise UserError(f"{name} is not there." if asked else f"{name} is missing: run the assessment first.")
    csv.field_size_limit(2**24)
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            text = handle.read()
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, needed), strict=True)
        header = next(reader, [])
        _check_header(name, header, needed, asked)
        rows, end = [], reader.line_num
        for number, row in enumerate(reader, start=2):
            place = f"row {number}" + (f" (line {end + 1})" if end + 1 != number else "")
            end = reader.line_num
            if any(row):
                rows.append((place, _by_column(name, place, header, row)))
        return rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read as UTF-8 CSV: {error}.") from error


def _delimiter(text: str, needed: list[str]) -> str:
    """What separates the cells: a comma, unless the header shows more of the needed columns with another one."""
    headers = {mark: next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), []) for mark in ",;\t"}
    return max(headers, key=lambda mark: len(set(needed) & set(headers[mark])) if needed else len(headers[mark]))


def _check_header(name: str, header: list[str], needed: list[str], asked: bool) -> None:
    if not any(header):
        raise UserError(f"{name} is empty.")
    named = [column for column in header if column]
    if missing := [column for column in needed if column not in named]:
        has = f": it has {clean(', '.join(named))}" if asked else ""
        raise UserError(f"{name} has no column {', '.join(map(repr, missing))}{has}.")
    if twice := [column for column in dict.fromkeys(named) if named.count(column) > 1]:
        raise UserError(f"{name} has two columns of one name: {clean(twice[0], 40)}.")


def _by_column(name: str, place: str, header: list[str], row: list[str]) -> Cells:
    if len(row) > len(header):
        raise UserError(f"{name} {place} has more cells than columns: quote cells that hold a comma.")
    if len(row) < len(header):
        raise UserError(f"{name} {place} has {len(row)} cells, not {len(header)}: it was cut short; mend the row.")
    return {column: cell for column, cell in zip(header, row, strict=True) if column}
