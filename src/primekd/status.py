"""How far each stage of a profile is, from the small files that running stages keep."""

import socket
from datetime import datetime
from typing import Any

import psutil

from primekd.config import Profile
from primekd.progress import StageState, progress_folder, read_state
from primekd.provenance import now

SILENCE = 30 * 60  # seconds without a word after which a stage on another machine counts as lost


def stage_states(profile: Profile) -> list[dict[str, Any]]:
    """One entry a stage that was ever started, oldest first: stage, done, total, unit, state, started, updated.

    `state` is running, done, stopped, or lost: said to be running by a process that is there no more.

    Raises:
        UserError: one of the files is damaged.
    """
    found = [read_state(path) for path in progress_folder(profile).glob("*.json")]
    states = [entry.model_dump() | ({"state": "lost"} if is_lost(entry) else {}) for entry in found if entry]
    return sorted(states, key=lambda s: (s["started"], s["stage"]))


def is_lost(entry: StageState) -> bool:
    """Whether a stage was killed: its process is gone or, where that cannot be seen from here, has long been silent."""
    if entry.state != "running":
        return False
    if entry.host == socket.gethostname():
        return not psutil.pid_exists(entry.pid)
    silent = datetime.fromisoformat(now()) - datetime.fromisoformat(entry.updated)
    return silent.total_seconds() > SILENCE
