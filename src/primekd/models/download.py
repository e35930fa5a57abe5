"""Brings a hub model into the hub's cache, every file verified, and records what was verified.

The layout is the hub client's own (blobs/, snapshots/<commit>/, refs/), so every other tool finds the model there too.
Its downloader is not used: since huggingface_hub 1.x it begins a file anew after a kill, and leaves the rest lying.
Here a file is received in pieces that survive a kill, and let into the cache only if its hash is right."""

import contextlib
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, Field
from tqdm import tqdm

from primekd.foundation import UserError, checked, open_bar
from primekd.foundation.storage import disk_errors, hash_file, now, project_root, write_json, write_text
from primekd.models.hub import HubFile, HubModel, explain, local_snapshot, storage_folder
from primekd.models.reference import ModelReference

STREAMS = 4  # files in flight: one stream seldom fills a fast line
TRIES = 5  # in a row without a new byte
PAUSE = 2.0  # seconds before the next try, doubled each time


class TransferStopped(Exception):
    """Another file failed, or the user interrupted: what was received is kept."""


class FileMeter:
    """One bar for all files, which each file's progress goes to, and the wish to stop. Threads share it."""

    def __init__(self, bar: tqdm):
        self.bar, self.lock, self.stop = bar, threading.Lock(), threading.Event()

    def update(self, count: int) -> None:
        """Counts bytes; raises `TransferStopped` where the download is to end."""
        with self.lock:
            self.bar.update(count)
        if self.stop.is_set():
            raise TransferStopped


def bytes_here(model: HubModel, files: tuple[HubFile, ...]) -> int:
    """How many bytes of some files the cache holds, whole or in part; their hashes are not looked at."""
    storage, here = storage_folder(model.repository), 0
    for file in files:
        blob = storage / "blobs" / file.digest
        places = (storage / "snapshots" / model.commit / file.name, blob, part_of(blob))
        here += min(file.size, next((p.stat().st_size for p in places if p.is_file()), 0))
    return here


def free_bytes() -> int:
    """Free space on the disk that holds the hub's cache."""
    cache = storage_folder("owner/name").parent
    return shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free


def download(model: HubModel, weights: bool = True) -> Path:
    """Fetches what is missing, verifies every file, and returns the snapshot's folder. Goes on where it was stopped.
    Without `weights` only tokenizer and configuration are fetched, without a bar. Raises UserError for too little
    space, a broken connection, or a wrong hash twice; what is whole or partly here is kept."""
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
    initial, said = sum(p.stat().st_size for p in parts if p.is_file()), f"{model.repository}: fetched and verified"
    with open_bar(total=total, initial=initial, desc=said, unit="B", unit_scale=True, disable=not weights) as bar:
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


def is_intact(path: Path, file: HubFile) -> bool:
    """Whether a local file has the size and the hash that the hub states."""
    from huggingface_hub.utils.sha import git_hash

    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return file.digest == (hash_file(path) if len(file.digest) == 64 else git_hash(path.read_bytes()))


def part_of(blob: Path) -> Path:
    """Where the bytes of a blob that is not whole yet are kept."""
    return blob.with_name(f"{blob.name}.part")


def bring(model: HubModel, file: HubFile, storage: Path, meter: FileMeter) -> Path:
    """Makes sure that a file lies in the cache with the right hash; returns it. Raises UserError if the connection
    broke off, the disk is full, or what the hub sends has another hash, twice."""
    from huggingface_hub.utils import WeakFileLock

    blob, pointer = storage / "blobs" / file.digest, storage / "snapshots" / model.commit / file.name
    lock = storage.parent / ".locks" / storage.name / f"{file.digest}.lock"  # the hub client's own
    with disk_errors(storage / file.name):
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            for path in (blob, pointer):
                if is_intact(path, file):
                    part_of(blob).unlink(missing_ok=True)
                    meter.update(file.size)
                    return path
                if path.exists():
                    print(f"{file.name} of {model.repository} is damaged here: it is fetched again.")
                    path.unlink()
            for _ in range(2):
                _receive(model, file, part_of(blob), meter)
                if is_intact(part_of(blob), file):
                    os.replace(part_of(blob), blob)
                    return blob
                received = part_of(blob).stat().st_size
                part_of(blob).unlink()
                meter.update(-received)
    raise UserError(
        f"{file.name} of {model.repository}@{model.commit} came twice with another hash than the hub states: it was "
        "thrown away; run this again, and if that does not help, name another mirror in HF_ENDPOINT."
    )


def _receive(model: HubModel, file: HubFile, part: Path, meter: FileMeter) -> None:
    """Appends to `part` until it is whole; each try asks only for what is missing (HTTP Range)."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.file_download import hf_hub_url, http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(model.repository, file.name, revision=model.commit)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # a Range counts the file's own bytes
    to_meter = lambda **_: contextlib.nullcontext(meter)  # noqa: E731  what the hub's client makes its bar of
    failures = 0
    part.touch()
    while (received := part.stat().st_size) < file.size:
        reason = "it ended early"
        try:
            with part.open("ab") as handle:
                http_get(url, handle, resume_size=received, headers=headers, tqdm_class=to_meter)
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise explain(error, ModelReference("hub", f"{model.repository}@{model.revision}")) from error
            reason = f"the hub answered {error.response.status_code}"
        except (HTTPError, ConnectionError, TimeoutError) as error:
            reason = type(error).__name__
        failures = 0 if part.stat().st_size > received else failures + 1
        if failures == TRIES:
            broke = f"The connection broke off while {file.name} of {model.repository} was fetched ({reason})"
            raise UserError(f"{broke}: {received:,} of {file.size:,} bytes are kept; run this again to go on there.")
        if part.stat().st_size < file.size:
            meter.stop.wait(PAUSE * 2**failures)


def _link(pointer: Path, place: Path) -> None:
    if pointer.exists():
        return
    pointer.unlink(missing_ok=True)  # a link whose blob is gone
    try:
        pointer.symlink_to(os.path.relpath(place, pointer.parent))
    except OSError:  # a file system without links
        shutil.copyfile(place, pointer)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def record_path(repository: str, commit: str) -> Path:
    """models/downloads/<owner>--<name>@<commit>.json: which files were verified, and when."""
    return project_root() / "models" / "downloads" / f"{repository.replace('/', '--')}@{commit}.json"


def _record(model: HubModel, files: tuple[HubFile, ...], places: dict[str, Path]) -> None:
    before = read_record(model.repository, model.commit)  # other files of the same commit
    facts = {name: kept.model_dump() for name, kept in before.files.items()} if before else {}
    for file in files:
        sha256 = file.digest if len(file.digest) == 64 else hash_file(places[file.name])
        facts[file.name] = {"size": file.size, "sha256": sha256, "digest": file.digest}
    record = asdict(model) | {"verified": now(), "files": dict(sorted(facts.items()))}
    write_json(record_path(model.repository, model.commit), record)


class FileFacts(BaseModel):
    """A verified file. `digest` is the hub's: sha256, or git's sha1 of the blob."""

    size: int = Field(strict=True, ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    digest: str = Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")


class Record(BaseModel):
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
    fix = "Delete it and get the model again: what is whole is kept."
    return Record(**checked(path, Record, fix)) if path.is_file() else None


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
    record, found = read_record(repository, snapshot.name), {}
    for name, facts in record.files.items() if record else ():
        here = (snapshot / name).stat() if (snapshot / name).is_file() else None
        if here and here.st_size == facts.size and int(here.st_mtime) <= record.verified.timestamp():
            found[name] = facts.sha256
    return found
