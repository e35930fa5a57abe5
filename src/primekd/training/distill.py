"""store -> student: trains the student of one strategy, from teacher signals or from gold solutions."""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primekd.capture.jobs import open_signals, training_job
from primekd.capture.live import LiveTeacher
from primekd.config import NONE, Arm, Profile, StudentConfig, TrainConfig, get_arm, refuse_gold
from primekd.foundation import MANIFEST, hash_json, relative_name, set_aside
from primekd.foundation.memory import gpu_memory
from primekd.foundation.stage_code import forced_since, is_older, stage_code, stands
from primekd.models import load_tokenizer, require_same_tokenizer, template_hash, tokenizer_hash, turn_end
from primekd.models.folders import model_hash, weights_hash
from primekd.signals import SignalSource, require_served
from primekd.tasks import Item, Unlabelled, as_text, hash_items, load_items, task_of, without_gold
from primekd.training.processes import is_main_process, join_processes, launch, leave_processes, process_count
from primekd.training.train_student import Lesson, train_student
from primekd.training.treatment import treated


def student_settings(student: StudentConfig) -> dict[str, Any]:
    """A student's settings, with the hash of the weights that it begins with if they are another model's."""
    base = weights_hash(student) if student.model else student.layers_of and model_hash(student.layers_of)
    return student.model_dump(mode="json", exclude_none=True) | ({"model_sha256": base} if base else {})


def student_inputs(profile: Profile, strategy: str, seed: int, signals: SignalSource | None) -> dict[str, Any]:
    tokenizer = load_tokenizer(profile.student)
    inputs = {
        "strategy": strategy, "seed": seed, "student": student_settings(profile.student),
        "tokenizer_sha256": tokenizer_hash(tokenizer), "template_sha256": template_hash(tokenizer),
        "train": profile.train.model_dump(mode="json"), "items_sha256": hash_items(load_items(profile, "train")),
        "validation_sha256": hash_items(load_items(profile, "validation")),
    }  # fmt: skip
    if signals is not None:
        asked, shards = signals.manifest["spec_sha256"], signals.manifest["shards"]
        inputs["loss"] = profile.loss.model_dump(mode="json")
        inputs["signals"] = {"spec_sha256": asked, "shards": {name: entry["sha256"] for name, entry in shards.items()}}
        if signals.codec.name != signals.manifest["spec"]["codec"]["name"]:
            inputs["text_alone"] = True
    return inputs


def distill(profile: Profile, strategy: str, seed: int | None = None, force: bool = False) -> Path:
    """Trains one student, or goes on where a stopped training left off; returns its folder: adapter/ (peft's format)
    or, of a student from scratch, model/; loss_curve.csv and manifest.json. One of another configuration, or with
    `force` any, is set aside. Under `accelerate launch` this is one process, else it starts those of the profile.
    Raises UserError if signals are missing or do not match, a process failed, or the disk is full."""
    if process_count() == 1:
        return _distill(profile, strategy, seed, force)
    join_processes()
    folder = _distill(profile, strategy, seed, force)
    leave_processes()
    return folder


