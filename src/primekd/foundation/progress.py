"""Progress of long stages: a bar for whoever is looking, and a small file that `primekd status` and `run` read."""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError
from tqdm import tqdm

from primekd.foundation.errors import UserError, findings_text
from primekd.foundation.outside import clean
from primekd.foundation.provenance import now, relative_name, write_json

_TIME = TypeAdapter(AwareDatetime)


def _as_time(text: str) -> str:
    _TIME.validate_python(text)
    return text


Time = Annotated[str, AfterValidator(_as_time)]
Units = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
Word = Annotated[str, AfterValidator(clean)]


class HasRuns(Protocol):
    """What a profile is here: a place for its runs."""

    @property
    def runs(self) -> Path: ...


class StageState(BaseModel):
    """What the file of one stage holds. `host` and `pid` are those of the process that works on it."""

    stage: Word
    done: Units
    total: Units
    unit: Word
    started: Time
    updated: Time
    state: Literal["running", "done", "stopped"]
    host: str = ""
    pid: int = Field(0, strict=True, ge=0, lt=2**31)


def read_state(path: Path) -> StageState | None:
    """What a stage says of itself; None where there is no such file, or no more.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return StageState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        said = findings_text(error) if isinstance(error, ValidationError) else error.strerror
        raise UserError(f"{relative_name(path)} says nothing of a stage ({said}): delete it.") from error


def progress_folder(profile: HasRuns) -> Path:
    """runs/<profile>/progress/, one JSON file a stage."""
    return profile.runs / "progress"


def progress_path(profile: HasRuns, stage: str) -> Path:
    """The file of one stage."""
    return progress_folder(profile) / f"{stage.replace('/', '-')}.json"


def quiet_libraries() -> None:
    """Keeps library chatter and bars of no interest off the screen, unless the user has set them."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)


def in_notebook() -> bool:
    """Whether this runs in a notebook's kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


class NotebookBar:
    """A line in a notebook that changes in place; a saved copy keeps its last state, not each of them."""

    def __init__(self, total: int, unit: str, desc: str):
        from IPython.display import display

        self.total, self.unit, self.desc, self.n = total, unit, desc, 0
        self._start, self._shown = time.monotonic(), 0.0
        self._handle = display(self._said(), raw=True, display_id=True)

    def _said(self) -> dict[str, str]:
        took = time.monotonic() - self._start
        left = took / self.n * (self.total - self.n) if self.n else 0
        said = f"{self.desc}: {self.n} of {self.total} {self.unit}s, {tqdm.format_interval(took)}"
        return {"text/plain": said + (f", about {tqdm.format_interval(left)} left" if left else "")}

    def update(self, count: int) -> None:
        self.n += count
        if time.monotonic() - self._shown > 0.5:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._handle.update(self._said(), raw=True)

    def close(self) -> None:
        self._show()


class Progress:
    """Counts `total` units of one stage. Use as a context manager and call `advance`.

    The bar is plain text (tqdm.notebook's widget is saved as 0 % in executed notebooks).
    """

    def __init__(self, profile: HasRuns, stage: str, total: int, unit: str):
        self.path = progress_path(profile, stage)
        self.state = {"stage": stage, "done": 0, "total": total, "unit": unit, "started": now(), "state": "running"}
        self.state |= {"host": socket.gethostname(), "pid": os.getpid()}  # a stage that is killed cannot say so itself
        interval = 0.5 if sys.stderr.isatty() else 10
        options = {"total": total, "unit": unit, "desc": stage}
        self._bar = (
            NotebookBar(**options)
            if in_notebook()
            else tqdm(**options, mininterval=interval, file=sys.stderr, ascii=True)
        )
        self._written = 0.0

    def __enter__(self) -> "Progress":
        self._write()
        return self

    def advance(self, count: int = 1) -> None:
        """Marks `count` more units as done."""
        self.state["done"] += count
        self._bar.update(count)
        if time.monotonic() - self._written > 1:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        write_json(self.path, self.state | {"updated": now()})

    def __exit__(self, kind: object, *rest: object) -> None:
        self._bar.close()
        self.state["state"] = "done" if kind is None else "stopped"
        self._write()
