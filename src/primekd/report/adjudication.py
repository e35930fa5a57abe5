"""What people decided by hand, and how wrong the automatic values were in blind second looks."""

from pathlib import Path

from primekd.assessment.decisions.decisions import ALL_MODELS, as_read, automatic_value
from primekd.assessment.logs import LogRow
from primekd.report.cells import Table
from primekd.report.files import read_optional
from primekd.report.formats import interval, percent
from primekd.statistics.audit import AuditRow, audit_scope
from primekd.statistics.families import title_of


def decision_table(logs: dict[str, list[LogRow]], titles: dict[str, str]) -> Table:
    """How many answers were decided by hand, and what that changed."""
    head = ["Model", "n", "Decided", "Value kept", "Value changed", "No answer given", "Became right", "Became wrong"]
    rows = []
    for name, log in logs.items():
        decided = [row for row in log if row.adjudicated]
        values = [(as_read(row.adjudicated), automatic_value(row)) for row in decided]
        nothing = sum(value is None for value, _ in values)
        kept = sum(value is not None and value == automatic for value, automatic in values)
        rows.append([
            titles[name], str(len(log)), str(len(decided)), str(kept), str(len(decided) - nothing - kept),
            str(nothing), str(sum(row.correct_adjudicated and not row.correct for row in decided)),
            str(sum(row.correct and not row.correct_adjudicated for row in decided)),
        ])  # fmt: skip
    return Table("Answers decided by hand", head, rows)


def audit_table(folder: Path) -> Table:
    """Error rates of the automatic values in blind second looks; without rows if there were none."""
    rows = [
        ["All" if row["model"] == ALL_MODELS else title_of(row["model"]), row["n"], row["errors"],
         interval(row, "rate", percent)]
        for row in read_optional(Path(folder) / "audit.csv", AuditRow)
    ]  # fmt: skip
    return Table("Blind second looks", ["Model", "Looked at", "Automatic value wrong", "Error rate, % [95 %]"], rows)


def audit_note(folder: Path, titles: dict[str, str]) -> str:
    """Which models the row of all covers, where it does not cover all of them."""
    audited = [
        row["model"] for row in read_optional(Path(folder) / "audit.csv", AuditRow) if row["model"] != ALL_MODELS
    ]
    return audit_scope(audited, titles, title_of)
