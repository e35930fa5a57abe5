"""Tokenised text on disk, and the blocks that training reads from it.

    <folder>/train-00000.safetensors   `tokens` (n,) uint16, or uint32 where the vocabulary needs it; `lengths` (d,)
                                       uint32, tokens of each document, its end-of-text token included
    <folder>/held-out.safetensors      the same of the documents that nobody trains on
    <folder>/manifest.json             sha256 of each, and what they were made from

The training shards, one behind the other, are one stream of tokens."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from primekd.foundation import MANIFEST, UserError, altered_outputs, read_manifest
from primekd.foundation.storage import hash_file, relative_name, write_atomically

HELD_OUT = "held-out.safetensors"


def token_type(vocabulary: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocabulary <= 2**16 else np.uint32


def save_documents(path: Path, documents: Sequence[np.ndarray], kind: type[np.unsignedinteger]) -> str:
    """Writes documents' ids (n,) as one shard, whole or not at all; its sha256. Raises UserError for a full disk."""
    lengths = np.array([len(ids) for ids in documents], dtype=np.uint32)
    tokens = np.concatenate([np.empty(0, kind), *documents]).astype(kind)
    with write_atomically(path) as temporary:
        save_file({"tokens": tokens, "lengths": lengths}, temporary)
        return hash_file(temporary)


def open_folder(folder: Path, tokenizer_sha256: str | None = None) -> list[Path]:
    """The training shards of a folder, after a look at the bytes of every file in it. Raises UserError if the text is
    not tokenised to its end, a shard is missing or altered, or `tokenizer_sha256` is another tokenizer's."""
    manifest = read_manifest(folder / MANIFEST)
    if altered := altered_outputs(folder / MANIFEST, manifest):
        fix = "tokenise the text again, which makes this shard anew and keeps the others"
        raise UserError(f"{relative_name(folder / altered[0])} is missing, cut short or altered: {fix}.")
    if tokenizer_sha256 not in (None, manifest["inputs"].get("tokenizer")):
        said = "was tokenised with another tokenizer than this model's"
        raise UserError(f"{relative_name(folder)} {said}: move it away and tokenise the text again.")
    return [folder / name for name in sorted(manifest["outputs"]) if name != HELD_OUT]


def held_out(folder: Path, tokenizer_sha256: str | None = None) -> list[np.ndarray]:
    """The ids (n,) int64 of every held-out document, its end-of-text token last. Raises UserError as open_folder."""
    open_folder(folder, tokenizer_sha256)
    with safe_open(folder / HELD_OUT, "np") as shard:
        tokens, lengths = (shard.get_tensor(name).astype(np.int64) for name in ("tokens", "lengths"))
    return np.split(tokens, np.cumsum(lengths)[:-1])


class Blocks:
    """Blocks of T = `block_tokens` consecutive tokens of the training stream, read as they are asked for.

    Every epoch has each block once, in an order of its own; a last part shorter than a block is left out. Position i is
    block i of the first epoch, and positions go on into the next epochs: whoever knows i knows what was read, on any
    machine. No file stays open. Raises UserError as open_folder, or if there is less text than one block."""

    def __init__(self, folder: Path, block_tokens: int, seed: int, tokenizer_sha256: str | None = None):
        self.block_tokens, self.seed, self._shards = block_tokens, seed, open_folder(Path(folder), tokenizer_sha256)
        lengths = []
        for path in self._shards:
            with safe_open(path, "np") as shard:
                lengths.append(shard.get_tensor("lengths"))
        self._starts = np.cumsum([0, *(own.sum(dtype=np.int64) for own in lengths)])  # of each shard, and the end
        self._ends = np.cumsum(np.concatenate(lengths), dtype=np.int64)  # of each document, in the stream
        if not len(self):
            there = f"{self._starts[-1]} tokens to train on, less than one block of {block_tokens}"
            raise UserError(f"{relative_name(folder)} holds {there}: lower text.block_tokens, or name more text.")

    def __len__(self) -> int:
        """Blocks an epoch."""
        return int(self._starts[-1]) // self.block_tokens

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[int]]]:
        """The first epoch."""
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> tuple[np.ndarray, list[int]]:
        """Ids (T,) int64, and the tokens of each document in them, T in all; the outer ones may be cut."""
        if position < 0:
            raise IndexError(position)
        epoch, place = divmod(int(position), len(self))
        start = shuffled(place, len(self), self.seed, epoch) * self.block_tokens
        end = start + self.block_tokens
        inside = self._ends[np.searchsorted(self._ends, start, "right") : np.searchsorted(self._ends, end, "left")]
        return self._tokens(start, end), np.diff([start, *inside, end]).tolist()

    def _tokens(self, start: int, end: int) -> np.ndarray:
        parts, shard = [], int(np.searchsorted(self._starts, start, "right")) - 1
        while start < end:
            first, until = self._starts[shard], min(end, self._starts[shard + 1])
            with safe_open(self._shards[shard], "np") as file:  # memory-mapped
                parts.append(file.get_slice("tokens")[int(start - first) : int(until - first)])
            start, shard = until, shard + 1
        return np.concatenate(parts).astype(np.int64)


def shuffled(index: int, count: int, seed: int, epoch: int) -> int:
    """Where `index` goes in a permutation of range(count), which depends on seed and epoch alone and is nowhere kept.

    A Feistel network of four rounds over the smallest even number of bits that holds `count`, repeated until it falls
    below `count` (cycle walking): Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002."""
    bits = (max(count - 1, 1).bit_length() + 1) // 2
    while True:
        left, right = index >> bits, index & ((1 << bits) - 1)
        for turn in range(4):
            digest = hashlib.blake2b(f"{seed} {epoch} {turn} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & ((1 << bits) - 1))
        index = left << bits | right
        if index < count:
            return index
