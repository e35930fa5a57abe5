"""The teacher's output head, stored once beside the stores of one teacher."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from primekd.errors import UserError
from primekd.provenance import hash_file, hash_json, relative_name, write_atomically


def save_head(folder: Path, head: Tensor) -> dict[str, str]:
    """Stores the output head beside the store `folder`, once; returns its file name and sha256."""
    tensor = head.detach().cpu().contiguous()
    digest = hash_json([str(tensor.dtype), list(tensor.shape), _tensor_digest(tensor)])[:16]
    path = folder.parent / f"head-{digest}.safetensors"
    if not (path.is_file() and _holds(path, tensor)):
        with write_atomically(path) as temporary:
            save_file({"head": tensor}, temporary)
    return {"file": path.name, "sha256": hash_file(path)}


def head_is_whole(folder: Path, entry: dict[str, Any]) -> bool:
    """Whether the head that a store names is there with the bytes that it names."""
    path = folder.parent / entry["file"]
    return path.is_file() and hash_file(path) == entry["sha256"]


@lru_cache(maxsize=2)
def load_head(path: Path, digest: str) -> Tensor:
    """Reads a head, (V, D).

    Raises:
        UserError: it is missing or has other bytes.
    """
    if not path.is_file() or hash_file(path) != digest:
        raise UserError(f"{relative_name(path)} is missing or was altered: delete it and capture again.")
    with safe_open(path, framework="pt") as handle:
        return handle.get_tensor("head")


def _holds(path: Path, tensor: Tensor) -> bool:
    """Whether a file has exactly this head: a damaged one must not be vouched for anew."""
    try:
        with safe_open(path, framework="pt") as handle:
            return torch.equal(handle.get_tensor("head"), tensor)
    except SafetensorError:
        return False


def _tensor_digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.view(torch.uint8).numpy().data).hexdigest()
