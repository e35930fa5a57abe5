"""Items: exact gold answers, clean solutions, disjoint splits, and one sentence for every bad input."""

import json
import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT, small_profile

from primekd.config import DataConfig
from primekd.foundation.errors import UserError
from primekd.tasks.gsm8k import item_of_row, strip_calculator_marks
from primekd.tasks.gsm_symbolic import generate_gsm_symbolic
from primekd.tasks.load import load_items
from primekd.tasks.numbers import parse_answer
from primekd.tasks.rows import load_hub, read_jsonl, rows_of_data
from primekd.tasks.splits import BUCKETS, SPLITS, bucket_of, hash_items

TEMPLATES = (26, 43, 58)
GSM8K = Path(os.environ.get("PRIMEKD_GSM8K", ROOT.parent / "shared" / "data" / "gsm8k"))


@pytest.mark.parametrize(
    "text, value",
    [
        ("18", "18"),
        ("1,080", "1080"),
        ("1,234,567.50", "1234567.50"),
        ("-3", "-3"),
        ("\u22123", "-3"),
        ("+4", "4"),
        ("$29.00", "29"),
        ("-$5", "-5"),
        ("0.1", "0.1"),
        (".5", "0.5"),
        ("20%", "20"),
        ("7.", "7"),
        ("He has 3 + 15 = 18.\n#### 18", "18"),
        ("3 #### 4\n#### -1,000", "-1000"),
        ("9" * 4000, "9" * 4000),
    ],
)
def test_gold_answers_are_exact_decimals(text, value):
    assert parse_answer(text) == Decimal(value)


@pytest.mark.parametrize(
    "text",
    ["", "many", "#### many", "1/0", "1/2/3", "0.5/2", "12 or 13", "12, 15", "1.2.3", "--3", "1e5", "NaN", "-", "$"],
)
def test_what_is_no_plain_number_is_refused(text):
    with pytest.raises(ValueError, match="is no number"):
        parse_answer(text)


@pytest.mark.parametrize("text, value", [("1/3", (1, 3)), ("-7/2", (-7, 2)), ("2 1/2", (5, 2)), ("#### 3 / 4", (3, 4))])
def test_fractions_are_exact(text, value):
    assert parse_answer(text) == Fraction(*value)


@pytest.mark.parametrize("text", ["9" * 5000, "1/" + "9" * 5000, "." + "9" * 5000, "#### " + "9" * 5000])
def test_what_is_longer_than_any_number_is_refused(text):
    with pytest.raises(ValueError, match="longer than 4,000"):
        parse_answer(text)


def test_calculator_marks_are_removed_and_nothing_else_is():
    solution = "48/2 = <<48/2=24>>24 clips, and 3 < 4.\n48+24 = <<48+24=72>>72\n#### 72"
    assert strip_calculator_marks(solution) == "48/2 = 24 clips, and 3 < 4.\n48+24 = 72\n#### 72"


# JSONL.


def write_jsonl(folder, *rows):
    path = folder / "items.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


GOOD = {"question": " How many? ", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}


def test_jsonl_items_have_clean_text_and_ids_of_their_own(output):
    path = write_jsonl(output, GOOD, "", {**GOOD, "id": "mine"}, {"question": "a\u2028b", "answer": "-1,000"})
    first, second, third = read_jsonl(path, "train", item_of_row)
    assert (first.id, first.question, first.solution, first.answer) == ("train-0", "How many?", "1 + 1 = 2\n#### 2", 2)
    assert second.id == "mine"
    assert (third.question, third.answer) == ("a\u2028b", -1000)  # a line separator inside a text ends no line


BAD_ROWS = {
    "a missing question": ({"answer": "3"}, "question"),
    "a missing answer": ({"question": "q"}, "answer"),
    "an empty answer": ({"question": "q", "answer": " "}, "answer"),
    "an answer that is no number": ({"question": "q", "answer": "#### many"}, "many"),
    "an answer of two numbers": ({"question": "q", "answer": "12, 15"}, "12, 15"),
    "bad JSON": ('{"question": "q", ', "JSON"),
    "a list": ("[1, 2]", "question and answer"),
    "a number": ("3", "question and answer"),
    "a number of 5,000 digits": ('{"question": "q", "answer": ' + "9" * 5000 + "}", "JSON"),
    "a text of 5,000 digits": ({"question": "q", "answer": "9" * 5000}, "longer than 4,000"),
    "brackets without end": ("[" * 200_000, "JSON"),
    "a null answer": ({"question": "q", "answer": None}, "'answer' is missing"),
    "an answer that is true": ({"question": "q", "answer": True}, "'answer' is missing"),
    "an answer without bound": ('{"question": "q", "answer": 1e999}', "inf"),
}


