"""Items: a question, its gold solution and its answer as an exact number; and where they come from."""

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random

from primekd.config import DataConfig, Profile
from primekd.foundation.errors import UserError
from primekd.foundation.outside import clean, hide
from primekd.foundation.provenance import hash_json, project_root, relative_name

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
NUMBER = re.compile(r"[+-]?\s*(([0-9]{1,3}(,[0-9]{3})+|[0-9]+)(\.[0-9]*)?|\.[0-9]+)")
FRACTION = re.compile(r"(?P<sign>[+-]?)\s*(?:(?P<whole>[0-9]+)\s+)?(?P<over>[0-9]+)\s*/\s*(?P<under>[0-9]+)")
MOST_DIGITS = 4000  # Python reads whole numbers of 4,300 digits, no more
# Ids of generated items, and `<template>-<instance>` as in GSM-Symbolic's own files.
TEMPLATE = re.compile(r"(?P<template>(?:gsm-symbolic-)?[0-9]+)-[0-9]+")
SPLITS = ("train", "validation", "test", "teacher")
# Each split of generated items owns some of the 100 buckets that a question's hash falls into, so that no
# question can stand in two splits, whatever the seeds.
BUCKETS = {"test": range(0, 15), "validation": range(15, 20), "train": range(20, 40), "teacher": range(40, 100)}


@dataclass(frozen=True)
class Item:
    """One problem. `solution` has no calculator marks and ends in its `#### answer` line."""

    id: str
    question: str
    solution: str
    answer: Fraction

    def fingerprint(self) -> list[str]:
        """What is hashed of an item."""
        return [self.id, self.question, self.solution, str(self.answer)]


def parse_answer(text: str) -> Fraction:
    """The number of a gold answer: `1,080`, `-3`, `$29.00`, `1/3`, `2 1/2` or a whole solution ending in `#### 18`.

    Raises:
        ValueError: it is no plain number, or too long for one.
    """
    tail = str(text).rsplit("####", 1)[-1].strip()
    if len(tail) > MOST_DIGITS:
        raise ValueError(f"{tail[:20]!r}… is longer than {MOST_DIGITS:,} characters")
    cleaned = re.sub(r"[$€£]", "", tail.replace("\u2212", "-")).strip().removesuffix("%").removesuffix(".").rstrip()
    if found := FRACTION.fullmatch(cleaned):
        whole, over, under = (Fraction(found[part] or 0) for part in ("whole", "over", "under"))
        if under:
            return (whole + over / under) * (-1 if found["sign"] == "-" else 1)
    elif NUMBER.fullmatch(cleaned):
        return Fraction(re.sub(r"[\s,]", "", cleaned))
    raise ValueError(f"{tail[:60]!r} is no number")


def strip_calculator_marks(solution: str) -> str:
    """GSM8K's solutions carry `<<48/2=24>>` for a calculator; students are trained without them."""
    return CALCULATOR_MARK.sub("", solution).strip()


def hash_items(items: Iterable[Item]) -> str:
    """sha256 over the items, in order."""
    return hash_json([item.fingerprint() for item in items])


def template_of(item_id: str) -> str:
    """The template that an item was made from, as its id says; an item without one stands for itself.

    Items of one template are no independent draws: what a model learned of one, it knows of all.
    """
    match = TEMPLATE.fullmatch(item_id)
    return match["template"] if match else item_id


