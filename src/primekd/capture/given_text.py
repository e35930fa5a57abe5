"""The teacher's rows of text that was not written by it, stored before anybody learns from them. A live teacher would
give the same rows, to the bit: each shard is one batch of the training, read as it is read there."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primekd.capture.live import LiveTeacher
from primekd.capture.run import measure_reconstruction, note_maker
from primekd.capture.workers import set_outdated_aside
from primekd.config import Profile
from primekd.foundation import Meter, Progress, UserError, relative_name
from primekd.foundation.stage_code import forced_since, say_kept, stage_code
from primekd.signals import Asked, SignalReader, SignalWriter, StoredItem, read_store


def store_rows(
    profile: Profile, teacher: LiveTeacher, batches: Sequence[Sequence[Asked]], folder: Path, inputs: dict[str, Any]
) -> SignalReader:
    """The store `folder` with a shard a batch; what is there is kept, and a stopped call goes on behind it. `batches`
    are read when they are asked for, and depend on `inputs`. A store of another configuration, or one that is to
    be made anew, is set aside. Raises UserError if hidden states are not the teacher's logits, or the disk is full."""
    spec = teacher.manifest["spec"] | {"strategy": folder.name, "text": inputs}
    set_outdated_aside(folder, spec, forced_since(profile, "capture"))
    writer = SignalWriter(folder, spec, len(batches))
    stage, code = f"capture {folder.name}", stage_code("capture", profile)
    if not writer.missing() and writer.complete():
        say_kept(stage, read_store(folder), code)
    else:
        meter = Meter(profile.country)
        with Progress(profile, stage, len(batches), "batch") as progress, contextlib.ExitStack() as last:
            last.callback(lambda: meter.facts and writer.note_session(meter.facts))
            with meter:
                _write(writer, teacher, batches, code, progress)
        if not writer.complete():
            raise UserError(f"{relative_name(folder)} was altered while it was written: run the same command again.")
    return SignalReader(folder)


def _write(
    writer: SignalWriter, teacher: LiveTeacher, batches: Sequence[Sequence[Asked]], code: dict[str, Any],
    progress: Progress,
) -> None:  # fmt: skip
    engine, codec, missing = teacher.engine, teacher.codec, writer.missing()
    if codec.needs not in engine.offers:
        why = "this teacher's hidden states are not its logits, so its rows cannot be stored"
        raise UserError(f"{writer.folder.name}: {why}: choose an arm that asks it while training.")
    note_maker(writer, engine, codec, code)
    progress.advance(len(batches) - len(missing))
    for index in missing:
        items = [StoredItem(a.item_id, a.before_ids, a.response_ids, truncated=False) for a in batches[index]]
        states = engine.score([i.prompt_ids for i in items], [i.response_ids for i in items], codec.needs)
        facts = {}
        if index == 0 and codec.needs == "hidden":
            stage = f"capture {writer.folder.name}"
            facts["reconstruction"] = measure_reconstruction(engine, items, states, stage)
        columns = [codec.encode(rows, item) for rows, item in zip(states, items, strict=True)]
        writer.write_shard(index, items, columns, **facts)
        progress.advance()
