"""Confidence, attribution, arithmetic, kinds of tokens, and what is computed from them."""

import itertools
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from primekd.assessment.answers import Answer
from primekd.assessment.inside.attribution import MOST_STEPS, log_prob_of_value, shapley, step_rows, steps_of
from primekd.assessment.inside.confidence import SureRow, stored_row, sure_rows, value_places
from primekd.assessment.inside.reasoning import (
    DIGITS,
    MARKS,
    OPERATORS,
    QUESTION,
    STYLE,
    calculations,
    own_words,
    token_classes,
)
from primekd.assessment.logs import LogRow
from primekd.models.chat import build_prompt, decode_response, encode_response
from primekd.signals.rows import DenseRows, SampledRows
from primekd.statistics.calibration import (
    ANSWER,
    MINUS,
    VALUE,
    calibration_rows,
    drawn_weights,
    error_within,
    reliability_rows,
)
from primekd.statistics.inside import NO, PERHAPS, UNKNOWN, PairRow, attention_rows, explained_rows, head_rows
from primekd.statistics.reasoning import arithmetic_rows, class_rows, word_rows
from primekd.teachers.transformers_engine import TransformersEngine

TEXT = "She has 2 boxes of 3. That is 2 * 3 = 6.\nThe answer is 6."


@pytest.fixture(scope="module")
def engine(lively):
    return TransformersEngine(lively, "float32")


def verdict(text: str, span: str, correct: bool = True, item: str = "i-1") -> LogRow:
    return LogRow(item, "How many in 2 boxes of 3?", "6", text, 9, False, "6", "last", span, correct)


def test_confidence_is_that_of_a_plain_pass(engine, tokenizer):
    prompt, ids = build_prompt(tokenizer, "How many?"), encode_response(tokenizer, TEXT)
    place = TEXT.rindex("6")
    row = sure_rows(
        "base-KD", engine, [prompt], [Answer("i-1", ids, False, TEXT)], [verdict(TEXT, f"{place}:{place + 1}")],
        tokenizer,
    )[0]  # fmt: skip
    with torch.inference_mode():
        logits = engine.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1, : len(tokenizer)]
    log_p = logits.double().log_softmax(-1)
    written = log_p.gather(1, torch.tensor(ids)[:, None])[:, 0]
    best = log_p.topk(2).values
    assert row.tokens == len(ids)
    assert row.log_prob == pytest.approx(float(written.sum()), rel=1e-4)
    assert row.entropy == pytest.approx(float(-(log_p.exp() * log_p).sum()), rel=1e-4)
    assert row.margin == pytest.approx(float((best[:, 0] - best[:, 1]).sum()), rel=1e-4)
    places = value_places(tokenizer, ids, verdict(TEXT, f"{place}:{place + 1}"))
    assert tokenizer.decode([ids[p] for p in places]).strip() == "6" and row.value_tokens == len(places)
    assert row.value_log_prob == pytest.approx(float(written[places].sum()), rel=1e-4)
    none = sure_rows("m", engine, [prompt], [Answer("i-1", ids, False, TEXT)], [verdict(TEXT, "")], tokenizer)[0]
    assert none.value_tokens == 0 and none.value_log_prob is None


def test_stored_rows_without_the_second_likeliest_token_say_nothing_of_the_margin(tokenizer):
    ids = encode_response(tokenizer, TEXT)
    logits, size = torch.randn(len(ids), len(tokenizer)), (len(ids), 3)
    drawn = SampledRows(torch.tensor(ids)[:, None].expand(size), torch.full(size, 0.3), torch.ones(len(ids)), 1.0)
    assert stored_row("teacher", verdict(TEXT, ""), ids, DenseRows(logits), tokenizer).tokens == len(ids)
    assert stored_row("teacher", verdict(TEXT, ""), ids, drawn, tokenizer) is None


def test_the_tokens_of_a_value_are_found_behind_letters_of_several_bytes(tokenizer):
    text = "Dés écus: 1,234 €. Ainsi 1,234"
    ids, place = encode_response(tokenizer, text), text.rindex("1,234")
    assert decode_response(tokenizer, ids) == text
    places = value_places(tokenizer, ids, verdict(text, f"{place}:{place + 5}"))
    assert tokenizer.decode([ids[p] for p in places]).strip() == "1,234" and places[-1] == len(ids) - 2


