"""From answers to numbers: grading, logs, statistics, the held-out fit and the summary."""

import csv
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import save_llama, small_profile
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from transformers import AutoModelForCausalLM

from primekd.assessment.answers import Answer, answer_inputs, generate_answers
from primekd.assessment.grade import COLUMNS, LogRow, grade_answer, grade_answers, read_log, write_log
from primekd.assessment.held_out import HeldOutRow, measure, read_rows, write_rows
from primekd.assessment.statistics import accuracy, accuracy_difference, holm, mcnemar_exact, ratio, ratio_difference
from primekd.assessment.summary import (
    MEASURES,
    claims,
    contrast,
    planned_contrasts,
    summarise,
    title_of,
    write_summary,
)
from primekd.capture import capture, held_out_job, open_signals
from primekd.chat import build_prompt, encode_response
from primekd.errors import UserError
from primekd.items import Item, load_items
from primekd.teachers import Sampling
from primekd.teachers.transformers_engine import TransformersEngine


def item(number: str = "18", item_id: str = "a") -> Item:
    return Item(item_id, "How many?", f"#### {number}", Decimal(number))


def answer(text: str, item_id: str = "a", tokens: int = 3, truncated: bool = False) -> Answer:
    return Answer(item_id, list(range(tokens)), truncated, text)


# Grading.


@pytest.mark.parametrize(
    "gold, text, correct, extracted, rule",
    [
        ("18", r"\boxed{18}", True, "18", "boxed"),
        ("29", "It costs 3 + 26.\nThe answer is $29.00.", True, "29", "phrase"),
        ("29.00", "29", True, "29", "first-line"),
        ("1000", "1 or 2\n1,000", True, "1000", "last-number"),
        ("-4", "-4", True, "-4", "first-line"),
        ("4", "-4", False, "-4", "first-line"),
        ("18", "180", False, "180", "first-line"),
        ("0.5", "1/2", True, "0.5", "first-line"),
        ("18", "no idea", False, "-1", "none"),
        ("-1", "no idea", False, "-1", "none"),  # not found is no answer, even where the gold value is -1
        ("-1", "-1", True, "-1", "first-line"),
        ("18", "", False, "-1", "none"),
    ],
)
def test_answers_are_compared_as_numbers(gold, text, correct, extracted, rule):
    row = grade_answer(item(gold), answer(text))
    assert (row.correct, row.extracted, row.rule) == (correct, extracted, rule)
    assert (row.span == "") == (rule == "none")


def test_a_row_keeps_the_item_the_answer_and_where_the_number_stood():
    row = grade_answer(item("18.50", "q7"), answer("a 1\nb 18.5!", "q7", tokens=9, truncated=True))
    assert (row.id, row.question, row.gold, row.response_tokens, row.truncated) == ("q7", "How many?", "18.5", 9, True)
    start, end = map(int, row.span.split(":"))
    assert "a 1\nb 18.5!"[start:end] == ("1" if row.rule == "first-line" else "18.5")


def test_an_answer_to_another_item_is_refused():
    with pytest.raises(ValueError, match="the answer to b stands where a was asked"):
        grade_answers([item(item_id="a")], [answer("18", "b")])
    with pytest.raises(ValueError):
        grade_answers([item(item_id="a"), item(item_id="b")], [answer("18", "a")])


# Logs.

AWKWARD = [
    "",
    "a,b",
    'say "18"',
    "two\nlines\n",
    "carriage\rreturn",
    "both\r\n",
    "ä – 🙂 \u2028 x",
    " spaces ",
    "=1+1",
    "\t",
    "\x0b\x0c\x1e",
]


def test_a_log_comes_back_as_it_was_written(output):
    rows = [grade_answer(item(item_id=f"q{n}"), answer(text, f"q{n}")) for n, text in enumerate(AWKWARD)]
    write_log(output / "logs" / "m.csv", rows)
    assert read_log(output / "logs" / "m.csv") == rows


def test_a_log_has_the_designs_columns_and_writes_truth_as_1_and_0(output):
    rows = [grade_answer(item(), answer("18")), grade_answer(item(), answer("19", truncated=True))]
    write_log(output / "m.csv", rows)
    with open(output / "m.csv", encoding="utf-8", newline="") as handle:
        found = list(csv.DictReader(handle))
    columns = "id,question,gold,response,response_tokens,truncated,extracted,rule,span,correct,adjudicated"
    assert ",".join(found[0]) == columns == ",".join(COLUMNS)
    assert [(r["truncated"], r["correct"], r["adjudicated"]) for r in found] == [("0", "1", ""), ("1", "0", "")]


