"""The assessment: control, students and teacher on the same test items -> logs/<profile>/."""

import shutil
from pathlib import Path
from typing import Any

from primekd.assessment.answers import answer_inputs
from primekd.assessment.grade import LogRow, grade_answers
from primekd.assessment.held_out import HeldOutRow, write_rows
from primekd.assessment.regrade import rules_hashes
from primekd.assessment.responses import RESPONSES, ResponseRow, response_rows, stored_answers
from primekd.assessment.results import answers_hash, decisions_hash, write_results
from primekd.assessment.score import Model, load_reference, models_of, score_models, scoring_costs
from primekd.assessment.students import Student, find_students
from primekd.assessment.tables import write_table
from primekd.capture import training_job
from primekd.config import Profile
from primekd.items import Item
from primekd.provenance import (
    MANIFEST,
    hash_file,
    hash_json,
    is_current,
    now,
    read_json,
    write_manifest,
    write_text,
)
from primekd.signals import SignalReader
from primekd.strategies import CONTROL, TEACHER

STORE_FACTS = ("spec", "engine", "reconstruction", "items", "tokens", "bytes", "sessions")  # kept beside the logs


def assess(profile: Profile) -> Path:
    """Scores every model on the test items; returns logs/<profile>/.

    Writes <model>.csv (per-item logs), held-out.csv, responses.csv, the tables, loss_curves/ and manifest.json.
    What is already answered with the same inputs is not generated again.
    """
    students = find_students(profile)
    items, reader = load_reference(profile)
    inputs = _inputs(profile, items, students, reader)
    if is_current(profile.logs, inputs):
        print("assess: nothing to do, the logs are written and their inputs are unchanged.")
        return profile.logs
    start = now()
    scored = score_models(profile, items, [Model(CONTROL), *models_of(students)], reader)
    logs = {name: grade_answers(items, model.answers) for name, model in scored.items()}
    logs[TEACHER] = grade_answers(items, stored_answers(profile, items, reader))
    held_out = [row for model in scored.values() for row in model.held_out]
    outputs = _write(profile, logs, held_out, response_rows(profile, students), students)
    lineage = {s.name: _lineage(profile, s) for s in students}
    write_manifest(
        profile.logs, "assessment", inputs, outputs,
        answers_sha256={model: answers_hash(rows) for model, rows in logs.items()},
        start=start, end=now(), models=lineage, teacher=_teacher_facts(reader), config=profile.resolved(),
        **scoring_costs(profile, list(scored)),
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


def _write(
    profile: Profile, logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], responses: list[ResponseRow],
    students: list[Student],
) -> list[Path]:  # fmt: skip
    outputs = write_results(profile, logs, held_out)
    folder = profile.logs
    write_rows(folder / "held-out.csv", held_out)
    outputs.append(write_table(folder / RESPONSES, ResponseRow, responses))
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
