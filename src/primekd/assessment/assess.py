"""The assessment: control, students and teacher on the same test items -> logs/<profile>/."""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from primekd.assessment.answers import Answer, answer_inputs, generate_answers
from primekd.assessment.grade import LogRow, grade_answers
from primekd.assessment.held_out import HeldOutRow, measure, read_rows, write_rows
from primekd.assessment.regrade import rules_hashes
from primekd.assessment.results import answers_hash, decisions_hash, write_results
from primekd.assessment.summary import CONTROL, TEACHER
from primekd.capture import build_spec, capture, held_out_job, open_signals, training_job
from primekd.chat import decode_response
from primekd.config import Profile
from primekd.distill import student_inputs
from primekd.errors import UserError
from primekd.items import Item, load_items, refuse_overlap
from primekd.memory import gpu_memory
from primekd.metering import Meter
from primekd.models import load_tokenizer
from primekd.provenance import (
    MANIFEST,
    altered_outputs,
    hash_file,
    hash_json,
    is_current,
    now,
    read_json,
    relative_name,
    write_manifest,
    write_text,
)
from primekd.signals import SignalReader
from primekd.strategies import get_strategy, load_strategies

STORE_FACTS = ("spec", "engine", "reconstruction", "items", "tokens", "bytes", "sessions")  # kept beside the logs


@dataclass(frozen=True)
class Student:
    """A trained student: its log's name, its adapter's folder and its manifest."""

    name: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def adapter_hashes(self) -> dict[str, str]:
        outputs = self.manifest["outputs"]
        return {name: digest for name, digest in outputs.items() if name.startswith("adapter/")}


def find_students(profile: Profile) -> list[Student]:
    """Every trained student of a profile: strategies in their order, further seeds after the first.

    Raises:
        UserError: a strategy has no student, or an adapter was altered.
    """
    students = []
    for strategy in load_strategies():
        first = profile.student_folder(strategy)
        if not (first / MANIFEST).is_file():
            raise UserError(
                f"{relative_name(first)} has no student: run its distill notebook (or `primekd distill {strategy}`)."
            )
        more = sorted(
            p.parent for p in first.parent.glob(f"{strategy}-seed*/{MANIFEST}") if ".old-" not in p.parent.name
        )
        for folder in [first, *more]:
            manifest = read_json(folder / MANIFEST)
            if altered := altered_outputs(folder / MANIFEST, manifest):
                raise UserError(
                    f"{relative_name(folder)}: {', '.join(altered)} missing or altered: run its distill notebook again."
                )
            _refuse_stale(profile, strategy, folder, manifest)
            students.append(Student(folder.name, folder, manifest))
    return students


def _refuse_stale(profile: Profile, strategy: str, folder: Path, manifest: dict[str, Any]) -> None:
    """A student trained under another profile than today's must not be scored as if it were this one's."""
    first = folder == profile.student_folder(strategy)
    seed = profile.seed if first else manifest["inputs"]["seed"]
    wanted = student_inputs(profile, strategy, seed, None)
    was = dict(manifest["inputs"])
    if get_strategy(strategy).teacher:
        job = training_job(profile, strategy, seed)
        wanted["loss"] = profile.loss.model_dump(mode="json")
        wanted["signals"] = hash_json(build_spec(job, load_items(profile, "train")))
        was["signals"] = (was.get("signals") or {}).get("spec_sha256")
    if changed := [key for key in wanted if was.get(key) != wanted[key]]:
        raise UserError(
            f"{relative_name(folder)} differs from the profile ({', '.join(changed)}): run its distill notebook again."
        )


def assess(profile: Profile) -> Path:
    """Scores every model on the test items; returns logs/<profile>/.

    Writes <model>.csv (per-item logs), held-out.csv, summary.csv, contrasts.csv, loss_curves/ and manifest.json.
    What is already answered with the same inputs is not generated again.
    """
    students = find_students(profile)
    items = load_items(profile, "test")
    refuse_overlap(items, "test", {split: load_items(profile, split) for split in ("train", "validation")})
    reference = held_out_job(profile)
    capture(reference)
    reader = open_signals(reference)
    inputs = _inputs(profile, items, students, reader)
    if is_current(profile.logs, inputs):
        print("assess: nothing to do, the logs are written and their inputs are unchanged.")
        return profile.logs
    start = now()
    with Meter() as meter:
        logs, held_out = _score_models(profile, items, students, reader)
        logs[TEACHER] = grade_answers(items, _teacher_answers(profile, items, reader))
    outputs = _write(profile, logs, held_out, students)
    lineage = {s.name: _lineage(profile, s) for s in students}
    write_manifest(
        profile.logs, "assessment", inputs, outputs,
        answers_sha256={model: answers_hash(rows) for model, rows in logs.items()},
        start=start, end=now(), models=lineage, teacher=_teacher_facts(reader), config=profile.resolved(),
        **meter.facts,
    )  # fmt: skip
    return profile.logs


