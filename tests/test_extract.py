"""The published rules: each of them, their order, every way to write a number, and never an exception."""

import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primekd.assessment.reading import RULES, extract
from primekd.assessment.reading.numbers import MOST_DIGITS, find_numbers
from primekd.assessment.reading.published import LONGEST_BOX
from primekd.tasks.numbers import format_value

# text -> (rule, value)
RULE_CASES = {
    # 1. boxed
    r"So \boxed{18} it is.": ("boxed", 18),
    r"First \boxed{3}, then \boxed{4}.": ("boxed", 3),
    r"\boxed{} and \boxed{5}": ("boxed", 5),
    r"\boxed{\text{none}} so \boxed{6}": ("boxed", 6),
    r"\boxed{\text{18 dollars}}": ("boxed", 18),
    r"\boxed{\frac{3}{4}}": ("boxed", Fraction(3, 4)),
    r"\boxed{\dfrac{{1}}{2}} 9": ("boxed", Fraction(1, 2)),
    r"\boxed{\frac{-1}{2}}": ("boxed", Fraction(-1, 2)),
    r"\boxed{\frac12}": ("boxed", Fraction(1, 2)),
    r"\boxed{\dfrac{\text{3}}{4}}": ("boxed", Fraction(3, 4)),
    r"\boxed{\frac{1.5}{2}}": ("boxed", Fraction(3, 4)),
    r"\boxed{\frac{1,000}{3}}": ("boxed", Fraction(1000, 3)),
    r"\boxed{\frac{x}{2}}": ("boxed", 2),  # no fraction of numbers
    r"\boxed{1\ 000}": ("boxed", 1000),
    r"\boxed{10^{3}}": ("boxed", 1000),
    r"\boxed{18 \text{ in 2 days}}": ("boxed", 18),
    r"\boxed{\text{in 2 days } 18}": ("boxed", 18),
    r"\boxed{18 \text{ in 2 days (x = 9)}}": ("boxed", 18),
    r"\boxed{18\text{ cm}^2}": ("boxed", 18),
    r"\boxed{x = \text{18 in 2 days}}": ("boxed", 18),
    r"\boxed{\text{6 times 3 = 18 in 2 days}}": ("boxed", 18),
    r"\boxed{18 = x}": ("boxed", 18),
    r"\boxed{18 or 19}": ("boxed", 18),
    r"\boxed{\mathbf{\text{ }42}}": ("boxed", 42),
    r"\boxed{x = 18}": ("boxed", 18),
    r"\boxed{6 \times 3 = 18}": ("boxed", 18),
    r"\boxed{\$1{,}080}": ("boxed", 1080),
    r"\boxed{-7}": ("boxed", -7),
    r"\boxed {12}": ("boxed", 12),
    r"\fbox{1} \fboxed{2}": ("boxed", 2),
    r"cut short: \boxed{25": ("boxed", 25),
    # 2. first line
    "18": ("first-line", 18),
    "18\nBecause 9 + 9 = 18 and 2": ("first-line", 18),
    "\n\n  18 apples\n3": ("first-line", 18),
    "18 = 18.0\nthen 4": ("first-line", 18),
    "$29.00\n30": ("first-line", 29),
    # 3. phrase
    "3 + 4 = 7\nThe answer is 7 apples, not 8.": ("phrase", 7),
    "We add.\nthe final answer is: $12\n5": ("phrase", 12),
    "Sum 1, 2.\nThe correct answer is **-4**. Or 9": ("phrase", -4),
    "Sum 1, 2.\nTHE  ANSWER\nIS 11, then 12": ("phrase", 11),
    "a 1 b 2\nThe answer is unknown. The answer is 4. 9": ("phrase", 4),
    "1 or 2\nThe answer is 3/4.": ("phrase", Fraction(3, 4)),
    "1 or 2\nThe answer is 3 / 4.": ("phrase", Fraction(3, 4)),
    "1 or 2\nThe answer is \u2212 5": ("phrase", -5),
    # 4. last number
    "He has 3 of 5.\nShe has 4.": ("last-number", 4),
    "3 + 4\n= 7": ("last-number", 7),
    "We got 3 and 4\nThe answer to it all is 9 or 10": ("last-number", 10),
    "Lathe answer is 3, 4\n5": ("last-number", 5),
    "I have 3 + 4.\nAnother answers are 8": ("last-number", 8),
    # 5. none
    "": ("none", None),
    "no idea": ("none", None),
    r"\boxed{}": ("none", None),
}


@pytest.mark.parametrize("text, expected", RULE_CASES.items(), ids=list(RULE_CASES))
def test_each_rule(text, expected):
    found = extract(text)
    assert (found.rule, found.value) == expected


def test_the_rules_stand_in_their_published_order():
    """Each text loses what made the earlier rule fire, and the next one fires."""
    first_line, phrase, last = "2 = 2\n", "The answer is 3. ", "Then 4 and 5"
    texts = [
        rf"{first_line}{phrase}{last} \boxed{{1}}",
        first_line + phrase + last,
        f"no\n{phrase}{last}",
        f"no\n{last}",
        "no",
    ]
    found = [extract(text) for text in texts]
    assert (
        [f.rule for f in found] == list(RULES["published"]) == ["boxed", "first-line", "phrase", "last-number", "none"]
    )
    assert [f.value for f in found] == [1, 2, 3, 5, None]
    assert found[-1].span is None