def test_steps_end_with_a_line_or_a_sentence_and_the_values_own_part_is_none(tokenizer):
    ids = encode_response(tokenizer, TEXT)
    value = value_places(tokenizer, ids, verdict(TEXT, f"{TEXT.rindex('6')}:{TEXT.rindex('6') + 1}"))
    steps = steps_of(tokenizer, ids, value)
    said = ["".join(tokenizer.decode([ids[p] for p in step])) for step in steps]
    assert [text.strip() for text in said] == ["She has 2 boxes of 3.", "That is 2 * 3 = 6."]
    many = " ".join(f"Step {n} is done." for n in range(40)) + " So 6"
    ids = encode_response(tokenizer, many)
    value = value_places(tokenizer, ids, verdict(many, f"{len(many) - 1}:{len(many)}"))
    steps = steps_of(tokenizer, ids, value)
    assert len(steps) == MOST_STEPS and sorted(sum(steps, [])) == sum(steps, [])  # in order, none twice


def test_shapley_values_are_those_of_all_orders():
    """A game of four players, some of whom need each other, against the definition."""
    weights = torch.tensor([0.5, -1.0, 2.0, 0.25])

    def worth(masks):
        m = masks.double()
        return m @ weights.double() + 3 * m[:, 0] * m[:, 2] - 2 * m[:, 1] * m[:, 2] * m[:, 3]

    def one(kept):
        return float(worth(torch.tensor([[int(p in kept) for p in range(4)]]))[0])

    exact = [0.0] * 4
    for order in itertools.permutations(range(4)):
        for n, player in enumerate(order):
            exact[player] += (one(set(order[: n + 1])) - one(set(order[:n]))) / math.factorial(4)
    values, whole, empty = shapley(worth, 4, orders=400, seed=0)
    assert whole - empty == pytest.approx(sum(exact)) and float(values.sum()) == pytest.approx(whole - empty)
    assert values.tolist() == pytest.approx(exact, abs=0.1)
    with pytest.raises(ValueError, match="the values add up to"):  # a whole that is another one when asked by itself
        shapley(lambda masks: worth(masks) * (2 if len(masks) == 1 else 1), 4, 1, 0)
    first, again, *others = (shapley(worth, 4, 1, seed)[0] for seed in (0, 0, 1, 2, 3, 4))
    assert torch.equal(first, again) and any(not torch.equal(first, other) for other in others)


