"""Several responses to one prompt as one sequence, so that the prompt is read once.

    prompt  response 1  response 2  …

Each response sees the prompt and its own past, and has the positions that it would have right behind the prompt. To a
model that takes attention masks of two dimensions a row it is as if each were read alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from primekd.teachers.cache import SlotCache


@dataclass(frozen=True)
class Branches:
    """One prompt's sequence. `first` of its tokens are in a cache already and not in the sequence.

    ids, positions (S,) int64; own (S,) int64: 0 for the prompt, k for response k.
    predictors: of each response, the places in the sequence that predict its tokens, (T,) int64.
    """

    ids: Tensor
    positions: Tensor
    own: Tensor
    predictors: list[Tensor]

    def sees(self) -> Tensor:
        """(S, S) bool: whether the token of a row sees the one of a column."""
        before = torch.ones(len(self.own), len(self.own), dtype=torch.bool).tril()
        return before & ((self.own[None, :] == self.own[:, None]) | (self.own[None, :] == 0))


def branch(prompt: list[int], responses: Sequence[list[int]], first: int = 0) -> Branches:
    """Lays out the responses behind the prompt, whose first `first` tokens are left out."""
    ids, positions = prompt[first:], list(range(first, len(prompt)))
    own, predictors = [0] * len(ids), []
    last = len(ids) - 1  # of the prompt: it predicts the first token of every response
    for number, response in enumerate(responses, start=1):
        run = response[:-1]  # the last token predicts nothing that is asked for
        predictors.append(
            torch.tensor([last, *range(len(ids), len(ids) + len(run))][: len(response)], dtype=torch.int64)
        )
        ids, own = ids + run, own + [number] * len(run)
        positions += range(len(prompt), len(prompt) + len(run))
    return Branches(torch.tensor(ids), torch.tensor(positions), torch.tensor(own), predictors)


def stack(branches: Sequence[Branches], first: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of several prompts, padded on the right.

    Args:
        first: tokens in front of all of them that lie in a cache; every token sees those.
        dtype: the mask's.

    Returns:
        ids and positions (B, S) int64, and what is added to attention scores, (B, 1, S, first + S): 0 where a token
        sees another one.
    """
    longest = max(len(b.ids) for b in branches)
    ids, positions = torch.zeros(2, len(branches), longest, dtype=torch.int64).unbind()
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(branches), 1, 1)  # padding sees itself, or it would be nan
    for row, one in enumerate(branches):
        length = len(one.ids)
        ids[row, :length], positions[row, :length] = one.ids, one.positions
        sees[row, :length, :length] = one.sees()
    seen = torch.cat([torch.ones(len(branches), longest, first, dtype=torch.bool), sees], -1)
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return ids, positions, mask[:, None]


def read_branches(
    states_of: Callable[..., Tensor],
    prefix: SlotCache | None,
    prompts: list[list[int]],
    responses: list[list[list[int]]],
    batches: Callable[[Sequence[int]], Iterable[list[int]]],
    model: nn.Module,
) -> list[list[Tensor]]:
    """What a model says of the tokens of all responses to each prompt.

    Args:
        states_of: the model's forward call -> (B, S, D), or (B, S, V).
        prefix: the cache of what all prompts begin with, if it is run once.
        batches: lengths -> indices of what is run together.
        model: whose device and dtype are taken.

    Returns:
        For each prompt one tensor a response, (T, D) or (T, V): row t predicts token t.
    """
    first = prefix.length if prefix else 0
    sequences = [branch(prompt, own, first) for prompt, own in zip(prompts, responses, strict=True)]
    found: list[list[Tensor]] = [[] for _ in prompts]
    for batch in batches([len(s.ids) for s in sequences]):
        ids, positions, mask = stack([sequences[i] for i in batch], first, model.dtype)
        cache = None
        if prefix:
            cache = SlotCache(len(batch), first + ids.shape[1], model.device)
            cache.restart(first)
            cache.place(prefix, len(batch), 0)
        states = states_of(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions.to(model.device),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        for row, i in enumerate(batch):
            found[i] = [states[row, places.to(states.device)] for places in sequences[i].predictors]
    return found
