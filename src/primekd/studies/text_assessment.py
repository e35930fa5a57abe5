"""Students of text on documents that nobody trained on and on benchmarks of choices -> runs/<profile>/logs/."""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primekd.assessment.answers import Answer, answers_folder
from primekd.assessment.held_out import held_out_folder, read_rows, write_rows
from primekd.assessment.likelihood import FILE, ChoiceRow, read_choices, score_choices, write_choices
from primekd.assessment.logs import LogRow, grade_answers
from primekd.assessment.score import makers, scored_hashes, scoring_costs
from primekd.assessment.students import Student
from primekd.assessment.text_fit import measure_documents
from primekd.capture.live import LiveTeacher
from primekd.config import Profile
from primekd.config.arm import CONTROL, TEACHER
from primekd.config.arms import unprimed
from primekd.foundation.energy import Meter
from primekd.foundation.progress import Progress
from primekd.foundation.provenance import MANIFEST, now, read_manifest, write_manifest
from primekd.foundation.stage_code import forced_since, set_aside_if_older, stage_code, stands
from primekd.models import load_tokenizer, tokenizer_hash
from primekd.studies.assess import lineage
from primekd.studies.regrade import rules_hashes
from primekd.studies.results import copy_text, decisions_hash, planned_inputs, vouch, write_results
from primekd.tasks.choices import ChoiceItem
from primekd.tasks.load import load_items, task_of
from primekd.tasks.splits import hash_items
from primekd.tasks.text import text_folder
from primekd.tasks.text_shards import held_out
from primekd.training import habits
from primekd.training.pretrain import TEXT_LOG


def assess(profile: Profile, students: Sequence[Student], force: bool = False) -> Path:
    """Measures every student, and the teacher on the benchmarks; returns runs/<profile>/logs/ with <model>.csv (what
    was chosen, item by item), choices/, held-out.csv (a row a document), the tables, loss_curves/, rollouts/,
    text_logs/ and manifest.json. What is measured with the same inputs is not measured again, unless `force` is given.
    """
    items, code = load_items(profile, "test"), stage_code("assess-text", profile)
    teacher, names = LiveTeacher(profile, unprimed()), [student.name for student in students]
    own = _inputs(profile, items, teacher)
    inputs = own | {
        "students": {student.name: student.weight_hashes for student in students},
        "rules": rules_hashes(profile),
        "adjudications": decisions_hash(profile),
        "assess": profile.assess.model_dump(include={"choose_by", "bootstrap_samples"}),
        "scored": scored_hashes(profile, names),
        **planned_inputs(profile),
    }
    since = forced_since(profile, "assess", force)
    if stands(profile.logs, inputs, code, "assess", "the logs are written and their inputs are unchanged.", since):
        return profile.logs
    start = now()
    with contextlib.closing(teacher):
        _measure(profile, students, items, teacher, own, since)
    inputs["scored"] = scored_hashes(profile, names)
    chosen = {name: read_choices(answers_folder(profile, name) / FILE) for name in (*names, TEACHER)}
    rows = [row for name in names for row in read_rows(held_out_folder(profile, name) / "held-out.csv")]
    logs = {name: _log(profile, items, own) for name, own in chosen.items()}
    outputs = _write_beside(profile, students, chosen)
    outputs += write_results(profile, logs, rows)
    write_rows(profile.logs / "held-out.csv", rows)
    of_students = {student.name: lineage(profile, student) for student in students}
    facts = {"models": of_students, "control": makers(profile, CONTROL), "teacher": teacher.manifest}
    facts |= {"start": start, "end": now()} | scoring_costs(profile, names)
    return vouch(profile, inputs, [*outputs, profile.logs / "held-out.csv"], logs, code, **facts)


def _inputs(profile: Profile, items: Sequence[ChoiceItem], teacher: LiveTeacher) -> dict[str, Any]:
    """What every model's measures depend on, beside its weights."""
    text = read_manifest(text_folder(profile) / MANIFEST)
    return {
        "items_sha256": hash_items(items),
        "text": text["outputs"],
        "read": [profile.text.block_tokens, profile.text.held_out_tokens],
        "teacher": teacher.manifest["spec_sha256"],
        "dtype": profile.scoring_dtype,
    }


