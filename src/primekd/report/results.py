"""The CSV files of one logs folder, read as rows of text, and as tables that are ready to be shown."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from primekd.config.arm import CONTROL, NO_STUDENTS
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import MANIFEST, read_manifest, relative_name
from primekd.foundation.tables import Cells as Row
from primekd.foundation.tables import read_cells, read_table
from primekd.report.cells import Name, Table
from primekd.report.formats import MISSING, interval, p_value, percent, significant
from primekd.statistics.contrasts import ContrastRow, SeedRow
from primekd.statistics.effects import EffectRow
from primekd.statistics.families import Pair, title_of
from primekd.statistics.subsets import SubsetRow
from primekd.statistics.summary import SummaryRow
from primekd.studies.responses import RESPONSES, ResponseRow
from primekd.studies.results import EFFECTS, SUBSETS, TUNING
from primekd.training.tuning import TuningRow

ADJUDICATED = "Adjudicated, % [95 %]"
P_ADJUDICATED, POINTS_ADJUDICATED = "p (Holm), adjudicated", "Accuracy, points [95 %], adjudicated"
ONLY_ONE, UNADJUSTED = "Only model, only reference right", "p"  # in the report alone, too much for other places
AUTOMATIC = "Sentences go by the automatic verdicts, whatever people decided; adjudicated numbers stand in the tables."
TUNING_NOTE = (
    "Every student was trained under each rate; the one with the lowest loss on the gold solutions of the validation "
    "items (nats a token, at the end of training) was kept and scored. No test item was looked at."
)
RESPONSES_NOTE = (
    "The teacher's responses to the training items, by the prompt of each arm: what its student learned from. A "
    "priming that changes how long, how often right or how often cut off they are changes more than their wording. "
    "Same tokens: of all positions of this and the unprimed response, the share at which both have the same token; "
    "same response: the whole is the unprimed one."
)


def read_rows(path: Path, columns: type | Iterable[str]) -> list[Row]:
    """Rows of a CSV file that must be there; `columns` is the dataclass of a row or, for any text, the columns. Raises
    UserError if the file is missing, has not all of the columns, or a row that does not fit."""
    if isinstance(columns, type):
        return read_table(Path(path), columns)
    return [cells for _, cells in read_cells(Path(path), columns)]


def read_optional(path: Path, columns: type | Iterable[str]) -> list[Row]:
    """Rows of a CSV file; none where there is no such file."""
    return read_rows(path, columns) if Path(path).is_file() else []


@dataclass(frozen=True)
class Results:
    """The rows of the files, as text; `summary` has one row a model, in the order of the study. `named`: the main
    family where the profile names one; `named_after`: the students that were trained before it did."""

    folder: Path
    summary: list[Row]
    contrasts: list[Row]
    seeds: list[Row]
    effects: list[Row] = field(default_factory=list)
    subsets: list[Row] = field(default_factory=list)
    named: tuple[Pair, ...] = ()
    named_after: tuple[str, ...] = ()

    @property
    def decided(self) -> bool:
        """Whether a person decided on any answer; if not, adjudicated numbers are the automatic ones."""
        return any(row["adjudicated"] not in ("", "0") for row in self.summary)

    @property
    def students(self) -> list[str]:
        """The models that were trained."""
        return [row["model"] for row in self.summary if row["model"] not in NO_STUDENTS]

    @property
    def fitted(self) -> bool:
        """Whether held-out answers were scored."""
        return any(row["kl"] or row["nll_gold"] for row in self.summary)

    @property
    def with_kl(self) -> bool:
        """Whether the distance to the teacher was measured; it cannot be where the teacher's text alone was kept."""
        return any(row["kl"] for row in self.summary)

    @property
    def titles(self) -> dict[str, str]:
        """Model -> published title."""
        return {row["model"]: row["title"] for row in self.summary}


def read_results(folder: Path) -> Results:
    """Reads a logs folder. Raises UserError if one of the files is missing, is empty or has other columns."""
    folder = Path(folder)
    summary, contrasts = (
        read_rows(folder / name, kind) for name, kind in (("summary.csv", SummaryRow), ("contrasts.csv", ContrastRow))
    )
    if not summary:
        raise UserError(f"{relative_name(folder / 'summary.csv')} names no model: run the assessment again.")
    kinds = {"seeds.csv": SeedRow, EFFECTS: EffectRow, SUBSETS: SubsetRow}
    tables = (read_optional(folder / name, kind) for name, kind in kinds.items())
    return Results(folder, summary, contrasts, *tables, *_named(folder))


