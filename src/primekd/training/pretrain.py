"""text -> student: a control trained from scratch on text, and arms that go on from its weights with the text behind.
Every arm reads the same tokens in the same order: what a teacher changes is told apart from what more text changes."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.capture.given_text import store_rows
from primekd.capture.live import LiveTeacher
from primekd.config import CONTROL, CORPUS, NONE, Arm, Profile, TrainConfig, arms_of, get_arm
from primekd.foundation import MANIFEST, UserError, read_manifest, relative_name
from primekd.foundation.memory import gpu_memory
from primekd.foundation.stage_code import forced_since, stage_code
from primekd.models import load_tokenizer, require_same_tokenizer, tokenizer_hash
from primekd.models.shapes import shape_of
from primekd.models.students import scratch_config
from primekd.signals import SignalReader, SignalSource, read_store
from primekd.tasks.text import end_of_text, text_folder
from primekd.tasks.text_shards import Blocks, held_out
from primekd.training.distill import begin, student_settings
from primekd.training.train_student import Lesson, train_student

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from primekd.training.examples import TextExamples
    from primekd.training.speed import TextLog

TEXT_LOG = "log.txt"
Watch = Callable[["TextLog"], "TrainerCallback"]


def train_on_text(
    profile: Profile, name: str, seed: int | None = None, force: bool = False, watch: Watch | None = None
) -> Path:
    """Trains the control, or the student of an arm of text, or goes on where a stopped training left off; returns its
    folder, as `distill`. Beside it lies <name>.log.txt. `watch`: makes what else looks at the model whenever it is
    validated, and writes into that log. Raises UserError if the arm is none of text, the control that it starts from is
    not trained, text is missing or too little, or the training diverged."""
    seed = profile.seed if seed is None else seed
    arm, teacher, start = None if name == CONTROL else get_arm(name), None, None
    if arm and arm.text != CORPUS:
        raise UserError(f"{name} is no arm of text (text: corpus in configs/strategies.yaml): use `primekd distill`.")
    train, first, end = part_of(profile, arm)
    if train.epochs != 1:
        raise UserError(f"{profile.name}: set epochs to 1: text.epochs says how often text is read.")
    if arm and arm.signals != NONE:
        require_same_tokenizer(profile.teacher.speaker, profile.student.speaker)
        teacher = LiveTeacher(profile, arm)
    if arm:
        profile = profile.model_copy(update={"loss": arm.loss_of(profile)})
    if arm and arm.start == CONTROL:
        control = profile.student_folder(CONTROL, seed)
        if not (control / MANIFEST).is_file():
            raise UserError(f"{relative_name(control)} is missing, which arms start from: train the control first.")
        start = control / "model"
    folder, examples = profile.student_folder(name, seed), text_examples(profile, first, end)
    section = "train" if arm and arm.start == CONTROL else "pretrain.train"
    with gpu_memory(f"{section}.micro_batch_size{f' or {teacher.smaller}' if teacher else ''}"):
        if arm and arm.stored:
            teacher = _stored(profile, teacher, train, examples, profile.signals_folder(name))
        inputs = text_inputs(profile, name, seed, teacher)
        stage, code = f"{'distill' if arm else 'pretrain'} {folder.name}", stage_code("pretrain", profile)
        since = forced_since(profile, "distill", force)
        if (checkpoints := begin(profile, folder, inputs, code, stage, "student", since)) is None:
            return folder
        lesson, student = _lesson(profile, arm, teacher, seed, examples, start, folder, watch), profile.student
        train_student(folder, stage, profile, inputs, lesson, checkpoints, seed, code, student=student, train=train)
    return folder


def part_of(profile: Profile, arm: Arm | None) -> tuple[TrainConfig, int, int]:
    """Of the control (None) or an arm: how it is optimised, first and last block. Raises UserError without any, and for
    what such a training cannot do."""
    text, pretrain = profile.text, profile.pretrain
    if text is None or pretrain is None:
        raise UserError(f"{profile.name}: students of text need the sections text and pretrain.")
    cut, end = pretrain.tokens // text.block_tokens, text.epochs * text.train_tokens // text.block_tokens
    as_control = arm is None or arm.start != CONTROL
    if not cut or cut > end or (cut == end and not as_control):
        head = f"{profile.name}: pretrain.tokens {pretrain.tokens} leaves no block of {text.block_tokens} tokens"
        raise UserError(f"{head} to the control, or none of text.train_tokens {text.train_tokens} to the arms.")
    trains = pretrain.train, profile.train
    if profile.launch.processes > 1 or any(len(train.rates) > 1 for train in trains if train):
        said = "students of text learn in one process, with one learning rate"
        raise UserError(f"{profile.name}: {said}: set launch.processes to 1, and one rate in train and pretrain.train.")
    return (pretrain.train, 0, cut) if as_control else (profile.train, cut, end)


def text_examples(profile: Profile, first: int, end: int) -> "TextExamples":
    """The blocks of a part of the profile's text. Raises UserError as `Blocks`, or if the text has too few for this
    part or for that of an arm of the profile: a control is not trained for arms that cannot be."""
    from primekd.training.examples import TextExamples

    digest, size = tokenizer_hash(load_tokenizer(profile.student.speaker)), profile.text.block_tokens
    blocks = Blocks(text_folder(profile), size, profile.seed, digest)
    needed = max([end, *(part_of(profile, arm)[2] for arm in arms_of(profile).values())])
    there = profile.text.epochs * len(blocks)
    if needed - there >= profile.text.epochs:  # fewer are what every epoch leaves of a last block
        read = f"control and arms read {needed} blocks of {size} tokens, and the text has {there}"
        raise UserError(f"{profile.name}: {read}: lower pretrain.tokens and text.train_tokens, or name more text.")
    return TextExamples(blocks, first, min(end, there), profile.text.documents_apart)


def _stored(
    profile: Profile, teacher: LiveTeacher, train: TrainConfig, examples: "TextExamples", folder: Path
) -> SignalReader:
    """The teacher's rows of the batches as the training will read them."""
    from primekd.training.examples import AskedBatches

    text = profile.text
    inputs = {
        "outputs": read_manifest(text_folder(profile) / MANIFEST)["outputs"], "blocks": len(examples),
        "block_tokens": text.block_tokens, "apart": text.documents_apart, "seed": profile.seed,
        "micro_batch_size": train.micro_batch_size,
    }  # fmt: skip
    with contextlib.closing(teacher):
        return store_rows(profile, teacher, AskedBatches(examples, train.micro_batch_size), folder, inputs)


