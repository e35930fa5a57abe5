"""GSM8K and sets of its form: Platinum, GSM-Plus, MGSM, and the files of GSM-Symbolic.

Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168."""

import contextlib
import re
from fractions import Fraction

from primekd.config import DataConfig
from primekd.foundation.errors import UserError
from primekd.tasks.numbers import NumberTask, parse_answer
from primekd.tasks.protocol import Item
from primekd.tasks.rows import items_of_data, require_fields, text_of

FIELDS = ("id", "instance", "question", "answer", "answer_number", "solution")


class GSM8K(NumberTask):
    """Grade-school problems. A solution has no calculator marks and ends in its `#### answer` line."""

    def items(self, data: DataConfig, split: str, count: int, seed: int) -> list[Item]:
        """Rows of the set in their order; none is drawn, so that `seed` changes nothing."""
        return items_of_data(data, split, count, item_of_row)

    def cluster(self, item_id: str) -> str:
        """The template of `<template>-<instance>`, as in GSM-Symbolic's files."""
        instance = re.fullmatch(r"([0-9]+)-[0-9]+", item_id)
        return instance[1] if instance else item_id


def strip_calculator_marks(solution: str) -> str:
    """GSM8K's solutions carry `<<48/2=24>>` for a calculator; students are trained without them."""
    return re.sub(r"<<[^<>]*>>", "", solution).strip()


def item_of_row(row: dict, where: str, default_id: str) -> Item | None:
    """One row of a data set as an item; None where its gold answer is the word None (GSM-Plus: no answer exists).

    GSM8K and Platinum: `answer` is a solution that ends in `#### 18`. GSM-Plus: `answer` is a number, which counts, the
    solution stands in `solution`. MGSM: the number is `answer_number`, and `answer` a solution or null. GSM-Symbolic:
    `id` names a template and `instance` the item. Raises UserError if it has no question or answer that can be read."""
    row = {name: text_of(row.get(name)) for name in FIELDS}
    gold = row["answer_number"] or row["answer"]
    require_fields({"question": row["question"], "answer": gold}, where)
    if gold.lower() == "none":
        return None
    item_id = "-".join(part for part in (row["id"], row["instance"]) if part) if row["id"] else default_id
    try:
        answer = parse_answer(gold)
    except ValueError as error:
        raise UserError(f"{where}: the answer {error}. It must be a number or end in '#### number'.") from error
    solution = strip_calculator_marks(row["solution"] or row["answer"])
    return Item(item_id, row["question"], _ending_in(solution, gold, answer), answer)


def _ending_in(solution: str, gold: str, answer: Fraction) -> str:
    """A solution with its `#### answer` line, where the data set keeps the answer in a field of its own."""
    reasoning, mark, end = solution.rpartition("####")
    with contextlib.suppress(ValueError):
        if mark and parse_answer(end) == answer:
            return solution
    reasoning = reasoning if mark else solution.removesuffix(gold)
    return f"{reasoning.rstrip()}\n#### {gold}".lstrip()


TASK = GSM8K()
