"""Recomputes hashes and verdicts, and names what differs from what the manifests say; the logs are checked here."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from primekd.assessment.decisions.decisions import apply_decisions, read_decisions
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.inside import inside_folder
from primekd.assessment.logs import grade_row, read_log, read_logs
from primekd.assessment.tokens import read_tokens
from primekd.config import ANSWER_SETS, CONTROL, TEACHER, Profile
from primekd.foundation import MANIFEST, UserError, clean, read_manifest, read_records, read_table, relative_name
from primekd.running.verify_run import Check, check_outputs, check_run, checked
from primekd.studies import results
from primekd.studies.published import VERDICTS, compute_tables, own_inputs, published_folder, read_verdicts
from primekd.studies.results import OF_NUMBERS, OPTIONAL, TABLES, held_out_of, kept_sets
from primekd.studies.study import find_study
from primekd.tasks import NUMBERS, NumberTask, Task, task_of


def verify(profile: Profile) -> list[Check]:
    """Checks a profile's logs and, of this machine's own, what they were made from. Raises UserError without logs."""
    if not (profile.logs / MANIFEST).is_file():
        fix = f"run `primekd run --profile {profile.name}` first"
        raise UserError(f"{relative_name(profile.logs)} has no manifest: {fix}.")
    checks = check_logs(profile) + check_published()
    checks += [] if profile.logs == profile.published else check_run(profile)
    return [replace(c, fix=_fix(profile, c.what)) if c.problems else c for c in checks]


def _fix(profile: Profile, what: str) -> str:
    logs, option = relative_name(profile.logs), f"--profile {profile.name}"
    ends = (logs, *(f"{logs}/{name}" for name in ANSWER_SETS))
    if what.endswith(relative_name(published_folder())):
        return f"`git checkout {what.split()[-1]}` brings files back; `primekd published-study FOLDER` grades anew."
    if what == f"{logs}/report.html":
        if profile.logs == profile.published:
            return f"`git diff {logs}` shows what changed; `primekd report {option} --published` writes it anew."
        return f"`primekd report {option}` writes it."
    if what.endswith(ends) and profile.logs == profile.published:
        return f"`git checkout {logs}` brings the files back; `primekd publish {option}` puts this machine's there."
    if what.endswith(ends):
        return f"Delete {logs} and run `primekd assess {option}`: whole answers are kept."
    if what == relative_name(inside_folder(profile)):
        made = f"`primekd analyse {option}` makes it anew"
        return f"`git checkout {what}` brings it back." if profile.logs == profile.published else f"{made}."
    if what == "lineage":
        return f"`primekd distill NAME {option}`, then `primekd assess {option}`: they make anew what does not fit."
    if not what.startswith(relative_name(profile.runs)):
        return f"`primekd prepare-teacher {option} --force-stage` builds the teacher; `git checkout` brings its adapter"
    return f"Delete {what.removesuffix(f'/{MANIFEST}')} and run `primekd run {option}`: what is missing is made anew."


def checks_text(checks: list[Check]) -> str:
    """A line a check, below it what it found and what to do; then whether all is well."""
    lines = []
    for check in checks:
        lines.append(f"{'FAIL' if check.problems else 'ok  '} {check.what}")
        lines += [f"       {clean(problem, 2_000)}" for problem in check.problems]
        lines += [f"    -> {check.fix}"] if check.fix else []
    return "\n".join([*lines, summary(checks)])


def summary(checks: list[Check]) -> str:
    if failed := sum(bool(check.problems) for check in checks):
        return f"FAIL {failed} of {len(checks)} checks: do what stands behind each arrow, then run this again."
    what = "files against their hashes, models, verdicts, decisions, tables, report and what of the run lies here"
    return f"ok   all is well: {len(checks)} checks of {what}."


def check_logs(profile: Profile) -> list[Check]:
    """The logs by themselves, with their answer sets: bytes, models, verdicts, decisions, tables, report."""
    checks = [check for view in (profile, *kept_sets(profile)) for check in _check_answers(view)]
    if (inside_folder(profile) / MANIFEST).is_file():
        checks.append(checked(relative_name(inside_folder(profile)), check_inside, profile))
    checks.append(checked(f"tokens in {relative_name(profile.logs)}", check_tokens, profile.logs))
    return [*checks, checked(relative_name(profile.logs / "report.html"), check_report, profile)]


def _check_answers(profile: Profile) -> list[Check]:
    name, verdicts = relative_name(profile.logs), partial(check_verdicts, task=task_of(profile.data))
    return [
        checked(name, check_outputs, profile.logs / MANIFEST),
        checked(f"models in {name}", check_models, profile),
        checked(f"verdicts in {name}", verdicts, profile.logs),
        checked(f"decisions in {name}", check_decisions, profile),
        checked(f"tables in {name}", check_tables, profile),
    ]


def check_report(profile: Profile) -> Check:
    """Writes the report anew, in memory, and compares it with the file: the same logs give the same bytes."""
    from primekd.report.html import REPORT, render

    path = profile.logs / REPORT
    same = path.is_file() and path.read_bytes() == render(profile).encode()
    return Check(relative_name(path), [] if same else ["it is missing or does not follow from the logs"])


def check_models(profile: Profile) -> Check:
    """Whether every model that the manifest or the summary names has a log, a row and a lineage, and every table is
    there; older logs lack some, and answer sets have neither teacher nor held-out rows."""
    folder, manifest = profile.logs, read_manifest(profile.logs / MANIFEST)
    summed = {row.get("model") for row in read_table(folder / "summary.csv")}
    logged = {path.stem for path in folder.glob("*.csv") if path.name not in TABLES}
    taught = {TEACHER} if not profile.answer_set else set()
    optional = (*OPTIONAL, "held-out.csv") if profile.answer_set else OPTIONAL
    optional += () if isinstance(task_of(profile.data), NumberTask) else OF_NUMBERS
    known = {CONTROL, *taught, *manifest.get("models", {}), *(manifest.get("answers_sha256") or {})}
    named = sorted(known | summed | logged, key=str)
    problems = [f"{name} is missing" for name in TABLES if name not in optional and not (folder / name).is_file()]
    problems += [f"{name} has no log" for name in named if name not in logged]
    problems += [f"{name} is not in summary.csv" for name in named if name not in summed]
    problems += [f"{name} has a log and no lineage" for name in sorted(logged - known)]
    return Check(f"models in {relative_name(folder)}", problems)


def check_verdicts(folder: Path, task: Task = NUMBERS) -> Check:
    """Extracts and grades every logged answer anew, and adds the summary up again."""
    problems, extractor = [], results.log_extractor(folder)
    hashes = read_manifest(folder / MANIFEST).get("answers_sha256") or {}
    columns = ("n", "correct", "adjudicated", "correct_adjudicated")
    summed = {r.get("model"): tuple(map(r.get, columns)) for r in read_table(folder / "summary.csv")}
    for path in sorted(folder.glob("*.csv")):
        if path.name in TABLES:
            continue
        rows = read_log(path, task)
        wrong = [row.id for row in rows if grade_row(row, extractor, task) != row]
        problems += [f"{path.name}: the verdict on {item} does not follow from its answer" for item in wrong]
        if hashes.get(path.stem, (own := results.answers_hash(rows))) != own:
            problems.append(f"manifest.json has another hash of {path.name}'s answers")
        decided = sum(bool(row.adjudicated) for row in rows)
        counts = (len(rows), sum(r.correct for r in rows), decided, sum(r.correct_adjudicated for r in rows))
        if summed.get(path.stem) != tuple(map(str, counts)):
            said = f"{counts[1]} of {counts[0]} ({counts[3]} adjudicated) for {path.stem}"
            problems.append(f"summary.csv does not say {said}")
    return Check(f"verdicts in {relative_name(folder)}", problems)


def check_decisions(profile: Profile) -> Check:
    """The logs' adjudicated values against assessment/adjudications.csv: no decision left out, none made up."""
    decisions, problems = read_decisions(), []
    for model, rows in read_logs(profile).items():
        problems += [
            f"{model}: {row.id} is logged as adjudicated {row.adjudicated or 'by nobody'}, the decisions say "
            f"{now.adjudicated or 'nobody'}"
            for row, now in zip(rows, apply_decisions(profile.name, model, rows, decisions), strict=True)
            if row.adjudicated != now.adjudicated
        ]
    return Check(f"decisions in {relative_name(profile.logs)}", problems)


