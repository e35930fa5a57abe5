"""Several workers on one signal store: who makes which shard, who waits for whom, and who completes it. Workers meet in
the store's folder alone, so they may run on any machines that share it. Each says that it is there (`worker-<…>.lock`),
claims the shards that it has in hand (`shard-00000.lock`; two, since one is written while the next is made), tells how
far it is in them (`worker-<…>.ended`), and holds `.<store>.lock`, beside the store, while it sets an outdated store
aside, begins one or completes one. See signals/claims.py for what becomes of a dead worker's."""

import contextlib
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primekd.foundation import MANIFEST, Progress, UserError, hash_json, is_older, relative_name, set_aside, write_json
from primekd.signals import SignalWriter, read_store, shard_name
from primekd.signals.claims import POLL, Claims, Owner, look

TELL = 1.0  # seconds between two times that a worker tells the others how far it is within its shards


@dataclass(frozen=True)
class Part:
    """A fixed share of the shards: the `number`-th of `of` workers, from 1. Nothing is claimed then."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Reads "2/4". Raises UserError if it is no such thing."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--worker {text}: write which of how many workers this is, for example 2/4.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def set_outdated_aside(folder: Path, spec: dict[str, Any], since: float, others: Callable = tuple) -> None:
    """Makes room where a store is of another spec, or older than `since`. Raises UserError if `others` work on it."""
    why = "is to be made anew" if is_older(folder / MANIFEST, since) else ""
    if not why and (folder / MANIFEST).is_file() and read_store(folder)["spec_sha256"] != hash_json(spec):
        why = "is of another configuration"
    if why and (found := others()):
        raise UserError(f"{relative_name(folder)} {why} and is worked on by {found[0]}: wait for it or stop it.")
    if why:
        print(f"{relative_name(folder)} {why}: set aside as {set_aside(folder).name}.")


class SharedStore:
    """A store that this process works on, perhaps together with others. Use as a context manager.

    Args:
        claims: entered by the caller; what is claimed here is given up with it.
        part: the shards of this worker; None: whatever is neither made nor claimed.
        since: a store that is older is to be made anew (stage_code.forced_since).

    Raises UserError if a living worker is making a store in this folder of another configuration, or an older one."""

    def __init__(
        self, claims: Claims, folder: Path, spec: dict[str, Any], count: int, part: Part | None = None,
        since: float = 0.0,
    ):  # fmt: skip
        self.claims, self.folder, self.part = claims, folder, part
        self.name = relative_name(folder)
        self._held: dict[int, Owner] = {}  # what others had in hand when nothing was left to take
        self._in_hand: set[int] = set()  # taken by this worker and not yet written
        self._said = ""
        self._ended, self._told = Counter(), 0.0  # of each shard that this worker has asked for, ended responses
        self._own = folder / f"worker-{secrets.token_hex(8)}.lock"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            set_outdated_aside(folder, spec, since, self._others)
            self.writer = SignalWriter(folder, spec, count)
            claims.take(self._own)
            self._tidy()

    def _alone(self):
        # One worker at a time may do what concerns the whole store.
        return self.claims.alone(self.folder.with_name(f".{self.folder.name}.lock"), self.name)

    def _others(self) -> list[Owner]:
        return self.claims.others(self.folder, "worker-*.lock")

    def _tidy(self) -> None:
        """Removes what killed workers left behind, if no other is at work."""
        if not self._others():
            for pattern in (".*.tmp", ".tmp*", "shard-*.lock", "worker-*.ended"):  # .tmp*: safetensors' own
                for leftover in self.folder.glob(pattern):
                    leftover.unlink(missing_ok=True)

    def missing(self) -> list[int]:
        return self.writer.missing()

    def count_ended(self, index: int, progress: Progress) -> None:
        """One more response of a shard in hand has ended; the others are told now and then."""
        self._ended[index] += 1
        if time.monotonic() - self._told > TELL:
            self._told = time.monotonic()
            write_json(self._own.with_suffix(".ended"), self._ended)
        progress.advance()

    def ended(self, missing: list[int]) -> int:
        """Responses that have ended in shards that are not there yet, of this worker and of all others that live."""
        counts = [self._ended]
        for path in set(self.folder.glob("worker-*.lock")) - {self._own}:
            with contextlib.suppress(OSError, ValueError):  # it has told nothing yet
                told = json.loads(path.with_suffix(".ended").read_text(encoding="utf-8"))
                if look(path) is not None:
                    counts.append({int(index): int(count) for index, count in told.items()})
        return sum(max(count.get(index, 0) for count in counts) for index in missing)

    def __enter__(self) -> "SharedStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self._own.with_suffix(".ended").unlink(missing_ok=True)  # what was told of shards in hand

    def shards(self) -> Iterator[int]:
        """Yields one shard after the other for this worker to make; ends when none is left for it to take. Each stays
        claimed until `release`, so the next one can be made while it is being written."""
        while (index := self._take()) is not None:
            self._in_hand.add(index)
            yield index

    def release(self, index: int) -> None:
        """Gives up a shard that is written; any thread may."""
        if self.part is None:
            self.claims.release(self._lock_of(index))
        self._in_hand.discard(index)

    def _lock_of(self, index: int) -> Path:
        return (self.folder / shard_name(index)).with_suffix(".lock")

    def _take(self) -> int | None:
        self._held = {}
        in_hand = set(self._in_hand)  # before looking: one that is written meanwhile is in one of the two
        missing = [index for index in self.missing() if index not in in_hand]
        if part := self.part:
            return next((index for index in missing if index % part.of == part.number - 1), None)
        claimed = {path.name for path in self.folder.glob("shard-*.lock")}
        for index in sorted(missing, key=lambda i: self._lock_of(i).name in claimed):  # the unclaimed ones first
            if (owner := self.claims.take(self._lock_of(index))) is not None:
                self._held[index] = owner
            elif index in self.missing():
                return index
            else:  # its worker finished it after we looked
                self.claims.release(self._lock_of(index))
        return None

    def wait(self) -> None:
        """Waits a moment for the others, and says for whom if that is news."""
        whom = ", ".join(f"{Path(shard_name(index)).stem} ({owner})" for index, owner in self._held.items())
        if whom and whom != self._said:
            print(f"{self.name}: waiting for other workers: {whom}.", flush=True)
            self._said = whom
        time.sleep(POLL)

    def complete(self) -> bool:
        """Completes the store if everything is made and whole; see SignalWriter.complete."""
        with self._alone():
            if completed := self.writer.complete():
                self._tidy()
            return completed
