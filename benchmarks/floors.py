"""The two floors of each stage, operations done and bytes moved, and what this machine needs at least for them.

Operations are multiply-adds of the products counted twice; attention's own and everything elementwise are left out, so
the floors are below what any program can reach. P are the weights of all layers, E = V x D those of the output head.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.scale import Scale
from benchmarks.timing import time_once
from primekd.config import load_profile
from primekd.models.shapes import Shape, find_shape
from primekd.planning.amounts import Lengths, find_lengths

ROUNDS = 7
COPIED = 2**26  # float32 numbers, 256 MiB: more than any cache
# Stated by its maker for one H100 SXM: dense bfloat16 products, and memory.
H100 = {"operations_per_s": 989e12, "bytes_per_s": 3.35e12}


@dataclass(frozen=True)
class Floor:
    """Least work of a stage, for one `unit`."""

    stage: str
    unit: str
    operations: float
    bytes: float


def floors(
    teacher: Shape, student: Shape, lengths: Lengths, weight_bytes: float, sequences: int, batch: int, asked: int
) -> list[Floor]:
    """One entry a stage.

    Args:
        weight_bytes: of one of the teacher's weights; the student's are of two bytes.
        sequences: that generate side by side, and so share one reading of the weights.
        batch: sequences of one pass of a training step.
        asked: test items that a model answers side by side.
    """
    prompt, response = lengths.prompt, lengths.response
    layers = teacher.layers * teacher.layer_weights
    head = teacher.embedding_weights
    cache = teacher.kv_bytes(2)  # of one token
    weights = (layers + head) * weight_bytes
    own_head = student.embedding_weights
    # The student's head is read for its logits and for the gradient, the teacher's once; all are bfloat16.
    loss_operations, heads = 4 * own_head + 2 * head, 4 * own_head + 2 * head
    rows = batch * response
    own = student.layers * student.layer_weights
    return [
        Floor("generate", "response token", 2 * (layers + head), weights / sequences + (prompt + response / 2) * cache),
        Floor("read the prompt", "prompt token", 2 * layers, layers * weight_bytes / (sequences * prompt) + cache),
        Floor(
            "score in a second pass, where an engine needs one", "response token",
            2 * layers * (prompt + response) / response, layers * weight_bytes / (sequences * response),
        ),
        Floor("keep hidden states", "response token", 0, 2 * teacher.hidden),
        Floor("loss from hidden states", "response token", loss_operations, heads / rows),
        Floor(
            "training step from hidden states", "sequence",
            # Forward, and the gradient for the inputs; a frozen weight takes none.
            4 * own * (prompt + response) + response * loss_operations, (2 * 2 * own + heads) / batch,
        ),
        Floor(
            "assess", "item", 2 * own * (prompt + response) + 2 * own_head * response,
            (own + own_head) * 2 * response / asked,
        ),
    ]  # fmt: skip


def measure(scale: Scale, say=print) -> dict[str, Any]:
    """This machine's rates of products and copies, and the floors at the sizes of pocket-plain and paper.

    Returns:
        machine: {"bfloat16_per_s", "float32_per_s", "bytes_per_s"}; pocket-plain, paper: one entry a stage, with
        the seconds that it takes at least here, or on eight H100 at their maker's rates.
    """
    machine = {f"{str(t).removeprefix('torch.')}_per_s": products_per_s(t) for t in (torch.bfloat16, torch.float32)}
    machine["bytes_per_s"] = copied_per_s()
    say(", ".join(f"{name}: {value:.3g}" for name, value in machine.items()))
    here = {"operations_per_s": machine["bfloat16_per_s"], "bytes_per_s": machine["bytes_per_s"]}
    eight = {name: 8 * value for name, value in H100.items()}
    found = {"machine": machine, "stated": H100}
    for name, rates, weight_bytes in (("pocket-plain", here, 2.0), ("paper", eight, 6 / 8)):
        profile = load_profile(name)
        shapes = find_shape(profile, profile.teacher.model), find_shape(profile, profile.student.model)
        batches = profile.teacher.batch_size, profile.train.micro_batch_size, profile.assess.batch_size
        entries = floors(*shapes, find_lengths(profile), weight_bytes, *batches)
        found[name] = [asdict(entry) | {"seconds": at_least(entry, **rates)} for entry in entries]
    return found


def at_least(floor: Floor, operations_per_s: float, bytes_per_s: float) -> float:
    """Seconds: products and memory can work at the same time, so the slower of the two counts."""
    return max(floor.operations / operations_per_s, floor.bytes / bytes_per_s)


def products_per_s(dtype: torch.dtype, rows: int = 1024, width: int = 576, columns: int = 1536) -> float:
    """Operations a second of a layer's product at a training step's size, the best of some."""
    a, b = torch.randn(rows, width).to(dtype), torch.randn(width, columns).to(dtype)

    def ten() -> None:
        for _ in range(10):
            a @ b

    return 20 * rows * width * columns / min(time_once(ten) for _ in range(ROUNDS))


def copied_per_s() -> float:
    """Bytes a second, read and written, of a copy that fits into no cache."""
    a = torch.ones(COPIED)
    b = torch.empty_like(a)
    return 2 * 4 * COPIED / min(time_once(lambda: b.copy_(a)) for _ in range(ROUNDS))
