"""How answers were read: which rules fired, each extractor's values, people's decisions, and whom to trust how far; and
the published study's own logs, as graded here (logs/published/)."""

from dataclasses import fields, replace
from decimal import Decimal
from functools import partial
from pathlib import Path

from primekd.assessment.decisions.decisions import as_read, automatic_value
from primekd.assessment.decisions.labels import LabelCounts
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import EXTRACTORS, NOT_FOUND, RULES
from primekd.foundation import UserError, nested, read_cells, read_table, relative_name
from primekd.report import formats
from primekd.report.cells import Name, Table, table_of
from primekd.report.claims import recounted
from primekd.report.formats import MISSING, between, interval, known, p_value, percent, points, significant, written
from primekd.report.results import ADJUDICATED, Results, Row, model_of, read_optional
from primekd.statistics.families import title_of
from primekd.statistics.summary import AccuracyRow
from primekd.statistics.validation import ALL_MODELS, AuditRow, ValidationRow, audit_scope
from primekd.studies.published import DisagreementRow, ExtractorContrastRow, StatedRow

SPREAD, DISAGREE = "Most minus least, points", "Extractors disagree on"
# Model -> one row of extractors.csv an item.
Readings = dict[str, dict[str, Row]]
MAIN_STRATA = ("all", "ended", "truncated")
LABELS = (
    "The labels say which value an answer commits to for its own question while it is still on it, right or wrong: a "
    "later correction counts, what follows the drift into other text does not, and an answer may commit to no value. "
    "They were given by language models that read the published logs along a written guide, blind to the gold answers, "
    "and stand in the repository as ids and values (docs/extraction.md)."
)
MEASURES = (
    "Coverage: of the answers that commit to a value, the share for which the extractor gives one. Precision: of the "
    "values that it gives, the share that is the labelled one. Kappa: Cohen's, agreement with the labels beyond "
    "chance, no value counting as a label of its own. Intervals: 95 %."
)


def rule_table(logs: dict[str, list[LogRow]], titles: dict[str, str], extractor: str = "published") -> Table:
    """For each model and rule of the extractor: how often it fired, and how often the number it gave was right."""

    def cell(name: str, rule: str) -> str:
        fired = [row for row in logs[name] if row.rule == rule]
        said = f"{len(fired)}" if fired and rule == "none" else _right(fired)
        by_hand = sum(row.correct_adjudicated for row in fired)
        return said + (f", adjudicated {by_hand} right" if by_hand != sum(row.correct for row in fired) else "")

    columns = {"Model": titles.__getitem__}
    for rule in RULES[extractor]:
        columns["no number found" if rule == "none" else rule] = partial(cell, rule=rule)
    return table_of("Extraction rules", logs, columns)


def length_table(logs: dict[str, list[LogRow]], titles: dict[str, str], decided: bool) -> Table:
    """Truncated answers, how many of them are right, and lengths in tokens."""
    by_hand = "Truncated and right, adjudicated"
    head = [
        "Model", "Truncated", "Truncated and right", by_hand, "Ended and right", "No number found",
        "Mean length, tokens", "Longest, tokens",
    ]  # fmt: skip
    rows = []
    for name, log in logs.items():
        cut, ended = [row for row in log if row.truncated], [row for row in log if not row.truncated]
        tokens = [row.response_tokens for row in log]
        share = percent(len(cut) / len(log)) if log else MISSING
        rows.append([
            titles[name], f"{len(cut)} ({share} %)", _right(cut), str(sum(row.correct_adjudicated for row in cut)),
            _right(ended), str(sum(row.rule == "none" for row in log)),
            significant(sum(tokens) / len(tokens), 3) if tokens else MISSING, str(max(tokens, default=0)),
        ])  # fmt: skip
    table = Table("Truncation and length", head, rows)
    return table if decided else table.without(by_hand)


def _right(rows: list[LogRow]) -> str:
    return f"{sum(row.correct for row in rows)} of {len(rows)}" if rows else MISSING


def read_accuracies(folder: Path) -> dict[str, dict[str, Row]]:
    """accuracies.csv as model -> extractor -> row; empty if there is no such file."""
    rows = read_optional(Path(folder) / "accuracies.csv", AccuracyRow)
    return nested((row["model"], row["extractor"], row) for row in rows)


def read_readings(folder: Path) -> Readings:
    """extractors.csv as model -> item id -> row, with a column an extractor; empty if there is no such file."""
    path = Path(folder) / "extractors.csv"
    cells = read_cells(path, ["model", "id", "gold", *EXTRACTORS]) if path.is_file() else []
    return nested((row["model"], row["id"], row) for _, row in cells)


def extractor_table(results: Results, accuracies: dict[str, dict[str, Row]], readings: Readings) -> Table:
    """Every model's accuracy under every extractor, how far these lie apart, and how many answers they differ on."""
    table, rows = by_extractor(results, accuracies, "Accuracy under every extractor", "accuracy"), []
    for cells, row in zip(table.rows, results.summary, strict=True):
        shares = [Decimal(found["accuracy"]) for found in accuracies.get(row["model"], {}).values()]
        spread = percent(max(shares) - min(shares)) if shares else MISSING
        read = readings.get(row["model"], {})
        # One that gives no value contradicts no other: strict-match is silent wherever there is no "####".
        apart = sum(len({values[name] for name in EXTRACTORS} - {NOT_FOUND}) > 1 for values in read.values())
        differ = f"{apart} of {len(read)}" if read else MISSING
        rows.append([*cells, interval(row, "accuracy_adjudicated", percent), spread, differ])
    table = replace(table, head=[*table.head, ADJUDICATED, SPREAD, DISAGREE], rows=rows)
    return table if results.decided else table.without(ADJUDICATED)


