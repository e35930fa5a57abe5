"""`strict-match` and `flexible-extract`, the two filters of lm-evaluation-harness's task gsm8k (version 3.0).

The patterns are the task's own definition (lm_eval/tasks/gsm8k/gsm8k.yaml): strict-match takes the first number after
`#### `, flexible-extract the last thing in the answer that looks like a number. What they select is then read as a
number, where it is one: the harness compares strings, so that to it 29.00 is not 29.
"""

import re

from primekd.assessment.reading.numbers import find_numbers
from primekd.assessment.reading.result import Extraction, nothing

STRICT, FLEXIBLE = "strict-match", "flexible-extract"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def select_strict(text: str) -> tuple[int, int] | None:
    """The characters that strict-match selects; None where the harness says [invalid]."""
    match = _STRICT.search(text)
    return match.span(1) if match else None


def select_flexible(text: str) -> tuple[int, int] | None:
    """The characters that flexible-extract selects; None where the harness says [invalid]."""
    spans = [match.span() for match in _FLEXIBLE.finditer(text)]
    return spans[-1] if spans else None


def by_strict_match(text: str) -> Extraction:
    """The number after the first `#### `."""
    return _read(text, select_strict(text), STRICT)


def by_flexible_extract(text: str) -> Extraction:
    """The last number of the answer."""
    return _read(text, select_flexible(text), FLEXIBLE)


def _read(text: str, span: tuple[int, int] | None, rule: str) -> Extraction:
    if span is None:
        return nothing()
    selected = text[span[0] : span[1]]
    numbers = find_numbers(selected)
    # Runs such as `...`, `$,` or `1.2.3` are selected too, but are no number.
    if len(numbers) != 1 or re.search("[0-9]", selected[: numbers[0].start] + selected[numbers[0].end :]):
        return nothing()
    return Extraction(numbers[0].value, rule, span)
