"""Answers and gold values -> the per-item log, one row an item."""

from collections.abc import Iterable
from dataclasses import replace

from primekd.assessment.answers import Answer
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import NOT_FOUND, Extraction, extract, looks_cut
from primekd.tasks.numbers import NUMBERS
from primekd.tasks.protocol import Item, Task


def grade_answer(item: Item, answer: Answer, extractor: str = "published", task: Task = NUMBERS) -> LogRow:
    """The log's row of an answer, judged as its task does."""
    gold, tokens = task.write(item.answer), len(answer.ids)
    row = LogRow(item.id, item.question, gold, answer.text, tokens, answer.truncated, "", "", "", False)
    return grade_row(row, extractor, task)


def grade_row(row: LogRow, extractor: str = "published", task: Task = NUMBERS) -> LogRow:
    """A row with its answer judged by today's rules. What a person decided stays.

    `truncated` may be None on the way in: then it is judged from the text.

    Args:
        extractor: finds the number in an answer, where the task asks for one.
    """

    def read(response: str, question: str) -> Extraction:
        return extract(response, extractor, row.truncated, question)

    judged = task.judge(Item(row.id, row.question, "", task.parse(row.gold)), row.response, read)
    return replace(
        row,
        truncated=looks_cut(row.response) if row.truncated is None else row.truncated,
        extracted=NOT_FOUND if judged.value is None else task.write(judged.value),
        rule=judged.rule,
        span="" if judged.span is None else f"{judged.span[0]}:{judged.span[1]}",
        correct=judged.correct,
    )


def grade_answers(
    items: Iterable[Item], answers: Iterable[Answer], extractor: str = "published", task: Task = NUMBERS
) -> list[LogRow]:
    """Grades every item. Raises ValueError if an answer is not the one to its item."""
    rows = []
    for item, answer in zip(items, answers, strict=True):
        if item.id != answer.item_id:
            raise ValueError(f"the answer to {answer.item_id} stands where {item.id} was asked")
        rows.append(grade_answer(item, answer, extractor, task))
    return rows
