"""The sections `assess` and `inside`: how students are scored, and what `primekd analyse` looks at inside them."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from primekd.config.data import TransferConfig
from primekd.config.section import Positive, Section
from primekd.config.teacher import VllmConfig


class AssessConfig(Section):
    """Greedy decoding of the test items. The token limit is the profile's, the same for every model.

    `engine` generates the answers of control and students; held-out fit is measured by transformers in any case.
    `vllm` is how the engine vllm is started for them: GPUs and memory, no quantisation. `extractor` reads the
    value that decides in every table, beside the others. `dtype: float32` computes in float32 with the student's
    weights, as they were trained: answers hardly depend on batch shapes and kernels, and take a CPU 2.4 times as long.

    `few_shot`: the untrained student also answers behind so many solved training items (`control-few-shot`), behind the
    teacher's `instruction`, or as the published study's control: 50 tokens, asked for the answer alone (`answer-only`).

    `teacher_items`: so many test items are answered by the teacher under every priming too, and of each split so many
    primed responses are scored again without their priming (KL(primed || unprimed) on the same tokens): those of the
    first `rescored_items` alone where that is not 0, as a value a token needs few items and takes as long as an answer.

    `choose_by`: of the task choices, which choice a model is taken to choose: by the measure that
    lm-evaluation-harness goes by in each benchmark, or by a named one (assessment.likelihood).

    `held_out_items`: held-out fit is measured on so many test items, the first ones; on all of them if 0.

    All that follows is off unless a profile says more. `transfer` names a second set of items (as `data` does, without
    training items), which control and students answer under the same prompt, decoding and limit. `samples` answers to
    each test item are drawn at `sampling_temperature` beside the greedy one, each from a seed of its own. The control
    answers `forgetting_items` neutral prompts, and students are measured on that text: KL(student || control), loss."""

    engine: Literal["transformers", "vllm"] = "transformers"
    batch_size: Positive = 64
    bootstrap_samples: Positive = 2000
    teacher_items: int = Field(0, ge=0)
    rescored_items: int = Field(0, ge=0)
    held_out_items: int = Field(0, ge=0)
    choose_by: Literal["harness", "acc", "acc_norm", "acc_token_norm"] = "harness"
    few_shot: Annotated[int, Field(ge=0)] | Literal["instruction", "answer-only"] = 0
    extractor: Literal["published", "validated", "strict-match", "flexible-extract", "math-verify"] = "validated"
    vllm: VllmConfig | None = None
    dtype: Literal["float32"] | None = None
    transfer: TransferConfig | None = None
    samples: int = Field(0, ge=0, le=1000)
    sampling_temperature: float = Field(0.7, ge=0.01, le=2)
    forgetting_items: int = Field(0, ge=0)

    @field_validator("forgetting_items", "held_out_items")
    @classmethod
    def enough(cls, value: int, info: ValidationInfo) -> int:
        if value == 1:
            zero, of = ("off", "prompts") if info.field_name == "forgetting_items" else ("all", "items")
            raise ValueError(f"must be 0 ({zero}), or at least 2: an interval over {of} needs two of them")
        return value

    @model_validator(mode="after")
    def precision(self) -> "AssessConfig":
        if self.dtype and self.engine == "vllm":
            raise ValueError("dtype is for the engine transformers: vLLM serves students in their own precision")
        return self

    @field_validator("vllm")
    @classmethod
    def as_trained(cls, value: VllmConfig | None) -> VllmConfig | None:
        if value and (value.quantization or value.full_logprobs):
            raise ValueError("takes no quantization and no full_logprobs: students answer as they were trained")
        return value


class InsideConfig(Section):
    """Attention and confidence are measured on the first `items` test items (all of them if there are fewer), of the
    control and of the students of `arms` (all if left out). On the first `attributed_items` with two steps at least
    the control, the unprimed arm's student and the first planned arm's are asked which steps their answer hangs on,
    over `orders` random orders of them, forwards and backwards. `map_tokens` of one prompt are kept to look at."""

    items: int = Field(100, ge=2)
    arms: tuple[str, ...] | None = None
    attributed_items: int = Field(4, ge=0)
    orders: Positive = 4
    map_tokens: int = Field(40, ge=3, le=64)
