"""The statements of an answer: its sentences and lines, the step that each belongs to, and the result that it gives."""

import re
from dataclasses import dataclass
from fractions import Fraction

from primekd.assessment.extract.asked import Asked
from primekd.assessment.numbers import Number, find_numbers

REACH = 100  # characters before a number in which the verb that states it stands

_SPLIT = re.compile(r"\n+|(?<=[.!?])\s+(?=[^\d\s]|\d+\s*[A-Za-z])|(?<=\d\.)\s+(?=[A-Z])")
_STEP = re.compile(r"\W{0,4}(?:step\s*\d+|part\s+(?:\d+|[IVX]+))\s*[:.)]?\s*|#\d+\s*:\s*", re.IGNORECASE)
_THEREFORE = re.compile(
    r"\b(?:therefore|thus|hence|so|this means|in total|altogether|in all|consequently|as a result|finally)\b",
    re.IGNORECASE,
)
_PLAN = re.compile(
    r"\b(?:if|let|let's|assume|suppose|we need to|to find|to determine|to calculate|we can|divide|multiply|subtract|"
    r"add)\b",
    re.IGNORECASE,
)
_STATES = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|gets?|got|needs?|makes?|made|earns?|earned|pays?|paid|spends?|spent|takes?|"
    r"saves?|saved|costs?|left|in|for|of|comes to|equals|sold|buys?|bought|ate|eats?|used|received)"
    r"\s*(?:about|approximately|a total of|only|exactly|now|over)?\W{0,3}$",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"\s*[A-Za-z]*\s*[-+*/\u00d7\u00f7x^(]\s*[\d$(]")


@dataclass(frozen=True)
class Statement:
    """A sentence or line. `step` counts the steps so far; `heading` is the step's own, empty for the heading itself."""

    start: int
    end: int
    step: int
    heading: str
    text: str


def statements(text: str) -> list[Statement]:
    """All statements of an answer, in order."""
    found, heading, place, step = [], "", 0, 0
    for stop, following in [m.span() for m in _SPLIT.finditer(text)] + [(len(text), len(text))]:
        mark = _STEP.match(text, place, stop)
        start = mark.end() if mark else place
        line = text[start:stop]
        if mark:
            step, heading = step + 1, line
        if line.strip():
            found.append(Statement(start, stop, step, "" if mark else heading, line))
        place = following
    return found


def result_of(statement: str, asked: Asked, given: frozenset[Fraction]) -> Number | None:
    """The result that a statement gives; None for a question, a plan, a given fact or an unfinished sum."""
    numbers = [n for n in find_numbers(statement) if not re.match(r"-[A-Za-z]", statement[n.end :])]  # "a 7-day week"
    if not numbers or statement.rstrip().endswith(("?", ":")):
        return None
    equals = statement.rfind("=")
    if equals >= 0:
        after = [n for n in numbers if n.start > equals]
        if not after or _GOES_ON.match(statement, after[0].end):
            return None
        unknown = re.search(r"[A-Za-z(]", statement[equals + 1 : after[0].start].replace("\\", ""))
        return None if unknown else after[0]
    concludes = _THEREFORE.search(statement)
    if _PLAN.search(statement) and not concludes:
        return None
    stated = [
        n
        for n in numbers
        if n.value not in asked.numbers and _STATES.search(statement, max(0, n.start - REACH), n.start)
    ]
    if not stated or _GOES_ON.match(statement, stated[-1].end):
        return None
    return None if stated[-1].value in given and not concludes else stated[-1]
