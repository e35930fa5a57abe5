"""Recomputes hashes and verdicts, and names what differs from what the manifests say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primekd.assessment import published_study
from primekd.assessment.adjudicate import apply_decisions, read_decisions
from primekd.assessment.grade import LogRow, grade_row, read_log
from primekd.assessment.held_out import read_rows
from primekd.assessment.results import TABLES, compute_tables, read_logs
from primekd.assessment.tables import read_table
from primekd.config import Profile
from primekd.errors import UserError
from primekd.provenance import MANIFEST, altered_outputs, hash_json, project_root, read_json, relative_name
from primekd.signals import SignalReader


@dataclass(frozen=True)
class Check:
    """One thing verified. `problems` is empty where everything matched."""

    what: str
    problems: list[str]


def verify(profile: Profile) -> list[Check]:
    """Checks the logs, and whatever of the run is on this machine.

    Raises:
        UserError: there are no logs of this profile.
    """
    if not (profile.logs / MANIFEST).is_file():
        raise UserError(
            f"{relative_name(profile.logs)} has no manifest: run `primekd run --profile {profile.name}` first."
        )
    checks = [check_outputs(profile.logs / MANIFEST)]
    for what, check, argument in (
        (f"verdicts in {relative_name(profile.logs)}", check_verdicts, profile.logs),
        (f"decisions in {relative_name(profile.logs)}", check_decisions, profile),
        (f"tables in {relative_name(profile.logs)}", check_tables, profile),
        (relative_name(profile.logs / "report.html"), check_report, profile),
    ):
        try:
            checks.append(check(argument))
        except UserError as error:  # what cannot be read is a finding; the rest is checked all the same
            checks.append(Check(what, [str(error)]))
    checks += check_published()
    patterns = (
        f"students/*/{MANIFEST}",
        f"answers/*/{MANIFEST}",
        f"held-out/*/{MANIFEST}",
        f"served/*/{MANIFEST}",
        f"notebooks/*/*.{MANIFEST}",
    )
    for pattern in patterns:
        checks += [check_outputs(path) for path in _live(profile, pattern)]
    checks += [check_signals(path.parent) for path in _live(profile, f"signals/*/{MANIFEST}")]
    checks += check_lineage(profile)
    if profile.prepare:
        for folder in (profile.prepare.adapter, str(Path(profile.prepare.output).parent)):
            if (project_root() / folder / MANIFEST).is_file():
                checks.append(check_outputs(project_root() / folder / MANIFEST))
    return checks


def _live(profile: Profile, pattern: str) -> list[Path]:
    """Manifests of a run, without those of results that were set aside."""
    return [path for path in sorted(profile.runs.glob(pattern)) if ".old-" not in path.parent.name]


def check_report(profile: Profile) -> Check:
    """Writes the report anew, in memory, and compares it with the file: the same logs give the same bytes."""
    from primekd.report.html import REPORT, render

    path = profile.logs / REPORT
    same = path.is_file() and path.read_text(encoding="utf-8") == render(profile)
    problem = f"it is missing or does not follow from the logs: run `primekd report --profile {profile.name}`"
    return Check(relative_name(path), [] if same else [problem])


def check_outputs(path: Path) -> Check:
    """A stage's outputs against the hashes in its manifest, and the manifest's inputs against their own hash."""
    manifest = read_json(path)
    problems = [f"{name} is missing or has other bytes" for name in altered_outputs(path, manifest)]
    if hash_json(manifest.get("inputs")) != manifest.get("inputs_sha256"):
        problems.append("the inputs in the manifest were edited")
    name = relative_name(path.parent) if path.name == MANIFEST else relative_name(path).removesuffix(f".{MANIFEST}")
    return Check(name, problems)


def check_signals(folder: Path) -> Check:
    """A signal store: every shard, every row hash, and the head."""
    try:
        reader = SignalReader(folder)
        reader.head  # noqa: B018 - loading it checks its hash
    except UserError as error:
        return Check(relative_name(folder), [str(error)])
    return Check(relative_name(folder), [])


def check_verdicts(folder: Path) -> Check:
    """Extracts and grades every logged answer anew, and adds the summary up again."""
    problems = []
    for path in sorted(folder.glob("*.csv")):
        if path.name in TABLES:
            continue
        rows = read_log(path)
        problems += [
            f"{path.name}: the verdict on {r.id} does not follow from its answer" for r in rows if not follows(r)
        ]
        problems += check_count(folder, path.stem, rows)
    return Check(f"verdicts in {relative_name(folder)}", problems)


def follows(row: LogRow) -> bool:
    """Whether a logged value, rule, place and verdict are what the extraction gives today."""
    return grade_row(row) == row


def check_count(folder: Path, model: str, rows: list[LogRow]) -> list[str]:
    """The summary's counts of one model against its log."""
    columns = ("n", "correct", "adjudicated", "correct_adjudicated")
    logged = {r.get("model"): tuple(r.get(c) for c in columns) for r in read_table(folder / "summary.csv")}
    decided = sum(bool(r.adjudicated) for r in rows)
    counts = (len(rows), sum(r.correct for r in rows), decided, sum(r.correct_adjudicated for r in rows))
    if logged.get(model) != tuple(str(c) for c in counts):
        return [f"summary.csv does not say {counts[1]} of {counts[0]} ({counts[3]} adjudicated) for {model}"]
    return []


