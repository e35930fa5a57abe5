"""A table before it is HTML or Markdown: cells are text, written out, that nobody has escaped yet."""

import html
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from primekd.report.formats import MISSING, known, markdown, markdown_code

TERMINAL_WIDTH = 120  # columns; fixed, so that a pipe, a log file and a screen show the same
# What our own formats write; such a cell needs no backslashes. `](` is left out, it would make a link.
_NUMBERS = re.compile(r"(?:[-+–\d.,;%<>= ()\[]|\](?!\()|\bof\b|\bp\b|(?<=\d)e)*")


@dataclass(frozen=True)
class Name:
    """A model: its published title, and its name in folders and files."""

    title: str
    model: str


@dataclass(frozen=True)
class Files:
    """Names of files, relative to the checkout."""

    names: tuple[str, ...]


Cell = str | Name | Files


@dataclass(frozen=True)
class Table:
    """Head and rows; the first `left` columns are words, the others numbers. `label` says what it shows; `notes` are
    paragraphs below it on a Markdown page, as Markdown."""

    label: str
    head: list[str]
    rows: list[list[Cell]]
    left: int = 1
    notes: tuple[str, ...] = ()

    def without(self, *titles: str) -> "Table":
        kept = [place for place, title in enumerate(self.head) if title not in titles]
        left = sum(place < self.left for place in kept)
        head, *rows = ([row[place] for place in kept] for row in [self.head, *self.rows])
        return replace(self, head=head, rows=rows, left=left)


def table_of(label: str, rows: Iterable, columns: Mapping[str, str | Callable], **more) -> Table:
    """A table with a row for each of `rows`, and a column for each title: what writes its cell of a row, or the key of
    a text (– where that is empty). `more`: the other fields of the table."""
    ways = [(lambda row, key=way: known(row[key])) if isinstance(way, str) else way for way in columns.values()]
    return Table(label, list(columns), [[way(row) for way in ways] for row in rows], **more)


def to_markdown(table: Table) -> str:
    rows = [[_markdown(cell) for cell in row] for row in table.rows]
    head = [_markdown(title).replace("\\[95 %\\]", "[95 %]") for title in table.head]  # makes no link there
    rule = ["---" if column < table.left else "--:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def _markdown(cell: Cell) -> str:
    if isinstance(cell, Name):
        same = cell.title == cell.model
        return markdown_code(cell.model) if same else f"{markdown(cell.title)} ({markdown_code(cell.model)})"
    if isinstance(cell, Files):  # a name that is not shown as code is not safe as a link's target either
        codes = {name: markdown_code(name) for name in cell.names}
        return ", ".join(f"[{c}]({n})" if c.startswith("`") else c for n, c in codes.items()) or MISSING
    return html.escape(cell, quote=False) if _NUMBERS.fullmatch(cell) else markdown(cell)


def to_text(table: Table) -> str:
    """The table as plain text, at most 120 columns wide. Cells are Text objects: none is read as rich markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, name in enumerate(table.head):
        grid.add_column(Text(name), justify="left" if place < table.left else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(_plain(cell)) for cell in row))
    # Not the caller's terminal: no colours, no detection, the same bytes everywhere.
    out = io.StringIO()
    plain = {"color_system": None, "force_terminal": False, "force_jupyter": False, "legacy_windows": False}
    Console(file=out, width=TERMINAL_WIDTH, **plain).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _plain(cell: Cell) -> str:
    if isinstance(cell, Name):
        return cell.model if cell.title == cell.model else f"{cell.title} ({cell.model})"
    return ", ".join(cell.names) if isinstance(cell, Files) else cell
