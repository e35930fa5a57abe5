"""The CSV files of one logs folder, read as rows of text, and as tables that are ready to be shown."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from primekd.assessment.held_out import HeldOutRow
from primekd.config.arm import CONTROL, NO_STUDENTS
from primekd.foundation import MANIFEST, UserError, read_manifest, read_table, relative_name
from primekd.foundation.tables import Cells as Row
from primekd.report.cells import Name, Table, table_of
from primekd.report.formats import between, detectable, interval, known, p_value, percent, points, significant, written
from primekd.statistics.contrasts import ContrastRow, SeedRow
from primekd.statistics.effects import EffectRow
from primekd.statistics.families import Pair, title_of
from primekd.statistics.sentences import beside_control
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


class Fit(NamedTuple):
    """What held-out fit is measured on, in words: of KL, of NLL, NLL's column, what intervals are over."""

    said: str
    nll: str
    column: str
    over: str


ON_ANSWERS = Fit(
    "KL is measured from the unprimed teacher, token by token on the teacher's own answers to the test items: it says "
    "how close a student is to that teacher, not whether its answers are right. The unprimed teacher is the reference "
    "for every strategy, whatever prompt its signals were captured with.",
    "gold solutions", "NLL of gold", "items",
)  # fmt: skip
ON_TEXT = Fit(
    "KL is measured from the teacher, token by token on held-out documents, and NLL is of their own text: they say how "
    "close a student is to the teacher, and how well it predicts text, not whether its answers are right.",
    "held-out documents", "NLL of text", "documents",
)  # fmt: skip


def read_optional(path: Path, kind: type) -> list[Row]:
    """Rows of a CSV file, which fit the dataclass `kind`; none where there is no such file."""
    return read_table(path, kind) if path.is_file() else []


@dataclass(frozen=True)
class Results:
    """The rows of the files, as text; `summary` has one row a model, in the order of the study. `named`: the main
    family where the profile names one; `named_after`: students trained before. `fit`: what held-out fit is of."""

    folder: Path
    summary: list[Row]
    contrasts: list[Row]
    seeds: list[Row]
    effects: list[Row] = field(default_factory=list)
    subsets: list[Row] = field(default_factory=list)
    named: tuple[Pair, ...] = ()
    named_after: tuple[str, ...] = ()
    fit: Fit = ON_ANSWERS

    @property
    def decided(self) -> bool:
        """Whether a person decided on any answer; if not, adjudicated numbers are the automatic ones."""
        return any(row["adjudicated"] not in ("", "0") for row in self.summary)

    @property
    def students(self) -> list[str]:
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
        return {row["model"]: row["title"] for row in self.summary}


