"""How far each stage of a profile is, from the small files that running stages keep."""

import json
from typing import Any

from primekd.config import Profile
from primekd.progress import progress_folder


def stage_states(profile: Profile) -> list[dict[str, Any]]:
    """One entry a stage that was ever started, oldest first: stage, done, total, unit, state, started, updated."""
    states = []
    for path in progress_folder(profile).glob("*.json"):
        try:
            states.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError):
            continue  # it is being replaced at this very moment
    return sorted(states, key=lambda s: (s["started"], s["stage"]))
