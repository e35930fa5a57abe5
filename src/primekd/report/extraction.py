"""How answers were read: which rules fired, each extractor's values, people's decisions, and whom to trust how far."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from primekd.assessment.decisions.decisions import ALL_MODELS, as_read, automatic_value
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import EXTRACTORS, NOT_FOUND, RULES
from primekd.report.cells import Cell, Name, Table
from primekd.report.formats import MISSING, interval, percent, significant
from primekd.report.results import ADJUDICATED, Results, Row, read_optional
from primekd.statistics.families import title_of
from primekd.statistics.summary import AccuracyRow
from primekd.statistics.validation import AuditRow, audit_scope

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
    rules = RULES[extractor]
    rows = []
    for name, log in logs.items():
        cells = []
        for rule in rules:
            fired = [row for row in log if row.rule == rule]
            cells.append(MISSING if not fired else f"{len(fired)}" if rule == "none" else _right(fired))
            by_hand = sum(row.correct_adjudicated for row in fired)
            if by_hand != sum(row.correct for row in fired):
                cells[-1] += f", adjudicated {by_hand} right"
        rows.append([titles[name], *cells])
    return Table("Extraction rules", ["Model", *("no number found" if r == "none" else r for r in rules)], rows)


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
    accuracies: dict[str, dict[str, Row]] = {}
    for row in read_optional(Path(folder) / "accuracies.csv", AccuracyRow):
        accuracies.setdefault(row["model"], {})[row["extractor"]] = row
    return accuracies


def read_readings(folder: Path) -> Readings:
    """extractors.csv as model -> item id -> row, with a column an extractor; empty if there is no such file."""
    readings: Readings = {}
    for row in read_optional(Path(folder) / "extractors.csv", ["model", "id", "gold", *EXTRACTORS]):
        readings.setdefault(row["model"], {})[row["id"]] = row
    return readings


def extractor_table(results: Results, accuracies: dict[str, dict[str, Row]], readings: Readings) -> Table:
    """Every model's accuracy under every extractor, how far these lie apart, and how many answers they differ on."""
    table = by_extractor(results, accuracies, "Accuracy under every extractor", "accuracy")
    head = [*table.head, ADJUDICATED, SPREAD, DISAGREE]
    rows = [
        [
            *cells, interval(row, "accuracy_adjudicated", percent), _spread(accuracies.get(row["model"], {})),
            _disagreements(readings.get(row["model"], {})),
        ]
        for cells, row in zip(table.rows, results.summary, strict=True)
    ]  # fmt: skip
    table = replace(table, head=head, rows=rows)
    return table if results.decided else table.without(ADJUDICATED)


def by_extractor(results: Results, accuracies: dict[str, dict[str, Row]], label: str, measure: str) -> Table:
    """A row a model, a column an extractor, of a measure of accuracies.csv: accuracy, accuracy_adjudicated (by people's
    values in place of the extractor's where there are any) or found (for how many answers it gives a value)."""
    counted = measure == "found"

    def cell(row: Row | None) -> str:
        if row is None:
            return MISSING
        return f"{row['found']} of {row['n']}" if counted else interval(row, measure, percent)

    head = ["Model", *(name if counted else f"{name}, % [95 %]" for name in EXTRACTORS)]
    rows: list[list[Cell]] = []
    for row in results.summary:
        found = accuracies.get(row["model"], {})
        rows.append([Name(row["title"], row["model"]), *(cell(found.get(name)) for name in EXTRACTORS)])
    return Table(label, head, rows)


def _spread(found: dict[str, Row]) -> str:
    shares = [Decimal(row["accuracy"]) for row in found.values()]
    return percent(max(shares) - min(shares)) if shares else MISSING


def _disagreements(readings: dict[str, Row]) -> str:
    # One that gives no value contradicts no other: strict-match is silent wherever there is no "####".
    apart = sum(len({row[name] for name in EXTRACTORS} - {NOT_FOUND}) > 1 for row in readings.values())
    return f"{apart} of {len(readings)}" if readings else MISSING


def sets_of(validation: list[Row]) -> list[str]:
    """The sets of labelled answers, the unseen one first."""
    return sorted({row["set"] for row in validation}, key=lambda name: (name != "validation", name))


def validation_table(validation: list[Row], name: str, main: bool) -> Table:
    """How well every extractor agrees with the labels of one set: over all and by ending, or by log and by rule."""
    head = [
        "Extractor", "Answers", "n", "Commit to a value", "Value given", "Coverage, % [95 %]", "Precision, % [95 %]",
        "Kappa [95 %]",
    ]  # fmt: skip
    rows = [
        [
            row["extractor"], row["stratum"], row["n"], row["with_value"], row["found"],
            interval(row, "coverage", percent), interval(row, "precision", percent), interval(row, "kappa", _kappa),
        ]
        for row in validation
        if row["set"] == name and (row["stratum"] in MAIN_STRATA) == main
    ]  # fmt: skip
    return Table(f"Extractors against labels, {name} set", head, rows, left=2)


def _kappa(value: str) -> str:
    return str(Decimal(value).quantize(Decimal("0.001"))) if value else MISSING


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
