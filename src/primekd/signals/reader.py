"""Reads a complete store, item by item. Memory grows with the number of items, not with their tokens."""

import json
from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from primekd.foundation import UserError, hash_file, relative_name
from primekd.models.logits import PLAIN, LogitTransform
from primekd.signals.codecs import TextCodec, codec_of
from primekd.signals.heads import load_head, rebuilding_problem
from primekd.signals.manifest import read_complete
from primekd.signals.rows import Asked, SignalRows, concatenate
from primekd.signals.shards import PACKED, StoredItem

OPEN_SHARDS = 16  # files are mapped: more of them would be resident at a time


class Place(NamedTuple):
    """Where an item lies: its shard's number, and there its prompt's and response's ids, and packed bytes, if any."""

    shard: int
    prompt: int
    prompt_end: int
    response: int
    response_end: int
    packed: int
    packed_end: int
    truncated: int


class SignalReader:
    """Reads a complete store, item by item. Every shard's hash is checked once, an item's own here and at each read.
    `expected`: values of the spec. Raises UserError if one differs, or a file is absent, incomplete or altered."""

    def __init__(self, folder: Path, **expected: Any):
        self.folder = Path(folder)
        self.name = relative_name(self.folder)
        self.manifest = read_complete(self.folder)
        self.spec = self.manifest["spec"]
        for key, value in expected.items():
            if self.spec.get(key) != value:
                raise UserError(f"{self.name} was captured with another {key} than is asked for: capture again.")
        if problem := rebuilding_problem(self.manifest.get("reconstruction")):
            raise UserError(f"{self.name}: {problem}; move the store away, then capture again.")
        self.codec = codec_of(self.spec["codec"])
        # One place and one hash of 32 bytes an item, end to end: Python objects would be several times as large.
        self._number: dict[str, int] = {}
        self._places, self._hashes = array("q"), bytearray()
        self._open = lru_cache(maxsize=OPEN_SHARDS)(lambda path: safe_open(path, framework="pt"))
        self._files = list(self.manifest["shards"])
        for shard, entry in enumerate(self.manifest["shards"].values()):
            self._index(shard, entry)

    @property
    def head(self) -> tuple[Tensor | None, LogitTransform]:
        """The teacher's output head, (V, D), where the codec needs one, and what follows it."""
        entry = self.manifest.get("head")
        return load_head(self.folder.parent / entry["file"], entry["sha256"]) if entry else (None, PLAIN)

    @property
    def item_ids(self) -> list[str]:
        return list(self._number)

    def _index(self, shard: int, entry: dict[str, Any]) -> None:
        path, name = self.folder / self._files[shard], f"{self.name}/{self._files[shard]}"
        if not path.is_file():
            raise UserError(f"{name} is missing: run its capture again, it writes what is not there.")
        if hash_file(path) != entry["sha256"]:
            raise UserError(f"{name} was altered or cut short: run its capture again, it replaces that shard.")
        try:
            with safe_open(path, framework="pt") as handle:
                header = json.loads(handle.metadata()["primekd"])
                own = {key: handle.get_tensor(key) for key in handle.keys() if not key.startswith("row.")}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{name} cannot be read ({error}): delete it and run its capture again.") from error
        spans = [
            pairwise([0, *own[key].cumsum(0).tolist()]) if key in own else [(0, 0)] * len(header["items"])
            for key in ("prompt_lengths", "response_lengths", "packed_lengths")
        ]
        columns = header["items"], header["row_hashes"], own["truncated"].tolist(), *spans
        for item_id, row_hash, cut, *between in zip(*columns, strict=True):
            if item_id in self._number:
                raise UserError(f"{name}: item {item_id!r} stands in the store twice: capture again.")
            self._number[item_id] = len(self._number)
            self._places.extend(Place(shard, *chain(*between), cut))
            self._hashes += bytes.fromhex(row_hash)
            self._read(item_id, own)

    def _place(self, item_id: str) -> Place:
        if item_id not in self._number:
            raise UserError(f"{self.name} has no item {item_id!r}: the items changed since the capture; capture again.")
        start = self._number[item_id] * len(Place._fields)
        return Place(*self._places[start : start + len(Place._fields)])

    def _read(self, item_id: str, ids: dict[str, Any]) -> StoredItem:
        """An item, cut out of the token ids of its shard (tensors or parts of a file), if its hash is right."""
        place, number = self._place(item_id), self._number[item_id]
        prompt = ids["prompt_ids"][place.prompt : place.prompt_end].tolist()
        response = ids["response_ids"][place.response : place.response_end].tolist()
        item = StoredItem(item_id, prompt, response, bool(place.truncated))
        if item.row_hash != self._hashes[32 * number : 32 * number + 32].hex():
            name = f"{self.name}/{self._files[place.shard]}"
            raise UserError(f"{name}: the rows of item {item_id!r} do not match their hash: capture again.")
        return item

    def _handle(self, item_id: str) -> safe_open:
        return self._open(self.folder / self._files[self._place(item_id).shard])

    def item(self, item_id: str) -> StoredItem:
        """An item's prompt and response. Raises UserError if it is not there, or its shard was replaced meanwhile."""
        handle = self._handle(item_id)
        return self._read(item_id, {name: handle.get_slice(name) for name in ("prompt_ids", "response_ids")})

    def leave_rows_out(self) -> None:
        """From now on it gives the responses alone, as a store of text does."""
        self.codec = TextCodec()

    def rows_of(self, asked: Sequence[Asked]) -> SignalRows | None:
        """`rows` of several items as one, in order; None where there are none."""
        parts = [self.rows(item_id, response_ids) for item_id, _, response_ids in asked]
        return None if not parts or parts[0] is None else concatenate(parts)

    def rows(self, item_id: str, response_ids: Sequence[int]) -> SignalRows | None:
        """An item's rows, one a token; None where responses alone were kept. UserError if its response is another."""
        item = self.item(item_id)
        if list(response_ids) != item.response_ids:
            raise UserError(f"{self.name}: item {item_id!r} was captured for another response than is trained on.")
        place, handle = self._place(item_id), self._handle(item_id)
        rows, packed = slice(place.response, place.response_end), slice(place.packed, place.packed_end)
        names = [name.removeprefix("row.") for name in handle.keys() if name.startswith("row.")]  # noqa: SIM118
        columns = {name: handle.get_slice(f"row.{name}")[packed if name == PACKED else rows] for name in names}
        if self.codec.needs != "hidden":
            return self.codec.decode(columns, None, item)
        head, transform = self.head
        return replace(self.codec.decode(columns, head, item), transform=transform)
