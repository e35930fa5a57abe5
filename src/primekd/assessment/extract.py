"""From an answer's text to the number it gives, by the published rules. Pure: no files, no models, never raises.

The rules, in this order (the study's own code read a stale variable in rule 3 and dropped minus signs; this does not):

1. boxed        the first \\boxed{} that holds a number
2. first-line   the first line, if it has numbers and they are all the same number
3. phrase       the first number after "the [final|correct] answer is"
4. last-number  the last number in the answer
5. none         no number at all
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from primekd.assessment.numbers import Number, find_numbers, format_value

RULES = ("boxed", "first-line", "phrase", "last-number", "none")
NOT_FOUND = "-1"  # how a log writes that no answer was found

_BOXED = re.compile(r"\\f?boxed\s*\{")
_PHRASE = re.compile(r"\bthe\s+(?:(?:final|correct)\s+)?answer\s+is\b", re.IGNORECASE)


@dataclass(frozen=True)
class Extraction:
    """What an answer was read as.

    `span` are the characters [start, end) of the answer that `value` was read from; both None where nothing was found.
    """

    value: Fraction | None
    rule: str
    span: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        """The value as logs write it; -1 where no answer was found."""
        return NOT_FOUND if self.value is None else format_value(self.value)


def _from(number: Number, rule: str, offset: int = 0) -> Extraction:
    return Extraction(number.value, rule, (offset + number.start, offset + number.end))


def braced(text: str, start: int) -> str:
    """What stands in the braces that open just before `start`, nested braces included; to the end if never closed."""
    depth = 1
    for place in range(start, len(text)):
        if text[place] == "{" and text[place - 1] != "\\":
            depth += 1
        elif text[place] == "}" and text[place - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[start:place]
    return text[start:]


def by_boxed(text: str) -> Extraction | None:
    """Rule 1."""
    for match in _BOXED.finditer(text):
        numbers = find_numbers(braced(text, match.end()))
        if numbers:
            # \boxed{x = 18} and \boxed{6 \times 3 = 18} give what stands after the last equals sign.
            return _from(numbers[-1], "boxed", match.end())
    return None


def by_first_line(text: str) -> Extraction | None:
    """Rule 2. Leading empty lines are not the first line."""
    offset = len(text) - len(text.lstrip())
    line = text[offset:].split("\n", 1)[0]
    numbers = find_numbers(line)
    if numbers and len({n.value for n in numbers}) == 1:
        return _from(numbers[0], "first-line", offset)
    return None


def by_phrase(text: str) -> Extraction | None:
    """Rule 3."""
    for match in _PHRASE.finditer(text):
        numbers = find_numbers(text[match.end() :])
        if numbers:
            return _from(numbers[0], "phrase", match.end())
    return None


def by_last_number(text: str) -> Extraction | None:
    """Rule 4."""
    numbers = find_numbers(text)
    return _from(numbers[-1], "last-number") if numbers else None


def extract(text: str) -> Extraction:
    """Reads an answer by the first published rule that fires."""
    for rule in (by_boxed, by_first_line, by_phrase, by_last_number):
        if found := rule(text):
            return found
    return Extraction(None, "none")
