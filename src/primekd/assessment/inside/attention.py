"""What each attention head looks at, without keeping its maps. Control and students read the same text in one batch,
row 0 through the base. A function in place of the model's attention makes one layer's weights in float32, takes a few
numbers a head from them and lets them go: memory holds the maps of one layer."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from primekd.foundation.errors import UserError
from primekd.models import load_model
from primekd.models.attention import attending
from primekd.models.switched import SwitchedAdapters

SHARP = 0.1  # a weight above it is a place that a head looks at
METRICS = ("entropy", "entropy_rest", "first", "diagonal", "previous", "distance", "sharp")
BETWEEN = ("total_variation", "cosine")  # of two models' maps of the same head on the same text
INDUCTION = "induction"
MEASURES = (*METRICS, *BETWEEN, INDUCTION)
TOGETHER = 8  # students that share a batch with the control
RANDOM_TOKENS, RANDOM_TEXTS = 32, 4  # of the texts that are written twice over for the induction score
READ = "heads-read"  # this attention's name in transformers


def head_metrics(weights_H_T_T: Tensor) -> Tensor:
    """Causal attention weights in float32, rows sum to 1 -> (H, METRICS), means over the queries i = 1, 2, …, T - 1.
    `entropy`: in nats over ln(i + 1); `entropy_rest`: that of what is left without the first token, which holds most of
    the mass, over ln(i). `first`, `diagonal`, `previous`: mass on key 0, i, i - 1. `distance`: mean of i - j. `sharp`:
    mass in weights above SHARP. Raises ValueError for fewer than three tokens."""
    size = weights_H_T_T.shape[-1]
    if size < 3:
        raise ValueError(f"{size} tokens are no text to attend to")
    p, places = weights_H_T_T[:, 1:], torch.arange(size, device=weights_H_T_T.device)  # (H, T - 1, T)
    queries = places[1:]
    entropy = torch.special.entr(p).sum(-1) / (queries + 1).log()
    rest = p[:, 1:, 1:]  # queries 2 on, keys 1 on
    rest = rest / rest.sum(-1, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny)
    entropy_rest = torch.special.entr(rest).sum(-1) / queries[1:].log()
    by_query = [
        p[:, :, 0], p.diagonal(1, 1, 2), p.diagonal(0, 1, 2),
        (p * (queries[:, None] - places).clamp_min(0)).sum(-1), (p * (p > SHARP)).sum(-1),
    ]  # fmt: skip
    return torch.stack([column.mean(-1) for column in (entropy, entropy_rest, *by_query)], -1)


def compare_heads(weights_H_T_T: Tensor, others_H_T_T: Tensor) -> Tensor:
    """Two models' maps -> (H, BETWEEN): total variation (the share of mass elsewhere, mean over queries), cosine."""
    moved = 0.5 * (weights_H_T_T - others_H_T_T).abs().sum(-1)[:, 1:].mean(-1)
    return torch.stack([moved, nn.functional.cosine_similarity(weights_H_T_T.flatten(1), others_H_T_T.flatten(1))], -1)


def read_maps(weights_B_H_T_T: Tensor) -> Tensor:
    """(B, H, METRICS + BETWEEN) of one layer: each row by itself, and against row 0."""
    rows = [torch.cat([head_metrics(row), compare_heads(row, weights_B_H_T_T[0])], -1) for row in weights_B_H_T_T]
    return torch.stack(rows)


