"""The section `on_policy`: a student that learns from text that it writes itself while it learns."""

from typing import Literal

from pydantic import Field, model_validator

from primekd.config.section import Positive, Section


class OnPolicyConfig(Section):
    """Text that the student writes with its weights of the moment, and the teacher scores; nothing flows back through
    the sampling.

    A batch is the student's own with probability `share` (lambda of GKD, arXiv 2306.13649), and the given text
    otherwise; the first `warmup_steps` steps are on given text alone, since a cold student collapses. On the student's
    text the loss is alpha * CE(given text) + (1 - alpha) * its objective on the written text.

    `objective`: divergence is the profile's divergence a token (GKD). minillm is the gradient of the reverse KL of
    whole responses (arXiv 2306.08543): the exact term of each step, and what a token does to all later ones, with
    `length_normalised` to their mean. Tokens may be drawn from a mixture with `teacher_share` of the teacher; they then
    have importance weights of single steps, and those further than `clip` from 1 count no more, as in PPO.

    `prompt_tokens`: of a block of text, how many of its first tokens are given; the student writes the rest.
    `max_new_tokens`: the profile's, if left out.
    """

    objective: Literal["divergence", "minillm"] = "divergence"
    share: float = Field(1.0, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    temperature: float = Field(1.0, ge=0.01, le=2)
    max_new_tokens: Positive | None = None
    prompt_tokens: Positive = 16
    teacher_share: float = Field(0.0, ge=0, lt=1)
    length_normalised: bool = True
    clip: float = Field(0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def known(self) -> "OnPolicyConfig":
        if self.objective == "divergence" and self.teacher_share:
            raise ValueError("teacher_share belongs to the objective minillm, whose weights correct for it")
        if self.objective == "minillm" and self.temperature != 1:
            raise ValueError("temperature is 1 for the objective minillm: it is an expectation over the student's text")
        return self
