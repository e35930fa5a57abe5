"""This machine's logs become the published ones: runs/<profile>/logs/ -> logs/<profile>/, on a person's word alone; and
what of a run was made by other code than today's: said at its end, and refused where it would be published."""

import itertools
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from primekd.assessment.forgetting import as_teacher
from primekd.assessment.inside import FOLDER as INSIDE
from primekd.assessment.inside import inside_folder
from primekd.assessment.score import Made, made_of
from primekd.capture.judged import judged_folder
from primekd.config import CONTROL, UNTRAINED, Profile, arms_of, split_seed
from primekd.foundation import MANIFEST, UserError, project_root, read_manifest, relative_name
from primekd.foundation.stage_code import other_code, stage_code
from primekd.foundation.storage import sync_folder, write_atomically
from primekd.report.html import write_report
from primekd.running.run import only_one
from primekd.running.verify import check_logs, check_published
from primekd.running.verify_run import check_run
from primekd.signals.manifest import read_store
from primekd.studies.regrade import files_of
from primekd.studies.study import find_study
from primekd.tasks.load import NEUTRAL

OTHERS = ("engines", "plan", "published")  # folders of logs/ that are no profile's
# Stage -> what --force-stage calls it, where that differs.
FORCED_BY = {
    "answers": "assess", "held-out": "assess", "forgetting": "assess", "priming": "assess", "pretrain": "distill",
    "text-fit": "assess", "choices": "assess", "completions": "assess", "assess-text": "assess",
}  # fmt: skip


def publish(profile: Profile, mixed: bool = False) -> list[str]:
    """Puts this machine's logs (what their manifest names) in the place of the published ones, with a report of their
    own; says what it did. Until all is copied, the old ones stay. `mixed`: also where several commits made it. Raises
    UserError if there are no logs, a run is under way, `verify` finds something, or not one commit made all of it."""
    if not (profile.logs / MANIFEST).is_file():
        raise UserError(f"{relative_name(profile.logs)} has no logs: run `primekd run --profile {profile.name}` first.")
    with only_one(profile):
        bring_back(profile.published)
        require_verified(profile)
        refuse_unpublishable(profile, mixed)
        names = [*read_manifest(profile.logs / MANIFEST)["outputs"], MANIFEST]
        names += [path.relative_to(profile.logs).as_posix() for path in files_beside(profile)]
        exchange(profile.logs, profile.published, names)
    report = write_report(profile.of_published())
    source, target = relative_name(profile.logs), relative_name(profile.published)
    return [f"{target} now holds the {len(names)} files of {source}.", f"Report: {relative_name(report)}"]


def files_beside(profile: Profile) -> list[Path]:
    """What was found inside the students, if anybody looked."""
    folder = inside_folder(profile)
    return files_of(folder) if (folder / MANIFEST).is_file() else []


def require_verified(profile: Profile) -> None:
    """Raises UserError where a number of this machine's logs could not be vouched for, and says why."""
    checks = check_logs(profile) + check_run(profile) + check_published()
    reasons = [f"{check.what}: {problem}" for check in checks for problem in check.problems]
    if profile.name in OTHERS:
        reasons.append(f"logs/{profile.name} is no profile's folder: give the profile's file another name")
    if reasons:
        more = f" (and {len(reasons) - 5} more: `primekd verify`)" if len(reasons) > 5 else ""
        raise UserError(f"{relative_name(profile.logs)} is not published: {'; '.join(reasons[:5])}{more}.")


def bring_back(target: Path) -> None:
    """Puts the old folder back that a killed `exchange` had set aside, if no other stands in its place."""
    old = target.with_name(f".{target.name}.old")
    if old.is_dir() and not target.exists():
        old.rename(target)


