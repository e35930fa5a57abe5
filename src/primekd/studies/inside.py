"""Inside the students, after an assessment: parts in runs/<profile>/inside/, tables in runs/<profile>/logs/inside/."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from primekd.assessment.inside import FOLDER, MAPS, attribution, confidence, inside_folder
from primekd.assessment.inside.attention import MEASURES
from primekd.assessment.inside.attribution import StepRow
from primekd.assessment.inside.confidence import SureRow
from primekd.assessment.inside.parts import Subject, attention_values, read_attention, read_attribution, read_confidence
from primekd.assessment.logs import grade_answers, read_logs
from primekd.assessment.tokens import read_tokens
from primekd.capture.jobs import Job, open_signals, test_job
from primekd.capture.primings import priming_of
from primekd.config import CONTROL, PRIMED, TEACHER, Profile, arms_of, load_arms, split_seed, unprimed
from primekd.foundation import MANIFEST, Progress, nested, read_records, table_text, write_manifest, write_table
from primekd.foundation.manifests import read_manifest
from primekd.foundation.stage_code import other_code, stage_code, stands
from primekd.foundation.storage import hash_file, write_atomically, write_text
from primekd.models import load_tokenizer
from primekd.statistics import calibration, reasoning
from primekd.statistics import inside as numbers
from primekd.statistics.families import MAIN, Pair, plan_of
from primekd.studies.primed import asked_arms
from primekd.studies.regrade import tell_inside_anew
from primekd.studies.responses import stored_answers
from primekd.studies.results import verdicts_hash
from primekd.tasks import Item, cluster_of, hash_items, task_of

MOST_PAIRS = 8  # of students whose heads are held against each other


def look_at_heads(profile: Profile, force: bool = False) -> Path:
    """The attention tables alone, in runs/<profile>/logs/inside/, which is returned. Raises UserError as `analyse`."""
    subject = Subject(profile, force)
    list(_write_attention(subject, read_attention(subject, pairs_of(subject)), inside_folder(profile)))
    return inside_folder(profile)


def analyse(profile: Profile, force: bool = False) -> Path:
    """Looks into control and students; writes runs/<profile>/logs/inside/ and returns it. What is there with the same
    inputs is kept, unless `force`. Raises UserError without an assessment, or if a student is not what was assessed."""
    subject = Subject(profile, force)
    measured = [read_attention(subject, pairs_of(subject)), *confidence_parts(subject), *attribution_parts(subject)]
    folder, code = inside_folder(profile), stage_code("inside", profile)
    inputs = {
        "parts": {path.relative_to(profile.runs).as_posix(): hash_file(path / MANIFEST) for path in measured},
        "logs": {name: verdicts_hash(rows) for name, rows in subject.logs.items()},
    }
    if stands(folder, inputs, code, FOLDER, "its tables are written and their inputs are unchanged."):
        if other_code(read_manifest(folder / MANIFEST), code):  # what follows from measured files needs no model
            tell_inside_anew(profile)
        return folder
    outputs = [*_write_attention(subject, measured[0], folder)]
    for file, kind in ((confidence.FILE, SureRow), (attribution.FILE, StepRow)):
        rows = [row for path in measured[1:] for row in read_records(path / file, kind, needed=False)]
        outputs.append(write_table(folder / file, kind, rows))
    for name, text in tables(profile, folder).items():
        write_text(folder / name, text)
        outputs.append(folder / name)
    facts = {"students": subject.names, "items": len(subject.items), "config": profile.resolved()}
    write_manifest(folder, FOLDER, inputs, outputs, code=code, **facts)
    return folder


def pairs_of(subject: Subject) -> list[Pair]:
    """Students whose heads are compared: the unprimed arm and its second seed, what is planned; MOST_PAIRS at most."""
    here, base = subject.names, unprimed().name
    again = [(name, base) for name in here if split_seed(name)[0] == base != name][:1]
    planned = plan_of(here, load_arms(), subject.profile.planned.main).items()
    pairs = [*again, *(pair for pair, family in planned if family == MAIN)]
    return [pair for pair in pairs if set(pair) <= set(here)][:MOST_PAIRS]


def _write_attention(subject: Subject, measured: Path, folder: Path) -> Iterator[Path]:
    values, between, found = attention_values(measured)
    names, groups = subject.names, [cluster_of(item.id) for item in subject.items]
    rows = numbers.attention_rows(names, MEASURES[:-1], values.mean(3), groups)
    rows += numbers.attention_rows(names, MEASURES[-1:], found.mean(3), [str(n) for n in range(len(found))])
    yield write_table(folder / numbers.ATTENTION, numbers.AttentionRow, rows)
    pairs = [] if between is None else numbers.pair_rows(pairs_of(subject), between, groups)
    yield write_table(folder / numbers.PAIRS, numbers.PairRow, pairs)
    # One induction score a head, the same for all prompts: it is shown, its interval is that of attention.csv.
    scores = np.broadcast_to(found.mean(0)[None], (len(values), *found.shape[1:]))
    every = np.concatenate([values, scores], -1)
    yield write_table(folder / numbers.HEADS, numbers.HeadRow, numbers.head_rows(names, MEASURES, every, groups))
    means = every.mean(0)
    shown = chosen_models(subject)
    maps = load_file(measured / MAPS)
    tensors = {name: torch.from_numpy(means[n] - means[0]).half() for n, name in enumerate(["", *names]) if n}
    kept = {f"maps.{name}": maps["maps"][n].clone() for n, name in enumerate([CONTROL, *names]) if name in shown}
    texts = [subject.tokenizer.decode([token]) for token in maps["ids"].tolist()]
    facts = {"tokens": json.dumps(texts, ensure_ascii=False), "item": subject.items[0].id}
    with write_atomically(folder / MAPS) as temporary:
        save_file(tensors | kept, temporary, metadata=facts)
    yield folder / MAPS


def confidence_parts(subject: Subject) -> list[Path]:
    """How sure each model is of its own answers, and the teacher under each prompt, on the items common to these."""
    parts = [read_confidence(subject, model) for model in subject.models]
    jobs = {arm: test_job(subject.profile, arm) for arm in asked_arms(subject.profile)}
    jobs = {arm: job for arm, job in jobs.items() if (job.folder / MANIFEST).is_file() and job.items()}
    shared = subject.items[: min((len(job.items()) for job in jobs.values()), default=0)]  # all begin with the first
    return parts + [part for arm, job in jobs.items() if (part := _teachers_confidence(subject, arm, job, shared))]


def _teachers_confidence(subject: Subject, arm: str, job: Job, items: list[Item]) -> Path | None:
    """From stored signals; None where there are no distributions."""
    profile, reader = subject.profile, open_signals(job)
    if reader.rows(items[0].id, reader.item(items[0].id).response_ids) is None:
        return None

    def make(folder: Path, progress: Progress) -> list[Path]:
        answers = stored_answers(profile, items, reader)
        graded = grade_answers(items, answers, profile.assess.extractor, task_of(profile.data))
        rows, tokenizer = [], load_tokenizer(profile.teacher)
        model = TEACHER if arm == unprimed().name else f"{TEACHER} under {arm}"
        for answer, verdict in zip(answers, graded, strict=True):
            signals = reader.rows(answer.item_id, answer.ids)
            rows.append(confidence.stored_row(model, verdict, answer.ids, signals, tokenizer))
            progress.advance()
        return [write_table(folder / confidence.FILE, SureRow, [row for row in rows if row])]

    inputs = {"shards": reader.manifest["shards"], "items": hash_items(items), "extractor": profile.assess.extractor}
    return subject.part(f"confidence/{TEACHER}-{arm}", inputs, len(items), "answer", make)


def attribution_parts(subject: Subject) -> list[Path]:
    """Which steps the answers of a few models hang on."""
    chosen = chosen_models(subject) if subject.profile.inside.attributed_items else []
    return [read_attribution(subject, model) for model in subject.models if model.name in chosen]


def chosen_models(subject: Subject) -> list[str]:
    """Whose steps are attributed and whose heads can be looked at in the report: the control, the unprimed arm's
    student, and that of the first arm that the profile's plan names, or a primed one."""
    planned = [arm for arm, _ in subject.profile.planned.main]
    primed = [name for name, arm in arms_of(subject.profile).items() if arm.role in PRIMED]
    return [CONTROL, unprimed().name, *[name for name in (*planned, *primed) if name in subject.names][:1]]