def refuse_duplicates(items: Sequence[Item], where: str) -> None:
    """Raises UserError if an item id stands twice."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UserError(
                f"{where}: the item id {item.id!r} occurs twice. Give every item an id of its own, or leave ids out."
            )
        seen.add(item.id)


def refuse_overlap(items: Sequence[Item], name: str, others: dict[str, list[Item]]) -> None:
    """Raises UserError if a question of `items` stands in another split too: its score would be worth nothing."""
    own = {item.question for item in items}
    for split, rows in others.items():
        if shared := [item.id for item in rows if item.question in own]:
            raise UserError(
                f"{len(shared)} questions stand in the {name} items and in the {split} items too (first: {shared[0]}): "
                "mend the data that the profile names."
            )


def read_jsonl(path: Path, prefix: str) -> list[Item]:
    """Items of a JSONL file with the fields that `item_of_row` reads.

    Raises:
        UserError: the file is absent, a line is no JSON object, a field is missing or empty, an answer is no number,
            or an id occurs twice; the sentence names the file and the line.
    """
    name = relative_name(path)
    if not path.is_file():
        raise UserError(
            f"{path} is not there: check data.train_file and data.test_file in the profile (YAML wants quotes around "
            "a path with # or : in it)."
        )
    # Split on newlines alone: str.splitlines would also break at separators inside a question.
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append((f"{name} line {number}", f"{prefix}-{number - 1}", _parse_line(line, f"{name} line {number}")))
    return items_of_rows(name, rows)


def _parse_line(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, or brackets without end, too
        raise UserError(f"{where} is not valid JSON ({getattr(error, 'msg', error)}). Mend the line.") from error


def items_of_rows(name: str, rows: Iterable[tuple[str, str, object]]) -> list[Item]:
    """Items of a data set called `name`: (where it stands, id where it has none, fields) a row.

    Rows whose gold answer is the word None (GSM-Plus: a question without an answer) are left out, and counted aloud.

    Raises:
        UserError: there are no items, an id occurs twice, or `item_of_row` refuses a row.
    """
    found = [item_of_row(fields, where, default) for where, default, fields in rows]
    items = [item for item in found if item is not None]
    if not items:
        raise UserError(f"{name} holds no items.")
    if len(items) < len(found):
        print(f"{name}: {len(found) - len(items)} of {len(found)} rows have no gold answer: left out.", file=sys.stderr)
    refuse_duplicates(items, name)
    return items


def item_of_row(row: object, where: str, default_id: str) -> Item | None:
    """One row of a data set as an item; None where its gold answer is the word None.

    GSM8K and Platinum: `answer` is a solution that ends in `#### 18`. GSM-Plus: `answer` is a number, which counts, the
    solution stands in `solution`. MGSM: the number is `answer_number`, and `answer` a solution or null. GSM-Symbolic:
    `id` names a template and `instance` the item.

    Raises:
        UserError: it has no question or answer, or they cannot be read; the sentence begins with `where`.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object with the fields question and answer.")
    row = {name: _text(row.get(name)) for name in ("id", "instance", "question", "answer", "answer_number", "solution")}
    gold = row["answer_number"] or row["answer"]
    for field, value in (("question", row["question"]), ("answer", gold)):
        if not value:
            raise UserError(f"{where}: the field '{field}' is missing or empty. Every item needs question and answer.")
    if gold.lower() == "none":
        return None
    item_id = "-".join(part for part in (row["id"], row["instance"]) if part) if row["id"] else default_id
    try:
        f"{item_id}{row['question']}{row['answer']}{row['solution']}".encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the text holds half of a surrogate pair. Save it as valid UTF-8.") from error
    try:
        answer = parse_answer(gold)
    except ValueError as error:
        raise UserError(f"{where}: the answer {error}. It must be a number or end in '#### number'.") from error
    solution = strip_calculator_marks(row["solution"] or row["answer"])
    return Item(item_id, row["question"], _ending_in(solution, gold, answer), answer)


def _text(value: object) -> str:
    """A field as text, trimmed; '' where it is null or neither text nor a number."""
    if isinstance(value, float) and math.isfinite(value):  # 18.0 and 1e22 written out
        value = format(Decimal(repr(value)), "f").removesuffix(".0")
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _ending_in(solution: str, gold: str, answer: Fraction) -> str:
    """A solution with its `#### answer` line, where the data set keeps the answer in a field of its own."""
    reasoning, mark, end = solution.rpartition("####")
    try:
        if mark and parse_answer(end) == answer:
            return solution
    except ValueError:
        pass
    reasoning = reasoning if mark else solution.removesuffix(gold)
    return f"{reasoning.rstrip()}\n#### {gold}".lstrip()