def rewritten(path, change) -> None:
    """Changes the log's cells: a list of rows, the header first."""
    with open(path, encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(change(rows))


DAMAGE = {
    "another header": lambda rows: [["id", "question", "golden", *rows[0][3:]], *rows[1:]],
    "a gold value that is no number": lambda rows: [rows[0], [*rows[1][:2], "many", *rows[1][3:]]],
    "a row cut short": lambda rows: [rows[0], rows[1][:5]],
    "no header": lambda rows: rows[1:],
    "empty": lambda rows: [],
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_log_is_one_sentence_with_its_name(change, output):
    write_log(output / "m.csv", [grade_answer(item(), answer("x\ny 18 z"))])
    rewritten(output / "m.csv", lambda rows: rows)
    assert len(read_log(output / "m.csv")) == 1
    rewritten(output / "m.csv", change)
    with pytest.raises(UserError, match="m.csv"):
        read_log(output / "m.csv")


def test_an_absent_log_is_one_sentence_with_its_name(output):
    with pytest.raises(UserError, match="m.csv is missing"):
        read_log(output / "m.csv")


# Statistics.


def test_the_wilson_interval_has_its_known_value():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    found = accuracy([True] * 81 + [False] * 182)
    assert found.value == pytest.approx(81 / 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert accuracy([False] * 10).low == 0 and accuracy([False] * 10).high > 0.2


@pytest.mark.parametrize("only_first, only_second", [(0, 0), (1, 0), (5, 5), (10, 2), (0, 9), (30, 12)])
def test_mcnemar_is_the_exact_binomial_test_on_the_discordant_pairs(only_first, only_second):
    first = [True] * only_first + [False] * only_second + [True] * 4 + [False] * 3
    second = [False] * only_first + [True] * only_second + [True] * 4 + [False] * 3
    found = mcnemar_exact(first, second)
    discordant = only_first + only_second
    expected = binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(second, first).p == pytest.approx(found.p)


def test_holm_multiplies_by_the_number_of_tests_that_are_left():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    p = [0.2, 0.001, 0.04, 0.04]
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert holm([]) == []


def test_a_mean_a_token_weighs_items_by_their_tokens():
    found = ratio([10.0, 1.0], [1, 10], samples=200)
    assert found.value == pytest.approx(1.0)
    assert 0.1 <= found.low <= found.value <= found.high <= 10


def test_a_paired_difference_of_equal_models_is_zero_with_no_width():
    values = list(np.random.default_rng(0).normal(size=20))
    found = ratio_difference(values, values, [3] * 20, samples=200)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    # Shifted by a constant a token, pairing leaves nothing to chance.
    shifted = ratio_difference([v + 6 for v in values], values, [3] * 20, samples=200)
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((2, 2, 2))


def test_a_bootstrap_interval_is_the_same_every_time_and_covers_a_normal_one():
    values = np.random.default_rng(1).normal(5, 2, size=400)
    first, second = (ratio(values, np.ones(400), samples=2000) for _ in range(2))
    assert first == second
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_an_accuracy_difference_is_first_minus_second():
    found = accuracy_difference([True] * 8 + [False] * 2, [True] * 5 + [False] * 5, samples=500)
    assert found.value == pytest.approx(0.3) and found.low >= 0 and found.high <= 0.7


# Answers.


@pytest.fixture
def profile(output, lively):
    counts = {"train_items": 2, "validation_items": 2, "test_items": 5}
    return small_profile(
        output, teacher={"model": lively}, student={"model": lively}, data=counts, assess={"batch_size": 1}
    )


def test_answers_are_greedy_on_the_plain_prompt_and_blocks_on_disk_are_not_made_again(profile, tokenizer):
    items = load_items(profile, "test")
    engine = TransformersEngine(profile.student.model, "float32", 1)
    inputs = answer_inputs(profile, items, None)
    answers = generate_answers(profile, "control", items, inputs, lambda: engine)
    for each, found in zip(items, answers, strict=True):
        (expected,) = engine.generate([build_prompt(tokenizer, each.question)], Sampling(profile.max_new_tokens))
        assert (found.item_id, found.ids, found.truncated) == (each.id, expected.ids, expected.truncated)
        assert found.text == tokenizer.decode(expected.ids, skip_special_tokens=True)

    def never():
        pytest.fail("the model was opened")

    assert generate_answers(profile, "control", items, inputs, never) == answers
    # A damaged block is generated again, and only that one.
    (first, second) = sorted((profile.runs / "answers" / "control").glob("block-*.json"))
    kept = first.stat().st_mtime_ns
    second.write_text(second.read_text().replace('"truncated": true', '"truncated": false', 1))
    assert generate_answers(profile, "control", items, inputs, lambda: engine) == answers
    assert first.stat().st_mtime_ns == kept
    # Other inputs share nothing.
    opened = []
    generate_answers(profile, "control", items, inputs | {"adapter": {"x": "y"}}, lambda: opened.append(1) or engine)
    assert opened


def test_the_same_limit_and_decoding_stand_in_every_models_inputs(profile):
    items = load_items(profile, "test")
    control, student = answer_inputs(profile, items, None), answer_inputs(profile, items, {"adapter/x": "abc"})
    assert {key for key in control if control[key] != student[key]} == {"adapter"}
    assert control["max_new_tokens"] == profile.max_new_tokens and control["decoding"] == "greedy"


def test_a_half_written_answer_block_ends_in_one_sentence_or_is_made_again(profile):
    items = load_items(profile, "test")
    engine = TransformersEngine(profile.student.model, "float32", 1)
    inputs = answer_inputs(profile, items, None)
    answers = generate_answers(profile, "control", items, inputs, lambda: engine)
    block = profile.runs / "answers" / "control" / "block-00000.json"
    block.write_text(block.read_text()[:50])
    try:
        assert generate_answers(profile, "control", items, inputs, lambda: engine) == answers
    except UserError as error:
        assert "block-00000.json" in str(error)


# The held-out fit.


@pytest.fixture
def reference(profile):
    capture(held_out_job(profile))
    return open_signals(held_out_job(profile))


def test_a_student_that_is_its_teacher_has_no_divergence(profile, reference):
    items = load_items(profile, "test")
    rows = measure(profile, "control", TransformersEngine(profile.student.model, "float32"), items, reference)
    assert [r.id for r in rows] == [i.id for i in items]
    for row in rows:
        assert abs(row.kl) < 1e-4 * row.teacher_tokens
        assert row.teacher_tokens == len(reference.item(row.id).response_ids) and row.nll_gold > 0


def test_the_held_out_fit_equals_a_float64_reference_from_plain_forwards(profile, reference, tokenizer, tmp_path):
    (tmp_path / "other").mkdir()
    other = save_llama(tmp_path / "other", tokenizer, seed=7)
    items = load_items(profile, "test")[:2]
    rows = measure(profile, "other", TransformersEngine(other, "float32"), items, reference)

    def log_probs(model: str, prompt: list[int], response: list[int]) -> torch.Tensor:
        plain = AutoModelForCausalLM.from_pretrained(model.removeprefix("path:"), dtype=torch.float64)
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + response])).logits[0]
        return logits[len(prompt) - 1 : -1, : len(tokenizer)].log_softmax(-1)

    for each, row in zip(items, rows, strict=True):
        prompt, taught = build_prompt(tokenizer, each.question), reference.item(each.id).response_ids
        p, q = log_probs(profile.teacher.model, prompt, taught), log_probs(other, prompt, taught)
        assert row.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
        gold = encode_response(tokenizer, each.solution)
        on_gold = log_probs(other, prompt, gold)
        assert row.gold_tokens == len(gold)
        assert row.nll_gold == pytest.approx(
            -float(on_gold[torch.arange(len(gold)), torch.tensor(gold)].sum()), rel=1e-4
        )


