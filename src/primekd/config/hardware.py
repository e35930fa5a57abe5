"""The section `hardware`: what a run is planned for by `primekd plan`. Nothing that is computed depends on it."""

from pydantic import Field, model_validator

from primekd.config.section import Positive, Section


class ShapeConfig(Section):
    """The shape of a Llama-like decoder, as its config.json names it: for models that the plan does not know."""

    layers: Positive
    hidden: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    intermediate: Positive
    vocab: Positive
    tied: bool = False


class ExpectedConfig(Section):
    """Lengths in tokens that are expected of the prompts, mean and longest, and of the responses; `source` says why."""

    source: str
    prompt_tokens: Positive
    longest_prompt_tokens: Positive
    response_tokens: Positive


class RatesConfig(Section):
    """Response tokens a second of a whole stage, loading and scoring included; `source` says where they are from.

    `capture` and `assess` count tokens that the teacher, or a student, writes; `train` what is trained on, each epoch.
    """

    source: str
    capture: float = Field(gt=0)
    train: float = Field(gt=0)
    assess: float = Field(gt=0)


class HardwareConfig(Section):
    """The machines of a run. Left out, the plan is for the machine that it is made on.

    `gpu_memory_gib` is what the driver shows of one GPU, less than the number on its box. `disk_gib` is what is free
    for runs/ and models/. `bits_per_weight` belongs to a quantised teacher whose name does not say it."""

    nodes: Positive = 1
    gpus_per_node: int = Field(0, ge=0)
    gpu: str | None = None
    gpu_memory_gib: float | None = Field(None, gt=0)
    memory_gib: float = Field(gt=0)
    disk_gib: float | None = Field(None, gt=0)
    bits_per_weight: float | None = Field(None, gt=0)
    expected: ExpectedConfig | None = None
    rates: RatesConfig | None = None
    shapes: dict[str, ShapeConfig] = {}

    @model_validator(mode="after")
    def complete(self) -> "HardwareConfig":
        if self.gpus_per_node and not self.gpu_memory_gib:
            raise ValueError("gpus_per_node needs gpu_memory_gib")
        return self
