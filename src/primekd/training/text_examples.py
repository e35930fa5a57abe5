"""Text as training examples: a block of it is one example a document, so that no document sees another."""

from collections.abc import Sequence

import numpy as np

from primekd.signals import Asked
from primekd.tasks.text_shards import Blocks
from primekd.training.examples import Example, block_example


class TextExamples(Sequence[list[Example]]):
    """Blocks `first` to `end` of a profile's text in their own order, read when they are asked for.

    Args:
        apart: whether a block's documents are examples of their own; if not, it is one running text.

    Attributes:
        lengths: tokens of each block. tokens: of all blocks.
    """

    def __init__(self, blocks: Blocks, first: int, end: int, apart: bool):
        self._blocks, self._first, self._apart = blocks, first, apart
        self.lengths = [blocks.block_tokens] * (end - first)
        self.tokens = sum(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> list[Example]:
        """The examples of one block; what is one token long has nothing to predict, and is left out."""
        if not 0 <= place < len(self):
            raise IndexError(place)
        ids, lengths = self._blocks[self._first + place]
        parts = np.split(ids, np.cumsum(lengths)[:-1]) if self._apart else [ids]
        return [
            block_example(f"{self._first + place}.{number}", part.tolist())
            for number, part in enumerate(parts) if len(part) > 1
        ]  # fmt: skip


class AskedBatches(Sequence[list[Asked]]):
    """What a signal source will be asked in each micro-batch of `size` blocks, read when it is asked for."""

    def __init__(self, examples: TextExamples, size: int):
        self._examples, self._size = examples, size

    def __len__(self) -> int:
        return -(-len(self._examples) // self._size)

    def __getitem__(self, number: int) -> list[Asked]:
        places = range(number * self._size, min((number + 1) * self._size, len(self._examples)))
        sequences = [(e.item_id, e.sequence.input_ids) for place in places for e in self._examples[place]]
        return [Asked(name, list(ids[:1]), list(ids[1:])) for name, ids in sequences]


def document_examples(documents: Sequence[np.ndarray], block_tokens: int) -> list[Example]:
    """Held-out documents (n,), each one example of at most a block: what lies behind is left out."""
    return [block_example(str(n), ids[:block_tokens].tolist()) for n, ids in enumerate(documents) if len(ids) > 1]
