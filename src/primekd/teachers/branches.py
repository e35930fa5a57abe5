"""Several responses to one prompt as a tree of tokens, so that nothing they have in common is read twice.

    prompt ┬ It costs ┬ 3 + 26 …
           │          └ 29 …
           └ The …

Each token sees those on its own path from the root, and has the position that it would have there. To a model that
takes attention masks of two dimensions a row it is as if each response were read alone behind the prompt."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from primekd.teachers.cache import SlotCache
from primekd.teachers.protocol import Ids


@dataclass(frozen=True)
class Branches:
    """One prompt's tree of S tokens, parents before children."""

    ids: list[int]
    positions: list[int]
    parents: list[int]  # places in the tree, -1 for the first token
    predictors: list[Tensor]  # of each response, the places that predict its tokens, (T,) int64


def branch(prompt: list[int], responses: Sequence[list[int]], first: int) -> Branches:
    """Lays out the responses behind the prompt, whose first `first` tokens are in a cache; one has to remain."""
    ids, positions = prompt[first:], list(range(first, len(prompt)))
    parents, children = list(range(-1, len(ids) - 1)), {}
    predictors = []
    for response in responses:
        path = [len(prompt) - first - 1]  # the prompt's last token predicts the first one of every response
        for token in response[:-1]:  # the last token predicts nothing that is asked for
            place = children.setdefault((path[-1], token), len(ids))
            if place == len(ids):
                ids.append(token)
                positions.append(positions[path[-1]] + 1)
                parents.append(path[-1])
            path.append(place)
        predictors.append(torch.tensor(path[: len(response)], dtype=torch.int64))
    return Branches(ids, positions, parents, predictors)


def stack(branches: Sequence[Branches], first: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of several prompts, padded on the right, behind `first` tokens in a cache that every token sees.
    Returns ids and positions (B, S) int64, and what is added to scores, (B, 1, S, first + S): 0 where a token sees
    one."""
    columns = [b.ids for b in branches], [b.positions for b in branches]
    ids, positions = (pad_sequence([torch.tensor(row) for row in rows], True) for rows in columns)
    longest = ids.shape[1]
    # (B, S, S), whether the token of a row sees the one of a column; padding sees itself, or it would be nan.
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(branches), 1, 1)
    for row, one in enumerate(branches):
        for place, parent in enumerate(one.parents):
            if parent >= 0:
                sees[row, place] |= sees[row, parent]
    seen = torch.cat([torch.ones(len(branches), longest, first, dtype=torch.bool), sees], -1)
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return ids, positions, mask[:, None]


def read_branches(
    states_of: Callable[..., Tensor], prefix: SlotCache | None, prompts: Ids, responses: list[Ids],
    batches: Callable[[Sequence[int]], Iterable[list[int]]], model: nn.Module,
) -> list[list[Tensor]]:  # fmt: skip
    """For each prompt one tensor a response, (T, D) or (T, V), whose row t predicts token t.

    `states_of`: the model's forward call -> (B, S, D), or (B, S, V). `prefix`: the cache of what all prompts begin
    with, if it is run once. `batches`: lengths -> indices of what is run together."""
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
        asked = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        there = {name: tensor.to(model.device) for name, tensor in asked.items()}
        states = states_of(**there, past_key_values=cache, use_cache=cache is not None)
        for row, i in enumerate(batch):
            found[i] = [states[row, places.to(states.device)] for places in sequences[i].predictors]
    return found
