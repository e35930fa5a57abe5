"""Where a training gets its teacher rows from: a store (reader.py), or the teacher itself, asked at every step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from primekd.foundation.errors import UserError
from primekd.models.logits import PLAIN
from primekd.signals.codecs import Codec, FullCodec, HiddenCodec
from primekd.signals.heads import rebuilding, rebuilding_problem
from primekd.signals.rows import Asked, HiddenRows, SignalRows, concatenate
from primekd.signals.shards import StoredItem
from primekd.teachers.protocol import TeacherEngine


class SignalSource(Protocol):
    """What a trainer asks for the teacher's rows."""

    codec: Codec  # what the rows keep of the teacher, and so which losses they serve (`codecs.require_served`)
    manifest: dict[str, Any]  # `spec`, `spec_sha256`, `shards`: what the rows depend on; a stage asks for it

    def rows_of(self, asked: Sequence[Asked]) -> SignalRows | None:
        """The rows of a micro-batch's response tokens, in order; None of no tokens, or of text alone."""
        ...


def dense_codec(offers: frozenset[str]) -> Codec:
    """What is taken of a live teacher: hidden states or, where there are none, all logits."""
    return HiddenCodec() if "hidden" in offers else FullCodec()


class LiveSource:
    """A teacher that is asked while a student learns: one `score` a micro-batch, no gradient, nothing kept.

    Its rows go through a codec as those of a store do, so both are the same to a loss: hidden states or, where the
    engine offers none, all logits. `prompts`: what the teacher reads before an item's response, by id; None if what the
    student does. Raises UserError if the engine offers neither, or has not the student's V = `vocab_size` tokens."""

    def __init__(self, engine: TeacherEngine, vocab_size: int, prompts: Mapping[str, list[int]] | None = None):
        self.codec = dense_codec(engine.offers)
        if self.codec.needs not in engine.offers:
            raise UserError(f"The engine {engine.name} offers no {self.codec.needs}: name another signals.codec.")
        if engine.vocab_size != vocab_size:
            said = f"The teacher has {engine.vocab_size} tokens and the student {vocab_size}"
            raise UserError(f"{said}, so their logits do not line up: choose models of one family.")
        self._engine, self._prompts = engine, prompts
        self._head = engine.head() if self.codec.needs == "hidden" else None
        self._transform = engine.transform or PLAIN
        self._checked = self._head is None

    def rows_of(self, asked: Sequence[Asked]) -> SignalRows | None:
        """As SignalSource. Raises UserError if an item has no prompt, nothing stands before its first token, or a token
        is not the teacher's; or, seen once, if hidden states times the head are not the engine's own logits."""
        if not asked:
            return None
        items = [StoredItem(a.item_id, self._prompt(a), a.response_ids, truncated=False) for a in asked]
        prompts, responses = [item.prompt_ids for item in items], [item.response_ids for item in items]
        states, codec = self._engine.score(prompts, responses, self.codec.needs), self.codec
        pairs = zip(states, items, strict=True)
        rows = concatenate([codec.decode(codec.encode(part, item), self._head, item) for part, item in pairs])
        if isinstance(rows, HiddenRows):
            rows = replace(rows, transform=self._transform)
        if not self._checked:
            first = rows.part(slice(len(responses[0]))).to("cpu").to_logits()
            own = self._engine.own_logits(prompts[:1], responses[:1])[0]
            if problem := rebuilding_problem(rebuilding(own, first)):
                raise UserError(f"{self._engine.name}: {problem}.")
            self._checked = True
        return rows

    def _prompt(self, asked: Asked) -> list[int]:
        """The teacher's prompt for a sequence; an engine may need it as it was built, so it is handed on as it is."""
        if self._prompts is not None and asked.item_id not in self._prompts:
            raise UserError(f"The teacher has no prompt for item {asked.item_id!r}: give it one for every item.")
        prompt = asked.before_ids if self._prompts is None else self._prompts[asked.item_id]
        if not prompt:
            raise UserError(f"Nothing stands before the first token of {asked.item_id!r}, so no row predicts it.")
        if not all(0 <= token < self._engine.vocab_size for token in (*prompt, *asked.response_ids)):
            raise UserError(f"A token of {asked.item_id!r} is not in the teacher's vocabulary.")
        return prompt
