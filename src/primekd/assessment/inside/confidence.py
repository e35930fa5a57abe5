"""How sure a model is of its own answers: the answer read once more, token by token, at temperature 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from primekd.assessment.logs import LogRow
from primekd.foundation.tables import Count, Flag, Name
from primekd.models.chat import decode_response
from primekd.signals import Certainty, HiddenRows, SampledRows, SignalRows, certainty_of

if TYPE_CHECKING:
    from primekd.assessment.answers import Answer
    from primekd.teachers.transformers_engine import TransformersEngine

FILE = "confidence.csv"


@dataclass(frozen=True)
class SureRow:
    """A model's own answer to a test item. Sums in nats over its tokens: `log_prob`, `entropy`, and `margin`, by how
    much the most probable token was ahead of the second (logits themselves cannot be compared between models).
    `value_tokens`, `value_log_prob`: of the value that was read; 0 and None where none was."""

    model: Name
    id: Name
    correct: Flag
    tokens: Count
    log_prob: float
    entropy: float
    margin: float
    value_tokens: Count
    value_log_prob: float | None


def sure_row(model: str, verdict: LogRow, ids: Sequence[int], found: Certainty, tokenizer) -> SureRow:
    """Of an answer's ids and their certainty, whose `top_probs` has two columns at least."""
    written = found.written.double().clamp_min(torch.finfo(torch.float32).tiny).log()  # (T,)
    best, second = found.top_probs[:, :2].double().clamp_min(torch.finfo(torch.float32).tiny).log().T
    value = value_places(tokenizer, ids, verdict)
    sums = (float(column.sum()) for column in (written, found.entropy.double(), best - second))
    of_value = float(written[value].sum()) if value else None
    return SureRow(model, verdict.id, verdict.correct, len(ids), *sums, len(value), of_value)


def value_places(tokenizer, ids: Sequence[int], verdict: LogRow) -> list[int]:
    """Places of the tokens that hold any letter of the value that was read; empty where none was."""
    if not verdict.span:
        return []
    start, end = map(int, verdict.span.split(":"))
    ends = [len(decode_response(tokenizer, list(ids[: place + 1]))) for place in range(len(ids))]
    begins = [0, *ends[:-1]]
    return [place for place, (b, e) in enumerate(zip(begins, ends, strict=True)) if b < end and e > start and e > b]


def sure_rows(
    model: str, engine: "TransformersEngine", prompts: Sequence[list[int]], answers: Sequence["Answer"],
    verdicts: Sequence[LogRow], tokenizer, together: int = 16, advance=lambda count: None,
) -> list[SureRow]:  # fmt: skip
    """A row an answer, from one teacher-forced pass of the model that wrote them."""
    head, rows = engine.head(), []
    for first in range(0, len(answers), together):
        block = range(first, min(first + together, len(answers)))
        states = engine.score([prompts[i] for i in block], [answers[i].ids for i in block], "hidden")
        for i, state in zip(block, states, strict=True):
            signals = HiddenRows(state.to(head.device), head, engine.transform)
            found = certainty_of(signals, answers[i].ids, top=2)
            rows.append(sure_row(model, verdicts[i], answers[i].ids, found, tokenizer))
        advance(len(block))
    return rows


def stored_row(model: str, verdict: LogRow, ids: Sequence[int], rows: SignalRows, tokenizer) -> SureRow | None:
    """The same of a teacher's stored answer; None where its rows do not have the tokens' probabilities."""
    found = certainty_of(rows, ids, top=2)
    unknown = isinstance(rows, SampledRows) or found.written.isnan().any()
    return None if unknown else sure_row(model, verdict, ids, found, tokenizer)
