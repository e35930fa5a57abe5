"""Text becomes token ids, once: `tokenise` reads a profile's documents one after the other and writes shards of them.

Beside each shard a JSON file of its name vouches for it and says how far the source was read, so that a later call goes
on behind it. What is written depends on text, tokenizer and settings alone, however often the work was broken off.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from primekd.foundation.errors import UserError
from primekd.foundation.manifests import Count, Digest, Facts, Part, checked
from primekd.foundation.progress import Progress
from primekd.foundation.provenance import (
    hash_file,
    hash_text,
    is_current,
    now,
    read_json,
    relative_name,
    write_json,
    write_manifest,
)
from primekd.foundation.stage_code import stage_code
from primekd.tasks.text_shards import HELD_OUT, save_documents, token_type
from primekd.tasks.text_sources import FileText, HubText, open_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from primekd.config import Profile

SHARD_TOKENS = 2**24  # a shard ends with the batch that brings it to so many
BATCH = 32  # documents that are tokenised at once
POOL = 10  # held-out documents are chosen among so many times as many
ENDS = ("<|endoftext|>", "<|end_of_text|>")  # where a chat model's tokenizer calls the end of a turn its end


class Vouch(Part):
    """What the file beside a shard says: `read` documents of the source lie before its end, and `ended` if that is the
    source's too; `state` as of a source."""

    sha256: Digest
    tokens: Count
    documents: Count
    read: Count
    ended: bool
    state: Facts | None
    left_out: dict[str, Count]
    held_out: list[Digest] | None


def text_folder(profile: "Profile") -> Path:
    """runs/<profile>/text/: shards and their manifest."""
    return profile.runs / "text"


def end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the token that ends a document. Raises UserError if there is none."""
    vocabulary = tokenizer.get_vocab()
    found = next((vocabulary[name] for name in ENDS if name in vocabulary), tokenizer.eos_token_id)
    if found is None:
        raise UserError("The tokenizer has no end-of-text token, so documents cannot be told apart: name another one.")
    return found


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, (n,), and the end of text behind it. Words in a text that look like control tokens are
    text. Raises UserError if an id lies outside the vocabulary."""
    rows = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    kind, end = token_type(len(tokenizer)), end_of_text(tokenizer)
    if (largest := max([end, *map(max, filter(None, rows))])) >= len(tokenizer):
        raise UserError(f"The tokenizer gave the id {largest}, and has {len(tokenizer)} tokens: name another one.")
    return [np.array([*row, end], dtype=kind) for row in rows]


def tokenise(profile: "Profile", tokenizer: "PreTrainedTokenizerBase", tokenizer_sha256: str) -> Path:
    """Writes the shards of a profile's text that are not there yet; returns their folder.

    Args:
        tokenizer_sha256: `models.tokenizers.tokenizer_hash` of it.

    Raises:
        UserError: text cannot be read or is too little, the folder holds text that was tokenised with other settings,
            or the disk is full. Finished shards stay, and the same call goes on behind them.
    """
    text, folder, start, code = profile.text, text_folder(profile), now(), stage_code("tokenise")
    source = open_text(text)
    inputs = {
        "source": source.facts, "tokenizer": tokenizer_sha256, "end_of_text": end_of_text(tokenizer),
        "vocabulary": len(tokenizer), "seed": profile.seed, "train_tokens": text.train_tokens,
        "held_out_documents": text.held_out_documents, "shard_tokens": SHARD_TOKENS, "batch": BATCH,
    }  # fmt: skip
    if is_current(folder, inputs):
        return folder
    _refuse_others(folder, inputs)
    with Progress(profile, "tokenise", text.train_tokens, "token") as progress:
        held = _hold_out(folder, source, tokenizer, text.held_out_documents, profile.seed)
        work = _Work(folder, source, tokenizer, profile.seed, frozenset(held.held_out))
        train = work.shards(text.train_tokens, progress)
    tokens = sum(shard.tokens for shard in train)
    if tokens < text.train_tokens:
        print(f"tokenise: the source has {tokens} tokens to train on, fewer than text.train_tokens.", flush=True)
    names = [_shard_name(number) for number in range(len(train))]
    write_manifest(
        folder, "text", inputs, [folder / name for name in (*names, HELD_OUT)], config=profile.resolved(), code=code,
        start=start, end=now(), tokens=tokens, documents=sum(shard.documents for shard in train),
        left_out=dict(sum((Counter(shard.left_out) for shard in train), Counter())),
        held_out={"documents": held.documents, "tokens": held.tokens},
    )  # fmt: skip
    return folder


