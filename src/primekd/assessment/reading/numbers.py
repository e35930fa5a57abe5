"""Numbers in running text: where they stand and their exact value; and what an extractor makes of one. Never raises."""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from primekd.assessment.reading.signs import MINUS, is_index, sign_before

NOT_FOUND = "-1"  # how a log writes that no answer was found
NONE = "none"  # the rule of an answer in which no rule found a value
MOST_DIGITS = 60  # longer runs of digits are degenerate output, and no answer

# One character for one, so that places stay: dashes, full-width marks, Arabic separators, the slashes of fractions.
_SAME = dict(zip("\u2010\u2011\u2012\u2013\ufe63\uff0d\uff0b", "-----\u2212+", strict=True)) | dict(
    zip("\uff0c\u066c\u060c\uff0e\u066b\uff04\uff05\uff1d\uff0f\u2044\u2215\u2019", ",,,..$%=///'", strict=True)
)
_RAISED = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")

_SPACE = r"[ \u00a0\u202f\u2009]"
# Between groups of three: a comma (in TeX also in braces or beside a negative space), an apostrophe, a fixed space.
_SEPARATOR = (
    r"(?:(?:\\!)?,(?:\\!)?|\{,\}|\{\\[,;:]\}|\\(?:text|math[a-z]{1,5})\{,\}|\\[,;:! ]|\\thinspace(?:\{\}| )?"
    r"|['~_\u00a0\u202f\u2007-\u200a])"
)
_GROUPED = rf"[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]{{1,2}}(?:,[0-9]{{2}}){{1,20}},[0-9]{{3}}(?![0-9])"
_DIGITS = rf"(?:{_GROUPED}|[0-9]+)"  # 1,234,567, in India 12,34,567
# A dot is no decimal point where a word, a bracket or another dot ends at it: "Rs.500", "...18"; but "it is.60 of it".
_AFTER_WORD = "".join(rf"|(?<=\b{word})" for word in ("is", "are", "was", "by", "of", "to", "or", "times", "equals"))
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|(?:(?<![^\W_]){_AFTER_WORD})(?<![.)}}\]\u2026])\.[0-9]+)"
# In Europe 1.234,50 and 1.234.567; a comma behind a lone zero is a decimal one anywhere, except in a pair (0,5).
_EUROPEAN = (
    r"[0-9]{1,3}(?:\.[0-9]{3}){1,20},[0-9]{1,2}(?![0-9]|,[0-9])|[0-9]{1,3}(?:\.[0-9]{3}){2,20}(?![0-9]|\.[0-9])"
    r"|(?<![0-9.,(\[{])0,[0-9]+(?![0-9]|[.,][0-9])"
)
_CHAIN = r"[0-9]++\.[0-9]++(?:\.[0-9]++)++"
# Plain spaces between groups count at the end of a statement alone, a few words of units included.
_STATEMENT_END = (
    r"(?=(?:\.[0-9]{1,2}(?![0-9]))?(?: (?!(?:ml|g|gram|gm|page|piece|foot|word)\b)[^\W\d]+){0,2}"
    r"(?: (?:in (?:all|total)|an? [a-z]+|per [a-z]+|each|altogether))?[$*%)}\]\\]*(?:[.!?;,](?![0-9])|\s*(?:\n|$)|\}))"
)
# "300 400 500" is a list.
_SPACED = (
    rf"(?<![0-9] )(?<![0-9,.])(?![0-9]{{3}} [0-9]{{3}} [0-9])(?!(?:(?<=\n)|(?<![\s\S]))[0-9]+ [0-9]+ [0-9])"
    rf"[1-9][0-9]{{0,2}}(?: [0-9]{{3}}){{1,3}}{_STATEMENT_END}(?:\.[0-9]{{1,2}})?"
)
_COUNTED = re.compile(  # "Day 2 150 miles."
    r"\b(?:day|week|month|year|hour|step|part|question|no\.?|number|trip|group|class|grade|team|box|case|item) ?#?\Z",
    re.IGNORECASE,
)
_VULGAR = "[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒]"
# What may not follow "3/4": it would be a date, a decimal or a calculation.
_NO_MORE = r"(?![0-9/]|\.[0-9]|\s*+=)"
# Nor may an operator follow "3 / 4", or an equals sign further on in the line.
_OPERATOR = r"(?:[-+/=^\u2212\u00d7\u00f7]|\*(?!\*)|x\b|\\(?:times|div|cdot))"
_NO_CALCULATION = rf"(?![0-9]|[.,][0-9]|[^=\u2248\n]{{0,40}}[=\u2248]|[\s)}}\]$]*+{_OPERATOR})"
_TIMES = r"\s{0,3}(?:\\(?:times|cdot)|[*xX\u00d7\u00b7\u22c5]|\((?=10))\s{0,3}"


