"""The other extractors: the validated rules, the harness's two filters, Math-Verify; and how a text ends."""

import random
import re
import signal
import threading
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from published_logs import LABELLED, needs_published_logs, read_published

from primekd.assessment.reading import EXTRACTORS, RULES, extract
from primekd.assessment.reading.ending import is_cut
from primekd.assessment.reading.harness import FLEXIBLE, STRICT, by_harness, select
from primekd.assessment.reading.numbers import find_numbers
from primekd.assessment.reading.validated import LONGEST, leading

QUESTION = "Mia has 12 plums and gives 5 to Ben. How many plums does she have left?"


def validated(text: str, cut: bool = False, question: str | None = QUESTION):
    return extract(text, "validated", cut, question)


# The validated rules, text by text: text -> (rule, value).

DECLARED = {
    # In words.
    "12 - 5 = 7. The answer is 7.": 7,
    "The final answer is: 7 plums": 7,
    "First she hands 5 over. So the answer to the question is 7": 7,
    "The correct answer is therefore 7.": 7,
    "The correct answer here is 7.": 7,
    "THE ANSWER\nIS 7.": 7,
    "Answer: 7": 7,
    "The answer = 7": 7,
    "The answer would be 7, the answer is 7": 7,
    "The answer is:\n7": 7,
    "12 - 5 = 7.\n\n**Final Answer**: 7": 7,
    "**Answer**: 7": 7,
    "The answer is\n\n**7**": 7,
    "The answer is x = 7": 7,
    "The answer is exactly 7": 7,
    "The answer is approximately 7.5": Fraction("7.5"),
    "The answer is 7, not 8.": 7,
    "The answer is that Mia has 7 plums left": 7,
    "The answer is 12 - 5 = 7.": 7,
    "The answer is 120 plus 48, which is 168.": 168,
    "The answer is 12 - 5.": None,  # an unfinished sum
    "The answer is given by dividing 12 by 5.": None,
    "The answer is 8:30": None,  # a time of day
    "The answer is t = 8:30": None,
    "The answer is (1) and (2).": None,  # references to statements
    "The answer is step 3.": None,
    "Half of the answer is 7.": None,
    "The answer depends on 7": None,
    "She is right to answer 7": None,
    "The answer is hidden among all the plums, 7.": 7,
    "The answer is hidden in plain sight among all the plums there, 7.": None,  # too far off
    # Boxed.
    r"12 - 5 = 7, so \boxed{7} plums": 7,
    r"So \boxed{12 - 5 = 7}": 7,
    r"So \boxed{\text{about } {7}} plums": 7,
    r"So \boxed{} or \boxed{7}": 7,
    "So \x08oxed{7} it is": 7,  # the backslash and the b were read as a backspace once
    r"So \boxed{none}": None,
    r"So \boxed{7": None,  # never closed
    # Hashes.
    "12 - 5 = 7\n#### 7": 7,
    "12 - 5 = 7\n####7 plums": 7,
    "So\n#### 12 - 5 = 7": 7,
    "So\n#### Step 3\nshe eats": None,  # a heading
    # Named.
    "We see that 15 is the correct answer here.": 15,
    "There, 7 sweet plums is our answer.": 7,
    "12 - 5 = 7. This is the final answer.": 7,
    "So 7! That is our final answer.": 7,
    "So 7! That is our answer.": None,  # whatever "that" is
    "So step 7 is the answer": None,
    "So x^2 is the answer": None,
    # Denied.
    "The answer is not 7.": None,
    "The answer isn't 7.": None,
    "The answer is unknown. The answer is 8": 8,
    "So the answer is 7 is wrong. The answer is 8.": 8,
    r"So \boxed{7} is incorrect. \boxed{8}": 8,
    # Options that the answer made up.
    "A) 6\nB) 7\nC) 8\nThe answer is B.": 7,
    "A. 6\nB. 7\nC. 8\nAnswer: C": 8,
    "(A) $6 (B) $7 (C) $8\nThe correct answer is option (C).": 8,
    "A) 6\nB) 7\nThe answer is (b).": 7,
    "(A) 6 (B) 7 (C) 8\nThe answer is (B) 7.": 7,
    "A) 6\nB) 7\nThe answer is a total of 12.": 12,  # an article, no letter
    "A) six\nB) 7\nThe answer is A": None,
    "The answer is B.\nA) 6\nB) 7": None,  # the list follows: it belongs to something else
    # What comes later and does not correct.
    "The answer is 7. The answer is 9.": 7,
    r"The answer is 7. So \boxed{9}": 7,
    # Nothing at all.
    "": None,
    "Plums are nice.": None,
    "She has 12 and gives 5 of 12.": None,
}


