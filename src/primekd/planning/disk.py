"""Bytes on disk: signals under every codec, students, models."""

from dataclasses import dataclass

from primekd.config import Profile, SignalsConfig
from primekd.config.arms import load_arms
from primekd.planning.codec import find_codec
from primekd.planning.memory import lora_weights, optimiser_bytes
from primekd.planning.shapes import Shape
from primekd.planning.tokens import Lengths, Stage
from primekd.planning.weights import BYTES, Model, dequantised_copy, source_to_convert

ID_BYTES = 4  # token ids are kept as int32
SAVED_CHECKPOINTS = 3  # two are kept, and the next one is written before the older goes


@dataclass(frozen=True)
class CodecCost:
    """What one codec takes, in bytes: a response token, one strategy's store, all stores with the head.

    `offered`: whether the engine gives what it needs. `refusal` says why it cannot serve the profile's loss or engine;
    None if it can. `most` is `total` with every response at the token limit.
    """

    name: str
    chosen: bool
    token: float
    strategy: float
    total: float
    most: float
    offered: bool
    refusal: str | None


@dataclass(frozen=True)
class Storage:
    """One thing on disk, in bytes."""

    what: str
    bytes: float
    note: str


def codec_costs(profile: Profile, teacher: Shape | None, lengths: Lengths, captures: list[Stage]) -> list[CodecCost]:
    """The codecs from the smallest to the largest, and what each would take of this study."""
    chosen, _ = find_codec(profile)
    costs = []
    for name in ("text", "sampled", "topk", "hidden", "full"):
        config = profile.signals.model_copy(update={"codec": name})
        codec, missing = find_codec(profile, config)
        if teacher is None and name in ("hidden", "full"):
            continue  # behind an API, which gives neither
        token = row_bytes(profile, name, teacher, config.top_k)
        head = teacher.vocab * teacher.hidden * _number(profile) if name == "hidden" else 0
        ids = ID_BYTES * (1 + lengths.prompt / lengths.response)
        first, tokens = captures[0], sum(s.response_tokens for s in captures)
        most = sum(s.most for s in captures)
        costs.append(
            CodecCost(
                name=name,
                chosen=chosen is not None and name == chosen.name,
                token=token + ids,
                strategy=first.response_tokens / first.runs * (token + ids),
                total=tokens * (token + ids) + head,
                most=most * (token + ID_BYTES * (1 + lengths.prompt / lengths.most)) + head,
                offered=codec is not None,
                refusal=missing or codec.refusal(profile.loss),
            )
        )
    return sorted(costs, key=lambda cost: cost.token)


def row_bytes(profile: Profile, codec: str, teacher: Shape | None, top_k: int) -> float:
    """Bytes of one response token's signal."""
    if codec == "text":
        return 0
    if codec == "topk":
        return 8 * top_k + 8
    if codec == "sampled":
        return sampled_bytes(profile.signals)
    return teacher.hidden * _number(profile) if codec == "hidden" else teacher.vocab * 4


def sampled_bytes(signals: SignalsConfig) -> float:
    """About what a sampled row takes; it depends on how sure the teacher is, which is not known before the capture.

    Above temperature 1 every point is taken to fall on a token of its own (measured at 5.94: 64 points in 110 bytes).
    At 1 a row has about as many tokens as the square root of its points where the teacher's entropy is 1.3 bits
    (measured: 64 points in 11 bytes, 128 in 16); a teacher that is nearly certain takes less than a byte.
    """
    tokens = signals.sampled_points if signals.sampled_temperature > 1 else signals.sampled_points**0.5
    return (14 * tokens + 16) / 8


def _number(profile: Profile) -> int:
    """Bytes of one number of a hidden state, in the engine's own precision."""
    engine = profile.teacher.engine
    return {"exllamav2": 2, "llamacpp": 4}.get(engine) or BYTES[profile.teacher.dtype]


def smallest_serving(costs: list[CodecCost]) -> CodecCost | None:
    """The smallest codec that serves the profile's loss at its temperature as the profile stands."""
    return next((cost for cost in costs if cost.refusal is None), None)


def storage(profile: Profile, teacher: Model | None, student: Model, costs: list[CodecCost]) -> list[Storage]:
    """What models, signals, checkpoints and adapters take."""
    lora, train = profile.student.lora, profile.train
    adapter = lora_weights(student.shape, lora) * 4
    students = len(load_arms())
    chosen = next((cost for cost in costs if cost.chosen), None)
    parts = []
    for role, model in (("teacher", teacher), ("student", student)):
        if model is not None and not (role == "student" and teacher and teacher.reference == model.reference):
            parts.append(Storage(f"{role} model", model.disk, model.where))
            if role == "student" or profile.teacher.engine == "transformers":
                copy = dequantised_copy(model.reference, model.shape)
                parts += [Storage(f"{role}, dequantised", copy, "models/cache")] if copy else []
    if source := source_to_convert(profile, teacher):
        parts.append(Storage("teacher's source", teacher.shape.weights * 2, f"{source}, until it is converted"))
        parts.append(Storage("conversion's work folder", teacher.disk, "about the converted model; then free"))
    if chosen:
        parts.append(Storage(f"signals ({chosen.name})", chosen.total, "all captures, with the head once"))
    checkpoint = adapter + optimiser_bytes(student.shape, lora, train) - 2 * adapter
    parts.append(Storage("checkpoints", SAVED_CHECKPOINTS * checkpoint, "while one student is trained"))
    parts.append(Storage("adapters", students * adapter, f"{students} students"))
    return parts
