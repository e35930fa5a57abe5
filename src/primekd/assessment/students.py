"""The trained students of a profile: where they lie, and whether they are what the profile says today."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primekd.capture.jobs import build_spec, training_job
from primekd.capture.live import LiveTeacher
from primekd.config import NONE, Profile, arms_of, get_arm, how_to_train
from primekd.foundation import MANIFEST, UserError, altered_outputs, hash_json, read_manifest, relative_name
from primekd.tasks.load import load_items


@dataclass(frozen=True)
class Student:
    """A trained student: its log's name, the folder of its weights and its manifest."""

    name: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def weight_hashes(self) -> dict[str, str]:
        return weight_hashes(self.manifest)


def weight_hashes(manifest: dict[str, Any]) -> dict[str, str]:
    """File -> sha256 of a student's adapter, or of the model that was trained from scratch."""
    return {k: v for k, v in manifest.get("outputs", {}).items() if k.startswith(("adapter/", "model/"))}


def require_control(profile: Profile) -> None:
    """Raises UserError if students have no base that could be scored beside them."""
    if profile.student.from_scratch:
        raise UserError(
            f"{profile.name}: the study {profile.study} scores students beside their pretrained base, and a student "
            "from scratch has none: give student a model and lora (`primekd distill` alone trains it as it is)."
        )


def find_students(profile: Profile, only: str | None = None) -> list[Student]:
    """Every trained student, seeds behind the first. Raises UserError if a strategy has none, or one is unfit, but for
    a seed that the profile does not list: that one is passed over, with a line."""
    require_control(profile)
    students = []
    for strategy in [only] if only else arms_of(profile):
        first = profile.student_folder(strategy)
        more = sorted(path.parent for path in first.parent.glob(f"{strategy}-seed*/{MANIFEST}"))
        listed = {first, *(profile.student_folder(strategy, seed) for seed in profile.seeds.get(strategy, ()))}
        for folder in [first, *(path for path in more if ".old-" not in path.name)]:
            try:
                student = read_student(profile, strategy, folder)
                _refuse_stale(profile, strategy, folder, student.manifest)
            except UserError as error:
                if folder in listed:
                    raise
                print(f"Passed over, as the profile does not list this seed: {error}")
            else:
                students.append(student)
    return students


def read_student(profile: Profile, name: str, folder: Path) -> Student:
    """Of an arm, or a control of text. Raises UserError if it is not trained, or was altered."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{relative_name(folder)} has no student: {how_to_train(name, profile)} first.")
    manifest = read_manifest(folder / MANIFEST)
    if altered := altered_outputs(folder / MANIFEST, manifest):
        raise UserError(f"{relative_name(folder)}: {', '.join(altered)} missing or altered: train the student again.")
    return Student(folder.name, folder, manifest)


def _refuse_stale(profile: Profile, strategy: str, folder: Path, manifest: dict[str, Any]) -> None:
    """A student trained under another profile than today's must not be scored as if it were this one's."""
    from primekd.training.deviations import Deviating  # as long to import as peft and transformers' trainer together
    from primekd.training.distill import student_inputs

    first = folder == profile.student_folder(strategy)
    seed = profile.seed if first else manifest["inputs"].get("seed", profile.seed)
    arm = get_arm(strategy)
    profile = arm.view_of(profile)
    wanted = student_inputs(profile, strategy, seed, None)
    was = dict(manifest["inputs"])
    if arm.teacher:
        wanted["loss"] = profile.loss.model_dump(mode="json")
        if arm.treatment:
            wanted["treatment"] = arm.treatment
        items = load_items(profile, "train")
        if arm.deviates:
            wanted["deviations"] = sorted(arm.deviates)
        if arm.by_place:
            spec = Deviating(profile, arm, items, seed).place_spec
        elif arm.live:
            wanted["on_policy"] = arm.on_policy_of(profile).model_dump(mode="json")
            spec = LiveTeacher(profile, arm, items).manifest["spec"]
        else:
            spec = build_spec(training_job(profile, strategy, seed), items)
        if arm.signals == NONE and spec["codec"]["name"] != "text":  # else there were no rows to leave out
            wanted["text_alone"] = True
        wanted["signals"] = hash_json(spec)
        was["signals"] = (was.get("signals") or {}).get("spec_sha256")
    if changed := [key for key in wanted if was.get(key) != wanted[key]]:
        raise UserError(f"{relative_name(folder)} differs from the profile ({', '.join(changed)}): train it again.")