@pytest.mark.parametrize("text, value", DECLARED.items(), ids=list(DECLARED))
def test_declared_values(text, value):
    found = validated(text)
    assert found.value == value
    assert found.rule == ("none" if value is None else "declared")


CORRECTED = {
    "The answer is 19. Wait, that is a mistake. The correct answer is 7.": ("corrected", 7),
    "The answer is 19. 19 is not among the options, so the answer is 20.": ("corrected", 20),
    "The answer is 6.5. Rounding up, the answer is 7.": ("corrected", 7),
    r"So \boxed{19}. Let me recheck. \boxed{8}": ("corrected", 8),
    "The answer is 1. Sorry, the answer is 2. I apologize, the answer is 3.": ("corrected", 3),
    "The answer is 7. The answer is 7. Actually, the answer is 8.": ("corrected", 8),
    "The answer is 7. Actually, that is all. The answer is 7.": ("declared", 7),  # nothing was corrected
    "12\nWait. The answer is 7.": ("corrected", 7),
    # Another question begins in between: what corrects there is about that one.
    "The answer is 7. Question: Ann has 3 cats. I made a mistake. The answer is 9.": ("declared", 7),
    "The answer is 7.\nWhat is 3 + 4? Sorry, the answer is 9.": ("declared", 7),
    "The answer is 7.\n# Problem\nWait, the answer is 9.": ("declared", 7),
    "The answer is 7.\n#2 Wait, the answer is 9.": ("declared", 7),
    # A value in between that corrects nothing ends it.
    "The answer is 7. The answer is 8. Wait, the answer is 9.": ("declared", 7),
}


@pytest.mark.parametrize("text, expected", CORRECTED.items(), ids=list(CORRECTED))
def test_a_later_value_counts_only_where_it_openly_corrects_the_first(text, expected):
    found = validated(text)
    assert (found.rule, found.value) == expected


LEADING = {
    "7": 7,
    "  7 plums.": 7,
    "? 7": 7,
    "7\nBecause 12 - 5 = 7.": 7,
    "$7.": 7,
    "**7**": 7,
    "#### 7": 7,
    "-7": -7,
    "7%": 7,
    "5.5.": Fraction("5.5"),
    "7 7 7 7": 7,
    "7 Mia keeps them ": 7,
    "2 1/2 cups": Fraction(5, 2),
    "7 + 5 = ": None,
    "7 fewer than 12": None,
    "3 4 5 6 7 8": None,  # counting
    "3  4 5 6": None,
    "3  4 5": 3,
    "2 " * 20: None,
    "1. Mia has plums. 2. She gives some away.": None,  # marks of a list
    "2) 40 3) 50": None,
    "2. What is left?": None,
    "x7": None,
}


@pytest.mark.parametrize("text, value", LEADING.items(), ids=list(LEADING))
def test_a_bare_value_at_the_start(text, value):
    found = validated(text)
    assert (found.rule, found.value) == (("none", None) if value is None else ("leading", value))


CONCLUDED = {
    "7 + 5 = 12": 12,
    "7 of the plums are left": 7,
    "7 plums and 5 plums make 12": 12,
    "Mia had 12.\nNow she has 7 plums.": 7,
    "Mia had 12. That leaves 12 - 5 = 7 plums for the 2 of them.": 7,
    "Mia had 12.\nHow many are left?": None,  # another question
    "Mia had 12.\nSo she has not 7.": None,
    "Mia had 12.\n## Step 2: Subtract 5": None,  # a heading is no statement
}


@pytest.mark.parametrize("text, value", CONCLUDED.items(), ids=list(CONCLUDED))
def test_the_value_in_which_an_answer_ends(text, value):
    for cut in (False, True):
        found = validated(text, cut)
        assert (found.rule, found.value) == (("none", None) if value is None or cut else ("concluded", value))


