"""One shard of a signal store, without times and machine facts: who captures, when, in what order changes no byte."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from primekd.foundation import canonical_json, hash_file, hash_json, write_atomically

FORMAT = 1
PACKED = "packed"  # the column of a codec that has no fixed size a token: (bytes,) uint8 an item


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
    return f"shard-{index:05d}.safetensors"


def save_shard(
    path: Path, items: Sequence[StoredItem], columns: Sequence[dict[str, Tensor]], spec_sha256: str
) -> dict[str, Any]:
    """Writes one shard, whole or not at all; returns sha256, items, tokens and bytes of the file. `columns`: each
    item's from the codec, (T, …) but for PACKED; none where responses alone are kept."""
    for item, item_columns in zip(items, columns, strict=True):
        for name, column in item_columns.items():
            if name != PACKED and len(column) != len(item.response_ids):
                raise ValueError(f"{item.item_id}: column {name} has {len(column)} rows, not one a response token")
    numbers = {
        "prompt_ids": [t for i in items for t in i.prompt_ids],
        "response_ids": [t for i in items for t in i.response_ids],
        "prompt_lengths": [len(i.prompt_ids) for i in items],
        "response_lengths": [len(i.response_ids) for i in items],
    } | ({"packed_lengths": [len(c[PACKED]) for c in columns]} if PACKED in columns[0] else {})
    tensors = {f"row.{name}": torch.cat([c[name] for c in columns]).contiguous() for name in columns[0]}
    tensors |= {name: torch.tensor(values, dtype=torch.int32) for name, values in numbers.items()}
    tensors["truncated"] = torch.tensor([i.truncated for i in items], dtype=torch.uint8)
    header = {"items": [i.item_id for i in items], "row_hashes": [i.row_hash for i in items]}
    header["spec_sha256"] = spec_sha256
    with write_atomically(path) as temporary:
        # One entry: safetensors writes several in an order that differs from run to run.
        save_file(tensors, temporary, metadata={"primekd": canonical_json(header)})
        # Of the file that this process wrote: another worker may put its own in the same place.
        entry = {"sha256": hash_file(temporary), "items": len(items), "bytes": temporary.stat().st_size}
    return entry | {"tokens": sum(len(i.response_ids) for i in items)}