def by_extractor(results: Results, accuracies: dict[str, dict[str, Row]], label: str, measure: str) -> Table:
    """A row a model, a column an extractor, of a measure of accuracies.csv: accuracy, accuracy_adjudicated (by people's
    values in place of the extractor's where there are any) or found (for how many answers it gives a value)."""
    counted, columns = measure == "found", {"Model": model_of}
    write = (lambda row: f"{row['found']} of {row['n']}") if counted else between(measure, percent)
    for name in EXTRACTORS:
        cell = lambda row, name=name: known(accuracies.get(row["model"], {}).get(name), write)  # noqa: E731
        columns[name if counted else f"{name}, % [95 %]"] = cell
    return table_of(label, results.summary, columns)


def validation_table(validation: list[Row], name: str, main: bool) -> Table:
    """How well every extractor agrees with the labels of one set: over all and by ending, or by log and by rule."""
    kappa = lambda value: str(Decimal(value).quantize(Decimal("0.001"))) if value else MISSING  # noqa: E731
    columns = {
        "Extractor": "extractor", "Answers": "stratum", "n": "n", "Commit to a value": "with_value",
        "Value given": "found", "Coverage, % [95 %]": between("coverage", percent),
        "Precision, % [95 %]": between("precision", percent), "Kappa [95 %]": between("kappa", kappa),
    }  # fmt: skip
    rows = [row for row in validation if row["set"] == name and (row["stratum"] in MAIN_STRATA) == main]
    return table_of(f"Extractors against labels, {name} set", rows, columns, left=2)


def decision_table(logs: dict[str, list[LogRow]], titles: dict[str, str]) -> Table:
    """How many answers were decided by hand, and what that changed."""
    head = ["Model", "n", "Decided", "Value kept", "Value changed", "No answer given", "Became right", "Became wrong"]
    rows = []
    for name, log in logs.items():
        decided = [row for row in log if row.adjudicated]
        values = [(as_read(row.adjudicated), automatic_value(row)) for row in decided]
        nothing = sum(value is None for value, _ in values)
        kept = sum(value is not None and value == automatic for value, automatic in values)
        became_right = sum(row.correct_adjudicated and not row.correct for row in decided)
        became_wrong = sum(row.correct and not row.correct_adjudicated for row in decided)
        counts = len(log), len(decided), kept, len(decided) - nothing - kept, nothing, became_right, became_wrong
        rows.append([titles[name], *map(str, counts)])
    return Table("Answers decided by hand", head, rows)


def audit_table(folder: Path) -> Table:
    """Error rates of the automatic values in blind second looks; without rows if there were none."""
    columns = {
        "Model": written("model", lambda model: "All" if model == ALL_MODELS else title_of(model)), "Looked at": "n",
        "Automatic value wrong": "errors", "Error rate, % [95 %]": between("rate", percent),
    }  # fmt: skip
    return table_of("Blind second looks", read_optional(Path(folder) / "audit.csv", AuditRow), columns)


def audit_note(folder: Path, titles: dict[str, str]) -> str:
    """Which models the row of all covers, where it does not cover all of them."""
    audited = [row["model"] for row in read_optional(Path(folder) / "audit.csv", AuditRow)]
    return audit_scope([model for model in audited if model != ALL_MODELS], titles, title_of)


def study_table(folder: Path) -> Table:
    """Accuracies as stated, as recounted from the released verdicts, and as every extractor regrades the answers."""
    named = {row["model"]: row for row in read_table(Path(folder) / "stated.csv", StatedRow)}
    accuracies = read_accuracies(folder)
    if not accuracies:
        raise UserError(f"{relative_name(Path(folder) / 'accuracies.csv')} is missing or empty: grade the logs first.")
    extractors = dict.fromkeys(row["extractor"] for found in accuracies.values() for row in found.values())
    head = ["Model", "Stated, %", "Recounted, %", "Regraded, n", *(f"{name}, % [95 %]" for name in extractors)]
    rows = []
    for model in dict.fromkeys([*named, *accuracies]):
        said, found = named.get(model, {}), accuracies.get(model, {})
        rows.append([
            Name(said.get("title") or title_of(model), model), known(said.get("stated")), recounted(said),
            known(" or ".join(dict.fromkeys(row["n"] for row in found.values()))),
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
    extractors = dict.fromkeys(row["extractor"] for row in contrasts)
    cells = {(row["model"], row["reference"], row["extractor"]): row for row in contrasts}
    rows = [
        [title_of(model), title_of(reference),
         *(_contrast(cells.get((model, reference, extractor))) for extractor in extractors)]
        for model, reference in dict.fromkeys((row["model"], row["reference"]) for row in contrasts)
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
            f" True differences of {formats.percent_range(detectable)} points, depending on the comparison, would be "
            "found in 80 % of repetitions at the first threshold of Holm's adjustment."
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
