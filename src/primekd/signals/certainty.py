"""How sure a teacher was of each token that it wrote, from stored rows: entropy, and its most probable tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from primekd.signals.reader import SignalReader
from primekd.signals.rows import DenseRows, HiddenRows, SampledRows, SignalRows

TOP = 5  # tokens that are shown of a distribution
ROWS = 128  # whose logits are held at a time
MOST = 5_000  # tokens of a store that are looked at: of a large vocabulary a head product of all takes hours on a CPU


@dataclass(frozen=True)
class Certainty:
    """Of T tokens in a row."""

    entropy: Tensor  # (T,) nats; of a top-k row that of its tokens and one bucket for all others, a lower bound
    written: Tensor  # (T,) probability of the token that was written; nan where the row does not keep it
    top_ids: Tensor  # (T, K) the most probable tokens
    top_probs: Tensor  # (T, K)


@dataclass(frozen=True)
class Compared(Certainty):
    """With `kl` (T,): KL(these rows || others of the same tokens) in nats, over the whole vocabulary."""

    kl: Tensor


def certainty_of(
    rows: SignalRows, targets: Sequence[int], top: int = TOP, other: SignalRows | None = None
) -> Certainty:
    """Of rows and the tokens that they predict; `other` rows of the same tokens are what they are compared with. Raises
    ValueError if rows that are compared do not keep whole distributions, or are not as many."""
    ids = torch.tensor(targets, device=rows.device)
    if other is not None:
        _require_whole(rows, other)
    parts = [_certainty(rows.part(chunk), ids[chunk], top, other and other.part(chunk)) for chunk in _chunks(len(rows))]
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return Certainty(*columns) if other is None else Compared(*columns)


def read_certainty(reader: SignalReader, item_ids: Sequence[str], most: int = MOST) -> dict[str, Certainty]:
    """Item -> certainty, of the first of these items that have `most` tokens together; none where no rows were kept."""
    found: dict[str, Certainty] = {}
    for item_id in item_ids:
        response = reader.item(item_id).response_ids
        rows = reader.rows(item_id, response)
        if rows is None or most < len(response):
            break
        most -= len(response)
        found[item_id] = certainty_of(rows, response)
    return found


def moved_probability(rows: SignalRows, other: SignalRows) -> Tensor:
    """Total variation (T,) between two sets of T rows. Raises ValueError if one has no whole distributions."""
    _require_whole(rows, other)
    pairs = ((each.part(chunk).to_logits().softmax(-1) for each in (rows, other)) for chunk in _chunks(len(rows)))
    return torch.cat([0.5 * (p - q).abs().sum(-1) for p, q in pairs])


def _require_whole(rows: SignalRows, other: SignalRows) -> None:
    if len(rows) != len(other) or not all(isinstance(each, DenseRows | HiddenRows) for each in (rows, other)):
        raise ValueError("whole distributions of the same tokens are needed")


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS))


def _certainty(rows: SignalRows, targets: Tensor, top: int, other: SignalRows | None = None) -> tuple[Tensor, ...]:
    if isinstance(rows, DenseRows | HiddenRows):
        log_p = rows.to_logits().log_softmax(-1)  # (C, V)
        best = log_p.topk(top, dim=-1)
        written = log_p.gather(1, targets[:, None])[:, 0].exp()
        p = log_p.exp()
        found = -(p * log_p).sum(-1), written, best.indices, best.values.exp()
        return found if other is None else (*found, (p * (log_p - other.to_logits().log_softmax(-1))).sum(-1))
    sampled = isinstance(rows, SampledRows)
    p = rows.weights.float() if sampled else rows.log_probs.float().exp()  # (C, K)
    kept = min(top, p.shape[1])
    best = p.topk(kept, dim=-1)
    hit = (rows.ids == targets[:, None]) & (p > 0)
    written = torch.where(hit.any(-1), (p * hit).sum(-1), torch.nan)
    everything = p if sampled else torch.cat([p, rows.tail_mass.float()[:, None]], -1)
    entropy = rows.entropy.float() if sampled else torch.special.entr(everything).sum(-1)
    ids = torch.nn.functional.pad(rows.ids.gather(1, best.indices), (0, top - kept), value=-1)
    return entropy, written, ids, torch.nn.functional.pad(best.values, (0, top - kept))
