"""Which of its own steps a model's answer hangs on: Shapley values of log p(value | the steps that are left). Players
are runs of its own tokens; what is left out is taken out of the text, but for what stands before the value ("The answer
is"). Captum's sampling over orders (Castro et al. 2009): over every order the parts add up to the whole, which is
checked against both ends asked for once more, each by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from primekd.foundation import Count, Name, UserError

if TYPE_CHECKING:
    from primekd.teachers.transformers_engine import TransformersEngine

FILE = "attribution.csv"
MOST_STEPS = 12  # of one answer; shorter ones are put together
ADDITIVE, ROUNDED = 1e-3, 0.25  # nats by which parts and whole may differ: in float32, and in fewer bits


@dataclass(frozen=True)
class StepRow:
    """`value`: nats by which a step raises log p(value); all add up to `whole` (with all of them) less `empty`."""

    model: Name
    id: Name
    step: Count
    text: str
    value: float
    whole: float
    empty: float


def steps_of(tokenizer, ids: Sequence[int], value: Sequence[int]) -> list[list[int]]:
    """Places of the tokens of each step in front of the value: a step ends with a line, or with a full stop that a
    space follows. The part that the value itself stands in is none. At most MOST_STEPS, neighbours put together."""
    texts = [tokenizer.decode([token]) for token in ids[: value[0]]]
    steps: list[list[int]] = [[]]
    for place, text in enumerate(texts):
        following = texts[place + 1] if place + 1 < len(texts) else ""
        steps[-1].append(place)
        if "\n" in text or (text.rstrip().endswith((".", "!", "?")) and following[:1].isspace()):
            steps.append([])
    whole = [step for step in steps[:-1] if any(texts[place].strip() for place in step)]
    while len(whole) > MOST_STEPS:  # the shortest joins the step behind it, or the last one that in front
        shortest = min(range(len(whole)), key=lambda n: len(whole[n]))
        first = min(shortest, len(whole) - 2)
        whole[first : first + 2] = [whole[first] + whole[first + 1]]
    return whole


def log_prob_of_value(
    engine: "TransformersEngine", prompt: list[int], ids: Sequence[int], steps: Sequence[Sequence[int]],
    value: Sequence[int], masks: Tensor,
) -> Tensor:  # fmt: skip
    """masks (N, steps) of 1 and 0 -> (N,): log p of the value's tokens behind what is left."""
    dropped = [{place for step, kept in zip(steps, row, strict=True) if not kept for place in step} for row in masks]
    before = range(value[0])
    responses = [[ids[p] for p in before if p not in out] + [ids[p] for p in value] for out in dropped]
    states = engine.score([prompt] * len(responses), responses, "hidden")
    head, targets = engine.head(), torch.tensor([ids[p] for p in value])
    last = torch.stack([state[-len(value) :] for state in states]).to(head.device)  # (N, n, D)
    logits = engine.transform.apply(last.float() @ head.float().T)  # (N, n, V)
    return logits.log_softmax(-1).cpu().gather(-1, targets.expand(len(states), -1)[..., None])[..., 0].sum(-1)


def shapley(
    worth: Callable[[Tensor], Tensor], players: int, orders: int, seed: int, within: float = ADDITIVE
) -> tuple[Tensor, float, float]:
    """(values (players,), worth of all, worth of none) over `orders` random orders, each forwards and backwards, so
    that what two have in common is shared evenly. `worth`: (N, players) of 1 and 0 -> (N,). Raises ValueError if they
    do not add up."""
    from captum.attr import ShapleyValueSampling

    known: dict[tuple[int, ...], float] = {}

    def asked(masks: Tensor) -> Tensor:
        keys = [tuple(int(kept) for kept in row) for row in masks.tolist()]
        if new := [key for key in dict.fromkeys(keys) if key not in known]:
            known.update(zip(new, worth(torch.tensor(new)).double().tolist(), strict=True))
        return torch.tensor([known[key] for key in keys], dtype=torch.float64)

    generator = torch.Generator().manual_seed(seed)

    def permutations(features: int, count: int):
        for _ in range(count):
            order = torch.randperm(features, generator=generator).tolist()
            yield from (order, order[::-1])

    sampling = ShapleyValueSampling(asked)
    sampling.permutation_generator = permutations
    everyone = torch.ones(1, players, dtype=torch.float64)
    values = sampling.attribute(everyone, n_samples=orders, perturbations_per_eval=players)[0].double()
    whole, empty = (float(worth(kept)) for kept in (everyone, torch.zeros_like(everyone)))  # not as they are known
    if abs(float(values.sum()) - (whole - empty)) > within:
        raise ValueError(f"the values add up to {float(values.sum()):.6f}, not to {whole - empty:.6f}")
    return values, whole, empty


def step_rows(
    model: str, item: str, engine: "TransformersEngine", tokenizer, prompt: list[int],
    ids: Sequence[int], value: Sequence[int], orders: int, seed: int,
) -> list[StepRow]:  # fmt: skip
    """A row for each step of an answer; none where it has fewer than two, or no value was read from it.
    Raises UserError if the values do not add up."""
    steps = steps_of(tokenizer, ids, value) if value else []
    if len(steps) < 2:
        return []
    worth = lambda masks: log_prob_of_value(engine, prompt, ids, steps, value, masks)  # noqa: E731
    within = ADDITIVE if engine.dtype == "float32" else ROUNDED
    try:
        values, whole, empty = shapley(worth, len(steps), orders, seed, within)
    except ValueError as error:
        why = f"the steps of {model}'s answer to {item} cannot be attributed: {error}"
        raise UserError(f"{why}. Set `inside.attributed_items: 0`, or `student.dtype: float32`.") from error
    texts = [tokenizer.decode([ids[place] for place in step]) for step in steps]
    return [
        StepRow(model, item, number, text, float(own), whole, empty)
        for number, (text, own) in enumerate(zip(texts, values, strict=True))
    ]
