"""How far each stage of a profile is, from the small files that running stages keep; and which logs there are."""

import socket
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from primekd.config import Profile
from primekd.foundation.progress import StageState, progress_folder, read_state
from primekd.foundation.provenance import MANIFEST, hash_file, now, read_json, read_manifest, relative_name

SILENCE = 30 * 60  # seconds without a word after which a stage on another machine counts as lost


def stage_states(profile: Profile) -> list[dict[str, Any]]:
    """One entry a stage that was ever started, oldest first: stage, done, total, unit, started, updated, and state:
    running, done, stopped, or lost (its process is there no more). Raises UserError if one of the files is damaged."""
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


def logs_lines(profile: Profile) -> list[str]:
    """Which logs there are, this machine's and published, and how they differ; a line each."""
    from primekd.running.reproduction import REPRODUCTION, unlike_settings

    own, published = profile.logs / MANIFEST, profile.published / MANIFEST
    lines = [_described("This machine's logs", own), _described("Published logs", published)]
    if not (own.is_file() and published.is_file()):
        return lines
    said = ["the same"]
    if own.read_bytes() != published.read_bytes():
        older = str(read_manifest(published).get("end")) < str(read_manifest(own).get("end"))
        said = [f"other, and {'older' if older else 'newer'}", *unlike_settings(own.parent, published.parent)]
    lines[1] += f": {'; '.join(said)}"
    kept = own.parent / REPRODUCTION
    found = read_json(kept) if kept.is_file() else {}
    hashes = [found.get(side, {}).get("manifest_sha256") for side in ("here", "published")]
    if hashes == [hash_file(own), hash_file(published)]:
        return [*lines, f"This machine's logs against the published ones: {found['verdict']}"]
    return [*lines, f"Not compared yet: `primekd verify --against-published --profile {profile.name}`"]


def _described(what: str, manifest: Path) -> str:
    from primekd.report.claims import short_commit

    if not manifest.is_file():
        return f"{what}: none in {relative_name(manifest.parent)}"
    facts = read_manifest(manifest)
    return (
        f"{what}: {relative_name(manifest.parent)}, of {facts.get('end', 'unknown date')}, commit {short_commit(facts)}"
    )
