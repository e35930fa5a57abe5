"""The published study's own logs, graded here: logs/published/, without the texts of the answers."""

import csv
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from primekd.assessment.decisions.decisions import answer_hash, as_read, as_written
from primekd.assessment.decisions.labels import LabelCounts, count_labels, labels_file, read_labels
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import EXTRACTORS
from primekd.config.arms import load_arms
from primekd.foundation import UserError, hash_file, project_root, relative_name, write_manifest, write_text
from primekd.foundation.stage_code import stage_code
from primekd.foundation.storage import read_mapping
from primekd.foundation.tables import Estimated, read_table, table_row, table_text, write_csv, write_table
from primekd.statistics.families import planned_contrasts, title_of
from primekd.statistics.grade_file import Columns, grade_rows, read_rows
from primekd.statistics.inference import LEVEL, compare_verdicts, holm
from primekd.statistics.summary import AccuracyRow, Reading, accuracies, read_all
from primekd.statistics.validation import ValidationRow, validate
from primekd.studies.regrade import rules_hashes
from primekd.tasks.clusters import cluster_of

COLUMNS = Columns(response="response", gold="gold_solution", question="question")
VERDICTS = "verdicts.csv"
RULES = "published"  # the extractor that the released verdicts are compared with


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
class DisagreementRow:
    """The released verdicts of one log against those of the published rules by themselves: answers each calls right."""

    model: str
    both: int
    only_released: int
    only_rules: int
    neither: int
    n: int


@table_row
class ExtractorContrastRow:
    """Accuracy is model minus reference. `p`, `mde`: as in `ContrastRow`; `p_holm` over an extractor's contrasts."""

    extractor: str
    model: str
    reference: str
    only_model: int
    only_reference: int
    p: float
    p_holm: float
    accuracy: Estimated
    mde: float


def grade_published(folder: Path) -> Path:
    """Grades the released logs in `folder` under every extractor and validates these against the labels; returns the
    folder of tables and manifest. Raises UserError if logs are missing or have other items, or a labelled answer
    differs."""
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
    released = {name: [row.get("published_correct", "") for _, row in read_rows(paths[name])] for name in logs}
    tables, out = compute_tables(readings, released), published_folder()
    outputs = [
        write_table(out / "validation.csv", ValidationRow, validate(labels, answers)),
        write_table(out / "labels.csv", LabelCounts, count_labels(labels)),
        write_verdicts(out / VERDICTS, logs, readings, released),
    ]
    for name, text in tables.items():
        write_text(out / name, text)
    outputs += [out / name for name in tables]
    inputs = {"logs": {name: hash_file(path) for name, path in paths.items()}, **own_inputs()}
    write_manifest(out, "published study", inputs, outputs, code=stage_code("published-study"))
    return out


def published_folder() -> Path:
    return project_root() / "logs" / "published"


def own_inputs() -> dict[str, Any]:
    """Hashes of what the grading depends on besides the released logs: labels, stated accuracies, rules."""
    return {"labels": hash_file(labels_file()), "stated": hash_file(stated_file()), "rules": rules_hashes()}


def compute_tables(readings: dict[str, list[Reading]], released: dict[str, list[str]]) -> dict[str, str]:
    """Every table that follows from verdicts.csv and the stated accuracies: file name -> text."""
    by_extractor = [row for name, found in readings.items() for row in accuracies(name, found)]
    return {
        "accuracies.csv": table_text(AccuracyRow, by_extractor),
        "stated.csv": table_text(StatedRow, stated_rows(stated_facts(), released)),
        "disagreements.csv": table_text(DisagreementRow, disagreements(readings, released)),
        "contrasts.csv": table_text(ExtractorContrastRow, contrasts(readings)),
    }


def refuse_other_items(logs: dict[str, list[LogRow]] | dict[str, list[Reading]]) -> None:
    """Raises UserError unless every log has the same items in the same order: contrasts pair them row by row."""
    items = {name: [(row.id, row.gold) for row in rows] for name, rows in logs.items()}
    first = next(iter(items))
    for name in items:
        if items[name] != items[first]:
            raise UserError(f"{name}.csv has other items than {first}.csv, or has them in another order.")


