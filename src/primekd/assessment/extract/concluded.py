"""Conclusions that no phrase announces: the result of a step that speaks of what was asked, where the work ends."""

import re

from primekd.assessment.extract.asked import Asked
from primekd.assessment.extract.declared import moved
from primekd.assessment.extract.statements import Statement, result_of, statements
from primekd.assessment.numbers import Number, find_numbers

ENOUGH = 0.7  # of the asked words, weighted, that a statement and its step's heading must speak of
RUN_ON = 100  # characters behind a result after which "nothing new follows" says something

_CLOSING = re.compile(
    r"\b(?:check|verify|final|answer|conclu|option|choice|review|round|confirm|double)\w*", re.IGNORECASE
)
_SENTENCE_ENDS = re.compile(r"[.!?$]\s*$")


def conclusion(text: str, question: str, asked: Asked) -> Number | None:
    """The first result for what was asked behind which the work ends.

    It ends where the next step checks, rounds or presents the result, or where no new number follows; a result that is
    calculated with afterwards was an intermediate one. Of each step only the last result counts.
    """
    given = frozenset(n.value for n in find_numbers(question))
    numbers = find_numbers(text)
    said = statements(text)
    results: list[tuple[int, Statement, Number]] = []
    for place, s in enumerate(said):
        if s.end >= len(text) and not _SENTENCE_ENDS.search(s.text):
            break
        if number := result_of(s.text, asked, given):
            results.append((place, s, moved(number, s.start)))
    last_of_step = {s.step: place for place, s, _ in results}
    for place, s, number in results:
        if (s.step and last_of_step[s.step] != place) or asked.match(s.text, s.heading) < ENOUGH:
            continue
        known = given | {n.value for n in numbers if n.start < s.end}
        something_new = any(n.start >= s.end and n.value not in known for n in numbers)
        step = next((x for x in said[place + 1 :] if x.step != s.step), None)
        ends = (step and _CLOSING.search(step.text)) or (not something_new and len(text) - s.end > RUN_ON)
        if ends and not _is_used(text, number, s.end):
            return number
    return None


def _is_used(text: str, number: Number, start: int) -> bool:
    """Whether something is calculated from a result behind `start`."""
    written = re.escape(text[number.start : number.end].strip("$ "))
    return bool(re.compile(rf"(?<![\d.]){written}\s*[A-Za-z]*\s*[-+*/\u00d7x\u00f7]").search(text, start))
