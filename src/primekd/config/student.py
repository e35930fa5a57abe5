"""The sections that make a student (`student`, `train`, `launch`, `pretrain`, `loss`, `on_policy`) or teach a teacher
(`prepare`)."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from primekd.config.section import Positive, Section, Speaker, Younger


class LoraSettings(Section):
    """LoRA as peft takes it. `target_modules`: names, or the one word all-linear."""

    rank: Positive
    alpha: float = Field(ge=1e-3, le=1e5)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Architecture(Section):
    """A decoder without weights, in the words of transformers' configurations; what is not said is the architecture's.

    Its vocabulary is the tokenizer's. `model_type` is transformers' name of the architecture, such as llama or olmo2.
    """

    model_type: str
    hidden_size: Positive
    intermediate_size: Positive | None = None
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    max_position_embeddings: Positive = 1024
    tie_word_embeddings: bool = True
    initializer_range: float | None = Field(None, gt=0, le=1)


class StudentConfig(Speaker, Younger):
    """The student before training: a pretrained `model` that learns a `lora` adapter, or an architecture all of whose
    weights are trained `from_scratch`, with the tokenizer and chat template of another model.

    `quantization: nf4` loads frozen weights in 4 bits (QLoRA, arXiv 2305.14314), with bitsandbytes. Whatever is trained
    stays in float32; `dtype` is what a pretrained model is loaded in, and what products run in. `layers_of`: a student
    from scratch begins with weights of that model: embeddings, head, norm, and layers spread evenly over its own."""

    younger = ("model", "lora", "from_scratch", "tokenizer", "layers_of")  # of one kind, and not of the other
    model: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantization: Literal["nf4"] | None = None
    lora: LoraSettings | None = None
    from_scratch: Architecture | None = None
    tokenizer: str | None = None
    layers_of: str | None = None

    @model_validator(mode="after")
    def one_kind(self) -> "StudentConfig":
        pretrained = {"model": self.model, "lora": self.lora}
        own = {"from_scratch": self.from_scratch, "tokenizer": self.tokenizer}
        wanted, other = (own, pretrained) if self.from_scratch else (pretrained, own)
        if missing := [name for name, value in wanted.items() if value is None]:
            raise ValueError(f"needs {missing[0]}: a student has model and lora, or from_scratch and tokenizer")
        extra = "quantization" if self.from_scratch else "layers_of"
        other |= {extra: getattr(self, extra)}
        if given := [name for name, value in other.items() if value is not None]:
            raise ValueError(f"{given[0]} is not for {'a student from scratch' if self.from_scratch else 'LoRA'}")
        return self

    @property
    def speaker(self) -> str:
        return self.tokenizer or self.model


Rate = Annotated[float, Field(ge=1e-12, le=10)]
Rates = Annotated[tuple[Rate, ...], Field(min_length=2)]


class TrainConfig(Younger):
    """Optimisation. `batch_size` sequences a step of the optimiser, in micro-batches of `micro_batch_size`.

    Less of a batch is padding where its sequences are of about one length: those of `length_window` steps, in the
    order of a random permutation, are dealt to these steps by length. 1 leaves the permutation as it is.

    The learning rate follows a cosine from its peak (after `warmup_steps`, or `warmup_ratio` of all steps) to zero at
    the end of the last epoch; `schedule: climbing` has the fault of a cosine whose half period is one epoch, so that it
    climbs in the next. Without `shuffle` every epoch reads the examples in their order. Gradients are clipped to
    `max_grad_norm`, if that is not 0. Of a list of rates the student with the lowest validation loss is kept."""

    younger = ("schedule", "shuffle", "warmup_steps")
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[
        Annotated[Rate, Tag("number")] | Annotated[Rates, Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "number"),
    ]
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, le=10)
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    epochs: Positive = 2
    batch_size: Positive = 8
    micro_batch_size: Positive = 8
    length_window: Positive = 4
    evaluations_per_epoch: Positive = 2
    checkpoints_per_epoch: Positive = 2
    schedule: Literal["cosine", "climbing"] = "cosine"
    shuffle: bool = True

    @property
    def rates(self) -> tuple[float, ...]:
        return self.learning_rate if isinstance(self.learning_rate, tuple) else (self.learning_rate,)

    @model_validator(mode="after")
    def divisible(self) -> "TrainConfig":
        if len({f"{rate:g}" for rate in self.rates}) < len(self.rates):
            raise ValueError("learning_rate names one rate twice")
        if self.warmup_ratio and self.warmup_steps:
            raise ValueError("name one of warmup_ratio and warmup_steps")
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self


class LaunchConfig(Section):
    """`processes` in all, one a GPU, that train a student, above 1 by `accelerate launch`; no identity depends on it.

    `accelerate` is its configuration file, relative to the checkout; left out, configs/accelerate/multi-gpu.yaml where
    there is a GPU, else cpu.yaml. `train.batch_size` stays the number of sequences a step, over all processes."""

    processes: Positive = 1
    accelerate: str | None = None

    @model_validator(mode="after")
    def used(self) -> "LaunchConfig":
        if self.accelerate and self.processes == 1:
            raise ValueError("accelerate is read with two processes or more: add processes")
        return self


class PretrainConfig(Section):
    """A student from scratch learns the first `tokens` of the profile's text, optimised as `train` says; this is the
    control. Every arm goes on from its weights with the text behind, optimised as the profile's own `train` says.

    Whenever a training is validated, the first `choices` items of each of the profile's benchmarks are scored too."""

    tokens: int = Field(ge=2)
    train: TrainConfig
    choices: int = Field(0, ge=0)


