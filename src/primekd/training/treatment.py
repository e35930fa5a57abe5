"""A store as an arm treats it: a part of the items, right answers alone, first tokens alone, other items' rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from types import MappingProxyType

import torch

from primekd.capture.judged import right_answers
from primekd.config import SHUFFLED, Arm, Profile
from primekd.foundation.errors import UserError
from primekd.models import decode_response, load_tokenizer
from primekd.signals import Asked, SignalReader, SignalRows, StoredItem, concatenate, shards_hash
from primekd.tasks import Unlabelled, task_of


class LentRows:
    """Rows of a store that may be another's. `donors`: item -> whose rows it gets. `offsets`: of rows of whole texts,
    how far the teacher's stand behind the student's. Where a text is too short its rows come again."""

    def __init__(
        self, reader: SignalReader, item_ids: Sequence[str], donors: Mapping[str, str],
        offsets: Mapping[str, int] | None = None,
    ):  # fmt: skip
        self.reader, self.codec, self.manifest = reader, reader.codec, reader.manifest
        self.item_ids, self._donors, self.offsets = list(item_ids), donors, offsets

    def rows_of(self, asked: Sequence[Asked]) -> SignalRows | None:
        parts = [self._rows(*one) for one in asked]
        return None if not parts or parts[0] is None else concatenate(parts)

    def place(self, item_id: str, before: Sequence[int]) -> tuple[str, list[int], int]:
        """Whose rows an item gets, what they predict, and the number of the first that is asked for."""
        giver = self._donors.get(item_id, item_id)
        first = 0 if self.offsets is None else len(before) - 1 + self.offsets[item_id]
        return giver, self.reader.item(giver).response_ids, first

    def _rows(self, item_id: str, before: Sequence[int], response: Sequence[int]) -> SignalRows | None:
        giver, whole, first = self.place(item_id, before)
        rows = self.reader.rows(giver, whole)
        return None if rows is None else rows.part((torch.arange(len(response)) + first) % len(whole))


class TreatedSource(LentRows):
    """Gives what a reader does, of the treated items. Shuffled rows are the positive control: row t of an item's own
    text is row t of another item (from the start again where that is shorter). `right`: those of `item_ids` with the
    right answer; None if that does not matter. `unfit`: item -> why its response is no label. `dropped`: items and
    tokens left out, and why."""

    def __init__(
        self, reader: SignalReader, arm: Arm, item_ids: Sequence[str], right: set[str] | None = None, seed: int = 0,
        unfit: Mapping[str, str] = MappingProxyType({}),
    ):  # fmt: skip
        self._cut = arm.cut_tokens
        asked = item_ids[: round(arm.share * len(item_ids))]
        kept = [item for item in asked if (right is None or item in right) and item not in unfit]
        if len(kept) < 2:
            raise UserError(f"{arm.name}: {len(kept)} responses are left to train on: take more items.")
        order = list(kept) if arm.rows == SHUFFLED else []  # a cycle in random order, so that none is its own
        Random(seed).shuffle(order)
        super().__init__(reader, kept, dict(zip(order, [*order[1:], *order[:1]], strict=True)))
        lost = sum(len(reader.item(i).response_ids) - len(self.item(i).response_ids) for i in self.item_ids)
        self.dropped = {"items": len(item_ids) - len(self.item_ids), "tokens": lost}
        self.dropped |= {"unfit": dict(Counter(unfit[item] for item in asked if item in unfit))} if unfit else {}

    def item(self, item_id: str) -> StoredItem:
        """An item with as much of its response as is trained on."""
        whole = self.reader.item(item_id)
        kept = whole.response_ids[: self._cut]
        return StoredItem(item_id, whole.prompt_ids, kept, whole.truncated or len(kept) < len(whole.response_ids))

    def _rows(self, item_id: str, before: Sequence[int], response: Sequence[int]) -> SignalRows | None:
        """Raises UserError if a response is not the one that was captured."""
        if list(response) != self.item(item_id).response_ids:
            raise UserError(f"{self.reader.name}: item {item_id!r} was captured for another response than this.")
        return super()._rows(item_id, before, response)


def treated(
    profile: Profile, arm: Arm, reader: SignalReader, items: Sequence[Unlabelled], seed: int
) -> TreatedSource | SignalReader:
    """The store of an arm as it is trained on. Raises UserError if nothing says which answers are right."""
    unfit, ids = unfit_responses(profile, reader, items), [item.id for item in items]
    if not (arm.treatment or unfit):
        return reader
    right = None
    if arm.keep_right:
        right = right_answers(profile, arm.text, ids, reader.folder, shards_hash(reader.folder))
    return TreatedSource(reader, arm, ids, right, seed, unfit)


def unfit_responses(profile: Profile, reader: SignalReader, items: Sequence[Unlabelled]) -> dict[str, str]:
    """Item -> why the task takes the response to it for no label; without those that are labels."""
    tokenizer, task = load_tokenizer(profile.teacher), task_of(profile.data)
    if not task.filters:
        return {}
    stored = {item.id: reader.item(item.id) for item in items}
    texts = {item: decode_response(tokenizer, one.response_ids) for item, one in stored.items()}
    why = {item.id: task.unfit(item.question, texts[item.id], stored[item.id].truncated) for item in items}
    return {item: reason for item, reason in why.items() if reason}
