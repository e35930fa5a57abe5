"""Ways to keep a teacher's row in few bytes: this project's codecs, published ones, and a bound.

Each is a function of one item's rows that says what a student that is trained on it takes for the teacher's
distribution, and the bytes. Those that this project does not write are charged their numbers alone, packed to bits:
nothing for counts a row, for the entropy, or for where an item begins.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from primekd.signals import StoredItem
from primekd.signals.codecs import TopKCodec
from primekd.signals.sampled import SampledCodec
from primekd.signals.shards import PACKED

HALF = 16  # bits of a float16 or bfloat16
MOST = 128  # the largest k of any method


@dataclass(frozen=True)
class Rows:
    """An item, its teacher's logits (T, V), p at the temperature, its MOST most probable tokens, its entropy (T,)."""

    item: StoredItem
    logits: Tensor
    temperature: float
    p: Tensor
    top_p: Tensor
    top_ids: Tensor
    entropy: Tensor

    @property
    def id_bits(self) -> int:
        """ceil(log2 V)."""
        return math.ceil(math.log2(self.logits.shape[1]))


def make_rows(item: StoredItem, logits: Tensor, temperature: float) -> Rows:
    """The item's rows at one temperature."""
    p = (logits / temperature).softmax(-1)
    top_p, top_ids = p.topk(min(MOST, p.shape[1]))
    return Rows(item, logits, temperature, p, top_p, top_ids, torch.special.entr(p).sum(-1).double())


@dataclass(frozen=True)
class Kept:
    """What is known of one item's rows: M tokens, each once, by row and id (M,) with their weights.

    tail: (T,), the mass of one bucket for all other tokens, or None; log_weights: (T,), the sum of weight * log(weight)
    as the method knows it, the tail's with it (minus the entropy where that is kept apart).
    """

    rows: Tensor
    ids: Tensor
    weights: Tensor
    tail: Tensor | None
    log_weights: Tensor
    bytes: float


Method = Callable[[Rows, torch.Generator], Kept]


def methods() -> list[tuple[str, float, Method]]:
    """Name, parameter (points, draws, 1 / tau or k) and function of each, in the order of the figure's legend."""
    found: list[tuple[str, float, Method]] = []
    found += [("sampled", n, partial(sampled, n)) for n in (8, 16, 32, 64, 128, 256)]
    found += [("threshold thinning", n, partial(thinned, 1 / n)) for n in (8, 16, 32, 64, 128)]
    found += [("sampling with replacement", n, partial(with_replacement, n)) for n in (12, 50, 200)]
    found += [("topk + tail, half precision", k, partial(topk_tail_packed, k)) for k in (2, 4, 8, 16, 64)]
    found += [("topk + tail, as stored", k, partial(topk_tail, k)) for k in (1, 4, 16, 64)]
    found += [("topk, renormalised", k, partial(topk_renormalised, k)) for k in (4, 8, 16, 64)]
    found += [("DistillKit, at its best", k, partial(distillkit, k, *rest)) for k, *rest in ((50, 1, 3), (128, 16, 6))]
    return found


def _kept(ids: Tensor, weights: Tensor, tail: Tensor | None, log_weights: Tensor | None, size: float) -> Kept:
    """From (T, K), where a weight of 0 is an unfilled place."""
    weights = weights.double()
    rows, places = weights.nonzero(as_tuple=True)
    if log_weights is None:
        log_weights = torch.xlogy(weights, weights).sum(-1)
        if tail is not None:
            log_weights = log_weights + torch.xlogy(tail, tail)
    return Kept(rows, ids[rows, places], weights[rows, places], tail, log_weights, size)


def sampled(points: int, rows: Rows, source: torch.Generator) -> Kept:
    """This project's codec, bytes as it writes them (with the four that say how many)."""
    codec = SampledCodec(points, rows.temperature)
    columns = codec.encode(rows.logits, rows.item)
    found = codec.decode(columns, None, rows.item)
    return _kept(found.ids, found.weights, None, -found.entropy.double(), len(columns[PACKED]) + 4)