class LossConfig(Younger):
    """L = alpha * CE + (1 - alpha) * T^2 * D(teacher_T, student_T); `beta` is the JSD's, and of the skewed KLs
    the share of the first distribution in the second.

    `divergence_scale` multiplies D. Code that sums D over the places of a sequence, and takes the mean over sequences
    alone (`batchmean` of a 3-D tensor), has as many times the stated weight as a sequence has places.

    CE is taken on the teacher's response (`labels: response`), or on the item's gold solution (`labels: gold`), a
    sequence of its own beside the response: then each term is a mean over its own tokens."""

    younger = ("divergence_scale",)
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skewed_forward_kl", "skewed_reverse_kl"] = "forward_kl"
    temperature: float = Field(1.0, ge=0.01, le=100)
    alpha: float = Field(0.5, ge=0, le=1)
    beta: float = Field(0.5, gt=0, lt=1)
    labels: Literal["response", "gold"] = "response"
    divergence_scale: float = Field(1.0, gt=0, le=1e5)

    @model_validator(mode="after")
    def both_terms(self) -> "LossConfig":
        if self.labels == "gold" and self.alpha in (0, 1):
            raise ValueError("labels: gold needs an alpha between 0 and 1: at 0 it is not read, at 1 nothing else is")
        return self


class OnPolicyConfig(Section):
    """Text that the student writes as it is now, and the teacher scores; nothing flows back through the sampling.

    A batch is the student's own with probability `share` (lambda of GKD, arXiv 2306.13649), and the given text
    otherwise; the first `warmup_steps` steps are on given text alone, since a cold student collapses. On the student's
    text the loss is alpha * CE(given text) + (1 - alpha) * its objective on the written text.

    `objective`: divergence is the profile's divergence a token (GKD). minillm is the gradient of the reverse KL of
    whole responses (arXiv 2306.08543): the exact term of each step, and what a token does to all later ones, with
    `length_normalised` to their mean. Tokens may be drawn from a mixture with `teacher_share` of the teacher; they then
    have importance weights of single steps, and those further than `clip` from 1 count no more, as in PPO.

    `prompt_tokens`: so many of a block's first tokens are given. `max_new_tokens`: the profile's, if left out."""

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


class PrepareConfig(Younger):
    """How `primekd prepare-teacher` makes the profile's teacher out of a base model.

    A LoRA adapter is trained on `items` gold solutions (its own, shared with no student and no test), half
    of them under a priming text drawn at random, so that no strategy's prompt is foreign to the teacher. The
    adapter is merged and written as a GGUF file of type `quantization`.

    `solutions` plants an effect: arm -> the form of the gold solution (tasks/forms.py) that is taught under its prompt.
    Other arms are taught what the baseline is, or the solution itself; it brings in the primings of extra arms."""

    younger = ("solutions",)
    base: str
    adapter: str
    output: str
    quantization: Literal["Q4_1", "Q5_1", "Q8_0"]
    items: Positive
    primed_fraction: float = Field(0.5, ge=0, le=1)
    solutions: dict[str, Literal["gold", "answer", "varied", "explained"]] = {}
    lora: LoraSettings
    train: TrainConfig

    @field_validator("train")
    @classmethod
    def one_rate(cls, value: TrainConfig) -> TrainConfig:
        if len(value.rates) > 1:
            raise ValueError("learning_rate is one number here: a teacher is not tuned")
        return value
