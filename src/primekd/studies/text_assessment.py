"""Students of text on documents that nobody trained on and on the items of a task -> runs/<profile>/logs/."""

import contextlib
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from primekd.assessment.answers import Answer, answers_folder
from primekd.assessment.costs import write_costs
from primekd.assessment.held_out import HeldOutRow, held_out_folder
from primekd.assessment.likelihood import ChoiceRow, deciding, with_raw
from primekd.assessment.logs import grade_answers
from primekd.assessment.score import makers, scored_hashes, scoring_costs
from primekd.assessment.students import Student
from primekd.assessment.text_fit import measure_documents
from primekd.capture.live import LiveTeacher
from primekd.config import CONTROL, TEACHER, Profile, unprimed
from primekd.foundation import MANIFEST, Meter, Progress, hash_text, now, read_manifest, write_manifest
from primekd.foundation.memory import gpu_memory
from primekd.foundation.stage_code import forced_since, set_aside_if_older, stage_code, stands
from primekd.foundation.tables import read_records, write_records, write_table
from primekd.models import load_tokenizer, model_hash, tokenizer_hash
from primekd.statistics.choices import BenchmarkRow, benchmark_rows, read_choices
from primekd.statistics.summary import SummaryRow, summarise
from primekd.studies.assess import lineage
from primekd.studies.regrade import rules_hashes
from primekd.studies.results import BENCHMARKS as BENCHMARK_TABLE
from primekd.studies.results import copy_text, decisions_hash, planned_inputs, vouch, write_results
from primekd.tasks import Item, hash_items, load_items, task_of
from primekd.tasks.text import text_folder
from primekd.tasks.text_shards import held_out
from primekd.teachers.protocol import probed
from primekd.training import habits
from primekd.training.pretrain import TEXT_LOG


@dataclass(frozen=True)
class Probe:
    """What every model, the teacher too, is asked beside the documents.

    Attributes:
        name: the stage (stage_code), the file of a model in runs/ and the folder beside the logs. kind: of its rows.
        ask: (profile, engine, items, advance) -> what the model said: what its answers cost is this, and this alone.
        judge: (items, what it said) -> rows.
        answers: (profile, items, rows) -> what the model is taken to have answered.
        inputs: what the rows depend on besides. settings: of profile.assess, which the logs depend on.
        beside: further rows that stand beside the models' own, by name. idle: a Meter's facts of the idle machine.
        table: (folder of logs, logs, held-out rows, bootstrap samples) -> the rows of its table, one a model or more;
        table_file, row: its name, and what a row is."""

    name: str
    kind: type
    ask: Callable[..., list]
    answers: Callable[[Profile, Sequence[Item], list], list[Answer]]
    table_file: str
    row: type
    table: Callable[..., list]
    judge: Callable[[Sequence[Item], list], list] = lambda items, rows: rows
    inputs: Callable[[Profile], dict[str, Any]] = lambda profile: {}
    settings: tuple[str, ...] = ("bootstrap_samples",)
    beside: Callable[[Profile, Sequence[Item]], dict[str, list]] = lambda profile, items: {}
    idle: Callable[[Profile], dict[str, Any] | None] = lambda profile: None

    def rows(self, profile: Profile, model: str) -> list:
        return read_records(answers_folder(profile, model) / f"{self.name}.csv", self.kind)


def _chosen(profile: Profile, items: Sequence[Item], rows: list[ChoiceRow]) -> list[Answer]:
    """What a model was taken to choose, as if it had written that."""
    rows = rows[: len(items)]  # of HellaSwag others follow
    places = [row.chosen(deciding(row.benchmark, profile.assess.choose_by)) for row in rows]
    return [
        Answer(item.id, [0] * row.tokens[place], False, item.choices[place])
        for item, row, place in zip(items, rows, places, strict=True)
    ]


BENCHMARKS = Probe(
    "choices", ChoiceRow, lambda profile, *asked: with_raw(*asked), _chosen, BENCHMARK_TABLE, BenchmarkRow,
    lambda folder, logs, *_: benchmark_rows(read_choices(folder, logs)), settings=("choose_by", "bootstrap_samples"),
)  # fmt: skip


