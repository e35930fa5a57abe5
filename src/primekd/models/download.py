"""Brings a hub model into the hub's cache, every file verified, and records what was verified.

The layout is the hub client's own (blobs/, snapshots/<commit>/, refs/), so every other tool finds the model there too.
Its downloader is not used: since huggingface_hub 1.x it begins a file anew after a kill, and leaves the rest lying.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from primekd.foundation.errors import UserError, findings_text
from primekd.foundation.progress import open_bar
from primekd.foundation.provenance import (
    disk_errors,
    hash_file,
    now,
    project_root,
    relative_name,
    write_json,
    write_text,
)
from primekd.models.hub import HubFile, HubModel, local_snapshot, storage_folder
from primekd.models.reference import ModelReference
from primekd.models.transfer import FileMeter, bring, part_of

STREAMS = 4  # files in flight: one stream seldom fills a fast line


def bytes_here(model: HubModel, files: tuple[HubFile, ...]) -> int:
    """How many bytes of some files the cache holds, whole or in part; their hashes are not looked at."""
    storage = storage_folder(model.repository)

    def size(file: HubFile) -> int:
        blob = storage / "blobs" / file.digest
        places = (storage / "snapshots" / model.commit / file.name, blob, part_of(blob))
        return min(file.size, next((p.stat().st_size for p in places if p.is_file()), 0))

    return sum(size(file) for file in files)


def free_bytes() -> int:
    """Free space on the disk that holds the hub's cache."""
    cache = storage_folder("owner/name").parent
    return shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free


def download(model: HubModel, weights: bool = True) -> Path:
    """Fetches what is missing, verifies every file, and returns the snapshot's folder. Goes on where it was stopped.

    Without `weights` only tokenizer and configuration are fetched, without a bar. Raises UserError for too little
    space, a broken connection, or a wrong hash twice; what is whole or partly here is kept.
    """
    storage = storage_folder(model.repository)
    files = tuple(f for f in model.files if weights or not f.is_weights)
    total = sum(f.size for f in files)
    missing = total - bytes_here(model, files)
    if missing > free_bytes():
        raise UserError(
            f"{model.repository} needs {gigabytes(missing)} more, and only {gigabytes(free_bytes())} are free where "
            "the hub's cache lies: free some space, or move the cache with HF_HUB_CACHE."
        )
    parts = [part_of(storage / "blobs" / f.digest) for f in files]
    bar = open_bar(
        total=total,
        initial=sum(p.stat().st_size for p in parts if p.is_file()),
        desc=f"{model.repository}: fetched and verified",
        unit="B",
        unit_scale=True,
        disable=not weights,
    )
    with bar:
        places = _bring_all(model, files, storage, FileMeter(bar))
    snapshot = storage / "snapshots" / model.commit
    with disk_errors(snapshot):
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in files:
            _link(snapshot / file.name, places[file.name])
    if model.revision != model.commit:
        write_text(storage / "refs" / model.revision, model.commit)
    _record(model, files, places)
    return snapshot


def _bring_all(model: HubModel, files: tuple[HubFile, ...], storage: Path, meter: FileMeter) -> dict[str, Path]:
    with ThreadPoolExecutor(STREAMS) as pool:
        jobs = {pool.submit(bring, model, file, storage, meter): file.name for file in files}
        try:
            return {jobs[job]: job.result() for job in as_completed(jobs)}
        except BaseException:  # an interrupt too: nobody waits for the other files to end
            meter.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _link(pointer: Path, place: Path) -> None:
    if pointer.exists():
        return
    pointer.unlink(missing_ok=True)  # a link whose blob is gone
    try:
        pointer.symlink_to(os.path.relpath(place, pointer.parent))
    except OSError:  # a file system without links
        shutil.copyfile(place, pointer)


def gigabytes(count: int) -> str:
    """Bytes in a form for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def record_path(repository: str, commit: str) -> Path:
    """models/downloads/<owner>--<name>@<commit>.json: which files were verified, and when."""
    return project_root() / "models" / "downloads" / f"{repository.replace('/', '--')}@{commit}.json"


def _record(model: HubModel, files: tuple[HubFile, ...], places: dict[str, Path]) -> None:
    def facts(file: HubFile) -> dict[str, Any]:
        sha256 = file.digest if len(file.digest) == 64 else hash_file(places[file.name])
        return {"size": file.size, "sha256": sha256, "digest": file.digest}

    before = read_record(model.repository, model.commit)  # other files of the same commit
    kept = {name: facts.model_dump() for name, facts in before.files.items()} if before else {}
    record = {
        "repository": model.repository,
        "revision": model.revision,
        "commit": model.commit,
        "gated": model.gated,
        "licence": model.licence,
        "verified": now(),
        "files": dict(sorted((kept | {file.name: facts(file) for file in files}).items())),
    }
    write_json(record_path(model.repository, model.commit), record)


class FileFacts(BaseModel):
    """A verified file. `digest` is the hub's: sha256, or git's sha1 of the blob."""

    size: int = Field(strict=True, ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    digest: str = Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")


class Record(BaseModel):
    """What `_record` writes."""

    repository: str
    revision: str
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    gated: bool
    licence: str
    verified: AwareDatetime
    files: dict[Annotated[str, Field(pattern=r"^[^/\\]+$")], FileFacts]


def read_record(repository: str, commit: str) -> Record | None:
    """The record of one commit; None where there is none. Raises UserError if it is damaged."""
    path = record_path(repository, commit)
    if not path.is_file():
        return None
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{relative_name(path)} is no record of a download ({findings_text(error)}): delete it and get the model "
            "again; what is whole is kept."
        ) from error


def recorded(reference: ModelReference) -> HubModel | None:
    """A model that was downloaded and verified before, from its record: without asking the hub."""
    snapshot = local_snapshot(reference)
    record = read_record(reference.repository, snapshot.name) if snapshot else None
    if record is None:
        return None
    files = tuple(
        HubFile(name, facts.size, facts.digest)
        for name, facts in record.files.items()
        if reference.file in (None, name)
    )
    return HubModel(record.repository, reference.revision, record.commit, record.gated, record.licence, files)


def verified_hashes(repository: str, snapshot: Path) -> dict[str, str]:
    """sha256 of a snapshot's files that were verified and have not been written to since."""
    if (record := read_record(repository, snapshot.name)) is None:
        return {}
    verified = record.verified.timestamp()

    def untouched(name: str, size: int) -> bool:
        facts = (snapshot / name).stat() if (snapshot / name).is_file() else None
        return facts is not None and facts.st_size == size and int(facts.st_mtime) <= verified

    return {name: facts.sha256 for name, facts in record.files.items() if untouched(name, facts.size)}
