"""store -> student: trains the student of one strategy, from teacher signals or from gold solutions."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.capture.jobs import open_signals, training_job
from primekd.config import Profile, StudentConfig, TrainConfig
from primekd.config.arm import NONE
from primekd.config.arms import get_arm, refuse_gold
from primekd.foundation.energy import Meter
from primekd.foundation.memory import gpu_memory
from primekd.foundation.progress import Progress
from primekd.foundation.provenance import (
    MANIFEST,
    disk_errors,
    hash_json,
    now,
    relative_name,
    set_aside,
    write_manifest,
)
from primekd.foundation.stage_code import (
    forced_since,
    is_older,
    maker_of,
    mixed,
    note_session,
    say_mixed,
    stage_code,
    stands,
)
from primekd.foundation.tables import write_csv
from primekd.models import load_tokenizer, require_same_tokenizer, template_hash, tokenizer_hash, weights_hash
from primekd.tasks.load import load_items, task_of
from primekd.tasks.protocol import without_gold
from primekd.tasks.splits import hash_items
from primekd.training.processes import is_main_process, join_processes, leave_processes, process_count

if TYPE_CHECKING:
    from primekd.signals import SignalSource
    from primekd.training.trainer import DistillTrainer

STORE_FACTS = ("spec", "spec_sha256", "engine", "reconstruction", "items", "tokens", "bytes", "sessions", "mixed")
CURVE_COLUMNS = ("step", "epoch", "learning_rate", "loss", "ce", "kd", "grad_norm", "eval_loss")


def student_inputs(profile: Profile, strategy: str, seed: int, signals: "SignalSource | None") -> dict[str, Any]:
    """Everything that a student's trained weights depend on."""
    tokenizer = load_tokenizer(profile.student)
    base = {} if profile.student.from_scratch else {"model_sha256": weights_hash(profile.student)}
    inputs = {
        "strategy": strategy,
        "seed": seed,
        "student": profile.student.model_dump(mode="json", exclude_none=True) | base,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "template_sha256": template_hash(tokenizer),
        "train": profile.train.model_dump(mode="json"),
        "items_sha256": hash_items(load_items(profile, "train")),
        "validation_sha256": hash_items(load_items(profile, "validation")),
    }
    if signals is not None:
        shards = {name: entry["sha256"] for name, entry in signals.manifest["shards"].items()}
        inputs |= {
            "loss": profile.loss.model_dump(mode="json"),
            "signals": {"spec_sha256": signals.manifest["spec_sha256"], "shards": shards},
        }
        if signals.codec.name != signals.manifest["spec"]["codec"]["name"]:
            inputs["text_alone"] = True
    return inputs


def store_facts(signals: "SignalSource") -> dict[str, Any]:
    """What is kept of a capture where its signals were used: what was asked, what answered, whose code, how much."""
    manifest = signals.manifest
    return {key: manifest.get(key) for key in STORE_FACTS if manifest.get(key) is not None} | maker_of(manifest)


def distill(profile: Profile, strategy: str, seed: int | None = None, force: bool = False) -> Path:
    """Trains one student, or goes on where a stopped training left off; returns its folder.

    The folder holds adapter/ (peft's format) or, of a student from scratch, model/; loss_curve.csv and manifest.json.
    An adapter of another configuration is set aside under a new name; so is, with `force`, whatever there is. With
    several processes in the profile they are started here; under `accelerate launch` this is one of them.

    Raises:
        UserError: signals are missing or do not match, a process failed, or the disk is full.
    """
    if process_count() == 1:
        return _distill(profile, strategy, seed, force)
    join_processes()
    folder = _distill(profile, strategy, seed, force)
    leave_processes()
    return folder


def _distill(profile: Profile, strategy: str, seed: int | None, force: bool) -> Path:
    seed = profile.seed if seed is None else seed
    arm, signals = get_arm(strategy), None
    if task_of(profile.data).gold_only_judges:
        refuse_gold(profile, arm)
    profile = profile.model_copy(update={"loss": arm.loss_of(profile)})
    if arm.teacher:
        from primekd.signals.codecs import require_served

        require_same_tokenizer(profile.teacher, profile.student)
        signals = open_signals(training_job(profile, strategy, seed))
        if arm.signals == NONE:
            signals.leave_rows_out()
        require_served(signals.codec, profile.loss)
    gold = profile.loss.labels == "gold"
    items = load_items(profile, "train")
    if signals:
        from primekd.training.treatment import treated

        items = items if gold else without_gold(items)
        signals = treated(profile, arm, signals, items, seed)
        items = [item for item in items if item.id in set(signals.item_ids)]
    inputs = student_inputs(profile, strategy, seed, signals)
    if hasattr(signals, "dropped"):
        inputs |= {"treatment": arm.treatment, "kept": signals.item_ids}
    folder = profile.student_folder(strategy, seed)
    stage, code = f"distill {folder.name}", stage_code("distill", profile)
    since = forced_since(profile, "distill", force)
    if stands(folder, inputs, code, stage, "the adapter is trained and its inputs are unchanged.", since):
        return folder
    checkpoints = profile.runs / "checkpoints" / f"{folder.name}-{hash_json(inputs)[:12]}"
    if is_main_process():
        clear(folder, checkpoints, since)
    if profile.launch.processes > 1 and process_count() == 1:
        from primekd.training.processes import launch

        launch(profile, strategy, seed, stage)
        return folder

    from primekd.training.examples import gold_examples, teacher_examples

    tokenizer = load_tokenizer(profile.student)
    examples = teacher_examples(tokenizer, items, signals, gold) if signals else gold_examples(tokenizer, items)
    validation = gold_examples(tokenizer, load_items(profile, "validation"))
    student = profile.student
    smaller = "" if student.quantization or student.from_scratch else ", or set student.quantization: nf4,"
    with gpu_memory(f"train.micro_batch_size{smaller}"):

        def run(folder: Path, stage: str, inputs: dict[str, Any], checkpoints: Path, train: TrainConfig) -> None:
            train_student(
                folder, stage, profile, inputs, examples, validation, signals, checkpoints, seed, code,
                student=student, train=train,
            )  # fmt: skip

        if len(profile.train.rates) > 1:
            from primekd.training.tuning import tune

            tune(folder, stage, profile.train, inputs, checkpoints, code, run)
        else:
            run(folder, stage, inputs, checkpoints, profile.train)
    return folder


