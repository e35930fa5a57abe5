"""The assessment: control, students and teacher on the same test items -> runs/<profile>/logs/."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from primekd.assessment import forgetting, score, tokens
from primekd.assessment.answers import answer_inputs
from primekd.assessment.costs import write_costs
from primekd.assessment.held_out import HeldOutRow, held_out_folder
from primekd.assessment.logs import LogRow, grade_answers
from primekd.assessment.students import Student, find_students
from primekd.capture.judged import OF_PRIMING
from primekd.config import ANSWER_SETS, CONTROL, FEW_SHOT, TEACHER, Profile
from primekd.foundation import MANIFEST, hash_file, now, write_records, write_table
from primekd.foundation.stage_code import brief, forced_since, stage_code, stands
from primekd.models import load_tokenizer
from primekd.signals import SignalReader, read_certainty
from primekd.statistics.corrections import ERRANT, LABELS, ErrantRow, LabelRow, errant_rows, no_errant
from primekd.studies.primed import judged
from primekd.studies.regrade import files_of, rules_hashes
from primekd.studies.responses import RESPONSES, ResponseRow, label_rows, response_rows, stored_answers
from primekd.studies.results import copy_text, decisions_hash, planned_inputs, vouch, write_results
from primekd.tasks import NEUTRAL, Item, hash_items, load_answer_sets, load_items, task_of
from primekd.training import tuning
from primekd.training.train_student import store_facts

# Settings of what is graded, which has inputs of its own.
NO_GRADING = {"engine", "vllm", "dtype", "teacher_items", "rescored_items", "transfer", "samples"}
NO_GRADING |= {"sampling_temperature", "forgetting_items", "few_shot", "held_out_items", "choose_by"}


def assess(profile: Profile, force: bool = False) -> Path:
    """Scores every model on the test items; returns runs/<profile>/logs/ with <model>.csv, held-out.csv,
    tokens.safetensors, responses.csv, the tables, loss_curves/, manifest.json and, where asked for, forgetting.csv and
    a folder of logs, tables and manifest for each answer set. What stands with the same inputs is kept, unless `force`.
    """
    students = find_students(profile)
    items, reader = score.load_reference(profile)
    models, code = [*score.untrained_models(profile), *score.models_of(students)], stage_code("assess", profile)
    names, since = [model.name for model in models], forced_since(profile, "assess", force)
    inputs = _inputs(profile, items, students, reader) | {"scored": score.scored_hashes(profile, names)}
    primed = judged(profile)
    inputs |= {"priming": {file.name: hash_file(file) for file in primed}} if primed else {}
    if stands(profile.logs, inputs, code, "assess", "the logs are written and their inputs are unchanged.", since):
        score.say_scored(profile, names)
        return profile.logs
    start = now()
    scored = score.score_models(profile, items, models, reader, force)
    graded = partial(grade_answers, items, extractor=profile.assess.extractor, task=task_of(profile.data))
    inputs["scored"] = score.scored_hashes(profile, names)
    for name in OF_PRIMING:  # some tables of the students follow from what stands beside the logs
        (profile.logs / name).unlink(missing_ok=True)
    primed = [copy_text(file, profile.logs / file.name) for file in primed]
    logs = {name: graded(model.answers) for name, model in scored.items()}
    logs[TEACHER] = graded(stored_answers(profile, items, reader))
    held_out = [row for model in scored.values() for row in model.held_out]
    outputs = _write(profile, logs, held_out, response_rows(profile, students), students)
    outputs += primed + _write_labels(profile, students, logs)
    outputs += [*_write_tokens(profile, items, reader, names), write_costs(profile, logs, reader.manifest["sessions"])]
    outputs += _write_beside(profile, scored, inputs, code)
    of_students = {s.name: lineage(profile, s) | {"served": scored[s.name].served} for s in students}
    facts = {"models": of_students, "control": score.makers(profile, CONTROL), "teacher": store_facts(reader)}
    facts |= {FEW_SHOT: score.makers(profile, FEW_SHOT)} if FEW_SHOT in scored else {}
    facts |= {"start": start, "end": now()} | score.scoring_costs(profile, names)
    return vouch(profile, inputs, outputs, logs, code, **facts)


def _inputs(profile: Profile, items: list[Item], students: list[Student], reader: SignalReader) -> dict[str, Any]:
    beside: dict[str, Any] = {view.answer_set: answer_inputs(view, i, None) for view, i in load_answer_sets(profile)}
    if profile.assess.forgetting_items:
        beside[NEUTRAL] = hash_items(load_items(profile, NEUTRAL))
    if profile.assess.held_out_items:
        beside["held-out"] = profile.assess.held_out_items
    return ({"beside": beside} if beside else {}) | {
        "answers": answer_inputs(profile, items, None),
        "assess": profile.assess.model_dump(mode="json", exclude=NO_GRADING),  # of the answers alone
        "rules": rules_hashes(profile),
        "adjudications": decisions_hash(profile),
        "students": {s.name: s.weight_hashes for s in students},
        "reference": {name: shard["sha256"] for name, shard in reader.manifest["shards"].items()},
        **planned_inputs(profile),
    }


def _write(
    profile: Profile, logs: dict[str, list[LogRow]], held_out: list[HeldOutRow], responses: list[ResponseRow],
    students: list[Student],
) -> list[Path]:  # fmt: skip
    outputs, folder = write_results(profile, logs, held_out), profile.logs
    write_records(folder / "held-out.csv", HeldOutRow, held_out)
    outputs.append(write_table(folder / RESPONSES, ResponseRow, responses))
    shutil.rmtree(folder / "loss_curves", ignore_errors=True)
    outputs += [copy_text(s.folder / "loss_curve.csv", folder / "loss_curves" / f"{s.name}.csv") for s in students]
    tuned = tuning.read_tuning([student.folder for student in students])
    outputs += _write_if_any(folder / tuning.FILE, tuning.TuningRow, tuned)
    return [*outputs, folder / "held-out.csv"]


def _write_if_any(path: Path, kind: type, rows: list) -> list[Path]:
    """A table that is there only where it has rows."""
    path.unlink(missing_ok=True)
    return [write_table(path, kind, rows)] if rows else []


def _write_beside(
    profile: Profile, scored: dict[str, score.Scored], inputs: dict[str, Any], code: dict[str, Any]
) -> list[Path]:
    """forgetting.csv and the folders of the answer sets, as far as they are asked for; others are removed."""
    for name in ANSWER_SETS:
        shutil.rmtree(profile.answering(name).logs, ignore_errors=True)
    sets = load_answer_sets(profile)
    outputs = [path for view, items in sets for path in _write_set(view, items, scored, inputs, code)]
    rows = [row for model in scored.values() for row in model.forgetting]
    return outputs + _write_if_any(profile.logs / forgetting.FILE, forgetting.ForgettingRow, rows)


def _write_set(
    view: Profile, items: list[Item], scored: dict[str, score.Scored], inputs: dict[str, Any], code: dict[str, Any]
) -> list[Path]:
    """Logs of one answer set, as of the test items, with tables and a manifest of their own."""
    extractor, task = view.assess.extractor, task_of(view.data)
    logs = {name: grade_answers(items, m.beside[view.answer_set], extractor, task) for name, m in scored.items()}
    own = {key: inputs[key] for key in ("assess", "rules", "adjudications", "scored")}
    own["answers"] = answer_inputs(view, items, None)
    return files_of(vouch(view, own, write_results(view, logs, []), logs, code))


def _write_labels(profile: Profile, students: list[Student], logs: dict[str, list[LogRow]]) -> list[Path]:
    """labels.csv, where the task takes some responses for no labels; errant.csv, where that can be measured."""
    for name in (LABELS, ERRANT):
        (profile.logs / name).unlink(missing_ok=True)
    if not task_of(profile.data).filters:
        return []
    written = [write_table(profile.logs / LABELS, LabelRow, label_rows(profile, students))]
    if said := no_errant():
        print(said)
        return written
    return [*written, write_table(profile.logs / ERRANT, ErrantRow, errant_rows(logs))]


def _write_tokens(profile: Profile, items: list[Item], reader: SignalReader, names: list[str]) -> list[Path]:
    ids = [item.id for item in items[: profile.assess.held_out_items or None]]
    models = {name: held_out_folder(profile, name) / tokens.FILE for name in names}
    answers, certainty = {i: reader.item(i).response_ids for i in ids}, read_certainty(reader, ids, tokens.MOST)
    tokenizer = load_tokenizer(profile.student)
    written = tokens.write_tokens(profile.logs / tokens.FILE, answers, certainty, models, tokenizer)
    return [written] if written else []


def lineage(profile: Profile, student: Student) -> dict[str, Any]:
    """From a log back to what it was computed from, as it was: kept beside the log, because runs/ is not in git."""
    keys = ("inputs", "outputs", "start", "end", "seconds", "energy_kwh", "steps", "response_tokens", "resumed")
    keys += ("mixed", "tuning", "dropped", "tokens_per_second", "flops_utilisation", "peak_source")
    facts = {key: student.manifest.get(key) for key in keys if student.manifest.get(key) is not None}
    facts |= {"git": student.manifest["environment"].get("git"), "code": brief(student.manifest.get("code"))}
    facts["manifest_sha256"] = hash_file(student.folder / MANIFEST)
    if trained := student.manifest["inputs"].get("signals"):
        facts["signals"] = student.manifest.get("signals", {}) | trained
    if named := student.manifest.get("config", {}).get("planned", {}).get("main"):
        facts["planned"] = named  # when it was trained, whatever the profile names today
    return {"strategy": student.manifest["inputs"].get("strategy")} | facts | score.makers(profile, student.name)
