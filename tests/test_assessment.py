"""From answers to numbers: grading, logs, the held-out fit, the summary and what may be said of it."""

import csv
import json
import shutil
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, save_llama, small_profile, write_profile
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM

from primekd.assessment import held_out
from primekd.assessment.answers import Answer, answer_inputs, generate_answers
from primekd.assessment.decisions.decisions import Decision, add_decision, answer_hash
from primekd.assessment.held_out import HeldOutRow, measure
from primekd.assessment.logs import COLUMNS, LogRow, grade_answer, grade_answers, read_log, write_log
from primekd.assessment.score import Model, score_models, score_some
from primekd.assessment.tokens import TokenLog
from primekd.capture.jobs import held_out_job, open_signals, training_job
from primekd.capture.run import capture
from primekd.config import Profile, load_profile
from primekd.config.arms import default_arms, load_arms
from primekd.foundation import read_json, read_manifest, write_json
from primekd.foundation.errors import UserError
from primekd.foundation.progress import Progress
from primekd.foundation.stage_code import ask_anew, forget_wishes, stage_code
from primekd.foundation.tables import read_records, read_table, write_records, write_table
from primekd.models import chat, model_hash
from primekd.models.chat import build_prompt
from primekd.report.formats import p_value, percent
from primekd.report.html import render
from primekd.report.lineage import model_facts
from primekd.report.readme import block
from primekd.running.publishing import other_code_text, refuse_unpublishable, results_of
from primekd.running.verify_run import check_lineage
from primekd.signals import StoredItem
from primekd.signals.certainty import TOP
from primekd.statistics.contrasts import ContrastRow, contrast, seed_rows, verdicts_of
from primekd.statistics.families import plan_of, planned_contrasts, title_of
from primekd.statistics.inference import accuracy, detectable_difference, holm, mcnemar_exact
from primekd.statistics.sentences import MEASURES, OF_SEED, claims, sentence
from primekd.statistics.summary import SummaryRow, summarise
from primekd.studies import assess as assessing
from primekd.studies import regrade as regrading
from primekd.studies import responses
from primekd.studies.assess import _write_tokens, assess, find_students
from primekd.studies.regrade import regrade
from primekd.studies.results import answers_hash
from primekd.studies.study import find_study
from primekd.tasks.load import load_items
from primekd.tasks.protocol import Item
from primekd.tasks.splits import refuse_overlap
from primekd.teachers import Sampling, transformers_engine
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.distill import distill


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


def resaved(path, **options) -> None:
    """Writes a log as pandas does after it read it, with an index of its own and every verdict a True or False."""
    import pandas as pd

    frame = pd.read_csv(path, dtype={"id": str, "response": str}, keep_default_na=False, na_values={"adjudicated": ""})
    frame = frame.astype({"correct": bool, "truncated": bool, "response_tokens": float})
    frame[list(frame.columns[::-1])].to_csv(path, **options)


RESAVED = {
    "pandas": {},
    "a byte order mark": {"encoding": "utf-8-sig"},
    "semicolons": {"sep": ";", "index": False},
    "line ends of Windows": {"lineterminator": "\r\n", "index": False},
    "decimals": {"float_format": "%.1f"},
}


@pytest.mark.parametrize("options", RESAVED.values(), ids=RESAVED)
def test_a_log_that_was_saved_anew_says_what_it_said(options, output):
    rows = [grade_answer(item(item_id=f"q{n}"), answer(f"a, b;\nso {n + 17}", f"q{n}", n == 2)) for n in range(3)]
    rows[2] = replace(rows[2], adjudicated="18")
    write_log(output / "m.csv", rows)
    resaved(output / "m.csv", **options)
    assert not (output / "m.csv").read_text(encoding="utf-8-sig").startswith("id,")
    assert read_log(output / "m.csv") == rows
    assert [row.correct for row in rows] == [False, True, False] and rows[2].correct_adjudicated


def test_verdicts_written_as_decimals_are_verdicts(output):
    write_log(output / "m.csv", rows := [grade_answer(item(), answer("18"))])
    place = {name: n for n, name in enumerate(COLUMNS)}

    def change(cells):
        for name, text in {"correct": "1.0", "truncated": "0.0", "gold": "18.0", "extracted": "18.00"}.items():
            cells[1][place[name]] = text
        return cells

    rewritten(output / "m.csv", change)
    assert read_log(output / "m.csv") == rows


def test_a_decision_for_minus_one_stays_apart_from_one_for_no_answer(output):
    rows = [replace(grade_answer(item(), answer("18")), adjudicated=value) for value in ("-1", "-1.0", "-2")]
    write_log(output / "m.csv", rows)
    assert [row.adjudicated for row in read_log(output / "m.csv")] == ["-1", "-1.0", "-2"]