def exchange(source: Path, target: Path, names: list[str]) -> None:
    """Copies files of one folder into a new one and puts that in the place of `target`. If this is stopped, `target` is
    the old folder or the new one; between two renames it is neither for a moment, which `bring_back` mends."""
    bring_back(target)
    new, old = (target.with_name(f".{target.name}.{kind}") for kind in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        for name in names:
            with write_atomically(new / name) as temporary:
                shutil.copyfile(source / name, temporary)
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        bring_back(target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def results_of(profile: Profile) -> Iterator[Made]:
    """Every result that a whole run has, there or not, and those of students of further seeds."""
    if own := find_study(profile).made:
        yield from own(profile)
        return
    if profile.prepare:
        yield "prepare-teacher", profile, (project_root() / profile.prepare.output).parent
    taught = [name for name, arm in arms_of(profile).items() if arm.store == name]
    yield from (("capture", profile, profile.signals_folder(name)) for name in (*taught, "held-out"))
    if (judged := judged_folder(profile) / MANIFEST).is_file():  # what priming did to the teacher
        yield "priming", profile, judged.parent
        more = [name for name in read_manifest(judged)["inputs"]["stores"] if name not in (*taught, "held-out")]
        yield from (("capture", profile, profile.signals_folder(name)) for name in more)
    if profile.assess.forgetting_items:
        yield "capture", as_teacher(profile), profile.signals_folder(NEUTRAL)
    students, logs = dict.fromkeys(arms_of(profile)), profile.logs / MANIFEST
    assessed = read_manifest(logs).get("models") or {} if logs.is_file() else {}
    for name in arms_of(profile):  # one of a seed that the profile does not list may have been passed over
        listed = [profile.student_folder(name, seed).name for seed in profile.seeds.get(name, ())]
        students |= dict.fromkeys([*listed, *(model for model in assessed if split_seed(model)[0] == name)])
    placed = [name for name in students if arms_of(profile)[split_seed(name)[0]].by_place]  # a store a student
    yield from (("capture", profile, profile.signals_folder(name)) for name in placed)
    yield from (("distill", profile, profile.runs / "students" / name) for name in students)
    for name in (*(UNTRAINED if profile.assess.few_shot else (CONTROL,)), *students):
        yield from made_of(profile, name).values()
    served = [profile.runs / "served" / name for name in students]  # not measured in float32 or 4 bits
    yield from (("answers", profile, folder) for folder in served if (folder / MANIFEST).is_file())
    yield "assess", profile, profile.logs
    if (folder := inside_folder(profile) / MANIFEST).is_file():
        yield "inside", profile, folder.parent


def _record(stage: str, folder: Path) -> dict[str, Any]:
    return read_store(folder) if stage == "capture" else read_manifest(folder / MANIFEST)


def differences(profile: Profile) -> Iterator[tuple[str, Path, str]]:
    """(stage, folder, what) of every result of a run that is not made by today's code alone, in words."""
    codes: dict[tuple[str, str, str], dict[str, Any]] = {}
    for stage, view, folder in results_of(profile):
        if not (folder / MANIFEST).is_file():
            continue
        record, key = _record(stage, folder), (stage, view.data.task, view.teacher.engine)
        if key not in codes:
            codes[key] = stage_code(stage, view)
        if said := other_code(record, codes[key]):
            yield stage, folder, f"was made by other code ({said})"
        elif record.get("mixed"):
            yield stage, folder, "was made in parts by different code"


def other_code_text(profile: Profile) -> str:
    """One line for the end of a run; empty where today's code made all of it."""
    if not (found := list(differences(profile))):
        return ""
    stages = dict.fromkeys(FORCED_BY.get(stage, stage) for stage, _, _ in found)
    kept = f"Kept though made by other code: {', '.join(stages)} ({len(found)} in all); {relative_name(found[0][1])}"
    return f"{kept} {found[0][2]}. To make them anew: {made_anew(profile, stages)}."


def made_anew(profile: Profile, stages: Collection[str]) -> str:
    """The commands that make all results of stages anew."""
    whole, run = [stage for stage in stages if stage != INSIDE], f"primekd run --profile {profile.name}"
    commands = [" ".join([run, *(f"--force-stage {stage}" for stage in whole)])] if whole else []
    commands += [f"{run} --only {INSIDE} --force-stage {INSIDE}"] if INSIDE in stages else []
    return ", then ".join(f"`{command}`" for command in commands)


def refuse_unpublishable(profile: Profile, mixed: bool = False) -> None:
    """Raises UserError for a run whose numbers cannot be had from one commit or, if `mixed`, from those that its
    manifests name: a result is missing, was made by other code than today's, in parts by different code, or by a
    checkout with uncommitted changes or no commit; it names the result."""
    again = f"run `primekd run --profile {profile.name}"
    if missing := [folder for *_, folder in results_of(profile) if not (folder / MANIFEST).is_file()]:
        raise UserError(f"{relative_name(missing[0])} has no manifest: {again}` first, with --force if need be.")
    for stage, folder, said in itertools.chain(() if mixed else differences(profile), _untraceable(profile)):
        anew = f"run {made_anew(profile, [FORCED_BY.get(stage, stage)])}"
        fix = f"commit what is changed, and {anew}" + ("" if mixed else ", or publish it as it is with --mixed")
        raise UserError(f"{relative_name(folder)} {said}, so it is not published: {fix}.")


def _untraceable(profile: Profile) -> Iterator[tuple[str, Path, str]]:
    """As `differences`, of what was made by a checkout that no commit describes."""
    for stage, _, folder in results_of(profile):
        git = (_record(stage, folder).get("environment") or {}).get("git") or {}
        if not git.get("commit") or git.get("dirty") is not False:
            yield stage, folder, f"was made {'with uncommitted changes' if git.get('commit') else 'without a commit'}"