def read_results(folder: Path) -> Results:
    folder = Path(folder)
    summary = read_table(folder / "summary.csv", SummaryRow)
    contrasts = read_table(folder / "contrasts.csv", ContrastRow)
    if not summary:
        raise UserError(f"{relative_name(folder / 'summary.csv')} names no model: run the assessment again.")
    kinds = {"seeds.csv": SeedRow, EFFECTS: EffectRow, SUBSETS: SubsetRow}
    seeds, effects, subsets = (read_optional(folder / name, kind) for name, kind in kinds.items())
    contrasts, effects, subsets = (beside_control(rows, effects) for rows in (contrasts, effects, subsets))
    manifest = read_manifest(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    fit, measured = ON_TEXT, len({row["id"] for row in read_optional(folder / "held-out.csv", HeldOutRow)})
    if "text" not in manifest.get("inputs", {}):
        fit = ON_ANSWERS
        if 0 < measured < int(summary[0]["n"]):
            said = f"{fit.said} KL and NLL are of the first {measured} test items alone."
            fit = fit._replace(said=said, over=f"the first {measured} items")
    return Results(folder, summary, contrasts, seeds, effects, subsets, *_named(manifest), fit)


def _named(manifest: dict[str, Any]) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    named = manifest.get("inputs", {}).get("planned", [])
    late = [model for model, facts in manifest.get("models", {}).items() if facts.get("planned", []) != named]
    return tuple((model, reference) for model, reference in named), tuple(late)


def model_of(row: Row) -> Name:
    model = row["model"]
    return Name(row.get("title") or title_of(model), model)


def result_table(results: Results) -> Table:
    """One row a model, in the order of summary.csv."""
    tested = {row["model"]: row["p_holm"] for row in results.contrasts if row["reference"] == CONTROL}
    columns = {
        "Model": model_of, "n": "n", "Correct": "correct", "Accuracy, % [95 %]": between("accuracy", percent),
        ADJUDICATED: between("accuracy_adjudicated", percent),
        "p against control": lambda row: known(tested.get(row["model"]), p_value), "Truncated": "truncated",
        "KL to teacher [95 %]": between("kl"), "NLL of gold [95 %]": between("nll_gold"),
    }  # fmt: skip
    return _needed(results, table_of("Results", results.summary, columns))


def contrast_table(results: Results, digits: int = 3) -> Table:
    """The planned contrasts: paired differences, model minus reference."""
    nats = partial(significant, digits=digits, signed=True)
    columns = {
        "Model": written("model", title_of), "Against": written("reference", title_of),
        ONLY_ONE: lambda row: known(row["only_model"] and f"{row['only_model']}, {row['only_reference']}"),
        UNADJUSTED: written("p", p_value), "p (Holm)": written("p_holm", p_value),
        P_ADJUDICATED: written("p_holm_adjudicated", p_value), "Accuracy, points [95 %]": between("accuracy", points),
        POINTS_ADJUDICATED: between("accuracy_adjudicated", points), "Detectable, points": written("mde", detectable),
        "KL [95 %]": between("kl", nats), "KL, p (Holm)": written("kl_p_holm", p_value),
        "NLL of gold [95 %]": between("nll_gold", nats), "NLL, p (Holm)": written("nll_gold_p_holm", p_value),
    }  # fmt: skip
    return _needed(results, table_of("Planned contrasts", results.contrasts, columns, left=2))


def _needed(results: Results, table: Table) -> Table:
    """Without columns that could only repeat another one, or have nothing to show; NLL is called by what it is of."""
    table = replace(table, head=[title.replace(ON_ANSWERS.column, results.fit.column) for title in table.head])
    gone = [] if results.decided else [ADJUDICATED, P_ADJUDICATED, POINTS_ADJUDICATED]
    return table.without(*gone, *([] if results.fitted else fit_columns(table)))


def fit_columns(table: Table) -> list[str]:
    return [title for title in table.head if title.startswith(("KL", "NLL"))]


def seed_table(results: Results) -> Table:
    """Means and differences over training seeds, with what varies between seeds and between items told apart."""
    adjudicated, write = "The same, adjudicated", lambda row: points if row["reference"] else percent
    columns = {
        "Model": written("model", title_of), "Against": written("reference", title_of), "Seeds": "seeds", "n": "n",
        "Accuracy or difference, points [95 %]": lambda row: interval(row, "accuracy", write(row)),
        adjudicated: lambda row: interval(row, "accuracy_adjudicated", write(row)),
        "SD between seeds, points": written("seed_sd", percent),
        "Standard error from items, points": written("item_se", percent),
        "Standard error from seeds, points": written("seed_se", percent), "p": written("p", p_value),
    }  # fmt: skip
    table = table_of("Training seeds", results.seeds, columns, left=2)
    return table if results.decided else table.without(adjudicated)


def response_table(folder: Path) -> Table:
    """A row an arm; without rows where the logs were made before there were any, or no store could be read."""
    columns = {
        "Arm": model_of, "n": "n", "Correct": "correct", "Accuracy, % [95 %]": between("accuracy", percent),
        "Tokens, mean": written("tokens", lambda tokens: f"{float(tokens):.1f}"), "Truncated": "truncated",
        "Same tokens, pooled, %": written("same_share", percent), "Same response": "same_whole",
    }  # fmt: skip
    rows = read_optional(Path(folder) / RESPONSES, ResponseRow)
    return table_of("The teacher's responses to the training items", rows, columns, notes=(RESPONSES_NOTE,))


def tuning_table(folder: Path) -> Table:
    """A row a student and learning rate; without rows where nothing was tuned."""
    columns = {
        "Student": lambda row: Name(title_of(row["student"]), row["student"]),
        "Learning rate": lambda row: f"{float(row['learning_rate']):g}",
        "Validation loss": lambda row: significant(row["validation_loss"]) if row["validation_loss"] else "diverged",
        "Chosen": lambda row: "yes" if row["chosen"] == "1" else "",
    }  # fmt: skip
    return table_of("Learning rates", read_optional(Path(folder) / TUNING, TuningRow), columns, notes=(TUNING_NOTE,))
