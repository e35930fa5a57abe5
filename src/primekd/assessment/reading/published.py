"""From an answer's text to the number it gives, by the published rules. Pure: no files, no models, never raises.

The rules, in this order (the study's own code read a stale variable in rule 3 and dropped minus signs; this does not):

1. boxed        the first \\boxed{} that holds a number
2. first-line   the first line, if it has numbers and they are all the same number
3. phrase       the first number after "the [final|correct] answer is"
4. last-number  the last number in the answer
5. none         no number at all"""

import re
from dataclasses import replace

from primekd.assessment.reading.numbers import Extraction, Number, find_numbers, nothing, reading

RULES = ("boxed", "first-line", "phrase", "last-number", "none")

_BOXED = re.compile(r"\\f?boxed\s*\{")
_TEXT = re.compile(r"\\(?:text[a-z]*+|mbox|mathrm)\s*+\{[^{}]*+(?:\}|$)")
_PHRASE = re.compile(r"\bthe\s++(?:(?:final|correct)\s++)?answer\s++is\b", re.IGNORECASE)

LONGEST_BOX = 400  # characters; what is not closed by then is no answer


def braced(text: str, start: int) -> str:
    """What stands in the braces that open just before `start`, nested ones included; to its limit if never closed."""
    depth = 1
    stop = min(len(text), start + LONGEST_BOX)
    for place in range(start, stop):
        if text[place] == "{" and text[place - 1] != "\\":
            depth += 1
        elif text[place] == "}" and text[place - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[start:place]
    return text[start:stop]


def number_in_box(text: str, start: int, inside: str) -> Number | None:
    """The first number behind the last equals sign of a box, if there is one; else its first number. `inside`: what
    stands in it from `start` on. \\text{} counts only where all stands in it: \\boxed{18 \\text{ in 2 days}} is 18."""
    numbers = find_numbers(text, start, start + len(inside))
    bare = _TEXT.sub(lambda match: " " * len(match[0]), inside)
    outside = [n for n in numbers if bare[n.start - start : n.end - start].strip()]
    equals = start + (bare if outside else inside).rfind("=")
    candidates = [n for n in numbers if n.start > equals] or numbers
    return next((n for n in candidates if n in outside), candidates[0] if candidates else None)


def by_boxed(text: str) -> Extraction | None:
    for match in _BOXED.finditer(text):
        if number := number_in_box(text, match.end(), braced(text, match.end())):
            return reading(number, "boxed")
    return None


def by_first_line(text: str) -> Extraction | None:
    """Rule 2. Leading empty lines are not the first line."""
    start = len(text) - len(text.lstrip())
    end = text.find("\n", start)
    numbers = find_numbers(text, start, end if end >= 0 else None)
    if numbers and len({n.value for n in numbers}) == 1:
        return reading(numbers[0], "first-line")
    return None


def by_phrase(text: str) -> Extraction | None:
    match = _PHRASE.search(text)
    number = next((n for n in find_numbers(text) if n.start >= match.end()), None) if match else None
    return reading(number, "phrase") if number else None


def by_published_rules(text: str) -> Extraction:
    """Reads an answer by the first published rule that fires. `ambiguous` where the rules boxed, first-line and phrase
    give different values, or where only the last of several different numbers could be taken."""
    fired = [found for rule in (by_boxed, by_first_line, by_phrase) if (found := rule(text))]
    if fired:
        return replace(fired[0], ambiguous=len({f.value for f in fired}) > 1)
    numbers = find_numbers(text)
    several = len({n.value for n in numbers}) > 1
    return reading(numbers[-1], "last-number", ambiguous=several) if numbers else nothing()
