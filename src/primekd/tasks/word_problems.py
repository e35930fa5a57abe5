"""Word problems of SVAMP and ASDiv, from JSONL files: whether what was learned on GSM8K carries over.

Sources: Patel et al., "Are NLP Models really able to Solve Simple Math Word Problems?", arXiv 2103.07191 (SVAMP);
Miao et al., "A Diverse Corpus for Evaluating and Developing English Math Word Problem Solvers", ACL 2020 (ASDiv)."""

import re

from primekd.config import DataConfig
from primekd.tasks import gsm8k
from primekd.tasks.numbers import NumberTask, format_value, parse_answer
from primekd.tasks.protocol import Item
from primekd.tasks.rows import items_of_data, require_fields, text_of

WHOLE = re.compile(r"(?<![0-9.])([0-9]+)\.0+(?![0-9])")  # SVAMP writes 8.0 for 8
WITH_UNIT = re.compile(r"(?P<number>[^()]+?)\s*(?:\([^()]*\))?")  # ASDiv writes 9 (apples)


class WordProblems(NumberTask):
    """Rows with a body and a question; rows of GSM8K too, so that students learn from one set and answer another."""

    def items(self, data: DataConfig, split: str, count: int, seed: int) -> list[Item]:
        return items_of_data(data, split, count, item_of_row)


def item_of_row(row: dict, where: str, default_id: str) -> Item | None:
    """One row as an item; None where its answer is not one number (in ASDiv: ratios, times, several values, words).

    SVAMP: ID, Body, Question, Equation `( 8.0 - 3.0 )`, Answer `5.0`. ASDiv: ID, Body, Question, Formula `7+2=9`,
    Answer `9 (apples)`. Names count in any case. A row with `question` and no body is one of GSM8K. Raises UserError,
    which begins with `where`, if body, question or answer is missing or empty."""
    if "question" in row and not any(name.lower() == "body" for name in row):
        return gsm8k.item_of_row(row, where, default_id)
    texts = {name.lower().lstrip("@"): text_of(value) for name, value in row.items()}
    require_fields({name: texts.get(name.lower(), "") for name in ("Body", "Question", "Answer")}, where)
    gold = WITH_UNIT.fullmatch(texts["answer"])
    try:
        answer = parse_answer(gold["number"] if gold else texts["answer"])
    except ValueError:
        return None
    calculation, written = WHOLE.sub(r"\1", texts.get("formula") or texts.get("equation", "")), format_value(answer)
    if calculation and "=" not in calculation:
        calculation = f"{calculation} = {written}"
    solution = f"{calculation}\n#### {written}".lstrip()
    return Item(texts.get("id") or default_id, f"{texts['body']} {texts['question']}", solution, answer)


TASK = WordProblems()