def tables(profile: Profile, folder: Path) -> dict[str, str]:
    """The tables that follow from attention.csv, confidence.csv and the logs beside them: file -> text."""
    logs, sure = read_logs(profile), read_records(folder / confidence.FILE, SureRow)
    groups = {row.id: cluster_of(row.id) for log in logs.values() for row in log}
    own, arithmetic = calibration.calibration_rows(sure, groups), reasoning.arithmetic_rows(logs)
    texts = {name: priming.text for name, arm in arms_of(profile).items()
             if arm.role in PRIMED and (priming := priming_of(arm, profile.teacher))}  # fmt: skip
    found = {
        calibration.CALIBRATION: table_text(calibration.CalibrationRow, own),
        calibration.RELIABILITY: table_text(calibration.ReliabilityRow, calibration.reliability_rows(sure)),
        reasoning.ARITHMETIC: table_text(reasoning.ArithmeticRow, arithmetic),
        reasoning.WORDS: table_text(reasoning.WordRow, reasoning.word_rows(logs, texts, unprimed().name)),
    }
    if log := read_tokens(profile.logs):
        questions = {row.id: row.question for row in next(iter(logs.values()))}
        found[reasoning.CLASSES] = table_text(reasoning.ClassRow, reasoning.class_rows(log, questions, logs))
    attention = read_records(folder / numbers.ATTENTION, numbers.AttentionRow)
    accuracies = {model: sum(row.correct for row in log) / len(log) for model, log in logs.items() if model != TEACHER}
    pairs = read_records(folder / numbers.PAIRS, numbers.PairRow)
    rows = numbers.explained_rows(_shifts(attention, own, arithmetic), accuracies, pairs)
    return found | {numbers.EXPLAINED: table_text(numbers.ExplainedRow, rows)}


def _shifts(
    attention: Sequence[numbers.AttentionRow], sure: Sequence[calibration.CalibrationRow],
    arithmetic: Sequence[reasoning.ArithmeticRow],
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Measure -> student -> its shift from the control. Not ECE, Brier score or AUROC: they are made of the verdicts,
    so that they go along with accuracy whatever is inside."""
    shifts = nested((row.measure, row.model, row.difference) for row in attention if row.layer == numbers.EVERY)
    students = {model for found in shifts.values() for model in found}
    own = [row for row in sure if row.kind == calibration.ANSWER + calibration.MINUS and row.model in students]
    sure_of = ("log_prob", "entropy", "margin")
    answers = {f"{m} of own answers": {row.model: getattr(row, m) for row in own} for m in sure_of}
    holds = {r.model: r.difference for r in arithmetic if r.model in students and r.difference is not None}
    return shifts | answers | {"arithmetic that holds": holds}
