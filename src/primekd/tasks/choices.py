"""Benchmarks of choices: a model is asked how likely it finds each of a few completions, and writes nothing.

Texts are those of lm-evaluation-harness 0.4.13, character by character; SNLI, which it has not, is asked as MNLI is.

Sources: Zellers et al., "HellaSwag: Can a Machine Really Finish Your Sentence?", arXiv 1905.07830; Bowman et al., "A
large annotated corpus for learning natural language inference", arXiv 1508.05326 (SNLI); Wang et al., "GLUE: A
Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", arXiv 1804.07461."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from primekd.config import DataConfig
from primekd.foundation import UserError, project_root
from primekd.tasks.protocol import Item, Judgement, Reader, Task
from primekd.tasks.rows import load_hub, read_jsonl
from primekd.tasks.splits import side_of, start_of

OWN = Path(__file__).parent / "choice_items"  # written for this project, in each benchmark's own format
OWN_SHOWN = 4  # of them the first so many are its training side
SHOTS_SEED = 1234  # lm-evaluation-harness's
NO_GOLD = -1  # SNLI's label where its annotators did not agree
RAW = "hella_token"  # HellaSwag as build-nanogpt asks it, and GPT-2's published numbers: a mean a token, no clean-up
BETWEEN, BEHIND = "\n\n", " "  # two worked examples; a context and its choice


@dataclass(frozen=True)
class ChoiceItem(Item):
    """A context and what may follow it, behind a space; `question` is the context, `answer` the right choice. `raw`:
    HellaSwag's context and endings as its rows have them, which build-nanogpt reads."""

    benchmark: str = ""
    choices: tuple[str, ...] = ()
    label: int = 0
    raw: tuple[str, ...] = ()

    @property
    def context(self) -> str:
        return self.question

    def fingerprint(self) -> list:
        return [*super().fingerprint(), self.benchmark, list(self.choices), self.label]

    @property
    def asked(self) -> tuple[str, tuple[str, ...], int]:
        """What makes it the same item, whatever it is called."""
        return self.question, self.choices, self.label


@dataclass(frozen=True)
class Benchmark:
    """Where rows come from, and what is made of one."""

    texts: tuple[str, ...]  # fields that a row needs, none of them blank
    context: Callable[[dict], str]  # of a row's fields -> what is read before the choices
    choices: tuple[str, ...] | None  # by label; None where a row brings its own
    hub: tuple[str, str | None, str, str]  # data set, configuration, sides to train and test on (with public labels)
    measure: str = "acc"  # of assessment.likelihood's; what lm-evaluation-harness calls its accuracy


def clean_hellaswag(text: str) -> str:
    """HellaSwag's texts without the marks of the pages that they were taken from, as lm-evaluation-harness does it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _hellaswag(row: dict) -> str:
    return clean_hellaswag(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")


def _entailment(row: dict) -> str:
    claim = row["hypothesis"].strip()
    return f"{row['premise']}\nQuestion: {claim}{'' if claim.endswith('.') else '.'} True, False or Neither?\nAnswer:"


def _glue(name: str, template: str, *choices: str) -> Benchmark:
    """`template`: the context, with a row's fields in braces."""
    return Benchmark(
        tuple(re.findall(r"{(\w+)}", template)), lambda row: template.format_map(row), choices,
        ("nyu-mll/glue", name, "train", "validation"),
    )  # fmt: skip


PAIR = "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:"
SAME = "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Do both sentences mean the same thing?\nAnswer:"
FEELS = "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:"
ANSWERS = "{question}\n{sentence}\nQuestion: Does this response answer the question?\nAnswer:"
ASKS_SAME = "Question 1: {question1}\nQuestion 2: {question2}\nQuestion: Do both questions ask the same thing?\nAnswer:"
NLI = ("premise", "hypothesis"), _entailment, ("True", "Neither", "False")
BENCHMARKS = {
    "hellaswag": Benchmark(
        ("activity_label", "ctx_a"), _hellaswag, None, ("Rowan/hellaswag", None, "train", "validation"), "acc_norm"
    ),
    "snli": Benchmark(*NLI, ("stanfordnlp/snli", None, "train", "test")),
    "mnli": Benchmark(*NLI, ("nyu-mll/glue", "mnli", "train", "validation_matched")),
    "sst2": _glue("sst2", FEELS, "negative", "positive"),
    "mrpc": _glue("mrpc", SAME, "no", "yes"),
    "qnli": _glue("qnli", ANSWERS, "yes", "no"),
    "qqp": _glue("qqp", ASKS_SAME, "no", "yes"),
    "rte": _glue("rte", PAIR, "True", "False"),
    "cola": _glue("cola", "{sentence}\nQuestion: Does this sentence make sense?\nAnswer:", "no", "yes"),
    "wnli": _glue("wnli", PAIR, "False", "True"),
}  # fmt: skip


