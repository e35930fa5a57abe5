"""Signals on disk: bytes a token, writing and reading, against `torch.save` of whole logits; growth in items."""

import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import peak_bytes
from benchmarks.scale import Scale
from benchmarks.stored_signals import as_needed, codec_at, examples_of, read_store, score, write_store
from benchmarks.timing import alternate, shown, spread, summary
from primekd.config import load_profile
from primekd.signals import Codec, SignalWriter, StoredItem
from primekd.signals.heads import save_head

CODECS = ("full", "hidden", "topk", "sampled")
TORCH = "torch.save of logits"
GROWTH_TOKENS, GROWTH_WIDTH, GROWTH_VOCABULARY, ITEMS_A_SHARD = 100, 576, 4096, 32


def measure(scale: Scale, say=print) -> dict[str, Any]:
    """Real signals of the profile's teacher through every codec, and a growing store.

    Returns:
        tokens; alternatives: {name: {"bytes_per_token", "entropy_bytes_per_token", "write", "read"}} with tokens a
        second; write_ratio and read_ratio to `torch.save`'s; response_bytes_per_token: the entropy of the teacher's own
        next token; growth: {items: {"seconds", "peak_mib", "bytes"}} of reading a store of hidden states.
    """
    profile = load_profile(scale.profile)
    items, states, head = score(profile, examples_of(profile, scale.store_items))
    tokens = sum(map(len, states))
    codecs = {name: codec_at(name, profile.loss.temperature) for name in CODECS}
    seen = {name: as_needed(codec, states, head) for name, codec in codecs.items()}
    logits = seen["full"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        writes = {TORCH: partial(torch.save, logits, folder / "logits.pt")}
        reads = {TORCH: partial(torch.load, folder / "logits.pt", weights_only=True)}
        for name, codec in codecs.items():
            writes[name] = partial(write_store, folder / name, codec, items, seen[name], head)
            reads[name] = partial(read_store, folder / name)
        write_times = alternate(writes, scale.store_rounds, say=partial(say, "writing"))
        read_times = alternate(reads, scale.store_rounds, say=partial(say, "reading"))
        sizes = {name: (folder / name / "shard-00000.safetensors").stat().st_size for name in codecs}
        sizes[TORCH] = (folder / "logits.pt").stat().st_size
    found = {}
    for name, size in sizes.items():
        found[name] = {"bytes_per_token": size / tokens}
        for verb, times in (("write", write_times), ("read", read_times)):
            found[name][verb] = {"tokens_per_s": spread([tokens / seconds for seconds in times[name]])}
            found[name][verb]["ratio"] = summary(times, TORCH)[name]["ratio"]
        if name in codecs:
            found[name]["entropy_bytes_per_token"] = _entropy_bytes(codecs[name], items, seen[name]) / tokens
        say(
            f"{name}: {found[name]['bytes_per_token']:.1f} bytes a token; time against torch.save: writing "
            f"{shown(found[name]['write']['ratio'])}, reading {shown(found[name]['read']['ratio'])}"
        )
    return {
        "tokens": tokens,
        "vocabulary": len(head),
        "temperature": profile.loss.temperature,
        "alternatives": found,
        "response_bytes_per_token": _next_token_bytes(logits),
        "growth": _growth(scale, say),
    }


def byte_entropy(column: Tensor) -> float:
    """Bytes that an ideal coder needs for a column if it knows how often each byte occurs at each place of a value."""
    places = column.contiguous().reshape(-1).view(torch.uint8).reshape(-1, column.element_size()).long()
    bits = 0.0
    for place in places.T:
        shares = torch.bincount(place, minlength=256).double() / len(place)
        bits += len(place) * torch.special.entr(shares).sum().item() / math.log(2)
    return bits / 8


def _entropy_bytes(codec: Codec, items: list[StoredItem], seen: list[Tensor]) -> float:
    columns = [codec.encode(s, item) for item, s in zip(items, seen, strict=True)]
    return sum(byte_entropy(torch.cat([c[name].flatten() for c in columns])) for name in columns[0])


def _next_token_bytes(logits: list[Tensor]) -> float:
    entropies = torch.cat([torch.special.entr(x.double().softmax(-1)).sum(-1) for x in logits])
    return entropies.mean().item() / math.log(2) / 8


def _growth(scale: Scale, say) -> dict[str, Any]:
    """Opening a store and reading every row, for 1x, 2x, 4x, 8x items of random hidden states."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in scale.growth_items:
            folder = Path(temporary) / str(count) / "store"
            _write_growing(folder, count)
            times = alternate({"read": partial(read_store, folder)}, scale.store_rounds)["read"]
            peak = peak_bytes("benchmarks.stores:prepare_reading", str(folder)) / 2**20
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            found[str(count)] = {"seconds": spread(times), "peak_mib": peak, "bytes": size}
            say(f"reading {count} items, {size / 2**20:.0f} MiB: {shown(spread(times))} s, {peak:.0f} MiB at the peak")
    return found


def prepare_reading(folder: str):
    """For the measurement of memory."""
    return partial(read_store, Path(folder))


def _write_growing(folder: Path, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codec = codec_at("hidden", 1.0)
    writer = SignalWriter(folder, {"codec": codec.describe()}, math.ceil(count / ITEMS_A_SHARD))
    writer.facts["head"] = save_head(folder, torch.zeros(GROWTH_VOCABULARY, GROWTH_WIDTH, dtype=torch.bfloat16))
    for shard in range(writer.count):
        numbers = range(shard * ITEMS_A_SHARD, min(count, (shard + 1) * ITEMS_A_SHARD))
        items = [StoredItem(str(n), [1, 2], [3] * GROWTH_TOKENS, truncated=False) for n in numbers]
        states = [torch.randn(GROWTH_TOKENS, GROWTH_WIDTH, generator=generator).bfloat16() for _ in items]
        writer.write_shard(shard, items, [codec.encode(s, item) for s, item in zip(states, items, strict=True)])
    writer.complete()
