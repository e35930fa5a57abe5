"""How likely a model finds each choice of an item, and which one it is taken to choose. Token ids, sums and
per-character lengths are lm-evaluation-harness's (0.4.13, `HFLM`); a mean a token is what build-nanogpt's hellaswag.py
compares, on texts without clean-up. Columns of a padded vocabulary are cut here, and have a share there."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import BeforeValidator

from primekd.assessment.fit import losses_of
from primekd.foundation import Count, Name, UserError
from primekd.models.loading import refuse_too_long
from primekd.models.logits import evaluating
from primekd.tasks.choices import BEHIND, BENCHMARKS, RAW, ChoiceItem, raw_items

if TYPE_CHECKING:
    from primekd.teachers.transformers_engine import TransformersEngine

MEASURES = ("acc", "acc_norm", "acc_token_norm")  # by the sum, by the sum a character, by the sum a token


def _split(cell: object) -> object:
    return cell.split() if isinstance(cell, str) else cell


Numbers = Annotated[tuple[float, ...], BeforeValidator(_split)]
Counts = Annotated[tuple[int, ...], BeforeValidator(_split)]


@dataclass(frozen=True)
class ChoiceRow:
    """Log-likelihoods in nats, sums over `tokens` of each choice; `characters`: without the space before it."""

    benchmark: Name
    id: Name
    label: Count
    loglikelihoods: Numbers
    tokens: Counts
    characters: Counts

    def __post_init__(self) -> None:
        choices = len(self.loglikelihoods)
        if {len(self.tokens), len(self.characters)} != {choices} or not 0 <= self.label < choices:
            raise ValueError(f"{choices} choices, and not as many lengths, or a label that is none of them")
        if not all(map(math.isfinite, self.loglikelihoods)) or min(*self.tokens, *self.characters) < 1:
            raise ValueError("a log-likelihood that is no number, or a choice without length")

    def chosen(self, measure: str) -> int:
        """The choice with the greatest value by one of MEASURES; the first of equal ones."""
        lengths = {"acc": [1] * len(self.tokens), "acc_norm": self.characters, "acc_token_norm": self.tokens}[measure]
        values = [total / length for total, length in zip(self.loglikelihoods, lengths, strict=True)]
        return values.index(max(values))

    def right(self, measure: str) -> bool:
        return self.chosen(measure) == self.label


def deciding(benchmark: str, choose_by: str) -> str:
    """Which of MEASURES says what a model is taken to choose: RAW's own, the harness's, or the named one."""
    if benchmark == RAW:
        return "acc_token_norm"
    return BENCHMARKS[benchmark].measure if choose_by == "harness" else choose_by


def encode_choices(tokenizer, item: ChoiceItem) -> tuple[list[int], list[list[int]]]:
    """Token ids of the context, and of each choice behind it, which has the spaces that end the context, and what the
    context has not alone. Raises UserError if a choice has no token of its own."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    mark = "" if start is None else tokenizer.decode(start)

    def ids_of(text: str) -> list[int]:
        options = {"add_special_tokens": False} if mark and text.startswith(mark) else {}
        return tokenizer.encode(text, **options)

    text = item.context.rstrip()
    context, space = ids_of(text), item.context[len(text) :]
    choices = [ids_of(f"{text}{space}{BEHIND}{choice}")[len(context) :] for choice in item.choices]
    if not context or not all(choices):
        raise UserError(f"{item.id}: this tokenizer leaves context or choice without a token: leave the item out.")
    return context, choices


def encode_all(model, tokenizer, items: Sequence[ChoiceItem]) -> list[tuple[list[int], list[list[int]]]]:
    """`encode_choices` of every item. Raises UserError also if one is longer than the model's context."""
    asked = [encode_choices(tokenizer, item) for item in items]
    longest = {x.id: len(c) + max(map(len, own)) for x, (c, own) in zip(items, asked, strict=True)}
    refuse_too_long(model, longest, "context and choice have", "lower data.shots or leave the item out")
    return asked


def with_raw(
    engine: "TransformersEngine", items: Sequence[ChoiceItem], advance: Callable[[int], None]
) -> list[ChoiceRow]:
    """`score_choices` of the items, and of `raw_items` behind them."""
    return score_choices(engine, items, advance) + score_choices(engine, raw_items(items))


def score_choices(
    engine: "TransformersEngine", items: Sequence[ChoiceItem],
    advance: Callable[[int], None] = lambda count: None,
) -> list[ChoiceRow]:  # fmt: skip
    """A row an item, in order. The context is read once for its choices. `advance` is told of how many items were
    scored. Raises UserError as `encode_all`."""
    sums = {}
    with evaluating(engine.model):
        asked = encode_all(engine.model, engine.tokenizer, items)
        lengths = [len(context) + sum(map(len, choices)) for context, choices in asked]
        order = sorted(range(len(items)), key=lambda i: -lengths[i])  # neighbours in length are read together
        for first in range(0, len(order), engine.batch_size):
            block = order[first : first + engine.batch_size]
            sums |= zip(block, _loglikelihoods(engine, [asked[i] for i in block]), strict=True)
            advance(len(block))
    lengths_of = [(tuple(map(len, asked[i][1])), tuple(map(len, item.choices))) for i, item in enumerate(items)]
    return [ChoiceRow(x.benchmark, x.id, x.label, sums[i], *lengths_of[i]) for i, x in enumerate(items)]


def _loglikelihoods(
    engine: "TransformersEngine", asked: list[tuple[list[int], list[list[int]]]]
) -> list[tuple[float, ...]]:
    """Of each item and choice the sum over its tokens, float32 a token."""
    contexts, choices = ([one[part] for one in asked] for part in (0, 1))
    want = "logits" if engine.transform is None else "hidden"
    states = [rows for own in engine.score_each(contexts, choices, want) for rows in own]  # (T, D) or (T, V) each
    flat = [ids for own in choices for ids in own]
    if engine.transform is None:
        targets = torch.tensor([token for ids in flat for token in ids], device=engine.head().device)
        values = torch.cat(states).to(targets.device).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        sums = iter([float(own.double().sum()) for own in values.cpu().split([len(ids) for ids in flat])])
    else:
        sums = iter([-ce for ce, _ in losses_of(engine, states, flat, None)])
    return [tuple(next(sums) for _ in own) for own in choices]
