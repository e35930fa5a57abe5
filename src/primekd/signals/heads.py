"""The teacher's output head, stored once beside the stores of one teacher, with what follows it there."""

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from primekd.foundation import UserError, hash_file, hash_json, relative_name, write_atomically
from primekd.models.logits import PLAIN, LogitTransform

# Nats a token. bfloat16's own rounding was 6e-5 at most on pocket's teacher and 1.7e-4 on random models with logits of
# 25; on those a cap of 30 that is left out costs 5e-3, one of 15 or any scale 0.6 and more. An unsure teacher with
# logits of 40 is 1.1e-3 from itself; pocket's teacher on plain text, read in two batch shapes, 2.2e-3, where rounding
# the logits alone makes 3.3e-4. What rounding does is measured, and five times as much is allowed on top.
MOST_REBUILDING_KL, ROUNDINGS = 2e-3, 5


def rebuilding(own: Tensor, rebuilt: Tensor) -> dict[str, Any]:
    """How far rebuilt logits are from an engine's own, (T, V) each: tokens, mean and largest KL(own || rebuilt) in nats
    and the share with the same top-1; where the engine's own are in bfloat16, what such rounding does to the other."""
    log_p, log_q, rounded = (z.double().log_softmax(-1) for z in (own, rebuilt, rebuilt.bfloat16()))
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # (T,)
    in_bfloat16 = torch.equal(own, own.bfloat16().float())
    rounding = {"rounding_kl_nats": float((log_q.exp() * (log_q - rounded)).sum(-1).mean())} if in_bfloat16 else {}
    agreement = float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean())
    distances = {"mean_kl_nats": float(divergence.mean()), "max_kl_nats": float(divergence.max())}
    return rounding | {"tokens": len(own), **distances, "top1_agreement": agreement}


def rebuilding_problem(measured: dict[str, Any] | None) -> str | None:
    """Why hidden states and head are not the teacher's own logits, by a store's `reconstruction`; None if they are."""
    most = MOST_REBUILDING_KL + ROUNDINGS * (measured or {}).get("rounding_kl_nats", 0.0)
    if not measured or measured.get("mean_kl_nats", 0.0) <= most:
        return None
    return (
        f"hidden states times the head are {measured['mean_kl_nats']:.2g} nats a token from the teacher's own logits "
        f"(at most {most:.2g}), so this engine does something else behind the head: set signals.codec to topk or full"
    )


def save_head(folder: Path, head: Tensor, transform: LogitTransform = PLAIN) -> dict[str, str]:
    """Stores head and transform beside the store `folder`, once; the file's name, which is of both, and sha256."""
    tensor = head.detach().cpu().contiguous()
    behind = {} if transform == PLAIN else {"transform": json.dumps(asdict(transform))}
    values = hashlib.sha256(tensor.view(torch.uint8).numpy().data).hexdigest()
    digest = hash_json([str(tensor.dtype), list(tensor.shape), values, *behind.values()])[:16]
    path = folder.parent / f"head-{digest}.safetensors"
    if not (path.is_file() and _holds(path, tensor, transform)):
        with write_atomically(path) as temporary:
            save_file({"head": tensor}, temporary, behind or None)
    return {"file": path.name, "sha256": hash_file(path)}


@lru_cache(maxsize=2)
def load_head(path: Path, digest: str) -> tuple[Tensor, LogitTransform]:
    """Reads a head, (V, D), and what follows it. Raises UserError if it is missing or has other bytes."""
    if not path.is_file() or hash_file(path) != digest:
        raise UserError(f"{relative_name(path)} is missing or was altered: delete it and capture again.")
    return _read(path)


def _read(path: Path) -> tuple[Tensor, LogitTransform]:
    with safe_open(path, framework="pt") as handle:
        behind = json.loads((handle.metadata() or {}).get("transform", "{}"))
        return handle.get_tensor("head"), LogitTransform(**behind)


def _holds(path: Path, tensor: Tensor, transform: LogitTransform) -> bool:
    """Whether a file has exactly this head: a damaged one must not be vouched for anew."""
    try:
        found, behind = _read(path)
    except (SafetensorError, TypeError, ValueError):
        return False
    return torch.equal(found, tensor) and behind == transform
