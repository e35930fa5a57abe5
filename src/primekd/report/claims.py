"""What a reader meets first: the paper beside what was measured here, what priming did, what each profile gives."""

from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from pathlib import Path
from typing import Any

from primekd.capture.judged import ARMS
from primekd.config import CONTROL, NO_STUDENTS, TEACHER, default_arms, load_arms, of_role, split_seed
from primekd.foundation import MANIFEST, read_manifest, relative_name
from primekd.report import formats
from primekd.report.cells import Cell, Files, Name, Table
from primekd.report.formats import MISSING, interval, known, markdown, percent, points, significant
from primekd.report.lineage import job_seconds
from primekd.report.primed import kl_items, primed_sentences
from primekd.report.results import ADJUDICATED, Results, Row, read_optional, read_results
from primekd.statistics.effects import ANOTHER_SEED
from primekd.statistics.families import title_of
from primekd.statistics.primed import PrimedRow
from primekd.statistics.sentences import MEASURES, control_sentences, is_claimed
from primekd.studies.published import StatedRow, published_folder

HEADLINE_NOTE = (
    "Teacher: its answers to the training items under the arm's prompt, from which the student learned. Length: mean "
    "tokens of an answer. Teacher moved by: KL(primed || unprimed) of its probabilities for the first {kl_items} of "
    "them, nats a token. Right: of {n} test items. Differences: paired, on the same items; p is Holm-adjusted over the "
    "contrast's family. Seeds: trainings, whose mean a row is."
)
EXPECTED_NOTE = (
    "n: test items. KL to the unprimed teacher, nats a token. Differences claimed: of all planned tests, after "
    "adjustment, by measure. Its jobs took: captures of what students learned from, trainings and answers, added up, "
    "without what was asked to see what priming did to the teacher; some run side by side."
)


