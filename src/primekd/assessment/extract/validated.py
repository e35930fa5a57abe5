"""Run-on-aware rules: read an answer from its start and stop where the answer to this question ends.

Most logged answers go on after they are finished: they repeat themselves, make up options or take up another question
until their limit. In this order:

1. declared    the first "the answer is ...", \\boxed{}, "#### ..." or "... is the answer"
2. corrected   a later declaration that openly corrects it, before another question begins
3. leading     a bare value with which the answer starts, if no worked solution declares or concludes another
4. concluded   the result of a step that speaks of what was asked, behind which the work ends (needs the question)
5. none        no value for this question; a person may have to look

What is neither declared nor clearly concluded is left out: guesses at intermediate results were right half the time.
"""

import re

from primekd.assessment.extract.asked import Asked, asked_for
from primekd.assessment.extract.concluded import conclusion
from primekd.assessment.extract.declared import Declaration, declarations
from primekd.assessment.extract.leading import leading
from primekd.assessment.extract.result import Extraction, nothing, reading
from primekd.assessment.numbers import Number

RULES = ("declared", "corrected", "leading", "concluded", "none")
LONGEST = 20_000  # characters; what was asked is answered by then
EARLY = 50  # characters; a declaration before that, ahead of any work, is an opening value like a bare number

_CORRECTS = re.compile(
    r"\b(?:wait|mistake|incorrect|wrong|not correct|cannot be correct|error|closest|nearest|"
    r"should (?:be|have been)|re-?\s?(?:calculat|check|evaluat|consider|comput|exam|assess)\w*|redo|instead|"
    r"apologi[sz]e|sorry|actually|not (?:in|among|listed|one of|an option|there|here|present|available|"
    r"a (?:choice|whole))|round(?:ed|ing)?)\b",
    re.IGNORECASE,
)
_ANOTHER_QUESTION = re.compile(
    r"(?:^|\n)\W*(?:question|problem|exercise|example|quiz|q)\s*(?:[:#.]|\d)|\?\s|\?$|#\s*(?:problem|question)\b|"
    r"(?:^|\n)#\d",
    re.IGNORECASE,
)
_WORK = re.compile(
    r"(?:^|\n|(?<=[.\s]))\W{0,4}step\s*\d+|let's (?:begin|start|first|denote|calculate|find)", re.IGNORECASE
)


def by_validated_rules(text: str, question: str | None, cut: bool) -> Extraction:
    """Reads one answer.

    Args:
        question: what was asked; without it, conclusions are not looked for.
        cut: the answer ran into the limit of new tokens.
    """
    text, cut = text[:LONGEST], cut or len(text) > LONGEST
    asked = asked_for(question) if question else None
    said = declarations(text, asked.numbers if asked else frozenset(), cut)
    opening, rule = _opening(text, said, cut)
    if opening is None:
        return _settle(text, said[0], said, "declared") if said else _concluded(text, question, asked) or nothing()
    rest = text[opening.end :]
    work = _WORK.search(rest)
    if not work or _ANOTHER_QUESTION.search(rest[: work.start()]):
        return _settle(text, opening, said, rule)
    later = [d for d in said if d.start > opening.end + work.start()]
    if later:
        return _settle(text, later[0], later, "declared")
    if found := _concluded(text, question, asked):
        return found
    if rule == "leading" and _is_stub(text, opening.number):
        return nothing(ambiguous=True)
    return reading(opening.number, rule, ambiguous=True)


def _opening(text: str, said: list[Declaration], cut: bool) -> tuple[Declaration | None, str]:
    """A value that is given ahead of any work, and the rule that reads it."""
    if (number := leading(text)) and not (cut and number.end >= len(text)):
        return Declaration(number.start, number), "leading"
    if said and said[0].start < EARLY and "=" not in text[: said[0].start] and not _WORK.search(text[: said[0].start]):
        return said[0], "declared"
    return None, ""


def _is_stub(text: str, number: Number) -> bool:
    """Whether a value is a lone digit on a line ahead of steps: as often the mark of a step as an answer."""
    written = text[number.start : number.end].lstrip("-")
    return len(written) == 1 and bool(re.match(r"\.?\s*\n", text[number.end :]))


def _concluded(text: str, question: str | None, asked: Asked | None) -> Extraction | None:
    number = conclusion(text, question, asked) if asked else None
    return reading(number, "concluded") if number else None


def _settle(text: str, first: Declaration, said: list[Declaration], rule: str) -> Extraction:
    """The first declared value, or the last of those that openly correct it before another question begins."""
    number, value, end, corrected = first.number, first.number.value, first.end, False
    for later in said:
        if later.start < end:
            continue
        between = text[end : later.start]
        if _ANOTHER_QUESTION.search(between):
            break
        if later.number.value == value:
            end = later.end
        elif _CORRECTS.search(between):
            number, value, end, corrected = later.number, later.number.value, later.end, True
        else:
            break
    return reading(number, "corrected" if corrected else rule)
