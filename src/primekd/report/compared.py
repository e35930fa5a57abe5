"""Models that were asked beside a study's own (`primekd compare-models`): their tables, and the rows of these."""

from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from primekd.assessment.costs import FILE as COSTS
from primekd.assessment.costs import CostRow
from primekd.foundation.tables import read_records
from primekd.report.costs import cost_table
from primekd.report.shown import Shown, show_table
from primekd.report.text import text_tables
from primekd.statistics.choices import BenchmarkRow
from primekd.statistics.facts import FactRow
from primekd.studies.results import BENCHMARKS, FACTS


def compared_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What was measured: the rows of every table, by the table's name."""
    paths = {
        Path(folder) / name: kind for name, kind in ((FACTS, FactRow), (BENCHMARKS, BenchmarkRow), (COSTS, CostRow))
    }
    return {path.stem: [asdict(r) for r in read_records(path, kind)] for path, kind in paths.items() if path.is_file()}


def show_compared(folder: Path) -> Shown:
    """Facts or benchmarks, and what a thousand answers cost, for a notebook or a terminal."""
    tables = [*text_tables(folder), cost_table(folder)]
    return reduce(add, [show_table(table, " ".join(table.notes)) for table in tables])
