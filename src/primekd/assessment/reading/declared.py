"""Declarations: places where an answer says "this is the answer", and the value that each of them gives."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from primekd.assessment.reading.numbers import Number, find_numbers
from primekd.assessment.reading.published import braced, number_in_box

REACH = 120  # characters after "the answer is" in which its value must stand
MOST_WORDS = 8  # between "the answer is" and a value that does not follow at once

_QUALITY = r"(?:final|correct|right|best|exact|only|required|numerical|actual|simplified)"
_BOXED = re.compile(r"(?:\\f?boxed|\x08oxed)\s*\{")  # \b written as a backspace is in the published logs
_HASHES = re.compile(r"####\s*(?!\s*[*_]*\d{1,2}[.):][*_]*[ \t]+[A-Za-z*])(?=[^\w\n]{0,4}(?:\d|[dt]?frac\b))")
_TAG = re.compile(r"<(?:final_)?answer>\s*", re.IGNORECASE)
_ANSWER = re.compile(
    rf"\b(?:{_QUALITY}\s+)*answer\b"
    r"(?:\s+(?:to|for|of)\s+(?:the|this|that|our)\s+(?:question|problem|exercise))?(?:\s+(?:here|then|therefore|thus))?"
    r"[\s*_]*+(?:,\s*+)?(?:(?:is|was|would be|will be|should be|must be|comes to)\b\s*:?|[=:])",
    re.IGNORECASE,
)
_PART = re.compile(r"\b(?:parts?|half|step|none|all|numbers?|digits?)\s+of\s+(?:the|our|this)\s*$", re.IGNORECASE)
_NEGATED = re.compile(r"\W*(?:not|n't|never|incorrect|wrong|unknown|missing|no)\b", re.IGNORECASE)
_DENIED = re.compile(
    r"\W{0,6}(?:(?:this|that|it)\b|\W{0,3}[\d.,]*\d)?\s*(?:is|was)\s+(?:incorrect|wrong|not\s+(?:the|correct|right|in|an?\s+option))\b"
    r"|[^.\n]{0,30}\.\s+however,?\s+the\s+question\s+asks\b",
    re.IGNORECASE,
)
_IS_ANSWER = re.compile(  # "15 apples is the correct answer"
    rf"[^\w.!?\n]{{0,4}}\.?0*(?:(?!this|that|which|it\b)[A-Za-z]+\s+){{0,3}}is\s+(?:the|our|my)\s+(?:{_QUALITY}\s+)*"
    r"(?:answer|solution|option|choice)\b",
    re.IGNORECASE,
)
_THIS_IS_ANSWER = re.compile(  # "= 15. This is the final answer"
    rf"[^\w(]{{0,3}}\s+(?:so\s+)?(?:this|that|it)\s+is\s+(?:the|our|my)\s+(?:{_QUALITY}\s+)+answer\b", re.IGNORECASE
)
_NO_VALUE_BEFORE = re.compile(r"(?:step\s*|\^\s*|#)$", re.IGNORECASE)
_OPTION = re.compile(r"(?<![A-Za-z0-9\\])\(?([A-HJ-Z])[).:]\s*(?=[^\w\n]{0,4}\d)")
_LETTER = re.compile(  # but no article: "a total of 12"
    r"\W*(?:option\s+|choice\s+|letter\s+|(?!\(?(?-i:a)\s+\w))\(?([A-HJ-Z])\b(?!['\u2019])", re.IGNORECASE
)
_LETTER_AND_VALUE = re.compile(r"\W*[A-HJ-Z]\W{0,3}\s*[^\w\n]{0,4}\d")
_SENTENCE_END = re.compile(r"(?<![\d.])(?<!\bRs)(?<!\bNo)(?<!\bapprox)\.(?=\s|$)|(?<=\d)\.(?=\s)|\.(?=\s*$)|[!?]|\n")
_DIRECT = re.compile(  # what may stand between "the answer is" and a value that follows at once
    r"[\s*:$(\[{\\~]*(?:\\text\{)?(?:(?:about|approximately|around|exactly|equal to|[a-zA-Z]\s*=)\s*)?"
    r"(?:\(?[A-HJ-Z][).:]\s*)?[$\s]*"
)
_IN_WORDS = re.compile(r"\s*(?:plus|minus|times|divided by)\b.*?\b(?:which is|is|gives|equals)\s*$")
_OPERATOR = re.compile(r"\s*[-+*/\u00d7x\u00f7]\s*[\d$(]")
_REFERENCE = re.compile(r"\)\s*(?:and|or|,|alone)\s*\(?|:\d\d")  # "(1) and (2)"
_ARITHMETIC = re.compile(
    r"\b(?:divid|multipl|add|subtract|minus|plus|times|sum of|difference between|product of|if)\w*", re.IGNORECASE
)
_DESCRIBES = re.compile(r"\b(?:answer|one|number|option|choice)\s+(?:that|which|with)\b", re.IGNORECASE)
_POINTER = re.compile(r"(?:step|part|statement)\s*$", re.IGNORECASE)
_TIME_OF_DAY = re.compile(r"\d:\d\d")


@dataclass(frozen=True)
class Declaration:
    """One declared value. `start` is where the declaration begins, `number` the value with its place in the answer."""

    start: int
    number: Number

    @property
    def end(self) -> int:
        return self.number.end


def moved(number: Number, offset: int) -> Number:
    """A number that was found in a part of a text, placed in the whole."""
    return Number(number.value, number.start + offset, number.end + offset)


def declarations(text: str, given: frozenset[Fraction], cut: bool) -> list[Declaration]:
    """Every declared value, in order, without those that are denied at once ("is wrong"). `given`: numbers of the
    question's last sentence; "50 miles in 7 hours" then gives 50. `cut`: a number at the very end may lack digits."""
    found = [*_boxed(text), *_phrases(text, given), *_marked(text), *_named(text)]
    found.sort(key=lambda d: (d.number.start, d.start))
    kept: list[Declaration] = []
    for d in found:  # "The final answer is \boxed{5}" is one declaration
        if not kept or d.number.start >= kept[-1].end:
            kept.append(d)
    # At the very end of an answer that was cut a number may lack digits; cents are complete.
    unsafe = cut and not re.search(r"\.\d\d$", text)
    return [d for d in kept if not _DENIED.match(text, d.end) and not (unsafe and d.end >= len(text))]


