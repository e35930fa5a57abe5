"""How numbers and foreign text are written, the same way on every page. Numbers, text from CSV files, are rounded as
decimals, half away from zero: no binary fraction can turn a 6.25 in the file into a 6.2 on the page."""

import html
import re
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, partial

from primekd.statistics.sentences import is_detectable, p_of, p_value, percent, points  # noqa: F401 - pages take them from here

MISSING = "–"  # the teacher has no distance to itself, the control no comparison with itself


def significant(value: str | float, digits: int = 4, signed: bool = False) -> str:
    """A number with so many significant digits, trailing zeros kept: 0.1000, 10.80, 2.558e-06."""
    number = Decimal(str(value))
    if number == 0:
        return "0"
    rounded = number.quantize(Decimal(1).scaleb(number.adjusted() - digits + 1), ROUND_HALF_UP)
    return f"{float(rounded):{'+' if signed else ''}#.{digits}g}".rstrip(".")


nats = partial(significant, digits=3)
signed_nats = partial(nats, signed=True)


def between(measure: str, write=significant):
    """What writes a row's `value [low, high]` of a measure."""
    return lambda row: interval(row, measure, write)


def written(key: str, write):
    """What writes the value of a row's column; – where it has none."""
    return lambda row: known(row[key], write)


def interval(row: dict[str, str], measure: str, write=significant) -> str:
    """`value [low, high]` of a measure of a summary or contrast row; – where the file has none."""
    if not row[measure] or not row[f"{measure}_low"]:
        return known(row[measure], write)
    value, low, high = (write(row[f"{measure}{end}"]) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def known(value, write=str) -> str:
    """A value as `write` writes it; – where there is none."""
    return MISSING if value in (None, "") else write(value)


@cache  # of probabilities in half precision there are few
def tenths(share: float) -> int:
    """A share in tenths of a percent, rounded as all that is shown in percent."""
    return int(percent(share).replace(".", ""))


def percent_range(shares: list[str]) -> str:
    """Shares in percent from the least to the greatest: `3.2 to 4.1`, or `3.2` where rounding leaves no other."""
    least, most = (percent(pick(shares, key=Decimal)) for pick in (min, max))
    return least if least == most else f"{least} to {most}"


def detectable(share: str) -> str:
    """The smallest true difference that a test finds, in percent; `none` where it finds none, which is a share of 1."""
    return percent(share) if is_detectable(share) else "none"


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: 3.6 s, 12 min 5 s, 3 h 7 min."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def energy(kwh: float | None) -> str:
    """Energy in watt-hours with three significant digits."""
    return known(kwh, lambda kwh: f"{significant(kwh * 1000, 3)} Wh")


def markdown(text: str) -> str:
    """Text for a Markdown cell or paragraph: no tag, no column, no link and no new line can start in it."""
    return re.sub(r"([\\|`*\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def markdown_code(text: str) -> str:
    """A file's or folder's name as code; anything that is no plain name is written as escaped text."""
    return f"`{text}`" if re.fullmatch(r"[\w./-]+", text) else markdown(text)
