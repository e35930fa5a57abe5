"""What a run is made of: tokens, how long they take, and how one knows; signals, students and models on disk."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from primekd.capture.jobs import HELD_OUT
from primekd.capture.primings import priming_of
from primekd.config import NONE, Arm, Profile, SignalsConfig, arms_of
from primekd.foundation import MANIFEST, UserError, read_manifest, relative_name
from primekd.models import BYTES, Model, build_prompt, find_shape, is_present, load_tokenizer, parse_reference
from primekd.planning.memory import optimiser_bytes
from primekd.signals import Codec, make_codec, read_store
from primekd.tasks.load import load_items
from primekd.tasks.rows import on_hub

STAGES = ("capture", "held-out", "distill", "assess")
ID_BYTES = 4  # token ids are kept as int32
SAVED_CHECKPOINTS = 3  # two are kept, and the next one is written before the older goes


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
        keys = "hardware.expected (source, prompt_tokens, longest_prompt_tokens, response_tokens)"
        what = "The plan needs the lengths of prompts, and the items or the tokenizer are not here"
        raise UserError(f"{what}: write {keys} in the profile.")
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


@dataclass(frozen=True)
class CodecCost:
    """Bytes of one codec: a response token, a strategy's store, all stores with the head; `most`: at the token limit.
    `refusal`: why it cannot serve some arm's loss, or the engine does not give it; None if it can."""

    name: str
    chosen: bool
    token: float
    strategy: float
    total: float
    most: float
    refusal: str | None


@dataclass(frozen=True)
class Storage:
    what: str
    bytes: float
    note: str


def find_codec(profile: Profile, signals: SignalsConfig | None = None) -> tuple[Codec | None, str | None]:
    """The codec of a profile (or of other signal settings in it); None with the reason where its engine offers less."""
    try:
        return make_codec(signals or profile.signals, profile.teacher.offers), None
    except UserError as error:
        return None, str(error)


def codec_costs(profile: Profile, lengths: Lengths, captures: list[Stage]) -> list[CodecCost]:
    """The codecs from the smallest to the largest, and what each would take of this study."""
    api = profile.teacher.engine == "api"  # which gives neither hidden states nor all logits
    names = ("text", "sampled", "topk") if api else ("text", "sampled", "topk", "hidden", "full")
    return sorted((_cost(profile, name, lengths, captures) for name in names), key=lambda cost: cost.token)


def _cost(profile: Profile, name: str, lengths: Lengths, captures: list[Stage]) -> CodecCost:
    chosen, _ = find_codec(profile)
    codec, missing = find_codec(profile, profile.signals.model_copy(update={"codec": name}))
    reading = [arm for arm in arms_of(profile).values() if arm.store and arm.signals != NONE]
    row, head = row_bytes(profile, name), head_bytes(profile) if name == "hidden" else 0
    token, longest = (row + ID_BYTES * (1 + lengths.prompt / length) for length in (lengths.response, lengths.most))
    return CodecCost(
        name=name, chosen=chosen is not None and name == chosen.name, token=token,
        strategy=captures[0].response_tokens / captures[0].runs * token,
        total=sum(stage.response_tokens for stage in captures) * token + head,
        most=sum(stage.most for stage in captures) * longest + head,
        refusal=missing or next(filter(None, (codec.refusal(arm.loss_of(profile)) for arm in reading)), None),
    )  # fmt: skip


def row_bytes(profile: Profile, codec: str) -> float:
    """Bytes of one response token's signal; of a sampled one about, as that depends on how sure the teacher is. Above
    temperature 1 every point falls on a token of its own (at 5.94: 64 points in 110 bytes); at 1 a row has about the
    square root of its points (at an entropy of 1.3 bits: 64 points in 11 bytes, 128 in 16)."""
    signals = profile.signals
    if codec in ("hidden", "full"):
        shape = find_shape(profile, profile.teacher.model)
        return shape.hidden * _state_bytes(profile) if codec == "hidden" else shape.vocab * 4
    tokens = signals.sampled_points if signals.sampled_temperature > 1 else signals.sampled_points**0.5
    return {"text": 0, "topk": 8 * signals.top_k + 8, "sampled": (14 * tokens + 16) / 8}[codec]


def head_bytes(profile: Profile) -> float:
    """The teacher's output head as the codec hidden stores it, once."""
    return find_shape(profile, profile.teacher.model).embedding_weights * _state_bytes(profile)


def _state_bytes(profile: Profile) -> int:
    """Bytes of one number of a hidden state, in the engine's own precision."""
    return {"exllamav2": 2, "llamacpp": 4}.get(profile.teacher.engine) or BYTES[profile.teacher.dtype]


def storage(profile: Profile, teacher: Model | None, student: Model, costs: list[CodecCost]) -> list[Storage]:
    adapter, students = student.shape.lora_weights(profile.student.lora) * 4, len(arms_of(profile))
    checkpoint = optimiser_bytes(student.shape, profile.student.lora, profile.train) - adapter  # no gradient in it
    parts = []
    for role, model in (("teacher", teacher), ("student", student)):
        if model is None or (role == "student" and teacher and teacher.reference == model.reference):
            continue
        parts.append(Storage(f"{role} model", model.disk, model.where))
        if model.dequantised and (role == "student" or profile.teacher.engine == "transformers"):
            parts.append(Storage(f"{role}, dequantised", model.dequantised, "models/cache"))
    source = profile.teacher.made_from  # a local teacher is converted from it by hand, where that was not done yet
    if source and teacher and teacher.where == "computed" and parse_reference(teacher.reference).scheme == "path":
        parts.append(Storage("teacher's source", teacher.shape.weights * 2, f"{source}, until it is converted"))
        parts.append(Storage("conversion's work folder", teacher.disk, "about the converted model; then free"))
    for chosen in (cost for cost in costs if cost.chosen):
        parts.append(Storage(f"signals ({chosen.name})", chosen.total, "all captures, with the head once"))
    parts.append(Storage("checkpoints", SAVED_CHECKPOINTS * checkpoint, "while one student is trained"))
    return [*parts, Storage("adapters", students * adapter, f"{students} students")]
