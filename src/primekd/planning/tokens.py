"""How many tokens a run is made of, and how one knows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from primekd.capture.run import HELD_OUT
from primekd.config import Profile
from primekd.config.arms import load_arms
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import MANIFEST, read_manifest, relative_name
from primekd.signals.manifest import read_store


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
    """One stage of the study, as far as its tokens go.

    `response_tokens` are written by a model (captures, assessment) or trained on (each epoch anew); `most` is their
    bound. `runs` is how many times the stage is done: strategies, students, models.
    """

    name: str
    runs: int
    items: int
    response_tokens: float
    most: float
    prompt_tokens: float


def known_manifests(profile: Profile, names: Iterable[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """Manifests of signal stores by name, and where they are from.

    They are this machine's own, runs/<profile>/signals/, if it has any of them whole, else what the published logs keep
    of them: two machines are never mixed.
    """
    folder, names = profile.runs / "signals", list(names)
    found = {n: read_store(folder / n) for n in names if (folder / n / MANIFEST).is_file()}
    if found := {n: m for n, m in found.items() if m.get("complete")}:
        return found, relative_name(folder)
    logs, source = published_manifest(profile)
    kept = {name: entry.get("signals") for name, entry in logs.get("models", {}).items()}
    kept[HELD_OUT] = logs.get("teacher")
    return {n: m for n, m in kept.items() if n in names and m and m.get("tokens")}, source


def published_manifest(profile: Profile) -> tuple[dict[str, Any], str]:
    """The manifest of the published logs, empty if there are none, and its place with the hardware that it names."""
    path = profile.published / MANIFEST
    if not path.is_file():
        return {}, ""
    manifest = read_manifest(path)
    facts = manifest.get("environment", {}).get("hardware", {})
    gpus = facts.get("gpus") or []
    name = gpus[0] if gpus else f"{facts.get('cpu', 'unknown processor')}, {facts.get('cores', '?')} cores"
    return manifest, f"{relative_name(path)} ({name})"


def all_stores() -> list[str]:
    """The names of all signal stores of a run."""
    return [*(name for name, strategy in load_arms().items() if strategy.teacher), HELD_OUT]


def find_lengths(profile: Profile) -> Lengths:
    """Prompt lengths counted where tokenizer and items are here; responses' measured, stated, or at their limit."""
    expected = profile.hardware.expected if profile.hardware else None
    counted = _count_prompts(profile)
    if counted:
        prompt, longest, prompt_source = *counted, "counted"
    elif expected:
        prompt, longest, prompt_source = expected.prompt_tokens, expected.longest_prompt_tokens, "stated"
    else:
        raise UserError(
            "The plan needs the lengths of prompts, and the items or the tokenizer are not here: write "
            "hardware.expected (source, prompt_tokens, longest_prompt_tokens, response_tokens) in the profile."
        )
    stores, where = known_manifests(profile, all_stores())
    if stores:
        tokens, items = (sum(m[key] for m in stores.values()) for key in ("tokens", "items"))
        response, source = tokens / items, f"measured: {items} responses in {where}"
    elif expected:
        response, source = expected.response_tokens, f"stated: {expected.source}"
    else:
        response, source = profile.max_new_tokens, "the limit: nothing was measured or stated"
    return Lengths(
        prompt, longest, prompt_source, min(response, profile.max_new_tokens), profile.max_new_tokens, source
    )


def _count_prompts(profile: Profile, most: int = 32) -> tuple[float, int] | None:
    """Mean and longest prompt over the primings, on the first test items; None where that would need a download."""
    from primekd.capture.primings import priming_of
    from primekd.models import is_present, load_tokenizer
    from primekd.models.chat import build_prompt
    from primekd.tasks.load import load_items

    if profile.data.source == "hub" or not is_present(profile.student.model):
        return None
    try:
        tokenizer = load_tokenizer(profile.student)
        items = load_items(profile, "test", min(most, profile.data.test_items))
        primings = [priming_of(s, profile.teacher) for s in load_arms().values() if s.teacher]
        lengths = [len(build_prompt(tokenizer, item.messages, p)) for item in items for p in primings]
    except UserError:  # the items' file is not here yet: the stage itself will say so
        return None
    return sum(lengths) / len(lengths), max(lengths)


def stages(profile: Profile, lengths: Lengths) -> list[Stage]:
    """Captures, the held-out capture, training, assessment."""
    data, teachers = profile.data, sum(s.teacher for s in load_arms().values())
    students = len(load_arms())

    def stage(name: str, runs: int, items: int, times: int = 1) -> Stage:
        count = runs * items * times
        return Stage(name, runs, items, count * lengths.response, count * lengths.most, count * lengths.prompt)

    return [
        stage("capture", teachers, data.train_items),
        stage("held-out", 1, data.test_items),
        stage("distill", students, data.train_items, profile.train.epochs),
        stage("assess", students + 1, data.test_items),
    ]