def _exponent(name: str) -> str:
    """The pattern of an exponent of up to three digits: ^3, ^{-3}, **3, or raised digits."""
    whole = r"[0-9]{1,3}"
    return (
        rf"(?:\s?(?:\^|\*\*)\s?(?:[{{(]\s?(?P<{name}_in>[-\u2212+]?{whole})\s?[}})]"
        rf"|(?P<{name}_bare>[-\u2212+]?{whole}(?![0-9]|\.[0-9])))|(?P<{name}_up>\u207b?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{{1,3}}))"
    )


def _argument(name: str) -> str:
    """The pattern of an argument of \\frac: a digit, or a number in braces, which may stand in \\text{} in there."""
    return (
        rf"\s*+(?P<{name}>[0-9]|\{{\s*+(?P<{name}_wrap>(?:\\(?:text|math)[a-z]*+\s*+)?\{{\s*+)?"
        rf"{MINUS}?\s*+{_DECIMAL}\s*+(?({name}_wrap)\}}\s*+)\}})"
    )


_OTHER_POWER = re.compile(r"\s?\^\s?[{(]?\s?[-\u2212]?[0-9]")  # 64^{1/3}, 1.1^2.5
_NUMBER = re.compile(
    rf"(?:(?P<whole>{_DIGITS})[^\S\n]*+)?(?:\\[cdt]?frac{_argument('over')}{_argument('under')}|(?P<vulgar>{_VULGAR}))"
    rf"|(?P<mixed>[0-9]+)[ \u00a0](?P<mixed_over>[0-9]+)/(?P<mixed_under>[0-9]+)(?![0-9/])"
    rf"|(?P<spaced>{_SPACED})|(?P<european>{_EUROPEAN})|(?P<chain>{_CHAIN})"
    rf"|(?P<number>{_DECIMAL})(?:{_TIMES}[{{(]?10\}}?{_exponent('ten')}\)?"
    rf"|[eE](?P<e>[-\u2212+]?[0-9]{{1,3}})(?!\w|\.[0-9])|(?P<power>{_exponent('to')})"
    rf"|/(?P<divisor>[0-9]++){_NO_MORE}"
    rf"|{_SPACE}{{1,3}}/{_SPACE}{{1,3}}(?P<spaced_divisor>[0-9]++){_NO_CALCULATION})?"
)


@dataclass(frozen=True)
class Number:
    """A number in a text: its exact value and the characters [start, end) that it was read from."""

    value: Fraction
    start: int
    end: int


def _plain(text: str) -> str:
    """The text with the digits of every script and their marks in ASCII, a character for a character."""
    if text.isascii():
        return text
    return re.sub(r"[^\x00-\x7f]", lambda found: _ascii(found[0]), text)


def _ascii(character: str) -> str:
    return _SAME.get(character) or (str(unicodedata.decimal(character)) if character.isdecimal() else character)


def _decimal(written: str) -> Fraction | None:
    """The value of a decimal without what stands around and between its digits; None if it is too long."""
    digits = re.sub(r"[^0-9.]", "", written)
    if len(digits) > MOST_DIGITS:
        return None
    value = Fraction(Decimal(digits))
    return -value if re.search(MINUS, written) else value


def _mixed(whole: str | None, over: str, under: str) -> Fraction | None:
    """The value of a fraction, with a whole number before it or without."""
    parts = [_decimal(written) for written in (whole or "0", over, under)]
    if None in parts or parts[2] == 0:
        return None
    return parts[0] + parts[1] / parts[2]


def _raise(base: Fraction, digits: int, exponent: int) -> Fraction | None:
    if digits * abs(exponent) > MOST_DIGITS or (base == 0 and exponent < 0):
        return None
    return base**exponent


