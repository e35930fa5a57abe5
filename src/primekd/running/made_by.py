"""What of a run was made by other code than today's: said at its end, and refused where it would be published."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from primekd.assessment.forgetting import as_teacher
from primekd.assessment.score import Made, made_of
from primekd.config import Profile
from primekd.config.arm import CONTROL, UNTRAINED
from primekd.config.arms import arms_of
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import MANIFEST, project_root, read_manifest, relative_name
from primekd.foundation.stage_code import other_code, stage_code
from primekd.signals.manifest import read_store
from primekd.tasks.load import NEUTRAL

# Stage -> what --force-stage calls it, where that differs.
FORCED_BY = {"answers": "assess", "held-out": "assess", "forgetting": "assess"}


def results_of(profile: Profile) -> Iterator[Made]:
    """Every result that a whole run has, there or not, and those of students of further seeds."""
    if profile.prepare:
        yield "prepare-teacher", profile, (project_root() / profile.prepare.output).parent
    taught = [name for name, arm in arms_of(profile).items() if arm.store == name]
    yield from (("capture", profile, profile.signals_folder(name)) for name in (*taught, "held-out"))
    if profile.assess.forgetting_items:
        yield "capture", as_teacher(profile), profile.signals_folder(NEUTRAL)
    students = dict.fromkeys(arms_of(profile))
    for name in arms_of(profile):
        more = sorted((profile.runs / "students").glob(f"{name}-seed*/{MANIFEST}"))
        students |= dict.fromkeys(path.parent.name for path in more if ".old-" not in path.parent.name)
    yield from (("distill", profile, profile.runs / "students" / name) for name in students)
    untrained = UNTRAINED if profile.assess.few_shot else (CONTROL,)
    for name in (*untrained, *students):
        yield from made_of(profile, name).values()
    served = [profile.runs / "served" / name for name in students]  # not measured in float32 or 4 bits
    yield from (("answers", profile, folder) for folder in served if (folder / MANIFEST).is_file())
    yield "assess", profile, profile.logs


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
    found = list(differences(profile))
    if not found:
        return ""
    stages = dict.fromkeys(FORCED_BY.get(stage, stage) for stage, _, _ in found)
    words = " ".join(f"--force-stage {stage}" for stage in stages)
    return (
        f"Kept though made by other code: {', '.join(stages)} ({len(found)} in all); {relative_name(found[0][1])} "
        f"{found[0][2]}. `primekd run --profile {profile.name} {words}` makes them anew."
    )


def refuse_unpublishable(profile: Profile, mixed: bool = False) -> None:
    """Raises UserError for a run whose numbers cannot be had from one commit or, if `mixed`, from those that its
    manifests name: a result is missing, was made by other code than today's, in parts by different code, or by a
    checkout with uncommitted changes or no commit; it names the result."""
    again = f"run `primekd run --profile {profile.name}"
    if missing := [folder for *_, folder in results_of(profile) if not (folder / MANIFEST).is_file()]:
        raise UserError(f"{relative_name(missing[0])} has no manifest: {again}` first.")
    found = itertools.chain(() if mixed else differences(profile), _untraceable(profile))
    for stage, folder, said in found:
        anew = f"{again} --force-stage {FORCED_BY.get(stage, stage)}`"
        fix = f"commit what is changed, and {anew}" + ("" if mixed else ", or publish it as it is with --mixed")
        raise UserError(f"{relative_name(folder)} {said}, so it is not published: {fix}.")


def _untraceable(profile: Profile) -> Iterator[tuple[str, Path, str]]:
    """As `differences`, of what was made by a checkout that no commit describes."""
    for stage, _, folder in results_of(profile):
        git = (_record(stage, folder).get("environment") or {}).get("git") or {}
        if not git.get("commit") or git.get("dirty") is not False:
            yield stage, folder, f"was made {'with uncommitted changes' if git.get('commit') else 'without a commit'}"
