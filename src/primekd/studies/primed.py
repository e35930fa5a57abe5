"""What priming did to the teacher, before any student: each response judged, and how far its prompt moved the teacher.
Off-policy context distillation can teach no more than the context changes (arXiv 2605.30070: the gain is linear in the
gap that it opens in the teacher). So this is measured first, and needs no training."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from primekd.assessment.logs import grade_answers
from primekd.capture.jobs import Job, open_signals, test_job, training_job, unprimed_job
from primekd.capture.judged import ARMS, JUDGED, OF_PRIMING, POSITIONS, JudgedRow, PositionRow, judged_folder
from primekd.capture.run import capture_all
from primekd.config import OWN, Profile, arms_of, unprimed
from primekd.foundation import MANIFEST, Meter, Progress, UserError, read_manifest, write_manifest, write_table
from primekd.foundation.manifests import altered_outputs
from primekd.foundation.stage_code import forced_since, stage_code, stands
from primekd.signals import Certainty, Compared, SignalReader, certainty_of, make_codec, shards_hash
from primekd.statistics.primed import PrimedRow, primed_rows
from primekd.studies.responses import agreement, stored_answers
from primekd.tasks import Item, task_of

SPLITS = ("train", "test")
STARTS = (0, 1, 4, 16, 64, 128, 256)  # of the bins of positions
UNSURE = 0.9


def asked_arms(profile: Profile) -> list[str]:
    """The arms under whose own prompt the teacher writes, the unprimed one first."""
    own = [a.name for a in arms_of(profile).values() 
           if a.teacher and a.text == OWN and not (a.responses or a.deviates)]  # fmt: skip
    first = unprimed().name
    return [first, *(name for name in own if name != first)] if first in own else own


def jobs_of(profile: Profile) -> list[Job]:
    """All captures that this needs: training items, test items, primed responses scored without their priming."""
    arms = asked_arms(profile)
    jobs = [training_job(profile, arm) for arm in arms] + [test_job(profile, unprimed().name)]
    if profile.assess.teacher_items:
        jobs += [test_job(profile, arm) for arm in arms[1:]]
        jobs += [unprimed_job(profile, arm, split) for split in SPLITS for arm in arms[1:] if _rescores(profile)]
    return jobs


def _rescores(profile: Profile) -> bool:
    """Whether the engine can score a text that it did not write, and whole distributions are kept of it."""
    codec = make_codec(profile.signals, profile.teacher.offers)
    return bool(profile.assess.teacher_items) and profile.teacher.engine != "api" and codec.name in ("hidden", "full")


def ask(profile: Profile) -> None:
    """Captures what is missing; the teacher is loaded once."""
    capture_all(jobs_of(profile))


def measure(profile: Profile, force: bool = False) -> Path:
    """Judges what was captured into runs/<profile>/priming/, which it returns. Raises UserError if one is damaged."""
    jobs = jobs_of(profile)
    folder, code = judged_folder(profile), stage_code("priming", profile)
    inputs = {
        "stores": {job.folder.name: shards_hash(job.folder) for job in jobs},
        "extractor": profile.assess.extractor,
        "teacher_items": profile.assess.teacher_items,
    }
    if profile.assess.rescored_items:
        inputs["rescored_items"] = profile.assess.rescored_items
    since = forced_since(profile, "assess", force)
    if stands(folder, inputs, code, "priming", "the responses are judged and unchanged.", since):
        return folder
    total = sum(len(items) for _, _, items in _asked(profile))
    rows, positions = [], []
    with Meter(profile.country) as meter, Progress(profile, "priming", total, "response") as progress:
        for split, arm, items in _asked(profile):
            found, binned = _judge(profile, split, arm, items, progress)
            rows, positions = rows + found, positions + binned
    outputs = [
        write_table(folder / JUDGED, JudgedRow, rows),
        write_table(folder / ARMS, PrimedRow, primed_rows(rows, unprimed().name)),
        write_table(folder / POSITIONS, PositionRow, positions),
    ]
    write_manifest(folder, "priming", inputs, outputs, code=code, config=profile.resolved(), **meter.facts)
    return folder


def judged(profile: Profile) -> list[Path]:
    """The files of `measure`, where they can be had without asking the teacher: else none, and a line that says why."""
    folder = judged_folder(profile)
    try:
        measure(profile)
    except UserError as error:  # a store is gone: signals take room, and nobody needs them after the training
        path = folder / MANIFEST
        if not path.is_file() or altered_outputs(path, read_manifest(path)):
            print(f"{JUDGED} says nothing: {error}")
            return []
    return [folder / name for name in OF_PRIMING]


def _asked(profile: Profile) -> Iterator[tuple[str, str, list[Item]]]:
    """(split, arm, the items that are judged)."""
    for split in SPLITS if profile.assess.teacher_items else SPLITS[:1]:
        for arm in asked_arms(profile):
            items = _job(profile, split, arm).items()
            yield split, arm, items if split == "train" else items[: profile.assess.teacher_items]


def _job(profile: Profile, split: str, arm: str) -> Job:
    return training_job(profile, arm) if split == "train" else test_job(profile, arm)


def _judge(
    profile: Profile, split: str, arm: str, items: list[Item], progress: Progress
) -> tuple[list[JudgedRow], list[PositionRow]]:
    reader, first = open_signals(_job(profile, split, arm)), unprimed().name
    plain = reader if arm == first else open_signals(_job(profile, split, first))
    without = open_signals(unprimed_job(profile, arm, split)) if arm != first and _rescores(profile) else None
    answers = stored_answers(profile, items, reader)
    graded = grade_answers(items, answers, profile.assess.extractor, task_of(profile.data))
    rows, measured, assess = [], [], profile.assess
    for number, (answer, verdict) in enumerate(zip(answers, graded, strict=True)):
        scored = without if number < (assess.rescored_items or assess.teacher_items) else None
        own = _certainty(reader, scored, answer.item_id) if number < assess.teacher_items else None
        measured += [own] if own else []
        same, _ = agreement([answer.ids], [plain.item(answer.item_id).response_ids])
        rows.append(
            JudgedRow(
                split, arm, answer.item_id, verdict.correct, len(answer.ids), answer.truncated, same,
                own and float(own.entropy.double().sum()), own and _unsure(own),
                float(own.kl.double().sum()) if isinstance(own, Compared) else None,
            )
        )  # fmt: skip
        progress.advance()
    return rows, list(_binned(split, arm, measured))


def _unsure(found: Certainty) -> int:
    """Tokens written with p below UNSURE, also those that their row does not keep, if it keeps any."""
    return int((~(found.written >= UNSURE) & (found.top_probs.amax(-1) > 0)).sum())


def _certainty(reader: SignalReader, without: SignalReader | None, item_id: str) -> Certainty | None:
    """Of one stored response; None where its text alone was kept."""
    ids = reader.item(item_id).response_ids
    rows = reader.rows(item_id, ids)
    return None if rows is None else certainty_of(rows, ids, other=without and without.rows(item_id, ids))


def _binned(split: str, arm: str, measured: list[Certainty]) -> Iterator[PositionRow]:
    """The means over the same positions of all responses, as far as they were measured against the unprimed teacher."""
    bins: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
    ends = [*STARTS[1:], None]
    for one in measured:
        for start, end in zip(STARTS, ends, strict=True):
            if isinstance(one, Compared) and len(one.kl) > start:
                bins[start].append((one.entropy[start:end], one.kl[start:end]))
    for start, end in zip(STARTS, ends, strict=True):
        if bins[start]:
            entropy, kl = (torch.cat(parts).double() for parts in zip(*bins[start], strict=True))
            yield PositionRow(split, arm, start, end, len(kl), float(entropy.mean()), float(kl.mean()))