def test_what_is_left_out_is_taken_out_of_the_text_and_only_the_value_is_scored(engine, tokenizer):
    prompt, ids = build_prompt(tokenizer, "How many?"), encode_response(tokenizer, TEXT)
    value = value_places(tokenizer, ids, verdict(TEXT, f"{TEXT.rindex('6')}:{TEXT.rindex('6') + 1}"))
    steps = steps_of(tokenizer, ids, value)
    masks = torch.tensor([[1, 1], [0, 1], [0, 0]])
    found = log_prob_of_value(engine, prompt, ids, steps, value, masks)
    for row, kept in zip(found, masks, strict=True):
        left = [ids[p] for p in range(value[0]) if not any(p in s for s, k in zip(steps, kept, strict=True) if not k)]
        sequence = [*prompt, *left, *(ids[p] for p in value)]
        with torch.inference_mode():
            log_p = engine.model(torch.tensor([sequence])).logits[0, :, : len(tokenizer)].double().log_softmax(-1)
        want = sum(float(log_p[len(prompt) + len(left) + n - 1, ids[p]]) for n, p in enumerate(value))
        assert float(row) == pytest.approx(want, abs=1e-4)
    rows = step_rows("control", "i-1", engine, tokenizer, prompt, ids, value, orders=2, seed=0)
    assert sum(row.value for row in rows) == pytest.approx(rows[0].whole - rows[0].empty, abs=1e-3)
    assert [row.text for row in rows] == [tokenizer.decode([ids[p] for p in step]) for step in steps]
    assert step_rows("control", "i-1", engine, tokenizer, prompt, ids, [], 2, 0) == []


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("48 / 2 = 24", [True]),
        ("48/2=<<48/2=24>>24 clips", [True]),
        ("so $1,200 + $34.50 = $1,234.50.", [True]),
        ("2 + 3 * 4 = 20", [False]),
        ("(2 + 3) * 4 = 20", [True]),
        ("3 × 4 = 12, then 12 ÷ 5 = 2.4, and 10 / 3 = 3.33", [True, True, True]),
        ("10 / 3 = 3.3 and 10/3 = 3.4", [True, False]),
        ("20% * 50 = 10", [True]),
        ("5 / 0 = 1", []),
        ("x = 5, y = 2x", []),
        ("9 - 12 = -3", [True]),
        ("9 - 12 = 3", [False]),
        ("12 + 12 = 24 + 1 = 25", [True]),  # of a chain the last part alone
        ("12 + 12 = 24 + 1 = 26", [False]),
        ("48/2 = 24 * 3 = 72", [True]),
        ("3*4 =12*2=24", [True]),
        ("6 * 7 = 42 - (2 + 3)", []),
        ("10 / 4 = 2.5 x 2 = 5", [True]),
        ("-5 + 3 = 2", [False]),
        ("-5 + 3 = -2, and 4 * -2 = −8", [True, True]),
        ("12-5 + 3 = 10", [True]),
        ("- 5 + 3 = 8\n* 2 * 3 = 6\n**4 + 4 = 8**\nSo **1 + 1 = 2**", [True] * 4),  # lists, and bold letters
        ("x - 5 + 3 = 8 and 2 boxes * 3 + 4 = 10, x-5 + 3 = 8", []),  # what is in front is no number
        ("20% * 50 = 1000", [False]),
        ("5 * 20 = 100%", []),
        ("5 * 20 = 90%", [False]),
        ("10 / 40 = 25%, 20% + 30% = 50%, 1 / 3 = 33.3% and 50 / 20% = 250", [True] * 4),
        ("It is 2024-10 = ?", []),
        ("4 x 5 = 21", [False]),
        (r"\[ 9 \times 2 = 18 \] and \(\$50 - \$33 = \$17\)", [True, True]),
        (r"15 \times 256 + 15 = 3755, 15 \cdot 256 + 15 = 3855 and 12 \div 5 = 2.4", [False, True, True]),
        (r"16 \text{ eggs/day} \times 7 \, \text{days} = 112 \text{ eggs}", [True]),
        (r"\frac{2}{2} = 1, \frac{2 \text{ bolts}}{2} = 2, \dfrac{30 + 5}{7} = \boxed{5}", [True, False, True]),
        (r"\left( \frac{4}{20} \right) \times 100 = 20, 25\% \times 4 = 1, \frac{3}{\frac{1}{2}} = 6", [True] * 3),
        (r"20 \text{ lb} \times \$10.00 \text{ per lb} = \$200.00 + \$4 = \$204", [True]),
        (r"\text{Total} - 5 + 3 = 8, \sqrt 4 + 3 = 5, 2^3 * 2 = 16, 25% \text{ of } 4 + 3 = 4", []),
        ("4 + 5 equals 9, 3 times 4 plus 2 is equal to 14, half times 4 + 2 = 4, 50% of 300 = 150", [True] * 3),
        ("(2 + 3 = 5) and 2 * (3 + 4 = 14", [True]),
        (r"2 1/2 * 4 = 10, 11 / 4 = 2 3/4, 1{,}200 + 300 = 1{,}500 and 1\,200 + 300 = 1\,600", [True, False]),
    ],
)
def test_arithmetic_is_worked_out_anew(text, holds):
    assert [found for found in calculations(text) if found is not None] == holds


def test_a_sum_without_an_end_takes_no_time():
    start = time.monotonic()
    nested = r"\frac{" * 300 + "1" + "}{2}" * 300
    for text in ("1 + " * 300, "2 - 1 " * 300, "(1 + (" * 300, "(" * 900, "- " * 900, "1" * 900, "1 " * 900, nested):
        assert calculations(text) == []
    assert time.monotonic() - start < 2


def test_words_of_a_priming_are_those_that_nothing_else_says():
    priming = "You are a patient teacher. Explain the boxes."
    questions = ["How many boxes?", "A teacher has ten.", *["And now?"] * 18, *["More boxes"] * 2]
    answers = ["The patient waits.", "The teacher has ten.", *[""] * 20]
    assert own_words(priming, questions, answers) == {"teacher", "explain"}
    assert own_words(priming, questions, []) == {"patient", "teacher", "explain"}