@pytest.mark.parametrize("row, what", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_one_sentence_with_file_and_line(row, what, output):
    path = write_jsonl(output, GOOD, row)
    with pytest.raises(UserError, match="items.jsonl line 2") as refusal:
        read_jsonl(path, "train", item_of_row)
    assert what in str(refusal.value) and "\n" not in str(refusal.value)


# One row of each data set that is like GSM8K: its fields, and the item that they make.
SETS = {
    "GSM8K-Platinum": (
        {"question": "q", "answer": "1 + 1 = 2\n#### 2", "cleaning_status": "verified"}, ("x-0", "1 + 1 = 2\n#### 2", 2)
    ),
    "GSM-Symbolic": (
        {"id": 7, "instance": 3, "question": "q", "answer": "so\n#### 4", "original_id": 5}, ("7-3", "so\n#### 4", 4)
    ),
    "GSM-Plus": (
        {"question": "q", "solution": "A third.\n#### 1/3", "answer": "1/3"},
        ("x-0", "A third.\n#### 1/3", Fraction(1, 3)),
    ),
    "a solution of its own": (
        {"question": "q", "solution": "Two.", "answer": "2", "id": None}, ("x-0", "Two.\n#### 2", 2)
    ),
    "MGSM, test": ({"question": "q", "answer": None, "answer_number": 18}, ("x-0", "#### 18", 18)),
    "MGSM, train": (
        {"question": "q", "answer": "It is 11.", "answer_number": 11.0}, ("x-0", "It is 11.\n#### 11", 11)
    ),
    "a bare number": ({"question": "q", "answer": 1e22, "id": ""}, ("x-0", "#### 1" + "0" * 22, 10**22)),
}  # fmt: skip


@pytest.mark.parametrize("row, wanted", SETS.values(), ids=SETS)
def test_rows_of_every_set_like_gsm8k_become_items_from_jsonl_and_from_the_hub_alike(row, wanted, output, monkeypatch):
    (item,) = read_jsonl(write_jsonl(output, row), "x", item_of_row)
    assert (item.id, item.solution, item.answer) == wanted and parse_answer(item.solution) == item.answer
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [row])
    (same,) = load_hub("openai/gsm8k", "main", None, "x", item_of_row)
    assert same == item


def test_questions_without_an_answer_are_left_out_and_counted(output, capsys):
    path = write_jsonl(output, GOOD, {"question": "how?", "solution": "None", "answer": "None"}, GOOD)
    assert [item.id for item in read_jsonl(path, "x", item_of_row)] == ["x-0", "x-2"]
    assert "items.jsonl: 1 of 3 rows have no gold answer to judge by: left out." in capsys.readouterr().err