def test_worked_steps_behind_a_leading_value_decide_where_they_declare_one():
    assert validated("9\n## Step 1: We count.\nThe answer is 7.").value == 7
    assert validated("7 plums.\n## Step 1: count them").rule == "leading"
    assert validated("7 plums.\n## Step 1: count them").ambiguous  # the steps do not come to a value
    stub = validated("7\nStep 1: count them")  # as often the mark of a step as an answer
    assert (stub.rule, stub.value, stub.ambiguous) == ("none", None, True)
    # Steps of another question change nothing.
    assert validated("9\nWhat is next? Step 1: We count.\nThe answer is 7.").value == 9


STORY = "Ben thanks her and they walk home together through the fields, singing songs of summer on the way back. "


def test_a_result_that_nothing_announces_is_left_to_people():
    text = f"Mia starts with 12 plums. She gives 5 away. Therefore, she has 7 plums left. {STORY}"
    assert validated(text, cut=True).rule == "none"
    assert validated(text).rule == "concluded"  # but it does end in one
    found = validated(f"{text} The answer is 8.")
    assert (found.rule, found.value) == ("declared", 8)


def test_numbers_that_the_question_names_itself_are_not_its_answer():
    text = "The answer is that in 7 hours it goes 50 miles."
    assert validated(text, question="A bus runs. How far does it go in 7 hours?").value == 50
    assert validated(text, question="A bus runs. How far does it go?").value == 7


@pytest.mark.parametrize(
    "text, value",
    [
        ("The answer is $1.5 million.", 1_500_000),
        ("Answer: 2 Thousand", 2_000),
        ("So he sold 3 thousand.", 3_000),
        ("7 million", 7_000_000),
        ("The answer is 3 million-dollar houses.", 3),
        ("The answer is 1.5 million. The answer is 1,500,000.", 1_500_000),
    ],
)
def test_a_word_behind_a_value_multiplies_it_unless_the_question_asks_in_it(text, value):
    assert validated(text).value == value
    asked = validated(text, question="How many million people live there?").value
    assert asked == find_numbers(text)[0].value


def test_who_answered_something_is_no_declaration_that_gave_no_value():
    found = validated("40 - 4 = 36.\nTherefore, Kim answered 36 questions correctly.")
    assert (found.rule, found.value) == ("concluded", 36)


# Answers that ran into their limit.


@pytest.mark.parametrize(
    "text, value",
    [
        ("So the answer is 1", None),
        ("So\n#### 12", None),
        ("#### 12", None),
        ("12", None),
        (r"So \boxed{7", None),
        (r"So \boxed{7}", 7),
        ("So the answer is 12.", 12),
        ("So the answer is $12.50", Fraction("12.5")),  # cents are complete
        ("So the answer is 12 p", 12),
        ("12 p", 12),
        ("The answer is 7. Sorry, the correct answer is 1", 7),
    ],
)
def test_a_number_at_the_very_end_of_a_cut_answer_may_lack_digits(text, value):
    assert validated(text, cut=True).value == value
    assert validated(text, cut=True).truncated
    assert value is not None or "boxed" in text or validated(text, cut=False).value is not None


