"""Memory of the attention pass against the number of layers: a random Llama reads one text beside three students' rows.

    python -m benchmarks run attention

What a pass needs above the model and its input, in a process of its own: with the project's reader, which lets each
layer's maps go, and with transformers' `output_attentions`, which keeps all of them.
"""

import statistics
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.memory import peak_bytes
from benchmarks.scale import Scale

LAYERS, TOKENS, ROWS, HEADS, TIMES = (2, 8, 32), 512, 4, 8, 5


def measure(scale: Scale, say=print) -> dict[str, Any]:
    """{"tokens", "rows", "heads", "layers": [...], "reduced_mib": [...], "kept_mib": [...]}, one value a depth."""
    found: dict[str, Any] = {"tokens": TOKENS, "rows": ROWS, "heads": HEADS, "layers": list(LAYERS)}
    for name in ("reduced", "kept"):
        found[f"{name}_mib"] = []
        for layers in LAYERS:
            peaks = [peak_bytes(f"benchmarks.attention:{name}", layers) / 2**20 for _ in range(TIMES)]
            mib = statistics.median(peaks)  # what the allocator gives back in time differs by run
            found[f"{name}_mib"].append(mib)
            say(f"{name}, {layers} layers: {mib:.0f} MiB")
    return found


def _model(layers: int) -> tuple[LlamaForCausalLM, torch.Tensor]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=HEADS,
        max_position_embeddings=TOKENS,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.randint(256, (ROWS, TOKENS))


def reduced(layers: int):
    """The pass of this project."""
    from transformers import AttentionInterface

    from primekd.assessment.inside.attention import READ, HeadReader, read_maps
    from primekd.models.attention import attending

    model, ids = _model(layers)

    def run():
        AttentionInterface.register(READ, HeadReader(read_maps))
        with torch.inference_mode(), attending(model, READ):
            model.get_decoder()(input_ids=ids, use_cache=False)

    return run


def kept(layers: int):
    """The same with every map kept."""
    model, ids = _model(layers)
    model.set_attn_implementation("eager")

    def run():
        with torch.inference_mode():
            model.get_decoder()(input_ids=ids, use_cache=False, output_attentions=True)

    return run