def clear(folder: Path, checkpoints: Path, since: float) -> None:
    """Makes room for a training: sets an earlier result aside, and deletes checkpoints that are older than `since`."""
    if (folder / MANIFEST).is_file():
        why = "is to be made anew" if is_older(folder / MANIFEST, since) else "is outdated or was altered"
        print(f"{relative_name(folder)} {why}: set aside as {set_aside(folder).name}.")
    if is_older(checkpoints, since):
        shutil.rmtree(checkpoints)


def train_student(
    folder: Path, stage: str, profile: Profile, inputs: dict[str, Any], examples, validation,
    signals: "SignalSource | None", checkpoints: Path, seed: int, code: dict[str, Any], *,
    student: StudentConfig, train: TrainConfig,
) -> None:  # fmt: skip
    """Trains a student and writes adapter/ or model/, loss_curve.csv and manifest.json into `folder`.

    Of several processes the main one writes and the others return once the weights are gathered. `checkpoints` is where
    to resume from and write to; it is removed once the student is saved. `code` is what trains it (stage_code).
    """
    from primekd.models.students import new_student, save_student
    from primekd.training.checkpoints import newest_checkpoint
    from primekd.training.trainer import build_trainer, steps_in_all

    start = now()
    tokenizer = load_tokenizer(student.speaker)
    with contextlib.ExitStack() as stack:
        meter = progress = None
        if is_main_process():
            meter = stack.enter_context(Meter())
            progress = stack.enter_context(Progress(profile, stage, steps_in_all(train, len(examples)), "step"))
        model = new_student(student, seed)
        trainer = build_trainer(
            model, tokenizer, examples, validation, signals, profile.loss, train, checkpoints, seed, progress,
            student.dtype,
        )  # fmt: skip
        newest = newest_checkpoint(checkpoints)
        sessions = note_session(checkpoints / "sessions.json", code, newest is not None) if is_main_process() else []
        if newest and is_main_process():
            print(f"{stage}: going on from {newest.name}.")
            say_mixed(stage, sessions[:-1], code)
        with disk_errors(folder), contextlib.redirect_stdout(io.StringIO()):
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
            loss = final_loss(trainer) if len(profile.train.rates) > 1 else None
        weights = trainer.trained_weights()
    if not is_main_process():
        return
    files = save_student(model, folder, student, weights)
    curve = loss_curve(trainer)
    write_csv(folder / "loss_curve.csv", CURVE_COLUMNS, ([row.get(name) for name in CURVE_COLUMNS] for row in curve))
    tokens = sum(sum(e.sequence.response_mask) for e in examples) * train.epochs
    makers = mixed({f"session {number}": maker_of(session) for number, session in enumerate(sessions, 1)})
    facts = meter.facts | ({"mixed": makers} if makers else {}) | ({"signals": store_facts(signals)} if signals else {})
    facts |= {"dropped": signals.dropped} if hasattr(signals, "dropped") else {}
    facts |= {} if loss is None else {"validation_loss": loss}
    write_manifest(
        folder, "adapter" if student.lora else "model", inputs, [*files, folder / "loss_curve.csv"], code=code,
        start=start, end=now(), response_tokens=tokens, steps=trainer.state.global_step, resumed=newest is not None,
        processes=process_count(), config=profile.resolved(), **facts,
    )  # fmt: skip
    shutil.rmtree(checkpoints, ignore_errors=True)


def final_loss(trainer: "DistillTrainer") -> float:
    """The validation loss of the weights as they are, measured now if the last step did not end with it."""
    last = [e for e in trainer.state.log_history if e["step"] == trainer.state.global_step and "eval_loss" in e]
    return last[-1]["eval_loss"] if last else trainer.evaluate()["eval_loss"]


def loss_curve(trainer: "DistillTrainer") -> list[dict[str, Any]]:
    """The trainer's history: one row a step with its losses, and the validation loss where it was measured."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in trainer.state.log_history:
        row = rows.setdefault(entry["step"], {"step": entry["step"]})
        row |= {key: entry[key] for key in CURVE_COLUMNS if key in entry}
    return [rows[step] for step in sorted(rows)]