def test_what_stands_behind_the_longest_text_is_not_read_and_cuts_the_number_before_it():
    filler = "plums " * (LONGEST // 6)
    assert len(filler) < LONGEST
    assert validated(filler + "." * (LONGEST - len(filler)) + " The answer is 7.").value is None
    text = filler[: LONGEST - 15] + "the answer is 789 plums"
    assert text[LONGEST - 1] == "7" and validated(text).value is None


# Every way to write a number, in every place where it is declared.

WRITTEN = {
    "7": 7,
    "7.": 7,
    "29.00": 29,
    "1,080": 1080,
    "1{,}080": 1080,
    "1\u00a0080": 1080,
    "1\u202f080": 1080,
    "$1,250.50": Fraction("1250.5"),
    r"\$1,080": 1080,
    "€7": 7,
    "25%": 25,
    r"25\%": 25,
    "-7": -7,
    "\u22127": -7,
    "-$7.50": Fraction("-7.5"),
    "$-7": -7,
    ".5": Fraction("0.5"),
    "3/4": Fraction(3, 4),
    "2 1/2": Fraction(5, 2),
    r"\frac{3}{4}": Fraction(3, 4),
    r"\dfrac{3}{4}": Fraction(3, 4),
    r"2\frac{1}{2}": Fraction(5, 2),
    r"$-\frac{3}{4}$": Fraction(-3, 4),
    r"\text{7 plums}": 7,
    r"\mathbf{\text{7}}": 7,
    "7 plums": 7,
}
PLACES = {
    "phrase": "We had 3 and 4.\nThe answer is {} and that is all.\n8",
    "boxed": "We had 3 and 4.\nSo \\boxed{{{}}}\n8",
    "boxed and phrase": "We had 3 and 4.\nThe final answer is: $\\boxed{{{}}}$.\n8",
    "hashes": "We had 3 and 4.\n#### {}\n8",
}


HASHES_HAVE_NO = r"\text{7 plums}", r"\mathbf{\text{7}}"


@pytest.mark.parametrize(
    "written, place", [(w, p) for w in WRITTEN for p in PLACES if p != "hashes" or w not in HASHES_HAVE_NO]
)
def test_every_way_to_write_a_number_where_it_is_declared(written, place):
    value = WRITTEN[written]
    text = PLACES[place].format(written)
    assert validated(text).value == value
    if place != "hashes":
        assert extract(text, "published").value == value


# Any text whatever.

PIECES = st.sampled_from(
    [
        "The answer is ", "the final answer is ", " is the correct answer", "Answer: ", "not ", "wrong", "Wait, ",
        "Question: ", "?", "Step 1: ", "## Step 2: Find the plums left\n", "So she has ", " plums left. ", "A) ", "B) ",
        "B", "#### ", r"\boxed{", r"\frac{", r"\text{", "}", "{", "\\", "$", r"\$", "=", "+", "-", "\u2212", "/", "%",
        "*", "(", ")", ".", ",", ":", " ", "\n", "\u00a0", "1", "7", "23", "000", "9" * 70,
    ]
)  # fmt: skip
TEXTS = st.text() | st.lists(PIECES, max_size=25).map("".join)
QUESTIONS = st.sampled_from([None, "", QUESTION, "?", "If 3, 7"]) | st.text(max_size=40)


@pytest.mark.parametrize("extractor", ["published", "validated", "strict-match", "flexible-extract"])
@given(text=TEXTS, cut=st.sampled_from([None, True, False]), question=QUESTIONS)
@example(text="\ud800\\boxed{\x007}", cut=None, question="\ud800")
@settings(max_examples=300)
def test_no_text_raises_and_the_value_can_be_read_at_its_span(extractor, text, cut, question):
    found = extract(text, extractor, cut, question)
    assert found.rule in RULES[extractor]
    assert (found.value is None) == (found.span is None) == (found.rule == "none")
    assert found.truncated is (is_cut(text) if cut is None else cut)
    if found.span is not None:
        start, end = found.span
        assert 0 <= start < end <= len(text)
        read = [number.value for number in find_numbers(text[start:end])]
        option = extractor == "validated" and re.fullmatch("[A-Za-z]", text[start:end])
        assert read == [found.value] or option


@given(text=TEXTS, question=QUESTIONS)
@settings(max_examples=40)
def test_no_text_makes_math_verify_raise(text, question):
    found = extract(text, "math-verify", None, question)
    assert found.rule in RULES["math-verify"]
    assert (found.value is None) == (found.rule == "none")
    if found.span is not None:
        assert 0 <= found.span[0] < found.span[1] <= len(text)


@given(value=st.integers(0, 10**6), rest=TEXTS)
@settings(max_examples=300)
def test_nothing_behind_the_next_question_changes_what_was_declared(value, rest):
    found = validated(f"She shares them. The answer is {value}.\nQuestion: {rest}")
    assert (found.rule, found.value) == ("declared", value)


@given(value=st.integers(0, 10**6), rest=st.text(alphabet="abcdefgh .,\n'\"", max_size=300))
@settings(max_examples=200)
def test_run_on_text_without_numbers_changes_nothing(value, rest):
    assert validated(f"She shares them. The answer is {value}.\n{rest}").value == value
    assert validated(f"{value} plums.\n{rest}").value == value


def test_an_unknown_extractor_is_a_key_error():
    with pytest.raises(KeyError):
        extract("7", "guess")
    assert EXTRACTORS == ("published", "validated", "strict-match", "flexible-extract", "math-verify")


# Degenerate answers. No test asserts a time: this only stops what would not end for hours.


@contextmanager
def guarded(seconds: int = 60):
    """Fails where the block takes far more processor time than any linear or quadratic reading does."""

    def stop(*_):
        pytest.fail(f"not done after {seconds} seconds of processor time", pytrace=False)

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


LONG, PUMPED_TO = 20_000, 8_000
PUMPED = [
    r"\boxed{", r"\boxed{1} ", r"\boxed{1", "the answer is ", "the answer is 1 ", "The answer is 1. ", "Answer: A ",
    "final correct best ", "1" * 9 + " ", "1,", "1,000", "1. ", "0.", "-", "$", "\n", r"\frac{", r"\frac{1}{", "1/",
    "1 2/3 ", "{", "(", "#### ", "#### 1\n", "A) 1 ", "1 is the correct answer ", "Step 1: ", "Wait, ", "? ", "= 5 ",
    "So she has 7 plums left. ", "7 * 3 ", "8:00 ", "apple's ", ",", "a", "%", "*",
]  # fmt: skip


@pytest.mark.parametrize("extractor", ["published", "validated", "strict-match", "flexible-extract"])
def test_texts_of_one_piece_over_and_over_are_read_in_the_end(extractor):
    with guarded():
        for piece in PUMPED:
            text = (piece * (PUMPED_TO // len(piece) + 1))[:PUMPED_TO]
            found = extract(text, extractor, None, QUESTION)
            assert found.rule in RULES[extractor], piece


# Each of these made a pattern try every way to split a run of characters among its parts: 400 took a minute.
BACKTRACKING = {
    "a long word behind a leading value": "7" + "a" * LONG + "=",
    "commas before a few words": "," * LONG + "so it is",
    "spaces behind the word answer": "The answer" + " " * 3000 + "of it",
    "blank lines behind the word answer": "The answer" + "\n" * 3000 + "of it",
    "one sentence of numbers": "She has 7 plums left.\n" + "0." * (LONG // 2),
    "spaces": "7" + " " * 8000 + "x",
}


@pytest.mark.parametrize("text", BACKTRACKING.values(), ids=list(BACKTRACKING))
def test_no_pattern_tries_every_way_to_split_a_run(text):
    with guarded():
        is_cut(text)
        leading(text)
        for extractor in ("published", "validated"):
            extract(text, extractor, None, QUESTION)


def test_math_verify_is_stopped_by_its_own_limits():
    with guarded():
        for text in (r"\boxed{9^{9^{9^{9^9}}}}", "$" + "(" * 200 + "1" + ")" * 200 + "$", "1 " * 5000):
            assert extract(text, "math-verify").rule in RULES["math-verify"]


# How a text ends.

ENDINGS = {
    "": False,
    "  \n": False,
    "It is 7.": False,
    "It is 7!": False,
    "It is 7?\n": False,
    r"So \boxed{7}": False,
    "So $7$": False,
    'He says "seven."': False,
    "(see above)": False,
    "It is **7**": False,
    "好。": False,
    "7": False,
    "$7": False,
    "1,080 plums": False,
    "7 plums": False,
    "-7": False,
    "So it is\n#### 7": False,
    "So it is 7": True,
    "The plums that are": True,
    "She gives 5,": True,
    "plums": True,
    "7 plums and 8 pears": True,
    "So it is\n####": True,
}


@pytest.mark.parametrize("text, cut", ENDINGS.items(), ids=list(ENDINGS))
def test_whether_an_answer_was_cut_is_judged_from_its_end(text, cut):
    assert is_cut(text) is cut
    assert extract(text).truncated is cut


def test_what_is_known_of_the_limit_goes_before_the_look_of_the_end():
    assert extract("It is 7.", truncated=True).truncated
    assert not extract("It is", truncated=False).truncated


@given(st.text(alphabet="1.,a $", max_size=12))
@settings(max_examples=500)
def test_a_bare_value_is_what_its_definition_says(text):
    """The pattern that does not backtrack against the plain one that does."""
    bare = re.match(r"^\W*[\d.,]+\W*\w{0,20}\W*$", text.strip())
    closed = re.search(r"[.$]\s*$", text)
    assert is_cut(text) == bool(text.strip() and not bare and not closed)


# Math-Verify.

MATH_VERIFY = {
    r"So \boxed{18}": 18,
    "The answer is 18.": 18,
    "18": 18,
    r"so $\frac{3}{4}$ left": Fraction(3, 4),
    r"$2\frac{1}{2}$": Fraction(5, 2),
    "$x = 18$": 18,
    r"$2 \times 3 = 6$": 6,
    "$0.1$": Fraction(1, 10),
    "29.00": 29,
    r"\boxed{1,000}": 1000,
    "$-5$": -5,
    "25%": 25,  # without its sign, as everywhere here
    r"$25\%$": 25,
    r"\boxed{-12.5\%}": Fraction("-12.5"),
    "1/3": Fraction(1, 3),
    "$-1/3$": Fraction(-1, 3),
    "12 / 0.5": 24,
    "1/0": None,
    "#### 18": 18,
    "3 and 4": 4,
    "none": None,
    "": None,
    "$x + 1$": None,
    "$[1, 2]$": None,
    r"$\{1, 2\}$": None,
    r"$\sqrt{2}$": None,
    r"$\pi$": None,
    r"\boxed{\infty}": None,
}


@pytest.mark.parametrize("text, value", MATH_VERIFY.items(), ids=list(MATH_VERIFY))
def test_math_verify_gives_numbers_alone(text, value):
    found = extract(text, "math-verify")
    assert (found.rule, found.value) == (("none", None) if value is None else ("math-verify", value))
    if found.span:
        assert any(character.isdigit() for character in text[slice(*found.span)])


def test_math_verify_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(extract(r"\boxed{18}", "math-verify")))
    thread.start()
    thread.join()
    assert found[0].value == 18


# The harness's two filters.

HARNESS = {
    # text: (strict-match, flexible-extract)
    "So\n#### 18": (18, 18),
    "#### 18\n#### 19": (18, 19),  # the first against the last
    "####18": (None, 18),
    "####  18": (None, 18),
    "#### $18": (None, 18),
    "#### -1,080.50.": (Fraction("-1080.5"), Fraction("-1080.5")),
    "#### .": (None, None),
    "3 and 4 plums": (None, 4),
    "It costs $29.00.": (None, 29),
    "So 18 ...": (None, None),  # the last thing that looks like a number is none
    "So 1.2.3": (None, None),
    "So 2,5": (None, None),
    "So $140$0." + "0" * 70: (None, None),  # no part of a run is read
    "From 12-5": (None, -5),
    "none": (None, None),
    "": (None, None),
}


@pytest.mark.parametrize("text, values", HARNESS.items(), ids=list(HARNESS))
def test_the_two_filters_of_the_harness(text, values):
    strict, flexible = extract(text, "strict-match"), extract(text, "flexible-extract")
    assert (strict.value, flexible.value) == values
    assert strict.rule == ("strict-match" if strict.value is not None else "none")
    assert flexible.rule == ("flexible-extract" if flexible.value is not None else "none")


class Harness:
    """lm-evaluation-harness's own task gsm8k: its filters and its metric, with what its YAML file says."""

    def __init__(self):
        lm_eval = pytest.importorskip("lm_eval")
        from lm_eval.api.metrics import exact_match_fn
        from lm_eval.filters.extraction import RegexFilter

        path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
        (metric,) = task["metric_list"]
        assert metric.pop("metric") == "exact_match"
        self._options = {key: metric[key] for key in metric if key not in ("aggregation", "higher_is_better")}
        self._exact_match = exact_match_fn
        self._filters = {}
        for one in task["filter_list"]:
            regex, first = one["filter"]
            assert (regex.pop("function"), first["function"]) == ("regex", "take_first")
            self._filters[one["name"]] = RegexFilter(**regex)
        assert self._filters.keys() == {STRICT, FLEXIBLE}

    def select(self, name: str, text: str) -> str:
        """What the filter leaves of an answer."""
        return self._filters[name].apply([[text]], [{}])[0][0]

    def judge(self, selected: str, solution: str) -> bool:
        """The verdict on what was selected, against a solution that ends in `#### 18`."""
        return bool(self._exact_match(predictions=[selected], references=[solution], **self._options)["exact_match"])


@pytest.fixture(scope="module")
def harness() -> Harness:
    return Harness()


def agree(harness: Harness, name: str, text: str) -> tuple[str, Fraction | None]:
    """Asserts that our span is what the filter leaves; returns that, and the value that we read in it."""
    theirs, span, found = harness.select(name, text), select(text, name), by_harness(text, name)
    if span is None:
        assert theirs == "[invalid]", text
        assert (found.value, found.span) == (None, None)
        return theirs, None
    assert text[slice(*span)] == theirs, text
    numbers = find_numbers(theirs)
    if found.value is None:
        left_out = theirs[: numbers[0].start] + theirs[numbers[0].end :] if len(numbers) == 1 else "0"
        assert re.search("[0-9]", left_out), f"{theirs!r} is a number, but was not read"
    else:
        assert found.span == span and [n.value for n in numbers] == [found.value]
    return theirs, found.value


def test_the_invalid_of_the_harness_is_no_text_that_a_model_can_write(harness):
    """`[invalid]` holds nothing that either pattern selects, so it stands for no match alone."""
    assert harness.select("strict-match", "[invalid]") == harness.select("flexible-extract", "[invalid]") == "[invalid]"


def synthetic_texts() -> list[str]:
    """Texts of every kind, the same ones every time."""
    chance = random.Random(0)
    pieces = [
        "#### ", "####", " ", "\n", "18", "-4", "1,080", "29.00", "$", ".", ",", "-", "The answer is ", "x", "$7.",
        r"\boxed{12}", "0", "...", "£5", "3/4", "50%", "\u22127", "\u0663", "1e3", "[invalid]", "9" * 70,
    ]  # fmt: skip
    made = ["".join(chance.choices(pieces, k=chance.randint(1, 8))) for _ in range(150)]
    return [*HARNESS, *WRITTEN, *DECLARED, *made]


def test_the_filters_leave_what_the_harness_leaves_of_synthetic_texts(harness):
    texts = synthetic_texts()
    assert len(set(texts)) > 200
    for name in (STRICT, FLEXIBLE):
        selected = [agree(harness, name, text)[0] for text in texts]
        assert len(set(selected)) >= {"strict-match": 8, "flexible-extract": 60}[name] and "[invalid]" in selected


def differs_in_writing_only(selected: str, gold: str) -> bool:
    """Whether two strings that the harness calls different are one number: 29.00 and 29."""
    plain, wanted = re.sub(r"[,$]", "", selected), gold.replace(",", "")
    return plain.removesuffix(".") != wanted and Fraction(plain.rstrip(".")) == Fraction(wanted)


def verdicts(harness: Harness, name: str, text: str, solution: str) -> tuple[bool, bool, str]:
    """Whether the harness and we call an answer right, and what both looked at."""
    selected, value = agree(harness, name, text)
    gold = Fraction(solution.rsplit("#### ", 1)[1].replace(",", ""))
    return harness.judge(selected, solution), value is not None and value == gold, selected


def test_verdicts_differ_where_the_harness_compares_strings(harness):
    solution = "Some work: 3 + 4.\n#### 29"
    said = {text: verdicts(harness, "flexible-extract", text, solution)[:2] for text in (
        "29", "so $29", "so 29.", "so 29.00", "so 029", "so 29..", "so 30", "none",
    )}  # fmt: skip
    assert said == {
        "29": (True, True),
        "so $29": (True, True),
        "so 29.": (True, True),
        "so 29.00": (False, True),
        "so 029": (False, True),
        "so 29..": (False, True),
        "so 30": (False, False),
        "none": (False, False),
    }
    assert differs_in_writing_only("29.00", "29") and not differs_in_writing_only("29", "29")


@needs_published_logs
@pytest.mark.parametrize("model", LABELLED)
def test_filters_and_verdicts_agree_with_the_harness_on_every_published_answer(harness, model):
    rows = read_published(model)
    assert len(rows) == 1319
    right = other = 0
    for row in rows:
        for name in (STRICT, FLEXIBLE):
            theirs, ours, selected = verdicts(harness, name, row["response"], row["gold_solution"])
            right += theirs
            if theirs != ours:
                other += 1
                assert ours, f"{row['id']}: the harness reads {selected!r} as right"
                assert differs_in_writing_only(selected, row["gold_solution"].rsplit("#### ", 1)[1]), row["id"]
    assert right > 50 and other < right