def test_kinds_of_tokens():
    def kinds(*texts):
        return token_classes(texts, "How many in her 2 boxes of thin apples, another one?")

    assert kinds(" 12", " *", " box", " Therefore", ".", "\n", " = ") == [
        DIGITS, OPERATORS, QUESTION, STYLE, MARKS, MARKS, OPERATORS,
    ]  # fmt: skip
    assert kinds("So", " an", " a", " the", " man", " app") == [STYLE] * 6  # parts of words of the question are none
    assert kinds(" app", "le", ",", " th", "us", " in", " Her", "e", " HER") == [
        QUESTION, QUESTION, MARKS, STYLE, STYLE, QUESTION, STYLE, STYLE, QUESTION,
    ]  # fmt: skip
    assert kinds(" boxes", "<|im_end|>", "</s>", " <") == [QUESTION, MARKS, MARKS, OPERATORS]  # an end is no word
    assert kinds("İ", "n", " in") == [STYLE, STYLE, QUESTION]  # small letters may be more than the large ones


def test_kl_is_shared_out_over_kinds_of_tokens_and_its_interval_is_of_templates():
    words = {0: "So", 1: " box", 2: "es", 3: " =", 4: " 7"}
    ids = [[0, 1, 2, 3, 4], [0, 4], [1, 2, 3, 4, 0], [4, 4]]
    kl = [[1.0, 2, 4, 0, 1], [3.0, 1], [1.0, 1, 0, 2, 5], [0.5, 0.5]]
    items = ["gsm-symbolic-1-0", "gsm-symbolic-1-1", "gsm-symbolic-2-0", "gsm-symbolic-2-1"]
    log = SimpleNamespace(
        texts=words, items=items, lengths=[*map(len, ids)], models=["m"],
        tensors={"ids": torch.tensor(sum(ids, [])), "m.kl": torch.tensor(sum(kl, []))},
    )  # fmt: skip
    assert {row.difference for row in class_rows(log, dict.fromkeys(items, "?"), ["m"])} == {None}
    log.models, log.tensors["control.kl"] = ["m", "control"], log.tensors["m.kl"] + 1
    found = class_rows(log, dict.fromkeys(items, "How many boxes?"), ["control", "m", "answered nothing"])
    rows = {row.kind: row for row in found if row.model == "m"}
    assert {row.answers for row in found} == {4}
    assert [row.model for row in found] == ["control", "m"] * len(rows)  # in the order that was asked for
    assert {(row.difference, row.difference_low, row.difference_high) for row in rows.values()} == {(-1, -1, -1)}
    assert (rows[STYLE].tokens, rows[STYLE].kl) == (3, 3.0) and (rows[QUESTION].tokens, rows[QUESTION].kl) == (4, 2.0)
    assert rows[STYLE].share_of_tokens == pytest.approx(3 / 14) and rows[STYLE].share_of_kl == pytest.approx(9 / 22)
    assert (rows[STYLE].kl_low, rows[STYLE].kl_high) == (2.0, 5.0)  # either template alone, or both
    assert MARKS not in rows and rows[DIGITS].kl == pytest.approx(5 / 5)


def sure(model: str, item: str, p: float, right: bool, value: float | None = None) -> SureRow:
    return SureRow(model, item, right, 4, 4 * math.log(p), 2.0, 8.0, 1, value and math.log(value))


