"""What a signal source is asked and what it gives: the rows of N response tokens, whichever codec they are of."""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from primekd.models.logits import PLAIN, LogitTransform

SHARED = {"head", "temperature", "transform"}  # the same for every row of a store


@lru_cache(maxsize=1)
def _kept_on(shared: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device: the teacher's head, gigabytes for a large teacher, is not copied for every batch."""
    return shared.to(device)


class Asked(NamedTuple):
    """One sequence that rows are wanted for: one a token of `response_ids`, row t being what predicts token t. Before
    them the student reads `before_ids`: its prompt or, of a block of text, the first token, which nothing predicts."""

    item_id: str
    before_ids: list[int]
    response_ids: list[int]


class _Rows:
    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    @property
    def device(self) -> torch.device:
        return getattr(self, fields(self)[0].name).device

    def to(self, device: torch.device) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.type is Tensor}
        there = {name: _kept_on(t, device) if name in SHARED else t.to(device) for name, t in tensors.items()}
        return replace(self, **there)

    def part(self, rows: slice) -> Self:
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in SHARED}
        return replace(self, **columns)


@dataclass(frozen=True)
class DenseRows(_Rows):
    """Every logit. `logits`: (N, V) float32."""

    logits: Tensor

    def to_logits(self) -> Tensor:
        """(N, V) float32."""
        return self.logits


@dataclass(frozen=True)
class HiddenRows(_Rows):
    """Final hidden states, (N, D), the teacher's head, (V, D), and what follows it: exact at every temperature."""

    hidden: Tensor
    head: Tensor
    transform: LogitTransform = PLAIN

    def to_logits(self) -> Tensor:
        """(N, V) float32."""
        return self.transform.apply_(self.hidden.float() @ self.head.float().T)


@dataclass(frozen=True)
class TopKRows(_Rows):
    """The K most probable tokens at `temperature`, and one bucket for all others."""

    ids: Tensor  # (N, K) int64
    log_probs: Tensor  # (N, K), normalised over the whole vocabulary
    tail_mass: Tensor  # (N,), the probability of the others
    log_normaliser: Tensor  # (N,), which makes logits of log_probs; nan where the engine showed log_probs alone
    temperature: float


@dataclass(frozen=True)
class SampledRows(_Rows):
    """An unbiased sample of the distribution at `temperature`: E[weights at a token] is its probability."""

    ids: Tensor  # (N, K) int64, K the widest row's count, 0 where unfilled
    weights: Tensor  # (N, K) float32
    entropy: Tensor  # (N,), the distribution's own in nats
    temperature: float


SignalRows = DenseRows | HiddenRows | TopKRows | SampledRows


def concatenate(parts: list[SignalRows]) -> SignalRows:
    """Rows of several items as one, in order. All parts are of one kind."""
    first = parts[0]
    if isinstance(first, SampledRows):  # as wide as the widest
        width = max(part.ids.shape[1] for part in parts)
        wide = [(part, (0, width - part.ids.shape[1])) for part in parts]
        parts = [replace(p, ids=F.pad(p.ids, pad), weights=F.pad(p.weights, pad)) for p, pad in wide]
    columns = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(first) if f.name not in SHARED}
    return replace(first, **columns)
