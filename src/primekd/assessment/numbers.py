"""Numbers in running text: where they stand and their exact value. Pure functions; nothing here raises."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

MOST_DIGITS = 60  # longer runs of digits are degenerate output, and no answer

_SEPARATOR = r"(?:,|\{,\}|\\,|[\u00a0\u202f\u2009])"
_DIGITS = rf"(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_MINUS = r"[-\u2212\u2013]"
_CURRENCY = r"(?:\\?\$|[€£¥])"
# A minus is a sign unless something that can be subtracted from stands before it: "63-2" and "(4)-1" are differences.
_SIGN = rf"(?:(?<![\w).%}}\]]){_MINUS})?"
_LATEX_FRACTION = r"\\[dt]?frac\s*\{\s*(?P<over>[0-9]+)\s*\}\s*\{\s*(?P<under>[0-9]+)\s*\}"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})(?:{_CURRENCY}\s?(?P<sign2>{_MINUS}?))?"
    rf"(?:(?P<whole>[0-9]+)?\s*{_LATEX_FRACTION}"
    rf"|(?P<mixed>[0-9]+)[ \u00a0](?P<mixed_over>[0-9]+)/(?P<mixed_under>[0-9]+)(?![0-9/])"
    rf"|(?P<number>{_DECIMAL})(?:/(?P<divisor>[0-9]+)(?![0-9./]|\s*=))?)"
)


@dataclass(frozen=True)
class Number:
    """A number in a text: its exact value and the characters [start, end) that it was read from."""

    value: Fraction
    start: int
    end: int


def _fraction(over: str, under: str) -> Fraction | None:
    if len(over) > MOST_DIGITS or len(under) > MOST_DIGITS or int(under) == 0:
        return None
    return Fraction(int(over), int(under))


def _value(match: re.Match) -> tuple[Fraction, int] | None:
    """The unsigned value of a match and where it ends."""
    part = match.groupdict()
    if part["over"]:
        value = _fraction(part["over"], part["under"])
        whole = int(part["whole"]) if part["whole"] and len(part["whole"]) <= MOST_DIGITS else 0
        return None if value is None else (whole + value, match.end())
    if part["mixed"]:
        value = _fraction(part["mixed_over"], part["mixed_under"])
        if value is None or len(part["mixed"]) > MOST_DIGITS:
            return None
        return int(part["mixed"]) + value, match.end()
    digits = re.sub(r"[^0-9.]", "", part["number"])
    if len(digits) > MOST_DIGITS:
        return None
    value = Fraction(Decimal(digits))
    if part["divisor"] and "." not in digits and (ratio := _fraction(digits, part["divisor"])) is not None:
        return ratio, match.end()
    return value, match.end("number")


def find_numbers(text: str) -> list[Number]:
    """Every number of a text, in order, without overlaps.

    Reads signs (ASCII and typographic), currency signs, thousands separators, decimals, `3/4`, `2 1/2`,
    `\\frac{3}{4}`. A percent sign is left out of the value: 25 % is 25. A full stop after a number is punctuation.
    """
    found = []
    place = 0
    while match := _NUMBER.search(text, place):
        read = _value(match)
        if read is None:
            place = match.end()
            continue
        value, end = read
        negative = bool(match["sign"]) != bool(match["sign2"])
        found.append(Number(-value if negative else value, match.start(), end))
        place = end
    return found


def format_value(value: Fraction) -> str:
    """An exact decimal where there is one (`18`, `2.5`), else a fraction (`1/3`)."""
    reduced = value.denominator
    for prime in (2, 5):
        while reduced % prime == 0:
            reduced //= prime
    if reduced != 1:
        return f"{value.numerator}/{value.denominator}"
    places = 0
    scaled = abs(value)
    while scaled.denominator != 1:
        scaled *= 10
        places += 1
    digits = str(scaled.numerator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
