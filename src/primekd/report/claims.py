"""The claim table: what the paper states, what its released logs say, and what was measured here."""

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from primekd.config.arm import CONTROL, NO_STUDENTS, TEACHER, split_seed
from primekd.config.arms import default_arms
from primekd.foundation.provenance import MANIFEST, read_manifest, relative_name
from primekd.report.cells import Cell, Files, Name, Table
from primekd.report.formats import MISSING, interval, markdown, percent
from primekd.report.results import ADJUDICATED, Results, Row, read_optional
from primekd.statistics.families import title_of
from primekd.studies.published import StatedRow, published_folder

LOGS = "Log"


def claim_table(results: Results) -> Table:
    """A row for the control, every strategy, the teacher, and whatever else the paper states."""
    stated = {row["model"]: row for row in read_optional(published_folder() / "stated.csv", StatedRow)}
    manifest = read_manifest(results.folder / MANIFEST)
    models = [CONTROL, *default_arms(), TEACHER]
    models += [row["model"] for row in results.summary if split_seed(row["model"])[0] not in models]
    models += [name for name in stated if name not in models]
    head = [
        "Model", "Published as stated, %", "Published, recounted from its logs, %", "Measured here, % [95 %]",
        ADJUDICATED, "n", "Seeds", LOGS, "Commit",
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for model in models:
        here = [row for row in results.summary if split_seed(row["model"])[0] == model]  # of all its seeds
        if not here and model not in stated and model == TEACHER:
            continue
        title = here[0]["title"] if here else stated[model]["title"] if model in stated else title_of(model)
        said = stated.get(model)
        rows.append([
            Name(title, model), said["stated"] or MISSING if said else MISSING, recounted(said),
            *_measured(results, model, here), str(here[0]["n"]) if here else MISSING,
            str(len(here)) if here and model not in NO_STUDENTS else MISSING,
            Files(tuple(relative_name(results.folder / f"{row['model']}.csv") for row in here)),
            "; ".join(dict.fromkeys(row_commit(manifest, row["model"]) for row in here)) or MISSING,
        ])  # fmt: skip
    note = markdown(claim_note(results.folder))
    table = Table("Published and measured accuracies", head, rows, notes=(note,))
    return table if results.decided else table.without(ADJUDICATED)


def _measured(results: Results, model: str, here: list[Row]) -> tuple[str, str]:
    """Accuracy and adjudicated accuracy; of several seeds the mean, which seeds.csv has."""
    mean = [row for row in results.seeds if row["model"] == model and not row["reference"]] if len(here) > 1 else []
    automatic, adjudicated = (
        "; ".join(interval(row, measure, percent) for row in mean or here) or MISSING
        for measure in ("accuracy", "accuracy_adjudicated")
    )
    return automatic, adjudicated


def recounted(row: Row | None) -> str:
    """`22.97 (303 of 1319)`; – where no log was released."""
    if row is None or not row["logged_n"] or not row["logged_correct"]:
        return MISSING
    share = 100 * Decimal(row["logged_correct"]) / Decimal(row["logged_n"])
    return f"{share.quantize(Decimal('0.01'), ROUND_HALF_UP)} ({row['logged_correct']} of {row['logged_n']})"


def short_commit(manifest: dict[str, Any]) -> str:
    """The commit that the logs were computed at, and the one that they were graded anew at, if they were."""
    graded = _short(manifest.get("environment", {}))
    answered = _short(manifest["answered"]) if manifest.get("answered") else graded
    return graded if answered == graded else f"{answered}, regraded {graded}"


def row_commit(manifest: dict[str, Any], model: str) -> str:
    """The commits that made a row: of the training, then of the answers and their grading where those differ."""
    graded = _short(manifest.get("environment", {}))
    whole = _short(manifest.get("answered") or manifest.get("environment", {}))
    facts = (manifest if model in NO_STUDENTS else manifest.get("models", {})).get(model) or {}
    answered = _short(facts.get("answers") or (facts if model == TEACHER else {}), whole)
    steps = {"": _short(facts, answered), "answered ": answered}
    steps["regraded " if manifest.get("answered") else "graded "] = graded
    said, last = [], ""
    for word, commit in steps.items():
        said += [f"{word}{commit}"] if commit != last else []
        last = commit
    return ", ".join(said)


def _short(environment: dict[str, Any], unknown: str = MISSING) -> str:
    """Seven digits; `dirty` where files differed from the commit."""
    git = environment.get("git") or {}
    return str(git["commit"])[:7] + (" dirty" if git.get("dirty") else "") if git.get("commit") else unknown


def claim_note(folder: Path) -> str:
    """What the columns of the claim table are, and whether they may be compared."""
    config = read_manifest(folder / MANIFEST).get("config", {})
    name = config.get("name", folder.name)
    published = (
        "Published: as stated in the paper (Llama-3.1-405B-Instruct teaching Llama-3.1-8B-Instruct, GSM8K test set), "
        "and counted again from the verdicts in the logs that were released with it, where there are any (–: none). "
        "Neither was measured here."
    )
    if name == "paper":
        return f"{published} Measured here: profile paper, the same models and task; README.md lists the deviations."
    teacher, student = (config.get(part, {}).get("model", "unknown") for part in ("teacher", "student"))
    data = config.get("data", {})
    asked = data.get("task") or data.get("source", "unknown")
    return (
        f"{published} Measured here: profile {name}, which has other models and another task or scale "
        f"({teacher} teaching {student}, items from {asked}). It is therefore not comparable with the published "
        f"columns and neither confirms nor refutes them.{planted(config)}"
    )


def planted(config: dict[str, Any]) -> str:
    """A sentence that says so where a teacher was taught other solutions under other prompts; else nothing."""
    solutions = (config.get("prepare") or {}).get("solutions") or {}
    if len(set(solutions.values())) < 2:
        return ""
    forms = ", ".join(f"{arm}: {form}" for arm, form in solutions.items())
    return (
        " The effect of priming is planted: this teacher was taught other forms of the solutions under other prompts "
        f"({forms}), to show that such an effect is found where it is known to be. It says nothing of other teachers."
    )
