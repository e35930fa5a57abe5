"""The signal store: shards of rows keyed by item id, and a manifest that vouches for them.

    <folder>/shard-00000.safetensors …   columns of the codec, token ids and lengths of the shard's items
    <folder>/manifest.json               what was asked (spec), the shards' sha256, how it was made
    <folder>/../head-<hash>.safetensors  the teacher's output head, shared by the stores of one teacher

Nothing is read whose hash does not match. Shards hold no times and no machine facts: a capture that was killed and
resumed has the same bytes as one that was not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from primekd.errors import UserError
from primekd.provenance import (
    MANIFEST,
    canonical_json,
    hash_file,
    hash_json,
    read_json,
    relative_name,
    write_atomically,
    write_json,
)
from primekd.signals.codecs import codec_of
from primekd.signals.rows import SignalRows

FORMAT = 1


@dataclass(frozen=True)
class StoredItem:
    """One item's response as the teacher gave it. `prompt_ids` is the teacher's own (primed) prompt."""

    item_id: str
    prompt_ids: list[int]
    response_ids: list[int]
    truncated: bool

    @property
    def row_hash(self) -> str:
        """What the rows belong to: this item, this prompt, this response."""
        return hash_json([self.item_id, self.prompt_ids, self.response_ids])


def shard_name(index: int) -> str:
    """File name of the shard with this number."""
    return f"shard-{index:05d}.safetensors"


class SignalWriter:
    """Writes shards in any order and knows which are already whole.

    Args:
        folder: the store.
        spec: everything that the rows depend on; a store with another spec is refused.
    """

    def __init__(self, folder: Path, spec: dict[str, Any]):
        self.folder, self.spec, self.spec_hash = Path(folder), spec, hash_json(spec)
        self.manifest: dict[str, Any] = {
            "kind": "signals",
            "format": FORMAT,
            "spec": spec,
            "spec_sha256": self.spec_hash,
        }
        self.manifest |= {"complete": False, "shards": {}}
        if (self.folder / MANIFEST).is_file():
            found = read_json(self.folder / MANIFEST)
            if found.get("spec_sha256") != self.spec_hash:
                raise UserError(
                    f"{relative_name(self.folder)} was captured with other settings: move it away and capture again."
                )
            self.manifest = found

    def has_shard(self, index: int) -> bool:
        """Whether a shard is there with the bytes that the manifest names. A damaged one counts as missing."""
        entry = self.manifest["shards"].get(shard_name(index))
        path = self.folder / shard_name(index)
        return entry is not None and path.is_file() and hash_file(path) == entry["sha256"]

    def write_shard(self, index: int, items: Sequence[StoredItem], columns: Sequence[dict[str, Tensor]]) -> None:
        """Writes one shard and then the manifest that names it.

        Args:
            columns: for each item the codec's columns, (T, …) each.
        """
        for item, item_columns in zip(items, columns, strict=True):
            for name, column in item_columns.items():
                if len(column) != len(item.response_ids):
                    raise ValueError(f"{item.item_id}: column {name} has {len(column)} rows, not one a response token")
        tensors = {f"row.{name}": torch.cat([c[name] for c in columns]) for name in columns[0]}
        tensors |= {
            "prompt_ids": torch.tensor([t for i in items for t in i.prompt_ids], dtype=torch.int32),
            "response_ids": torch.tensor([t for i in items for t in i.response_ids], dtype=torch.int32),
            "prompt_lengths": torch.tensor([len(i.prompt_ids) for i in items], dtype=torch.int32),
            "response_lengths": torch.tensor([len(i.response_ids) for i in items], dtype=torch.int32),
            "truncated": torch.tensor([i.truncated for i in items], dtype=torch.uint8),
        }
        # One entry: safetensors writes several in an order that differs from run to run.
        header = {
            "items": [i.item_id for i in items],
            "row_hashes": [i.row_hash for i in items],
            "spec_sha256": self.spec_hash,
        }
        path = self.folder / shard_name(index)
        with write_atomically(path) as temporary:
            save_file(
                {k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"primekd": canonical_json(header)}
            )
        tokens = sum(len(i.response_ids) for i in items)
        entry = {"sha256": hash_file(path), "items": len(items), "tokens": tokens, "bytes": path.stat().st_size}
        self.manifest["shards"][path.name] = entry
        self.save()

    def save(self, **facts: Any) -> None:
        """Writes the manifest, with `facts` added."""
        self.manifest |= facts
        self.manifest["shards"] = dict(sorted(self.manifest["shards"].items()))
        write_json(self.folder / MANIFEST, self.manifest)


def save_head(folder: Path, head: Tensor) -> dict[str, str]:
    """Stores the output head beside the stores of one teacher, once; returns its file name and sha256."""
    tensor = head.detach().cpu().contiguous()
    digest = hash_json([str(tensor.dtype), list(tensor.shape), _tensor_digest(tensor)])[:16]
    path = folder.parent / f"head-{digest}.safetensors"
    if not (path.is_file() and _holds(path, tensor)):
        with write_atomically(path) as temporary:
            save_file({"head": tensor}, temporary)
    return {"file": path.name, "sha256": hash_file(path)}


def _holds(path: Path, tensor: Tensor) -> bool:
    """Whether a file has exactly this head: a damaged one must not be vouched for anew."""
    try:
        with safe_open(path, framework="pt") as handle:
            return torch.equal(handle.get_tensor("head"), tensor)
    except SafetensorError:
        return False


def _tensor_digest(tensor: Tensor) -> str:
    import hashlib

    return hashlib.sha256(tensor.view(torch.uint8).numpy().data).hexdigest()


@lru_cache(maxsize=2)
def _load_head(path: Path, digest: str) -> Tensor:
    if not path.is_file() or hash_file(path) != digest:
        raise UserError(f"{relative_name(path)} is missing or was altered: delete it and capture again.")
    with safe_open(path, framework="pt") as handle:
        return handle.get_tensor("head")


class SignalReader:
    """Reads a complete store, item by item, checking as it goes.

    Args:
        expected: keys of the spec and the values they must have (for example tokenizer_sha256).

    Raises:
        UserError: the store is absent, incomplete, of another tokenizer or codec, or a file was altered.
    """

    def __init__(self, folder: Path, **expected: Any):
        self.folder = Path(folder)
        self.name = relative_name(self.folder)
        if not (self.folder / MANIFEST).is_file():
            raise UserError(f"{self.name} has no signals: run `primekd capture` (or the inference notebook) first.")
        self.manifest = read_json(self.folder / MANIFEST)
        self.spec = self.manifest.get("spec", {})
        if self.manifest.get("format") != FORMAT or hash_json(self.spec) != self.manifest.get("spec_sha256"):
            raise UserError(f"{self.name}/{MANIFEST} was altered or is of another version: capture again.")
        if not self.manifest.get("complete") or "shards" not in self.manifest:
            raise UserError(f"{self.name} is not complete: run its capture again, it goes on where it stopped.")
        for key, value in expected.items():
            if self.spec.get(key) != value:
                raise UserError(f"{self.name} was captured with another {key} than is asked for: capture again.")
        self.codec = codec_of(self.spec["codec"])
        self._where: dict[str, tuple[Path, int]] = {}
        self._items: dict[str, StoredItem] = {}
        self._offsets: dict[str, tuple[int, int]] = {}
        for file, entry in self.manifest["shards"].items():
            self._index(self.folder / file, entry)
        self._open = lru_cache(maxsize=64)(lambda path: safe_open(path, framework="pt"))

    @property
    def head(self) -> Tensor | None:
        """The teacher's output head, (V, D), where the codec needs one."""
        entry = self.manifest.get("head")
        return _load_head(self.folder.parent / entry["file"], entry["sha256"]) if entry else None

    @property
    def item_ids(self) -> list[str]:
        """Every item of the store, in the order of capture."""
        return list(self._items)

    def _index(self, path: Path, entry: dict[str, Any]) -> None:
        name = f"{self.name}/{path.name}"
        if not path.is_file():
            raise UserError(f"{name} is missing: run its capture again, it writes what is not there.")
        if hash_file(path) != entry["sha256"]:
            raise UserError(f"{name} was altered or cut short: run its capture again, it replaces that shard.")
        try:
            with safe_open(path, framework="pt") as handle:
                header = json.loads(handle.metadata()["primekd"])
                fields = ("prompt_ids", "response_ids", "prompt_lengths", "response_lengths", "truncated")
                columns = {field: handle.get_tensor(field).tolist() for field in fields}
        except SafetensorError as error:
            raise UserError(f"{name} cannot be read ({error}): delete it and run its capture again.") from error
        prompt_at = response_at = 0
        lengths = zip(columns["prompt_lengths"], columns["response_lengths"], columns["truncated"], strict=True)
        ids, hashes = header["items"], header["row_hashes"]
        for item_id, row_hash, (prompt, response, cut) in zip(ids, hashes, lengths, strict=True):
            item = StoredItem(
                item_id,
                columns["prompt_ids"][prompt_at : prompt_at + prompt],
                columns["response_ids"][response_at : response_at + response],
                bool(cut),
            )
            if item.row_hash != row_hash or item_id in self._items:
                raise UserError(f"{name}: the rows of item {item_id!r} do not match their hash: capture again.")
            self._items[item_id] = item
            self._where[item_id] = (path, response_at)
            prompt_at, response_at = prompt_at + prompt, response_at + response

    def item(self, item_id: str) -> StoredItem:
        """One item's prompt and response.

        Raises:
            UserError: the store does not have it.
        """
        if item_id not in self._items:
            raise UserError(f"{self.name} has no item {item_id!r}: the items changed since the capture; capture again.")
        return self._items[item_id]

    def rows(self, item_id: str, response_ids: Sequence[int]) -> SignalRows | None:
        """The signal rows for one item, one a token of `response_ids`; None where responses alone were kept.

        Raises:
            UserError: the item's stored response is not `response_ids`.
        """
        item = self.item(item_id)
        if list(response_ids) != item.response_ids:
            raise UserError(f"{self.name}: item {item_id!r} was captured for another response than is trained on.")
        path, start = self._where[item_id]
        handle = self._open(path)
        names = [name for name in handle.keys() if name.startswith("row.")]  # noqa: SIM118 - no mapping
        end = start + len(item.response_ids)
        columns = {name.removeprefix("row."): handle.get_slice(name)[start:end] for name in names}
        return self.codec.decode(columns, self.head if self.codec.needs == "hidden" else None)
