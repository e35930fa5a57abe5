"""The priming strategies: data in configs/strategies.yaml, read here and nowhere else."""

import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from primekd.config import explain_validation_error
from primekd.errors import UserError
from primekd.provenance import project_root, relative_name

CONTROL, TEACHER = "control", "teacher"  # what else is assessed: the student's base as it is, the unprimed teacher
BASE, FINE_TUNE = "base-KD", "base-fine-tune"  # what others are compared with


class Strategy(BaseModel):
    """One way to make a student.

    `name` is the folder's name, `title` the one used in the published tables. `priming` is the system
    message that the teacher alone sees (None: the model's own default). `teacher` is False for training
    on gold solutions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    teacher: bool
    priming: str | None = None


def split_seed(model: str) -> tuple[str, str]:
    """(strategy, further seed) of a model's name: ai-KD-seed1 is (ai-KD, 1); the profile's own seed has no name."""
    match = re.fullmatch(r"(.+)-seed(\d+)", model)
    return (match[1], match[2]) if match else (model, "")


def strategies_file() -> Path:
    """configs/strategies.yaml of this checkout."""
    return project_root() / "configs" / "strategies.yaml"


def load_strategies() -> dict[str, Strategy]:
    """All strategies in the order of the file, keyed by name.

    Raises:
        UserError: the file is no valid YAML or an entry has an unknown or missing key.
    """
    path = strategies_file()
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: Strategy(name=name, **row) for name, row in rows.items()}
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise UserError(f"{relative_name(path)} cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError(explain_validation_error(error, path)) from error


def get_strategy(name: str) -> Strategy:
    """One strategy by its folder's name.

    Raises:
        UserError: there is none of that name.
    """
    known = load_strategies()
    if name not in known:
        raise UserError(f"No strategy is called {name!r} in configs/strategies.yaml: choose from {', '.join(known)}.")
    return known[name]
