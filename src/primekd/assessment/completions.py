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
    """`cosine`: of the whole sentence with a right one; ROUGE-L: of what was written against a keyword; of several
    accepted keywords with the nearest one."""

    id: Name
    response: str
    tokens: Count
    truncated: Flag
    cosine: Annotated[float, Field(ge=-1.01, le=1.01)]
    rouge_precision: Share
    rouge_recall: Share


Written = tuple[str, int, bool]  # a text, its tokens, whether it was cut off at the limit


def complete(
    engine: "TransformersEngine", items: "Sequence[Fact]", limit: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Written]:  # fmt: skip
    """Greedy: at most `limit` tokens behind each question, up to the end of the text. Raises UserError if the tokenizer
    has none, or they do not fit into the model's context."""
    tokenizer = engine.tokenizer
    prompts = [text_prompt(tokenizer, item.question) for item in items]
    lengths = {item.id: len(prompt) + limit for item, prompt in zip(items, prompts, strict=True)}
    refuse_too_long(engine.model, lengths, "the question and max_new_tokens make", "lower max_new_tokens")
    ends = frozenset({end_of_text(tokenizer)})
    found = engine.generate(prompts, Sampling(limit, ended=lambda: advance(1), ends=ends))
    return [(decode_response(tokenizer, r.ids), len(r.ids), r.truncated) for r in found]


def rows_of(items: "Sequence[Fact]", written: Sequence[Written]) -> list[CompletionRow]:
    """How alike each text behind its question is to a right one. Raises UserError if the embeddings are not here."""
    sentences = [f"{item.question} {text.strip()}" for item, (text, *_) in zip(items, written, strict=True)]
    alike = cosines(sentences, [item.references for item in items])
    return [
        CompletionRow(item.id, *one, round(cosine, 6), *(round(x, 6) for x in rouge_l(one[0], item.accepted)))
        for item, one, cosine in zip(items, written, alike, strict=True)
    ]


def floors(items: "Sequence[Fact]", words: int = 12, seed: int = 0) -> dict[str, list[CompletionRow]]:
    """What no knowledge reaches: each item with the right answer to another one, and with words of the questions."""
    random = Random(seed)
    answers = [item.accepted[0] for item in items]  # Athens was a host too, and is no wrong capital
    others = [random.choice([word for word in answers if word not in item.accepted]) for item in items]
    known = sorted({word for item in items for word in item.question.split()})
    found = {OTHERS: [f"{word}." for word in others], RANDOM: [" ".join(random.choices(known, k=words)) for _ in items]}
    return {name: rows_of(items, [(text, 0, False) for text in texts]) for name, texts in found.items()}
