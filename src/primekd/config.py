"""Profiles: one YAML file a profile, read into frozen models that refuse what they do not know.

A field's meaning stands beside it; configs/*.yaml show complete examples.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from primekd.errors import UserError
from primekd.provenance import output_root, project_root, relative_name

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """Where items come from and how many are used.

    `gsm-symbolic` draws from the named templates of reasoning-gym; `hub` reads openai/gsm8k; `jsonl` reads
    `train_file` and `test_file` (fields `question` and `answer`, the gold solution ending in `#### 18`).
    Validation items are taken from the training side, after the training items; never from the test side.
    """

    source: Literal["gsm-symbolic", "hub", "jsonl"]
    train_items: Positive
    validation_items: Positive
    test_items: int = Field(ge=2)  # an interval over items needs two of them
    templates: tuple[int, ...] = ()
    difficulty: float = 1.0
    hub_dataset: str = "openai/gsm8k"
    hub_config: str = "main"
    revision: str | None = None
    train_file: str | None = None
    test_file: str | None = None

    @model_validator(mode="after")
    def complete(self) -> "DataConfig":
        if self.source == "gsm-symbolic" and not self.templates:
            raise ValueError("source gsm-symbolic needs templates: [numbers]")
        if self.source == "jsonl" and not (self.train_file and self.test_file):
            raise ValueError("source jsonl needs train_file and test_file")
        return self


class TeacherConfig(Section):
    """The teacher and the engine that serves it. `sampling_temperature` 0 is greedy decoding."""

    engine: Literal["transformers", "llamacpp"]
    model: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_size: Positive = 32
    sampling_temperature: float = Field(0.0, ge=0)
    context_tokens: Positive = 2048


class SignalsConfig(Section):
    """How teacher signals are kept. `auto` is `hidden` where the engine offers it, else `topk`.

    `top_k` and `topk_temperature` belong to the codec `topk`: it keeps the distribution at that
    temperature, and can serve no other.
    """

    codec: Literal["auto", "full", "hidden", "topk"] = "auto"
    top_k: Positive = 64
    topk_temperature: float = Field(1.0, gt=0)
    items_per_shard: Positive = 32


class LoraSettings(Section):
    """LoRA as peft takes it. `target_modules`: names, or the one word all-linear."""

    rank: Positive
    alpha: float = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class StudentConfig(Section):
    model: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    lora: LoraSettings


class TrainConfig(Section):
    """Optimisation. `batch_size` sequences a step of the optimiser, in micro-batches of `micro_batch_size`.

    The learning rate follows a cosine from its peak (after `warmup_ratio` of the steps) to zero at the end of the
    last epoch.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    epochs: Positive = 2
    batch_size: Positive = 8
    micro_batch_size: Positive = 8
    evaluations_per_epoch: Positive = 2
    checkpoints_per_epoch: Positive = 2

    @model_validator(mode="after")
    def divisible(self) -> "TrainConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self


class LossConfig(Section):
    """L = alpha * CE + (1 - alpha) * T^2 * D(teacher_T, student_T); `beta` belongs to the JSD alone."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    temperature: float = Field(1.0, gt=0)
    alpha: float = Field(0.5, ge=0, le=1)
    beta: float = Field(0.5, gt=0, lt=1)


class AssessConfig(Section):
    """Greedy decoding of the test items. The token limit is the profile's, the same for every model."""

    batch_size: Positive = 64
    bootstrap_samples: Positive = 2000


class PrepareConfig(Section):
    """How `primekd prepare-teacher` makes the profile's teacher out of a base model.

    A LoRA adapter is trained on `items` gold solutions (its own, shared with no student and no test), half
    of them under a priming text drawn at random, so that no strategy's prompt is foreign to the teacher. The
    adapter is merged and written as a GGUF file of type `quantization`.
    """

    base: str
    adapter: str
    output: str
    quantization: Literal["Q4_1", "Q5_1", "Q8_0"]
    items: Positive
    primed_fraction: float = Field(0.5, ge=0, le=1)
    lora: LoraSettings
    train: TrainConfig


class Profile(Section):
    """Everything that a run depends on, apart from the strategies and the seed of a student."""

    name: str
    description: str
    seed: int = 0
    max_new_tokens: Positive
    data: DataConfig
    teacher: TeacherConfig
    signals: SignalsConfig = SignalsConfig()
    student: StudentConfig
    train: TrainConfig
    loss: LossConfig
    assess: AssessConfig = AssessConfig()
    prepare: PrepareConfig | None = None

    @property
    def runs(self) -> Path:
        """runs/<profile>/: signals, checkpoints, adapters, executed notebooks."""
        return output_root() / "runs" / self.name

    @property
    def logs(self) -> Path:
        """logs/<profile>/: per-item logs, summaries, report."""
        return output_root() / "logs" / self.name

    def signals_folder(self, strategy: str, seed: int | None = None) -> Path:
        """Where the teacher's signals on the training items under one strategy lie."""
        return self.runs / "signals" / self._seeded(strategy, seed)

    def student_folder(self, strategy: str, seed: int | None = None) -> Path:
        """Where one student's adapter, loss curve and manifest lie."""
        return self.runs / "students" / self._seeded(strategy, seed)

    def _seeded(self, name: str, seed: int | None) -> str:
        # The profile's own seed has the plain name; further seeds lie beside it.
        return name if seed is None or seed == self.seed else f"{name}-seed{seed}"

    def resolved(self) -> dict[str, Any]:
        """The profile with every default filled in, as manifests keep it."""
        return self.model_dump(mode="json")


def explain_validation_error(error: ValidationError, path: Path) -> str:
    """One sentence for pydantic's findings: file, key, what is wrong."""
    findings = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"]) or "(top level)"
        if detail["type"] == "extra_forbidden":
            findings.append(f"unknown key '{key}'")
        elif detail["type"] == "missing":
            findings.append(f"key '{key}' is missing")
        else:
            findings.append(f"{key}: {detail['msg']}")
    return f"{relative_name(path)}: {'; '.join(findings)}. Mend the file and run again."


def profile_names() -> list[str]:
    """The profiles that this checkout has."""
    return sorted(p.stem for p in (project_root() / "configs").glob("*.yaml") if p.stem != "strategies")


def load_profile(name: str) -> Profile:
    """Reads configs/<name>.yaml, or the YAML file that `name` is a path of.

    Raises:
        UserError: no such profile, no valid YAML, an unknown key, a missing key or a value out of range.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else project_root() / "configs" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"No profile {name!r}: {relative_name(path)} is not there. Known: {', '.join(profile_names())}."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{relative_name(path)} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{relative_name(path)} holds no mapping of keys to values. Mend the file and run again.")
    try:
        return Profile(name=path.stem, **values)
    except ValidationError as error:
        raise UserError(explain_validation_error(error, path)) from error
    except TypeError as error:
        raise UserError(f"{relative_name(path)}: {error}. Mend the file and run again.") from error
