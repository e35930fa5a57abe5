"""Manifests as they are read: one schema, so that whoever opens one finds what it names, in the types it should have.
Keys that the schema does not name may be there; they are kept as they are."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from primekd.foundation.errors import UserError, findings_text
from primekd.foundation.storage import hash_file, hash_json, read_json, relative_name

MANIFEST = "manifest.json"


def _inside(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise ValueError("no name of a file inside the folder")
    return name


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(_inside)]
Outputs = dict[FileName, Digest]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Facts = dict[str, Any]


class Part(BaseModel):
    """A part of a manifest. Absent facts are None; types are not converted."""

    model_config = ConfigDict(extra="allow", strict=True)


class Git(Part):
    commit: str | None = None
    dirty: bool | None = None


class Hardware(Part):
    cpu: str | None = None
    cores: Count | None = None
    memory_gib: Number | None = None
    gpus: list[str] | None = None
    system: str | None = None
    python: str | None = None


class Environment(Part):
    git: Git | None = None
    packages: dict[str, str | None] = {}
    hardware: Hardware = Hardware()


Planned = list[Annotated[list[str], Field(min_length=2, max_length=2)]]  # the contrasts that a profile names


class Code(Part):
    """The project's own modules and the packages that a result was computed with (code_identity.py)."""

    sha256: Digest
    packages: dict[str, str] = {}
    modules: dict[str, str] = {}


class Maker(Part):
    """The commit and the code that made something, and which parts of it."""

    git: Git | None = None
    code: Code | None = None
    parts: list[str] | None = None


class Measured(Part):
    """What a stage took."""

    start: str | None = None
    end: str | None = None
    seconds: Number | None = None
    energy_kwh: Number | None = None
    energy_method: str | None = None
    steps: Count | None = None
    items: Count | None = None
    tokens: Count | None = None
    bytes: Count | None = None
    response_tokens: Count | None = None
    resumed: bool | None = None


class Made(Measured):
    git: Git | None = None
    code: Code | None = None
    mixed: list[Maker] | None = None


class Codec(Part):
    name: str = ""
    error: str = ""


class Spec(Part):
    """What was asked of a capture."""

    codec: Codec = Codec()
    priming: str | None = None


class Store(Made):
    """A capture as those that used it remember it."""

    spec: Spec | None = None
    spec_sha256: Digest | None = None
    engine: Facts | None = None
    reconstruction: dict[str, float] | None = None
    sessions: list[Measured] | None = None
    shards: Facts | None = None


class Trained(Part):
    """The part of a student's inputs that says what it was trained on."""

    spec_sha256: Digest
    shards: Outputs


class Inputs(Part):
    strategy: str | None = None
    seed: int | None = None
    student: Facts | None = None
    answers: Facts | None = None
    signals: Trained | None = None
    planned: Planned = []


class Scored(Part):
    """Who made a model's answers and held-out rows."""

    answers: Maker | None = None
    held_out: Maker | None = None


class Student(Made, Scored):
    """A student as the logs remember it."""

    strategy: str | None = None
    inputs: Inputs = Inputs()
    outputs: Outputs
    signals: Store | None = None
    planned: Planned = []


class Adapted(Part):
    lora: Facts = {}


class Config(Part):
    """A resolved profile, as far as it is read back."""

    teacher: Facts = {}
    student: Adapted = Adapted()
    data: Facts = {}
    signals: Facts = {}
    train: Facts = {}
    loss: Facts = {}


class Manifest(Made):
    """What every stage writes beside its outputs, and what an assessment writes besides."""

    kind: str
    inputs: Inputs
    inputs_sha256: Digest
    outputs: Annotated[Outputs, Field(min_length=1)]
    environment: Environment
    config: Config = Config()
    models: dict[str, Student] = {}
    control: Scored | None = None
    few_shot: Annotated[Scored | None, Field(alias="control-few-shot")] = None
    teacher: Store | None = None
    signals: Store | None = None
    answers_sha256: dict[str, Digest] | None = None
    answered: Environment | None = None
    regraded: str | None = None


def checked(path: Path, schema: type[BaseModel], fix: str) -> dict[str, Any]:
    """A JSON file that fits a schema. Raises UserError, with place and `fix`, if it is absent or does not fit."""
    value = read_json(path, finite=True)
    if _is_deep(value):
        raise UserError(f"{relative_name(path)} is damaged: it is nested too deeply. {fix}")
    try:
        schema.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{relative_name(path)} is damaged: {findings_text(error, most=1)}. {fix}") from error
    return value


def _is_deep(value: Any, left: int = 40) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(_is_deep(part, left - 1) for part in parts)


def read_manifest(path: Path) -> dict[str, Any]:
    """A stage's manifest. Raises UserError if it is absent or does not fit the schema."""
    return checked(path, Manifest, "Bring it back (`git checkout`), or delete it and run its stage again.")


def is_current(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether `folder` was made from these inputs and has its manifest's bytes. Raises UserError if that is damaged."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return False
    manifest = read_manifest(path)
    return manifest["inputs_sha256"] == hash_json(inputs) and not altered_outputs(path, manifest)


def altered_outputs(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Outputs of a manifest, by name relative to its folder, that are missing or have other bytes."""
    named = ((path.parent / name, name, digest) for name, digest in manifest["outputs"].items())
    return [name for file, name, digest in named if not file.is_file() or hash_file(file) != digest]
