"""Several training seeds of one strategy: what varies between seeds, told apart from what varies between items."""

from functools import partial

from primekd.report.cells import Table
from primekd.report.files import Row
from primekd.report.formats import MISSING, interval, p_value, percent
from primekd.report.results import Results
from primekd.statistics.families import title_of

ADJUDICATED = "The same, adjudicated"

ONE_SEED = "Every student was trained with one seed, so nothing is known of what another training seed would change."


def seed_table(results: Results) -> Table:
    """Means and differences over training seeds, with what varies between seeds and between items told apart."""
    head = [
        "Model", "Against", "Seeds", "n", "Accuracy or difference, points [95 %]", ADJUDICATED,
        "SD between seeds, points", "Standard error from items, points", "Standard error from seeds, points", "p",
    ]  # fmt: skip
    table = Table("Training seeds", head, [_seeds(row) for row in results.seeds], left=2)
    return table if results.decided else table.without(ADJUDICATED)


def _seeds(row: Row) -> list[str]:
    points = partial(percent, signed=bool(row["reference"]))
    return [
        title_of(row["model"]), title_of(row["reference"]) if row["reference"] else MISSING, row["seeds"], row["n"],
        interval(row, "accuracy", points), interval(row, "accuracy_adjudicated", points),
        *(percent(row[key]) if row[key] else MISSING for key in ("seed_sd", "item_se", "seed_se")),
        p_value(row["p"]) if row["p"] else MISSING,
    ]  # fmt: skip