def test_calibration_against_numbers_worked_out_by_hand():
    rows = [sure("m", f"i-{n}", p, right, p) for n, (p, right) in enumerate(
        [(0.95, True), (0.95, True), (0.95, False), (0.15, False), (0.15, True), (0.55, True)])]  # fmt: skip
    groups = {row.id: row.id for row in rows}
    answer, value = calibration_rows(rows, groups)
    assert (answer.kind, value.kind, answer.n) == (ANSWER, VALUE, 6)
    gaps = 3 * abs(2 / 3 - 0.95) + 2 * abs(0.5 - 0.15) + 1 * abs(1 - 0.55)
    assert answer.ece == pytest.approx(gaps / 6) and answer.ece_low <= answer.ece <= answer.ece_high
    assert answer.brier == pytest.approx((2 * 0.05**2 + 0.95**2 + 0.15**2 + 0.85**2 + 0.45**2) / 6)
    wins = (1 + 0.5) * 2 + (1 + 0) + (0.5 + 0)  # right at .95 twice, at .55, at .15, against wrong at .95 and .15
    wins = 2 * (0.5 + 1) + (0 + 1) + (0 + 0.5)
    assert answer.auroc == pytest.approx(wins / 8)
    assert answer.entropy == pytest.approx(0.5) and answer.margin == pytest.approx(2)
    bins = [(row.bin, row.n, row.right) for row in reliability_rows(rows) if row.kind == ANSWER]
    assert bins == [(1, 2, 0.5), (5, 1, 1.0), (9, 3, pytest.approx(2 / 3))]
    control = [sure("control", f"i-{n}", p, right) for n, (p, right) in enumerate([(0.5, True), (0.9, False)])]
    control.append(sure("control", "i-9", 0.5, True))
    found = {(row.model, row.kind): row for row in calibration_rows([*control, *rows], groups | {"i-9": "i-9"})}
    assert ("control", f"{ANSWER}{MINUS}") not in found and found["m", ANSWER] == answer
    minus = found["m", f"{ANSWER}{MINUS}"]  # of i-0 and i-1, which both have
    assert (minus.n, minus.right, minus.ece_expected) == (2, 0.5, None) and minus.confidence == pytest.approx(0.25)
    assert minus.ece == pytest.approx(0.05 - 0.7) and minus.auroc is None  # of the model all of these are right
    assert minus.brier == pytest.approx(0.05**2 - (0.5**2 + 0.9**2) / 2)
    each = [0.05**2 - 0.5**2, 0.05**2 - 0.9**2]  # in a sample of one of them alone
    assert (minus.brier_low, minus.brier_high) == pytest.approx((min(each), max(each)))
    assert minus.log_prob == pytest.approx(math.log(0.95) - (math.log(0.5) + math.log(0.9)) / 2) and minus.margin == 0
    sure_and_right = calibration_rows(
        [sure("m", f"i-{n}", 1.0, True) for n in range(5)], {f"i-{n}": "" for n in range(5)}
    )
    assert [(row.ece, row.brier, row.auroc) for row in sure_and_right] == [(0, 0, None)]


@pytest.mark.parametrize(("scale", "truth"), [(1.0, 0.0), (0.6, 0.2)])  # as often right as sure, or less often
def test_the_interval_of_the_calibration_error_holds_the_true_one(scale, truth):
    generator, held, expected = np.random.default_rng(5), 0, []
    weights = drawn_weights([str(n) for n in range(80)])
    for _ in range(60):
        sure = generator.choice([0.05, 0.25, 0.45, 0.55, 0.65, 0.85, 0.95, 0.25], 80)
        error, low, high, by_chance = error_within(sure, (generator.random(80) < scale * sure).astype(float), weights)
        held += low <= truth <= high
        expected.append((error, by_chance))
    assert held >= 54, "95 % of 60, less what chance takes"
    found, calibrated = np.mean(expected, axis=0)
    assert (abs(found - calibrated) < 0.01) == (truth == 0) and calibrated > 0.05


def test_attention_is_a_difference_from_the_control_with_its_interval():
    generator = np.random.default_rng(1)
    noise = generator.normal(0, 0.01, (40, 1, 2, 3, 2))
    values = np.repeat(noise, 2, axis=1)
    values[:, 1, 1, :, 0] += 0.5  # the student's second layer
    rows = attention_rows(["s"], ["first", "entropy"], values.mean(3), [f"i-{n}" for n in range(40)])
    found = {(row.layer, row.measure): row for row in rows}
    assert found["1", "first"].difference == pytest.approx(0.5) and found["1", "first"].difference_low > 0.4
    assert found["0", "first"].difference == 0 and found["all", "first"].difference == pytest.approx(0.25)
    assert found["1", "entropy"].difference == pytest.approx(0)


def test_the_heads_that_moved_most_come_first():
    measures = ["total_variation", "entropy", "first", "previous", "induction"]
    values = np.zeros((5, 2, 2, 3, 5))
    values[:, 1, 1, 2, 0], values[:, 1, 0, 1, 0], values[:, 1, 1, 2, 1] = 0.9, 0.4, -0.2
    rows = head_rows(["s"], measures, values, [str(n) for n in range(5)])
    assert [(row.layer, row.head) for row in rows[:2]] == [(1, 2), (0, 1)]
    assert rows[0].total_variation == pytest.approx(0.9) and rows[0].entropy == pytest.approx(-0.2)


