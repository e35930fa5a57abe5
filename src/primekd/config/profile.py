"""A profile: one YAML file in configs/, read into frozen sections."""

from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from primekd.config.assess import AssessConfig, InsideConfig
from primekd.config.data import DataConfig
from primekd.config.hardware import HardwareConfig
from primekd.config.section import Positive, Section, Seed, is_name
from primekd.config.student import (
    LaunchConfig,
    LossConfig,
    OnPolicyConfig,
    PrepareConfig,
    PretrainConfig,
    StudentConfig,
    TrainConfig,
)
from primekd.config.teacher import SignalsConfig, TeacherConfig
from primekd.config.text import TextConfig
from primekd.foundation import UserError, findings_text, output_root, project_root, read_mapping, relative_name

TRANSFER, SAMPLES = "transfer", "samples"
ANSWER_SETS = (TRANSFER, SAMPLES)  # what models answer beside the test items; each has a folder in logs/<profile>/


class PlannedContrasts(Section):
    """Contrasts that are named before the run: `main` is the family of the study's own questions, and all of it.

    Each is [arm, reference], where the reference may be `control`. What is not named checks the design. Where `main` is
    empty, the arms' roles say which contrasts it has (statistics.families)."""

    main: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def told_apart(self) -> "PlannedContrasts":
        for place, (arm, reference) in enumerate(self.main):
            if arm in (reference, "control"):
                raise ValueError(f"main: [{arm}, {reference}] compares no arm with something else")
            if {arm, reference} in map(set, self.main[:place]):
                raise ValueError(f"main: {arm} and {reference} are compared twice")
        return self


class Profile(Section):
    """Everything that a run depends on, apart from the arms' own settings and the seed of a student."""

    name: str
    description: str
    seed: Seed = 0
    max_new_tokens: Positive
    data: DataConfig
    teacher: TeacherConfig
    signals: SignalsConfig = SignalsConfig()
    student: StudentConfig
    train: TrainConfig
    loss: LossConfig
    on_policy: OnPolicyConfig | None = None
    assess: AssessConfig = AssessConfig()
    inside: InsideConfig = InsideConfig()
    prepare: PrepareConfig | None = None
    text: TextConfig | None = None  # what a student from scratch is pretrained on
    pretrain: PretrainConfig | None = None
    hardware: HardwareConfig | None = None
    country: str = Field("USA", pattern="^[A-Z]{3}$")  # whose electricity turns energy into emissions (ISO 3166)
    launch: LaunchConfig = LaunchConfig()
    study: str = "priming"  # the recipe, a module of primekd.studies
    arms: tuple[str, ...] | None = None  # of configs/strategies.yaml; the published ones if left out
    planned: PlannedContrasts = PlannedContrasts()
    seeds: dict[str, tuple[Seed, ...]] = {}  # arm -> further seeds that it is trained under, beside `seed`
    _answer_set: str = PrivateAttr("")
    _published: bool = PrivateAttr(False)

    @model_validator(mode="after")
    def shared_out(self) -> "Profile":
        train, processes = self.train, self.launch.processes
        if train.batch_size % (train.micro_batch_size * processes):
            product = f"micro_batch_size * launch.processes ({train.micro_batch_size} * {processes})"
            raise ValueError(f"train.batch_size {train.batch_size} must be a multiple of {product}")
        if processes > 1 and len(train.rates) > 1:
            raise ValueError("train.learning_rate is one number where launch.processes is above 1: name the rate")
        if self.assess.few_shot == "instruction" and not self.teacher.instruction:
            raise ValueError("assess.few_shot: instruction needs a teacher.instruction")
        of_test = self.data.test_items
        if self.assess.rescored_items > self.assess.teacher_items:
            raise ValueError("assess.rescored_items is more than assess.teacher_items, of which they are the first")
        for key, most in (("few_shot", self.data.train_items), ("teacher_items", of_test), ("held_out_items", of_test)):
            if isinstance(asked := getattr(self.assess, key), int) and asked > most:
                raise ValueError(f"assess.{key} {asked} is more than the {most} items that there are")
        if self.assess.dtype and self.student.quantization:
            raise ValueError("assess.dtype is not for 4-bit students: they are scored as they were trained")
        shared = set(self.data.templates) & set(self.assess.transfer.templates if self.assess.transfer else ())
        if shared:
            raise ValueError(f"assess.transfer has template {min(shared)}, which is trained on: name others than data")
        scratch = self.student.from_scratch
        if self.text and scratch and self.text.block_tokens > scratch.max_position_embeddings:
            longest = f"the student's max_position_embeddings ({scratch.max_position_embeddings})"
            raise ValueError(f"text.block_tokens {self.text.block_tokens} is more than {longest}")
        return self

    @property
    def scoring_dtype(self) -> str:
        """The precision that students answer in: that of their training, unless `assess.dtype` names a finer one."""
        return self.assess.dtype or self.student.dtype

    @property
    def runs(self) -> Path:
        """runs/<profile>/: signals, checkpoints, adapters, executed notebooks, this machine's own logs."""
        return output_root() / "runs" / self.name

    @property
    def ledger(self) -> Path:
        """What was spent at an API, by all strategies and sessions: they share one cap."""
        return self.runs / "spending.json"

    @property
    def logs(self) -> Path:
        """runs/<profile>/logs/: this machine's per-item logs, summaries, report; of `of_published` its `published`."""
        return self.published if self._published else self.runs / "logs" / self._answer_set

    @property
    def published(self) -> Path:
        """logs/<profile>/ of the checkout: the same files as they were published; `primekd publish` writes them."""
        return project_root() / "logs" / self.name / self._answer_set

    @property
    def answer_set(self) -> str:
        """Which answers its `logs` hold: one of ANSWER_SETS, or '' for those to the test items."""
        return self._answer_set

    def answering(self, answer_set: str) -> "Profile":
        """The same profile as seen from one of ANSWER_SETS: `data` and `logs` are that set's."""
        second = answer_set == TRANSFER and self.assess.transfer
        return self._seen({"data": second} if second else {}, _answer_set=answer_set)

    def answer_sets(self) -> list["Profile"]:
        """`answering` of every set that the profile asks for."""
        wanted = {TRANSFER: self.assess.transfer, SAMPLES: self.assess.samples}
        return [self.answering(name) for name in ANSWER_SETS if wanted[name]]

    @property
    def asked_items(self) -> int:
        """How many answers an assessment asks of each model, about: of neutral prompts each is read once."""
        second = self.assess.transfer.test_items if self.assess.transfer else 0
        return self.data.test_items * (1 + self.assess.samples) + second + self.assess.forgetting_items

    def _seen(self, changes: dict[str, Any], **private: Any) -> "Profile":
        view = self.model_copy(update=changes)
        for name, value in private.items():
            setattr(view, name, value)
        return view

    def of_published(self) -> "Profile":
        """The same profile as whoever works on its published logs sees it: they are its `logs`."""
        return self._seen({}, _published=True)

    def of_machine(self) -> "Profile":
        """The same profile with this machine's `logs`."""
        return self._seen({}, _published=False)

    def signals_folder(self, strategy: str, seed: int | None = None) -> Path:
        """The teacher's rows of the training items; `student_folder`: adapter, loss curve and manifest."""
        return self.runs / "signals" / self._seeded(strategy, seed)

    def student_folder(self, strategy: str, seed: int | None = None) -> Path:
        return self.runs / "students" / self._seeded(strategy, seed)

    def _seeded(self, name: str, seed: int | None) -> str:
        # The profile's own seed has the plain name; further seeds lie beside it.
        return name if seed is None or seed == self.seed else f"{name}-seed{int(seed)}"

    def launched(self, processes: int | None, accelerate: str | None) -> "Profile":
        """The same profile with its training on other processes; None keeps what it says. Raises UserError if the batch
        does not divide among them, or a configuration without a second process."""
        given = {"processes": processes, "accelerate": accelerate}
        launch = self.launch.model_dump() | {key: value for key, value in given.items() if value is not None}
        try:
            return Profile(**self.model_dump(exclude={"launch"}), launch=launch)
        except ValidationError as error:
            said = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
            raise UserError(f"{processes or self.launch.processes} processes: {said}.") from error

    def resolved(self) -> dict[str, Any]:
        """The profile with every default filled in, as manifests keep it."""
        return self.model_dump(mode="json")


