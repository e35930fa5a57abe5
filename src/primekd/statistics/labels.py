"""What is kept of a teacher's labels: how many were none, and what they cost (labels.csv)."""

from dataclasses import dataclass

FILE = "labels.csv"


@dataclass(frozen=True)
class LabelRow:
    """A student's labels. `asked`: sentences that were sent to the teacher for it; `unfit`: how many answers were no
    labels, `reasons` why, as `reason: count`; `right`: labels that are the gold sentence (nobody trained on
    that), None where they were gone.

    Means of all answers of the profile: `input_tokens`, `output_tokens`, and what 1,000 of them took: `seconds` and
    `usd`, None where the teacher is not behind an API.
    """

    model: str
    asked: int
    unfit: int
    reasons: str
    trained_on: int
    right: int | None
    input_tokens: float | None
    output_tokens: float | None
    seconds: float | None
    usd: float | None
