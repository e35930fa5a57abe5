"""Numbers in running text: where they stand and their exact value. Pure functions; nothing here raises."""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

MOST_DIGITS = 60  # longer runs of digits are degenerate output, and no answer

_SEPARATOR = r"(?:,(?:\\!)?|\{,\}|\\[,; ]|[\u00a0\u202f\u2009])"
_DIGITS = rf"(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_SPACE = r"[ \u00a0\u202f\u2009]"
_MINUS = r"[-\u2212\u2013]"
_CURRENCY = r"(?:\\?\$|[€£¥])"
# A minus is a sign unless something that can be subtracted from stands before it: "63-2" and "(4)-1" are differences.
_SIGN = rf"(?:(?<![\w).%}}\]]){_MINUS})?"
# A typographic minus and a space: a sign only behind what _BEFORE_SIGN finds, for "7 \u2212 5" is a difference.
_SPACED_SIGN = rf"\u2212{_SPACE}"
_BEFORE_SIGN = re.compile(r"(?:^|[=:,(\[{<>+*/\u00d7\u00f7]|\b(?:is|are|was|be|equals))[\s$*(]*$")
_SIGN_REACH = 12  # characters before a spaced sign that are looked at
_VULGAR = "[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]"
# What may not follow "3/4": it would be a date, a decimal or a calculation.
_NO_MORE = r"(?![0-9/]|\.[0-9]|\s*+=)"
# Nor may an operator follow "3 / 4", or an equals sign further on in the line.
_OPERATOR = r"(?:[-+/=^\u2212\u00d7\u00f7]|\*(?!\*)|x\b|\\(?:times|div|cdot))"
_NO_CALCULATION = rf"(?![0-9]|[.,][0-9]|[^=\u2248\n]{{0,40}}[=\u2248]|[\s)}}\]$]*+{_OPERATOR})"


def _argument(name: str) -> str:
    """The pattern of an argument of \\frac: a digit, or a number in braces, which may stand in \\text{} in there."""
    return (
        rf"\s*+(?P<{name}>[0-9]|\{{\s*+(?P<{name}_wrap>(?:\\(?:text|math)[a-z]*+\s*+)?\{{\s*+)?"
        rf"{_MINUS}?\s*+{_DECIMAL}\s*+(?({name}_wrap)\}}\s*+)\}})"
    )


_NUMBER = re.compile(
    rf"(?P<sign>{_SPACED_SIGN}|{_SIGN})(?:{_CURRENCY}\s?(?P<sign2>{_MINUS}?))?"
    rf"(?:(?:(?P<whole>{_DIGITS})[^\S\n]*+)?(?:\\[cdt]?frac{_argument('over')}{_argument('under')}|(?P<vulgar>{_VULGAR}))"
    rf"|(?P<mixed>[0-9]+)[ \u00a0](?P<mixed_over>[0-9]+)/(?P<mixed_under>[0-9]+)(?![0-9/])"
    rf"|(?P<number>{_DECIMAL})(?:\^(?P<power>\{{-?[0-9]{{1,2}}\}}|[0-9]{{1,2}}(?![0-9]|\.[0-9]))"
    rf"|/(?P<divisor>[0-9]++){_NO_MORE}"
    rf"|{_SPACE}{{1,3}}/{_SPACE}{{1,3}}(?P<spaced_divisor>[0-9]++){_NO_CALCULATION})?)"
)


@dataclass(frozen=True)
class Number:
    """A number in a text: its exact value and the characters [start, end) that it was read from."""

    value: Fraction
    start: int
    end: int


def _decimal(written: str) -> Fraction | None:
    """The value of a decimal without what stands around and between its digits; None if it is too long."""
    digits = re.sub(r"[^0-9.]", "", written)
    if len(digits) > MOST_DIGITS:
        return None
    value = Fraction(Decimal(digits))
    return -value if re.search(_MINUS, written) else value


def _mixed(whole: str | None, over: str, under: str) -> Fraction | None:
    """The value of a fraction, with a whole number before it or without."""
    parts = [_decimal(written) for written in (whole or "0", over, under)]
    if None in parts or parts[2] == 0:
        return None
    return parts[0] + parts[1] / parts[2]


def _power(base: Fraction, digits: int, exponent: int) -> Fraction | None:
    if digits * abs(exponent) > MOST_DIGITS or (base == 0 and exponent < 0):
        return None
    return base**exponent


def _value(match: re.Match) -> tuple[Fraction | None, int]:
    """The unsigned value of a match, None if it has none, and where it ends."""
    part = match.groupdict()
    if part["over"]:
        return _mixed(part["whole"], part["over"], part["under"]), match.end()
    if part["vulgar"]:
        over, under = unicodedata.normalize("NFKC", part["vulgar"]).split("\u2044")
        return _mixed(part["whole"], over, under), match.end()
    if part["mixed"]:
        return _mixed(part["mixed"], part["mixed_over"], part["mixed_under"]), match.end()
    number = part["number"]
    value = _decimal(number)
    if value is not None and part["power"]:
        return _power(value, len(number), int(part["power"].strip("{}"))), match.end()
    divisor = part["divisor"] if "." not in number else None
    if part["spaced_divisor"] and number.isdigit() and not _is_operand(match):
        divisor = part["spaced_divisor"]
    if value is not None and divisor and (ratio := _mixed(None, number, divisor)) is not None:
        return ratio, match.end()
    return value, match.end("number")


def _is_operand(match: re.Match) -> bool:
    """Whether an operator and a space stand before a number: in "24 * 3 / 4" and "2 / 3 / 4" 3 / 4 is no number."""
    start = match.start()
    return match.string[max(0, start - 2) : start].strip() in {"+", "-", "*", "/", "\u2212", "\u00d7", "\u00f7"}


def find_numbers(text: str) -> list[Number]:
    """Every number of a text, in order, without overlaps.

    Reads signs (ASCII and typographic), currency signs, thousands separators, decimals, `3/4`, `3 / 4` where no
    calculation goes on, `2 1/2`, `2½`, `\\frac{3}{4}`, `10^3`. A percent sign is left out of the value: 25 % is 25. A
    full stop after a number is punctuation.
    """
    found = []
    place = 0
    while match := _NUMBER.search(text, place):
        value, end = _value(match)
        start, sign, place = match.start(), match["sign"], end
        if len(sign) > 1 and not _BEFORE_SIGN.search(text, max(0, start - _SIGN_REACH), start):
            start, sign = match.end("sign"), ""
        if value is not None:
            found.append(Number(-value if bool(sign) != bool(match["sign2"]) else value, start, end))
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
