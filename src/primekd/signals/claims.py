"""Claims: who has what in hand in a folder that several processes and machines share.

A claim is a small file that only one process can create (O_EXCL), so no lock of the file system is needed, which a
network's may lack. It names its owner, who touches it every BEAT seconds. It counts as left behind when its process is
gone (on the same machine) or when it has not been touched for STALE_AFTER seconds by the file system's own clock. A
process that was stopped for longer and wakes up does no harm: whatever is claimed may be done twice."""

import contextlib
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from primekd.foundation import disk_errors

BEAT, STALE_AFTER, POLL = 15.0, 300.0, 1.0  # seconds


@dataclass(frozen=True)
class Owner:
    """The process that made a claim. `machine` is None where it cannot be told apart; then only its touch counts."""

    host: str
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    machine: str | None = None
    started: str | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_gone(self) -> bool:
        """Whether it surely does not run any more; never said of another machine's process."""
        if self.machine is None or self.machine != _this_machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # another user's
        if (found := _stat_of(self.pid)) is None:
            return False
        state, started = found
        # A zombie has ended, and an id may have been given to another process since.
        return state in "ZX" or self.started not in (None, started)


_OWNER = TypeAdapter(Owner)


class Claims:
    """The claims of this process. Use as a context manager: at its end, however it ends, they are given up."""

    def __init__(self):
        self._held: dict[Path, int] = {}  # the claim's file -> a descriptor of it
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> "Claims":
        threading.Thread(target=self._beat, name="primekd claims", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        for path in list(self._held):
            self.release(path)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._lock:
                for descriptor in self._held.values():
                    with contextlib.suppress(OSError):  # taken over, or the server is away: nothing can be done here
                        os.utime(descriptor)

    def take(self, path: Path) -> Owner | None:
        """Claims `path`; returns None if it is ours now, else the living owner. One left behind is taken over."""
        while True:
            try:
                with disk_errors(path):
                    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if (owner := look(path)) is not None:
                    return owner
                continue
            with self._lock:
                self._held[path] = descriptor
            try:
                with disk_errors(path):
                    os.write(descriptor, json.dumps(asdict(this_process())).encode())
            except BaseException:
                self.release(path)
                raise
            return None

    def release(self, path: Path) -> None:
        """Gives a claim up, if it is still held, from any thread; one that another process took over stays its own."""
        with self._lock:
            if (descriptor := self._held.pop(path, None)) is None:
                return
            with contextlib.suppress(OSError):
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    path.unlink()
            os.close(descriptor)

    @contextlib.contextmanager
    def alone(self, path: Path, name: str) -> Iterator[None]:
        """Waits for a claim and holds it for the `with` block; says once for each owner that `name` waits for it."""
        said = None
        while (owner := self.take(path)) is not None:
            if owner != said:
                print(f"{name}: waiting for {owner}.", flush=True)
                said = owner
            time.sleep(POLL)
        try:
            yield
        finally:
            self.release(path)

    def others(self, folder: Path, pattern: str) -> list[Owner]:
        """The living owners of other processes' claims in a folder; claims left behind are removed."""
        paths = sorted(set(folder.glob(pattern)) - set(self._held))
        return [owner for path in paths if (owner := look(path)) is not None]


def look(path: Path) -> Owner | None:
    """The living owner of a claim; None if there is no claim, or it was left behind and is now removed."""
    try:
        with open(path, encoding="utf-8") as handle:  # opening it asks the server, a mere stat may be answered locally
            text, seen = handle.read(), os.fstat(handle.fileno())
        owner = _OWNER.validate_json(text)
    except FileNotFoundError:
        return None
    except ValueError:  # just being written
        owner = Owner("an unknown machine", 0)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".clock-") as probe:
        age = os.fstat(probe.fileno()).st_mtime - seen.st_mtime  # by the clock of the file system
    if owner.is_gone or age > STALE_AFTER:
        _remove(path, seen)
        return None
    return owner


def _remove(path: Path, seen: os.stat_result) -> None:
    """Removes a claim that was left behind, unless it is not the one that was seen any more."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with disk_errors(path), contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        found = aside.stat()
        if (found.st_ino, found.st_mtime_ns) != (seen.st_ino, seen.st_mtime_ns):
            # Another worker was quicker: this is its own claim, or the owner has just given a sign of life.
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def this_process() -> Owner:
    found = _stat_of(os.getpid())
    return Owner(socket.gethostname(), os.getpid(), _this_machine(), found and found[1])


@cache
def _this_machine() -> str | None:
    """What two processes have in common whose ids can be compared: one boot, one space of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _stat_of(pid: int) -> tuple[str, str] | None:
    """A process's state and when it started, in ticks since the boot; None where the kernel does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]
