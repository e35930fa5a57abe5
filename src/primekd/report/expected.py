"""What each profile is known to give, from its published logs, so that a run that gives something else is seen."""

from pathlib import Path

from primekd.config.arm import CONTROL, TEACHER
from primekd.foundation.provenance import MANIFEST, read_manifest
from primekd.report.cells import Cell, Table
from primekd.report.claims import short_commit
from primekd.report.formats import MISSING, duration, percent, percent_range, significant
from primekd.report.lineage import job_seconds
from primekd.report.results import Results, read_results
from primekd.statistics.sentences import MEASURES, is_claimed


def expected_table(*folders: Path) -> Table:
    """A row a profile: accuracies, distances to the teacher, how many differences are claimed, what it took. Raises
    UserError if summary.csv, contrasts.csv or manifest.json of a folder is missing or cannot be read."""
    head = [
        "Profile", "n", "Control, %", "Students, %", "Teacher, %", "KL of the control", "KL of the students",
        "Differences claimed", "Its jobs took", "Processor", "Commit",
    ]  # fmt: skip
    note = (
        "n: test items. KL to the unprimed teacher, nats a token. Differences claimed: of all planned tests, after "
        "adjustment, by measure. Its jobs took: captures, trainings and answers, added up; some run side by side, so "
        "a whole run is shorter."
    )
    return Table("Expected results", head, [_row(read_results(folder)) for folder in folders], notes=(note,))


def _row(results: Results) -> list[Cell]:
    manifest = read_manifest(results.folder / MANIFEST)
    environment = manifest.get("answered") or manifest.get("environment", {})
    by_model = {row["model"]: row for row in results.summary}
    control, teacher = (percent(by_model[m]["accuracy"]) if m in by_model else MISSING for m in (CONTROL, TEACHER))
    students = [by_model[model] for model in results.students]
    kls = [significant(kl, 3) for kl in sorted((row["kl"] for row in students if row["kl"]), key=float)]
    return [
        results.folder.name, results.summary[0]["n"], control,
        percent_range([row["accuracy"] for row in students]) if students else MISSING, teacher,
        significant(kl, 3) if (kl := by_model.get(CONTROL, {}).get("kl")) else MISSING,
        " to ".join(dict.fromkeys((kls[0], kls[-1]))) if kls else MISSING,
        _claimed(results), duration(job_seconds(manifest)), environment.get("hardware", {}).get("cpu") or MISSING,
        short_commit(manifest),
    ]  # fmt: skip


def _claimed(results: Results) -> str:
    """`accuracy 0, KL 5, NLL 5 of 36`: of all planned tests, how many end in a claim."""
    tests = [(r, m) for r in results.contrasts for m, (p, *_) in MEASURES.items() if r[p]]
    names = dict(zip(MEASURES, ("accuracy", "KL", "NLL"), strict=True))
    counts = [f"{name} {sum(m == measure and is_claimed(r, m) for r, m in tests)}" for measure, name in names.items()]
    return f"{', '.join(counts)} of {len(tests)}"
