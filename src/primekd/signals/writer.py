"""Writes a store, by any number of workers at once.

    <folder>/shard-00000.safetensors   columns of the codec, token ids and lengths of the shard's items
    <folder>/shard-00000.json          vouches for it: sha256, items, tokens, bytes, spec, and how it was made
    <folder>/session-<…>.json          time and energy of one session of one worker
    <folder>/manifest.json             what was asked (spec); at the end all of the above, marked as complete
    <folder>/../head-<hash>.safetensors  the teacher's output head, shared by the stores of one teacher

Each is written whole, by one worker, the last one from the others: a worker may die, and two may do the same thing."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from primekd.foundation import MANIFEST, UserError, hash_file, hash_json, maker_of, mixed, relative_name, write_json
from primekd.foundation.manifests import checked
from primekd.signals.manifest import FIX, Session, Vouch, read_store
from primekd.signals.shards import FORMAT, StoredItem, save_shard, shard_name

ENTRY = ("sha256", "items", "tokens", "bytes")  # what the manifest says of a shard
FACTS = ("head", "reconstruction", "engine", "environment", "code")  # what it says of the store, from the first shard


class SignalWriter:
    """One worker's view of a store of `count` shards: which are vouched for, by whomever, and writing more of them.

    `spec`: all that the rows depend on; another one is refused. `facts` (of FACTS): how shards are made."""

    def __init__(self, folder: Path, spec: dict[str, Any], count: int):
        self.folder, self.spec, self.spec_hash, self.count = Path(folder), spec, hash_json(spec), count
        self.facts: dict[str, Any] = {}
        self.begin_session()
        self._done: set[int] = set()  # seen to be vouched for; they stay so until `complete` finds otherwise
        self._base = {"kind": "signals", "format": FORMAT, "spec": spec, "spec_sha256": self.spec_hash}
        if not (self.folder / MANIFEST).is_file():
            write_json(self.folder / MANIFEST, self._base | {"complete": False, "shards": {}})
        found = read_store(self.folder)
        if found["spec_sha256"] != self.spec_hash:
            name = relative_name(self.folder)
            raise UserError(f"{name} was captured with other settings: move it away and capture again.")
        self._was_complete = bool(found.get("complete"))

    def _vouch(self, index: int) -> dict[str, Any] | None:
        """What vouches for a shard, if the shard is there and has that size."""
        path = self.folder / shard_name(index)
        try:
            vouch = checked(path.with_suffix(".json"), Vouch, FIX)
            whole = vouch["spec_sha256"] == self.spec_hash and path.stat().st_size == vouch["bytes"]
        except (UserError, OSError):  # absent, cut short or edited: the shard is made again
            return None
        return vouch if whole else None

    def vouched(self) -> dict[int, dict[str, Any]]:
        """What vouches for each shard that is there, in order."""
        return {index: vouch for index in range(self.count) if (vouch := self._vouch(index)) is not None}

    def has_shard(self, index: int) -> bool:
        """Whether a shard is there with the bytes that are vouched for. A damaged one counts as missing."""
        vouch = self._vouch(index)
        return vouch is not None and hash_file(self.folder / shard_name(index)) == vouch["sha256"]

    def missing(self) -> list[int]:
        """Which shards nobody has vouched for, in order. Whether their bytes are right is for `complete` to find."""
        there = set(os.listdir(self.folder))
        for index in set(range(self.count)) - self._done:
            if shard_name(index) in there and self._vouch(index) is not None:
                self._done.add(index)
        return [index for index in range(self.count) if index not in self._done]

    def write_shard(
        self, index: int, items: Sequence[StoredItem], columns: Sequence[dict[str, Tensor]], **facts: Any
    ) -> None:
        """Writes a shard, then what vouches for it. `columns`: an item's, (T, …); `facts`: of this shard alone."""
        path = self.folder / shard_name(index)
        own = {"kind": "shard", "format": FORMAT, "spec_sha256": self.spec_hash}
        entry = save_shard(path, items, columns, self.spec_hash)
        write_json(path.with_suffix(".json"), own | entry | self.facts | facts)

    def begin_session(self) -> None:
        self._session = secrets.token_hex(8)

    def note_session(self, facts: dict[str, Any]) -> None:
        """What this session took, so far or in all: the last call counts."""
        write_json(self.folder / f"session-{self._session}.json", facts)

    def complete(self) -> bool:
        """Checks every shard and, if all are whole, writes the manifest; for one worker at a time. False if something
        is to be made first: what `missing` names now, or the head. Raises UserError if shards have different heads."""
        vouches = self.vouched()
        manifest = self._assemble(vouches)
        found = read_store(self.folder)
        by_another = found.get("complete") and not self._was_complete and found["shards"] == manifest["shards"]
        damaged = set() if by_another else {index for index in vouches if not self.has_shard(index)}
        for index in damaged:
            (self.folder / shard_name(index)).with_suffix(".json").unlink(missing_ok=True)
        self._done = vouches.keys() - damaged
        if len(self._done) < self.count:
            return False
        self._refuse_other_heads(vouches)
        if head := manifest.get("head"):
            path = self.folder.parent / head["file"]
            if not path.is_file() or hash_file(path) != head["sha256"]:
                return False
        if manifest != found:
            write_json(self.folder / MANIFEST, manifest)
        return True

    def _refuse_other_heads(self, vouches: dict[int, dict[str, Any]]) -> None:
        """Raises UserError if shards need another output head than the first: their rows would decode wrongly."""
        # The file is named after the head's values; another version of safetensors may lay the same ones out anew.
        known = [(shard_name(index), vouch) for index, vouch in vouches.items()]
        known.append(("the head that was loaded now", self.facts))
        heads = {name: facts["head"]["file"] for name, facts in known if facts.get("head")}
        first = next(iter(heads), None)
        if others := [name for name in heads if heads[name] != heads[first]]:
            raise UserError(
                f"{relative_name(self.folder)}: {', '.join(others)} and {first} differ in the teacher's output head "
                f"({', '.join(dict.fromkeys(heads.values()))}): two machines have other library versions or a damaged "
                "model cache; mend that, delete the shards that were made wrongly and capture again."
            )

    def _assemble(self, vouches: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """The manifest of a complete store. Each fact is the first shard's that has it, whoever came last."""
        facts: dict[str, Any] = {}
        # A head that was just written comes first: an older entry may name a file that is lost.
        for vouch in ({"head": self.facts.get("head")}, *vouches.values()):
            facts = {key: vouch[key] for key in FACTS if vouch.get(key)} | facts
        makers = {shard_name(i): maker_of(vouch) | {"engine": vouch.get("engine")} for i, vouch in vouches.items()}
        if groups := mixed(makers):  # rows may differ in last bits, or by more
            facts["mixed"] = groups
        fix = "Delete it: only the time and energy of one session are lost."
        sessions = [checked(path, Session, fix) for path in sorted(self.folder.glob("session-*.json"))]
        shards = {shard_name(index): {key: vouch[key] for key in ENTRY} for index, vouch in vouches.items()}
        totals = {key: sum(entry[key] for entry in shards.values()) for key in ("items", "tokens", "bytes")}
        sessions.sort(key=lambda session: session.get("end", ""))
        return self._base | {"complete": True, "shards": shards} | facts | {"sessions": sessions} | totals
