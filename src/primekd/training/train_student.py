"""One training from beginning to end, resumed where it was stopped: a student's folder with its weights and curves."""

import contextlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.config import Profile, StudentConfig, TrainConfig
from primekd.foundation import Meter, Progress, disk_errors, write_csv, write_manifest
from primekd.foundation.stage_code import maker_of, mixed, note_session, say_mixed
from primekd.models import load_tokenizer
from primekd.training import habits
from primekd.training.processes import is_main_process, process_count

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from primekd.signals import SignalSource
    from primekd.training.examples import Example
    from primekd.training.rollouts import Rollouts
    from primekd.training.speed import Speed

STORE_FACTS = ("spec", "spec_sha256", "engine", "reconstruction", "items", "tokens", "bytes", "sessions", "mixed")
CURVE_COLUMNS = ("step", "epoch", "learning_rate", "loss", "ce", "kd", "grad_norm", "eval_loss")


@dataclass(frozen=True)
class Lesson:
    """What a student learns from: examples, the teacher's rows (None for the labels alone) and the text that it writes
    itself; `start`: the folder of the model that it goes on from. `speed`, `callbacks` watch it."""

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
    """Trains a student into `folder`: adapter/ or model/, loss_curve.csv, manifest.json, and rollouts.csv of its own
    text; goes on from `checkpoints`, which is removed then. Of several processes the main one writes. `code`: of
    stage_code."""
    from primekd.models.students import new_student, save_student
    from primekd.training.checkpoints import held, newest_checkpoint
    from primekd.training.examples import trained_tokens
    from primekd.training.trainer import build_trainer, steps_in_all

    with held(checkpoints) if is_main_process() else contextlib.nullcontext():  # until the student is written
        examples, signals = lesson.examples, lesson.signals
        tokenizer = load_tokenizer(student.speaker)
        with contextlib.ExitStack() as stack:
            meter = progress = None
            if is_main_process():
                meter = stack.enter_context(Meter(profile.country))
                progress = stack.enter_context(Progress(profile, stage, steps_in_all(train, len(examples)), "step"))
            model = new_student(student, seed, lesson.start)
            trainer = build_trainer(
                model, tokenizer, examples, lesson.validation, signals, profile.loss, train, checkpoints, seed,
                progress, student.dtype, lesson.rollouts, lesson.speed, lesson.callbacks,
            )  # fmt: skip
            if hasattr(signals, "close"):
                stack.callback(signals.close)
            newest = newest_checkpoint(checkpoints)
            sessions = []
            if is_main_process():
                sessions = note_session(checkpoints / "sessions.json", code, newest is not None)
            if newest and is_main_process():
                print(f"{stage}: going on from {newest.name}.")
                say_mixed(stage, sessions[:-1], code)
            with disk_errors(folder), contextlib.redirect_stdout(io.StringIO()):
                trainer.train(resume_from_checkpoint=str(newest) if newest else None)
                loss = trainer.final_loss() if len(profile.train.rates) > 1 else None
            weights = trainer.trained_weights()
        if not is_main_process():
            return
        outputs = [*save_student(model, folder, student, weights), folder / "loss_curve.csv"]
        curve: dict[int, dict[str, Any]] = {}  # a row a step, with the validation loss where it was measured
        for entry in trainer.state.log_history:
            curve.setdefault(entry["step"], {}).update(entry)
        rows = ([curve[step].get(name) for name in CURVE_COLUMNS] for step in sorted(curve))
        write_csv(outputs[-1], CURVE_COLUMNS, rows)
        written = [row for row in trainer.state.log_history if "written_tokens" in row]
        if written:
            outputs.append(folder / habits.FILE)
            write_csv(outputs[-1], habits.COLUMNS, ([row[name] for name in habits.COLUMNS] for row in written))
        tokens = trained_tokens(examples) * train.epochs
        tokens += round(sum(row["responses"] * row["written_tokens"] for row in written))
        makers = mixed({f"session {number}": maker_of(session) for number, session in enumerate(sessions, 1)})
        facts = meter.facts | ({"mixed": makers} if makers else {})
        facts |= {"signals": store_facts(signals)} if signals else {}
        facts |= {"dropped": signals.dropped} if hasattr(signals, "dropped") else {}
        facts |= {} if loss is None else {"validation_loss": loss}
        facts |= lesson.speed.facts if lesson.speed else {}
        write_manifest(
            folder, "adapter" if student.lora else "model", inputs, outputs, code=code,
            response_tokens=tokens, steps=trainer.state.global_step, resumed=newest is not None,
            processes=process_count(), config=profile.resolved(), **facts,
        )  # fmt: skip
        shutil.rmtree(checkpoints, ignore_errors=True)
