"""Decoding with a causal model of transformers: the same tokens as its own `generate`, without what that wastes.
Prompts are taken longest first. What all of them begin with is run once. A row that has ended leaves the batch, and
rows that wait take the places of those that left. The head is applied to the last position alone, and the states that
the tokens were chosen from are handed on, so that nobody has to run the response a second time to have them."""

import os
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from primekd.teachers.cache import SlotCache
from primekd.teachers.protocol import Ids, Sampling

SHORTEST_PREFIX = 8  # tokens; a shorter one is not worth a pass of its own
REFILL = 4  # waiting rows are taken in when a quarter of the places is free: one pass for several of them
SLACK = 64  # slots between two moves of the cache to its beginning: refilled batches drift through it


@dataclass(frozen=True)
class LastPosition:
    """A model, asked for its last position alone."""

    states: Callable[..., Tensor]  # input_ids, attention_mask, position_ids, past_key_values -> what is kept, (B, D)
    logits: Callable[[Tensor], Tensor]  # those (B, D) -> (B, V) without padded columns
    device: torch.device
    window: float  # slots that every layer can look back; beyond it a row's tokens must lie in neighbouring slots


@dataclass
class Row:
    """One response in the making. `kept` is what each token was chosen from, (D,) each, if that is wanted."""

    prompt: list[int]
    draws: np.ndarray | None = None
    ids: list[int] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def position(self) -> int:
        """Of the newest token, from 0."""
        return len(self.prompt) + len(self.ids) - 1

    def states(self) -> Tensor:
        """(tokens, D)"""
        return torch.stack(self.kept)


@torch.inference_mode()
def decode(
    model: LastPosition, prompts: Ids, sampling: Sampling, ends: Container[int], batch_size: int,
    keep_states: bool,
) -> list[Row]:  # fmt: skip
    """Responses to all prompts, in order; each ends with one of `ends` unless it has `max_new_tokens` tokens. Draws
    depend on a prompt's own seed, or on the seed and its place among the prompts, not on the rest of its batch."""
    if not prompts:
        return []
    rows = [Row(prompt, _draws(sampling, place)) for place, prompt in enumerate(prompts)]
    waiting = deque(sorted(rows, key=lambda row: -len(row.prompt)))
    prefix = shared_prefix(model, prompts, sampling.max_new_tokens)
    running: list[Row] = []
    batch_size = min(batch_size, len(rows))
    slots = max(map(len, prompts)) + sampling.max_new_tokens + (SLACK if len(prompts) > batch_size else 0)
    cache = SlotCache(batch_size, slots, model.device)
    while waiting or running:
        parts = [_step(model, cache, running)] if running else []
        free = batch_size - len(running)
        if waiting and free >= min(len(waiting), max(1, batch_size // REFILL)):
            new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            parts.append(_admit(model, cache, prefix, running, new))
            running += new
        states = torch.cat(parts)  # (rows, D)
        for row, token in zip(running, _choose(model.logits(states), running, sampling.temperature), strict=True):
            row.ids.append(token)
        if keep_states:
            for row, state in zip(running, states, strict=True):
                row.kept.append(state)
        for place in reversed(range(len(running))):
            if running[place].ids[-1] in ends or len(running[place].ids) == sampling.max_new_tokens:
                _dismiss(cache, running, place)
                sampling.ended()
    return rows


def _draws(sampling: Sampling, place: int) -> np.ndarray | None:
    """One number in [0, 1) for each token of the response to a prompt; None where nothing is drawn."""
    if sampling.temperature == 0:
        return None
    seed = sampling.seeds[place] if sampling.seeds else [sampling.seed, place]
    return np.random.default_rng(seed).random(sampling.max_new_tokens)


@torch.inference_mode()
def shared_prefix(model: LastPosition, prompts: Ids, new_tokens: int) -> SlotCache | None:
    """The cache of what all prompts begin with, if that is worth it. `new_tokens`: at most, behind each prompt.

    Rows lie with padding between this and the rest of their prompt. A layer with a window counts slots, so it must not
    come so far that the padding moves something out of its window."""
    # One token is left to each, for a position that predicts.
    length = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
    longest = max(map(len, prompts)) + new_tokens
    if len(prompts) < 2 or length < SHORTEST_PREFIX or longest > model.window:
        return None
    prefix = SlotCache(1, length, model.device)
    _forward(model, prefix, [prompts[0][:length]], first=0)
    return prefix


def _forward(model: LastPosition, cache: SlotCache, pieces: Ids, first: int) -> Tensor:
    """Runs pieces of rows whose earlier positions are in the cache: padded on the left, positions from `first`."""
    asked = pieces, [[True] * len(piece) for piece in pieces], [range(first, first + len(piece)) for piece in pieces]
    columns = ([torch.tensor(row) for row in rows] for rows in asked)
    return _run(model, cache, *(pad_sequence(rows, True, 0, "left").to(model.device) for rows in columns))


def _run(model: LastPosition, cache: SlotCache, ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    """One pass of (rows, new) each; `tokens`: whether there is one."""
    mask = cache.extend(tokens)
    return model.states(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)


def _admit(
    model: LastPosition, cache: SlotCache, prefix: SlotCache | None, running: list[Row], new: list[Row]
) -> Tensor:
    """Runs the prompts of new rows and places them behind the running ones; (new, D)."""
    shared = prefix.length if prefix else 0
    pieces = [row.prompt[shared:] for row in new]
    own = SlotCache(len(new), shared + max(map(len, pieces)), model.device) if running else cache
    own.restart(shared)
    if prefix:
        own.place(prefix, len(new), 0)
    states = _forward(model, own, pieces, shared)
    if running:
        # Later rows have shorter prompts than those that run, so they fit in front of the slot where all rows end.
        cache.place(own, len(new), len(running))
    return states


def _step(model: LastPosition, cache: SlotCache, running: list[Row]) -> Tensor:
    """One token further for every running row; (rows, D)."""
    if cache.length == cache.slots:
        cache.make_room(len(running))
    newest = torch.tensor([[row.ids[-1], row.position()] for row in running], device=model.device)  # (rows, 2)
    ids, positions = newest.split(1, -1)
    return _run(model, cache, ids, torch.ones_like(ids, dtype=torch.bool), positions)


def _choose(logits: Tensor, running: list[Row], temperature: float) -> list[int]:
    """The likeliest token of each row, or at a temperature the one that its draw falls on."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    # Summed in float64: in float32 the many rare tokens at the end would be rounded away.
    below = (logits.float() / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)  # (rows, V)
    draws = torch.tensor([row.draws[len(row.ids)] for row in running], dtype=torch.float64, device=logits.device)
    found = torch.searchsorted(below, draws[:, None] * below[:, -1:], right=True)
    return found[:, 0].clamp(max=logits.shape[-1] - 1).tolist()


def _dismiss(cache: SlotCache, running: list[Row], place: int) -> None:
    """Takes a row out; the last one moves into its place."""
    last = running.pop()
    if place < len(running):
        cache.move(len(running), place)
        running[place] = last
