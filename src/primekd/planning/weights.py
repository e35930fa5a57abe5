"""How many bytes a model's weights take: on disk, on GPUs, in memory."""

import re
from dataclasses import dataclass

from primekd.config import Profile
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import read_json
from primekd.models import parse_reference
from primekd.planning.shapes import Shape, find_shape, local_place

BYTES = {"float32": 4, "bfloat16": 2}
GGUF_BITS = {"Q4_1": 5.0, "Q5_1": 6.0, "Q8_0": 8.5}  # with the scales of each block of 32
EXL2_HEAD_BITS = 6  # exllamav2's converter, unless told otherwise
NF4_BITS = 4.127  # 4 bits, and a doubly quantised scale a block of 64 (QLoRA, arXiv 2305.14314, section 3)


@dataclass(frozen=True)
class Model:
    """A model as a stage loads it.

    Attributes:
        layer: bytes of one layer. rest: of the final norm and the head (and of the embedding, if it lies with them).
        host: bytes of weights that stay in the machine's memory (ExLlamaV2 keeps the embedding there).
        disk: bytes of its files. where: "file sizes" if they were looked at, "computed" if not.
    """

    reference: str
    shape: Shape
    format: str
    layer: float
    rest: float
    host: float
    disk: float
    where: str

    @property
    def device(self) -> float:
        """Bytes that the weights take where the model computes."""
        return self.shape.layers * self.layer + self.rest


def teacher_model(profile: Profile) -> Model | None:
    """The teacher; None behind an API, where somebody else's machine holds it.

    Raises:
        UserError: its shape, or the bits of a quantised one, are not known.
    """
    teacher = profile.teacher
    if teacher.engine == "api":
        return None
    shape = find_shape(profile, teacher.model)
    if teacher.engine == "exllamav2":
        return _exl2(profile, shape)
    if teacher.engine == "llamacpp":
        return _gguf(profile, shape)
    if teacher.engine == "vllm" and teacher.vllm and teacher.vllm.quantization:
        bits = stated_bits(profile) or {"fp8": 8.0}.get(teacher.vllm.quantization, 4.25)
        return plain_model(teacher.model, shape, 2, layer_bits=bits, kind=teacher.vllm.quantization)
    return plain_model(teacher.model, shape, BYTES[teacher.dtype], kind=teacher.dtype)


def student_model(profile: Profile) -> Model:
    """The student as training loads it."""
    student = profile.student
    shape = find_shape(profile, student.model)
    if student.quantization == "nf4":
        return plain_model(student.model, shape, BYTES[student.dtype], layer_bits=NF4_BITS, kind="nf4")
    return plain_model(student.model, shape, BYTES[student.dtype], kind=student.dtype)


def plain_model(
    reference: str, shape: Shape, number: int, layer_bits: float | None = None, kind: str = "bfloat16"
) -> Model:
    """A model in Hugging Face's format. `number`: bytes of a weight; `layer_bits`: of the linear maps, if quantised."""
    layer = shape.layer_weights * (layer_bits / 8 if layer_bits else number) + 2 * shape.hidden * number
    rest = (shape.weights - shape.layers * (shape.layer_weights + 2 * shape.hidden)) * number
    disk, where = _files(reference)
    # Published checkpoints are in bfloat16; a GGUF file also has its dequantised copy in models/cache, in float32.
    return Model(reference, shape, kind, layer, rest, 0, disk or shape.weights * 2, where)


def _files(reference: str) -> tuple[float, str]:
    """Bytes of a model's files where it is here, and how they are known."""
    place = local_place(reference) if not reference.startswith("random:") else None
    if place is None:
        return 0, "computed"
    files = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files), "file sizes"


def _exl2(profile: Profile, shape: Shape) -> Model:
    reference = profile.teacher.model
    bits, head_bits = _exl2_bits(profile)
    head = shape.embedding_weights * head_bits / 8
    embedding = shape.embedding_weights * 2
    layer = shape.layer_weights * bits / 8 + 2 * shape.hidden * 2
    disk, where = _files(reference)
    computed = shape.layers * layer + head + embedding
    # Without a head of its own (tied weights) the file holds the embedding, and a quantised head is made of it.
    return Model(reference, shape, f"EXL2 {bits:g} bpw", layer, head, embedding, disk or computed, where)


def _exl2_bits(profile: Profile) -> tuple[float, float]:
    """Bits of the layers' weights and of the head's: from config.json, the profile, or the model's name."""
    place = local_place(profile.teacher.model)
    if place is not None and (place / "config.json").is_file():
        found = read_json(place / "config.json").get("quantization_config") or {}
        if found.get("bits"):
            return float(found["bits"]), float(found.get("head_bits", EXL2_HEAD_BITS))
    bits = stated_bits(profile)
    if bits is None:
        raise UserError(
            f"The plan does not know how many bits a weight of {profile.teacher.model} has: write "
            "hardware.bits_per_weight in the profile."
        )
    return bits, EXL2_HEAD_BITS


def stated_bits(profile: Profile) -> float | None:
    """Bits of a weight of a quantised teacher, as the profile or the model's name states them."""
    if profile.hardware and profile.hardware.bits_per_weight:
        return profile.hardware.bits_per_weight
    found = re.search(r"([0-9]+(?:\.[0-9]+)?)[ _-]?bpw", profile.teacher.model.lower())
    return float(found.group(1)) if found else None


def _gguf(profile: Profile, shape: Shape) -> Model:
    reference = profile.teacher.model
    disk, where = _files(reference)
    if not disk:
        made_here = profile.prepare and reference == f"path:{profile.prepare.output}"
        bits = GGUF_BITS[profile.prepare.quantization] if made_here else stated_bits(profile)
        if bits is None:
            raise UserError(f"{reference} is not here: write hardware.bits_per_weight in the profile to plan with it.")
        disk = shape.weights * bits / 8
    share = disk / shape.weights
    layer = (shape.layer_weights + 2 * shape.hidden) * share
    return Model(reference, shape, "GGUF", layer, disk - shape.layers * layer, 0, disk, where)


def source_to_convert(profile: Profile, teacher: Model | None) -> str | None:
    """The hub's model that the teacher has yet to be converted from; None where there is none, or that was done."""
    if teacher is None or teacher.where == "file sizes" or parse_reference(teacher.reference).scheme != "path":
        return None
    return profile.teacher.made_from


def dequantised_copy(reference: str, shape: Shape) -> float:
    """Bytes of the float32 copy in models/cache that transformers needs of a GGUF file; 0 for other models."""
    return 4 * shape.weights if parse_reference(reference).is_gguf else 0