def _boxed(text: str) -> Iterator[Declaration]:
    for match in _BOXED.finditer(text):
        inside = braced(text, match.end())
        number = number_in_box(text, match.end(), inside)
        if number and match.end() + len(inside) < len(text):  # closed
            yield Declaration(match.start(), number)


def _marked(text: str) -> Iterator[Declaration]:
    for match in itertools.chain(_HASHES.finditer(text), _TAG.finditer(text)):
        if number := value_in(text, match.end(), _sentence(text, match.end())):
            yield Declaration(match.start(), number)


def _phrases(text: str, given: frozenset[Fraction]) -> Iterator[Declaration]:
    """ "The [final] answer is ...": a value, or the letter of an option that the answer made up before."""
    offered = _options(text)
    for match in _ANSWER.finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        if _NEGATED.match(text, match.end()) or _PART.search(before):
            continue
        sentence = _sentence(text, match.end())
        letter = _LETTER.match(sentence)
        choice = offered.get(letter[1].upper()) if letter else None
        number = value_in(text, match.end(), sentence, given)
        if choice and choice.end <= match.start() and not (number and _LETTER_AND_VALUE.match(sentence)):
            start = match.end() + letter.start(1)
            yield Declaration(match.start(), Number(choice.value, start, start + 1))
        elif number and not _points_to_list(text[: match.start()], number):
            yield Declaration(match.start(), number)


def _named(text: str) -> Iterator[Declaration]:
    for number in find_numbers(text):
        named = _IS_ANSWER.match(text, number.end) or _THIS_IS_ANSWER.match(text, number.end)
        if named and not _NO_VALUE_BEFORE.search(text[max(0, number.start - 6) : number.start]):
            yield Declaration(number.start, number)


def _options(text: str) -> dict[str, Number]:
    """The multiple-choice list that an answer makes up: letter -> the first value that stands behind it."""
    found: dict[str, Number] = {}
    for match in _OPTION.finditer(text):
        numbers = find_numbers(text[match.end() : match.end() + 40].split("\n", 1)[0])
        if numbers:
            found.setdefault(match[1], moved(numbers[0], match.end()))
    return found


def _points_to_list(text: str, number: Number) -> bool:
    """Whether a small number points to an item of a list of sentences ("1. There are ... 4. The keeper ...")."""
    if number.value.denominator != 1 or not 1 <= number.value <= 9:
        return False
    marks = (rf"(?:^|\s){mark}\.\s+[A-Z][a-z]+ [A-Za-z]" for mark in (1, number.value))
    return all(re.search(mark, text) for mark in marks)


def _sentence(text: str, start: int) -> str:
    """The rest of a sentence; a line break right after "the answer is:" does not end it."""
    begin = re.compile(r"[\s*:]*").match(text, start).end()
    end = _SENTENCE_END.search(text, begin, min(len(text), start + REACH))
    return text[start : end.start() if end else min(len(text), start + REACH)]


def value_in(text: str, start: int, sentence: str, given: frozenset[Fraction] = frozenset()) -> Number | None:
    """The value of a declaring sentence (`sentence`, from `start` on): after its last equals sign, else what it starts
    with, else its first that is not `given`; None for unfinished sums, times of day, steps."""
    numbers = [moved(n, -start) for n in find_numbers(text, start, start + len(sentence))]
    number = _value_among(numbers, sentence, given)
    return moved(number, start) if number else None


def _value_among(numbers: list[Number], sentence: str, given: frozenset[Fraction]) -> Number | None:
    if not numbers or _TIME_OF_DAY.search(sentence):
        return None
    equals = sentence.rfind("=")
    if equals >= 0 and (after := [n for n in numbers if n.start > equals]):
        return after[0]
    first = numbers[0]
    if _DIRECT.fullmatch(sentence[: first.start]):
        if _IN_WORDS.match(sentence[first.end : numbers[-1].start]):  # "120 plus 48, which is 168"
            return numbers[-1]
        return None if _REFERENCE.match(sentence, first.end) or _OPERATOR.match(sentence, first.end) else first
    if _ARITHMETIC.search(sentence[: numbers[-1].start]) or sentence[first.start - 1] == "#":
        return None
    numbers = [n for n in numbers if not _POINTER.search(sentence[: n.start])]
    if not numbers:
        return None
    chosen = next((n for n in numbers if n.value not in given), numbers[-1])
    before = sentence[: chosen.start]
    vague = _DESCRIBES.search(before) or _REFERENCE.match(sentence, chosen.end)
    return None if vague or len(before.split()) > MOST_WORDS else chosen
