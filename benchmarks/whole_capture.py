"""The whole of a capture with an engine that is loaded, any of them; and what it takes as the items grow in number."""

import os
import tempfile
from collections.abc import Callable

from benchmarks.memory import peak_and_seconds
from primekd.capture.jobs import Job, build_spec, training_job
from primekd.capture.run import make_shards
from primekd.capture.workers import SharedStore
from primekd.config import Profile, load_profile
from primekd.foundation.progress import Progress
from primekd.signals import make_codec
from primekd.signals.claims import Claims
from primekd.signals.heads import save_head
from primekd.tasks.load import load_items
from primekd.tasks.protocol import Item
from primekd.teachers import TeacherEngine, open_engine

STRATEGY = "ai-KD"  # has a priming text, so that prompts share more than the template's first tokens
SHARD = 4  # items and tokens a response where growth is measured


def capture_growth(profile: str, items: int, engine: str, say) -> dict[str, float]:
    """What capturing so many items in shards of 4 takes, the engine (transformers or llamacpp) being loaded."""
    peak, seconds = peak_and_seconds("benchmarks.whole_capture:prepare_capture", profile, items, engine)
    say(f"capturing {items} items: {seconds:.2f} s, {peak / 2**20:.0f} MiB at the peak")
    return {"seconds": seconds, "peak_bytes": peak}


def prepare_capture(profile: str, items: int, engine: str) -> Callable[[], None]:
    """For `peak_and_seconds`: short responses in small shards, so that what grows with the items is seen."""
    chosen = load_profile(profile)
    teacher = chosen.teacher.model_copy(update={"engine": engine, "batch_size": SHARD})
    small = {"signals": chosen.signals.model_copy(update={"items_per_shard": SHARD}), "max_new_tokens": SHARD}
    chosen = chosen.model_copy(update=small | {"teacher": teacher})
    loaded = open_engine(chosen)
    questions = load_items(chosen, "train", items)
    capture_into_nowhere(loaded, chosen, questions[:SHARD])
    return lambda: capture_into_nowhere(loaded, chosen, questions)


def capture_into_nowhere(engine: TeacherEngine, profile: Profile, items: list[Item]) -> None:
    """The whole capture of these items with a loaded engine: claims, generation, encoding, writing, checking."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("PRIMEKD_OUTPUT")
        os.environ["PRIMEKD_OUTPUT"] = folder
        try:
            _capture(engine, training_job(profile, STRATEGY), items)
        finally:
            os.environ.pop("PRIMEKD_OUTPUT")
            if before is not None:
                os.environ["PRIMEKD_OUTPUT"] = before


def _capture(engine: TeacherEngine, job: Job, items: list[Item]) -> None:
    profile, codec = job.profile, make_codec(job.profile.signals, engine.offers)
    size = profile.signals.items_per_shard
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    with Claims() as claims, Progress(profile, job.stage, len(items), "item") as progress:
        store = SharedStore(claims, job.folder, build_spec(job, items), len(chunks))
        store.writer.facts = {"head": save_head(job.folder, engine.head(), engine.transform)}
        make_shards(job, store, chunks, lambda: (engine, codec), progress)
        if not store.complete():
            raise RuntimeError("the captured store is not whole")
