"""store -> LoRA adapter: trains the student of one strategy, from teacher signals or from gold solutions."""

import contextlib
import csv
import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.capture.run import open_signals, training_job
from primekd.config import LoraSettings, Profile
from primekd.config.strategies import get_strategy
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
    sync_folder,
    write_manifest,
    write_text,
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
from primekd.models import load_model, load_tokenizer, model_hash, require_same_tokenizer, template_hash, tokenizer_hash
from primekd.tasks.items import hash_items, load_items
from primekd.training.processes import is_main_process, join_processes, leave_processes, process_count

if TYPE_CHECKING:
    from torch import Tensor

    from primekd.signals import SignalReader
    from primekd.training.trainer import DistillTrainer

STORE_FACTS = ("spec", "spec_sha256", "engine", "reconstruction", "items", "tokens", "bytes", "sessions", "mixed")
CURVE_COLUMNS = ("step", "epoch", "learning_rate", "loss", "ce", "kd", "grad_norm", "eval_loss")


def student_inputs(profile: Profile, strategy: str, seed: int, signals: "SignalReader | None") -> dict[str, Any]:
    """Everything that a student's adapter depends on."""
    tokenizer = load_tokenizer(profile.student)
    inputs = {
        "strategy": strategy,
        "seed": seed,
        "student": profile.student.model_dump(mode="json", exclude_none=True)
        | {"model_sha256": model_hash(profile.student.model)},
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
    return inputs


def store_facts(signals: "SignalReader") -> dict[str, Any]:
    """What is kept of a capture where its signals were used: what was asked, what answered, whose code, how much."""
    manifest = signals.manifest
    return {key: manifest.get(key) for key in STORE_FACTS if manifest.get(key) is not None} | maker_of(manifest)


def distill(profile: Profile, strategy: str, seed: int | None = None, force: bool = False) -> Path:
    """Trains one student, or goes on where a stopped training left off; returns its folder.

    The folder holds adapter/ (peft's format), loss_curve.csv and manifest.json. An adapter of another configuration is
    set aside under a new name; so is, with `force`, whatever there is. With several processes in the profile they are
    started here; under `accelerate launch` this is one of them.

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
    with_teacher = get_strategy(strategy).teacher
    signals = None
    if with_teacher:
        from primekd.signals.codecs import require_served

        require_same_tokenizer(profile.teacher, profile.student)
        signals = open_signals(training_job(profile, strategy, seed))
        require_served(signals.codec, profile.loss)
    inputs = student_inputs(profile, strategy, seed, signals)
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
    items = load_items(profile, "train")
    gold = profile.loss.labels == "gold"
    examples = teacher_examples(tokenizer, items, signals, gold) if signals else gold_examples(tokenizer, items)
    validation = gold_examples(tokenizer, load_items(profile, "validation"))
    smaller = "" if profile.student.quantization else ", or set student.quantization: nf4,"
    with gpu_memory(f"train.micro_batch_size{smaller}"):
        train_adapter(
            folder, stage, profile, inputs, examples, validation, signals, checkpoints, seed, code,
            model=profile.student.model, dtype=profile.student.dtype, lora=profile.student.lora, train=profile.train,
            quantization=profile.student.quantization,
        )  # fmt: skip
    return folder


def clear(folder: Path, checkpoints: Path, since: float) -> None:
    """Makes room for a training: sets an earlier result aside, and deletes checkpoints that are older than `since`."""
    if (folder / MANIFEST).is_file():
        why = "is to be made anew" if is_older(folder / MANIFEST, since) else "is outdated or was altered"
        print(f"{relative_name(folder)} {why}: set aside as {set_aside(folder).name}.")
    if is_older(checkpoints, since):
        shutil.rmtree(checkpoints)


def train_adapter(
    folder: Path, stage: str, profile: Profile, inputs: dict[str, Any], examples, validation, signals,
    checkpoints: Path, seed: int, code: dict[str, Any], *, model: str, dtype: str, lora: LoraSettings, train,
    quantization: str | None = None,
) -> None:  # fmt: skip
    """Trains a LoRA adapter over `model` and writes adapter/, loss_curve.csv and manifest.json into `folder`.

    Of several processes the main one writes and the others return once the weights are gathered.

    Args:
        examples, validation: lists of training.examples.Example.
        checkpoints: where to resume from and write to; removed once the adapter is saved.
        code: what trains it (stage_code).
    """
    from primekd.training.checkpoints import newest_checkpoint
    from primekd.training.trainer import build_trainer, steps_in_all

    start = now()
    tokenizer = load_tokenizer(model)
    with contextlib.ExitStack() as stack:
        meter = progress = None
        if is_main_process():
            meter = stack.enter_context(Meter())
            progress = stack.enter_context(Progress(profile, stage, steps_in_all(train, len(examples)), "step"))
        student = lora_model(model, dtype, lora, seed, quantization)
        trainer = build_trainer(
            student, tokenizer, examples, validation, signals, profile.loss, train, checkpoints, seed, progress
        )
        newest = newest_checkpoint(checkpoints)
        sessions = note_session(checkpoints / "sessions.json", code, newest is not None) if is_main_process() else []
        if newest and is_main_process():
            print(f"{stage}: going on from {newest.name}.")
            say_mixed(stage, sessions[:-1], code)
        with disk_errors(folder), contextlib.redirect_stdout(io.StringIO()):
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        weights = trainer.adapter_weights()
    if not is_main_process():
        return
    adapter = save_adapter(student, folder, model, weights)
    write_text(folder / "loss_curve.csv", loss_curve(trainer))
    tokens = sum(sum(e.sequence.response_mask) for e in examples) * train.epochs
    makers = mixed({f"session {number}": maker_of(session) for number, session in enumerate(sessions, 1)})
    facts = meter.facts | ({"mixed": makers} if makers else {}) | ({"signals": store_facts(signals)} if signals else {})
    write_manifest(
        folder, "adapter", inputs, [*adapter, folder / "loss_curve.csv"], code=code,
        start=start, end=now(), response_tokens=tokens, steps=trainer.state.global_step, resumed=newest is not None,
        processes=process_count(), config=profile.resolved(), **facts,
    )  # fmt: skip
    shutil.rmtree(checkpoints, ignore_errors=True)


def lora_model(model: str, dtype: str, lora: LoraSettings, seed: int, quantization: str | None = None):
    """A peft model with a fresh adapter in float32 over a frozen base in `dtype`, or in 4 bits computing in it."""
    from transformers import set_seed

    set_seed(seed)
    return with_adapter(load_model(model, dtype, quantization), lora, dtype)


def with_adapter(base, lora: LoraSettings, dtype: str):
    """A loaded model with a fresh adapter in float32; `dtype` is what the base computes in."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    student = get_peft_model(base, config)
    if dtype == "bfloat16":
        for module in student.modules():  # the trainer's autocast does the casting; peft's own would undo it
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False
    return student


def save_adapter(student, folder: Path, model: str, weights: "dict[str, Tensor] | None" = None) -> list[Path]:
    """Writes adapter/ whole or not at all; returns its files. `weights`: where `student` itself holds only shards."""
    target, temporary = folder / "adapter", folder / ".adapter.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for config in student.peft_config.values():
        config.base_model_name_or_path = model  # the reference, not the path of this machine
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        student.save_pretrained(temporary, state_dict=weights, save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's empty model card
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        sync_folder(folder)
    return sorted(p for p in target.iterdir() if p.is_file())


def loss_curve(trainer: "DistillTrainer") -> str:
    """The trainer's history as CSV: one row a step with its losses, and the validation loss where it was measured."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in trainer.state.log_history:
        row = rows.setdefault(entry["step"], {"step": entry["step"]})
        row |= {key: entry[key] for key in CURVE_COLUMNS if key in entry}
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    return text.getvalue()