def assess(profile: Profile, students: Sequence[Student], probe: Probe = BENCHMARKS, force: bool = False) -> Path:
    """Measures every student, and the teacher by the probe; returns runs/<profile>/logs/ with <model>.csv (what it
    answered, item by item), the probe's folder, held-out.csv (a row a document), costs.csv, the tables, loss_curves/,
    rollouts/, text_logs/ and manifest.json. What stands with the same inputs is kept, unless `force`."""
    items, code = load_items(profile, "test"), stage_code("assess-text", profile)
    teacher, names = LiveTeacher(profile, unprimed()), [*(student.name for student in students), TEACHER]
    own = _inputs(profile, items, teacher) | probe.inputs(profile)
    inputs = own | {
        "students": {student.name: student.weight_hashes for student in students},
        "rules": rules_hashes(profile),
        "adjudications": decisions_hash(profile),
        "assess": profile.assess.model_dump(include=set(probe.settings)),
        "scored": scored_hashes(profile, names),
        **planned_inputs(profile),
    }
    since = forced_since(profile, "assess", force)
    if stands(profile.logs, inputs, code, "assess", "the logs are written and their inputs are unchanged.", since):
        return profile.logs
    start = now()
    with contextlib.closing(teacher), gpu_memory(f"assess.batch_size or {teacher.smaller}"):
        _measure(profile, students, items, teacher, probe, own, start, since)
    inputs["scored"] = scored_hashes(profile, names)
    found = {name: probe.rows(profile, name) for name in names}
    rows = [row for name in names for row in read_records(held_out_folder(profile, name) / "held-out.csv", HeldOutRow)]
    logs = {
        name: grade_answers(items, probe.answers(profile, items, of_model), task=task_of(profile.data))
        for name, of_model in found.items()
    }
    outputs = _write_beside(profile, students, probe, found | probe.beside(profile, items))
    outputs.append(write_costs(profile, logs, idle=probe.idle(profile)))
    outputs += write_results(profile, logs, rows)
    write_records(profile.logs / "held-out.csv", HeldOutRow, rows)
    of_students = {student.name: lineage(profile, student) for student in students}
    facts = {"models": of_students, "control": makers(profile, CONTROL), "teacher": teacher.manifest}
    facts |= {"start": start, "end": now(), "measured": sessions_of(profile, logs)} | scoring_costs(profile, names)
    return vouch(profile, inputs, [*outputs, profile.logs / "held-out.csv"], logs, code, **facts)


def _inputs(profile: Profile, items: Sequence[Item], teacher: LiveTeacher) -> dict[str, Any]:
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
    profile: Profile, students: Sequence[Student], items: Sequence[Item], teacher: LiveTeacher, probe: Probe,
    inputs: dict[str, Any], session: str, since: float,
) -> None:  # fmt: skip
    """Writes held-out.csv and the probe's file of every model that lacks them."""
    engines = {student.name: _trained(profile, student) for student in students}
    own = {student.name: inputs | {"weights": student.weight_hashes} for student in students} | {TEACHER: inputs}
    fit_documents(profile, text_folder(profile), engines, own, teacher, since)
    for name, opened in (engines | {TEACHER: lambda: teacher.engine}).items():
        probe_model(profile, name, items, opened, probe, own[name], session, since)


def fit_documents(
    profile: Profile, folder: Path, engines: Mapping[str, Callable[[], Any]], inputs: Mapping[str, dict[str, Any]],
    teacher: LiveTeacher, since: float = 0.0,
) -> None:  # fmt: skip
    """Writes held-out.csv of every model of `inputs` that lacks it, the teacher's (TEACHER, no engine) by what it says
    anyway; the documents of a folder of text are read once for all."""
    code = stage_code("text-fit", profile)
    missing = [
        name for name, own in inputs.items()
        if not stands(held_out_folder(profile, name), own, code, f"held-out fit {name}", since=since)
    ]  # fmt: skip
    if not missing:
        return
    text, documents = profile.text, held_out(folder, tokenizer_hash(load_tokenizer(profile.student.speaker)))
    with Meter(profile.country) as meter, Progress(profile, "held-out fit", len(documents), "document") as progress:
        asked = {name: engines[name]() for name in missing if name != TEACHER}
        fits = measure_documents(asked, documents, text.block_tokens, text.held_out_tokens, teacher, progress.advance)
    # They were read together, so each has its share of what that took.
    shares = {key: value / len(missing) if isinstance(value, float) else value for key, value in meter.facts.items()}
    for name in missing:
        place = held_out_folder(profile, name)
        set_aside_if_older(place, since)
        write_records(place / "held-out.csv", HeldOutRow, fits[name])
        facts = shares | {"config": profile.resolved()}
        write_manifest(place, "held-out", inputs[name], [place / "held-out.csv"], code=code, **facts)


def probe_model(
    profile: Profile, name: str, items: Sequence[Item], opened: Callable[[], Any], probe: Probe, inputs: dict[str, Any],
    session: str, since: float = 0.0,
) -> list:  # fmt: skip
    """What a model answers to the probe, kept if it stands; what it took, in which session and on which machine."""
    folder, code, stage = answers_folder(profile, name), stage_code(probe.name, profile), f"answer {name}"
    if not stands(folder, inputs, code, stage, since=since):
        set_aside_if_older(folder, since)
        engine = probed(opened())
        with Meter(profile.country) as meter, Progress(profile, stage, len(items), "item") as progress:
            said = probe.ask(profile, engine, items, progress.advance)
        path = folder / f"{probe.name}.csv"
        write_records(path, probe.kind, probe.judge(items, said))
        host = hash_text(platform.node())[:8]  # tells machines apart, and names none
        facts = meter.facts | {"session": session, "host": host, "config": profile.resolved()}
        write_manifest(folder, "answers", inputs, [path], code=code, **facts)
    return probe.rows(profile, name)


