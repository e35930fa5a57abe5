"""Progress of long stages: a bar for whoever is looking, and a small file that `primekd status` and `run` read."""

import html
import io
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, TypeAdapter
from tqdm import tqdm

from primekd.foundation.manifests import checked
from primekd.foundation.outside import clean
from primekd.foundation.storage import now, write_json

_TIME = TypeAdapter(AwareDatetime)
Time = Annotated[str, AfterValidator(lambda text: text if _TIME.validate_python(text) else "")]
Units = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
Word = Annotated[str, AfterValidator(clean)]
Profile = Any  # of config, which nothing here may import: what has runs, data, teacher, assess and student


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
    """What a stage says of itself; None where there is no such file. Raises UserError if it is damaged."""
    return StageState(**checked(path, StageState, "Delete it.")) if path.is_file() else None


def progress_folder(profile: Profile) -> Path:
    """runs/<profile>/progress/, one JSON file a stage."""
    return profile.runs / "progress"


def progress_path(profile: Profile, stage: str) -> Path:
    return progress_folder(profile) / f"{stage.replace('/', '-')}.json"


def quiet_libraries() -> None:
    """Keeps library chatter and bars off the screen, unless the user has set them; before their import."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")


def open_bar(**how: Any) -> tqdm:
    """A bar on stderr, plain text; in a notebook one line that is updated in place. `how`: tqdm's total, unit, desc…"""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        return NotebookBar(**how)
    return tqdm(mininterval=0.5 if sys.stderr.isatty() else 10, file=sys.stderr, ascii=True, **how)


class NotebookBar(tqdm):
    """A bar as a notebook's output, of which a saved copy holds the last state alone (tqdm.notebook's is saved as 0 %).
    Where it runs unattended, PRIMEKD_STDERR is a path to stderr of who runs it, which shows the bar too."""

    monitor_interval = 0  # no thread that draws

    def __init__(self, **how: Any):
        self._handle, self._said = None, 0.0
        try:
            outside = open(os.environ["PRIMEKD_STDERR"], "a", encoding="utf-8")  # noqa: SIM115 - closed with the bar
        except (KeyError, OSError):
            outside = io.StringIO()
        super().__init__(mininterval=0.5, file=outside, ascii=True, **how)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Shows the state; outside, every ten seconds where that is no terminal."""
        from IPython.display import display

        if self.fp.isatty() or self.disable or time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            super().display(msg, pos)
        text = bar_text(self.format_dict, ended=self.disable)
        meter = "" if self.disable or not self.total else f'<progress max="{self.total}" value="{self.n}"></progress> '
        data = {"text/plain": text, "text/html": f"<div>{meter}{html.escape(text)}</div>"}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def close(self) -> None:
        """Shows the last state. May be called again."""
        super().close()
        self.fp.close()


def bar_text(state: Mapping[str, Any], ended: bool) -> str:
    """tqdm's state in words: `capture base-KD: 64 of 128 items, 0:41, about 0:41 left`."""
    n, total, elapsed = state["n"], state["total"], state["elapsed"]
    size = tqdm.format_sizeof if state["unit_scale"] else str
    unit = state["unit"] if state["unit_scale"] else f" {state['unit']}s"
    text = f"{state['prefix']}: {size(n)}{f' of {size(total)}' if total else ''}{unit}, {clock(elapsed)}"
    rate = (n - state["initial"]) / elapsed if elapsed else 0
    return text if ended or not total or not rate else f"{text}, about {clock(max(0, total - n) / rate)} left"


def clock(seconds: float) -> str:
    return tqdm.format_interval(seconds).removeprefix("0")


class Progress:
    """Counts `total` units of one stage. Use as a context manager and call `advance`."""

    def __init__(self, profile: Profile, stage: str, total: int, unit: str):
        self.path = progress_path(profile, stage)
        self.state = {"stage": stage, "done": 0, "total": total, "unit": unit, "started": now(), "state": "running"}
        self.state |= {"host": socket.gethostname(), "pid": os.getpid()}  # a stage that is killed cannot say so itself
        self._bar = open_bar(total=total, unit=unit, desc=stage)
        self._written = 0.0

    def __enter__(self) -> "Progress":
        self._write()
        return self

    def advance(self, count: int = 1) -> None:
        self.state["done"] += count
        self._bar.update(count)
        if time.monotonic() - self._written > 1:
            self._write()

    def say(self, text: str) -> None:
        """Shows a few words beside the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def _write(self) -> None:
        self._written = time.monotonic()
        write_json(self.path, self.state | {"updated": now()})

    def __exit__(self, kind: object, *rest: object) -> None:
        self._bar.close()
        self.state["state"] = "done" if kind is None else "stopped"
        self._write()
