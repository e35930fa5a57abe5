"""One training from beginning to end, resumed where it was stopped: a student's folder with its weights and curves."""

import contextlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.config import Profile, StudentConfig, TrainConfig
from primekd.foundation.energy import Meter
from primekd.foundation.progress import Progress
from primekd.foundation.provenance import disk_errors, now, write_manifest
from primekd.foundation.stage_code import maker_of, mixed, note_session, say_mixed
from primekd.foundation.tables import write_csv
from primekd.models import load_tokenizer
from primekd.training import habits
from primekd.training.processes import is_main_process, process_count

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from primekd.signals import SignalSource
    from primekd.training.examples import Example
    from primekd.training.rollouts import Rollouts
    from primekd.training.speed import Speed
    from primekd.training.trainer import DistillTrainer

STORE_FACTS = ("spec", "spec_sha256", "engine", "reconstruction", "items", "tokens", "bytes", "sessions", "mixed")
CURVE_COLUMNS = ("step", "epoch", "learning_rate", "loss", "ce", "kd", "grad_norm", "eval_loss")


@dataclass(frozen=True)
class Lesson:
    """What a student learns from, and what watches it.

    Attributes:
        signals: the teacher's rows; None for the labels alone.
        rollouts: the text that it writes itself, if it does.
        start: the folder of the model whose weights it goes on from; None for fresh ones.
        speed, callbacks: watch the training.
    """

    examples: "Sequence[Example]"
    validation: "Sequence[Example]"
    signals: "SignalSource | None" = None
    rollouts: "Rollouts | None" = None
    start: Path | None = None
    speed: "Speed | None" = None
    callbacks: "Sequence[TrainerCallback]" = ()


def store_facts(signals: "SignalSource") -> dict[str, Any]:
    """What is kept of a capture where its signals were used: what was asked, what answered, whose code, how much."""
    manifest = signals.manifest
    return {key: manifest.get(key) for key in STORE_FACTS if manifest.get(key) is not None} | maker_of(manifest)


def train_student(
    folder: Path, stage: str, profile: Profile, inputs: dict[str, Any], lesson: Lesson, checkpoints: Path, seed: int,
    code: dict[str, Any], *, student: StudentConfig, train: TrainConfig,
) -> None:  # fmt: skip
    """Trains a student and writes adapter/ or model/, loss_curve.csv and manifest.json into `folder`, and rollouts.csv
    where it wrote its own text.

    Of several processes the main one writes and the others return once the weights are gathered. `checkpoints` is where
    to resume from and write to; it is removed once the student is saved. `code` is what trains it (stage_code).
    """
    from primekd.models.students import new_student, save_student
    from primekd.training.checkpoints import newest_checkpoint
    from primekd.training.examples import trained_tokens
    from primekd.training.trainer import build_trainer, steps_in_all

    start, examples, signals = now(), lesson.examples, lesson.signals
    tokenizer = load_tokenizer(student.speaker)
    with contextlib.ExitStack() as stack:
        meter = progress = None
        if is_main_process():
            meter = stack.enter_context(Meter(profile.country))
            progress = stack.enter_context(Progress(profile, stage, steps_in_all(train, len(examples)), "step"))
        model = new_student(student, seed, lesson.start)
        trainer = build_trainer(
            model, tokenizer, examples, lesson.validation, signals, profile.loss, train, checkpoints, seed, progress,
            student.dtype, lesson.rollouts, lesson.speed, lesson.callbacks,
        )  # fmt: skip
        if hasattr(signals, "close"):
            stack.callback(signals.close)
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
    written = [row for row in trainer.state.log_history if "written_tokens" in row]
    if written:
        write_csv(folder / habits.FILE, habits.COLUMNS, ([row[name] for name in habits.COLUMNS] for row in written))
    tokens = trained_tokens(examples) * train.epochs
    tokens += round(sum(row["responses"] * row["written_tokens"] for row in written))
    outputs = [*files, folder / "loss_curve.csv", *([folder / habits.FILE] if written else [])]
    makers = mixed({f"session {number}": maker_of(session) for number, session in enumerate(sessions, 1)})
    facts = meter.facts | ({"mixed": makers} if makers else {}) | ({"signals": store_facts(signals)} if signals else {})
    facts |= {"dropped": signals.dropped} if hasattr(signals, "dropped") else {}
    facts |= {} if loss is None else {"validation_loss": loss}
    facts |= lesson.speed.facts if lesson.speed else {}
    write_manifest(
        folder, "adapter" if student.lora else "model", inputs, outputs, code=code,
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
