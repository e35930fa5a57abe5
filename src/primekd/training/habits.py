"""How text that a student wrote itself reads: what shows first when it collapses."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

FILE = "rollouts.csv"
REPEATS = 4  # tokens: a run of so many that stood in the response before is a repetition


@dataclass(frozen=True)
class HabitRow:
    """A step on own text: responses, tokens a response, the share that ended by itself, the share of its 4-grams that
    stood in it before, and the mean of -log q of its tokens, an estimate of the entropy in nats a token."""

    step: int
    responses: int
    written_tokens: float
    ended: float
    repeated: float
    entropy: float


COLUMNS = tuple(field.name for field in fields(HabitRow))


def habits(responses: Sequence[Sequence[int]], ended: Sequence[bool]) -> dict[str, float]:
    """What can be told from a step's responses alone: a HabitRow but for its step and its entropy."""
    runs = [[tuple(r[i : i + REPEATS]) for i in range(len(r) - REPEATS + 1)] for r in responses]
    again, total = sum(len(r) - len(set(r)) for r in runs), sum(map(len, runs))
    told = {"responses": len(responses), "written_tokens": sum(map(len, responses)) / len(responses)}
    return told | {"ended": sum(ended) / len(ended), "repeated": again / total if total else 0.0}