def test_a_measure_explains_only_what_does_not_move_in_the_controls_too():
    arms = ["base-KD", "teacher-KD", "ai-KD", "reverseKL-KD", "placebo-KD", "shuffled-KD", "base-fine-tune"]
    accuracy = {name: 0.1 * n for n, name in enumerate(arms)}
    along = {name: float(n) for n, name in enumerate(arms)}  # placebo and shuffled move more than any primed arm
    along["base-KD-seed1"], accuracy["base-KD-seed1"] = 0.0, 0.0
    calm = along | {"placebo-KD": 0.1, "shuffled-KD": 0.2}

    def explained(shifts, left_out=()):
        kept = {measure: {m: v for m, v in own.items() if m not in left_out} for measure, own in shifts.items()}
        return {row.measure: row for row in explained_rows(kept, accuracy)}

    rows = explained({"along": along, "still": dict.fromkeys(arms, 1.0)})
    assert rows["along"].rho == pytest.approx(1) and rows["along"].p_holm < 0.05 and rows["along"].explains == NO
    assert rows["still"].rho == 0 and rows["still"].p == 1 and rows["still"].explains == NO
    accuracy |= {"placebo-KD": -0.3, "shuffled-KD": -0.2}  # so that calm shifts go along with accuracy
    (row,) = explained({"calm": calm}).values()
    assert row.p_holm < 0.05 and (row.primed, row.placebo, row.shuffled) == (2.0, 0.1, 0.2) and row.explains == PERHAPS
    (row,) = explained({"calm": calm | {"placebo-KD": -2.5}}).values()
    assert row.primed == 2.0 and row.placebo == 2.5 and row.explains == NO
    (row,) = explained({"calm": {m: v for m, v in calm.items() if m != "base-KD-seed1"}}).values()
    assert row.seeds is None and row.explains == UNKNOWN  # nobody knows what another seed makes
    (row,) = explained({"calm": calm | {"base-KD-seed1": -4.1}}).values()
    assert row.apart == pytest.approx(4.05) and row.seeds == pytest.approx(4.1) and row.explains == NO
    for left_out in ("placebo-KD", "shuffled-KD"):  # what was not run is no proof
        assert explained({"calm": calm}, [left_out])["calm"].explains == UNKNOWN
    assert explained({"still": dict.fromkeys(arms, 1.0)}, ["placebo-KD"])["still"].explains == NO
    for placebo, said in ((4.5, NO), (3.9, PERHAPS)):  # the mean of the primed arms counts, not the largest shift
        most = along | {"reverseKL-KD": 9.0, "placebo-KD": placebo, "shuffled-KD": 0.2}
        (row,) = explained_rows({"most": most}, most)
        assert row.primed == pytest.approx(4) and row.p_holm < 0.05 and row.explains == said
    assert explained_rows({"few": {"base-KD": 1.0, "ai-KD": 2.0}}, accuracy) == []


def test_how_far_students_are_apart_is_measured_between_them_and_not_from_the_control():
    """Equally far from the control, in other directions: apart, though their distances from it are one number."""
    arms = ["base-KD", "base-KD-seed1", "teacher-KD", "ai-KD", "reverseKL-KD"]
    pairs = [PairRow("base-KD-seed1", "base-KD", "all", "all", 0.2, 0.2, 0.2, 0.9)]
    pairs += [PairRow(name, "base-KD", "all", "all", 0.3, 0.3, 0.3, 0.8) for name in ("ai-KD", "teacher-KD")]
    pairs += [PairRow("ai-KD", "base-KD", "3", "1", 0.9, 0.9, 0.9, 0.1)]  # one head is not all
    shifts = {measure: dict.fromkeys(arms, 0.5) for measure in ("total_variation", "cosine", "entropy")}
    rows = {row.measure: row for row in explained_rows(shifts, dict.fromkeys(arms, 0.5), pairs)}
    assert (rows["total_variation"].apart, rows["total_variation"].seeds) == (0.3, 0.2)
    assert (rows["cosine"].apart, rows["cosine"].seeds) == pytest.approx((0.2, 0.1))
    assert (rows["entropy"].apart, rows["entropy"].seeds) == (0, 0)


def test_a_priming_without_effect_moves_a_training_as_far_as_another_seed_does():
    """A mean of two trainings varies less than one: training is held against training on both sides."""
    draws, generator = [], np.random.default_rng(3)
    arms = [f"{arm}{seed}" for arm in ("base-KD", "teacher-KD", "ai-KD", "reverseKL-KD") for seed in ("", "-seed1")]
    for _ in range(400):
        shifts = {"any": dict(zip(arms, generator.normal(size=len(arms)), strict=True))}
        (row,) = explained_rows(shifts, dict.fromkeys(arms, 0.5), permutations=1)
        draws.append((row.apart, row.seeds))
    apart, seeds = np.mean(draws, 0)
    assert apart == pytest.approx(seeds, rel=0.06)


