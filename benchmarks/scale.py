"""How much each part does: the measurement itself, and a quick one that shows that everything runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Sizes of all parts. A budget is seconds for one set of alternating rounds."""

    tokens: int = 1024
    vocabularies: tuple[int, ...] = (49_152, 128_256)
    rounds: int = 5
    loss_budget_s: float = 50
    growth_tokens: tuple[int, ...] = (128, 256, 512, 1024)
    growth_rounds: int = 2
    sequences: int = 8  # a training step
    training_rounds: int = 8
    training_budget_s: float = 100
    store_items: int = 8  # of the store that codecs are compared on; a whole row of logits is large
    store_rounds: int = 5
    growth_items: tuple[int, ...] = (64, 128, 256, 512)
    codec_tokens: int = 600
    capture_items: int = 32
    profile: str = "pocket"


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
    profile="ci",
)
