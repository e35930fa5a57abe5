"""What the check finds: one JSON file and one Markdown table, written anew after every row, so that nothing is lost."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

JSON, TABLE = "gpu.json", "gpu.md"
DONE, RUNNING, CUT, FAILED = "done", "running", "cut off", "failed"


@dataclass(frozen=True)
class Row:
    """One measured value.

    Attributes:
        what: what was measured, in words; `key` is its name for other parts.
        value: None where it was not run; `note` then says why.
        most, least: what it must not be above, or below; both None where nothing is asked of it.
        hope: a bound of speed or size: one that does not hold is a finding, not an error.
        also: what was measured with it, by its unit.
    """

    key: str
    what: str
    value: float | None
    unit: str = ""
    most: float | None = None
    least: float | None = None
    hope: bool = False
    note: str = ""
    also: dict[str, float | None] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """Whether the bound holds; nan never does. None without a bound or a value."""
        if self.value is None or (self.most is None and self.least is None):
            return None
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    @property
    def distance(self) -> float:
        """How many times its bound a value is beyond it; below 1 where it holds."""
        if self.holds is None:
            return 0.0
        ratio = self.value / self.most if self.most is not None else self.least / max(self.value, 1e-30)
        return math.inf if math.isnan(ratio) else ratio


class Report:
    """The findings of all parts, in a folder; each part's process opens it anew."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / JSON
        self.facts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"parts": {}}

    def open(self, facts: dict[str, Any]) -> None:
        """Begins a run; what an earlier one found stays where it ran the same code on the same machine."""
        same = all(self.facts.get(key) == value for key, value in facts.items())
        self.facts = facts | {"parts": self.facts["parts"] if same else {}}
        self.write()

    def begin(self, part: str, **facts: Any) -> None:
        """A part that begins has no rows, whatever an earlier run found."""
        self.facts["parts"][part] = {"state": RUNNING, "rows": [], **facts}
        self.write()

    def end(self, part: str, state: str, **facts: Any) -> None:
        self.facts["parts"][part] |= {"state": state, **facts}
        self.write()

    def add(self, part: str, *rows: Row) -> None:
        """Keeps rows at once, and prints them."""
        for row in rows:
            self.facts["parts"][part]["rows"].append(asdict(row))
            print(f"  {line(row)}", flush=True)
        self.write()

    def rows(self, part: str) -> list[Row]:
        return [Row(**row) for row in self.facts["parts"].get(part, {}).get("rows", [])]

    def row(self, part: str, key: str) -> Row | None:
        """A row by its key; None where it was not measured."""
        return next((row for row in self.rows(part) if row.key == key), None)

    def wrong(self) -> list[tuple[str, Row]]:
        """Rows that must hold and do not."""
        return [(p, row) for p in self.facts["parts"] for row in self.rows(p) if row.holds is False and not row.hope]

    def missed(self) -> list[tuple[str, Row]]:
        """Hopes that do not hold, the farthest first."""
        rows = [(p, row) for p in self.facts["parts"] for row in self.rows(p) if row.holds is False and row.hope]
        return sorted(rows, key=lambda entry: -entry[1].distance)

    def write(self) -> None:
        write_whole(self.folder / JSON, json.dumps(self.facts, indent=1) + "\n")
        write_whole(self.folder / TABLE, markdown(self))


def write_whole(path: Path, text: str) -> None:
    """The check must keep what it found even where nothing of the project imports, so it writes its files itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def shown(value: float | None) -> str:
    """At most four digits."""
    if value is None:
        return "not run"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def asked(row: Row) -> str:
    """The bound in words."""
    sign, bound = ("at most", row.most) if row.most is not None else ("at least", row.least)
    return "" if bound is None else f"{'hoped: ' if row.hope else ''}{sign} {shown(bound)}"


def verdict(row: Row) -> str:
    if row.holds is None:
        return "not run" if row.value is None else ""
    if row.holds:
        return "holds"
    return "**not reached**" if row.hope else "**WRONG**"


def measured(row: Row) -> str:
    return shown(row.value) if row.value is None else f"{shown(row.value)} {row.unit}".rstrip()


def noted(row: Row) -> str:
    """What was measured with it, and the note."""
    return ", ".join(
        [*(f"{shown(v)} {unit}" for unit, v in row.also.items() if v is not None), *filter(None, [row.note])]
    )


def line(row: Row) -> str:
    """A row for the screen."""
    said = [] if row.value is None else [verdict(row).strip("*")]
    parts = [f"{row.what}: {measured(row)}", asked(row), *said, noted(row)]
    return "; ".join(part for part in parts if part)


def cell(text: str) -> str:
    """Text of a Markdown cell: what an exception or a device says must not end it."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def markdown(report: Report) -> str:
    """Everything as one table, with what it ran on above it."""
    facts = report.facts.get("machine", {})
    head = [f"{name}: {cell(str(value))}" for name, value in facts.items() if value is not None]
    rows = ["| part | what | measured | bound | verdict | note |", "| --- | --- | ---: | --- | --- | --- |"]
    for part, found in report.facts["parts"].items():
        for row in report.rows(part):
            cells = (part, row.what, measured(row), asked(row), verdict(row), noted(row))
            rows.append("| " + " | ".join(map(cell, cells)) + " |")
        seconds = found.get("seconds")
        spent = "" if seconds is None else f"{seconds:.0f} s"
        why = found.get("why", "")
        rows.append("| " + " | ".join(map(cell, (part, f"*the part: {found['state']}*", spent, "", "", why))) + " |")
    return "\n".join([*(f"- {entry}" for entry in head), "", *rows]) + "\n"
