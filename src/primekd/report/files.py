"""The CSV files of a logs folder, as rows of text that fit the dataclass they were written from."""

from collections.abc import Iterable
from pathlib import Path

from primekd.foundation.tables import read_cells, read_table

Row = dict[str, str]


def read_rows(path: Path, columns: type | Iterable[str]) -> list[Row]:
    """Rows of a CSV file that must be there.

    Args:
        columns: the dataclass of a row or, for any text, the columns.

    Raises:
        UserError: the file is missing, has not all of the columns, or a row that does not fit.
    """
    if isinstance(columns, type):
        return read_table(Path(path), columns)
    return [cells for _, cells in read_cells(Path(path), columns)]


def read_optional(path: Path, columns: type | Iterable[str]) -> list[Row]:
    """Rows of a CSV file; none where there is no such file."""
    return read_rows(path, columns) if Path(path).is_file() else []