def explain_validation_error(error: ValidationError, path: Path) -> str:
    """One sentence for pydantic's findings: file, key, what is wrong."""
    return f"{relative_name(path)}: {findings_text(error, most=99)}. Mend the file and run again."


def profile_names() -> list[str]:
    return sorted(p.stem for p in (project_root() / "configs").glob("*.yaml") if p.stem != "strategies")


def profile_files(name: str) -> list[Path]:
    """The YAML file of a profile (configs/<name>.yaml, or the file that `name` is a path of) and those it extends.
    Raises UserError if a file is missing or is no profile, or profiles extend each other in a circle."""
    files: list[Path] = []
    while name:  # a path in `extends` is one from the file that says it
        beside = files[-1].parent if files else Path()
        path = beside / name if name.endswith((".yaml", ".yml")) else project_root() / "configs" / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(profile_names())
            raise UserError(f"No profile {name!r}: {relative_name(path)} is not there. Known: {known}.")
        if path.resolve() in map(Path.resolve, files):
            raise UserError(f"{relative_name(path)} extends itself. Mend the file and run again.")
        files.append(path)
        name = _read_profile(path).get("extends") or ""
    return files


def refuse_namesake(name: str) -> None:
    """Raises UserError if `name` is a path of a file that is called as another profile of configs/: both would have the
    same runs and logs, and set each other's results aside."""
    path = profile_files(name)[0]
    shipped = project_root() / "configs" / f"{path.stem}.yaml"
    if shipped.is_file() and not shipped.samefile(path):
        raise UserError(f"{relative_name(path)} is called as {relative_name(shipped)} is: give it a name of its own.")


def load_profile(name: str) -> Profile:
    """Reads configs/<name>.yaml, or the YAML file that `name` is a path of.

    `extends: pocket` at its top takes everything from another profile that the file does not say itself, section by
    section; null takes a value away. Raises UserError if there is none, or a key or value does not fit."""
    path, *_ = files = profile_files(name)
    values = reduce(_merged, map(_read_profile, reversed(files)), {})
    values.pop("extends", None)
    if not is_name(path.stem):
        raise UserError(
            f"{relative_name(path)}: a profile has its file's name, and {path.stem!r} cannot be one: rename the file, "
            "with letters, digits, dots, dashes and underscores, a letter or digit first."
        )
    try:
        return Profile(name=path.stem, **values)
    except ValidationError as error:
        raise UserError(explain_validation_error(error, path)) from error


def _read_profile(path: Path) -> dict[str, Any]:
    values = read_mapping(path)
    if odd := [key for key in values if not isinstance(key, str)]:
        raise UserError(f"{relative_name(path)}: {odd[0]!r} is no name of a key. Mend the file and run again.")
    if "name" in values:
        raise UserError(f"{relative_name(path)}: a profile has its file's name: leave the key 'name' out.")
    if not isinstance(values.get("extends") or "", str):
        raise UserError(f"{relative_name(path)}: extends names one profile, as in `extends: pocket`. Mend the file.")
    return values


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
        if value is None:
            del merged[key]
    return merged
