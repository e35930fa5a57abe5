"""A bare value with which an answer starts, as its whole reply or ahead of its reasons."""

import re

from primekd.assessment.reading.declared import moved
from primekd.assessment.reading.numbers import Number, find_numbers

_START = re.compile(r"^[\s?]*(?:#+\s|\*+)?\s*")
_UNIT = r"(?:\s*(?:%|°[CF]?|[A-Za-z/²³\u2019']++)){0,4}?"  # possessive, so that a long word is read once
_CLOSED = re.compile(
    rf"{_UNIT}[$*)\\]*\s*(?:[.;!](?=\s|$|0)|\s{{2,}}|$)|[$)]\s|\s+\$?[A-Z][\w']+ |\s+\$"
)  # a unit and the end of a sentence, of a line or of a formula; or another sentence without one
_GOES_ON = re.compile(  # a sum, or a sentence in which the number is a part
    r"[$)\s]*[-+*/=\u00d7x\u00f7\\]\s*[\d$(c]|[^.\n]*\b(?:less|more|fewer) than\b|\W{0,3}of\s|[a-z]*\.jpg|%? of "
)
_RUN = re.compile(r"(?:[$\s(]*[\d,]+(?:\.\d+)?[\s$.,)]*)+")
MOST_VALUES = 3  # in a run of bare numbers; more say nothing for any of them


def leading(text: str) -> Number | None:
    """The value that an answer starts with; None for marks of a list, sums, sentences and counting."""
    at = _START.match(text).end()
    line = text[at:].split("\n", 1)[0]
    numbers = [moved(n, -at) for n in find_numbers(text, at, at + len(line))]
    if not numbers or not re.fullmatch(r"[\s$*(\\]*", line[: numbers[0].start]):
        return None
    number = numbers[0]
    after = line[number.end :]
    if _GOES_ON.match(after) or _marks_a_list(number, after, text[at:]):
        return None
    run = _RUN.match(line)
    if run and len({n.value for n in find_numbers(run[0])}) > MOST_VALUES:
        return None
    repeated = len(numbers) > 1 and numbers[1].value == number.value
    if repeated and not re.search(r"\w", line[number.end : numbers[1].start]):
        counting = number.value <= 9 and len(numbers) > 18 and "." not in after[:3]  # "2 2 2 2 2 2 2 ..."
        return None if counting else moved(number, at)
    return moved(number, at) if _CLOSED.match(after) else None


def _marks_a_list(number: Number, after: str, text: str) -> bool:
    """Whether the number is the mark of a list or of an exercise: "1. Tom has", "2) 40 3) 50", "2. What is ...?"."""
    if number.value.denominator != 1 or not 0 <= number.value <= 9 or not re.match(r"[.):]\s", after):
        return False
    following = re.search(rf"(?:^|\s){number.value + 1}[.):]\s", text)
    return bool(following) or number.value == 1 or bool(re.match(r"[.):]\s[^\s$\d][^.!]*\?", after))
