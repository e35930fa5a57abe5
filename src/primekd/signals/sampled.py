"""The codec `sampled`: an unbiased sample of the teacher's distribution in some ten bytes a token.

How a row is drawn. With N = `points` and p = softmax(logits / temperature) laid end to end on [0, 1), N points
(u + k) / N are dropped on it, one uniform offset u a row (systematic sampling: Madow 1949). Token i weighs 1 / N for
each point that fell on it, so that

- E[weight] = p exactly, and the weights of a row sum to exactly 1: the gradient of the forward KL, q - weights, is
  unbiased and sums to 0;
- a token is kept with probability min(1, p / tau), tau = 1 / N: the fewest tokens that reach a given variance;
- a token above tau is off by less than tau, and no token's variance is above tau^2 / 4, in any row: one tau for the
  whole store is what makes the total squared error smallest for the total number of bytes.

How it is written. Token counts are small numbers; the response token's own (nearly always the largest) is what the
others leave of N, so a row on which the teacher has no doubt takes 2 bits. Ids are sorted and written as differences of
their magnitudes (a floating-point number with 6 bits after the leading one), then the bits below: tokenizers of the
BPE kind number tokens in the order in which they were merged, so frequent ones have small ids."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from primekd.config import LossConfig
from primekd.foundation.errors import UserError
from primekd.signals.bits import BitReader, floor_log2, gamma, raw, unary
from primekd.signals.rows import SampledRows
from primekd.signals.shards import PACKED, StoredItem
from primekd.teachers.protocol import Want

BLOCK_ROWS = 8  # of V probabilities at a time: a few MB, which stay in the processor's cache
ENTROPY_STEP = 1 / 16  # nats; rounding is carried on to the next row, so an item's sum is right to half a step
MANTISSA = 6  # bits of an id's magnitude below the leading one
TYPICAL_BUCKETS = 640  # magnitudes that a vocabulary of 50,000 to 130,000 has; only how short the code is depends on it


@dataclass(frozen=True)
class Draw:
    """A row's sample, rows end to end: row (M,), id (M,) rising within a row, and count (M,) of points."""

    rows: np.ndarray
    ids: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class SampledCodec:
    """N points on the distribution at one temperature; see above."""

    points: int
    temperature: float
    name = "sampled"
    needs: Want = "logits"

    def encode(self, states: Tensor, item: StoredItem) -> dict[str, Tensor]:
        parts, offsets = [], row_offsets(item.row_hash, len(states))
        for start in range(0, max(1, len(states)), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            cumulative, entropy = distribution(states[rows], self.temperature)
            draw = draw_points(cumulative, offsets[rows], self.points)
            parts.append((draw.rows + start, draw.ids, draw.counts, entropy))
        *draw, entropy = (np.concatenate(column) for column in zip(*parts, strict=True))
        response = np.array(item.response_ids, np.int64)
        return {PACKED: torch.from_numpy(pack(Draw(*draw), entropy, response))}

    def decode(self, columns: dict[str, Tensor], head: Tensor | None, item: StoredItem) -> SampledRows:
        response = np.array(item.response_ids, np.int64)
        try:
            draw, entropy = unpack(columns[PACKED].numpy(), response, self.points)
        except ValueError as error:
            raise UserError(f"The signals of item {item.item_id!r} are damaged ({error}): capture again.") from error
        sizes = np.bincount(draw.rows, minlength=len(response))
        places = np.arange(len(draw.rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        shape = len(response), int(sizes.max(initial=1))
        ids, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        ids[draw.rows, places] = draw.ids
        weights[draw.rows, places] = draw.counts / self.points
        arrays = (torch.from_numpy(x) for x in (ids, weights, entropy.astype(np.float32)))
        return SampledRows(*arrays, self.temperature)

    def refusal(self, loss: LossConfig) -> str | None:
        if loss.divergence != "forward_kl":
            return (
                f"the codec sampled keeps a sample of the teacher's tokens, which only the forward KL is linear in, "
                f"and {loss.divergence} needs the teacher's probability of every token: use the codec hidden or full"
            )
        if loss.temperature != self.temperature:
            return (
                f"the codec sampled was drawn at temperature {self.temperature:g} and cannot be reweighted to "
                f"{loss.temperature!r}: set signals.sampled_temperature to it and capture again, or use hidden or full"
            )
        return None

    def describe(self) -> dict[str, Any]:
        error = (
            f"weights are multiples of 1/{self.points}, drawn at random: their expectation is the teacher's "
            f"probability exactly, their variance at most {1 / (4 * self.points**2):.2g} a token, so the forward KL "
            f"and its gradient are unbiased; the entropy is rounded to 1/{round(1 / ENTROPY_STEP)} nat; serves the "
            "forward KL and the cross-entropy at this temperature only"
        )
        return {"name": self.name, "points": self.points, "temperature": self.temperature, "error": error}


def row_offsets(row_hash: str, rows: int) -> np.ndarray:
    """One offset in [0, 1) a row, from the item's hash alone: whoever captures draws the same. (T,) float64."""
    stream = hashlib.shake_256(f"sampled {row_hash}".encode()).digest(4 * rows)
    return np.frombuffer(stream, "<u4") / 2**32


def distribution(logits: Tensor, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits (T, V) -> the running sum of the softmax at `temperature` but for a factor a row, and its entropy in nats,
    (T, V) and (T,). Probabilities are of float32, their sum is of float64, so a tail of a millionth is there."""
    scaled = logits.float() / temperature
    scaled -= scaled.amax(-1, keepdim=True)
    weights = scaled.clamp_(min=-1e4).exp()  # a logit of -inf would make nan of the entropy
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    entropy = cumulative[:, -1].log() - torch.linalg.vecdot(weights, scaled) / cumulative[:, -1]
    return cumulative.cpu().numpy(), entropy.clamp(min=0).cpu().numpy()


def draw_points(cumulative: np.ndarray, offsets: np.ndarray, points: int) -> Draw:
    """Systematic sampling: on which token of each row the points (offset + k) / points fall. `cumulative`: (T, V), the
    running sum of weights, to whatever total; `offsets`: (T,), in [0, 1)."""
    grid = (offsets[:, None] + np.arange(points)) / points * cumulative[:, -1:]  # (T, points)
    # Token i owns [cumulative[i - 1], cumulative[i]): one without probability owns nothing.
    found = np.empty(grid.shape, np.int64)
    for row, values in enumerate(cumulative):
        found[row] = np.searchsorted(values, grid[row], side="right")
    vocabulary = cumulative.shape[1]
    keys, counts = np.unique(found + vocabulary * np.arange(len(found))[:, None], return_counts=True)
    return Draw(keys // vocabulary, keys % vocabulary, counts)


def pack(draw: Draw, entropy: np.ndarray, response: np.ndarray) -> np.ndarray:
    """A sample, the rows' entropy in nats (T,) and the response's ids (T,) -> bytes."""
    others = draw.ids != response[draw.rows]
    rows, ids, counts = draw.rows[others], draw.ids[others], draw.counts[others]
    sizes = np.bincount(rows, minlength=len(response))
    magnitudes, below, widths = _split(ids)
    gaps = np.diff(magnitudes, prepend=0)
    first = np.diff(rows, prepend=-1) > 0
    gaps[first] = magnitudes[first]
    parameters = _rice_parameters(sizes)[rows]
    steps = np.rint(np.cumsum(entropy) / ENTROPY_STEP).astype(np.int64)
    parts = (
        gamma(sizes + 1), gamma(counts), unary(gaps >> parameters), raw(gaps & ((1 << parameters) - 1), parameters),
        raw(below, widths), gamma(np.diff(steps, prepend=0) + 1),
    )  # fmt: skip
    return np.packbits(np.concatenate(parts))


def unpack(stream: np.ndarray, response: np.ndarray, points: int) -> tuple[Draw, np.ndarray]:
    """The inverse of `pack`: response tokens first in a row, entropy (T,) in nats. Raises ValueError if it is none."""
    reader, length = BitReader(stream), len(response)
    sizes = reader.gamma(length) - 1
    if sizes.max(initial=0) > points:
        raise ValueError("a row has more tokens than points")
    rows = np.repeat(np.arange(length), sizes)
    counts = reader.gamma(len(rows))
    parameters = _rice_parameters(sizes)[rows]
    gaps = reader.unary(len(rows)) << parameters
    gaps += reader.raw(parameters)
    total = np.cumsum(gaps)
    before = np.concatenate([[0], total])[np.cumsum(sizes) - sizes]  # the sum of all earlier rows' gaps
    ids = _join(total - before[rows], reader)
    entropy = (reader.gamma(length) - 1) * ENTROPY_STEP
    reader.finish()
    left = points - np.bincount(rows, counts, length).astype(np.int64)  # the response token's
    if (left < 0).any():
        raise ValueError("a row has more points than were drawn")
    kept = np.flatnonzero(left)
    order = np.argsort(np.concatenate([kept, rows]), kind="stable")
    columns = ([kept, rows], [response[kept], ids], [left[kept], counts])
    return Draw(*(np.concatenate(column)[order] for column in columns)), entropy


def _rice_parameters(sizes: np.ndarray) -> np.ndarray:
    """How many low bits of a difference are written raw, in a row of so many ids: log2 of ln 2 times its mean."""
    return floor_log2(np.maximum(1, TYPICAL_BUCKETS * 69 // (100 * (sizes + 1))))


def _split(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids -> magnitude (not falling in the id), the bits below it, and how many these are."""
    shifted = ids + (1 << MANTISSA)
    widths = floor_log2(shifted) - MANTISSA
    magnitudes = (shifted >> widths) + ((widths - 1) << MANTISSA)
    return magnitudes, shifted & ((1 << widths) - 1), widths


def _join(magnitudes: np.ndarray, reader: BitReader) -> np.ndarray:
    """Ids from their magnitudes and, read here, the bits below."""
    widths = magnitudes >> MANTISSA
    if widths.max(initial=0) > 40:
        raise ValueError("an id is out of bounds")
    leading = magnitudes - ((widths - 1) << MANTISSA)
    return (leading << widths) + reader.raw(widths) - (1 << MANTISSA)
