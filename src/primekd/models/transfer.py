"""One file from the hub: received in pieces that survive a kill, and let into the cache only if its hash is right."""

import os
import threading
from pathlib import Path

from tqdm import tqdm

from primekd.foundation.errors import UserError
from primekd.foundation.provenance import disk_errors, hash_file
from primekd.models.hub import HubFile, HubModel, explain
from primekd.models.reference import ModelReference

TRIES = 5  # in a row without a new byte
PAUSE = 2.0  # seconds before the next try, doubled each time


class TransferStopped(Exception):
    """Another file failed, or the user interrupted: what was received is kept."""


class FileMeter:
    """One bar for all files, and the wish to stop. Threads share it."""

    def __init__(self, bar: tqdm):
        self.bar, self.lock, self.stop = bar, threading.Lock(), threading.Event()

    def update(self, count: int) -> None:
        """Counts bytes; raises `TransferStopped` where the download is to end."""
        with self.lock:
            self.bar.update(count)
        if self.stop.is_set():
            raise TransferStopped

    def as_tqdm(self) -> type:
        """What the hub's client takes for a tqdm class: each file's progress goes to this meter."""
        meter = self

        class FileBar:
            def __init__(self, **_: object):
                pass

            def __enter__(self) -> "FileBar":
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, count: int) -> None:
                meter.update(count)

        return FileBar


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
    failures = 0
    part.touch()
    while (received := part.stat().st_size) < file.size:
        reason = "it ended early"
        try:
            with part.open("ab") as handle:
                http_get(url, handle, resume_size=received, headers=headers, tqdm_class=meter.as_tqdm())
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise explain(error, ModelReference("hub", f"{model.repository}@{model.revision}")) from error
            reason = f"the hub answered {error.response.status_code}"
        except (HTTPError, ConnectionError, TimeoutError) as error:
            reason = type(error).__name__
        failures = 0 if part.stat().st_size > received else failures + 1
        if failures == TRIES:
            raise UserError(
                f"The connection broke off while {file.name} of {model.repository} was fetched ({reason}): "
                f"{received:,} of {file.size:,} bytes are kept; run this again to go on there."
            )
        if part.stat().st_size < file.size:
            meter.stop.wait(PAUSE * 2**failures)
