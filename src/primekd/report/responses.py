"""What the teacher wrote for the training items under each arm's prompt: a table, where the logs have it."""

from pathlib import Path

from primekd.report.cells import Name, Table
from primekd.report.files import read_optional
from primekd.report.formats import MISSING, interval, percent
from primekd.statistics.families import title_of
from primekd.studies.responses import RESPONSES, ResponseRow

NOTE = (
    "The teacher's responses to the training items, by the prompt of each arm: what its student learned from. A "
    "priming that changes how long, how often right or how often cut off they are changes more than their wording. "
    "Same tokens: of all positions of this and the unprimed response, the share at which both have the same token; "
    "same response: the whole is the unprimed one."
)


def response_table(folder: Path) -> Table:
    """A row an arm; without rows where the logs were made before there were any, or no store could be read."""
    head = ["Arm", "n", "Correct", "Accuracy, % [95 %]", "Tokens, mean", "Truncated", "Same tokens, %", "Same response"]
    rows = [
        [
            Name(title_of(row["model"]), row["model"]), row["n"], row["correct"], interval(row, "accuracy", percent),
            f"{float(row['tokens']):.1f}", row["truncated"],
            percent(row["same_share"]) if row["same_share"] else MISSING, row["same_whole"] or MISSING,
        ]
        for row in read_optional(Path(folder) / RESPONSES, ResponseRow)
    ]  # fmt: skip
    return Table("The teacher's responses to the training items", head, rows)
