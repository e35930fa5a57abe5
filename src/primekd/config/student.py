"""The sections that make and score a student: `student`, `train`, `launch`, `pretrain`, `loss`, `assess`; `prepare` for
a taught teacher."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_serializer, model_validator

from primekd.config.data import TransferConfig
from primekd.config.section import Positive, Section, Speaker
from primekd.config.teacher import VllmConfig


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


class StudentConfig(Speaker):
    """The student before training: a pretrained `model` that learns a `lora` adapter, or an architecture all of whose
    weights are trained `from_scratch`, with the tokenizer and chat template of another model.

    `quantization: nf4` loads frozen weights in 4 bits (QLoRA, arXiv 2305.14314), with bitsandbytes. Whatever is trained
    stays in float32; `dtype` is what a pretrained model is loaded in, and what products run in. `layers_of`: a student
    from scratch begins with weights of that model: embeddings, head, norm, and layers spread evenly over its own.
    """

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

    @model_serializer(mode="wrap")
    def without_other_kind(self, handler: Any) -> dict[str, Any]:
        """Keys of the other kind are left out: identities from before there were two stay what they were."""
        kinds = ("model", "lora", "from_scratch", "tokenizer", "layers_of")
        return {key: value for key, value in handler(self).items() if value is not None or key not in kinds}


Rate = Annotated[float, Field(ge=1e-12, le=10)]
Rates = Annotated[tuple[Rate, ...], Field(min_length=2)]


class TrainConfig(Section):
    """Optimisation. `batch_size` sequences a step of the optimiser, in micro-batches of `micro_batch_size`.

    Less of a batch is padding where its sequences are of about one length: those of `length_window` steps, in the
    order of a random permutation, are dealt to these steps by length. 1 leaves the permutation as it is.

    The learning rate follows a cosine from its peak (after `warmup_steps`, or `warmup_ratio` of all steps) to zero at
    the end of the last epoch; `schedule: climbing` has the fault of a cosine whose half period is one epoch, so that it
    climbs in the next. Without `shuffle` every epoch reads the examples in their order. Gradients are clipped to
    `max_grad_norm`; 0 switches that off. Where `learning_rate` is a list, a student is trained under each rate and the
    one with the lowest validation loss is kept.
    """

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

    @model_serializer(mode="wrap")
    def without_deviations(self, handler: Any) -> dict[str, Any]:
        """Left out where they are as they should be: identities from before them stay what they were."""
        plain = {"schedule": "cosine", "shuffle": True, "warmup_steps": 0}
        return {key: value for key, value in handler(self).items() if key not in plain or value != plain[key]}

    @property
    def rates(self) -> tuple[float, ...]:
        """All learning rates."""
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
    """`processes` in all, one a GPU, on which a student is trained; above 1 they are started by `accelerate launch`. No
    adapter's identity depends on it.

    `accelerate` is its configuration file, relative to the checkout; left out, configs/accelerate/multi-gpu.yaml where
    there is a GPU, else cpu.yaml. `train.batch_size` stays the number of sequences a step, over all processes.
    """

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

    Whenever a training is validated, the first `choices` items of each of the profile's benchmarks are scored too.
    """

    tokens: int = Field(ge=2)
    train: TrainConfig
    choices: int = Field(0, ge=0)


class LossConfig(Section):
    """L = alpha * CE + (1 - alpha) * T^2 * D(teacher_T, student_T); `beta` is the JSD's, and of the skewed KLs
    the share of the first distribution in the second.

    `divergence_scale` multiplies D. Code that sums D over the places of a sequence, and takes the mean over sequences
    alone (`batchmean` of a 3-D tensor), has as many times the stated weight as a sequence has places.

    CE is taken on the teacher's response (`labels: response`), or on the item's gold solution (`labels: gold`), a
    sequence of its own beside the response: then each term is a mean over its own tokens.
    """

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skewed_forward_kl", "skewed_reverse_kl"] = "forward_kl"
    temperature: float = Field(1.0, ge=0.01, le=100)
    alpha: float = Field(0.5, ge=0, le=1)
    beta: float = Field(0.5, gt=0, lt=1)
    labels: Literal["response", "gold"] = "response"
    divergence_scale: float = Field(1.0, gt=0, le=1e5)

    @model_serializer(mode="wrap")
    def without_scale(self, handler: Any) -> dict[str, Any]:
        """Where nothing is scaled the key is left out: identities from before it stay what they were."""
        return {key: value for key, value in handler(self).items() if key != "divergence_scale" or value != 1}

    @model_validator(mode="after")
    def both_terms(self) -> "LossConfig":
        if self.labels == "gold" and self.alpha in (0, 1):
            raise ValueError("labels: gold needs an alpha between 0 and 1: at 0 it is not read, at 1 nothing else is")
        return self


class AssessConfig(Section):
    """Greedy decoding of the test items. The token limit is the profile's, the same for every model.

    `engine` generates the answers of control and students; held-out fit is measured by transformers in any case.
    `vllm` is how the engine vllm is started for them: GPUs and memory, no quantisation. `extractor` reads the
    value that decides in every table; the others are reported beside it. `dtype: float32` computes in float32 with the
    student's weights, as they were trained: answers then hardly depend on batch shapes and kernels, and take 2.4 times
    as long on a CPU.

    `few_shot`: the untrained student also answers behind so many solved training items (`control-few-shot`), or behind
    the teacher's `instruction`; or, as in the published study's control, with 50 new tokens and in front of the words
    that ask for the answer alone (`answer-only`).

    `teacher_items`: so many test items are answered by the teacher under every priming too, and of each split so many
    primed responses are scored again without their priming (KL(primed || unprimed) on the same tokens): those of the
    first `rescored_items` alone where that is not 0. A value a token needs few items, and a response takes as long to
    score as to write.

    `choose_by`: of the task choices, which choice a model is taken to choose (assessment.likelihood).

    `held_out_items`: held-out fit is measured on so many test items, the first ones; on all of them if 0. A value a
    token needs fewer items than an accuracy does, and takes as long as an answer.

    All that follows is off unless a profile says more. `transfer` names a second set of items (as `data` does, without
    training items), which control and students answer under the same prompt, decoding and limit. `samples` answers to
    each test item are drawn at `sampling_temperature` beside the greedy one, each from a seed of its own.
    `forgetting_items` of the project's neutral prompts are answered by the control, and students are measured on that
    text: KL(student || control), and the text's loss.
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    batch_size: Positive = 64
    bootstrap_samples: Positive = 2000
    teacher_items: int = Field(0, ge=0)
    rescored_items: int = Field(0, ge=0)
    held_out_items: int = Field(0, ge=0)
    choose_by: Literal["acc", "acc_norm", "acc_token_norm"] = "acc_norm"
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


class PrepareConfig(Section):
    """How `primekd prepare-teacher` makes the profile's teacher out of a base model.

    A LoRA adapter is trained on `items` gold solutions (its own, shared with no student and no test), half
    of them under a priming text drawn at random, so that no strategy's prompt is foreign to the teacher. The
    adapter is merged and written as a GGUF file of type `quantization`.

    `solutions` plants an effect: arm -> the form of the gold solution (tasks/forms.py) that is taught under its prompt.
    Arms that it does not name are taught what the baseline is, or the solution itself; it brings in the primings of the
    extra arms that it names.
    """

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

    @model_serializer(mode="wrap")
    def without_plan(self, handler: Any) -> dict[str, Any]:
        """Where nothing is planted the key is left out: identities from before it stay what they were."""
        return {key: value for key, value in handler(self).items() if key != "solutions" or value}