def test_held_out_rows_come_back_as_they_were_written(output):
    rows = [HeldOutRow("ai-KD", "q1", 12, 0.1 + 0.2, 30, 1 / 3), HeldOutRow("control", "q,2", 1, 0.0, 2, 5e-300)]
    write_rows(output / "held-out.csv", rows)
    assert read_rows(output / "held-out.csv") == rows
    (output / "held-out.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="held-out.csv"):
        read_rows(output / "held-out.csv")


# The summary.


def log(verdicts: str) -> list[LogRow]:
    """'1' right, '0' wrong, '-' no answer found."""
    texts = {"1": "18", "0": "19", "-": "no"}
    return [
        grade_answer(item(item_id=f"q{n}"), answer(texts[v], f"q{n}", tokens=n + 1, truncated=v == "0"))
        for n, v in enumerate(verdicts)
    ]


def fit(model: str, kl: float, nll: float, count: int) -> list[HeldOutRow]:
    return [HeldOutRow(model, f"q{n}", 2, 2 * kl, 4, 4 * nll) for n in range(count)]


LOGS = {
    "control": log("0000000-"),
    "base-KD": log("11100000"),
    "ai-KD": log("11111111"),
    "base-fine-tune": log("0000000-"),
    "teacher": log("11111111"),
}
FITS = [
    row
    for model, kl in {"control": 3.0, "base-KD": 2.0, "ai-KD": 1.0, "base-fine-tune": 3.5}.items()
    for row in fit(model, kl, kl, 8)
]


def test_a_summary_counts_what_the_logs_say():
    rows = {row.model: row for row in summarise(LOGS, FITS, samples=200)}
    assert list(rows) == list(LOGS)
    base = rows["base-KD"]
    assert (base.n, base.correct, base.accuracy, base.truncated, base.not_found) == (8, 3, 3 / 8, 5, 0)
    assert base.mean_response_tokens == pytest.approx(4.5)
    assert base.accuracy_low == pytest.approx(accuracy([True] * 3 + [False] * 5).low)
    assert (base.kl, base.nll_gold) == pytest.approx((2.0, 2.0))
    assert rows["control"].not_found == 1
    assert rows["teacher"].kl is None and rows["teacher"].nll_gold is None


def test_contrasts_compare_students_with_the_control_and_kd_students_with_base_kd():
    assert planned_contrasts(LOGS) == {"control": ["base-KD", "ai-KD", "base-fine-tune"], "base-KD": ["ai-KD"]}
    rows = {(r.model, r.reference): r for r in contrast(LOGS, FITS, samples=200)}
    assert set(rows) == {
        ("base-KD", "control"),
        ("ai-KD", "control"),
        ("base-fine-tune", "control"),
        ("ai-KD", "base-KD"),
    }
    first = rows["ai-KD", "control"]
    assert (first.only_model, first.only_reference) == (8, 0)
    assert first.p == pytest.approx(binomtest(8, 8, 0.5).pvalue)
    family = [rows[m, "control"].p for m in ("base-KD", "ai-KD", "base-fine-tune")]
    assert [rows[m, "control"].p_holm for m in ("base-KD", "ai-KD", "base-fine-tune")] == pytest.approx(holm(family))
    assert first.accuracy == pytest.approx(1.0) and first.kl == pytest.approx(-2.0)


def test_models_measured_on_different_items_are_not_compared():
    with pytest.raises(ValueError, match="different items"):
        contrast(LOGS, FITS[:-1], samples=50)


def test_tables_on_disk_hold_the_numbers_of_the_summary(output):
    profile = small_profile(output)
    summary, contrasts = write_summary(profile, LOGS, FITS)
    rows = {row["model"]: row for row in read_table(summary)}
    assert (rows["base-KD"]["correct"], rows["base-KD"]["accuracy"], rows["base-KD"]["title"]) == (
        "3",
        "0.375",
        "base-KD",
    )
    assert rows["teacher"]["kl"] == "" and rows["ai-KD"]["title"] == "Ground truth-KD"
    assert len(read_table(contrasts)) == 4
    with pytest.raises(UserError, match="nothing.csv is missing"):
        read_table(output / "nothing.csv")


def test_claims_name_only_what_the_tests_allow(output):
    """Eight against none is significant, three against none is not; the fits differ without any spread."""
    _, contrasts = write_summary(small_profile(output), LOGS, FITS)
    sentences = [s for s in claims(read_table(contrasts)) if title_of("control") in s]

    def named(measure: str) -> tuple[list[str], list[str]]:
        """Students said to be better and worse than the control."""
        _, better, worse = MEASURES[measure]
        (sentence,) = [s for s in sentences if better in s or worse in s]
        good, _, bad = sentence.rstrip(".").partition(f"{worse}: ")
        titles = [title_of(model) for model in ("base-KD", "ai-KD", "base-fine-tune")]
        return [t for t in titles if t in good], [t for t in titles if t in bad]

    assert named("accuracy") == (["Ground truth-KD"], [])
    assert named("kl") == (["base-KD", "Ground truth-KD"], ["Fine-tuning"])


def test_further_seeds_are_named_behind_the_published_title():
    assert title_of("ai-KD-seed3") == "Ground truth-KD (seed 3)"
    assert title_of("control") == "No distillation"


def test_gold_values_of_a_log_are_exact():
    assert Fraction(grade_answer(item("0.1"), answer("0.1")).gold) == Fraction(1, 10)


# A student of yesterday's profile.


def test_a_student_trained_with_another_loss_is_not_scored_as_todays(tmp_path, monkeypatch):
    from primekd.assessment.assess import find_students
    from primekd.capture import training_job
    from primekd.distill import distill
    from primekd.strategies import load_strategies

    monkeypatch.setenv("PRIMEKD_OUTPUT", str(tmp_path))
    sizes = {"data": {"train_items": 2, "validation_items": 1, "test_items": 2}, "train": {"epochs": 1}}
    profile = small_profile(tmp_path, **sizes)
    for name, strategy in load_strategies().items():
        if strategy.teacher:
            capture(training_job(profile, name))
        distill(profile, name)
    assert [s.name for s in find_students(profile)] == list(load_strategies())
    changed = profile.model_copy(update={"loss": profile.loss.model_copy(update={"alpha": 0.9})})
    with pytest.raises(UserError, match="differs from the profile \\(loss\\)"):
        find_students(changed)


def test_a_question_that_is_trained_on_and_tested_is_refused(ci):
    from primekd.items import load_items, refuse_overlap

    test, train = load_items(ci, "test"), load_items(ci, "train")
    refuse_overlap(test, "test", {"train": train})
    with pytest.raises(UserError, match="stand in the test items and in the train items"):
        refuse_overlap(test, "test", {"train": [*train, test[3]]})