def check_decisions(profile: Profile) -> Check:
    """The logs' adjudicated values against assessment/adjudications.csv: no decision left out, none made up."""
    decisions, problems = read_decisions(), []
    for model, rows in read_logs(profile).items():
        applied = apply_decisions(profile.name, model, rows, decisions)
        problems += [
            f"{model}: {row.id} is logged as adjudicated {row.adjudicated or 'by nobody'}, the decisions say "
            f"{now.adjudicated or 'nobody'}"
            for row, now in zip(rows, applied, strict=True)
            if row.adjudicated != now.adjudicated
        ]
    return Check(f"decisions in {relative_name(profile.logs)}", problems)


def check_tables(profile: Profile) -> Check:
    """Every table computed anew from the logs: extractors, accuracies, summary, contrasts, seeds and audits."""
    tables = compute_tables(profile, read_logs(profile), read_rows(profile.logs / "held-out.csv"))
    return Check(f"tables in {relative_name(profile.logs)}", _other_tables(profile.logs, tables, "the logs"))


def _other_tables(folder: Path, tables: dict[str, str], source: str) -> list[str]:
    return [
        f"{name} is missing or does not follow from {source}"
        for name, text in tables.items()
        if not (path := folder / name).is_file() or path.read_text(encoding="utf-8") != text
    ]


def check_published() -> list[Check]:
    """The published study's logs as graded here: outputs, today's labels and rules, tables. Nothing if there are none.

    The released texts are not in the checkout, so the values in verdicts.csv are taken as they are.
    """
    folder = published_study.published_folder()
    if not folder.is_dir():
        return []
    inputs, tables = f"inputs of {relative_name(folder)}", f"tables in {relative_name(folder)}"
    checks = []
    for what, check in (
        (relative_name(folder), lambda: check_outputs(folder / MANIFEST).problems),
        (inputs, lambda: _changed_inputs(read_json(folder / MANIFEST).get("inputs", {}))),
        (tables, lambda: _other_tables(folder, _published_tables(folder), published_study.VERDICTS)),
    ):
        try:
            checks.append(Check(what, check()))
        except (UserError, OSError) as error:
            checks.append(Check(what, [str(error)]))
    return checks


def _changed_inputs(recorded: dict[str, Any]) -> list[str]:
    changed = [name for name, value in published_study.own_inputs().items() if recorded.get(name) != value]
    return [f"{name} changed since the logs were graded: run `primekd published-study`" for name in changed]


def _published_tables(folder: Path) -> dict[str, str]:
    return published_study.compute_tables(*published_study.read_verdicts(folder / published_study.VERDICTS))


def check_lineage(profile: Profile) -> list[Check]:
    """Whether the students on this machine are the ones that the logs were computed from."""
    checks = []
    for name, facts in read_json(profile.logs / MANIFEST).get("models", {}).items():
        path = profile.runs / "students" / name / MANIFEST
        if path.is_file() and read_json(path)["outputs"] != facts["outputs"]:
            checks.append(Check(f"lineage of {name}", ["the student on this machine is not the one in the logs"]))
    return checks
