"""Plain text that a model goes on with: what it writes behind the beginning of a sentence, and how alike that is to the
right sentence. No chat template, no instruction: students of text know neither."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from primekd.assessment.similarity import cosines, rouge_l
from primekd.foundation.tables import Count, Flag, Name, read_records, write_csv
from primekd.models.chat import decode_response, text_prompt
from primekd.models.loading import refuse_too_long
from primekd.tasks.text import end_of_text
from primekd.teachers.protocol import Sampling

if TYPE_CHECKING:
    from primekd.tasks.facts import Fact
    from primekd.teachers.transformers_engine import TransformersEngine

FILE = "completions.csv"
OTHERS, RANDOM = "others-answers", "random-words"  # what cannot be right, and is measured as models are
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class CompletionRow:
    """A completion of an item. `cosine`: of the whole sentence with the right one; ROUGE-L: of what was written against
    the first accepted keyword."""

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
    """Greedy: at most `limit` tokens behind each item's question, up to the end of the text. `advance` is told of each
    that has ended. Raises UserError if the tokenizer has no end of text, a question and `limit` tokens do not fit into
    the model's context, or the embeddings are not installed."""
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
    """How alike each text behind its item's question is to the right one. `written`: tokens of each, and whether it was
    cut off."""
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


def write_completions(path: Path, rows: Sequence[CompletionRow]) -> None:
    """Writes completions.csv."""
    write_csv(path, [f.name for f in fields(CompletionRow)], map(astuple, rows))


def read_completions(path: Path) -> list[CompletionRow]:
    """Reads completions.csv. Raises UserError if it is absent, lacks columns or has a row that cannot be read."""
    return read_records(path, CompletionRow)
