"""The published study's own logs, graded here: logs/published/, without the texts of the answers."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import yaml

from primekd.assessment.adjudicate import answer_hash
from primekd.assessment.extract import EXTRACTORS
from primekd.assessment.grade import LogRow
from primekd.assessment.grade_file import Columns, grade_rows, read_csv
from primekd.assessment.labels import LabelCounts, count_labels, labels_file, read_labels
from primekd.assessment.regrade import rules_hashes
from primekd.assessment.rivals import AccuracyRow, Reading, accuracies, read_all
from primekd.assessment.statistics import compare_all
from primekd.assessment.summary import planned_contrasts, title_of
from primekd.assessment.tables import write_table
from primekd.assessment.validation import ValidationRow, validate
from primekd.errors import UserError
from primekd.provenance import hash_file, project_root, relative_name, write_manifest, write_text

COLUMNS = Columns(response="response", gold="gold_solution", question="question")
PUBLISHED_VERDICT = "published_correct"
SAMPLES = 2000  # bootstrap


@dataclass(frozen=True)
class StatedRow:
    """What the paper states of a model (percent), and what its released verdicts count."""

    model: str
    title: str
    n: int | None
    stated: str
    logged_correct: int | None
    logged_n: int | None


@dataclass(frozen=True)
class ExtractorContrastRow:
    """One planned contrast of the published models under one extractor; accuracy is model minus reference."""

    extractor: str
    model: str
    reference: str
    only_model: int
    only_reference: int
    p: float
    p_holm: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    mde: float


def grade_published(folder: Path) -> Path:
    """Grades the released logs in `folder` under every extractor and validates these against the labels.

    Writes accuracies.csv, verdicts.csv, stated.csv, contrasts.csv, validation.csv, labels.csv and manifest.json.

    Returns:
        logs/published/ of the checkout.

    Raises:
        UserError: there are no logs in the folder, they have not the same items, or an answer is not the labelled one.
    """
    paths = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if not paths:
        raise UserError(f"{folder} has no CSV files: name the folder of the published logs.")
    facts = stated_facts()
    order = [name for name in facts if name in paths] + [name for name in paths if name not in facts]
    logs = {name: grade_rows(paths[name], COLUMNS) for name in order}
    refuse_other_items(logs)
    readings = {name: read_all(name, rows) for name, rows in logs.items()}
    labels = read_labels()
    answers = {(name, row.id): row for name, rows in logs.items() for row in rows}
    for label in labels:
        row = answers.get((label.log, label.id))
        if row is None or answer_hash(row.question, row.response) != label.answer_sha256:
            raise UserError(f"The answer {label.id} of {label.log} is not the one that was labelled.")
    released = {name: [row.get(PUBLISHED_VERDICT, "") for row in read_csv(paths[name], [])] for name in logs}
    by_extractor = [row for name, found in readings.items() for row in accuracies(name, found)]
    out = project_root() / "logs" / "published"
    outputs = [
        write_table(out / "accuracies.csv", AccuracyRow, by_extractor),
        write_table(out / "stated.csv", StatedRow, stated_rows(facts, released)),
        write_table(out / "contrasts.csv", ExtractorContrastRow, contrasts(readings)),
        write_table(out / "validation.csv", ValidationRow, validate(labels, answers)),
        write_table(out / "labels.csv", LabelCounts, count_labels(labels)),
        write_verdicts(out / "verdicts.csv", logs, readings, released),
    ]
    inputs = {
        "logs": {name: hash_file(path) for name, path in paths.items()},
        "labels": hash_file(labels_file()),
        "stated": hash_file(stated_file()),
        "rules": rules_hashes(),
    }
    write_manifest(out, "published study", inputs, outputs)
    return out


def refuse_other_items(logs: dict[str, list[LogRow]]) -> None:
    """Raises UserError unless every log has the same items in the same order: contrasts pair them row by row."""
    items = {name: [(row.id, row.gold) for row in rows] for name, rows in logs.items()}
    first = next(iter(items))
    for name, found in items.items():
        if found != items[first]:
            raise UserError(f"{name}.csv has other items than {first}.csv, or has them in another order.")


def stated_file() -> Path:
    """configs/published.yaml of the checkout."""
    return project_root() / "configs" / "published.yaml"


def stated_facts() -> dict[str, dict[str, float | int]]:
    """Model -> accuracy (percent), and correct and items where no graded file is there to recount them.

    Raises:
        UserError: the file is no valid YAML.
    """
    try:
        return yaml.safe_load(stated_file().read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError) as error:
        raise UserError(f"{relative_name(stated_file())} cannot be read: {' '.join(str(error).split())}") from error


def stated_rows(facts: dict[str, dict[str, float | int]], released: dict[str, list[str]]) -> list[StatedRow]:
    """The stated accuracies beside the released verdicts, counted anew where they are there."""
    rows = []
    for model, said in facts.items():
        verdicts = [v for v in released.get(model, []) if v != ""]
        counted = (
            (sum(v == "1" for v in verdicts), len(verdicts)) if verdicts else (said.get("correct"), said.get("items"))
        )
        items = len(released[model]) if model in released else None
        rows.append(StatedRow(model, title_of(model), items, f"{said['accuracy']:.2f}", *counted))
    return rows


def contrasts(readings: dict[str, list[Reading]]) -> list[ExtractorContrastRow]:
    """The planned contrasts among the published models under each extractor, Holm-adjusted within it."""
    pairs = planned_contrasts(readings)
    rows = []
    for extractor in EXTRACTORS:
        verdicts = {name: [r.correct[extractor] for r in found] for name, found in readings.items()}
        compared = compare_all([(verdicts[model], verdicts[reference]) for model, reference in pairs], SAMPLES)
        for (model, reference), c in zip(pairs, compared, strict=True):
            d = c.difference
            counts = (c.test.only_first, c.test.only_second, c.test.p, c.p_holm)
            rows.append(ExtractorContrastRow(extractor, model, reference, *counts, d.value, d.low, d.high, c.mde))
    return rows


def write_verdicts(
    path: Path, logs: dict[str, list[LogRow]], readings: dict[str, list[Reading]], released: dict[str, list[str]]
) -> Path:
    """One row an answer, known by its hash: the value under each extractor and the released verdict."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["log", "id", "answer_sha256", "gold", "truncated", "released_verdict", *EXTRACTORS])
    for name, rows in logs.items():
        for row, reading, verdict in zip(rows, readings[name], released[name], strict=True):
            digest = answer_hash(row.question, row.response)
            values = [reading.values[extractor] for extractor in EXTRACTORS]
            writer.writerow([name, row.id, digest, row.gold, int(row.truncated), verdict, *values])
    write_text(path, text.getvalue())
    return path
