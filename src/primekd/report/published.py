"""The published study's own logs, as graded here: tables for a Markdown page, from logs/published/."""

from dataclasses import fields, replace
from pathlib import Path

from primekd.assessment.decisions.labels import LabelCounts
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import relative_name
from primekd.foundation.tables import read_table
from primekd.report.cells import Name, Table, table_of
from primekd.report.claims import recounted
from primekd.report.extraction import LABELS, MEASURES, read_accuracies, validation_table
from primekd.report.formats import MISSING, interval, known, p_value, percent, percent_range, points
from primekd.report.results import Row, model_of
from primekd.statistics.families import title_of
from primekd.statistics.validation import ValidationRow
from primekd.studies.published import DisagreementRow, ExtractorContrastRow, StatedRow


def study_table(folder: Path) -> Table:
    """Accuracies as stated, as recounted from the released verdicts, and as every extractor regrades the answers."""
    named = {row["model"]: row for row in read_table(Path(folder) / "stated.csv", StatedRow)}
    accuracies = read_accuracies(folder)
    if not accuracies:
        raise UserError(f"{relative_name(Path(folder) / 'accuracies.csv')} is missing or empty: grade the logs first.")
    extractors = _ordered(row["extractor"] for found in accuracies.values() for row in found.values())
    head = ["Model", "Stated, %", "Recounted, %", "Regraded, n", *(f"{name}, % [95 %]" for name in extractors)]
    rows = []
    for model in _ordered([*named, *accuracies]):
        said, found = named.get(model, {}), accuracies.get(model, {})
        rows.append([
            Name(said.get("title") or title_of(model), model), known(said.get("stated")), recounted(said),
            known(" or ".join(_ordered(row["n"] for row in found.values()))),
            *(interval(found[name], "accuracy", percent) if name in found else MISSING for name in extractors),
        ])  # fmt: skip
    note = (
        "Recounted: right verdicts in the released log. The other columns grade the released answers anew, each with "
        "another extractor; 95 % Wilson intervals."
    )
    return Table("The published study, stated, recounted and regraded", head, rows, notes=(note,))


def contrast_matrix(folder: Path) -> Table:
    """A row a published contrast, a column an extractor."""
    contrasts = read_table(Path(folder) / "contrasts.csv", ExtractorContrastRow)
    extractors = _ordered(row["extractor"] for row in contrasts)
    cells = {(row["model"], row["reference"], row["extractor"]): row for row in contrasts}
    rows = [
        [title_of(model), title_of(reference),
         *(_contrast(cells.get((model, reference, extractor))) for extractor in extractors)]
        for model, reference in _ordered((row["model"], row["reference"]) for row in contrasts)
    ]  # fmt: skip
    # Where no item tells two models apart (an extractor that finds nothing), nothing could be detected either.
    apart = [row for row in contrasts if int(row["only_model"]) + int(row["only_reference"])]
    detectable = [row["mde"] for row in apart if row["mde"]]
    note = (
        "Difference in accuracy, points, with its 95 % t interval over paired items; p: exact McNemar, Holm-adjusted "
        "over all contrasts of one extractor."
    )
    if detectable:
        note += (
            f" True differences of {percent_range(detectable)} points, depending on the comparison, would be found in "
            "80 % of repetitions at the first threshold of Holm's adjustment."
        )
    return Table("The published contrasts", ["Model", "Against", *extractors], rows, left=2, notes=(note,))


def _contrast(row: Row | None) -> str:
    if row is None:
        return MISSING
    p = p_value(row["p_holm"])
    return f"{interval(row, 'accuracy', points)}; p {p if p.startswith('<') else f'= {p}'}"


def disagreement_table(folder: Path) -> Table:
    """Released verdicts against those of the published rules by themselves, a row a log that has released verdicts."""
    columns = {
        "Model": model_of, "n": "n", "Both right": "both", "Released right, rules wrong": "only_released",
        "Rules right, released wrong": "only_rules", "Both wrong": "neither",
    }  # fmt: skip
    note = "Rules: the published rules by themselves, as they are implemented here (column published above)."
    rows = read_table(Path(folder) / "disagreements.csv", DisagreementRow)
    return table_of("Released verdicts against the published rules", rows, columns, notes=(note,))


def label_table(folder: Path) -> Table:
    """Labelled answers, and how alike two readings were."""
    head = ["Set", "Answers", "Value stated", "Value implied", "No value", "Ambiguous", "Read twice", "Read alike"]
    names = [f.name for f in fields(LabelCounts)]
    rows = [[row[name] for name in names] for row in read_table(Path(folder) / "labels.csv", LabelCounts)]
    return Table("Labelled answers", head, rows)


def validation_short(folder: Path) -> Table:
    """The unseen labelled answers, over all and by ending, for every extractor. Raises UserError if there are none."""
    return replace(validation_strata(folder, main=True), notes=(LABELS, MEASURES))


def validation_strata(folder: Path, main: bool = False) -> Table:
    """The same by log and by the published rule that fired. Raises UserError as validation_short does."""
    path = Path(folder) / "validation.csv"
    table = validation_table(read_table(path, ValidationRow), "validation", main)
    if not table.rows:
        raise UserError(f"{relative_name(path)} has no row of the set 'validation': validate the extractors first.")
    return table


def _ordered(values) -> list:
    return list(dict.fromkeys(values))