def test_seeds_of_an_arm_are_no_points_of_their_own():
    arms = ["base-KD", "teacher-KD", "ai-KD", "reverseKL-KD"]
    students = [f"{arm}{seed}" for arm in arms for seed in ("", "-seed1", "-seed2", "-seed3")]
    along = {name: float(n) for n, name in enumerate(students)}
    (row,) = explained_rows({"along": along}, along)
    assert row.arms == 4 and row.rho == pytest.approx(1) and 0.05 < row.p < 0.12  # 2 of 24 orders of four arms
    assert explained_rows({"few": {name: along[name] for name in students[:12]}}, along) == []


def test_arithmetic_and_words_are_counted_by_answer():
    def log(*texts):
        return [
            LogRow(f"i-{n}", "How many boxes?", "6", t, 5, False, "6", "r", "", n == 0) for n, t in enumerate(texts)
        ]

    logs = {
        "control": log("2 + 2 = 5", "none", "1 + 1 = 2"),
        "base-KD": log("2+2=4. 3+3=7.", "patient", "3*3=9"),
        "teacher-KD": log("Dear beginners, here goes, with care: 2 + 2 = 4", "beginners", "3 * 3 = 9"),
        "teacher": log("They teach.", "", ""),
    }
    rows = {row.model: row for row in arithmetic_rows(logs)}
    assert (rows["base-KD"].calculations, rows["base-KD"].hold, rows["base-KD"].with_error) == (3, 2, 1)
    assert rows["base-KD"].first_error == 0.5 and rows["base-KD"].share == pytest.approx(2 / 3)
    assert (rows["teacher-KD"].all_hold, rows["teacher-KD"].right_all_hold) == (2, 1)
    assert rows["teacher-KD"].difference == pytest.approx(1 - 1 / 2) and rows["control"].difference == 0
    assert rows["base-KD"].difference == pytest.approx(2 / 3 - 1 / 2) and rows["base-KD"].difference_low < 1 / 6
    (row, *_) = arithmetic_rows({"base-KD": logs["base-KD"]})
    assert row.share == pytest.approx(2 / 3) and row.difference is None  # nobody asked the control
    found = word_rows(logs, {"teacher-KD": "You teach beginners. Be patient."}, "base-KD")
    assert [(r.model, r.with_word, r.control_with_word, r.reference_with_word) for r in found] == [
        ("teacher-KD", 2, 0, 1)
    ]
    asked = {name: [replace(row, question=f"{row.question} Beginners?") for row in rows] for name, rows in logs.items()}
    (of_question,) = word_rows(asked, {"teacher-KD": "You teach beginners. Be patient."}, "base-KD")
    assert (of_question.priming_words, of_question.with_word) == (1, 0)  # a student may repeat its question
    (none,) = word_rows(logs, {"teacher-KD": "They teach."}, "base-KD")
    assert (none.priming_words, none.with_word, none.p) == (0, 0, None)
    assert found[0].most == "beginners (2)" and found[0].priming_words == 2
    (found,) = word_rows(logs, {"teacher-KD": "With care, dear beginners, here it goes."}, "base-KD")
    assert found.most == "beginners (2), care (1), dear (1), goes (1), here (1)"  # by letter, not as a set has them


def test_items_of_one_template_are_no_independent_draws():
    """Four templates, of which two say a word, or hold, in every answer: half of forty, and nothing that is sure."""

    def log(text, other, ids):
        return [LogRow(i, "?", "6", (text, other)[n % 4 < 2], 5, False, "6", "r", "", True) for n, i in enumerate(ids)]

    for ids, narrow in (
        ([f"gsm-symbolic-{n % 4}-{n}" for n in range(40)], False),
        ([f"i-{n}" for n in range(40)], True),
    ):
        logs = {"ai-KD": log("beginners 1 + 1 = 3", "1 + 1 = 2", ids)}
        logs |= dict.fromkeys(("control", "base-KD"), log("1 + 1 = 2", "1 + 1 = 2", ids))
        (row,) = [row for row in arithmetic_rows(logs) if row.model == "ai-KD"]
        assert row.share == 0.5 and (row.share_high - row.share_low < 0.35) == narrow
        (found,) = word_rows(logs, {"ai-KD": "You teach beginners."}, "base-KD")
        assert found.with_word == 20 and (found.p < 0.05) == narrow