def _inputs(profile: Profile, items: list[Item], students: list[Student], reader: SignalReader) -> dict[str, Any]:
    return {
        "answers": answer_inputs(profile, items, None),
        "assess": profile.assess.model_dump(mode="json", exclude={"engine", "vllm"}),  # of the answers alone
        "rules": rules_hashes(),
        "adjudications": decisions_hash(profile),
        "students": {s.name: s.adapter_hashes for s in students},
        "reference": {name: shard["sha256"] for name, shard in reader.manifest["shards"].items()},
    }


def _score_models(
    profile: Profile, items: list[Item], students: list[Student], reader: SignalReader
) -> tuple[dict[str, list[LogRow]], list[HeldOutRow]]:
    """Per-item logs and held-out rows of the control and each student, one loaded model at a time."""
    from primekd.teachers.transformers_engine import TransformersEngine

    if profile.assess.engine == "vllm":
        _answer_with_vllm(profile, items, students)  # below, the answers are found on disk
    logs, held_out = {}, []
    for name, folder, hashes in _models(students):
        inputs = answer_inputs(profile, items, hashes)

        @cache
        def open_model(folder=folder) -> TransformersEngine:
            adapter = folder / "adapter" if folder else None
            student, size = profile.student, profile.assess.batch_size
            return TransformersEngine(student.model, student.dtype, size, adapter, student.quantization)

        with gpu_memory("assess.batch_size"):
            logs[name] = grade_answers(items, generate_answers(profile, name, items, inputs, open_model))
            held_out += _held_out(profile, name, items, inputs, reader, open_model)
        open_model.cache_clear()
    return logs, held_out


def _models(students: list[Student]) -> list[tuple[str, Path | None, dict[str, str] | None]]:
    """Name, student's folder and adapter's hashes of every model that is scored: the control, then the students."""
    return [(CONTROL, None, None), *((s.name, s.folder, s.adapter_hashes) for s in students)]


def _answer_with_vllm(profile: Profile, items: list[Item], students: list[Student]) -> None:
    """Writes the answers of all models from one loaded base model, which is gone before held-out fit needs the GPU."""
    from primekd.teachers.vllm_students import open_students

    engine = cache(lambda: open_students(profile, items, [s.folder / "adapter" for s in students]))
    try:
        for name, folder, hashes in _models(students):
            adapter = folder / "adapter" if folder else None
            inputs = answer_inputs(profile, items, hashes)
            generate_answers(profile, name, items, inputs, lambda adapter=adapter: engine().wearing(adapter))
    finally:
        if engine.cache_info().currsize:  # nothing is loaded where all answers are on disk
            engine().close()


def _held_out(profile, name, items, inputs, reader, open_model) -> list[HeldOutRow]:
    """Held-out rows of one model, from disk if they were measured with the same inputs."""
    folder = profile.runs / "held-out" / name
    own = {"answers": inputs, "reference": reader.manifest["spec_sha256"]}
    path = folder / "held-out.csv"
    if not is_current(folder, own):
        write_rows(path, measure(profile, name, open_model(), items, reader))
        write_manifest(folder, "held-out", own, [path])
    return read_rows(path)


def _teacher_answers(profile: Profile, items: list[Item], reader: SignalReader) -> list[Answer]:
    """The unprimed teacher's answers to the test items, from the held-out store."""
    tokenizer = load_tokenizer(profile.teacher.model)
    stored = [reader.item(item.id) for item in items]
    return [Answer(s.item_id, s.response_ids, s.truncated, decode_response(tokenizer, s.response_ids)) for s in stored]


def _write(
    profile: Profile, logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], students: list[Student]
) -> list[Path]:
    outputs = write_results(profile, logs, held_out)
    folder = profile.logs
    write_rows(folder / "held-out.csv", held_out)
    shutil.rmtree(folder / "loss_curves", ignore_errors=True)
    for student in students:
        curve = folder / "loss_curves" / f"{student.name}.csv"
        write_text(curve, (student.folder / "loss_curve.csv").read_text(encoding="utf-8"))
        outputs.append(curve)
    return [*outputs, folder / "held-out.csv"]


def _lineage(profile: Profile, student: Student) -> dict[str, Any]:
    """From a log back to what it was computed from; kept beside the log, because runs/ is not in git."""
    keys = ("inputs", "outputs", "start", "end", "seconds", "energy_kwh", "steps", "response_tokens", "resumed")
    facts = {key: student.manifest.get(key) for key in keys}
    facts["git"] = student.manifest["environment"]["git"]
    facts["manifest_sha256"] = hash_file(student.folder / MANIFEST)
    strategy = student.manifest["inputs"]["strategy"]
    if "signals" in student.manifest["inputs"]:
        captured = read_json(training_job(profile, strategy, student.manifest["inputs"]["seed"]).folder / MANIFEST)
        facts["signals"] = {key: captured.get(key) for key in STORE_FACTS}
        facts["signals"]["git"] = captured["environment"]["git"]
    return {"strategy": strategy} | facts


def _teacher_facts(reader: SignalReader) -> dict[str, Any]:
    return {key: reader.manifest.get(key) for key in STORE_FACTS} | {"spec_sha256": hash_json(reader.spec)}
