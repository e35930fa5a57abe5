"""Blocks of text as models take them: documents that share a block see each other, or do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from primekd.training.examples import IGNORED


@dataclass(frozen=True)
class BlockBatch:
    """B blocks of T tokens.

    Attributes:
        input_ids: (B, T) int64.
        position_ids: (B, T) int64, from 0 on in every document.
        labels: (B, T) int64, unshifted; IGNORED where a document begins, as nothing that it sees predicts that token.
        lengths: tokens of each document, block by block; their sum is B T.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    lengths: list[int]

    def rows(self) -> dict[str, Tensor]:
        """What a model of transformers takes, on any device. Where there is no attention mask and no cache, it makes
        one of its own in which a document ends where positions begin anew (transformers.masking_utils)."""
        return {"input_ids": self.input_ids, "position_ids": self.position_ids}

    def packed(self) -> dict[str, Any]:
        """The same for a model inside `models.attention.packed`: all documents in one row (1, B T), each attending to
        itself, without a mask. Faster on a CPU."""
        rows = {name: ids.reshape(1, -1) for name, ids in self.rows().items()}
        return rows | {"shared": 0, "lengths": self.lengths}


def block_batch(blocks: Sequence[tuple[np.ndarray, Sequence[int]]], documents_apart: bool) -> BlockBatch:
    """Blocks as tasks.text_shards.Blocks gives them, ids (T,) and document lengths, -> a batch.

    Where documents are not apart, a block is one running text, as a model reads it that is told of no boundaries.
    """
    input_ids = torch.from_numpy(np.stack([ids for ids, _ in blocks]))
    lengths = [n for ids, own in blocks for n in (own if documents_apart else [len(ids)])]
    position_ids = torch.cat([torch.arange(n) for n in lengths]).view_as(input_ids)
    return BlockBatch(input_ids, position_ids, input_ids.masked_fill(position_ids == 0, IGNORED), lengths)
