"""What is known of a model before it is here: its shape, and the bytes of its weights on disk, on GPUs, in memory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from primekd.config import LoraSettings, Profile
from primekd.foundation import UserError, read_json
from primekd.models.hub import local_snapshot
from primekd.models.reference import parse_reference

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of a weight in a GGUF file, with the scales of each block of 32. As llama.cpp's `quantize` states them for Llama-like
# models: mixtures hold some tensors in more bits.
GGUF_BITS = {
    "q4_0": 4.5, "q4_1": 5.0, "q5_1": 6.0, "q4_k_s": 4.6, "q4_k_m": 4.9, "q5_k_m": 5.7, "q6_k": 6.6, "q8_0": 8.5,
}  # fmt: skip
EXL2_HEAD_BITS = 6  # exllamav2's converter, unless told otherwise
NF4_BITS = 4.127  # 4 bits, and a doubly quantised scale a block of 64 (QLoRA, arXiv 2305.14314, section 3)


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder: grouped-query attention, gated feed-forward, no biases counted (they are below 0.1 %)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the seven linear maps of a layer."""
        d, q, kv, i = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate
        return {
            "q_proj": (d, q), "k_proj": (d, kv), "v_proj": (d, kv), "o_proj": (q, d),
            "gate_proj": (d, i), "up_proj": (d, i), "down_proj": (i, d),
        }  # fmt: skip

    @property
    def layer_weights(self) -> int:
        return sum(a * b for a, b in self.linears.values())

    @property
    def embedding_weights(self) -> int:
        """Weights of the embedding; the output head has as many."""
        return self.vocab * self.hidden

    @property
    def weights(self) -> int:
        """All weights; a head that is tied to the embedding is not counted twice."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.layers * self.layer_weights + norms + self.embedding_weights * (1 if self.tied else 2)

    def kv_bytes(self, key_bytes: float, value_bytes: float | None = None) -> float:
        """KV cache of one token over all layers, given the bytes of a key's number, and of a value's if they differ."""
        values = key_bytes if value_bytes is None else value_bytes
        return self.layers * self.kv_heads * self.head_dim * (key_bytes + values)

    def adapted(self, lora: LoraSettings) -> set[str]:
        """The linear maps with an adapter, as far as their shapes are known."""
        return set(self.linears) & set(self.linears if lora.target_modules == "all-linear" else lora.target_modules)

    def lora_weights(self, lora: LoraSettings) -> int:
        return self.layers * lora.rank * sum(sum(self.linears[name]) for name in self.adapted(lora))


# Published configurations (config.json of each repository). Names are matched without case, "meta-" and file endings.
KNOWN = {
    "llama-3.1-405b": Shape(126, 16384, 128, 8, 128, 53248, 128256),
    "llama-3.1-70b": Shape(80, 8192, 64, 8, 128, 28672, 128256),
    "llama-3.3-70b": Shape(80, 8192, 64, 8, 128, 28672, 128256),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 128, 8192, 128256, tied=True),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "smollm2-1.7b": Shape(24, 2048, 32, 32, 64, 8192, 49152, tied=True),
    "smollm2-360m": Shape(32, 960, 15, 5, 64, 2560, 49152, tied=True),
    "smollm2-135m": Shape(30, 576, 9, 3, 64, 1536, 49152, tied=True),
    "qwen2.5-72b": Shape(80, 8192, 64, 8, 128, 29568, 152064),
    "qwen2.5-32b": Shape(64, 5120, 40, 8, 128, 27648, 152064),
    "qwen2.5-14b": Shape(48, 5120, 40, 8, 128, 13824, 152064),
    "qwen2.5-7b": Shape(28, 3584, 28, 4, 128, 18944, 152064),
    "qwen2.5-3b": Shape(36, 2048, 16, 2, 128, 11008, 151936, tied=True),
    "qwen2.5-1.5b": Shape(28, 1536, 12, 2, 128, 8960, 151936, tied=True),
    "qwen2.5-0.5b": Shape(24, 896, 14, 2, 64, 4864, 151936, tied=True),
}
RANDOM_WIDTHS = (2, 32, 4, 2, 8, 64)  # of `random:` models


def local_place(text: str) -> Path | None:
    """The file or folder of a model that is on this disk; None where it would first have to be brought or made."""
    reference = parse_reference(text)
    if reference.scheme == "hub" and not reference.is_gguf:
        place = local_snapshot(reference)
        return place if place is not None and (place / "config.json").is_file() else None
    return reference.local if reference.local is not None and reference.local.exists() else None


def find_shape(profile: Profile, text: str) -> Shape:
    """The shape of a model that a profile names, without a download. Raises UserError if nothing says what it is."""
    stated = profile.hardware.shapes if profile.hardware else {}
    if text in stated:
        return Shape(**stated[text].model_dump())
    reference = parse_reference(text)
    if reference.scheme == "random":
        return Shape(*RANDOM_WIDTHS, find_shape(profile, reference.target).vocab + 64, tied=True)
    place = local_place(text)
    if place and (reference.is_gguf or (place / "config.json").is_file()):
        return _read_shape(place)
    if profile.prepare and text == f"path:{profile.prepare.output}":
        return find_shape(profile, profile.prepare.base)
    if shape := known_shape(reference.target):
        return shape
    raise UserError(
        f"The plan does not know the shape of {text}, and the model is not here: write layers, hidden, heads, "
        "kv_heads, head_dim, intermediate and vocab (from its config.json) under hardware.shapes in the profile, key "
        f"'{text}'."
    )


def known_shape(name: str) -> Shape | None:
    """The shape of a known architecture whose name occurs in `name`."""
    plain = name.lower().replace("_", "-").replace("meta-", "").replace("-coder-", "-")  # Coders have the same shape
    found = [key for key in KNOWN if re.search(rf"(^|[^0-9a-z.]){re.escape(key)}([^0-9a-z]|$)", plain)]
    return KNOWN[max(found, key=len)] if found else None


@lru_cache(maxsize=8)  # reading a GGUF header takes seconds
def _read_shape(place: Path) -> Shape:
    """From a folder's config.json or a GGUF file's header."""
    try:
        if place.is_file():
            from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

            config = load_gguf_checkpoint(place, return_tensors=False)["config"]
        else:
            config = read_json(place / "config.json")
        return shape_of(config.get("text_config", config))
    except (KeyError, ValueError) as error:  # ValueError: an architecture whose GGUF transformers does not read
        raise UserError(f"{place.name} does not say its shape ({error}): name it in hardware.shapes.") from error


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape of a transformers configuration. Raises KeyError if it lacks a width."""
    layers, hidden, heads = (config[k] for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    kv_heads, head_dim = config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads
    widths = layers, hidden, heads, kv_heads, head_dim, config["intermediate_size"]
    return Shape(*widths, config["vocab_size"], bool(config.get("tie_word_embeddings")))


@dataclass(frozen=True)
class Model:
    """A model as a stage loads it; bytes."""

    reference: str
    shape: Shape
    format: str
    layer: float  # of one layer
    rest: float  # of the final norm and the head, and of the embedding, if it lies with them
    host: float  # of weights that stay in the machine's memory (ExLlamaV2 keeps the embedding there)
    disk: float  # of its files
    where: str  # "file sizes" if they were looked at, "computed" if not

    @property
    def device(self) -> float:
        """Bytes that the weights take where the model computes."""
        return self.shape.layers * self.layer + self.rest

    @property
    def dequantised(self) -> float:
        """Bytes of the float32 copy in models/cache that transformers needs of a GGUF file; 0 for other models."""
        return 4 * self.shape.weights if parse_reference(self.reference).is_gguf else 0


def teacher_model(profile: Profile) -> Model | None:
    """The teacher; None behind an API. Raises UserError if its shape, or the bits of a quantised one, are not known."""
    teacher = profile.teacher
    if teacher.engine == "api":
        return None
    shape = find_shape(profile, teacher.model)
    if teacher.engine == "exllamav2":
        return _exl2(profile, shape)
    if teacher.engine == "llamacpp":
        return _gguf(profile, shape)
    if teacher.engine == "vllm" and teacher.vllm and (kind := teacher.vllm.quantization):
        return _plain(teacher.model, shape, 2, kind, stated_bits(profile) or {"fp8": 8.0}.get(kind, 4.25))
    return _plain(teacher.model, shape, BYTES[teacher.dtype], teacher.dtype)


def student_model(profile: Profile) -> Model:
    student = profile.student
    shape, bits = find_shape(profile, student.model), NF4_BITS if student.quantization == "nf4" else None
    return _plain(student.model, shape, BYTES[student.dtype], "nf4" if bits else student.dtype, bits)


def _plain(reference: str, shape: Shape, number: int, kind: str, bits: float | None = None) -> Model:
    """A model in Hugging Face's format. `number`: bytes of a weight; `bits`: of the linear maps, if quantised."""
    layer = shape.layer_weights * (bits / 8 if bits else number) + 2 * shape.hidden * number
    rest = (shape.weights - shape.layers * (shape.layer_weights + 2 * shape.hidden)) * number
    # Published checkpoints are in bfloat16.
    return Model(reference, shape, kind, layer, rest, 0, *_files(reference, shape.weights * 2))


def _exl2(profile: Profile, shape: Shape) -> Model:
    """Layers and head quantised; the embedding, in half precision, stays in the machine's memory."""
    reference, place = profile.teacher.model, local_place(profile.teacher.model)
    config = read_json(place / "config.json") if place and (place / "config.json").is_file() else {}
    own = config.get("quantization_config") or {}
    bits, head_bits = float(own.get("bits") or _known_bits(profile)), float(own.get("head_bits", EXL2_HEAD_BITS))
    # Without a head of its own (tied weights) the file holds the embedding, and a quantised head is made of it.
    head, embedding = shape.embedding_weights * head_bits / 8, shape.embedding_weights * 2
    layer = shape.layer_weights * bits / 8 + 2 * shape.hidden * 2
    disk = _files(reference, shape.layers * layer + head + embedding)
    return Model(reference, shape, f"EXL2 {bits:g} bpw", layer, head, embedding, *disk)


def _gguf(profile: Profile, shape: Shape) -> Model:
    reference, bits = profile.teacher.model, 0.0
    if local_place(reference) is None:
        made_here = profile.prepare and reference == f"path:{profile.prepare.output}"
        bits = GGUF_BITS[profile.prepare.quantization.lower()] if made_here else _known_bits(profile)
    disk, where = _files(reference, shape.weights * bits / 8)
    layer = (shape.layer_weights + 2 * shape.hidden) * disk / shape.weights
    return Model(reference, shape, "GGUF", layer, disk - shape.layers * layer, 0, disk, where)


def _files(reference: str, computed: float) -> tuple[float, str]:
    """Bytes of a model's files where it is here, else as computed, and how they are known."""
    place = None if parse_reference(reference).scheme == "random" else local_place(reference)
    if place is None:
        return computed, "computed"
    return sum(p.stat().st_size for p in (place, *place.rglob("*")) if p.is_file()), "file sizes"


def _known_bits(profile: Profile) -> float:
    if bits := stated_bits(profile):
        return bits
    model = profile.teacher.model
    raise UserError(f"The bits of a weight of {model} are not known: write hardware.bits_per_weight in the profile.")


def stated_bits(profile: Profile) -> float | None:
    """Bits of a weight of a quantised teacher, as the profile or the model's name states them."""
    if profile.hardware and profile.hardware.bits_per_weight:
        return profile.hardware.bits_per_weight
    name = profile.teacher.model.lower()
    if found := re.search(r"([0-9]+(?:\.[0-9]+)?)[ _-]?bpw", name):
        return float(found.group(1))
    return next((bits for kind, bits in GGUF_BITS.items() if kind in name and ".gguf" in name), None)
