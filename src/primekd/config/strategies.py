"""The priming strategies: data in configs/strategies.yaml, read here and nowhere else."""

import re
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from primekd.config import explain_validation_error
from primekd.config.section import is_name
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import project_root, relative_name

RESERVED = ("control", "teacher", "held-out")  # folders and logs of their own, beside those of strategies
CONTROL, TEACHER = "control", "teacher"  # what else is assessed: the student's base as it is, the unprimed teacher
BASE, FINE_TUNE = "base-KD", "base-fine-tune"  # what others are compared with


class Strategy(BaseModel):
    """One way to make a student.

    `name` is the folder's name, `title` the one used in the published tables. `priming` is the text that the teacher
    alone sees (None: the model's own default), read from `priming_file` where that is given: a path relative to the
    checkout, or absolute. `placement` goes before the profile's teacher.priming_placement. `teacher` is False for
    training on gold solutions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    teacher: bool
    priming: str | None = None
    priming_file: str | None = None
    placement: Literal["system", "user"] | None = None


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
        if odd := [name for name in map(str, rows) if not is_name(name) or name in RESERVED or ".old-" in name]:
            raise UserError(
                f"{relative_name(path)}: {odd[0]!r} cannot name a strategy: take letters, digits, dots, dashes and "
                f"underscores, a letter or digit first, and none of {', '.join(RESERVED)}."
            )
        strategies = {name: Strategy(name=name, **row) for name, row in rows.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise UserError(f"{relative_name(path)} cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError(explain_validation_error(error, path)) from error
    return {name: _with_text(strategy) for name, strategy in strategies.items()}


def _with_text(strategy: Strategy) -> Strategy:
    """The strategy with the text of its priming file, without the white space around it."""
    place = f"{relative_name(strategies_file())}: {strategy.name}"
    if strategy.priming_file is None:
        if strategy.placement and strategy.priming is None:
            raise UserError(f"{place} has a placement and no priming to place: add priming or priming_file.")
        return strategy
    if strategy.priming is not None:
        raise UserError(f"{place} has both priming and priming_file: leave one of them out.")
    file = project_root() / strategy.priming_file
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: priming_file {strategy.priming_file} is no readable UTF-8 text: mend it.") from error
    if not text:
        raise UserError(f"{place}: priming_file {strategy.priming_file} is empty: write the priming text into it.")
    return strategy.model_copy(update={"priming": text})


def get_strategy(name: str) -> Strategy:
    """One strategy by its folder's name.

    Raises:
        UserError: there is none of that name.
    """
    known = load_strategies()
    if name not in known:
        raise UserError(f"No strategy is called {name!r} in configs/strategies.yaml: choose from {', '.join(known)}.")
    return known[name]
