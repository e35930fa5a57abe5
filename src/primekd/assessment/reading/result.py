"""What an extractor returns."""

from dataclasses import dataclass
from fractions import Fraction

from primekd.assessment.reading.numbers import Number
from primekd.tasks.numbers import format_value

NOT_FOUND = "-1"  # how a log writes that no answer was found
NONE = "none"  # the rule of an answer in which no rule found a value


@dataclass(frozen=True)
class Extraction:
    """What an answer was read as.

    `span` are the characters [start, end) of the answer that `value` was read from; both None where nothing was found.
    `truncated`: the answer ran into the limit of new tokens. `ambiguous`: the answer commits to several values, and the
    rule chose one of them or none.
    """

    value: Fraction | None
    rule: str
    span: tuple[int, int] | None = None
    truncated: bool = False
    ambiguous: bool = False

    @property
    def text(self) -> str:
        """The value as logs write it; -1 where no answer was found."""
        return NOT_FOUND if self.value is None else format_value(self.value)


def reading(number: Number, rule: str, ambiguous: bool = False) -> Extraction:
    """An extraction of one number of the answer."""
    return Extraction(number.value, rule, (number.start, number.end), ambiguous=ambiguous)


def nothing(ambiguous: bool = False) -> Extraction:
    """An extraction without a value."""
    return Extraction(None, NONE, ambiguous=ambiguous)
