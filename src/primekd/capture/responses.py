"""Responses that are scored and were not written for it: those of another arm's store, or of a file."""

from functools import lru_cache
from pathlib import Path

from primekd.capture.jobs import Job, open_signals, prompts_of
from primekd.foundation import MANIFEST, UserError, clean, read_cells, relative_name
from primekd.models import load_tokenizer
from primekd.models.chat import encode_response, refuse_control_tokens
from primekd.signals import SignalReader, shards_hash
from primekd.tasks.protocol import Item
from primekd.tasks.rows import json_lines
from primekd.teachers import Response, Sampling, TeacherEngine


def written_responses(engine: TeacherEngine, job: Job, items: list[Item], sampling: Sampling) -> list[Response]:
    """The responses of a crossed arm: those of another arm's store or of a file, or written here under its own prompt.
    Raises UserError if that store is not complete, or not of this profile; or as `read_responses`."""
    if job.arm.responses:
        texts = read_responses(job)
        found = [Response(encode_response(engine.tokenizer, texts[item.id]), False) for item in items]
    elif source := job.written_by:
        stored = map(_text_reader(source.folder, shards_hash(source.folder)).item, [item.id for item in items])
        found = [Response(item.response_ids, item.truncated) for item in stored]
    else:
        return engine.generate(prompts_of(job.arm, job.profile.teacher, items), sampling)
    for _ in found:
        sampling.ended()
    return found


@lru_cache(maxsize=1)
def _text_reader(folder: Path, _shards: str) -> SignalReader:
    """Opened once for all shards, as opening hashes the whole store."""
    return SignalReader(folder)


def refuse_text(job: Job) -> None:
    """Raises UserError if the responses of a crossed arm are not to be had as they should be."""
    if job.arm.responses:
        read_responses(job)
    elif (source := job.written_by) and not (source.folder / MANIFEST).is_file():
        held_out = " --held-out" if source.split == "test" else f" {source.arm.name}"
        what = f"scores the responses of {source.arm.name}, which are not captured"
        raise UserError(f"{job.arm.name} {what}: run `primekd capture{held_out} --profile {job.profile.name}` first.")
    elif source:
        open_signals(source)


def read_responses(job: Job) -> dict[str, str]:
    """Item -> response, of a job's file: CSV with a head, or one JSON object a line; the fields are id and response.
    Raises UserError if it cannot be read, an id stands twice or is no item's, or a response is absent or no such."""
    path = job.responses_file()
    name, wanted = relative_name(path), {item.id for item in job.items()}
    tokenizer, found = load_tokenizer(job.profile.teacher), dict[str, str]()
    for where, row in _rows(path, name):
        if lacking := [key for key in ("id", "response") if key not in row]:
            raise UserError(f"{where}: there is no field {lacking[0]!r}, but {clean(', '.join(map(str, row)), 60)!r}.")
        item, text = (str(row.get(key) or "").strip() for key in ("id", "response"))
        if not isinstance(row["response"], str | None):
            raise UserError(f"{where}: the response is no text: put it in quotes.")
        if item not in wanted:
            raise UserError(f"{where}: {clean(item, 60)!r} is no item of {job.split}: take the row out.")
        if item in found:
            raise UserError(f"{where}: {clean(item, 60)} stands there twice: leave one of its responses.")
        if not text:
            raise UserError(f"{where}: {clean(item, 60)} has an empty response: write one, or mend the column's name.")
        try:
            refuse_control_tokens(tokenizer, text)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        found[item] = text
    if missing := sorted(wanted - found.keys()):
        raise UserError(
            f"{name} has responses to {len(found)} of {len(wanted)} items (none to {clean(missing[0], 60)}): add them."
        )
    return found


def _rows(path: Path, name: str) -> list[tuple[str, dict]]:
    """(where it stands, fields) of every row of a file."""
    if path.suffix == ".csv":
        return [(f"{name} {place}", cells) for place, cells in read_cells(path, ("id", "response"))]
    rows = [(where, row) for where, _, row in json_lines(path)]
    if odd := [where for where, row in rows if not isinstance(row, dict)]:
        raise UserError(f"{odd[0]} is no JSON object with the fields id and response: mend it.")
    return rows