def sessions_of(profile: Profile, models: Iterable[str]) -> dict[str, str]:
    """Model -> when and on which machine it was asked, the same words for what was measured side by side."""
    found = {name: read_manifest(answers_folder(profile, name) / MANIFEST) for name in models}
    return {name: f"{one.get('session', 'not recorded')} on {one.get('host', '?')}" for name, one in found.items()}


def _opened(profile: Profile, reference: str) -> Callable[[], Any]:
    from primekd.teachers.transformers_engine import TransformersEngine

    return cache(lambda: TransformersEngine(reference, profile.scoring_dtype, profile.assess.batch_size))


def _trained(profile: Profile, student: Student) -> Callable[[], Any]:
    """The same of a student, which computes as it did in training."""
    from primekd.assessment.as_trained import AsTrained

    return cache(lambda: AsTrained.load(student.folder / "model", profile.scoring_dtype, profile.assess.batch_size))


def compare(profile: Profile, references: Sequence[str], probe: Probe = BENCHMARKS) -> Path:
    """Any models on the profile's items; returns runs/<profile>/compared/logs/ with the probe's table, summary.csv,
    costs.csv and manifest.json. Those with the students' tokenizer read the held-out documents too, where these are
    here. Raises UserError if one cannot be loaded."""
    view, start = profile.model_copy(update={"name": f"{profile.name}/compared"}), now()
    items, text, task = load_items(profile, "test"), text_folder(profile), task_of(profile.data)
    tokens = tokenizer_hash(load_tokenizer(profile.student.speaker)) if (text / MANIFEST).is_file() else None
    settings = {"items_sha256": hash_items(items), "dtype": profile.scoring_dtype} | probe.inputs(profile)
    found, logs, fits, inputs = {}, {}, [], {}
    teacher = LiveTeacher(profile, unprimed())
    with contextlib.closing(teacher), gpu_memory(f"assess.batch_size or {teacher.smaller}"):
        for reference in references:
            tail = re.sub(r"[^\w.-]+", "-", reference.partition(":")[2])[-40:]
            name = f"{tail.strip('-.')}-{hash_text(reference)[:6]}"
            own = inputs[name] = settings | {"reference": reference, "weights": model_hash(reference)}
            opened = _opened(profile, reference)  # of the last one nothing is left in memory
            found[name] = probe_model(view, name, items, opened, probe, own, start)
            logs[name] = grade_answers(items, probe.answers(profile, items, found[name]), task=task)
            if tokenizer_hash(load_tokenizer(reference)) == tokens:
                fit_documents(view, text, {name: opened}, {name: own | _inputs(profile, items, teacher)}, teacher)
                fits += read_records(held_out_folder(view, name) / "held-out.csv", HeldOutRow)
    outputs = _write_beside(view, [], probe, found | probe.beside(profile, items))
    samples = profile.assess.bootstrap_samples
    table, sums = probe.table(view.logs, logs, fits, samples), summarise(logs, fits, samples)
    outputs += [write_table(view.logs / probe.table_file, probe.row, table)]
    outputs += [write_costs(view, logs, idle=probe.idle(profile))]
    outputs += [write_table(view.logs / "summary.csv", SummaryRow, sums)]
    write_manifest(view.logs, "compared", inputs, outputs, start=start, measured=sessions_of(view, logs))
    return view.logs


def _write_beside(profile: Profile, students: Sequence[Student], probe: Probe, found: dict[str, list]) -> list[Path]:
    """What was measured and what a training left, a file a model in folders beside the logs; others are removed."""
    for folder in ("loss_curves", probe.name, "rollouts", "text_logs"):
        shutil.rmtree(profile.logs / folder, ignore_errors=True)
    outputs = []
    for name, rows in found.items():
        outputs.append(profile.logs / probe.name / f"{name}.csv")
        write_records(outputs[-1], probe.kind, rows)
    for student in students:
        places = {
            student.folder / "loss_curve.csv": f"loss_curves/{student.name}.csv",
            student.folder / habits.FILE: f"rollouts/{student.name}.csv",
            student.folder.with_name(f"{student.name}.{TEXT_LOG}"): f"text_logs/{student.name}.txt",
        }
        outputs += [copy_text(file, profile.logs / place) for file, place in places.items() if file.is_file()]
    return outputs