def item_of_row(benchmark: str, row: dict, where: str, default_id: str) -> ChoiceItem | None:
    """A row of a benchmark as an item; None where it has no gold answer (SNLI's -1), or clean-up leaves a choice empty.
    Raises UserError if a field is missing, HellaSwag's `endings` are not four, or the label is none of a choice."""
    kind = BENCHMARKS[benchmark]
    texts = {name: row.get(name) for name in kind.texts}
    if missing := [name for name, text in texts.items() if not isinstance(text, str) or not text.strip()]:
        raise UserError(f"{where}: the field '{missing[0]}' is missing or empty. {benchmark} needs it as text.")
    choices = kind.choices
    if choices is None:
        if not isinstance(row.get("ctx_b"), str):  # where a context ends with a sentence it is empty
            raise UserError(f"{where}: the field 'ctx_b' is missing. A row of {benchmark} needs it as text.")
        choices = _endings(row.get("endings"), where)
    label = _label(row.get("label"), len(choices), where, none=benchmark == "snli")
    if label == NO_GOLD or not all(choices):
        return None
    context, name = kind.context(row), f"{benchmark}:{default_id}"
    raw = (row["ctx"], *row["endings"]) if kind.choices is None and isinstance(row.get("ctx"), str) else ()
    return ChoiceItem(name, context, choices[label], choices[label], benchmark, choices, label, raw)


def _endings(value: object, where: str) -> tuple[str, ...]:
    texts = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    found = [text for text in texts if isinstance(text, str) and text.strip()]
    if not len(texts) == len(found) == 4:
        raise UserError(f"{where}: 'endings' holds {len(found)} choices, not 4: a choice is missing or empty.")
    return tuple(map(clean_hellaswag, texts))


def _label(value: object, choices: int, where: str, none: bool) -> int:
    """A label as a number; HellaSwag writes it as text."""
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]{1,9}", str(value)):
        raise UserError(f"{where}: the label is missing or no whole number. It must be 0 to {choices - 1}.")
    label = int(str(value))
    if not 0 <= label < choices and not (none and label == NO_GOLD):
        raise UserError(f"{where}: the label is {label}, out of range. It must be 0 to {choices - 1}.")
    return label


def raw_items(items: Sequence[ChoiceItem]) -> list[ChoiceItem]:
    """HellaSwag's items once more, under the name RAW and without examples, as their rows have them."""
    return [replace(x, benchmark=RAW, question=x.raw[0], choices=x.raw[1:]) for x in items if x.raw]


def rows_of_side(data: DataConfig, benchmark: str, side: str) -> list[ChoiceItem]:
    """All items of a benchmark's side, train or test. Raises UserError as `read_jsonl` and `load_hub`."""
    read = partial(item_of_row, benchmark)
    if data.source == "own":
        rows = read_jsonl(OWN / f"{benchmark}.jsonl", "own", read)
        return rows[:OWN_SHOWN] if side == "train" else rows[OWN_SHOWN:]
    if data.source == "jsonl":
        name = getattr(data, f"{side}_file").replace("{benchmark}", benchmark)
        return read_jsonl(project_root() / name, side, read)
    name, config, *sides = BENCHMARKS[benchmark].hub
    return load_hub(name, config, data.revision, sides[side == "test"], read)


def with_shots(items: Sequence[ChoiceItem], pool: Sequence[ChoiceItem], shots: int) -> list[ChoiceItem]:
    """Items behind worked examples, drawn for each in turn as lm-evaluation-harness draws them by default.

    None is the item itself; the harness looks at further fields of a row. Raises UserError if there are too few."""
    random, found = Random(SHOTS_SEED), []
    for item in items:
        before = (f"{one.context}{BEHIND}{one.answer}{BETWEEN}" for one in _shown(random, item, pool, shots))
        found.append(replace(item, question="".join(before) + item.context))
    return found


def _shown(random: Random, item: ChoiceItem, pool: Sequence[ChoiceItem], shots: int) -> list[ChoiceItem]:
    try:
        shown = [one for one in random.sample(pool, shots + 1) if one.asked != item.asked][:shots]
        if len(shown) == shots:
            return shown
        return random.sample([one for one in pool if one.asked != item.asked], shots)  # it stood there more than once
    except ValueError as error:  # a sample larger than what it is drawn from
        raise UserError(
            f"{item.benchmark}: data.shots {shots} needs more than {len(pool)} items in the training side."
        ) from error


class Choices(Task):
    """Items of several benchmarks, to be scored by `assessment.likelihood`."""

    def items(self, data: DataConfig, split: str, count: int, seed: int) -> list[ChoiceItem]:
        """At most `count` items of each benchmark, in their order; the test items behind `data.shots` others.

        Nothing is drawn by `seed`: the same examples are shown as by lm-evaluation-harness."""
        start = start_of(data, split)
        found: list[ChoiceItem] = []
        for benchmark in data.benchmarks if count else ():
            items = rows_of_side(data, benchmark, side_of(split))[start : start + count]
            if split == "test" and data.shots:
                items = with_shots(items, rows_of_side(data, benchmark, "train"), data.shots)
            found += items
        return found

    def judge(self, item: Item, response: str, read: Reader) -> Judgement:
        """Of a model that writes: its response is the right choice, word for word."""
        text = response.strip()
        if not text:
            return Judgement(None, "none", None, False)
        begin = response.find(text)
        return Judgement(text, "whole", (begin, begin + len(text)), text == item.answer)


TASK = Choices()
