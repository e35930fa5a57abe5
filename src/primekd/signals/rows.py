"""Decoded signals: what a loss is given for N response tokens, whichever codec kept them."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


SHARED = {"head", "temperature"}  # the same for every row of a store


class _Rows:
    def to(self, device: torch.device) -> Self:
        """The same rows on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: t.to(device) for n, t in tensors.items() if isinstance(t, Tensor)})

    def part(self, rows: slice) -> Self:
        """Some of the rows."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in SHARED}
        return replace(self, **columns)


@dataclass(frozen=True)
class DenseRows(_Rows):
    """Every logit. `logits`: (N, V) float32."""

    logits: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    def to_logits(self) -> Tensor:
        """(N, V) float32."""
        return self.logits


@dataclass(frozen=True)
class HiddenRows(_Rows):
    """Final hidden states, (N, D), and the teacher's output head, (V, D): exact at every temperature."""

    hidden: Tensor
    head: Tensor

    def __len__(self) -> int:
        return len(self.hidden)

    def to_logits(self) -> Tensor:
        """(N, V) float32."""
        return self.hidden.float() @ self.head.float().T


@dataclass(frozen=True)
class TopKRows(_Rows):
    """The K most probable tokens at temperature `temperature`, and one bucket for all others.

    ids (N, K) int64; log_probs (N, K), normalised over the whole vocabulary; tail_mass (N,), the probability of the
    others; log_normaliser (N,), so that logits at that temperature are log_probs + log_normaliser; nan where the
    engine showed log-probabilities alone.
    """

    ids: Tensor
    log_probs: Tensor
    tail_mass: Tensor
    log_normaliser: Tensor
    temperature: float

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class SampledRows(_Rows):
    """An unbiased sample of the distribution at `temperature`: E[weights at a token] is its probability.

    ids (N, K) int64 and weights (N, K) float32, K the widest row's count, 0 where unfilled; entropy (N,), the
    distribution's own in nats.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor
    temperature: float

    def __len__(self) -> int:
        return len(self.ids)


SignalRows = DenseRows | HiddenRows | TopKRows | SampledRows


def concatenate(parts: list[SignalRows]) -> SignalRows:
    """Rows of several items as one, in order. All parts are of one kind."""
    first = parts[0]
    columns = {
        f.name: getattr(first, f.name) if f.name in SHARED else torch.cat([getattr(p, f.name) for p in parts])
        for f in fields(first)
    }
    return type(first)(**columns)