def check_tables(profile: Profile) -> Check:
    """Every table computed anew from the logs: extractors, accuracies, summary, contrasts, seeds and audits."""
    tables = find_study(profile).tables(profile, read_logs(profile), held_out_of(profile))
    return Check(f"tables in {relative_name(profile.logs)}", _other_tables(profile.logs, tables, "the logs"))


def check_inside(profile: Profile) -> Check:
    """What was found inside the students: bytes, whether it is of these logs, and the tables that follow from both."""
    from primekd.studies.inside import tables

    folder = inside_folder(profile)
    own, logs = check_outputs(folder / MANIFEST), read_manifest(folder / MANIFEST)["inputs"]["logs"]
    here = {name: results.verdicts_hash(rows) for name, rows in read_logs(profile).items()}
    problems = [
        f"{name}.csv is not the log that it was made with: run `primekd analyse` again"
        for name, digest in logs.items()
        if here.get(name) != digest
    ]
    problems += [] if own.problems or problems else _other_tables(folder, tables(profile, folder), "the logs")
    return Check(relative_name(folder), [*own.problems, *problems])


def check_tokens(folder: Path) -> Check:
    """Whether the divergences of single tokens add up to those of their items, in held-out.csv."""
    log, problems = read_tokens(folder), []
    sums = {model: log.sums(model) for model in log.models} if log else {}
    for row in read_records(folder / "held-out.csv", HeldOutRow) if log else []:
        found = sums.get(row.model, {}).get(row.id)
        if None not in (found, row.kl) and abs(found - row.kl) > 1e-3 * max(1.0, row.kl):
            problems.append(f"{row.model}: the tokens of {row.id} have a KL of {found:.4f}, its item {row.kl:.4f}")
    return Check(f"tokens in {relative_name(folder)}", problems)


