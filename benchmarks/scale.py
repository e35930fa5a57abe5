"""How much each part does: the measurement itself, and a quick one that shows that everything runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Sizes of all parts. A budget is seconds for one set of alternating rounds, another `_s` for a whole part."""

    tokens: int = 1024
    vocabularies: tuple[int, ...] = (49_152, 128_256)
    rounds: int = 5
    loss_budget_s: float = 25  # the loss and its reference, for each section
    losses_s: float = 215
    growth_tokens: tuple[int, ...] = (128, 256, 512, 1024)
    growth_rounds: int = 2
    sequences: int = 8  # a training step
    training_rounds: int = 6
    training_budget_s: float = 45
    store_items: int = 8  # of the store that codecs are compared on; a whole row of logits is large
    store_rounds: int = 5
    growth_items: tuple[int, ...] = (64, 128, 256, 512)
    codec_tokens: int = 600
    capture_items: int = 32
    student_items: int = 64  # of the students that codecs are judged by
    student_held_out: int = 16
    student_seeds: int = 3
    students_s: float = 500
    profile: str = "pocket-plain"


FULL = Scale()
QUICK = Scale(
    tokens=32,
    vocabularies=(512, 1024),
    rounds=2,
    growth_tokens=(16, 32),
    growth_rounds=2,
    sequences=2,
    training_rounds=2,
    store_items=2,
    store_rounds=2,
    growth_items=(4, 8),
    codec_tokens=20,
    capture_items=4,
    student_items=2,
    student_held_out=2,
    student_seeds=2,
    profile="ci",
)
