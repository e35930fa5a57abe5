"""`strict-match` and `flexible-extract`, the two filters of lm-evaluation-harness's task gsm8k (version 3.0).

The patterns are the task's own definition (lm_eval/tasks/gsm8k/gsm8k.yaml): strict-match takes the first number after
`#### `, flexible-extract the last thing in the answer that looks like a number. What they select is then read as a
number, where it is one: the harness compares strings, so that to it 29.00 is not 29.
"""

import re

from primekd.assessment.reading.numbers import Extraction, find_numbers, nothing

STRICT, FLEXIBLE = "strict-match", "flexible-extract"
# The pattern of each filter, and which of its matches is taken.
_FILTERS = {
    STRICT: (re.compile(r"#### (\-?[0-9\.\,]+)"), 0),
    FLEXIBLE: (re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), -1),
}


def select(text: str, rule: str) -> tuple[int, int] | None:
    """The characters that a filter selects; None where the harness says [invalid]."""
    pattern, place = _FILTERS[rule]
    spans = [match.span(match.lastindex) for match in pattern.finditer(text)]
    return spans[place] if spans else None


def by_harness(text: str, rule: str) -> Extraction:
    """The number that a filter selects."""
    if (span := select(text, rule)) is None:
        return nothing()
    selected = text[slice(*span)]
    numbers = find_numbers(selected)
    # Runs such as `...`, `$,` or `1.2.3` are selected too, but are no number.
    if len(numbers) != 1 or re.search("[0-9]", selected[: numbers[0].start] + selected[numbers[0].end :]):
        return nothing()
    return Extraction(numbers[0].value, rule, span)
