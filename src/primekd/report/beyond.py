"""Beyond the training task: a second set of items, sampled answers, and what was forgotten, of one logs folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from primekd.assessment.forgetting import FILE, ForgettingRow
from primekd.config.profile import SAMPLES, TRANSFER
from primekd.foundation.provenance import MANIFEST, read_manifest
from primekd.foundation.tables import read_records
from primekd.report.cells import Name, Table, table_of
from primekd.report.formats import significant
from primekd.report.results import contrast_table, read_results, result_table
from primekd.statistics.families import title_of
from primekd.statistics.inference import clustered

PAIRED = (
    "Paired differences on them, model minus reference, in points; p: as above, Holm-adjusted over the tests of this "
    "set alone, by family."
)


def beyond_tables(folder: Path) -> list[Table]:
    """What a folder of logs holds beyond the test items, each table with its notes; nothing where nothing was asked."""
    sets = [(folder / TRANSFER, _transfer), (folder / SAMPLES, _samples)]
    found = [table for path, tables in sets if (path / MANIFEST).is_file() for table in tables(path)]
    return found + ([_forgetting(folder / FILE)] if (folder / FILE).is_file() else [])


def _transfer(folder: Path) -> list[Table]:
    data = read_manifest(folder / MANIFEST)["config"].get("data", {})
    source = data["hub_dataset"] if data.get("source") == "hub" else data.get("test_file") or data.get("source")
    note = (
        f"Control and students on {data.get('test_items')} items of {data.get('task')} ({source}), which nobody "
        "trained on and none of which is a training, validation or test item: the same prompt, decoding and limit."
    )
    if data.get("task") == "gsm-symbolic":
        note += " Its templates are made of GSM8K's test questions; differences, not accuracies, are clustered by them."
    return _tables(folder, "A second set of items", note)


def _samples(folder: Path) -> list[Table]:
    settings = read_manifest(folder / MANIFEST)["config"].get("assess", {})
    note = (
        f"{settings.get('samples')} sampled answers to each test item, at temperature "
        f"{settings.get('sampling_temperature')}: n counts answers. Accuracy is the mean over items of the mean over "
        "their samples; its interval is clustered by item, that of a difference by item or template."
    )
    # What could be detected is computed as if every row were an independent answer, and samples of an item are not.
    return [table.without("Detectable, points") for table in _tables(folder, "Sampled answers", note)]


def _tables(folder: Path, label: str, note: str) -> list[Table]:
    results = read_results(folder)
    tables = [replace(result_table(results), label=label, notes=(note,))]
    contrasts = replace(contrast_table(results), label=f"{label}: planned contrasts", notes=(PAIRED,))
    return tables + ([contrasts] if contrasts.rows else [])


def _forgetting(path: Path) -> Table:
    """KL(model || control) and the loss of the control's text, nats a token with t intervals over prompts."""
    of_model: dict[str, list[ForgettingRow]] = {}
    for row in read_records(path, ForgettingRow):
        of_model.setdefault(row.model, []).append(row)
    columns = {
        "Model": lambda rows: Name(title_of(rows[0].model), rows[0].model), "Prompts": lambda rows: str(len(rows)),
        "Tokens": lambda rows: str(sum(row.tokens for row in rows)),
        "KL to control [95 %]": lambda rows: _mean(rows, "kl"),
        "NLL of control's text [95 %]": lambda rows: _mean(rows, "nll"),
    }  # fmt: skip
    note = (
        "KL(model || control), over the whole vocabulary at temperature 1, on the control's own greedy answers to "
        "neutral prompts, and the loss of that text: nats a token, t intervals clustered by prompt. The control's own "
        "row is what rounding makes; what lies beyond it is what else the training changed."
    )
    return table_of("What was forgotten", of_model.values(), columns, notes=(note,))


def _mean(rows: Sequence[ForgettingRow], measure: str) -> str:
    sums = np.array([getattr(row, measure) for row in rows])
    effect = clustered({"": sums}, {}, [row.tokens for row in rows], [row.id for row in rows])
    value, low, high = map(significant, effect.estimate)
    return f"{value} [{low}, {high}]"