def _other_tables(folder: Path, tables: dict[str, str], source: str) -> list[str]:
    return [
        f"{name} is missing or does not follow from {source}"
        for name, text in tables.items()
        if not (path := folder / name).is_file() or path.read_bytes() != text.encode()
    ]


def check_published() -> list[Check]:
    """The published study's logs as graded here, if there are any: outputs, today's labels and rules, tables. The
    released texts are not in the checkout, so the values in verdicts.csv are taken as they are."""
    folder = published_folder()
    if not folder.is_dir():
        return []
    name = relative_name(folder)

    def inputs(folder: Path) -> Check:
        recorded = read_manifest(folder / MANIFEST)["inputs"]
        changed = [file for file, value in own_inputs().items() if recorded.get(file) != value]
        said = "changed since the logs were graded: run `primekd published-study`"
        return Check(f"inputs of {name}", [f"{file} {said}" for file in changed])

    def tables(folder: Path) -> Check:
        computed = compute_tables(*read_verdicts(folder / VERDICTS))
        return Check(f"tables in {name}", _other_tables(folder, computed, VERDICTS))

    return [
        checked(name, check_outputs, folder / MANIFEST),
        checked(f"inputs of {name}", inputs, folder),
        checked(f"tables in {name}", tables, folder),
    ]
