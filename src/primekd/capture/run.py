"""items x strategy x engine -> signal store: generate a primed response and keep the rows that predicted its tokens."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from primekd.capture.jobs import Job, build_spec, prompts_of
from primekd.capture.primings import require_placeable
from primekd.capture.responses import refuse_text, written_responses
from primekd.capture.workers import Part, SharedStore
from primekd.config import NONE, arms_of
from primekd.foundation import Meter, Progress, UserError, environment, hash_json
from primekd.foundation.memory import gpu_memory
from primekd.foundation.stage_code import forced_since, say_kept, say_mixed, stage_code
from primekd.models import require_same_tokenizer
from primekd.models.logits import refuse_unknown_architecture
from primekd.signals import Codec, HiddenRows, SignalWriter, StoredItem, make_codec, read_store, shard_name
from primekd.signals.claims import Claims
from primekd.signals.codecs import require_served
from primekd.signals.heads import rebuilding, rebuilding_problem, save_head
from primekd.tasks.protocol import Unlabelled, without_gold
from primekd.teachers import Sampling, TeacherEngine, open_engine

Teacher = Callable[[], tuple[TeacherEngine, Codec]]
MEASURED_TOKENS = 64  # what hidden states and head give is compared with the engine's own logits on so many


def capture(job: Job, part: Part | None = None, force: bool = False) -> Path:
    """Captures a store, or the part of it that is missing; returns its folder. Several processes may do so at once, on
    any machines that share the folder: each takes shards that no other has taken, and waits at the end until all are
    there. With `part` a worker takes its fixed share and does not wait. A store of another configuration, or with
    `force` any, is set aside under a new name. Raises UserError if teacher, items or codec do not fit, or the disk is
    full; what was written before stays."""
    profile = job.profile
    require_same_tokenizer(profile.teacher, profile.student)
    require_placeable(profile)
    refuse_text(job)
    items = job.items()
    spec = build_spec(job, items)
    if job.split == "train":  # for its own students, and those of the arms that share the store
        for arm in ({job.arm.name: job.arm} | arms_of(profile)).values():
            if arm.store == job.arm.name and arm.signals != NONE:
                require_served(make_codec(profile.signals, profile.teacher.offers), arm.loss_of(profile))
    size, asked = profile.signals.items_per_shard, without_gold(items)
    chunks = [asked[start : start + size] for start in range(0, len(items), size)]
    since = forced_since(profile, "capture", force)
    with Claims() as claims, SharedStore(claims, job.folder, spec, len(chunks), part, since) as store:
        if not store.missing() and store.complete():
            done = f"{len(items)} items are captured and unchanged."
            say_kept(job.stage, read_store(job.folder), stage_code("capture", profile), done)
            return job.folder
        if job.split == "train" and profile.student.model:
            refuse_unknown_architecture(profile.student.model)
        with Progress(profile, job.stage, len(items), "item") as progress:
            capture_missing(job, store, chunks, progress)
    return job.folder


def capture_all(jobs: Sequence[Job], part: Part | None = None, force: bool = False) -> list[Path]:
    """Captures stores of one profile; the teacher is loaded once, when the first one needs it. Raises UserError as
    `capture`; what can be known of the last one is known before the first one is asked."""
    made = {job.folder for job in jobs}
    for job in jobs:
        if job.written_by is None or job.written_by.folder not in made:
            refuse_text(job)
    with contextlib.ExitStack() as opened:
        teacher = cache(lambda: opened.enter_context(contextlib.closing(open_engine(jobs[0].profile))))
        return [capture(replace(job, opens=teacher, lent=True), part, force) for job in jobs]


def capture_missing(job: Job, store: SharedStore, chunks: list[list[Unlabelled]], progress: Progress) -> None:
    """Makes shards until the store is complete, or with a fixed share until that is made; then closes the teacher."""
    with contextlib.ExitStack() as opened, gpu_memory("teacher.batch_size, or take a smaller teacher,"):
        # Opened when there is something for it to do.
        teacher = cache(partial(open_teacher, job, store.writer, opened))
        while True:
            show_done(store, chunks, progress)
            make_shards(job, store, chunks, teacher, progress)
            if missing := store.missing():
                if store.part is not None:
                    some = ", ".join(Path(shard_name(index)).stem for index in missing[:5])
                    left = some + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
                    print(f"{job.stage}: worker {store.part} has done its share; {left} missing yet.")
                    return
                store.wait()
            elif store.complete():
                return
            elif not store.missing():
                teacher()  # all shards are whole, so it is the head that is lost: opening the teacher writes it


def show_done(store: SharedStore, chunks: list[list[Unlabelled]], progress: Progress) -> None:
    """Brings the progress up to what all workers together have done, responses of shards in hand included."""
    missing = store.missing()
    left = sum(len(chunks[index]) for index in missing) - store.ended(missing)
    progress.advance(sum(map(len, chunks)) - left - progress.state["done"])


def make_shards(
    job: Job, store: SharedStore, chunks: list[list[Unlabelled]], teacher: Teacher, progress: Progress
) -> None:
    """Makes shards until none is left to take. Time and energy are kept, also of a session that was stopped. A shard is
    encoded and written while the teacher is asked for the next one. No more than one waits, so memory does not grow,
    and where writing fails no later shard is written. What is being written when this is stopped is finished. Engines
    rely on it that a shard is on disk before the next but one is asked for."""
    shards = store.shards()
    first = next(shards, None)
    if first is None:
        return
    meter, written = Meter(job.profile.country), None
    store.writer.begin_session()
    try:
        with meter, ThreadPoolExecutor(1, "primekd writer") as background:
            engine, codec = teacher()
            for index in itertools.chain([first], shards):
                if written is not None and written.done():
                    written.result()  # where writing has failed, nothing more is asked
                ended = partial(store.count_ended, index, progress)
                stored, states = ask_teacher(engine, codec, job, chunks[index], ended, index)
                facts = {"engine": engine.identity()} if hasattr(engine, "served") else {}  # now it is known
                if codec.needs == "hidden" and index in (0, first):  # a worker's first one, before it makes more
                    measured = measure_reconstruction(engine, stored, states, job.stage)
                    facts |= {"reconstruction": measured} if index == 0 else {}  # always of the same one
                if written is not None:
                    written.result()
                written = background.submit(write_shard, store, codec, index, stored, states, facts)
                del stored, states  # the writer's now: freed once they are written
                show_done(store, chunks, progress)
                store.writer.note_session(meter.so_far())  # what stands there if this is killed
            written.result()
            show_done(store, chunks, progress)
    except BaseException as error:
        if written and written.done() and (failure := written.exception()) and failure is not error:
            print(f"{job.stage}: {failure}", file=sys.stderr, flush=True)  # why the last shard could not be written
        raise
    finally:
        if meter.facts and len(store.missing()) < len(chunks):  # none where it was stopped while the meter started
            store.writer.note_session(meter.facts)


def open_teacher(job: Job, writer: SignalWriter, opened: contextlib.ExitStack) -> tuple[TeacherEngine, Codec]:
    """Loads the teacher, which `opened` closes. Raises UserError if it is not there or lacks what the codec needs."""
    profile = job.profile
    engine = job.opens() if job.opens else open_engine(profile)
    if not job.lent:
        opened.callback(engine.close)
    if writer.spec["codec"]["name"] == "hidden" and "hidden" not in engine.offers:
        raise UserError(
            f"{profile.teacher.model} offers no hidden signals in this engine: its head has a bias, lies in parts, or "
            "is followed by another change of the logits than a scale or a soft cap; set signals.codec to topk or full."
        )
    codec, code = make_codec(profile.signals, engine.offers), stage_code("capture", profile)
    vouches = writer.vouched().values()
    if hasattr(engine, "served"):  # a server may become another model between two sessions
        engine.served.update(*(vouch.get("engine", {}).get("served", []) for vouch in vouches))
    note_maker(writer, engine, codec, code)
    say_mixed(job.stage, vouches, code, writer.facts["engine"])
    return engine, codec


def note_maker(writer: SignalWriter, engine: TeacherEngine, codec: Codec, code: dict[str, Any]) -> None:
    """Notes how shards will be made, and stores the teacher's head where the codec needs it."""
    writer.facts = {"engine": engine.identity(), "environment": environment(), "code": code}
    if codec.needs == "hidden":
        writer.facts["head"] = save_head(writer.folder, engine.head(), engine.transform)


