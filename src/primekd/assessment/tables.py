"""The CSV tables beside the logs: rows are dataclasses, cells are text."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from primekd.errors import UserError
from primekd.provenance import relative_name, write_text


def write_table(path: Path, kind: type, rows: Iterable[Any]) -> Path:
    """Writes a table; returns its path."""
    write_text(path, table_text(kind, rows))
    return path


def table_text(kind: type, rows: Iterable[Any]) -> str:
    """Rows of one dataclass under a header of its fields; floats with six digits, None as an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in asdict(row).items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table as text. Raises UserError if it is absent."""
    if not path.is_file():
        raise UserError(f"{relative_name(path)} is missing: run the assessment first.")
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
