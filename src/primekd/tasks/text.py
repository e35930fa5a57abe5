"""Text becomes token ids, once: `tokenise` reads a profile's documents one after the other and writes shards of them.

Beside each shard a JSON file of its name vouches for it and says how far the source was read, so that a later call goes
on behind it. What is written depends on text, tokenizer and settings alone, however often the work was broken off."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from primekd.foundation import Meter, Progress, UserError, is_current, write_manifest
from primekd.foundation.manifests import Count, Digest, Facts, Part, checked
from primekd.foundation.stage_code import stage_code
from primekd.foundation.storage import hash_file, hash_text, read_json, relative_name, write_json
from primekd.tasks.text_shards import HELD_OUT, save_documents, token_type
from primekd.tasks.text_sources import FileText, HubText, open_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from primekd.config import Profile

SHARD_TOKENS = 2**24  # a shard ends with the batch that brings it to so many
BATCH = 32  # documents that are tokenised at once, on all cores where TOKENIZERS_PARALLELISM is true
ENDS = ("<|endoftext|>", "<|end_of_text|>")  # a chat model's tokenizer calls the end of a turn its end


class Vouch(Part):
    """What the file beside a shard says. `read` documents of the source lie before its end, where reading goes on with
    `state`, or the source has `ended`. `left_out`: how many were empty or held out; `held_out`: digests of those."""

    sha256: Digest
    tokens: Count
    documents: Count
    read: Count = 0
    ended: bool = False
    state: Facts | None = None
    left_out: dict[str, Count] = {}
    held_out: list[Digest] = []


def text_folder(profile: "Profile") -> Path:
    return profile.runs / "text"


def end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the token that ends a document. Raises UserError if there is none."""
    vocabulary = tokenizer.get_vocab()
    found = next((vocabulary[name] for name in ENDS if name in vocabulary), tokenizer.eos_token_id)
    if found is None:
        raise UserError("The tokenizer has no end-of-text token, so documents cannot be told apart: name another one.")
    return found


def begins_with_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer of its own accord puts the beginning of text in front of a text. Then it stands in front of
    every document too: whoever is asked to go on with a text has learned to read it there."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], end: int) -> list[np.ndarray]:
    """The ids of each text, (n,), with the beginning of text in front (`begins_with_bos`) and `end` behind. Words in a
    text that look like control tokens are text. Raises UserError if an id lies outside the vocabulary."""
    how = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    rows = tokenizer(list(texts), **how)["input_ids"] if texts else []
    kind, start = token_type(len(tokenizer)), [tokenizer.bos_token_id] if begins_with_bos(tokenizer) else []
    if (largest := max([end, *map(max, filter(None, rows))])) >= len(tokenizer):
        raise UserError(f"The tokenizer gave the id {largest}, and has {len(tokenizer)} tokens: name another one.")
    return [np.array([*start, *row, end], dtype=kind) for row in rows]


def tokenise(profile: "Profile", tokenizer: "PreTrainedTokenizerBase", tokenizer_sha256: str) -> Path:
    """Writes the shards of a profile's text that are not there yet; returns their folder. Raises UserError if text
    cannot be read or is too little, the folder holds text that was tokenised with other settings, or the disk is full.
    Finished shards stay, and the same call goes on behind them; the manifest's seconds are those of the last call."""
    text, folder, code = profile.text, text_folder(profile), stage_code("tokenise")
    source = open_text(text)
    inputs = {
        "source": source.facts, "tokenizer": tokenizer_sha256, "end_of_text": end_of_text(tokenizer),
        "vocabulary": len(tokenizer), "seed": profile.seed, "train_tokens": text.train_tokens,
        "held_out_documents": text.held_out_documents, "shard_tokens": SHARD_TOKENS, "batch": BATCH,
    }  # fmt: skip
    if begins_with_bos(tokenizer):  # not said where it does not: shards of such tokenizers stay what they were
        inputs["begin_of_text"] = tokenizer.bos_token_id
    if is_current(folder, inputs):
        return folder
    work = _Work(folder, inputs, source, tokenizer)
    with Meter(profile.country) as meter, Progress(profile, "tokenise", text.train_tokens, "token") as progress:
        held = work.hold_out(text.held_out_documents)
        train = work.shards(text.train_tokens, frozenset(held.held_out), progress)
    tokens, outputs = sum(shard.tokens for shard in train), [work.path(number) for number in range(len(train))]
    if tokens < text.train_tokens:
        print(f"tokenise: the source has {tokens} tokens to train on, fewer than text.train_tokens.", flush=True)
    write_manifest(
        folder, "text", inputs, [*outputs, folder / HELD_OUT], config=profile.resolved(), code=code, tokens=tokens,
        documents=sum(shard.documents for shard in train),
        left_out={name: sum(shard.left_out[name] for shard in train) for name in ("empty", "held_out")},
        held_out={"documents": held.documents, "tokens": held.tokens}, **meter.facts,
    )  # fmt: skip
    return folder