def text_inputs(profile: Profile, name: str, seed: int, teacher: SignalSource | None) -> dict[str, Any]:
    """Everything that the trained weights depend on; `profile.loss` is the arm's."""
    tokenizer, arm = load_tokenizer(profile.student.speaker), None if name == CONTROL else get_arm(name)
    train, first, end = part_of(profile, arm)
    own = arm.on_policy_of(profile) if arm else None
    inputs = {
        "strategy": name, "seed": seed, "student": student_settings(profile.student),
        "tokenizer_sha256": tokenizer_hash(tokenizer), "train": train.model_dump(mode="json"),
        "text": read_manifest(text_folder(profile) / MANIFEST)["outputs"],
        "blocks": [first, end, profile.text.block_tokens, profile.text.documents_apart],
    }  # fmt: skip
    if arm:
        inputs["loss"] = profile.loss.model_dump(mode="json")
        if arm.start == CONTROL:
            inputs["start"] = read_manifest(profile.student_folder(CONTROL, seed) / MANIFEST)["outputs"]
    if own:
        inputs["on_policy"] = own.model_dump(mode="json")
    if teacher:
        shards = {name: entry["sha256"] for name, entry in teacher.manifest["shards"].items()}
        inputs["signals"] = {"spec_sha256": teacher.manifest["spec_sha256"], "shards": shards}
    return inputs


def differs(profile: Profile, name: str, seed: int, was: dict[str, Any]) -> list[str]:
    """What a student was trained with (`was`: its inputs) that today's profile has otherwise: names of inputs."""
    arm = None if name == CONTROL else get_arm(name)
    view = profile.model_copy(update={"loss": arm.loss_of(profile)}) if arm else profile
    today, was = text_inputs(view, name, seed, None), dict(was)
    store = profile.signals_folder(name) / MANIFEST
    if arm and arm.signals != NONE and (not arm.stored or store.is_file()):  # a store may be deleted after the training
        teacher = read_store(store.parent) if arm.stored else LiveTeacher(profile, arm).manifest
        today["signals"], was["signals"] = teacher["spec_sha256"], (was.get("signals") or {}).get("spec_sha256")
    return [key for key in today if was.get(key) != today[key]]


def _lesson(
    profile: Profile, arm: Arm | None, teacher: LiveTeacher | SignalReader | None, seed: int,
    examples: "TextExamples", start: Path | None, folder: Path, watch: Watch | None,
) -> Lesson:  # fmt: skip
    from primekd.training.examples import document_examples
    from primekd.training.rollouts import Rollouts
    from primekd.training.speed import Speed, TextLog

    tokenizer, text = load_tokenizer(profile.student.speaker), profile.text
    digest, rollouts = tokenizer_hash(tokenizer), None
    if own := arm.on_policy_of(profile) if arm else None:
        ends, with_text = [end_of_text(tokenizer)], profile.loss.alpha > 0
        rollouts = Rollouts(own, profile.max_new_tokens, ends, seed, with_text, lambda: teacher.engine)
    validation = document_examples(held_out(text_folder(profile), digest), text.block_tokens)
    config = scratch_config(profile.student.from_scratch, tokenizer, profile.student.layers_of)
    speed = Speed(shape_of(config.to_dict()), text.block_tokens)
    log = TextLog(folder.with_name(f"{folder.name}.{TEXT_LOG}"), bool(teacher), not rollouts or rollouts.with_text)
    return Lesson(examples, validation, teacher, rollouts, start, speed, [log, *([watch(log)] if watch else [])])
