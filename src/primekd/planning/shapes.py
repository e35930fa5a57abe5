"""Shapes of models: from the model where it is here, else from what its profile says or from known architectures."""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from primekd.config import Profile
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import read_json
from primekd.models import parse_reference


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

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all keys (or all values) of one layer."""
        return self.kv_heads * self.head_dim

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the seven linear maps of a layer."""
        d, i = self.hidden, self.intermediate
        return {
            "q_proj": (d, self.query), "k_proj": (d, self.kv), "v_proj": (d, self.kv), "o_proj": (self.query, d),
            "gate_proj": (d, i), "up_proj": (d, i), "down_proj": (i, d),
        }  # fmt: skip

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's linear maps."""
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
        """KV cache of one token over all layers, given the bytes of one stored number."""
        return self.layers * self.kv * (key_bytes + (key_bytes if value_bytes is None else value_bytes))


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
RANDOM_WIDTHS = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate": 64, "tied": True}


def local_place(text: str) -> Path | None:
    """The file or folder of a model that is on this disk; None where it would first have to be brought or made."""
    reference = parse_reference(text)
    if reference.scheme == "hub":
        return _cached_hub_folder(reference.target)
    place = reference.local
    return place if place is not None and place.exists() else None


def _cached_hub_folder(target: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = target.partition("@")
    found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(found).parent if isinstance(found, str) else None


def find_shape(profile: Profile, text: str) -> Shape:
    """The shape of a model that a profile names, without a download.

    Raises:
        UserError: the model is not here and nothing says what it is; the sentence says where to name its shape.
    """
    stated = profile.hardware.shapes if profile.hardware else {}
    if text in stated:
        return Shape(**stated[text].model_dump())
    reference = parse_reference(text)
    if reference.scheme == "random":
        source = find_shape(profile, reference.target)
        return Shape(**RANDOM_WIDTHS, vocab=source.vocab + 64)
    place = local_place(text)
    if place is not None and reference.is_gguf:
        return _gguf_shape(place)
    if place is not None and (place / "config.json").is_file():
        return _config_shape(place / "config.json")
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
    plain = name.lower().replace("_", "-").replace("meta-", "")
    found = [key for key in KNOWN if re.search(rf"(^|[^0-9a-z.]){re.escape(key)}([^0-9a-z]|$)", plain)]
    return KNOWN[max(found, key=len)] if found else None


def _config_shape(path: Path) -> Shape:
    config = read_json(path)
    config = config.get("text_config", config)
    try:
        heads = config["num_attention_heads"]
        return Shape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise UserError(
            f"{path.name} of {path.parent.name} has no {error}: name the shape in hardware.shapes."
        ) from error


@lru_cache(maxsize=8)  # reading the header takes seconds
def _gguf_shape(file: Path) -> Shape:
    import gguf

    reader = gguf.GGUFReader(file)
    kind = reader.fields["general.architecture"].contents()

    def value(key: str) -> int:
        return int(reader.fields[f"{kind}.{key}"].contents())

    tensors = {t.name: t for t in reader.tensors}
    hidden, heads = value("embedding_length"), value("attention.head_count")
    stated = f"{kind}.attention.key_length" in reader.fields
    return Shape(
        layers=value("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length") if stated else hidden // heads,
        intermediate=value("feed_forward_length"),
        vocab=int(tensors["token_embd.weight"].shape[1]),
        tied="output.weight" not in tensors,
    )