def bucket_of(question: str) -> int:
    """0 to 99, from the question's text alone."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100


def generate_gsm_symbolic(templates: Sequence[int], split: str, count: int, seed: int, difficulty: float) -> list[Item]:
    """`count` GSM-Symbolic items from reasoning-gym's templates, in turn, all different, of one split.

    Source: Mirzadeh et al., "GSM-Symbolic", arXiv 2410.05229, in reasoning-gym's implementation.

    Raises:
        UserError: a template does not exist, or the templates hold too few different questions for the split.
    """
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset, GSMSymbolicDatasetConfig

    generators = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1)).generators
    if unknown := [t for t in templates if t not in generators]:
        raise UserError(f"reasoning-gym has no GSM-Symbolic template {unknown}: mend data.templates in the profile.")
    items: list[Item] = []
    seen: set[str] = set()
    misses = dict.fromkeys(templates, 0)  # draws since the template's last new question; 2,000 means exhausted
    draw = 0
    while len(items) < count:
        live = [t for t in templates if misses[t] < 2000]
        if not live:
            raise UserError(
                f"The templates {list(templates)} hold only {len(items)} different questions for the split {split!r}; "
                f"{count} were asked for. Ask for fewer items or name more templates."
            )
        template = live[draw % len(live)]
        draw_seed = int.from_bytes(hashlib.sha256(f"{split}/{seed}/{draw}".encode()).digest()[:6], "big")
        draw += 1
        example = generators[template](Random(draw_seed), difficulty)
        question = example["question"].strip()
        if question in seen or bucket_of(question) not in BUCKETS[split]:
            misses[template] += 1
            continue
        misses[template] = 0
        seen.add(question)
        solution = example["metadata"]["answer_cot"].strip()
        items.append(Item(f"gsm-symbolic-{template}-{draw_seed}", question, solution, parse_answer(example["answer"])))
    return items


def _load_hub(data: DataConfig, side: str) -> list[Item]:
    """One side of the hub's data set, or of the one that the profile names for training."""
    from datasets import load_dataset
    from huggingface_hub import get_token

    hide(get_token() or "")
    name, config, revision = data.hub_side(side)
    try:
        rows = load_dataset(name, config, split=side, revision=revision)
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had
        raise UserError(
            f"The dataset {name!r} ({config}, {side}) could not be loaded from the hub ({type(error).__name__}: "
            f"{clean(error)}). Go online, name the set with the training items in data.train_dataset, or set "
            "data.source: jsonl with train_file and test_file in the profile."
        ) from error
    return items_of_rows(name, ((f"{name} {side} row {i}", f"{side}-{i}", dict(row)) for i, row in enumerate(rows)))


def _take(rows: Sequence[Item], start: int, count: int, what: str) -> list[Item]:
    if start + count > len(rows):
        raise UserError(
            f"The profile asks for {count} {what} items from place {start} on, and the source has {len(rows)} in all: "
            "lower data.train_items, data.validation_items or data.test_items."
        )
    return list(rows[start : start + count])


def load_items(profile: Profile, split: str, count: int | None = None) -> list[Item]:
    """The profile's items of one split: train, validation, test, or teacher (for `prepare-teacher` alone).

    Raises:
        UserError: the source is not to be had, holds too few items, or holds an item twice.
    """
    data = profile.data
    counts = {"train": data.train_items, "validation": data.validation_items, "test": data.test_items}
    wanted = counts.get(split, 0) if count is None else count
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}")
    if data.source == "gsm-symbolic":
        items = generate_gsm_symbolic(data.templates, split, wanted, profile.seed, data.difficulty)
        refuse_duplicates(items, "gsm-symbolic")
        return items
    side = "test" if split == "test" else "train"
    if data.source == "hub":
        rows = _load_hub(data, side)
    else:
        file = data.test_file if side == "test" else data.train_file
        rows = read_jsonl((project_root() / file).resolve(), side)
    start = {"train": 0, "test": 0, "validation": data.train_items}.get(split, data.train_items + data.validation_items)
    items = _take(rows, start, wanted, split)
    refuse_duplicates(items, data.source)
    return items
