"""Bytes on disk: signals under every codec, students, models."""

from dataclasses import dataclass

from primekd.config import Profile, SignalsConfig
from primekd.config.arm import NONE
from primekd.config.arms import arms_of
from primekd.foundation.errors import UserError
from primekd.models import parse_reference
from primekd.models.shapes import BYTES, Model, find_shape
from primekd.planning.memory import optimiser_bytes
from primekd.planning.tokens import Lengths, Stage
from primekd.signals import Codec, make_codec

ID_BYTES = 4  # token ids are kept as int32
SAVED_CHECKPOINTS = 3  # two are kept, and the next one is written before the older goes


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
        name=name,
        chosen=chosen is not None and name == chosen.name,
        token=token,
        strategy=captures[0].response_tokens / captures[0].runs * token,
        total=sum(stage.response_tokens for stage in captures) * token + head,
        most=sum(stage.most for stage in captures) * longest + head,
        refusal=missing or next(filter(None, (codec.refusal(arm.loss_of(profile)) for arm in reading)), None),
    )


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
