"""Beyond single contrasts: priming against a placebo, text and logits apart, matched items; beyond the test items: a
second set, sampled answers, and what was forgotten. Tables of one logs folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from primekd.assessment.forgetting import FILE, ForgettingRow
from primekd.config import SAMPLES, TRANSFER, load_arms, of_role
from primekd.foundation import MANIFEST, read_manifest, read_records
from primekd.report.cells import Name, Table, table_of
from primekd.report.formats import between, detectable, known, p_value, points, signed_nats, significant, written
from primekd.report.results import Results, contrast_table, fit_columns, read_results, result_table
from primekd.statistics.effects import AND
from primekd.statistics.families import title_of
from primekd.statistics.inference import clustered
from primekd.statistics.sentences import side_title
from primekd.statistics.subsets import FEWEST

PAIRED = (
    "Paired differences on them, model minus reference, in points; p: as above, Holm-adjusted over the tests of this "
    "set alone, by family."
)

PLACEBO_NOTE = (
    "A placebo is a priming about nothing: what it changes as well is no effect of what the priming says. Differences "
    "in accuracy, in points, model minus reference; p as in the planned contrasts."
)
EFFECTS_NOTE = (
    "Text, logits: mean over both levels of the other. Interaction: what both do beyond what each does alone. "
    "Accuracy in points by the automatic verdicts, KL and NLL in nats a token, on the same items and over the seeds "
    "that all of the arms have. Any wording: its seeds are wordings of the priming, each a draw. Intervals are "
    "clustered by template where items have one, and by seed where there are several. p is Holm-adjusted over this "
    "table, that of another seed (the negative control) by itself; an effect that is a planned contrast has its p."
)
SUBSETS_NOTE = (
    "The main family's contrasts on some of the test items that the teacher was asked under every prompt (Of), chosen "
    "by its answers. All right: it answered "
    "them rightly under every prompt. Same length: its answers under the two prompts are within 10 % of each other in "
    f"tokens. p is Holm-adjusted over this table; fewer than {FEWEST} items are not tested."
)


def effect_tables(results: Results) -> list[Table]:
    """Those of the tables that a study has rows for, each with its note."""
    return [t for t in (_placebo_table(results), _effect_table(results), _subset_table(results)) if t.rows]


def _placebo_table(results: Results) -> Table:
    """A row a priming: against no priming, and against each placebo beside it."""
    arms, rows = load_arms(), {(row["model"], row["reference"]): row for row in results.contrasts}
    models = dict.fromkeys(model for model, _ in rows)
    placebos = [name for name in of_role("placebo", arms) if name in models]
    columns = {"Priming": lambda model: Name(title_of(model), model)}
    for ref in [name for name in of_role("baseline", arms) if name in models] + placebos:
        for what, write in (("Against ", between("accuracy", points)), ("p (Holm), ", written("p_holm", p_value))):
            columns[f"{what}{title_of(ref)}"] = lambda model, ref=ref, write=write: known(rows.get((model, ref)), write)
    primed = [model for model in models if placebos and model in of_role("treatment", arms)]
    return table_of("Priming against none and against a placebo", primed, columns, notes=(PLACEBO_NOTE,))


def _effect_table(results: Results) -> Table:
    columns = {
        "Arm": lambda row: Name(title_of(row["arm"]), row["arm"]), "Effect": "effect",
        "Of": lambda row: f"{_side(row['model'])} − {_side(row['reference'])}",
        "Seeds": "seeds", "n": "n", "Accuracy, points [95 %]": between("accuracy", points),
        "p (Holm)": written("p_holm", p_value), "Detectable, points": written("mde", detectable),
        "KL [95 %]": between("kl", signed_nats), "KL, p (Holm)": written("kl_p_holm", p_value),
        "NLL of gold [95 %]": between("nll_gold", signed_nats), "NLL, p (Holm)": written("nll_gold_p_holm", p_value),
    }  # fmt: skip
    title = "Text, logits and their interaction"
    table = table_of(title, results.effects, columns, left=3, notes=(EFFECTS_NOTE,))
    return table if results.fitted else table.without(*fit_columns(table))


def _side(names: str) -> str:
    sides = side_title(names).removeprefix("one of ").split(AND)
    return f"mean({'; '.join(sides)})" if len(sides) > 1 else sides[0]


def _subset_table(results: Results) -> Table:
    columns = {
        "Items": "subset", "n": "n", "Of": "asked", "Model": written("model", title_of),
        "Against": written("reference", title_of), "Accuracy, points [95 %]": between("accuracy", points),
        "p (Holm)": written("p_holm", p_value),
    }  # fmt: skip
    return table_of("Matched items", results.subsets, columns, left=5, notes=(SUBSETS_NOTE,))


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
    contrasts = replace(contrast_table(results), label=f"{label}: planned contrasts", notes=(PAIRED,))
    effects = replace(
        _effect_table(results), label=f"{label}: text, logits and their interaction", notes=("As above.",)
    )
    below = [table for table in (contrasts, effects) if table.rows]
    return [replace(result_table(results), label=label, notes=(note,)), *below]


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
