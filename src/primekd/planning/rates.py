"""Hours and energy: from this profile's own manifests where there are any, else from the profile's stated rates."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from primekd.assessment.answers import read_block
from primekd.config import Profile
from primekd.config.arms import load_arms
from primekd.foundation.progress import progress_folder, read_state
from primekd.foundation.provenance import MANIFEST, read_manifest, relative_name
from primekd.planning.machine import Machine
from primekd.planning.tokens import Stage, all_stores, known_manifests, published_manifest


@dataclass(frozen=True)
class Rate:
    """Response tokens a second of a stage, and kWh a token where it was measured. `source` begins with measured or
    stated."""

    tokens_per_second: float
    kwh_per_token: float | None
    source: str


@dataclass(frozen=True)
class Duration:
    """A stage's hours and kWh; None where no rate is known."""

    stage: str
    tokens: float
    rate: Rate | None
    hours: float | None
    kwh: float | None


def durations(profile: Profile, machine: Machine, stages: list[Stage], gpus: dict[str, int]) -> list[Duration]:
    """One entry a stage. `gpus`: how many a stage holds, for the energy of stated rates."""
    rates = find_rates(profile)
    found = []
    for stage in stages:
        rate = rates.get(stage.name)
        hours = stage.response_tokens / rate.tokens_per_second / 3600 if rate else None
        kwh = None
        if rate and rate.kwh_per_token is not None:
            kwh = stage.response_tokens * rate.kwh_per_token
        elif rate and (watts := machine.watts(gpus.get(stage.name, 0))) is not None:
            kwh = hours * watts / 1000
        found.append(Duration(stage.name, stage.response_tokens, rate, hours, kwh))
    return found


def find_rates(profile: Profile) -> dict[str, Rate]:
    """Rates by stage: capture, held-out, distill, assess. What is neither measured nor stated is left out."""
    stated = profile.hardware.rates if profile.hardware else None
    rates = {}
    if stated:
        source = f"stated: {stated.source}"
        pairs = {
            "capture": stated.capture,
            "held-out": stated.capture,
            "distill": stated.train,
            "assess": stated.assess,
        }
        rates = {stage: Rate(value, None, source) for stage, value in pairs.items()}
    return rates | _measured_captures(profile) | _measured_students(profile) | _measured_answers(profile)


def _measured_captures(profile: Profile) -> dict[str, Rate]:
    *taught, held_out = all_stores()
    rates = {}
    for stage, names in {"capture": taught, "held-out": [held_out]}.items():
        stores, where = known_manifests(profile, names)
        rows = [(m["tokens"], m["sessions"]) for m in stores.values() if m.get("sessions")]
        if rows:
            sessions = [s for _, found in rows for s in found]
            rates[stage] = _rate(sum(tokens for tokens, _ in rows), sessions, where)
    return rates


def _measured_students(profile: Profile) -> dict[str, Rate]:
    """Trainings that were not stopped: of the others only the last session's time is kept."""
    folders = [profile.student_folder(name) / MANIFEST for name in load_arms()]
    rows, where = [read_manifest(path) for path in folders if path.is_file()], relative_name(profile.runs / "students")
    if not rows:
        logs, where = published_manifest(profile)
        rows = list(logs.get("models", {}).values())
    rows = [row for row in rows if row.get("seconds") and row.get("response_tokens") and not row.get("resumed")]
    if not rows:
        return {}
    return {"distill": _rate(sum(row["response_tokens"] for row in rows), rows, where)}


def _measured_answers(profile: Profile) -> dict[str, Rate]:
    """From the progress of finished `answer` stages and the answers' own lengths; energy is not kept for them."""
    tokens = seconds = 0.0
    for path in progress_folder(profile).glob("answer *.json"):
        state = read_state(path)
        blocks = sorted((profile.runs / "answers" / path.stem.removeprefix("answer ")).glob("block-*.json"))
        if state is None or state.state != "done" or not blocks:
            continue
        took = (datetime.fromisoformat(state.updated) - datetime.fromisoformat(state.started)).total_seconds()
        if took < len(blocks):  # found on disk, not generated
            continue
        seconds += took
        tokens += sum(len(row["ids"]) for block in blocks for row in read_block(block)["rows"])
    if not seconds:
        return {}
    return {"assess": Rate(tokens / seconds, None, f"measured: {relative_name(progress_folder(profile))}")}


def _rate(tokens: float, sessions: list[dict[str, Any]], where: str) -> Rate:
    energy = [s.get("energy_kwh") for s in sessions]
    kwh = sum(energy) / tokens if energy and None not in energy else None
    return Rate(tokens / sum(s["seconds"] for s in sessions), kwh, f"measured: {where}")
