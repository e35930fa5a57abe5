"""How many tokens a run is made of, how long they take, and how one knows: measured, stated, or at the limit."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from primekd.capture.jobs import HELD_OUT
from primekd.capture.primings import priming_of
from primekd.config import Profile
from primekd.config.arm import Arm
from primekd.config.arms import arms_of
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import MANIFEST, read_manifest, relative_name
from primekd.models import is_present, load_tokenizer
from primekd.models.chat import build_prompt
from primekd.signals.manifest import read_store
from primekd.tasks.load import load_items
from primekd.tasks.rows import on_hub

STAGES = ("capture", "held-out", "distill", "assess")


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and a response. `longest_prompt` and `most` bound them: memory is planned with those."""

    prompt: float
    longest_prompt: int
    prompt_source: str
    response: float
    most: int
    response_source: str


@dataclass(frozen=True)
class Stage:
    """One stage: its response tokens, `most` at the limit, are written or trained on (each epoch anew). `runs`:
    strategies, students, models. `hours` are for all runs; None where no rate is known."""

    name: str
    runs: int
    items: int
    response_tokens: float
    most: float
    prompt_tokens: float
    tokens_per_second: float | None
    rate_source: str
    hours: float | None


def captured_arms(profile: Profile) -> dict[str, Arm]:
    """The arms for which a store is captured."""
    return {name: arm for name, arm in arms_of(profile).items() if arm.store == name}


def known_manifests(profile: Profile, names: Iterable[str]) -> tuple[list[dict[str, Any]], str]:
    """Manifests of whole signal stores, and where they are from: all from runs/<profile>/signals/ if it has any of
    them, else what the published logs keep; two machines are never mixed."""
    folder = profile.runs / "signals"
    found = [read_store(folder / name) for name in names if (folder / name / MANIFEST).is_file()]
    if found := [manifest for manifest in found if manifest.get("complete")]:
        return found, relative_name(folder)
    logs, source = published_manifest(profile)
    kept = {name: entry.get("signals") for name, entry in logs.get("models", {}).items()}
    kept[HELD_OUT] = logs.get("teacher")
    return [kept[name] for name in names if (kept.get(name) or {}).get("tokens")], source


def published_manifest(profile: Profile) -> tuple[dict[str, Any], str]:
    """The manifest of the published logs, empty if there are none, and its place with the hardware that it names."""
    path = profile.published / MANIFEST
    if not path.is_file():
        return {}, ""
    manifest = read_manifest(path)
    facts = manifest.get("environment", {}).get("hardware", {})
    name = (facts.get("gpus") or [f"{facts.get('cpu', 'unknown processor')}, {facts.get('cores', '?')} cores"])[0]
    return manifest, f"{relative_name(path)} ({name})"


def find_lengths(profile: Profile) -> Lengths:
    """Prompt lengths counted where tokenizer and items are here; responses' measured, stated, or at their limit. Raises
    UserError if the lengths of prompts are neither countable here nor stated."""
    expected, limit = profile.hardware.expected if profile.hardware else None, profile.max_new_tokens
    prompt = _count_prompts(profile)
    if prompt is None and expected is None:
        raise UserError(
            "The plan needs the lengths of prompts, and the items or the tokenizer are not here: write "
            "hardware.expected (source, prompt_tokens, longest_prompt_tokens, response_tokens) in the profile."
        )
    prompt = prompt or (expected.prompt_tokens, expected.longest_prompt_tokens, "stated")
    stores, where = known_manifests(profile, [*captured_arms(profile), HELD_OUT])
    response, source = limit, "the limit: nothing was measured or stated"
    if stores:
        tokens, items = (sum(manifest[key] for manifest in stores) for key in ("tokens", "items"))
        response, source = tokens / items, f"measured: {items} responses in {where}"
    elif expected:
        response, source = expected.response_tokens, f"stated: {expected.source}"
    return Lengths(*prompt, min(response, limit), limit, source)


def _count_prompts(profile: Profile, most: int = 32) -> tuple[float, int, str] | None:
    """Mean and longest prompt over the primings, on the first test items; None where that would need a download."""
    if on_hub(profile.data, "test") or not is_present(profile.student.model):
        return None
    try:
        tokenizer = load_tokenizer(profile.student)
        items = load_items(profile, "test", min(most, profile.data.test_items))
    except UserError:
        return None  # the items' file is not here yet: the stage itself will say so
    primings = [priming_of(arm, profile.teacher) for arm in captured_arms(profile).values()]
    lengths = [len(build_prompt(tokenizer, item.messages, priming)) for item in items for priming in primings]
    return sum(lengths) / len(lengths), max(lengths), "counted"


def stages(profile: Profile, lengths: Lengths) -> list[Stage]:
    """Captures, the held-out capture, training, assessment."""
    data, rates, students = profile.data, find_rates(profile), len(arms_of(profile))
    runs, items = (len(captured_arms(profile)), 1, students, students + 1), [data.train_items, data.test_items] * 2
    items[-1] = profile.asked_items
    found = []
    for name, times, each in zip(STAGES, runs, items, strict=True):
        count = times * each * (profile.train.epochs * len(profile.train.rates) if name == "distill" else 1)
        tokens = [count * length for length in (lengths.response, lengths.most, lengths.prompt)]
        speed, source = rates.get(name, (None, "unknown"))
        found.append(Stage(name, times, each, *tokens, speed, source, tokens[0] / speed / 3600 if speed else None))
    return found


def find_rates(profile: Profile) -> dict[str, tuple[float, str]]:
    """(response tokens a second, source) by stage; the source begins with measured or stated, others are left out."""
    stated, rates = profile.hardware.rates if profile.hardware else None, {}
    if stated:
        values = (stated.capture, stated.capture, stated.train, stated.assess)
        rates = {stage: (value, f"stated: {stated.source}") for stage, value in zip(STAGES, values, strict=True)}
    for stage, names in {"capture": list(captured_arms(profile)), "held-out": [HELD_OUT]}.items():
        stores, where = known_manifests(profile, names)
        runs = [(m["tokens"], sum(s["seconds"] for s in m["sessions"])) for m in stores if m.get("sessions")]
        rates |= _measured(stage, runs, where)
    paths = [profile.student_folder(name) / MANIFEST for name in arms_of(profile)]
    rows, where = [read_manifest(path) for path in paths if path.is_file()], relative_name(profile.runs / "students")
    if not rows:
        logs, where = published_manifest(profile)
        rows = list(logs.get("models", {}).values())
    # Of trainings that were stopped only the last session's time is kept.
    whole = [row for row in rows if row.get("response_tokens") and row.get("seconds") and not row.get("resumed")]
    return rates | _measured("distill", [(row["response_tokens"], row["seconds"]) for row in whole], where)


def _measured(stage: str, runs: list[tuple[float, float]], where: str) -> dict[str, tuple[float, str]]:
    """The rate of (tokens, seconds) of several runs; nothing without any."""
    tokens, seconds = (sum(run[i] for run in runs) for i in (0, 1))
    return {stage: (tokens / seconds, f"measured: {where}")} if runs else {}
