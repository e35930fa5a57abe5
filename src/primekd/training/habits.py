"""How text that a student wrote itself reads: what shows first when it collapses."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

FILE = "rollouts.csv"
REPEATS = 4  # tokens: a run of so many that stood in the response before is a repetition


@dataclass(frozen=True)
class HabitRow:
    """A step on own text: responses, tokens a response, the share that ended by itself, the share of its 4-grams that
    stood in it before, and the mean entropy, in nats, of the student's distributions at its tokens."""

    step: int
    responses: int
    written_tokens: float
    ended: float
    repeated: float
    entropy: float


COLUMNS = tuple(field.name for field in fields(HabitRow))


def habits(responses: Sequence[Sequence[int]], ended: Sequence[bool], entropies: Sequence[float]) -> dict[str, float]:
    """A HabitRow but for its step. `entropies`: at every token of the step's responses."""
    runs = [[tuple(r[i : i + REPEATS]) for i in range(len(r) - REPEATS + 1)] for r in responses]
    again, total = sum(len(r) - len(set(r)) for r in runs), sum(map(len, runs))
    told = {"responses": len(responses), "written_tokens": sum(map(len, responses)) / len(responses)}
    told |= {"ended": sum(ended) / len(ended), "repeated": again / total if total else 0.0}
    return told | {"entropy": sum(entropies) / len(entropies)}