class _Work:
    """The shards of one folder. Raises UserError if it belongs to other settings."""

    def __init__(self, folder: Path, inputs: dict[str, Any], source: FileText | HubText, tokenizer):
        self.folder, self.inputs, self.source, self.tokenizer = folder, inputs, source, tokenizer
        self.settings = folder / "settings.json"
        found = read_json(self.settings) if self.settings.is_file() else inputs
        found = found if isinstance(found, dict) else {}
        if changed := [key for key in found | inputs if found.get(key) != inputs.get(key)]:
            said = f"was tokenised with other settings ({', '.join(changed)})"
            raise UserError(f"{relative_name(folder)} {said}: move it away and tokenise the text again.")

    def path(self, number: int) -> Path:
        return self.folder / f"train-{number:05d}.safetensors"

    def digest(self, text: str) -> str:
        """By which documents are held out, the same for texts that differ in white space alone."""
        return hash_text(f"{self.inputs['seed']} {' '.join(text.split())}")

    def whole(self, path: Path) -> Vouch | None:
        """What vouches for a shard, if it has the bytes that are vouched for."""
        try:
            vouch = Vouch(**checked(path.with_suffix(".json"), Vouch, ""))
            return vouch if hash_file(path) == vouch.sha256 else None
        except (UserError, OSError):  # absent, cut short or edited: it is made anew
            return None

    def _write(self, path: Path, documents: Sequence[np.ndarray], **facts: Any) -> Vouch:
        if not self.settings.is_file():
            write_json(self.settings, self.inputs)
        digest = save_documents(path, documents, token_type(len(self.tokenizer)))
        vouch = Vouch(sha256=digest, tokens=sum(map(len, documents)), documents=len(documents), **facts)
        write_json(path.with_suffix(".json"), vouch.model_dump())
        return vouch

    def hold_out(self, count: int) -> Vouch:
        """The shard of those documents whose digests are smallest. Raises UserError if there are too few."""
        if found := self.whole(self.folder / HELD_OUT):
            return found
        chosen: dict[str, str] = {}
        for text in filter(str.strip, islice(self.source.documents(), self.source.pool)):
            chosen[self.digest(text)] = text
            if len(chosen) > count:
                del chosen[max(chosen)]
        if len(chosen) < count:
            raise UserError(f"text.held_out_documents is {count}; the source has {len(chosen)} documents: lower it.")
        documents = encode(self.tokenizer, [chosen[digest] for digest in sorted(chosen)], self.inputs["end_of_text"])
        return self._write(self.folder / HELD_OUT, documents, held_out=sorted(chosen))

    def shards(self, most: int, held: frozenset[str], progress: Progress) -> list[Vouch]:
        """What vouches for each training shard, of `most` tokens or up to one document more; made where it is not."""
        done, tokens, stream = [Vouch(sha256="0" * 64, tokens=0, documents=0)], 0, None  # nothing is read yet
        while tokens < most and not done[-1].ended:
            if found := self.whole(self.path(len(done) - 1)):
                stream = None
                progress.advance(found.tokens)
            else:
                stream = stream or self.source.documents(done[-1].read, done[-1].state)
                documents, facts = self._read(stream, most - tokens, held, progress)
                facts["read"] += done[-1].read
                found = self._write(self.path(len(done) - 1), documents, **facts)
            done.append(found)
            tokens += found.tokens
        return done[1:]

    def _read(
        self, stream: Iterator[str], most: int, held: frozenset[str], progress: Progress
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The documents of one shard, by whole batches, and what its vouch says of them."""
        documents, counts, size, ended = [], Counter(), 0, False
        while size < min(most, SHARD_TOKENS) and not ended:
            texts = list(islice(stream, BATCH))
            ended = len(texts) < BATCH
            full = list(filter(str.strip, texts))
            kept = [text for text in full if self.digest(text) not in held]
            counts.update(read=len(texts), empty=len(texts) - len(full), held_out=len(full) - len(kept))
            for ids in encode(self.tokenizer, kept, self.inputs["end_of_text"]):
                if size < most:
                    documents.append(ids)
                    size += len(ids)
                    progress.advance(len(ids))
        left_out = {name: counts[name] for name in ("empty", "held_out")}
        return documents, {"read": counts["read"], "ended": ended, "state": self.source.state, "left_out": left_out}