def test_a_first_line_with_two_different_numbers_does_not_decide():
    assert extract("3 plus 4\nis 7").rule == "last-number"


def test_an_answer_that_is_minus_one_is_not_mistaken_for_none():
    found = extract("-1")
    assert found.rule == "first-line" and found.value == -1 and found.span == (0, 2)


def test_the_phrase_rule_reads_its_own_answer_every_time():
    """The study's own code read the previous row's variable."""
    assert extract("1 2\nThe answer is 5. 9").value == 5
    assert extract("1 2\nThe answer is 6. 9").value == 6
    assert extract("1 2\nThe answer is unknown to me").rule == "last-number"


# text -> every number in it
NUMBER_CASES = {
    "-5": [-5],
    "\u22125": [-5],
    "\u20135": [-5],
    "x = -5, y=-6": [-5, -6],
    "(-5)": [-5],
    "\u2212 5": [-5],
    "x = \u2212 5, $\u2212 6$": [-5, -6],
    "7 \u2212 5": [7, 5],
    "x \u2212 5": [5],
    "$7$ \u2212 5": [7, 5],
    "- 5 apples": [5],  # a list
    "63-2": [63, 2],
    "63 - 2": [63, 2],
    "5\u201310": [5, 10],
    "(4)-1": [4, 1],
    "$5": [5],
    r"\$5": [5],
    r"-\$5.50": [Fraction("-5.5")],
    "$-5": [-5],
    "-$1,234.50": [Fraction("-1234.5")],
    "€3 £4 ¥5": [3, 4, 5],
    "25%": [25],
    r"12.5\%": [Fraction("12.5")],
    "1,000": [1000],
    "1,000,000.25": [Fraction("1000000.25")],
    "1{,}000": [1000],
    r"1\,000": [1000],
    r"1\ 000": [1000],
    r"1,\!000": [1000],
    "1\u00a0000": [1000],
    "12,34": [12, 34],
    "1,2,3": [1, 2, 3],
    "1,0000": [1, 0],
    "29.": [29],
    "29.00": [29],
    "29.50.": [Fraction("29.5")],
    ".5": [Fraction("0.5")],
    "0.1": [Fraction(1, 10)],
    "007": [7],
    "3/4": [Fraction(3, 4)],
    "-3/4": [Fraction(-3, 4)],
    "2 1/2": [Fraction(5, 2)],
    "18/2=9": [18, 2, 9],
    "3/4.": [Fraction(3, 4)],
    "3/4.5": [3, Fraction("4.5")],
    "3 / 4": [Fraction(3, 4)],
    "**3 / 4**.": [Fraction(3, 4)],
    r"$3 / 4$ \text{ of it}": [Fraction(3, 4)],
    "3 / 0": [3, 0],
    "6 / 2 = 3": [6, 2, 3],
    "$6 / 2 hours = $3": [6, 2, 3],
    "(6 / 2) * 5": [6, 2, 5],
    r"6 / 2 \times 5": [6, 2, 5],
    "5 * 6 / 2": [5, 6, 2],
    "6 / 2.5": [6, Fraction("2.5")],
    "1,000 / 5": [1000, 5],
    "½ 2½ 2 ½": [Fraction(1, 2), Fraction(5, 2), Fraction(5, 2)],
    "¼ ¾ ⅓ ⅔": [Fraction(1, 4), Fraction(3, 4), Fraction(1, 3), Fraction(2, 3)],
    "10^3 10^{3} 10^{-2} 5^2.": [1000, 1000, Fraction(1, 100), 25],
    "10^{x} 0^{-1} 99^{99} 7": [10, 7],  # no value, or one longer than any answer
    "3/0": [3, 0],
    r"\frac{1}{2}": [Fraction(1, 2)],
    r"-\frac{ 1 }{ 2 }": [Fraction(-1, 2)],
    r"1\frac{1}{2} \tfrac{3}{4}": [Fraction(3, 2), Fraction(3, 4)],
    r"\frac{1}{-2}": [Fraction(-1, 2)],
    r"\frac1{20} \frac{3}4": [Fraction(1, 20), Fraction(3, 4)],
    r"\frac{3}{0} 5": [5],
    r"\text{18}": [18],
    "**42**": [42],
    "5km 6,": [5, 6],
    "٣ ３ ३": [3, 3, 3],
}


@pytest.mark.parametrize("text, expected", NUMBER_CASES.items(), ids=list(NUMBER_CASES))
def test_every_way_to_write_a_number(text, expected):
    assert [number.value for number in find_numbers(text)] == expected


def test_values_are_exact_and_compare_as_numbers_not_as_text():
    assert extract("29.00").value == extract("29.").value == extract("$29").value == 29
    assert extract("1,000").value == extract("1000").value
    assert extract("0.1").value + extract("0.2").value == extract("0.3").value