def rewritten(path, change) -> None:
    """Changes the log's cells: a list of rows, the header first."""
    with open(path, encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(change(rows))


def cell(name: str, text: str):
    """What puts a text into one cell of the log's only row."""

    def change(rows):
        rows[1][COLUMNS.index(name)] = text
        return rows

    return change


# The damage, and what the sentence says of it.
DAMAGE = {
    "another header": (
        lambda rows: [["id", "question", "golden", *rows[0][3:]], *rows[1:]],
        r"m\.csv has no column 'gold'\.$",
    ),
    "no header": (lambda rows: rows[1:], "has no column 'id', 'question'"),
    "empty": (lambda rows: [], "is empty"),
    "a row cut short": (lambda rows: [rows[0], rows[1][:-1]], "row 2 has 10 cells, not 11"),
    "a gold value that is no number": (cell("gold", "many"), "row 2: gold: 'many' is no number"),
    "no gold value": (cell("gold", ""), "row 2: gold"),
    "a verdict that is none": (cell("correct", "ok"), "row 2: correct: 'ok', neither 1 nor 0"),
    "no verdict": (cell("correct", ""), "row 2: correct"),
    "a decision without end": (cell("adjudicated", "1e9999999999"), "row 2: adjudicated: .* is no number"),
    "a decision by zero": (cell("adjudicated", "1/0"), "row 2: adjudicated"),
    "a value of 5,000 digits": (cell("extracted", "9" * 5000), "row 2: extracted: .* is longer than"),
    "a value that is none": (cell("extracted", "NaN"), "row 2: extracted"),
    "a negative length": (cell("response_tokens", "-5"), "row 2: response_tokens: '-5', no whole number"),
    "half a token": (cell("response_tokens", "5.5"), "row 2: response_tokens"),
    "a length without end": (cell("response_tokens", "1e999"), "row 2: response_tokens"),
    "a place that is none": (cell("span", "a:b"), "row 2: span: 'a:b' is no start:end"),
    "no id": (cell("id", ""), "row 2: id"),
}


@pytest.mark.parametrize("change, said", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_log_is_one_sentence_with_its_name(change, said, output):
    write_log(output / "m.csv", [grade_answer(item(), answer("x 18 z"))])
    rewritten(output / "m.csv", lambda rows: rows)
    assert len(read_log(output / "m.csv")) == 1
    rewritten(output / "m.csv", change)
    with pytest.raises(UserError, match=said) as refusal:
        read_log(output / "m.csv")
    assert str(refusal.value).startswith("m.csv") and "\n" not in str(refusal.value)


def test_an_absent_log_is_one_sentence_with_its_name(output):
    with pytest.raises(UserError, match="m.csv is missing"):
        read_log(output / "m.csv")


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


def test_answers_move_the_progress_while_their_block_is_in_the_making(profile, monkeypatch):
    items, seen = load_items(profile, "test"), []
    engine = TransformersEngine(profile.student.model, "float32", 2)
    real = Progress.advance

    def advance(self, count=1):
        real(self, count)
        seen.append((self.state["done"], len(list((profile.runs / "answers" / "control").glob("block-*.json")))))

    monkeypatch.setattr(Progress, "advance", advance)
    inputs = answer_inputs(profile, items, None)
    generate_answers(profile, "control", items, inputs, lambda: engine)
    assert (1, 0) in seen and (3, 0) in seen and seen[-1] == (5, 2)
    seen.clear()
    (profile.runs / "answers" / "control" / "block-00001.json").unlink()
    generate_answers(profile, "control", items, inputs, lambda: engine)
    assert [done for done, _ in seen] == [4, 5, 5], "four were on disk"


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
    rows, tokens = measure(profile, "control", TransformersEngine(profile.student.model, "float32"), items, reference)
    assert max(float(fit.kl.abs().max()) for fit in tokens) < 1e-3
    assert [r.id for r in rows] == [i.id for i in items]
    for row in rows:
        assert abs(row.kl) < 1e-4 * row.teacher_tokens
        assert row.teacher_tokens == len(reference.item(row.id).response_ids) and row.nll_gold > 0


@pytest.mark.parametrize("right", [(), (1,), (0, 1, 2)], ids=["never", "once", "always"])
def test_the_held_out_fit_equals_a_float64_reference_from_plain_forwards(
    right, profile, reference, tokenizer, tmp_path, monkeypatch
):
    """Also where the teacher wrote the gold solutions of some items, word by word."""
    (tmp_path / "other").mkdir()
    other = save_llama(tmp_path / "other", tokenizer, seed=7)
    items = load_items(profile, "test")[:3]
    # Two blocks, and the longest item is not the first.
    items.sort(key=lambda item: len(build_prompt(tokenizer, item.question)) + len(reference.item(item.id).response_ids))
    monkeypatch.setattr(held_out, "TOGETHER", 2)
    solutions = {items[n].solution: reference.item(items[n].id).response_ids for n in right}

    def encode_response(tokenizer, solution: str) -> list[int]:
        return solutions.get(solution) or chat.encode_response(tokenizer, solution)

    monkeypatch.setattr(held_out, "encode_response", encode_response)
    rows, tokens = measure(profile, "other", TransformersEngine(other, "float32"), items, reference)

    def log_probs(model: str, prompt: list[int], response: list[int]) -> torch.Tensor:
        plain = AutoModelForCausalLM.from_pretrained(model.removeprefix("path:"), dtype=torch.float64)
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + response])).logits[0]
        return logits[len(prompt) - 1 : -1, : len(tokenizer)].log_softmax(-1)

    assert [row.id for row in rows] == [item.id for item in items]
    for each, row, fit in zip(items, rows, tokens, strict=True):
        prompt, taught = build_prompt(tokenizer, each.question), reference.item(each.id).response_ids
        p, q = log_probs(profile.teacher.model, prompt, taught), log_probs(other, prompt, taught)
        assert row.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
        torch.testing.assert_close(fit.kl.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-3, atol=1e-5)
        best = q.topk(TOP)
        torch.testing.assert_close(fit.top_probs.double(), best.values.exp(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(q.gather(1, fit.top_ids), best.values, rtol=1e-4, atol=1e-4)
        gold = encode_response(tokenizer, each.solution)
        on_gold = log_probs(other, prompt, gold)
        assert row.gold_tokens == len(gold)
        assert row.nll_gold == pytest.approx(
            -float(on_gold[torch.arange(len(gold)), torch.tensor(gold)].sum()), rel=1e-4
        )


def test_held_out_rows_come_back_as_they_were_written(output):
    rows = [HeldOutRow("ai-KD", "q1", 12, 0.1 + 0.2, 30, 1 / 3), HeldOutRow("control", "q,2", 1, 0.0, 2, 5e-300)]
    write_records(output / "held-out.csv", HeldOutRow, rows)
    assert read_records(output / "held-out.csv", HeldOutRow) == rows
    write_records(output / "held-out.csv", HeldOutRow, [replace(rows[0], kl=None)])
    assert read_records(output / "held-out.csv", HeldOutRow)[0].kl is None


@pytest.mark.parametrize("column", ["teacher_tokens", "kl", "gold_tokens", "nll_gold"])
@pytest.mark.parametrize("text", ["x", "nan", "-inf", "1e999", "-3", "9" * 5000])
def test_a_damaged_held_out_row_is_one_sentence(column, text, output):
    if (column, text) == ("kl", "-3"):
        return  # an estimate from a sample of the teacher's distribution may be below 0
    (output / "held-out.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="held-out.csv has no column 'model', 'id', 'teacher_tokens'"):
        read_records(output / "held-out.csv", HeldOutRow)
    row = replace(HeldOutRow("m", "q", 1, 0.5, 2, 0.5), **{column: text})
    write_records(output / "held-out.csv", HeldOutRow, [row])
    with pytest.raises(UserError, match=f"held-out.csv row 2: {column}"):
        read_records(output / "held-out.csv", HeldOutRow)


# The summary.


def log(verdicts: str, cut: int = 0, name: str = "q{}") -> list[LogRow]:
    """'1' right, '0' wrong, '-' no answer found; the first `cut` answers are truncated."""
    texts = {"1": "18", "0": "19", "-": "no"}
    return [
        grade_answer(item(item_id=name.format(n)), answer(texts[v], name.format(n), tokens=n + 1, truncated=n < cut))
        for n, v in enumerate(verdicts)
    ]


def fit(model: str, kl: float, nll: float, count: int) -> list[HeldOutRow]:
    return [HeldOutRow(model, f"q{n}", 2, 2 * kl, 4, 4 * nll) for n in range(count)]


LOGS = {
    "control": log("0000000-"),
    "base-KD": log("11100000", cut=4),
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
    assert (base.n, base.correct, base.accuracy, base.truncated, base.not_found) == (8, 3, 3 / 8, 4, 0)
    assert base.mean_response_tokens == pytest.approx(4.5)
    assert base.accuracy_low == pytest.approx(accuracy([True] * 3 + [False] * 5).low)
    assert (base.kl, base.nll_gold) == pytest.approx((2.0, 2.0))
    assert rows["control"].not_found == 1
    assert rows["teacher"].kl is None and rows["teacher"].nll_gold is None


def contrasts_of(logs, held_out):
    """The contrasts that the roles of the arms plan."""
    return contrast(logs, held_out, plan_of(logs, load_arms()))


def seeds_of_logs(logs):
    return seed_rows(logs, plan_of(logs, load_arms()))


PLANNED = [
    *((m, "control") for m in ("base-KD", "ai-KD", "base-fine-tune")),
    ("ai-KD", "base-KD"),
    *((m, "base-fine-tune") for m in ("base-KD", "ai-KD")),
]


def test_students_meet_the_control_kd_strategies_base_kd_and_kd_students_the_fine_tuned_one():
    assert planned_contrasts(LOGS, load_arms()) == PLANNED
    everything = ["control", *default_arms(), "teacher"]
    assert len(planned_contrasts(everything, load_arms())) == 5 + 3 + 4
    assert "teacher" not in {model for pair in planned_contrasts(everything, load_arms()) for model in pair}


@pytest.mark.parametrize(
    "models, expected",
    [
        ([], []),
        (["control", "teacher"], []),
        (["base-KD", "teacher"], []),
        (["ai-KD", "base-KD"], [("ai-KD", "base-KD")]),
        (["ai-KD", "base-fine-tune"], [("ai-KD", "base-fine-tune")]),
        (["control", "base-fine-tune"], [("base-fine-tune", "control")]),
        (["ai-KD", "reverseKL-KD"], []),
        # Further seeds belong to their strategy: they add no contrast.
        (
            ["control", "base-KD", "ai-KD", "ai-KD-seed1", "ai-KD-seed2"],
            [("base-KD", "control"), ("ai-KD", "control"), ("ai-KD", "base-KD")],
        ),
        (["control", "ai-KD-seed2"], [("ai-KD", "control")]),
    ],
)
def test_a_contrast_needs_both_of_its_models(models, expected):
    assert planned_contrasts(iter(models), load_arms()) == expected


def test_contrasts_are_paired_on_items_and_adjusted_over_everything_that_is_claimed():
    rows = {(r.model, r.reference): r for r in contrasts_of(LOGS, FITS)}
    assert list(rows) == PLANNED
    first = rows["ai-KD", "control"]
    assert (first.only_model, first.only_reference, first.clusters) == (8, 0, 8)
    assert first.p == first.p_mcnemar == pytest.approx(binomtest(8, 8, 0.5).pvalue)
    family = [(row, measure) for row in rows.values() for measure in ("", "kl_", "nll_gold_")]
    adjusted = holm([getattr(row, f"{measure}p") for row, measure in family])
    assert len(adjusted) == 18
    assert [getattr(row, f"{measure}p_holm") for row, measure in family] == pytest.approx(adjusted)
    assert first.accuracy == pytest.approx(1.0) and first.kl == pytest.approx(-2.0)
    assert rows["base-KD", "base-fine-tune"].accuracy == pytest.approx(3 / 8)
    assert rows["base-KD", "base-fine-tune"].nll_gold == pytest.approx(-1.5)
    assert first.mde == detectable_difference(mcnemar_exact([True] * 8, [False] * 8), 8, 0.05 / 18)
    assert (first.seeds, first.reference_seeds, rows["ai-KD", "base-KD"].reference_seeds) == (1, None, 1)
    assert (first.truncated, rows["base-KD", "control"].truncated, rows["ai-KD", "base-KD"].reference_truncated) == (
        0, 0.5, 0.5
    )  # fmt: skip


def test_decisions_change_the_adjudicated_columns_and_no_other():
    def rounds(logs):
        return {(r.model, r.reference): r for r in contrasts_of(logs, FITS)}

    wrong_now = [replace(row, adjudicated="19" if n < 6 else "") for n, row in enumerate(LOGS["ai-KD"])]
    before, after = rounds(LOGS), rounds(LOGS | {"ai-KD": wrong_now})
    for pair, row in after.items():
        adjudicated = {name for name in vars(row) if getattr(row, name) != getattr(before[pair], name)}
        # All tests are one family, so that the other measures' adjusted p's are those of the automatic verdicts.
        assert all("adjudicated" in name for name in adjudicated)
        assert ("accuracy_adjudicated" in adjudicated) == ("ai-KD" in pair)
    decided = after["ai-KD", "control"]
    assert decided.accuracy_adjudicated == pytest.approx(2 / 8) and decided.accuracy == pytest.approx(1.0)
    assert decided.p_adjudicated == pytest.approx(binomtest(2, 2, 0.5).pvalue)
    of_fits = [p for row in after.values() for p in (row.kl_p, row.nll_gold_p)]
    adjusted = holm([*(row.p_adjudicated for row in after.values()), *of_fits])
    assert [row.p_holm_adjudicated for row in after.values()] == pytest.approx(adjusted[: len(after)])
    (row,) = [r for r in summarise(LOGS | {"ai-KD": wrong_now}, FITS, samples=50) if r.model == "ai-KD"]
    assert (row.correct, row.adjudicated, row.correct_adjudicated, row.accuracy_adjudicated) == (8, 6, 2, 0.25)


@pytest.mark.parametrize(
    "gold, automatic, adjudicated, expected",
    [
        ("18", "18", "", True),
        ("18", "19", "", False),
        ("18", "19", "18", True),
        ("18", "19", "18.00", True),
        ("18", "18", "-1", False),  # a person found no value in it
        ("18", "18", "-1.0", False),
        ("-1", "-1", "-1", False),  # no value is no answer, even where the gold value is minus one
        ("-1", "no idea", "-1.0", True),
        ("0.5", "7", "1/2", True),
        ("0.25", "7", "1/3", False),
        ("1000", "7", "1000", True),
    ],
)
def test_a_persons_value_is_compared_with_the_gold_value_as_a_number(gold, automatic, adjudicated, expected, output):
    write_log(output / "m.csv", [replace(grade_answer(item(gold), answer(automatic)), adjudicated=adjudicated)])
    (row,) = read_log(output / "m.csv")
    assert row.correct_adjudicated is expected


def test_without_held_out_rows_accuracies_are_compared_all_the_same():
    rows = contrasts_of(LOGS, [])
    assert [(r.model, r.reference) for r in rows] == PLANNED
    assert all(getattr(r, m + end) is None for r in rows for m in ("kl", "nll_gold") for end in ("", "_low", "_high"))
    assert all(r.kl_p is r.kl_p_holm is r.nll_gold_p is r.nll_gold_p_holm is None for r in rows)
    assert [r.p_holm for r in rows] == pytest.approx(holm([r.p for r in rows])), "a family of accuracies alone"
    with_fits = contrasts_of(LOGS, FITS)
    assert [(r.p, r.accuracy, r.accuracy_low) for r in rows] == [(r.p, r.accuracy, r.accuracy_low) for r in with_fits]
    assert all(a.mde <= b.mde for a, b in zip(rows, with_fits, strict=True))
    assert all(row.kl is None and row.n == 8 for row in summarise(LOGS, [], samples=100))


def test_models_measured_on_different_items_are_not_compared():
    with pytest.raises(ValueError, match="different items"):
        contrasts_of(LOGS, FITS[:-1])


def on_disk(folder, kind, rows) -> list[dict[str, str]]:
    return read_table(write_table(folder / "table.csv", kind, rows))


def test_tables_on_disk_hold_the_numbers_of_the_summary(output):
    rows = {row["model"]: row for row in on_disk(output, SummaryRow, summarise(LOGS, FITS, samples=200))}
    base = rows["base-KD"]
    assert (base["correct"], base["accuracy"], base["title"]) == ("3", "0.375", "base-KD")
    assert rows["teacher"]["kl"] == "" and rows["ai-KD"]["title"] == "Ground truth-KD"
    with pytest.raises(UserError, match="nothing.csv is missing"):
        read_table(output / "nothing.csv")


def named(rows: list[dict[str, str]], reference: str, measure: str) -> tuple[list[str], list[str]]:
    """Students said to be better and worse than the reference."""
    *_, better, worse = MEASURES[measure]
    start = f"Against {title_of(reference)} — "
    (said,) = [s for s in claims(rows) if s.startswith(start) and (better in s or worse in s)]
    good, _, bad = said.removeprefix(start).rstrip(".").partition(f"{worse}: ")
    titles = {title_of(model) for model in ("base-KD", "ai-KD", "base-fine-tune")}
    return tuple([t for t in sorted(titles) if t in part.split("nothing")[0]] for part in (good, bad))


def test_claims_name_only_what_the_tests_allow(output):
    """Eight against none is significant among six accuracies, three against none is not; fits differ without spread."""
    rows = on_disk(output, ContrastRow, contrasts_of(LOGS, FITS))
    assert named(rows, "control", "accuracy") == (["Ground truth-KD"], [])
    assert named(rows, "control", "kl") == (["Ground truth-KD", "base-KD"], ["Fine-tuning"])
    assert named(rows, "base-KD", "accuracy") == ([], [])
    assert named(rows, "base-fine-tune", "accuracy") == (["Ground truth-KD"], [])
    assert len(claims(rows)) == 9
    assert claims(rows)[0] == "Against No distillation — more correct answers: Ground truth-KD."
    assert claims(rows, numbers=True)[0] == (
        "Against No distillation — more correct answers: Ground truth-KD (p = 0.047); one training seed."
    )


def shifted(model: str, shift, templates: int = 0) -> list[HeldOutRow]:
    """Held-out rows of 40 items; `shift(n)` nats a token more than the others."""
    name = "gsm-symbolic-{}-{}" if templates else "q{1}"
    rng = np.random.default_rng(0)
    return [
        HeldOutRow(model, name.format(n % max(1, templates), n), 10, 10 * (1 + shift(n)), 20, float(20 * rng.random()))
        for n in range(40)
    ]


def test_an_interval_that_excludes_0_is_no_claim_where_its_adjusted_p_is_above_5_percent(output):
    """What was claimed before: one interval of many, without an adjustment over the many."""
    noise = np.random.default_rng(2).normal(0, 0.1, 40)
    fits = shifted("base-fine-tune", lambda n: 0) + shifted("ai-KD", lambda n: 0.04 + noise[n])
    fits += shifted("base-KD", lambda n: noise[-n])
    ids = [row.id for row in fits[:40]]
    logs = {
        m: [replace(row, id=i) for row, i in zip(log("01" * 20), ids, strict=True)]
        for m in ("base-fine-tune", "ai-KD", "base-KD")
    }
    (row,) = [r for r in contrasts_of(logs, fits) if (r.model, r.reference) == ("ai-KD", "base-fine-tune")]
    assert row.kl_low > 0 and row.kl_p < 0.05 < row.kl_p_holm
    rows = on_disk(output, ContrastRow, contrasts_of(logs, fits))
    assert all("no difference can be claimed" in s for s in claims(rows))
    assert "smallest p = " in claims(rows, numbers=True)[1]


def test_the_smallest_p_is_none_of_a_student_whose_training_was_broken(output):
    """Its answers run on, so that it is in no list of claims; its own sentence says how much worse it came out."""
    rows = on_disk(output, ContrastRow, contrasts_of(LOGS, FITS))
    [one] = [row for row in rows if (row["model"], row["reference"]) == ("ai-KD", "base-KD")]
    broken = one | {"model": "shuffled-KD", "accuracy": "-0.9", "p_holm": "1e-9", "truncated": "1"}
    assert claims([one, broken], numbers=True)[0] == (
        "Against base-KD — more correct answers: no difference can be claimed for any student, the positive control "
        f"apart, smallest p = {float(one['p_holm']):.3f}; one training seed."
    )


def test_a_difference_of_one_template_is_none_of_eight(output):
    """Items of two templates alone are better: by items beyond doubt, by templates two of eight."""

    def studied(templates: int) -> ContrastRow:
        fits = shifted("base-fine-tune", lambda n: 0, templates) + shifted("ai-KD", lambda n: -(n % 8 < 2), templates)
        verdicts = "".join("1" if n % 8 < 2 else "0" for n in range(40))
        logs = {"base-fine-tune": log("0" * 40), "ai-KD": log(verdicts)}
        ids = [row.id for row in fits[:40]]
        (row,) = contrasts_of(
            {m: [replace(r, id=i) for r, i in zip(g, ids, strict=True)] for m, g in logs.items()}, fits
        )
        return row

    by_item, by_template = studied(0), studied(8)
    assert (by_item.clusters, by_template.clusters) == (40, 8)
    assert (by_item.p_mcnemar, by_item.accuracy, by_item.kl) == pytest.approx(
        (by_template.p_mcnemar, by_template.accuracy, by_template.kl)
    )
    assert by_item.p_holm < 0.05 < by_template.p_holm and by_item.kl_p_holm < 0.05 < by_template.kl_p_holm
    assert by_template.accuracy_low < 0 < by_item.accuracy_low and by_template.mde > by_item.mde


@pytest.mark.parametrize("who, name", [("control", "No distillation"), ("ai-KD", "Ground truth-KD")])
def test_nothing_is_claimed_of_a_model_that_was_mostly_cut_off(output, who, name):
    """Thirty right against none; 16 answers of 30 cut off forbid the claim, 15 do not. Held-out fit asks no answers."""
    verdicts = {"control": "0" * 30, "ai-KD": "1" * 30}

    def rows(cut: int) -> list[dict[str, str]]:
        logs = {model: log(v, cut=cut if model == who else 0) for model, v in verdicts.items()}
        return on_disk(
            output,
            ContrastRow,
            contrasts_of(logs, [r for m, kl in (("control", 2), ("ai-KD", 1)) for r in fit(m, kl, kl, 30)]),
        )

    said = f"most answers of {name} were cut off at the limit of new tokens"
    assert claims(rows(15))[0] == "Against No distillation — more correct answers: Ground truth-KD."
    assert (
        claims(rows(16))[0]
        == f"Against No distillation — more correct answers: nothing is claimed of Ground truth-KD, as {said}."
    )
    assert claims(rows(16))[1] == "Against No distillation — closer to the unprimed teacher: Ground truth-KD."
    assert sentence(rows(16)[0]).startswith(
        f"Between Ground truth-KD and No distillation nothing is claimed, as {said}: +100.0 points"
    )
    assert sentence(rows(15)[0]).startswith("Ground truth-KD answers more questions correctly")


# A contrast in words.


def contrast_row(accuracy: str, p_holm: str, low: str = "-0.1", high: str = "0.1", mde: str = "0.0625", **changes):
    row = {"model": "ai-KD", "reference": "control", "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    row |= {"seeds": "1", "reference_seeds": "", "truncated": "0", "reference_truncated": "0"}
    return row | {"p_holm": p_holm, "mde": mde} | changes


@pytest.mark.parametrize(
    "row, said",
    [
        (
            contrast_row("0.265625", "1.04774e-09", "0.195312", "0.351562"),
            "Ground truth-KD answers more questions correctly than No distillation: +26.6 points [+19.5, +35.2], "
            "Holm-adjusted p < 0.001, one training seed.",
        ),
        (
            contrast_row("-0.0625", "0.0125", "-0.1005", "-0.0005", reference="base-fine-tune", reference_seeds="1"),
            "Ground truth-KD answers fewer questions correctly than Fine-tuning: -6.3 points [-10.1, -0.1], "
            "Holm-adjusted p = 0.013, one training seed.",
        ),
        (
            contrast_row("0.0125", "1", "-0.0004", "0", seeds="3"),
            "Between Ground truth-KD and No distillation no difference can be claimed: +1.3 points [0.0, 0.0], "
            "Holm-adjusted p = 1.000, 3 training seeds; a true difference of 6.3 points or more would be shown four "
            "times in five.",
        ),
        (
            contrast_row("0.0125", "1", "-0.0004", "0", seeds="3") | {"mde": "1"},
            "Between Ground truth-KD and No distillation no difference can be claimed: +1.3 points [0.0, 0.0], "
            "Holm-adjusted p = 1.000, 3 training seeds; so few items or seeds would show no difference, however large, "
            "four times in five.",
        ),
        (
            contrast_row("0.0125", "1", "-0.0004", "0") | {"model": "control-few-shot", OF_SEED + "accuracy": "0.1"},
            "Between No distillation, other prompt and No distillation no difference can be claimed: +1.3 points "
            "[0.0, 0.0], Holm-adjusted p = 1.000; a true difference of 6.3 points or more would be shown four times in "
            "five.",
        ),
        (
            contrast_row("0.3", "0.01", seeds="3", reference="base-fine-tune", reference_seeds="1"),
            "Ground truth-KD answers more questions correctly than Fine-tuning: +30.0 points [-10.0, +10.0], "
            "Holm-adjusted p = 0.010, 3 training seeds, one of Fine-tuning.",
        ),
    ],
    ids=["more", "fewer", "none", "too few", "untrained", "seeds"],
)  # fmt: skip
def test_a_contrast_in_words(row, said):
    assert sentence(row) == said


@pytest.mark.parametrize("p, claimed", [("0.0499999", True), ("0.05", False), ("0.050001", False)])
def test_a_difference_is_claimed_below_five_percent_alone(p, claimed):
    assert ("no difference can be claimed" in sentence(contrast_row("0.2", p))) != claimed


def test_no_difference_is_claimed_where_the_accuracies_are_equal():
    assert "no difference can be claimed: 0.0 points" in sentence(contrast_row("0", "0.01"))


@pytest.mark.parametrize(
    "share", ["0.0625", "-0.0625", "0.0005", "-0.0005", "0.00049", "-0.00049", "0.30625", "1", "0", "0.333333", "1e-07"]
)
def test_words_round_as_the_tables_do(share):
    assert f": {percent(share, signed=True)} points [" in sentence(contrast_row(share, "0.5"))


@pytest.mark.parametrize("p", ["0.0125", "0.0135", "0.0005", "0.000999999", "0.0625", "0.9995", "1", "0.001"])
def test_a_p_value_in_words_rounds_as_in_the_tables(p):
    written = p_value(p)
    expected = f"Holm-adjusted p {'< 0.001' if written == '<0.001' else f'= {written}'}"
    assert expected in sentence(contrast_row("0.1", p))


def test_further_seeds_are_named_behind_the_published_title():
    assert title_of("ai-KD-seed3") == "Ground truth-KD (seed 3)"
    assert title_of("control") == "No distillation"


# Several seeds.

SEEDS = {
    "control": log("0000000-"),
    "base-KD": log("11100000"),
    "base-KD-seed1": log("11000000"),
    "base-KD-seed12": log("11110000"),
    "ai-KD": log("11111111"),
    "ai-KD-seed1": log("11111110"),
    "ai-KD-seed2": log("00000000"),
    "base-fine-tune": log("10000000"),
    "teacher": log("11111111"),
}


def test_logs_of_further_seeds_belong_to_their_strategy():
    found = verdicts_of(SEEDS)
    assert {strategy: list(seeds) for strategy, seeds in found.items()} == {
        "control": [""], "base-KD": ["", "1", "12"], "ai-KD": ["", "1", "2"], "base-fine-tune": [""], "teacher": [""],
    }  # fmt: skip
    assert found["ai-KD"]["1"].tolist() == [1, 1, 1, 1, 1, 1, 1, 0]


def test_strategies_with_several_seeds_have_a_mean_and_contrasts_use_them_all():
    rows = {(r.model, r.reference): r for r in seeds_of_logs(SEEDS)}
    # base-fine-tune has one seed, and only the control stands for every seed.
    assert list(rows) == [
        ("base-KD", ""), ("ai-KD", ""), ("base-KD", "control"), ("ai-KD", "control"), ("ai-KD", "base-KD"),
    ]  # fmt: skip
    base = rows["base-KD", ""]
    assert (base.seeds, base.n, base.p) == (3, 8, None)
    assert base.accuracy == pytest.approx((3 + 2 + 4) / 24)
    assert base.seed_sd == pytest.approx(np.std([3 / 8, 2 / 8, 4 / 8], ddof=1))
    both = rows["ai-KD", "base-KD"]
    assert (both.seeds, both.accuracy) == (3, pytest.approx((8 + 7 + 0 - 3 - 2 - 4) / 24))
    assert both.p > 0.05, "few seeds that differ claim little"


def test_claims_are_of_all_seeds_that_were_trained_and_more_seeds_are_no_more_tests(output):
    """Seed 0 alone would be claimed; with the two others, which say otherwise, it is not. Seeds that agree are."""
    right = {"": "1" * 30, "1": "1" * 15 + "0" * 15, "2": "0" * 30}

    def study(seeds: dict[str, str]) -> ContrastRow:
        logs = {"control": log("0" * 30)} | {f"ai-KD{s and '-seed'}{s}": log(v) for s, v in seeds.items()}
        fits = fit("control", 2, 2, 30)
        fits += [
            HeldOutRow(m, f"q{n}", 2, 2 + sum(map(int, m[-1:] if m[-1].isdigit() else "0")), 4, 4.0 + n)
            for m in logs
            for n in range(30)
            if m != "control"
        ]
        (row,) = contrasts_of(logs, fits)
        return row

    alone, apart, alike = study({"": right[""]}), study(right), study(dict.fromkeys(right, "1" * 29 + "0"))
    assert alone.p_holm < 0.001 and (alone.seeds, alone.only_model) == (1, 30)
    assert apart.accuracy == pytest.approx(0.5) and apart.p_holm > 0.05
    assert (apart.seeds, apart.p_mcnemar, apart.only_model) == (3, None, None)
    assert alike.accuracy == pytest.approx(29 / 30) and alike.p_holm < 0.05
    said = [claims(on_disk(output, ContrastRow, [row]), numbers=True)[0] for row in (alone, apart, alike)]
    assert said[0].endswith("Ground truth-KD (p < 0.001); one training seed.")
    assert "no difference can be claimed" in said[1] and said[1].endswith("3 training seeds.")
    assert "more correct answers: Ground truth-KD (p = 0.0" in said[2]
    # KL: seeds 0, 1 and 2 have 1, 1.5 and 2 nats a token against 2 of the control.
    assert apart.kl == pytest.approx(np.mean([1, 1.5, 2]) - 2) and apart.kl_p > 0.05 > alone.kl_p


def test_the_control_has_the_same_verdicts_under_every_seed():
    rows = {(r.model, r.reference): r for r in seeds_of_logs(SEEDS | {"control": log("10000000")})}
    assert rows["base-KD", "control"].accuracy == pytest.approx(9 / 24 - 1 / 8)
    assert rows["base-KD", "control"].seeds == 3
    assert rows["base-KD", "control"].seed_sd == pytest.approx(rows["base-KD", ""].seed_sd)
    assert rows["base-KD", "control"].p is not None


def test_the_interval_of_a_few_seeds_ends_where_shares_do():
    rows = seeds_of_logs(SEEDS)
    for row in rows:
        lowest = -1 if row.reference else 0
        assert lowest <= row.accuracy_low <= row.accuracy <= row.accuracy_high <= 1
    assert any(row.accuracy_high == 1 for row in rows)


def test_one_seed_a_strategy_gives_no_row():
    assert seeds_of_logs(LOGS) == []


def test_gold_values_of_a_log_are_exact():
    assert Fraction(grade_answer(item("0.1"), answer("0.1")).gold) == Fraction(1, 10)


# What the teacher wrote.


def test_responses_are_alike_at_the_positions_where_both_have_the_same_token():
    """Of 3, 4 and 2 positions 3, 2 and 0 are equal; what stands one place further is another token."""
    pairs = [([1, 2, 3], [1, 2, 3]), ([1, 2, 9], [1, 2, 4, 5]), ([7, 8], [9, 7])]
    assert responses.agreement(*zip(*pairs, strict=True)) == (5 / 9, 1)
    assert responses.agreement([[1]], [[2, 1, 1]]) == (0, 0)


def test_an_arms_row_says_how_long_right_cut_off_and_unlike_the_teachers_responses_are(
    output, tokenizer, monkeypatch, capsys
):
    """Two items. Unprimed: one right, one cut off. Primed: both right, one of them word by word the unprimed one."""
    profile = small_profile(output, data={"train_items": 2})
    first, second = load_items(profile, "train")
    right, wrong = ([*tokenizer.encode(text), tokenizer.eos_token_id] for text in (f"{first.answer}", "It is 123456"))
    other = [*tokenizer.encode(f"It is {second.answer}"), tokenizer.eos_token_id]
    stores = {
        "base-KD": {
            first.id: StoredItem(first.id, [1], right, False),
            second.id: StoredItem(second.id, [1], wrong, True),
        },
        "ai-KD": {
            first.id: StoredItem(first.id, [1], right, False),
            second.id: StoredItem(second.id, [1], other, False),
        },
    }

    def open_signals(job):
        if job.folder.name not in stores:
            raise UserError("there is none.")
        return SimpleNamespace(folder=job.folder, item=stores[job.folder.name].__getitem__)

    monkeypatch.setattr(responses, "open_signals", open_signals)
    trained = [("base-KD", 0), ("ai-KD", 0), ("ai-KD", 1), ("teacher-KD", 0), ("base-fine-tune", 0)]
    students = [SimpleNamespace(manifest={"inputs": {"strategy": name, "seed": seed}}) for name, seed in trained]
    base, ai = responses.response_rows(profile, students)
    n, w, o = len(right), len(wrong), len(other)
    assert (base.model, base.n, base.correct, base.truncated) == ("base-KD", 2, 1, 1)
    assert (base.accuracy, base.tokens, base.same_share, base.same_whole) == (0.5, (n + w) / 2, None, None)
    assert (ai.model, ai.correct, ai.accuracy, ai.truncated, ai.tokens) == ("ai-KD", 2, 1.0, 0, (n + o) / 2)
    same = sum(a == b for a, b in zip(wrong, other, strict=False))
    assert 0 < same < o and ai.same_share == (n + same) / (n + max(w, o)) and ai.same_whole == 1
    assert "responses.csv says nothing of teacher-KD: there is none." in capsys.readouterr().out


# A whole study of the smallest size.


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkout of its own with every student of the smallest profile trained, and assessed."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "models").symlink_to(ROOT / "models")  # a GGUF file is read once for all tests
    sizes = {"data": {"train_items": 2, "validation_items": 1, "test_items": 2}, "train": {"epochs": 1}}
    write_profile(folder, **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIMEKD_ROOT", str(folder))
        patch.setenv("PRIMEKD_OUTPUT", str(folder))
        profile = load_profile(str(folder / "small.yaml"))
        for name, strategy in default_arms().items():
            if strategy.teacher:
                capture(training_job(profile, name))
            distill(profile, name)
        assess(profile)
    return folder


@pytest.fixture
def study(trained, tmp_path, monkeypatch) -> Profile:
    """A copy of it that a test may change. From here on no model may be opened."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(tmp_path))
    monkeypatch.setattr(transformers_engine, "TransformersEngine", lambda *_: pytest.fail("a model was opened"))
    return load_profile(str(tmp_path / "small.yaml"))


def files_of(folder: Path) -> dict[str, bytes]:
    """All but what making answers took, which differs from run to run."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".took-")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def tables_of(profile: Profile) -> dict[str, bytes]:
    """Everything in logs/<profile>/ but the manifest, which has dates in it."""
    return {name: data for name, data in files_of(profile.logs).items() if name != "manifest.json"}


def decide(profile: Profile, model: str, number: int, value: str) -> None:
    """A person's decision on one of a model's answers."""
    row = read_log(profile.logs / f"{model}.csv")[number]
    made_for = answer_hash(row.question, row.response)
    add_decision(
        Decision(profile.name, model, row.id, made_for, "-1", "correct", value, "Ann", "2026-01-01T00:00:00Z", "review")
    )


def test_a_student_trained_with_another_loss_is_not_scored_as_todays(study):
    assert [s.name for s in find_students(study)] == list(default_arms())
    changed = study.model_copy(update={"loss": study.loss.model_copy(update={"alpha": 0.9})})
    with pytest.raises(UserError, match="differs from the profile \\(loss\\)"):
        find_students(changed)


def test_an_old_student_of_a_seed_that_the_profile_does_not_list_is_passed_over(study, capsys):
    """Else a seed that was taken out of the profile would stop every run at scoring: no run trains it again."""
    old = study.student_folder("base-KD", 9)
    shutil.copytree(study.student_folder("base-KD"), old)
    manifest = read_json(old / "manifest.json")
    write_json(old / "manifest.json", manifest | {"inputs": manifest["inputs"] | {"train": {}}})
    assert [s.name for s in find_students(study)] == list(default_arms())
    said = capsys.readouterr().out
    assert "Passed over, as the profile does not list this seed" in said and "base-KD-seed9 differs" in said
    made = {folder.name for _, _, folder in results_of(study)}
    assert "base-KD" in made and "base-KD-seed9" not in made, "nor does it stand in the way of publishing"
    listed = study.model_copy(update={"seeds": {"base-KD": (9,)}})
    with pytest.raises(UserError, match="base-KD-seed9 differs from the profile .train.: train it again"):
        find_students(listed)


def test_the_teachers_responses_stand_beside_the_logs_and_stay_when_these_are_graded_anew(study):
    path = study.logs / "responses.csv"
    rows = read_table(path)
    assert [row["model"] for row in rows] == ["base-KD", "teacher-KD", "ai-KD", "reverseKL-KD"]
    assert [row["same_share"] == "" for row in rows] == [True, False, False, False]
    for row in rows:
        store = open_signals(training_job(study, row["model"]))
        lengths = [len(store.item(i).response_ids) for i in store.item_ids]
        assert (int(row["n"]), float(row["tokens"])) == (2, sum(lengths) / 2)
    before, digest = path.read_bytes(), read_json(study.logs / "manifest.json")["outputs"]["responses.csv"]
    decide(study, "ai-KD", 1, "7")
    regrade(study)
    assert path.read_bytes() == before
    assert read_json(study.logs / "manifest.json")["outputs"]["responses.csv"] == digest
    path.write_text("model\n")
    with pytest.raises(UserError, match="responses.csv missing or altered"):
        regrade(study)


def test_logs_from_before_there_were_responses_are_graded_anew_all_the_same(study):
    manifest = read_json(study.logs / "manifest.json")
    del manifest["outputs"]["responses.csv"]
    (study.logs / "responses.csv").unlink()
    write_json(study.logs / "manifest.json", manifest)
    regrade(study)
    assert "responses.csv" not in files_of(study.logs)
    assert "responses" not in block("results", study.logs)


def test_an_assessment_has_nothing_to_do_after_a_grading(study, capsys):
    written = tables_of(study)
    regrade(study)
    assert tables_of(study) == written, "the same answers and rules give the same bytes"
    everything = files_of(study.logs)
    assess(study)
    assert "assess: nothing to do" in capsys.readouterr().out and files_of(study.logs) == everything


def test_after_a_decision_assessing_and_grading_give_the_same_and_neither_opens_a_model(study, capsys):
    before = tables_of(study)
    gold = read_log(study.logs / "ai-KD.csv")[1].gold
    decide(study, "ai-KD", 1, gold)
    assess(study)
    assert "assess: nothing to do" not in capsys.readouterr().out
    assessed = tables_of(study)
    changed = {name for name in before if assessed[name] != before[name]}
    assert changed == {"ai-KD.csv", "summary.csv", "contrasts.csv", "accuracies.csv"}
    regrade(study)
    assert tables_of(study) == assessed
    # The other way round, from the old logs.
    decide(study, "control", 0, "123456")
    regrade(study)
    graded = files_of(study.logs)
    assess(study)
    assert "assess: nothing to do" in capsys.readouterr().out and files_of(study.logs) == graded
    rows = {row["model"]: row for row in read_table(study.logs / "summary.csv")}
    assert {m: rows[m]["adjudicated"] for m in rows if rows[m]["adjudicated"] != "0"} == {"control": "1", "ai-KD": "1"}


def test_a_change_of_the_rules_or_of_the_samples_asks_for_an_assessment(study, monkeypatch, capsys):
    more = study.model_copy(update={"assess": study.assess.model_copy(update={"bootstrap_samples": 333})})
    regrade(more)
    assess(more)
    assert "assess: nothing to do" in capsys.readouterr().out
    assess(study)
    assert "assess: nothing to do" not in capsys.readouterr().out
    rules = regrading.rules_hashes() | {"extract/new.py": "0" * 64}
    for module in (regrading, assessing):
        monkeypatch.setattr(module, "rules_hashes", lambda profile: rules)
    assess(study)
    assess(study)
    assert capsys.readouterr().out.count("assess: nothing to do") == 1


def test_models_that_are_scored_before_the_others_are_what_an_assessment_finds(study, monkeypatch, capsys):
    kept = {name: files_of(study.runs / name) for name in ("answers", "held-out")}
    costs = {key: read_json(study.logs / "manifest.json")[key] for key in ("seconds", "energy_kwh")}
    assert costs["seconds"] > 0
    monkeypatch.setattr(transformers_engine, "TransformersEngine", TransformersEngine)
    for folder in (study.logs, *(study.runs / kind / name for kind in kept for name in ("control", "ai-KD"))):
        shutil.rmtree(folder)
    score_some(study, ["control", "ai-KD"])
    for kind, before in kept.items():
        after = files_of(study.runs / kind)
        assert after.keys() == before.keys()
        assert all(after[name] == before[name] for name in before if not name.endswith("manifest.json"))
    monkeypatch.setattr(transformers_engine, "TransformersEngine", lambda *_: pytest.fail("a model was opened"))
    assess(study)
    made = [read_json(p) for kind in kept for p in (study.runs / kind).glob("*/manifest.json")]
    assert read_json(study.logs / "manifest.json")["seconds"] == pytest.approx(sum(m["seconds"] for m in made))
    with pytest.raises(UserError, match="no model 'nobody': choose one of control, base-KD"):
        score_some(study, ["control", "nobody"])
    shutil.rmtree(study.runs / "signals" / "held-out")
    with pytest.raises(UserError, match="`primekd capture --held-out` first"):
        score_some(study, ["control"])


def test_held_out_rows_are_of_these_bytes_of_the_reference_and_no_others(profile, reference, monkeypatch):
    items, inputs = load_items(profile, "test"), {"any": "answers"}
    engine = TransformersEngine(profile.student.model, "float32")
    rows = held_out.held_out_rows(profile, "control", items, inputs, reference, lambda: engine)
    assert held_out.held_out_rows(profile, "control", items, inputs, reference, lambda: pytest.fail("measured")) == rows
    opened = []
    for shard in reference.manifest["shards"].values():
        monkeypatch.setitem(shard, "sha256", "0" * 64)
    held_out.held_out_rows(profile, "control", items, inputs, reference, lambda: opened.append(1) or engine)
    assert opened == [1]


def test_held_out_fit_and_tokens_are_of_as_many_items_as_the_profile_says(profile, reference):
    items = load_items(profile, "test")
    first = profile.model_copy(update={"assess": profile.assess.model_copy(update={"held_out_items": 2})})
    for view, measured in ((profile, items), (first, items[:2])):
        scored = score_models(view, items, [Model("control")], reference)["control"]
        assert [row.id for row in scored.held_out] == [item.id for item in measured]
        assert len(scored.answers) == len(items)
        _write_tokens(view, items, reference, ["control"])
        kept = TokenLog(view.logs / "tokens.safetensors")
        assert (kept.items, kept.models) == ([item.id for item in measured], ["control"])


def test_a_fixed_loss_is_said_and_measured_anew_when_asked(study, edited, monkeypatch, capsys):
    before = read_json(study.logs / "manifest.json")
    edited("losses/slopes")
    assess(study)
    said = capsys.readouterr().out
    assert "held-out fit control: made by other code (commit unknown; changed since: losses.slopes): kept" in said
    assert "assess: nothing to do" in said and "answer control" not in said
    assert "distill base-KD" not in said and read_json(study.logs / "manifest.json") == before
    distill(study, "base-fine-tune")
    assert "distill base-fine-tune: made by other code" in capsys.readouterr().out
    assert "distill, assess" in other_code_text(study) and "--force-stage assess" in other_code_text(study)

    monkeypatch.setattr(transformers_engine, "TransformersEngine", TransformersEngine)
    tables = tables_of(study)
    score_some(study, ["control"], force=True)
    page = study.runs / "notebooks" / "assessment" / "assess.ipynb"
    assert check_lineage(study).problems == ["control: other answers or held-out fit lie here: assess again"]
    assert page in find_study(study).lost(study), "so that a run does not call it up to date"
    assess(study)  # the logs follow
    assert check_lineage(study).problems == [] and page not in find_study(study).lost(study)
    manifest, today = read_json(study.logs / "manifest.json"), stage_code("held-out", study)["sha256"]
    found = tables_of(study)
    found["costs.csv"] = tables["costs.csv"]  # the answers were made once more
    assert found == tables, "nothing that was computed has changed"
    made_by = {name: facts["held_out"]["code"]["sha256"] for name, facts in manifest["models"].items()}
    assert manifest["control"]["held_out"]["code"]["sha256"] == today and today not in made_by.values()
    assert set(made_by.values()) == {before["control"]["held_out"]["code"]["sha256"]}
    assert manifest["control"]["answers"]["code"]["sha256"] == stage_code("answers", study)["sha256"]
    assert all((study.runs / kind / "control.old-1" / "manifest.json").is_file() for kind in ("answers", "held-out"))
    capsys.readouterr()
    assess(study)
    said = capsys.readouterr().out
    assert "held-out fit ai-KD: made by other code" in said and "fit control" not in said


def test_what_is_asked_for_anew_is_made_once_also_after_a_kill(study, monkeypatch, capsys):
    monkeypatch.setattr(transformers_engine, "TransformersEngine", TransformersEngine)
    ask_anew(study, ["assess"])
    score_some(study, ["control"])  # and here the run is killed
    assert len(list((study.runs / "answers").glob("*.old-1"))) == 1
    monkeypatch.setattr(transformers_engine, "TransformersEngine", lambda *_, **__: pytest.fail("a model was opened"))
    score_some(study, ["control"])
    with pytest.raises(pytest.fail.Exception, match="a model was opened"):
        score_some(study, ["ai-KD"])  # it is still to be made anew
    forget_wishes(study)
    score_some(study, ["base-KD"])


def test_the_lineage_names_what_was_trained_on_and_not_what_lies_there_today(study):
    (student,) = find_students(study, "base-KD")
    trained = student.manifest["inputs"]["signals"]
    shutil.rmtree(study.runs / "signals")
    facts = assessing.lineage(study, student)
    assert facts["signals"]["shards"] == trained["shards"] and len(trained["shards"]) == 1
    assert facts["signals"]["engine"]["engine"] == "transformers" and facts["signals"]["items"] == 2
    rows = dict(model_facts({"models": {"base-KD": facts}}, "base-KD"))
    assert rows["Shards trained on"] == f"shard-00000 {trained['shards']['shard-00000.safetensors'][:16]}"
    assert rows["Commit of answers"] == rows["Commit of held-out fit"] == "unknown"
    assert rows["Base model sha256"] == model_hash(study.student.model) and "Student sha256" not in rows


def test_a_student_trained_on_other_shards_than_lie_here_is_found(study):
    assert check_lineage(study).problems == []
    path = study.runs / "students" / "ai-KD" / "manifest.json"
    manifest = read_json(path)
    manifest["inputs"]["signals"]["shards"] = {"shard-00000.safetensors": "0" * 64}
    write_json(path, manifest)
    (study.runs / "answers" / "base-KD" / "manifest.json").unlink()
    assert check_lineage(study).problems == [
        "base-KD: other answers or held-out fit lie here: assess again",
        "base-KD: answers/base-KD is missing on this machine",
        "ai-KD was trained on other shards than lie on this machine",
    ]


def committed(study: Profile) -> None:
    """Pretends that every result of the study was made by one clean commit."""
    for path in [*study.runs.rglob("manifest.json"), study.logs / "manifest.json"]:
        manifest = read_json(path)
        manifest["environment"]["git"] = {"commit": "c" * 40, "dirty": False}
        write_json(path, manifest)


def change_manifest(folder: Path, **changes) -> None:
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | changes)


UNPUBLISHABLE = {
    "other code": ("students/ai-KD", {"code": {"sha256": "0" * 64, "packages": {}, "modules": {}}}, "by other code"),
    "unknown code": ("signals/ai-KD", {"code": None}, "not recorded"),
    "dirty": ("answers/control", {"environment": {"git": {"commit": "c" * 40, "dirty": True}}}, "uncommitted changes"),
    "no commit": ("held-out/ai-KD", {"environment": {"git": {"commit": None, "dirty": None}}}, "without a commit"),
    "mixed": ("signals/held-out", {"mixed": [{"parts": ["a"]}, {"parts": ["b"]}]}, "in parts by different code"),
    "missing": ("answers/ai-KD", None, "has no manifest"),
}


@pytest.mark.parametrize("folder, changes, said", UNPUBLISHABLE.values(), ids=UNPUBLISHABLE)
def test_what_no_one_commit_made_is_not_published(folder, changes, said, study):
    committed(study)
    refuse_unpublishable(study)
    if changes is None:
        (study.runs / folder / "manifest.json").unlink()
    else:
        change_manifest(study.runs / folder, **changes)
    with pytest.raises(UserError, match=f"{folder}.*{said}"):
        refuse_unpublishable(study)
    if "other code" in said or "different code" in said or "recorded" in said:  # nights that several commits made
        refuse_unpublishable(study, mixed=True)
    else:
        with pytest.raises(UserError, match=f"{folder}.*{said}"):
            refuse_unpublishable(study, mixed=True)


DAMAGE = {
    "a list": "[]",
    "null": "null",
    "nothing": "",
    "half of one": '{"kind": "x", "inputs": {',
    "parts are missing": "{}",
    "deeply nested": "[" * 100_000,
    "NaN": lambda m: m | {"seconds": float("nan")},
    "too large a number": lambda m: m | {"spec": m.get("spec", {}) | {"items": float("inf")}},
    "no outputs": lambda m: m | {"outputs": {}, "shards": {"x": 1}},
    "a name outside": lambda m: m | {"outputs": {"../x": "0" * 64}, "shards": {"../x": {"sha256": "0" * 64}}},
    "other types": lambda m: m | {"inputs": [1], "spec": "x", "environment": 3},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_manifest_is_one_sentence_with_its_name_whoever_reads_it(damage, study):
    readers = {
        study.logs: [assess, regrade, render, lambda s: read_manifest(s.logs / "manifest.json")],
        study.student_folder("base-KD"): [find_students, lambda s: distill(s, "base-KD"), refuse_unpublishable],
        study.signals_folder("ai-KD"): [lambda s: capture(training_job(s, "ai-KD")), lambda s: distill(s, "ai-KD")],
        study.runs / "answers" / "control": [assess, other_code_text],
    }
    for folder, verbs in readers.items():
        path = folder / "manifest.json"
        whole = path.read_text(encoding="utf-8")
        bad = damage if isinstance(damage, str) else json.dumps(damage(json.loads(whole))).replace("Infinity", "1e999")
        path.write_text(bad, encoding="utf-8")
        for verb in verbs:
            with pytest.raises(UserError) as caught:
                verb(study)
            assert f"{folder.name}/manifest.json" in str(caught.value) and "\n" not in str(caught.value)
        path.write_text(whole, encoding="utf-8")
    assert find_students(study)


def test_answers_that_other_code_goes_on_with_are_said_and_listed(profile, edited, capsys):
    items = load_items(profile, "test")
    inputs, engine = answer_inputs(profile, items, None), TransformersEngine(profile.student.model, "float32", 1)
    generate_answers(profile, "control", items, inputs, lambda: engine)
    folder = profile.runs / "answers" / "control"
    blocks = [path.name for path in sorted(folder.glob("block-*.json"))]
    for path in (folder / blocks[1], folder / "manifest.json"):
        path.unlink()
    (folder / "block-00009.json").write_text("{}")  # of a larger test set
    edited("models/chat")
    capsys.readouterr()
    generate_answers(profile, "control", items, inputs, lambda: engine)
    said = capsys.readouterr().out
    assert "answer control: 1 parts of it are there, made by other code" in said
    assert "changed since: models.chat" in said
    manifest = read_manifest(folder / "manifest.json")
    assert [maker["parts"] for maker in manifest["mixed"]] == [[blocks[0]], [blocks[1]]]
    assert set(manifest["outputs"]) == set(blocks) and not (folder / "block-00009.json").exists()


def test_what_answers_took_is_of_every_session(profile):
    items = load_items(profile, "test")
    inputs, engine = answer_inputs(profile, items, None), TransformersEngine(profile.student.model, "float32", 1)
    generate_answers(profile, "control", items, inputs, lambda: engine)
    folder = profile.runs / "answers" / "control"
    first = read_manifest(folder / "manifest.json")
    blocks = sorted(folder.glob("block-*.json"))
    took = [read_json(path)["seconds"] for path in sorted(folder.glob(".took-*.json"))]
    assert first["seconds"] == pytest.approx(sum(took)) and first["start"] <= first["end"] and first["config"]
    assert first["tokens"] == sum(len(row["ids"]) for path in blocks for row in read_json(path)["rows"])
    earlier = folder / ".took-00000.json"
    write_json(earlier, read_json(earlier) | {"seconds": 1000.0, "energy_kwh": None})
    for path in (blocks[1], folder / "manifest.json"):
        path.unlink()
    generate_answers(profile, "control", items, inputs, lambda: engine)
    second = read_manifest(folder / "manifest.json")
    assert second["seconds"] > 1000 and second["energy_kwh"] is None, "unknown of one session, unknown in all"
    assert second["start"] == first["start"]


def test_an_assessment_names_the_answers_that_a_grading_may_start_from(study):
    manifest = read_json(study.logs / "manifest.json")
    assert list(manifest["answers_sha256"]) == ["control", *default_arms(), "teacher"]
    for model, digest in manifest["answers_sha256"].items():
        assert digest == answers_hash(read_log(study.logs / f"{model}.csv"))
    for facts in manifest["models"].values():
        assert facts["served"] == {"answers": {"adapter": "merged"}, "held_out": {"adapter": "merged"}}


def test_a_question_that_is_trained_on_and_tested_is_refused(ci):
    test, train = load_items(ci, "test"), load_items(ci, "train")
    refuse_overlap(test, "test", {"train": train})
    with pytest.raises(UserError, match="stand in the test items and in the train items"):
        refuse_overlap(test, "test", {"train": [*train, test[3]]})