def _named(folder: Path) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    manifest = read_manifest(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    named = manifest.get("inputs", {}).get("planned", [])
    late = [model for model, facts in manifest.get("models", {}).items() if facts.get("planned", []) != named]
    return tuple((model, reference) for model, reference in named), tuple(late)


def result_table(results: Results) -> Table:
    """One row a model, in the order of summary.csv."""
    head = [
        "Model", "n", "Correct", "Accuracy, % [95 %]", ADJUDICATED, "p against control", "Truncated",
        "KL to teacher [95 %]", "NLL of gold [95 %]",
    ]  # fmt: skip
    rows, against_control = [], {r["model"]: r for r in results.contrasts if r["reference"] == CONTROL}
    for row in results.summary:
        test = against_control.get(row["model"])
        rows.append([
            Name(row["title"], row["model"]), row["n"], row["correct"], interval(row, "accuracy", percent),
            interval(row, "accuracy_adjudicated", percent), p_value(test["p_holm"]) if test else MISSING,
            row["truncated"], interval(row, "kl"), interval(row, "nll_gold"),
        ])  # fmt: skip
    return _needed(results, Table("Results", head, rows))


def contrast_table(results: Results, digits: int = 3) -> Table:
    """The planned contrasts: paired differences, model minus reference."""
    head = [
        "Model", "Against", ONLY_ONE, UNADJUSTED, "p (Holm)", P_ADJUDICATED, "Accuracy, points [95 %]",
        POINTS_ADJUDICATED, "Detectable, points", "KL [95 %]", "KL, p (Holm)", "NLL of gold [95 %]", "NLL, p (Holm)",
    ]  # fmt: skip
    points, nats = partial(percent, signed=True), partial(significant, digits=digits, signed=True)
    rows = [
        [
            title_of(row["model"]), title_of(row["reference"]),
            f"{row['only_model']}, {row['only_reference']}" if row["only_model"] else MISSING,
            p_value(row["p"]), p_value(row["p_holm"]), p_value(row["p_holm_adjudicated"]),
            interval(row, "accuracy", points), interval(row, "accuracy_adjudicated", points),
            percent(row["mde"]), interval(row, "kl", nats), _p(row["kl_p_holm"]),
            interval(row, "nll_gold", nats), _p(row["nll_gold_p_holm"]),
        ]
        for row in results.contrasts
    ]  # fmt: skip
    return _needed(results, Table("Planned contrasts", head, rows, left=2))


def _p(p: str) -> str:
    return p_value(p) if p else MISSING


def _needed(results: Results, table: Table) -> Table:
    """Without columns that could only repeat another one, or have nothing to show."""
    gone = [] if results.decided else [ADJUDICATED, P_ADJUDICATED, POINTS_ADJUDICATED]
    return table.without(*gone, *([] if results.fitted else [t for t in table.head if t.startswith(("KL", "NLL"))]))


def seed_table(results: Results) -> Table:
    """Means and differences over training seeds, with what varies between seeds and between items told apart."""
    adjudicated = "The same, adjudicated"
    head = [
        "Model", "Against", "Seeds", "n", "Accuracy or difference, points [95 %]", adjudicated,
        "SD between seeds, points", "Standard error from items, points", "Standard error from seeds, points", "p",
    ]  # fmt: skip
    table = Table("Training seeds", head, [_seed_cells(row) for row in results.seeds], left=2)
    return table if results.decided else table.without(adjudicated)


def _seed_cells(row: Row) -> list[str]:
    points = partial(percent, signed=bool(row["reference"]))
    return [
        title_of(row["model"]), title_of(row["reference"]) if row["reference"] else MISSING, row["seeds"], row["n"],
        interval(row, "accuracy", points), interval(row, "accuracy_adjudicated", points),
        *(percent(row[key]) if row[key] else MISSING for key in ("seed_sd", "item_se", "seed_se")),
        p_value(row["p"]) if row["p"] else MISSING,
    ]  # fmt: skip


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


def tuning_table(folder: Path) -> Table:
    """A row a student and learning rate; without rows where nothing was tuned."""
    head = ["Student", "Learning rate", "Validation loss", "Chosen"]
    rows = [
        [
            Name(title_of(row["student"]), row["student"]), f"{float(row['learning_rate']):g}",
            significant(row["validation_loss"]) if row["validation_loss"] else "diverged",
            "yes" if row["chosen"] == "1" else "",
        ]
        for row in read_optional(Path(folder) / TUNING, TuningRow)
    ]  # fmt: skip
    return Table("Learning rates", head, rows, notes=(TUNING_NOTE,))
