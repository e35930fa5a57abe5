"""Forms of a gold solution that a teacher can be taught. All of them end in the solution's `#### answer` line."""

import re
from collections.abc import Callable
from random import Random

OPENINGS = (("", "First: ", "To begin: "), ("", "Then: ", "Next: "))  # of the first step, of every later one
EQUALS = (" = ", "=", " equals ")
CLOSINGS = ("", ".", ";")
RESULT = re.compile(r"=\s*[^\d\s=-]?(-?[\d.,]*\d)[^=\d]*$")  # the number behind a step's last equals sign


def _parts(solution: str) -> tuple[list[str], str]:
    """The lines of a solution before its answer line, and that line."""
    *steps, answer = (line.strip() for line in solution.strip().split("\n"))
    return steps, answer


def varied(solution: str, random: Random) -> str:
    """Each step in a wording drawn at random, so that a teacher who was taught many is unsure which comes."""
    steps, answer = _parts(solution)
    return "\n".join([*(_worded(step, bool(i), random) for i, step in enumerate(steps)), answer])


def explained(solution: str, random: Random) -> str:
    """As `varied`, and longer: a sentence before the steps, and one behind each that says its result again."""
    steps, answer = _parts(solution)
    lines = ["Let us work through this one step at a time."]
    for i, step in enumerate(steps):
        result = RESULT.search(step)
        lines += [_worded(step, bool(i), random), *([f"This step gives {result[1]}."] if result else [])]
    return "\n".join([*lines, answer])


def socratic(solution: str, random: Random) -> str:
    """A question in front of each step, as GSM8K's socratic solutions have one, if the same ones each time."""
    steps, answer = _parts(solution)
    asked = ["What has to be found first?", *["What follows from that?"] * len(steps)]
    return "\n".join([*(f"{question} ** {step}" for question, step in zip(asked, steps, strict=False)), answer])


def _worded(step: str, later: bool, random: Random) -> str:
    step = re.sub(r"\s*=\s*", random.choice(EQUALS), step.rstrip(" .;"))
    return random.choice(OPENINGS[later]) + step + random.choice(CLOSINGS)


FORMS: dict[str, Callable[[str, Random], str]] = {
    "gold": lambda solution, random: solution,
    "answer": lambda solution, random: _parts(solution)[1],  # no calculation that a student could learn
    "varied": varied,
    "explained": explained,
}