def ask_teacher(
    engine: TeacherEngine, codec: Codec, job: Job, items: list[Unlabelled], ended: Callable[[], None], index: int
) -> tuple[list[StoredItem], list]:
    """One shard's responses and rows as the engine gives them; `ended` is called for each response that has ended."""
    prompts = prompts_of(job.scored_under, job.profile.teacher, items)
    seed = int(hash_json([job.seed, job.arm.name, job.split, shard_name(index)])[:8], 16)
    sampling = Sampling(job.profile.max_new_tokens, job.profile.teacher.sampling_temperature, seed, ended)
    states = [None] * len(items)
    if not job.arm.crossed and codec.needs:
        responses, states = engine.generate_scored(prompts, sampling, codec.needs)
    elif not job.arm.crossed:
        responses = engine.generate(prompts, sampling)
    else:
        responses = written_responses(engine, job, items, sampling)
        if codec.needs:
            states = engine.score(prompts, [response.ids for response in responses], codec.needs)
    rows = zip(items, prompts, responses, strict=True)
    return [StoredItem(item.id, prompt, response.ids, response.truncated) for item, prompt, response in rows], states


def write_shard(
    store: SharedStore, codec: Codec, index: int, stored: list[StoredItem], states: list, facts: dict[str, Any]
) -> None:
    columns = [codec.encode(rows, item) for item, rows in zip(stored, states, strict=True)]
    store.writer.write_shard(index, stored, columns, **facts)
    store.release(index)


def measure_reconstruction(
    engine: TeacherEngine, stored: list[StoredItem], states: list[Tensor], stage: str = "capture"
) -> dict[str, Any]:
    """How far hidden @ head.T, scaled and capped, is from the engine's own logits on two items, or MEASURED_TOKENS, as
    `rebuilding` says. `states`: the hidden states of each item, (T, D). Raises UserError if it is too far."""
    lengths = itertools.accumulate(len(item.response_ids) for item in stored)
    most = max(2, next((n for n, tokens in enumerate(lengths, 1) if tokens >= MEASURED_TOKENS), len(stored)))
    sample = stored[:most]
    prompts, responses = [s.prompt_ids for s in sample], [s.response_ids for s in sample]
    rows = HiddenRows(torch.cat(states[:most]).cpu(), engine.head().cpu(), engine.transform)
    measured = rebuilding(torch.cat(engine.own_logits(prompts, responses)), rows.to_logits())
    if problem := rebuilding_problem(measured):
        raise UserError(f"{stage}: {problem}.")
    return measured
