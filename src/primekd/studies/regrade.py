"""Grading logged answers anew, without models: after a decision of a person, or when the rules changed. What is taken
from the logs (answers, held-out rows, loss curves) must be what their manifest says; everything else is computed from
it. So a grading that was killed between two files loses nothing: the next one makes them all again."""

from pathlib import Path
from typing import Any

from primekd.assessment.inside import inside_folder
from primekd.assessment.logs import LogRow, grade_row, read_log, read_logs
from primekd.config import Profile
from primekd.foundation import MANIFEST, altered_outputs, now, read_manifest, relative_name, write_manifest, write_text
from primekd.foundation.errors import UserError
from primekd.foundation.stage_code import stage_code
from primekd.studies import results
from primekd.tasks.load import task_of


def rules_hashes(profile: Profile | None = None) -> dict[str, str]:
    """Hash of the code that grades, a profile's task among it: a change asks for a new grading, which is cheap."""
    return {"code_sha256": stage_code("grading", profile)["sha256"]}


def regrade(profile: Profile) -> Path:
    """Grades and sums up the logged answers of a profile and its answer sets anew, by the extractor that was stated for
    them; returns their folder. Raises UserError if there are no logs, or what grading cannot make anew was altered."""
    path = profile.logs / MANIFEST
    if not path.is_file():
        raise UserError(f"{relative_name(profile.logs)} has no logs: run `primekd run --profile {profile.name}` first.")
    manifest = read_manifest(path)
    if not manifest.get("answers_sha256"):
        raise UserError(f"{relative_name(path)} has no hashes of the answers: run the assessment again.")
    # These, and KEPT, no grading makes anew.
    from_models = ("loss_curves/", "choices/", "completions/", "rollouts/", "text_logs/")
    kept = {n: digest for n, digest in manifest["outputs"].items() if n in results.KEPT or n.startswith(from_models)}
    _refuse(profile, altered_outputs(path, {"outputs": kept}))
    answers = _read_answers(profile, manifest["answers_sha256"])
    extractor, task = results.extractor_of(manifest), task_of(profile.data)
    logs = {model: [grade_row(row, extractor, task) for row in rows] for model, rows in answers.items()}
    beside = [path for view in results.kept_sets(profile) for path in files_of(regrade(view))]
    outputs = results.write_results(profile, logs, results.held_out_of(profile)) + beside
    inputs = {key: value for key, value in manifest["inputs"].items() if key != "planned"}
    inputs |= results.planned_inputs(profile) | {"rules": rules_hashes(profile)}
    inputs |= {"adjudications": results.decisions_hash(profile)}
    inputs["assess"] = inputs.get("assess", {}) | {"bootstrap_samples": profile.assess.bootstrap_samples}
    write_manifest(
        profile.logs, manifest["kind"], inputs, [*outputs, *(profile.logs / name for name in kept)],
        **_facts(manifest), code=stage_code("assess-text" if profile.student.from_scratch else "assess", profile),
    )  # fmt: skip
    if (inside_folder(profile) / MANIFEST).is_file():
        tell_inside_anew(profile)
    return profile.logs


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """The environment of what was measured stays; the one of this grading stands beside it."""
    known = ("kind", "inputs", "inputs_sha256", "outputs", "environment", "answered", "regraded", "code")
    facts = {key: value for key, value in manifest.items() if key not in known}
    return facts | {"answered": manifest.get("answered", manifest["environment"]), "regraded": now()}


def tell_inside_anew(profile: Profile) -> None:
    """Writes the tables of inside/ anew that follow from the logs, without models. Where a verdict changed nothing is
    written: that is to be looked at again with them. Raises UserError if a measured file was altered."""
    from primekd.studies.inside import tables

    folder = inside_folder(profile)
    manifest, made = read_manifest(folder / MANIFEST), tables(profile, folder)
    inputs, measured = manifest["inputs"], {n: d for n, d in manifest["outputs"].items() if n not in made}
    if inputs["logs"] != {name: results.verdicts_hash(rows) for name, rows in read_logs(profile).items()}:
        return
    if altered := altered_outputs(folder / MANIFEST, {"outputs": measured}):
        raise UserError(f"{relative_name(folder)}: {', '.join(altered)} altered: run `primekd analyse` again.")
    for name, text in made.items():
        write_text(folder / name, text)
    outputs, code = [folder / name for name in [*measured, *made]], stage_code("inside", profile)
    write_manifest(folder, manifest["kind"], inputs, outputs, **_facts(manifest), code=code)


def files_of(folder: Path) -> list[Path]:
    """A manifest of this folder and the files that it names."""
    return [folder / MANIFEST, *(folder / name for name in read_manifest(folder / MANIFEST)["outputs"])]


def _read_answers(profile: Profile, hashes: dict[str, str]) -> dict[str, list[LogRow]]:
    logs = {model: read_log(profile.logs / f"{model}.csv", task_of(profile.data)) for model in hashes}
    _refuse(profile, [f"{model}.csv" for model, rows in logs.items() if results.answers_hash(rows) != hashes[model]])
    return logs


def _refuse(profile: Profile, altered: list[str]) -> None:
    if altered:
        raise UserError(
            f"{relative_name(profile.logs)}: {', '.join(altered)} missing or altered since written: bring the "
            "files back (`git checkout` where they are published), or run the assessment again."
        )
