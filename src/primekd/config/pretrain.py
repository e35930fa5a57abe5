"""The section `pretrain`: how the control of a study of text is made, before anything is distilled into it."""

from pydantic import Field

from primekd.config.section import Section
from primekd.config.student import TrainConfig


class PretrainConfig(Section):
    """A student from scratch learns the first `tokens` of the profile's text, optimised as `train` says; this is the
    control. Every arm goes on from its weights with the text behind, optimised as the profile's own `train` says.

    Whenever a training is validated, the first `choices` items of each of the profile's benchmarks are scored too.
    """

    tokens: int = Field(ge=2)
    train: TrainConfig
    choices: int = Field(0, ge=0)
