"""The first table of all: what each prompt did to the teacher, and what its student made of it."""

from functools import partial
from pathlib import Path

from primekd.capture.judged import ARMS
from primekd.config.arm import split_seed
from primekd.config.arms import load_arms, of_role
from primekd.foundation.provenance import MANIFEST, read_manifest
from primekd.report.cells import Cell, Files, Name, Table
from primekd.report.claims import planted, row_commit
from primekd.report.formats import MISSING, interval, markdown, p_value, percent, significant
from primekd.report.primed import primed_sentences
from primekd.report.results import Results, Row, read_optional, read_results
from primekd.statistics.families import title_of
from primekd.statistics.primed import PrimedRow

NOTE = (
    "Teacher: its answers to the training items under the arm's prompt, from which the student learned. Length: mean "
    "tokens of an answer. KL: KL(primed || unprimed) of its probabilities for the first of them, nats a token. Right: "
    "of the test items. Differences: paired, on the same items; p is Holm-adjusted over the contrast's family. Seeds: "
    "trainings, whose mean a row is."
)


def headline_table(folder: Path) -> Table:
    """A row a treatment: control, students and teacher, with what the prompt did to the teacher before any training.

    Raises:
        UserError: summary.csv, contrasts.csv or manifest.json of the folder is missing or cannot be read.
    """
    results, manifest = read_results(folder), read_manifest(folder / MANIFEST)
    primed = {row["arm"]: row for row in read_optional(Path(folder) / ARMS, PrimedRow) if row["split"] == "train"}
    references = [name for role in ("baseline", "placebo") for name in of_role(role, load_arms())]
    references = [name for name in references if name in results.students]
    head = ["Treatment", "Teacher: right, % [95 %]", "Length", "KL [95 %]", "Right, % [95 %]"]
    head += [f"Minus {name}, points [95 %]" for name in references] + ["Seeds", "Log", "Commit"]
    rows: list[list[Cell]] = []
    for arm in dict.fromkeys(split_seed(row["model"])[0] for row in results.summary):
        mean = next((row for row in results.seeds if row["model"] == arm and not row["reference"]), None)
        models = [row for row in results.summary if split_seed(row["model"])[0] == arm]
        models = models if mean else models[:1]  # another seed than any other arm's is the negative control's
        rows.append([
            Name(title_of(arm), arm), *_teacher(primed.get(arm)), interval(mean or models[0], "accuracy", percent),
            *(_difference(results, arm, reference) for reference in references),
            str(len(models)) if arm in results.students else MISSING,
            Files(tuple(f"logs/{results.folder.name}/{row['model']}.csv" for row in models)),
            "; ".join(dict.fromkeys(row_commit(manifest, row["model"]) for row in models)),
        ])  # fmt: skip
    said = " ".join(primed_sentences(folder))
    note = markdown(f"{said} {NOTE} n = {results.summary[0]['n']} test items.{planted(manifest.get('config', {}))}")
    return Table("What priming did", head, rows, notes=(note,))


def _teacher(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return MISSING, MISSING, MISSING
    nats = partial(significant, digits=2)
    return interval(row, "accuracy", percent), f"{float(row['tokens']):.0f}", interval(row, "kl", nats)


def _difference(results: Results, arm: str, reference: str) -> str:
    row = next((r for r in results.contrasts if (r["model"], r["reference"]) == (arm, reference)), None)
    if row is None:
        return MISSING
    said = interval(row, "accuracy", lambda share: percent(share, signed=True))
    return f"{said}, p = {p_value(row['p_holm'])}".replace("= <", "< ") if row["p_holm"] else said