def _exponent_in(part: dict[str, str | None], name: str) -> int | None:
    written = part[f"{name}_in"] or part[f"{name}_bare"] or part[f"{name}_up"]
    return int(written.translate(_RAISED).replace("\u2212", "-")) if written else None


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
    if spaced := part["spaced"]:  # "150 150 150" is one value over and over
        groups = spaced.split(".")[0].split(" ")
        same = groups[0] in groups[1:] or _COUNTED.search(match.string, max(0, match.start() - 16), match.start())
        return _decimal(groups[0] if same else spaced), match.start() + len(groups[0] if same else spaced)
    if part["chain"]:
        return _stuck(part["chain"], match.start())
    if part["european"]:
        return _decimal(part["european"].replace(".", "").replace(",", ".")), match.end()
    return _simple(match, part)


def _stuck(chain: str, start: int) -> tuple[Fraction | None, int]:
    """The decimal that "18.5.0.0.0.0" starts with, which got stuck behind it; "2.1.3" counts sections: no value."""
    links = chain.split(".")
    first, rest = f"{links[0]}.{links[1]}", links[2:]
    return _decimal(first) if len(rest) >= 2 * len(set(rest)) else None, start + len(first)


def _simple(match: re.Match, part: dict[str, str | None]) -> tuple[Fraction | None, int]:
    """The same of a decimal number and what may follow it: a power of ten, a power, a divisor."""
    number = part["number"]
    value = _decimal(number)
    if value is None:
        return None, match.end("number")
    ten = int(part["e"].replace("\u2212", "-")) if part["e"] else _exponent_in(part, "ten")
    if ten is not None:
        scale = _raise(Fraction(10), 1, ten)
        return None if scale is None else value * scale, match.end()
    if part["power"] and not (part["power"].startswith("**") and match.string[: match.start()].endswith("*")):
        return _raise(value, len(number), _exponent_in(part, "to")), match.end()
    if _OTHER_POWER.match(match.string, match.end("number")):
        return None, match.end("number")
    divisor = part["divisor"] if "." not in number else None
    if part["spaced_divisor"] and number.isdigit() and not _is_operand(match):
        divisor = part["spaced_divisor"]
    if divisor and (ratio := _mixed(None, number, divisor)) is not None:
        return ratio, match.end()
    return value, match.end("number")


def _is_operand(match: re.Match) -> bool:
    """Whether an operator and a space stand before a number: in "24 * 3 / 4" and "2 / 3 / 4" 3 / 4 is no number."""
    start = match.start()
    return match.string[max(0, start - 2) : start].strip() in {"+", "-", "*", "/", "\u2212", "\u00d7", "\u00f7"}


def find_numbers(text: str, start: int = 0, stop: int | None = None) -> list[Number]:
    """Every number of a text, or of its characters [start, stop), in order, without overlaps. Reads digits of every
    script; signs (ASCII and typographic; a minus that is an operator or the mark of a list is none); currencies;
    separators of thousands (1,234, 12,34,567, 1'234, 1.234,50, `{,}`; 1 234 at the end of a statement); decimals,
    `3/4`, `3 / 4` where no calculation goes on, `2 1/2`, `2½`, `\\frac{3}{4}`; `10^3`, `1.2e3`, `1.2 × 10^3`. Exponents
    and indices of units and words (m^2, ft2, CO2) are no numbers. A percent sign is left out of the value: 25 % is 25.
    A full stop after a number is punctuation."""
    plain, stop = _plain(text), len(text) if stop is None else stop
    found: list[Number] = []
    place = start
    while match := _NUMBER.search(plain, place, stop):
        value, end = _value(match)
        if value is not None and not is_index(plain, match.start()):
            first, negative = sign_before(plain, match.start(), end, place)
            found.append(Number(-value if negative else value, first, end))
        place = max(end, match.end("chain"))
    return found


@dataclass(frozen=True)
class Extraction:
    """`span`: the characters [start, end) of the answer that `value` was read from; both None where nothing was found.
    `truncated`: it ran into the limit of new tokens. `ambiguous`: the answer commits to several values."""

    value: Fraction | None
    rule: str
    span: tuple[int, int] | None = None
    truncated: bool = False
    ambiguous: bool = False


def reading(number: Number, rule: str, ambiguous: bool = False) -> Extraction:
    """An extraction of one number of the answer."""
    return Extraction(number.value, rule, (number.start, number.end), ambiguous=ambiguous)


def nothing(ambiguous: bool = False) -> Extraction:
    """An extraction without a value."""
    return Extraction(None, NONE, ambiguous=ambiguous)