def _shard_name(number: int) -> str:
    return f"train-{number:05d}.safetensors"


def _refuse_others(folder: Path, inputs: dict[str, Any]) -> None:
    """Raises UserError if the folder belongs to other settings."""
    path = folder / "settings.json"
    if not path.is_file():
        return write_json(path, inputs)
    found = read_json(path)
    if changed := [key for key in inputs if not isinstance(found, dict) or found.get(key) != inputs[key]]:
        raise UserError(
            f"{relative_name(folder)} was tokenised with other settings ({', '.join(changed)}): move it away and "
            "tokenise the text again."
        )
    return None


def _whole(path: Path) -> Vouch | None:
    """What vouches for a shard, if it has the bytes that are vouched for."""
    beside = path.with_suffix(".json")
    try:
        vouch = Vouch.model_validate(checked(beside, Vouch, "It is made anew."))
    except UserError:
        return None
    return vouch if path.is_file() and hash_file(path) == vouch.sha256 else None


def _write(path: Path, documents: Sequence[np.ndarray], kind: type, **facts: Any) -> Vouch:
    """A shard, and then what vouches for it."""
    digest, tokens = save_documents(path, documents, kind), sum(map(len, documents))
    vouch = Vouch(sha256=digest, tokens=tokens, documents=len(documents), **facts)
    write_json(path.with_suffix(".json"), vouch.model_dump())
    return vouch


def _digest(text: str, seed: int) -> str:
    """By which a document is held out, the same for texts that differ in white space alone."""
    return hash_text(f"{seed} {' '.join(text.split())}")


def _hold_out(folder: Path, source: FileText | HubText, tokenizer, count: int, seed: int) -> Vouch:
    """The shard of held-out documents: those whose digests are smallest. Raises UserError if there are too few."""
    if (found := _whole(folder / HELD_OUT)) and found.held_out:
        return found
    candidates = _distinct(islice(source.documents(), POOL * count), seed)
    chosen = heapq.nsmallest(count, candidates)
    if len(chosen) < count:
        raise UserError(
            f"text.held_out_documents is {count}, and the source has {len(chosen)} documents: lower it, or name more."
        )
    documents = encode(tokenizer, [text for _, text in chosen])
    return _write(
        folder / HELD_OUT, documents, token_type(len(tokenizer)), read=0, ended=False, state=None, left_out={},
        held_out=[digest for digest, _ in chosen],
    )  # fmt: skip


def _distinct(texts: Iterable[str], seed: int) -> Iterator[tuple[str, str]]:
    """Digest and text of every document that has any, each once."""
    seen: set[str] = set()
    for text in texts:
        if text.strip() and (digest := _digest(text, seed)) not in seen:
            seen.add(digest)
            yield digest, text


class _Work:
    """The training shards of one folder, from the first on."""

    def __init__(self, folder: Path, source: FileText | HubText, tokenizer, seed: int, held: frozenset[str]):
        self.folder, self.source, self.tokenizer, self.seed, self.held = folder, source, tokenizer, seed, held

    def shards(self, most: int, progress: Progress) -> list[Vouch]:
        """What vouches for each shard, up to `most` tokens in all; those that are missing or damaged are made."""
        done: list[Vouch] = []
        tokens, stream = 0, None
        while tokens < most and not (done and done[-1].ended):
            path, before = self.folder / _shard_name(len(done)), done[-1] if done else None
            if (found := _whole(path)) is not None:
                stream = None
                progress.advance(found.tokens)
            else:
                read = before.read if before else 0
                stream = stream or self.source.documents(read, before.state if before else None)
                found = self._make(path, stream, read, most - tokens, progress)
            done.append(found)
            tokens += found.tokens
        return done

    def _make(self, path: Path, stream: Iterator[str], read: int, most: int, progress: Progress) -> Vouch:
        documents: list[np.ndarray] = []
        left_out, size, ended = Counter(empty=0, held_out=0), 0, False
        while size < min(most, SHARD_TOKENS) and not ended:
            texts = list(islice(stream, BATCH))
            read, ended = read + len(texts), len(texts) < BATCH
            full = [text for text in texts if text.strip()]
            kept = [text for text in full if _digest(text, self.seed) not in self.held]
            left_out.update(empty=len(texts) - len(full), held_out=len(full) - len(kept))
            for ids in encode(self.tokenizer, kept):
                if size < most:
                    documents.append(ids)
                    size += len(ids)
                    progress.advance(len(ids))
        return _write(
            path, documents, token_type(len(self.tokenizer)), read=read, ended=ended, state=self.source.state,
            left_out=dict(left_out), held_out=None,
        )  # fmt: skip