def compare_rows(weights_B_H_T_T: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """(pairs, H, BETWEEN) of one layer: pairs of its rows, by their places."""
    return torch.stack([compare_heads(weights_B_H_T_T[one], weights_B_H_T_T[other]) for one, other in places])


def induction(weights_B_H_T_T: Tensor) -> Tensor:
    """(B, H, 1), of a text that stands there twice: the mean weight on the token behind the one that is the query's
    own in the first half (Olsson et al. 2022, arXiv 2209.11895)."""
    half = weights_B_H_T_T.shape[-1] // 2
    return weights_B_H_T_T[..., half : 2 * half - 1, 1:half].diagonal(0, -2, -1).mean(-1, keepdim=True)


class HeadReader:
    """Attention for transformers that hands each layer's weights (B, H, T, T) to `reduce`; `taken` has what it gave,
    a layer after the other. Raises UserError for scores with a soft cap or sinks."""

    def __init__(self, reduce: Callable[[Tensor], Tensor]):
        self._reduce, self.taken = reduce, []

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        scaling: float | None = None, dropout: float = 0.0, **kwargs,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """query (B, H, T, d), key and value (B, G, T, d), mask (B, 1, T, T) added to the scores -> (B, T, H, d)."""
        if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
            what = "caps its attention scores, or has sinks in them, which is not read here: leave `inside` out"
            raise UserError(f"{module.config.name_or_path} {what} (`primekd run --only inside`, `primekd analyse`).")
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = (query.float() @ key.float().mT) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if attention_mask is not None:
            scores = scores + attention_mask[..., : key.shape[-2]]
        weights = scores.softmax(-1)
        self.taken.append(self._reduce(weights).cpu())
        return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


AttentionMaskInterface.register(READ, eager_mask)


@torch.inference_mode()
def _read(
    adapters: SwitchedAdapters, rows: Sequence[str | None], ids: Sequence[int], reduce: Callable[[Tensor], Tensor]
) -> Tensor:
    """What `reduce` gives of each layer of one text, read by students and control (None): (n, layers, …)."""
    reader = HeadReader(reduce)
    AttentionInterface.register(READ, reader)
    with attending(adapters.base, READ):
        adapters.read_together(rows, torch.tensor([list(ids)] * len(rows), device=adapters.base.device))
    return torch.stack(reader.taken, 1)


def read_heads(
    adapters: SwitchedAdapters, names: Sequence[str], ids: Sequence[int], reduce: Callable[[Tensor], Tensor] = read_maps
) -> Tensor:
    """What `reduce` gives of the control and of students of these names on one text: (1 + students, layers, …)."""
    parts: list[Tensor] = []
    for first in range(0, max(1, len(names)), TOGETHER):
        found = _read(adapters, [None, *names[first : first + TOGETHER]], ids, reduce)
        parts.append(found[1:] if parts else found)
    return torch.cat(parts)


def measure_pairs(adapters: SwitchedAdapters, pairs: Sequence[tuple[str, str]], ids: Sequence[int]) -> Tensor:
    """(pairs, layers, H, BETWEEN) float32 of one text: two students' maps of the same heads, all in one batch."""
    rows = list(dict.fromkeys(name for pair in pairs for name in pair))
    places = [[rows.index(name) for name in pair] for pair in pairs]
    return _read(adapters, rows, ids, partial(compare_rows, places=places))


def measure_induction(adapters: SwitchedAdapters, names: Sequence[str], vocabulary: Sequence[int], seed: int) -> Tensor:
    """(RANDOM_TEXTS, 1 + students, layers, H, 1) of random tokens of `vocabulary`, the same for all models."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(vocabulary), (RANDOM_TEXTS, RANDOM_TOKENS), generator=generator).tolist()
    texts = [[vocabulary[place] for place in text] for text in drawn]
    return torch.stack([read_heads(adapters, names, text + text, induction) for text in texts])


def crop_maps(adapters: SwitchedAdapters, names: Sequence[str], ids: Sequence[int], tokens: int) -> Tensor:
    """(1 + students, layers, H, t, t) uint8, of 255: the maps themselves on the first `tokens` of one text."""
    return read_heads(adapters, names, ids[:tokens], lambda weights: (weights * 255).round().to(torch.uint8))


def open_side_by_side(
    reference: str, dtype: str, students: Mapping[str, Path], quantization: str | None = None
) -> SwitchedAdapters:
    """A base with the adapters of all students beside its weights. Raises UserError if one does not fit."""
    base = load_model(reference, dtype, quantization)
    return SwitchedAdapters(base, reference, dtype, {name: (folder, False) for name, folder in students.items()})