@pytest.mark.parametrize(
    "text, part",
    [
        (r"So \boxed{\text{about } 18} it is", "18"),
        ("  \n $29.00 each\n3", "$29.00"),
        ("1 2\nThe final answer is -4.", "-4"),
        ("1 or 2\ntwo 2,500.", "2,500"),
        (r"x \boxed{\frac{3}{4}}", r"\frac{3}{4}"),
        ("3 and 4\nor 2 1/2 left", "2 1/2"),
    ],
)
def test_the_span_points_at_the_characters_that_were_read(text, part):
    start, end = extract(text).span
    assert text[start:end] == part


def test_runs_of_digits_longer_than_any_answer_are_no_number():
    assert extract("9" * 10_000).rule == "none"
    assert extract("9" * 10_000 + " so\n4 and 5").value == 5
    assert extract("9" * MOST_DIGITS).value == Fraction("9" * MOST_DIGITS)
    found = extract("1/" + "3" * 5000)
    assert (found.rule, found.value, found.span) == ("first-line", 1, (0, 1))


RUNS = [
    " ",
    "1",
    "1,",
    ",000",
    "\\",
    "{",
    "}",
    "1/",
    "1 / ",
    "1 ",
    "$",
    "\u2212 ",
    "1^",
    "\\frac",
    "\\frac{",
    "\\frac1",
    "the ",
]


@pytest.mark.parametrize("start", ["", "the", "1", "1/", "1 / 1", "\\frac", "\\frac{1}{", "\\boxed{"])
def test_the_time_for_a_long_run_grows_with_its_length(start):
    """Ten times as long may take ten times as long, and some; a pattern that rescans the run takes a hundred times."""

    def seconds(run: str, length: int) -> float:
        text = start + run * (length // len(run)) + "="
        times = []
        for _ in range(2):
            begin = time.process_time()
            extract(text)
            times.append(time.process_time() - begin)
        return min(times)

    slow = [run for run in RUNS if seconds(run, 10_000) > 40 * seconds(run, 1_000) + 0.02]
    assert not slow


def test_a_box_that_never_closes_is_read_for_so_many_characters_only():
    near, far = "x" * (LONGEST_BOX - 3) + " 7 ", "x" * LONGEST_BOX + " 7 "
    assert extract(r"one 1, two 2 \boxed{" + near).rule == "boxed"
    assert extract(r"one 1, two 2 \boxed{" + far).rule == "last-number"


AMBIGUOUS = {
    r"\boxed{18} and \boxed{19}": False,  # the first box decides
    "18\nThe answer is 18.": False,
    "18\nThe answer is 19.": True,
    "18\nSo \\boxed{19}.": True,
    "one 1, two 2\nThe answer is 3, so \\boxed{3}.": False,
    "one 1, two 2\nThen 3": True,  # only the last of several numbers could be taken
    "one 1, two 2\nand 2": True,
    "so\ntwo 2, 2.": False,
    "none": False,
}


@pytest.mark.parametrize("text, ambiguous", AMBIGUOUS.items(), ids=list(AMBIGUOUS))
def test_an_answer_is_ambiguous_where_the_rules_give_different_values(text, ambiguous):
    assert extract(text).ambiguous is ambiguous


WORDS = [r"\boxed{", r"\frac{", r"\text{", "}", "{", "\\", "The answer is ", "#### ", " ", "\n", "\u00a0", "a", "="]
SIGNS_AND_DIGITS = ["1", "23", "000", ",", ".", "/", "%", "-", "\u2212", "$", r"\$"]
PIECES = st.sampled_from(WORDS + SIGNS_AND_DIGITS)


@given(st.text() | st.lists(PIECES, max_size=30).map("".join))
@example("\ud800\\boxed{\x00")
def test_extraction_never_raises_and_its_span_lies_inside_the_text(text):
    found = extract(text)
    assert found.rule in RULES["published"]
    assert (found.value is None) == (found.span is None) == (found.rule == "none")
    if found.span is not None:
        start, end = found.span
        assert 0 <= start < end <= len(text)
        assert any(character.isnumeric() for character in text[start:end])


@given(st.lists(PIECES, max_size=30).map("".join))
def test_numbers_stand_in_order_without_overlaps(text):
    numbers = find_numbers(text)
    places = [place for number in numbers for place in (number.start, number.end)]
    assert places == sorted(places)


@given(st.fractions(max_denominator=10**6))
def test_a_formatted_value_reads_back_as_the_same_value(value):
    (number,) = find_numbers(format_value(value))
    assert number.value == value and number.end == len(format_value(value))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12))
def test_decimals_are_formatted_as_exact_decimals(value):
    text = format_value(Fraction(value))
    assert "/" not in text and Fraction(text) == Fraction(value)


@pytest.mark.parametrize(
    "value, text",
    [
        (Fraction(18), "18"),
        (Fraction(-5, 2), "-2.5"),
        (Fraction(1, 3), "1/3"),
        (Fraction(1, 100), "0.01"),
        (Fraction(0), "0"),
    ],
)
def test_formatted_values(value, text):
    assert format_value(value) == text