def test_a_byte_order_mark_belongs_to_no_line(output):
    path = write_jsonl(output, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [item.id for item in read_jsonl(path, "x", item_of_row)] == ["x-0"]


def test_a_set_without_a_training_side_takes_it_from_another(monkeypatch):
    def load(name, config, split, revision):
        if (name, split) == ("madrylab/gsm8k-platinum", "train"):
            raise ValueError("Unknown split 'train'.\x1b[31m Should be one of ['test'].")
        count = 8 if split == "train" else 2
        return [{"question": f"{name} {config} {revision} {split} {n}", "answer": str(n)} for n in range(count)]

    monkeypatch.setattr("datasets.load_dataset", load)
    data = {"source": "hub", "hub_dataset": "madrylab/gsm8k-platinum", "revision": "r"}
    data |= {"train_items": 4, "validation_items": 2, "test_items": 2}
    with pytest.raises(UserError, match=r"Unknown split 'train'\. Should.*data\.train_dataset"):
        rows_of_data(DataConfig(**data), "train", item_of_row)
    both = DataConfig(**data, train_dataset="openai/gsm8k")
    assert rows_of_data(both, "train", item_of_row)[0].question == "openai/gsm8k main None train 0"
    assert rows_of_data(both, "test", item_of_row)[0].question == "madrylab/gsm8k-platinum main r test 0"


def test_an_id_that_occurs_twice_is_refused_by_name(output):
    path = write_jsonl(output, {**GOOD, "id": "x7"}, {**GOOD, "id": "x7"})
    with pytest.raises(UserError, match=r"items\.jsonl: the item id 'x7' occurs twice"):
        read_jsonl(path, "train", item_of_row)


def test_an_absent_an_empty_and_a_binary_file_are_refused_by_name(output):
    with pytest.raises(UserError, match="nowhere.jsonl"):
        read_jsonl(output / "nowhere.jsonl", "train", item_of_row)
    with pytest.raises(UserError, match=r"items\.jsonl holds no items"):
        read_jsonl(write_jsonl(output, ""), "train", item_of_row)
    (output / "items.jsonl").write_bytes(b'{"question": "caf\xe9", "answer": "3"}\n')
    with pytest.raises(UserError, match="items.jsonl"):
        read_jsonl(output / "items.jsonl", "train", item_of_row)


def jsonl_profile(folder, train_rows, test_rows, **counts):
    for name, count in (("train", train_rows), ("test", test_rows)):
        rows = [json.dumps({"question": f"{name} {n}?", "answer": str(n)}) + "\n" for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    files = {f"{name}_file": str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return small_profile(folder, data={"source": "jsonl", **files, **counts})


def test_validation_items_come_from_the_training_side_after_the_training_items(output):
    profile = jsonl_profile(output, 20, 9, train_items=10, validation_items=4, test_items=5)
    train, validation, test = (load_items(profile, split) for split in ("train", "validation", "test"))
    assert [i.answer for i in train] == list(range(10))
    assert [i.answer for i in validation] == list(range(10, 14))
    assert [i.question for i in test] == [f"test {n}?" for n in range(5)]
    assert [i.answer for i in load_items(profile, "teacher", 6)] == list(range(14, 20))


def test_asking_for_more_items_than_there_are_is_refused(output):
    profile = jsonl_profile(output, 20, 9, train_items=18, validation_items=4, test_items=10)
    for split in ("validation", "test"):
        with pytest.raises(UserError, match=f"{split} items.*lower data"):
            load_items(profile, split)


# GSM-Symbolic.


def test_generated_items_are_the_same_every_time_and_others_for_another_seed():
    first, again = (generate_gsm_symbolic(TEMPLATES, "train", 9, seed=0, difficulty=1.0) for _ in range(2))
    assert first == again and hash_items(first) == hash_items(again)
    other = generate_gsm_symbolic(TEMPLATES, "train", 9, seed=1, difficulty=1.0)
    assert {i.question for i in first} != {i.question for i in other}
    assert hash_items(first) != hash_items(other)


def test_generated_splits_share_no_question_whatever_their_seeds():
    questions: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for seed in (0, 1, 2):
            found = generate_gsm_symbolic(TEMPLATES, split, 30, seed, 1.0)
            assert len({i.question for i in found}) == len({i.id for i in found}) == 30
            assert {bucket_of(i.question) for i in found} <= set(BUCKETS[split])
            questions[split] |= {i.question for i in found}
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not questions[one] & questions[other]


def test_the_splits_buckets_cover_everything_once():
    assert sorted(bucket for buckets in BUCKETS.values() for bucket in buckets) == list(range(100))


def test_generated_solutions_end_in_their_answer_and_carry_no_marks():
    for item in generate_gsm_symbolic(TEMPLATES, "test", 12, seed=0, difficulty=1.0):
        assert parse_answer(item.solution) == item.answer
        assert "####" in item.solution and "<<" not in item.solution


def test_every_template_is_used_in_turn():
    ids = [i.id for i in generate_gsm_symbolic(TEMPLATES, "teacher", 30, seed=0, difficulty=1.0)]
    assert {i.split("-")[2] for i in ids} == {"26", "43", "58"}


def test_an_unknown_template_is_refused():
    with pytest.raises(UserError, match=r"\[999\].*data\.templates"):
        generate_gsm_symbolic((26, 999), "train", 2, 0, 1.0)


def test_templates_that_run_out_are_refused_instead_of_repeating(monkeypatch):
    from random import Random

    def generate(random: Random, difficulty: float):
        number = random.randrange(50)
        return {"question": f"What is {number}?", "answer": str(number), "metadata": {"answer_cot": f"#### {number}"}}

    monkeypatch.setattr("primekd.tasks.gsm_symbolic._generators", lambda: {26: generate})
    with pytest.raises(UserError, match="different questions for the split 'train'"):
        generate_gsm_symbolic((26,), "train", 50, 0, 1.0)


# The real GSM8K.


@pytest.mark.skipif(not GSM8K.is_dir(), reason="name a folder with GSM8K's train.jsonl and test.jsonl in PRIMEKD_GSM8K")
@pytest.mark.parametrize("name, count, first", [("train", 7473, 72), ("test", 1319, 18)])
def test_all_of_gsm8k_parses_with_exact_answers(name, count, first, output):
    path = GSM8K / f"{name}.jsonl"
    found = read_jsonl(path, name, item_of_row)
    assert len(found) == count and found[0].answer == first
    with open(path, encoding="utf-8") as handle:
        golds = [json.loads(line)["answer"].rsplit("#### ", 1)[1] for line in handle]
    assert [i.answer for i in found] == [Decimal(gold.replace(",", "")) for gold in golds]
    assert not any("<<" in i.solution for i in found)


@pytest.mark.skipif(not GSM8K.is_dir(), reason="name a folder with GSM8K's train.jsonl and test.jsonl in PRIMEKD_GSM8K")
def test_a_profile_reads_gsm8k_from_a_local_path(output):
    files = {f"{name}_file": str(GSM8K / f"{name}.jsonl") for name in ("train", "test")}
    counts = {"train_items": 2638, "validation_items": 100, "test_items": 1319}
    profile = small_profile(output, data={"source": "jsonl", **files, **counts})
    train, validation, test = (load_items(profile, split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (2638, 100, 1319)
    assert not {i.question for i in train} & {i.question for i in validation}
