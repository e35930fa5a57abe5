"""A store as an arm treats it before training: other items' rows, right answers alone, the first tokens alone."""

from collections.abc import Sequence
from random import Random

import torch

from primekd.config import Profile
from primekd.config.arm import SHUFFLED, Arm
from primekd.foundation.errors import UserError
from primekd.signals import Asked, SignalReader, SignalRows, StoredItem
from primekd.signals.rows import concatenate


class TreatedSource:
    """Gives what a reader does, of the treated items.

    Shuffled rows are the positive control: the text is an item's own, and row t is row t of another item (from the
    start again where that is shorter), as in a release whose rows were looked up by the step's number after a shuffle.

    Args:
        right: those of `item_ids` whose response has the right answer; None if that does not matter.
        seed: draws which item gives its rows to which.

    Attributes:
        item_ids: the items that are left, in order.
        dropped: what was left out: items, and tokens of those that are left.
    """

    def __init__(
        self, reader: SignalReader, arm: Arm, item_ids: Sequence[str], right: set[str] | None = None, seed: int = 0
    ):
        self.reader, self.codec, self.manifest = reader, reader.codec, reader.manifest
        self._cut = arm.cut_tokens
        self.item_ids = [item for item in item_ids if right is None or item in right]
        if len(self.item_ids) < 2:
            raise UserError(f"{arm.name}: {len(self.item_ids)} responses are left to train on: take more items.")
        self._donors = _donors(self.item_ids, seed) if arm.rows == SHUFFLED else {}
        lost = sum(len(reader.item(i).response_ids) - len(self.item(i).response_ids) for i in self.item_ids)
        self.dropped = {"items": len(item_ids) - len(self.item_ids), "tokens": lost}

    def item(self, item_id: str) -> StoredItem:
        """An item with as much of its response as is trained on."""
        whole = self.reader.item(item_id)
        kept = whole.response_ids[: self._cut]
        return StoredItem(item_id, whole.prompt_ids, kept, whole.truncated or len(kept) < len(whole.response_ids))

    def rows_of(self, asked: Sequence[Asked]) -> SignalRows | None:
        """As SignalSource. Raises UserError if a response is not the one that was captured."""
        parts = [self._rows(item_id, response_ids) for item_id, _, response_ids in asked]
        return None if not parts or parts[0] is None else concatenate(parts)

    def _rows(self, item_id: str, response_ids: Sequence[int]) -> SignalRows | None:
        if list(response_ids) != self.item(item_id).response_ids:
            raise UserError(f"{self.reader.name}: item {item_id!r} was captured for another response than this.")
        giver = self._donors.get(item_id, item_id)
        whole = self.reader.item(giver).response_ids
        rows = self.reader.rows(giver, whole)
        return None if rows is None else rows.part(torch.arange(len(response_ids)) % len(whole))


def _donors(item_ids: Sequence[str], seed: int) -> dict[str, str]:
    """Item -> another one: a cycle through all of them in random order, so that none is its own."""
    order = list(item_ids)
    Random(seed).shuffle(order)
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def treated(profile: Profile, arm: Arm, reader: SignalReader, item_ids: Sequence[str], seed: int) -> TreatedSource:
    """The store of an arm as it is trained on. Raises UserError if nothing says which answers are right."""
    from primekd.capture.judged import right_answers

    right = right_answers(profile, arm.text, item_ids) if arm.keep_right else None
    return TreatedSource(reader, arm, item_ids, right, seed)
