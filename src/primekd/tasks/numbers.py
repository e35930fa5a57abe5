"""Answers that are numbers: how gold answers write them, and how a response is judged by one."""

import re
from fractions import Fraction
from itertools import count

from primekd.tasks.protocol import Item, Judgement, Reader, Task

NUMBER = re.compile(r"[+-]?\s*(([0-9]{1,3}(,[0-9]{3})+|[0-9]+)(\.[0-9]*)?|\.[0-9]+)")
FRACTION = re.compile(r"(?P<sign>[+-]?)\s*(?:(?P<whole>[0-9]+)\s+)?(?P<over>[0-9]+)\s*/\s*(?P<under>[0-9]+)")
MOST_DIGITS = 4000  # Python reads whole numbers of 4,300 digits, no more


def parse_answer(text: str) -> Fraction:
    """The number of a gold answer: `1,080`, `-3`, `$29.00`, `1/3`, `2 1/2` or a whole solution ending in `#### 18`.
    Raises ValueError if it is no plain number, or too long for one."""
    tail = str(text).rsplit("####", 1)[-1].strip()
    if len(tail) > MOST_DIGITS:
        raise ValueError(f"{tail[:20]!r}… is longer than {MOST_DIGITS:,} characters")
    cleaned = re.sub(r"[$€£]", "", tail.replace("\u2212", "-")).strip().removesuffix("%").removesuffix(".").rstrip()
    if found := FRACTION.fullmatch(cleaned):
        whole, over, under = (Fraction(found[part] or 0) for part in ("whole", "over", "under"))
        if under:
            return (whole + over / under) * (-1 if found["sign"] == "-" else 1)
    elif NUMBER.fullmatch(cleaned):
        return Fraction(re.sub(r"[\s,]", "", cleaned))
    raise ValueError(f"{tail[:60]!r} is no number")


def format_value(value: Fraction) -> str:
    """An exact decimal where there is one (`18`, `2.5`), else a fraction (`1/3`)."""
    if 10 ** value.denominator.bit_length() % value.denominator:  # it has other prime factors than 2 and 5
        return f"{value.numerator}/{value.denominator}"
    places = next(n for n in count() if 10**n % value.denominator == 0)
    digits = str(abs(value) * 10**places).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


class NumberTask(Task):
    """A task whose answers are numbers. By itself it has no items: it judges files of answers from anywhere."""

    def judge(self, item: Item, response: str, read: Reader) -> Judgement:
        """Right is a response whose number equals the gold one, exactly and however both are written."""
        found = read(response, item.question)
        return Judgement(found.value, found.rule, found.span, found.value == item.answer)

    def parse(self, text: str) -> Fraction:
        return parse_answer(text)

    def write(self, value: Fraction) -> str:
        return format_value(Fraction(value))


NUMBERS = NumberTask()