def _measure(
    profile: Profile, students: Sequence[Student], items: Sequence[ChoiceItem], teacher: LiveTeacher,
    inputs: dict[str, Any], since: float,
) -> None:  # fmt: skip
    """Writes choices.csv and held-out.csv of every model that lacks them, in one reading of the documents for all."""
    from primekd.teachers.transformers_engine import TransformersEngine

    missing = [student for student in students if not _kept(profile, student, inputs, since)]
    codes = {kind: stage_code(kind, profile) for kind in ("choices", "text-fit")}
    how = profile.scoring_dtype, profile.assess.batch_size
    engines = {student.name: TransformersEngine(f"path:{student.folder / 'model'}", *how) for student in missing}
    if missing:
        tokenizer, text = load_tokenizer(profile.student.speaker), profile.text
        documents = held_out(text_folder(profile), tokenizer_hash(tokenizer))
        with Meter() as meter, Progress(profile, "held-out fit", len(documents), "document") as progress:
            fits = measure_documents(
                engines, documents, text.block_tokens, text.held_out_tokens, teacher, progress.advance
            )
    for student in missing:
        own, folder = inputs | {"weights": student.weight_hashes}, held_out_folder(profile, student.name)
        write_rows(folder / "held-out.csv", fits[student.name])
        facts = {"seconds": meter.facts["seconds"] / len(missing)}  # they were measured together
        write_manifest(folder, "held-out", own, [folder / "held-out.csv"], code=codes["text-fit"], **facts)
        _choose(profile, student.name, items, engines[student.name], own, codes["choices"])
    folder = answers_folder(profile, TEACHER)
    if not stands(folder, inputs, codes["choices"], f"answer {TEACHER}", since=since):
        _choose(profile, TEACHER, items, teacher.engine, inputs, codes["choices"])


def _choose(
    profile: Profile, name: str, items: Sequence[ChoiceItem], engine, inputs: dict[str, Any], code: dict[str, Any]
) -> None:
    folder = answers_folder(profile, name)
    with Meter() as meter, Progress(profile, f"answer {name}", len(items), "item") as progress:
        rows = score_choices(engine, items, advance=progress.advance)
        write_choices(folder / FILE, rows)
    write_manifest(folder, "answers", inputs, [folder / FILE], code=code, **meter.facts)


def _kept(profile: Profile, student: Student, inputs: dict[str, Any], since: float) -> bool:
    """Whether a student's measures are there; older ones than are wanted are set aside."""
    own, kinds = inputs | {"weights": student.weight_hashes}, {"text-fit": held_out_folder, "choices": answers_folder}
    found = []
    for kind, folder_of in kinds.items():
        folder = folder_of(profile, student.name)
        found.append(stands(folder, own, stage_code(kind, profile), f"{kind} {student.name}", since=since))
        if not found[-1]:
            set_aside_if_older(folder, since)
    return all(found)


def _log(profile: Profile, items: Sequence[ChoiceItem], rows: Sequence[ChoiceRow]) -> list[LogRow]:
    """What a model was taken to choose, as if it had written that."""
    answers = []
    for item, row in zip(items, rows, strict=True):
        place = row.chosen(profile.assess.choose_by)
        answers.append(Answer(item.id, [0] * row.tokens[place], False, item.choices[place]))
    return grade_answers(items, answers, task=task_of(profile.data))


def _write_beside(profile: Profile, students: Sequence[Student], chosen: dict[str, list[ChoiceRow]]) -> list[Path]:
    """What was measured and what a training left, a file a model in folders beside the logs; others are removed."""
    for folder in ("loss_curves", "choices", "rollouts", "text_logs"):
        shutil.rmtree(profile.logs / folder, ignore_errors=True)
    outputs = []
    for name, rows in chosen.items():
        outputs.append(profile.logs / "choices" / f"{name}.csv")
        write_choices(outputs[-1], rows)
    for student in students:
        places = {
            student.folder / "loss_curve.csv": f"loss_curves/{student.name}.csv",
            student.folder / habits.FILE: f"rollouts/{student.name}.csv",
            student.folder.with_name(f"{student.name}.{TEXT_LOG}"): f"text_logs/{student.name}.txt",
        }
        outputs += [copy_text(file, profile.logs / place) for file, place in places.items() if file.is_file()]
    return outputs
