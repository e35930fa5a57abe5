"""How closely an engine says what the reference engine says of the same tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from primekd.foundation.errors import UserError
from primekd.teachers.protocol import TopLogprobs


@dataclass(frozen=True)
class Agreement:
    """Over all response tokens that the engine gave a signal for. KL(reference || engine) a token; of an engine that
    shows only its top K, over those K and one bucket for all others, which is a lower bound."""

    tokens: int
    without_signal: int  # response tokens that have none (an API shows none for the end of turn)
    top1_agreement: float  # share of tokens for which both put the same token first
    mean_kl_nats: float
    max_kl_nats: float
    compared: str  # "every token" of the vocabulary, or "top K and the rest"


def compare(reference: list[Tensor], rows: list[Tensor] | list[TopLogprobs]) -> Agreement:
    """The reference's logits, (T, V) an item, against an engine's logits or top log-probs of the same tokens. Raises
    UserError if the vocabularies differ in size, or no row has a signal."""
    # One item at a time: (T, V) in float64 is large.
    parts = [
        _compare_top(a, b) if isinstance(b, TopLogprobs) else _compare_all(a, b)
        for a, b in zip(reference, rows, strict=True)
    ]
    same, divergence = (torch.cat(column) for column in zip(*parts, strict=True))
    if not len(same):
        raise UserError("The engine gave no signal for any of these tokens.")
    compared = "top K and the rest" if isinstance(rows[0], TopLogprobs) else "every token"
    without_signal, equal = sum(map(len, reference)) - len(same), float(same.double().mean())
    return Agreement(len(same), without_signal, equal, float(divergence.mean()), float(divergence.max()), compared)


def _compare_all(reference: Tensor, engine: Tensor) -> tuple[Tensor, Tensor]:
    """(T, V) logits of both -> same top-1 (T,), KL (T,)."""
    if reference.shape != engine.shape:
        raise UserError(f"The models have {reference.shape[1]} and {engine.shape[1]} tokens: compare one model.")
    log_p, log_q = reference.double().log_softmax(-1), engine.to(reference.device).double().log_softmax(-1)
    return log_p.argmax(-1) == log_q.argmax(-1), (log_p.exp() * (log_p - log_q)).sum(-1)


def _compare_top(reference: Tensor, engine: TopLogprobs) -> tuple[Tensor, Tensor]:
    """(T, V) logits and T rows of top log-probs -> same top-1, KL over the shown tokens and the rest."""
    shown = engine.ids[:, 0] >= 0  # rows without any token have no signal
    ids, log_q = engine.ids[shown].to(reference.device), engine.log_probs[shown].to(reference.device).double()
    log_p = reference[shown].double().log_softmax(-1)
    filled = ids >= 0
    kept = log_p.gather(-1, ids.clamp(min=0))  # (T, K)
    parts = torch.where(filled, kept.exp() * (kept - log_q.masked_fill(~filled, 0)), 0.0).sum(-1)
    rest_p = (1 - torch.where(filled, kept.exp(), 0.0).sum(-1)).clamp(min=torch.finfo(torch.float64).tiny)
    rest_q = (1 - torch.where(filled, log_q.exp(), 0.0).sum(-1)).clamp(min=1e-9)  # float32 log-probs: no finer
    return log_p.argmax(-1) == ids[:, 0], parts + rest_p * (rest_p.log() - rest_q.log())
