"""Plain text that a model goes on with, and how alike it is to the right sentence. No chat template, no instruction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from primekd.assessment.similarity import cosines, rouge_l
from primekd.foundation.tables import Count, Flag, Name
from primekd.models import decode_response, refuse_too_long, text_prompt
from primekd.tasks.text import end_of_text
from primekd.teachers.protocol import Sampling

if TYPE_CHECKING:
    from primekd.tasks.facts import Fact
    from primekd.teachers.transformers_engine import TransformersEngine

OTHERS, RANDOM = "others-answers", "random-words"  # what cannot be right, and is measured as models are
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class CompletionRow:
    """`cosine`: of the whole sentence with the right one; ROUGE-L: of what was written against the first keyword."""

    id: Name
    response: str
    tokens: Count
    truncated: Flag
    cosine: Annotated[float, Field(ge=-1.01, le=1.01)]
    rouge_precision: Share
    rouge_recall: Share


def complete(
    engine: "TransformersEngine", items: "Sequence[Fact]", limit: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[CompletionRow]:  # fmt: skip
    """Greedy: at most `limit` tokens behind each question, up to the end of the text. Raises UserError if the tokenizer
    has none, they do not fit into the model's context, or the embeddings are not installed."""
    tokenizer = engine.tokenizer
    prompts = [text_prompt(tokenizer, item.question) for item in items]
    lengths = {item.id: len(prompt) + limit for item, prompt in zip(items, prompts, strict=True)}
    refuse_too_long(engine.model, lengths, "the question and max_new_tokens make", "lower max_new_tokens")
    ends = frozenset({end_of_text(tokenizer)})
    found = engine.generate(prompts, Sampling(limit, ended=lambda: advance(1), ends=ends))
    texts = [decode_response(tokenizer, response.ids) for response in found]
    return rows_of(items, texts, [(len(response.ids), response.truncated) for response in found])


def rows_of(
    items: "Sequence[Fact]", texts: Sequence[str], written: Sequence[tuple[int, bool]] | None = None
) -> list[CompletionRow]:
    """How alike each text behind its question is to the right one. `written`: tokens, and whether it was cut."""
    alike = cosines(
        [f"{item.question} {text.strip()}" for item, text in zip(items, texts, strict=True)],
        [item.reference for item in items],
    )
    written = written or [(0, False)] * len(items)
    return [
        CompletionRow(item.id, text, *facts, round(cosine, 6), *(round(x, 6) for x in rouge_l(text, item.accepted[0])))
        for item, text, facts, cosine in zip(items, texts, written, alike, strict=True)
    ]


def floors(items: "Sequence[Fact]", words: int = 12, seed: int = 0) -> dict[str, list[CompletionRow]]:
    """What no knowledge reaches: each item with the right answer to another one, and with words of the questions."""
    random = Random(seed)
    answers = [f"{item.accepted[0]}." for item in items]
    others = [answers[(place + 1 + random.randrange(len(items) - 1)) % len(items)] for place in range(len(items))]
    known = sorted({word for item in items for word in item.question.split()})
    noise = [" ".join(random.choices(known, k=words)) for _ in items]
    return {OTHERS: rows_of(items, others), RANDOM: rows_of(items, noise)}
