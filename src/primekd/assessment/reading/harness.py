"""The extractors of other projects.

`strict-match` and `flexible-extract`, the two filters of lm-evaluation-harness's task gsm8k (version 3.0), have its own
patterns (gsm8k.yaml): the first number after `#### `, and the last thing in the answer that looks like one. What they
select is then read as a number, where it is one: the harness compares strings, so that to it 29.00 is not 29.
`math-verify` is Hugging Face's Math-Verify with its default settings."""

import logging
import re
import threading
from fractions import Fraction
from functools import cache

from primekd.assessment.reading.numbers import Extraction, find_numbers, nothing

MATH_VERIFY = "math-verify"
SECONDS = 5  # for one answer; Math-Verify interrupts itself by a signal, which only the main thread can receive
LONGEST = 20_000  # characters; its patterns are not linear in the length of the text
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


@cache
def _parser():
    from math_verify import parse

    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a warning for every answer that it cannot read
    return parse


def by_math_verify(text: str) -> Extraction:
    """The number that Math-Verify parses. `span`: the last place where the parsed string stands."""
    timeout = SECONDS if threading.current_thread() is threading.main_thread() else None
    try:
        parsed = _parser()(text[-LONGEST:], parsing_timeout=timeout)
    except Exception:  # noqa: BLE001 - model output reaches a grammar and sympy: whatever fails there is "no value"
        return nothing()
    value = next((v for p in parsed if (v := _number(p)) is not None), None)
    if value is None:
        return nothing()
    source = next((p for p in parsed if isinstance(p, str)), "")
    place = text.rfind(source) if source else -1
    return Extraction(value, MATH_VERIFY, (place, place + len(source)) if place >= 0 else None)


def _number(parsed) -> Fraction | None:
    """The exact value of a sympy number; a percentage is read without its sign, as everywhere here."""
    import sympy

    if not isinstance(parsed, sympy.Basic):
        return None
    if isinstance(parsed, sympy.Eq):  # x = 18
        parsed = parsed.rhs
    if isinstance(parsed, sympy.Mul):  # 25 % and 3/4 are left unevaluated
        hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
        match [a for a in parsed.args if a != hundredth]:
            case [only]:
                parsed = only
            case [over, sympy.Pow(base=under, exp=sympy.S.NegativeOne)]:
                top, bottom = _number(over), _number(under)
                return top / bottom if top is not None and bottom else None
            case [sympy.S.NegativeOne, only]:
                return None if (positive := _number(only)) is None else -positive
    if isinstance(parsed, sympy.Float):
        return Fraction(str(parsed)).limit_denominator(10**9) if parsed.is_finite else None
    if isinstance(parsed, sympy.Rational):
        return Fraction(int(parsed.p), int(parsed.q))
    return None
