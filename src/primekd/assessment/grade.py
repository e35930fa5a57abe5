"""Answers and gold values -> the per-item log, one row an item."""

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

from primekd.assessment.answers import Answer
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import extract
from primekd.assessment.reading.numbers import format_value
from primekd.tasks.items import Item


def grade_answer(item: Item, answer: Answer, extractor: str = "published") -> LogRow:
    """Extracts an answer's number and compares it, as a number, with the gold value."""
    gold = format_value(Fraction(item.answer))
    row = LogRow(item.id, item.question, gold, answer.text, len(answer.ids), answer.truncated, "", "", "", False)
    return grade_row(row, extractor)


def grade_row(row: LogRow, extractor: str = "published") -> LogRow:
    """A row with its answer extracted and graded by today's rules. What a person decided stays.

    `truncated` may be None on the way in: then it is judged from the text.
    """
    found = extract(row.response, extractor, row.truncated, row.question)
    return replace(
        row,
        truncated=found.truncated,
        extracted=found.text,
        rule=found.rule,
        span="" if found.span is None else f"{found.span[0]}:{found.span[1]}",
        correct=found.value is not None and found.value == Fraction(row.gold),
    )


def grade_answers(items: Iterable[Item], answers: Iterable[Answer], extractor: str = "published") -> list[LogRow]:
    """Grades every item. Raises ValueError if an answer is not the one to its item."""
    rows = []
    for item, answer in zip(items, answers, strict=True):
        if item.id != answer.item_id:
            raise ValueError(f"the answer to {answer.item_id} stands where {item.id} was asked")
        rows.append(grade_answer(item, answer, extractor))
    return rows