def stated_file() -> Path:
    return project_root() / "assessment" / "published.yaml"


def stated_facts() -> dict[str, dict[str, float | int]]:
    """Model -> accuracy (percent), and correct and items where no file has them. Raises UserError if it is no YAML."""
    return read_mapping(stated_file())


def stated_rows(facts: dict[str, dict[str, float | int]], released: dict[str, list[str]]) -> list[StatedRow]:
    """The stated accuracies beside the released verdicts, counted anew where they are there."""
    rows = []
    for model, said in facts.items():
        correct, n = said.get("correct"), said.get("items")
        if verdicts := [v for v in released.get(model, []) if v != ""]:
            correct, n = verdicts.count("1"), len(verdicts)
        items = len(released[model]) if model in released else None
        rows.append(StatedRow(model, title_of(model), items, f"{said['accuracy']:.2f}", correct, n))
    return rows


def disagreements(readings: dict[str, list[Reading]], released: dict[str, list[str]]) -> list[DisagreementRow]:
    """A row for every log that was released with verdicts; answers without one are left out."""
    rows, kinds = [], ((True, True), (True, False), (False, True), (False, False))
    for model, found in readings.items():
        verdicts = zip(released[model], found, strict=True)
        if pairs := [(v == "1", r.correct(RULES)) for v, r in verdicts if v != ""]:
            rows.append(DisagreementRow(model, *map(pairs.count, kinds), len(pairs)))
    return rows


def contrasts(readings: dict[str, list[Reading]]) -> list[ExtractorContrastRow]:
    """The planned contrasts among the published models under each extractor, Holm-adjusted within it."""
    pairs = planned_contrasts(readings, load_arms())
    groups = [cluster_of(r.id) for r in next(iter(readings.values()))]
    rows = []
    for extractor in EXTRACTORS:
        verdicts = {name: {"": np.array([r.correct(extractor) for r in found])} for name, found in readings.items()}
        compared = [compare_verdicts(verdicts[model], verdicts[reference], groups) for model, reference in pairs]
        for pair, c, p_holm in zip(pairs, compared, holm([c.p for c in compared]), strict=True):
            counts = (c.test.only_first, c.test.only_second, c.p, p_holm)
            detectable = c.detectable(LEVEL / len(pairs))
            rows.append(ExtractorContrastRow(extractor, *pair, *counts, *c.effect.estimate, detectable))
    return rows


def write_verdicts(
    path: Path, logs: dict[str, list[LogRow]], readings: dict[str, list[Reading]], released: dict[str, list[str]]
) -> Path:
    """One row an answer, known by its hash: the value under each extractor and the released verdict."""
    cells = []
    for name, rows in logs.items():
        for row, reading, verdict in zip(rows, readings[name], released[name], strict=True):
            digest = answer_hash(row.question, row.response)
            values = [as_written(reading.values[extractor]) for extractor in EXTRACTORS]
            cells.append([name, row.id, digest, row.gold, int(row.truncated), verdict, *values])
    write_csv(path, ["log", "id", "answer_sha256", "gold", "truncated", "released_verdict", *EXTRACTORS], cells)
    return path


def read_verdicts(path: Path) -> tuple[dict[str, list[Reading]], dict[str, list[str]]]:
    """(model -> answers under every extractor, model -> released verdicts). Raises UserError if it is damaged."""
    readings, released = defaultdict[str, list[Reading]](list), defaultdict[str, list[str]](list)
    try:
        for row in read_table(path):
            Fraction(row["gold"])
            values = {name: as_read(row[name]) for name in EXTRACTORS}
            readings[row["log"]].append(Reading(row["log"], row["id"], row["gold"], values))
            released[row["log"]].append(row["released_verdict"])
    except (KeyError, TypeError, ValueError, ArithmeticError, csv.Error) as error:
        raise UserError(f"{relative_name(path)} cannot be read ({error}): run `primekd published-study`.") from error
    if not readings:
        raise UserError(f"{relative_name(path)} has no rows: run `primekd published-study`.")
    refuse_other_items(readings)
    return dict(readings), dict(released)