def _distill(profile: Profile, strategy: str, seed: int | None, force: bool) -> Path:
    seed = profile.seed if seed is None else seed
    arm = get_arm(strategy)
    if task_of(profile.data).gold_only_judges:
        refuse_gold(profile, arm)
    own = arm.on_policy_of(profile)
    profile = arm.view_of(profile)
    items, signals = taught_items(profile, arm, seed)
    deviating = None
    if arm.deviates:
        from primekd.training.deviations import Deviating

        deviating = Deviating(profile, arm, items, seed)
        signals = deviating.source
    inputs = student_inputs(profile, strategy, seed, signals)
    inputs |= {"treatment": arm.treatment, "kept": signals.item_ids} if hasattr(signals, "dropped") else {}
    inputs |= {"on_policy": own.model_dump(mode="json")} if own else {}
    inputs |= {"deviations": sorted(arm.deviates)} if arm.deviates else {}
    folder = profile.student_folder(strategy, seed)
    stage, code = f"distill {folder.name}", stage_code("distill", profile)
    since = forced_since(profile, "distill", force)
    if (checkpoints := begin(profile, folder, inputs, code, stage, "adapter", since)) is None:
        return folder
    if profile.launch.processes > 1 and process_count() == 1:
        launch(profile, strategy, seed, stage)
        return folder

    from primekd.training.examples import gold_examples, prompt_examples, teacher_examples

    tokenizer, rollouts, student = load_tokenizer(profile.student), None, profile.student
    if own:
        from primekd.training.rollouts import Rollouts

        ends = turn_end(tokenizer).stops
        rollouts = Rollouts(own, profile.max_new_tokens, ends, seed, teacher=lambda: signals.engine)
        examples = prompt_examples(tokenizer, items)
    elif deviating:
        examples = deviating.examples()
    elif signals:
        examples = teacher_examples(tokenizer, items, signals, profile.loss.labels == "gold")
    else:
        examples = gold_examples(tokenizer, items)
    validation = load_items(profile, "validation")
    validation = as_text(validation) if "no-template" in arm.deviates else validation
    lesson = Lesson(examples, gold_examples(tokenizer, validation), signals, rollouts)

    def run(folder: Path, stage: str, inputs: dict[str, Any], checkpoints: Path, train: TrainConfig) -> None:
        train_student(folder, stage, profile, inputs, lesson, checkpoints, seed, code, student=student, train=train)

    smaller = "" if student.quantization or student.from_scratch else ", or set student.quantization: nf4,"
    with gpu_memory(f"train.micro_batch_size{smaller}"):
        if len(profile.train.rates) > 1:
            from primekd.training.checkpoints import held
            from primekd.training.tuning import tune

            with held(checkpoints) if is_main_process() else contextlib.nullcontext():  # of all its rates
                tune(folder, stage, profile.train, inputs, checkpoints, code, run)
        else:
            run(folder, stage, inputs, checkpoints, profile.train)
    return folder


def taught_items(profile: Profile, arm: Arm, seed: int) -> tuple[Sequence[Item | Unlabelled], SignalSource | None]:
    """What an arm's student is trained on, gold solutions where they are learned, and where its rows come from."""
    items = load_items(profile, "train")
    if not arm.teacher:
        return items, None
    require_same_tokenizer(profile.teacher, profile.student)
    items = items if profile.loss.labels == "gold" or arm.deviates else without_gold(items)
    if arm.deviates:
        return items, None
    if arm.live:
        return items, LiveTeacher(profile, arm, items)  # its whole distributions serve every loss
    signals = open_signals(training_job(profile, arm.name, seed))
    if arm.signals == NONE:
        signals.leave_rows_out()
    require_served(signals.codec, profile.loss)
    signals = treated(profile, arm, signals, items, seed)
    return [item for item in items if item.id in set(signals.item_ids)], signals


def begin(
    profile: Profile, folder: Path, inputs: dict[str, Any], code: dict[str, Any], stage: str, kind: str, since: float
) -> Path | None:
    """Where the checkpoints of a training go; None if what it would make stands. Else the main process makes room: an
    earlier result is set aside, and checkpoints that are older than `since` are deleted."""
    if stands(folder, inputs, code, stage, f"the {kind} is trained and its inputs are unchanged.", since):
        return None
    checkpoints = profile.runs / "checkpoints" / f"{folder.name}-{hash_json(inputs)[:12]}"
    if is_main_process() and (folder / MANIFEST).is_file():
        why = "is to be made anew" if is_older(folder / MANIFEST, since) else "is outdated or was altered"
        print(f"{relative_name(folder)} {why}: set aside as {set_aside(folder).name}.")
    if is_main_process() and is_older(checkpoints, since):
        from primekd.training.checkpoints import held  # with transformers' trainer

        with held(checkpoints):
            shutil.rmtree(checkpoints)
    return checkpoints
