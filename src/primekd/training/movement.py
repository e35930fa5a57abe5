"""How far training can move a student at all: known from the settings, before anything is paid for."""

import math

from primekd.config import Profile, TrainConfig
from primekd.models.shapes import Shape

ADAM_STEP = 3.2  # largest change of one weight in units of the rate: (1 - 0.9) / sqrt(1 - 0.999)
SMALL = 0.01  # of a layer's output


def largest_movement(train: TrainConfig, items: int, weights: int) -> float:
    """A bound on the norm of what all steps add to the adapter of `weights` numbers; infinite for SGD without clipping,
    and for AdamW without any. A cosine has half its peak on average; SGD moves by rate times clipped gradient, 1 / (1 -
    momentum) times; AdamW moves every weight by about its rate."""
    rates = 0.5 * max(train.rates) * train.epochs * math.ceil(items / train.batch_size)
    if train.optimizer == "adamw":
        return rates * ADAM_STEP * math.sqrt(weights) if weights else math.inf
    return rates * train.max_grad_norm / (1 - train.momentum) if train.max_grad_norm else math.inf


def movement_warning(profile: Profile, shape: Shape) -> str | None:
    """Said where the largest possible update leaves every layer's output as it was, but for a hundredth. LoRA's B
    starts at zero and its A with variance 1 / (3 D), so an input of norm sqrt(D) changes a layer's output by at most
    alpha / rank * |B| * sqrt(rank / 3), itself of norm about sqrt(D)."""
    lora = profile.student.lora
    bound = largest_movement(profile.train, profile.data.train_items, shape.lora_weights(lora))
    share = lora.alpha / lora.rank * bound * math.sqrt(lora.rank / 3 / shape.hidden)
    if share >= SMALL:
        return None
    return (
        f"Training moves all LoRA weights together by {bound:.2g} at most (norm), and so a layer's output by about "
        f"{share:.1g} of itself: students will be the control. Raise train.learning_rate or the number of steps "
        "(smaller train.batch_size, more epochs), or switch clipping off (train.max_grad_norm: 0)."
    )
