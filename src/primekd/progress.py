"""Progress of long stages: a bar for whoever is looking, and a small file that `primekd status` and `run` read."""

import os
import socket
import sys
import time
from pathlib import Path

from tqdm import tqdm

from primekd.config import Profile
from primekd.provenance import now, write_json


def progress_folder(profile: Profile) -> Path:
    """runs/<profile>/progress/, one JSON file a stage."""
    return profile.runs / "progress"


def progress_path(profile: Profile, stage: str) -> Path:
    """The file of one stage."""
    return progress_folder(profile) / f"{stage.replace('/', '-')}.json"


class Progress:
    """Counts `total` units of one stage. Use as a context manager and call `advance`.

    The bar is plain text (tqdm.notebook's widget is saved as 0 % in executed notebooks).
    """

    def __init__(self, profile: Profile, stage: str, total: int, unit: str):
        self.path = progress_path(profile, stage)
        self.state = {"stage": stage, "done": 0, "total": total, "unit": unit, "started": now(), "state": "running"}
        self.state |= {"host": socket.gethostname(), "pid": os.getpid()}  # a stage that is killed cannot say so itself
        interval = 0.5 if sys.stderr.isatty() else 10
        self._bar = tqdm(total=total, unit=unit, desc=stage, mininterval=interval, file=sys.stderr, ascii=True)
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
