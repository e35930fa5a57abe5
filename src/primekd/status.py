"""How far each stage of a profile is, from the small files that running stages keep."""

import json
import socket
from datetime import datetime
from typing import Any

import psutil

from primekd.config import Profile
from primekd.progress import progress_folder
from primekd.provenance import now

SILENCE = 30 * 60  # seconds without a word after which a stage on another machine counts as lost


def stage_states(profile: Profile) -> list[dict[str, Any]]:
    """One entry a stage that was ever started, oldest first: stage, done, total, unit, state, started, updated.

    `state` is running, done, stopped, or lost: said to be running by a process that is there no more.
    """
    states = []
    for path in progress_folder(profile).glob("*.json"):
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue  # it is being replaced at this very moment
        states.append(entry | ({"state": "lost"} if is_lost(entry) else {}))
    return sorted(states, key=lambda s: (s["started"], s["stage"]))


def is_lost(entry: dict[str, Any]) -> bool:
    """Whether a stage was killed: its process is gone or, where that cannot be seen from here, has long been silent."""
    if entry["state"] != "running":
        return False
    if entry.get("host") == socket.gethostname():
        return not psutil.pid_exists(entry["pid"])
    silent = datetime.fromisoformat(now()) - datetime.fromisoformat(entry["updated"])
    return silent.total_seconds() > SILENCE