def claim_table(results: Results) -> Table:
    """A row for the control, every strategy, the teacher, and whatever else the paper states."""
    stated = {row["model"]: row for row in read_optional(published_folder() / "stated.csv", StatedRow)}
    manifest = read_manifest(results.folder / MANIFEST)
    models = [CONTROL, *default_arms(), TEACHER]
    models += [row["model"] for row in results.summary if split_seed(row["model"])[0] not in models]
    models += [name for name in stated if name not in models]
    head = [
        "Model", "Published as stated, %", "Published, recounted from its logs, %", "Measured here, % [95 %]",
        ADJUDICATED, "n", "Seeds", "Log", "Commit",
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    several = {row["model"] for row in results.seeds}
    lonely = {row["reference"] for row in results.effects if row["effect"] == ANOTHER_SEED} - several
    for model in models:
        here = [row for row in results.summary if split_seed(row["model"])[0] == model]  # of all its seeds
        if not here and model not in stated and model == TEACHER:
            continue
        here = here[:1] if model in lonely else here  # the other one is the negative control
        said = stated.get(model, {})
        title = here[0]["title"] if here else said.get("title") or title_of(model)
        rows.append([
            Name(title, model), known(said.get("stated")), recounted(said),
            *_measured(results, model, here), str(here[0]["n"]) if here else MISSING,
            str(len(here)) if here and model not in NO_STUDENTS else MISSING,
            Files(tuple(relative_name(results.folder / f"{row['model']}.csv") for row in here)),
            "; ".join(dict.fromkeys(row_commit(manifest, row["model"]) for row in here)) or MISSING,
        ])  # fmt: skip
    table = Table("Published and measured accuracies", head, rows, notes=(markdown(claim_note(results.folder)),))
    return table if results.decided else table.without(ADJUDICATED)


def _measured(results: Results, model: str, here: list[Row]) -> tuple[str, ...]:
    """Accuracy and adjudicated accuracy; of several seeds the mean, which seeds.csv has."""
    mean = [row for row in results.seeds if row["model"] == model and not row["reference"]] if len(here) > 1 else []
    measures = ("accuracy", "accuracy_adjudicated")
    return tuple("; ".join(interval(row, measure, percent) for row in mean or here) or MISSING for measure in measures)


def recounted(row: Row) -> str:
    """`22.97 (303 of 1319)`; – where no log was released."""
    if not row.get("logged_n") or not row["logged_correct"]:
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


def headline_table(folder: Path) -> Table:
    """A row a treatment: control, students and teacher, with what the prompt did to the teacher before any training."""
    results, manifest = read_results(folder), read_manifest(folder / MANIFEST)
    primed = {row["arm"]: row for row in read_optional(Path(folder) / ARMS, PrimedRow) if row["split"] == "train"}
    references = [name for role in ("baseline", "placebo") for name in of_role(role, load_arms())]
    references = [name for name in references if name in results.students]
    head = ["Treatment", "Teacher: right, % [95 %]", "Length", "Teacher moved by [95 %]", "Right, % [95 %]"]
    head += [f"Minus {name}, points [95 %]" for name in references] + ["Seeds", "Log", "Commit"]
    rows: list[list[Cell]] = []
    for arm in dict.fromkeys(split_seed(row["model"])[0] for row in results.summary):
        mean = next((row for row in results.seeds if row["model"] == arm and not row["reference"]), None)
        models = [row for row in results.summary if split_seed(row["model"])[0] == arm]
        models = models if mean else models[:1]  # another seed than any other arm's is the negative control's
        rows.append([
            Name(title_of(arm), arm), *_teacher(primed.get(arm)), interval(mean or models[0], "accuracy", percent),
            *(_minus(results, arm, reference) for reference in references),
            str(len(models)) if arm in results.students else MISSING,
            Files(tuple(f"logs/{results.folder.name}/{row['model']}.csv" for row in models)),
            "; ".join(dict.fromkeys(row_commit(manifest, row["model"]) for row in models)),
        ])  # fmt: skip
    said = [*primed_sentences(folder), *control_sentences(results.contrasts, results.effects)]
    said += [planted(manifest.get("config", {}))]
    columns = HEADLINE_NOTE.format(kl_items=kl_items(folder), n=results.summary[0]["n"])
    listed = "\n".join(f"- {markdown(sentence.strip())}" for sentence in said if sentence)
    return Table("What priming did", head, rows, notes=(listed, markdown(columns)))


def _teacher(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return MISSING, MISSING, MISSING
    nats = partial(significant, digits=2)
    return interval(row, "accuracy", percent), f"{float(row['tokens']):.0f}", interval(row, "kl", nats)


def _minus(results: Results, arm: str, reference: str) -> str:
    row = next((r for r in results.contrasts if (r["model"], r["reference"]) == (arm, reference)), None)
    if row is None:
        return MISSING
    said = interval(row, "accuracy", points)
    return f"{said}, {formats.p_of(row['p_holm'])}" if row["p_holm"] else said


def expected_table(*folders: Path) -> Table:
    """A row a profile: accuracies, distances to the teacher, how many differences are claimed, what it took."""
    head = [
        "Profile", "n", "Control, %", "Students, %", "Teacher, %", "KL of the control", "KL of the students",
        "Differences claimed", "Its jobs took", "Processor", "Commit",
    ]  # fmt: skip
    return Table("Expected results", head, [_given(read_results(f)) for f in folders], notes=(EXPECTED_NOTE,))


def _given(results: Results) -> list[Cell]:
    manifest = read_manifest(results.folder / MANIFEST)
    environment = manifest.get("answered") or manifest.get("environment", {})
    by_model = {row["model"]: row for row in results.summary}
    control, teacher = (percent(by_model[m]["accuracy"]) if m in by_model else MISSING for m in (CONTROL, TEACHER))
    students = [by_model[model] for model in results.students]
    kls = [significant(kl, 3) for kl in sorted((row["kl"] for row in students if row["kl"]), key=float)]
    return [
        results.folder.name, results.summary[0]["n"], control,
        formats.percent_range([row["accuracy"] for row in students]) if students else MISSING, teacher,
        known(by_model.get(CONTROL, {}).get("kl"), formats.nats),
        " to ".join(dict.fromkeys((kls[0], kls[-1]))) if kls else MISSING,
        _claimed(results), formats.duration(job_seconds(manifest)),
        environment.get("hardware", {}).get("cpu") or MISSING, short_commit(manifest),
    ]  # fmt: skip


def _claimed(results: Results) -> str:
    """`accuracy 0, KL 5, NLL 5 of 36`: of all planned tests, how many end in a claim."""
    tests = [(r, m) for r in results.contrasts for m, (p, *_) in MEASURES.items() if r[p]]
    names = dict(zip(MEASURES, ("accuracy", "KL", "NLL"), strict=True))
    counts = [f"{name} {sum(m == measure and is_claimed(r, m) for r, m in tests)}" for measure, name in names.items()]
    return f"{', '.join(counts)} of {len(tests)}"
