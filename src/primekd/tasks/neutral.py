"""Neutral prompts: everyday questions and requests that have nothing to do with any task here (neutral.txt).

What a student says to them beside what its base says shows what else its training changed.
"""

from importlib.resources import files

from primekd.foundation.errors import UserError
from primekd.tasks.protocol import Item

NEUTRAL = "neutral"  # the name of this split


def neutral_items(count: int) -> list[Item]:
    """The first `count` of the project's own prompts, whose kinds take turns. Nothing of them is graded.

    Raises:
        UserError: there are fewer.
    """
    prompts = files("primekd.tasks").joinpath("neutral.txt").read_text(encoding="utf-8").splitlines()
    if count > len(prompts):
        raise UserError(f"assess.forgetting_items is {count}, and there are {len(prompts)} neutral prompts: lower it.")
    return [Item(f"{NEUTRAL}-{number:03d}", prompt, "", "") for number, prompt in enumerate(prompts[:count], 1)]