def thinned(tau: float, rows: Rows, source: torch.Generator) -> Kept:
    """Each token by itself with probability min(1, p / tau): p above tau (in half precision), tau below."""
    chosen = torch.rand(rows.p.shape, generator=source) * tau < rows.p
    where, ids = chosen.nonzero(as_tuple=True)
    p = rows.p[where, ids]
    weights = torch.where(p >= tau, p.half().double(), tau)
    bits = rows.id_bits * len(ids) + HALF * int((p >= tau).sum())
    return Kept(where, ids, weights, None, -rows.entropy, bits / 8)


def with_replacement(draws: int, rows: Rows, source: torch.Generator) -> Kept:
    """ "Sparse Logit Sampling" (arXiv 2503.16870) with its proposal p: draws with replacement, 7 bits for a count."""
    drawn = torch.multinomial(rows.p, draws, replacement=True, generator=source)
    vocabulary = rows.p.shape[1]
    keys, counts = (drawn + vocabulary * torch.arange(len(drawn))[:, None]).unique(return_counts=True)
    size = (rows.id_bits + 7) * len(keys) / 8
    return Kept(keys // vocabulary, keys % vocabulary, counts.double() / draws, None, -rows.entropy, size)


def topk_tail(k: int, rows: Rows, source: torch.Generator) -> Kept:
    """This project's codec topk: ids and values of 32 bits."""
    codec = TopKCodec(k, rows.temperature)
    columns = codec.encode(rows.logits, rows.item)
    found = codec.decode(columns, None, rows.item)
    size = sum(c.numel() * c.element_size() for c in columns.values())
    return _kept(found.ids, found.log_probs.double().exp(), found.tail_mass.double(), None, size)


def topk_tail_packed(k: int, rows: Rows, source: torch.Generator) -> Kept:
    """The same in as few bits as the ids and log-probabilities of half precision take."""
    top = rows.top_p[:, :k].log().half().double().exp()
    tail = (1 - rows.top_p[:, :k].double().sum(-1)).clamp(min=0).half().double()
    bits = len(top) * (k * (rows.id_bits + HALF) + HALF)
    return _kept(rows.top_ids[:, :k], top, tail, None, bits / 8)


def topk_renormalised(k: int, rows: Rows, source: torch.Generator) -> Kept:
    """The k most probable tokens as if there were no others, log-probabilities in half precision."""
    top = rows.top_p[:, :k].double()
    weights = (top / top.sum(-1, keepdim=True)).log().half().double().exp()
    return _kept(rows.top_ids[:, :k], weights, None, None, len(top) * k * (rows.id_bits + HALF) / 8)


def distillkit(k: int, exact: int, terms: int, rows: Rows, source: torch.Generator) -> Kept:
    """DistillKit's compressed log-probs (its README's budget pick and recommendation), no probability beyond k.

    `exact` values in bfloat16 and a polynomial of float32 `terms` for the others, which is taken to fit exactly here:
    the true errors are larger.
    """
    bits = len(rows.p) * (k * rows.id_bits + HALF * exact + 32 * terms)
    return _kept(rows.top_ids[:, :k], rows.top_p[:, :k], None, None, bits / 8)


def entropy_bound(samples: list[tuple[Kept, list[int]]], points: int) -> float:
    """Bytes that an ideal memoryless coder takes for samples whose statistics it knows beforehand, free of charge.

    Its parts: how many tokens a row has besides the response's own, their counts, and their ids as a set (log2 m! is
    what the order of m ids is worth). A coder that has to learn these statistics takes more; one that looks at the
    context can take less.

    Args:
        samples: each item's sample of so many points, and its response's ids.
    """
    sizes, counts, ids = [], [], []
    for kept, response in samples:
        others = kept.ids != torch.tensor(response)[kept.rows]
        sizes += torch.bincount(kept.rows[others], minlength=len(response)).tolist()
        counts += (kept.weights[others] * points).round().long().tolist()
        ids += kept.ids[others].tolist()
    order = sum(math.lgamma(size + 1) for size in sizes) / math.log(2)
    return (_ideal_bits(sizes) + _ideal_bits(counts) + _ideal_bits(ids) - order) / 8


def _ideal_bits(symbols: list[int]) -> float:
    if not symbols:
        return 0.0
    occurrences = np.unique(symbols, return_counts=True)[1]
    return float(-(occurrences * np.log2(occurrences / len(symbols))).sum())
