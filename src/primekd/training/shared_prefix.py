"""What all rows of a micro-batch begin with, read once instead of once a row.

A prompt starts with the chat template's own words, and a causal model's states there do not depend on what follows. So
they are computed for one row, and the others attend to the same keys and values, which stay in the autograd graph: loss
and gradients are those of whole rows.
"""

import inspect

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from primekd.teachers.cache import has_plain_cache, narrowest_window
from primekd.teachers.decoding import SHORTEST_PREFIX
from primekd.training.processes import process_count


def may_share_prefix(model: nn.Module, longest: int) -> bool:
    """Whether two passes give the same as one, and may take less time.

    Not on a GPU, where every pass has to be launched kernel by kernel, nor with several processes, whose wrappers
    expect one pass; not with dropout, which rows would have in common, nor with recomputed activations, which go
    without a cache. Layers have to keep the keys and values of all tokens.

    Args:
        model: a causal model of transformers, with or without LoRA layers in it.
        longest: tokens of the longest sequence.
    """
    accepted = inspect.signature(model.get_decoder().forward).parameters
    return (
        model.device.type == "cpu"
        and process_count() == 1
        and not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        and not _has_dropout(model)
        and {"position_ids", "past_key_values"} <= accepted.keys()
        and has_plain_cache(model.config)
        and longest <= narrowest_window(model.config)
    )


def _has_dropout(model: nn.Module) -> bool:
    """In a module, or in the configuration, where attention has its own."""
    settings = model.config.get_text_config(decoder=True).to_dict()
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()) or any(
        value for name, value in settings.items() if "drop" in name
    )


def prefix_length(input_ids: Tensor, attention_mask: Tensor, used: Tensor) -> int:
    """How many tokens (B, S) all rows begin with whose states nobody uses, if that is worth it; else 0.

    Args:
        used: (B, S) bool, whose states are wanted.
    """
    if len(input_ids) < 2 or not used.any():
        return 0
    same = (input_ids == input_ids[:1]).all(0) & attention_mask.bool().all(0) & ~used.any(0)  # (S,)
    length = int(same.long().cumprod(0).sum())
    return length if length >= SHORTEST_PREFIX else 0


def states_after(decoder: nn.Module, length: int, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states (B, S - length, D) behind the first `length` tokens (B, S), which are those of every row."""
    cache = DynamicCache(config=decoder.config)
    decoder(
        input_ids=input_ids[:1, :length], attention_mask=attention_mask[:1, :length], past_key_values=cache,
        use_cache=True,
    )  # fmt: skip
    for layer in cache.layers:
        if layer.is_initialized:  # not where a layer uses another one's keys
            layer.keys, layer.values = (x.expand(len(input_ids), -1, -1, -1) for x in (layer.keys, layer.values))
    positions = torch.arange(length, input_ids.shape[1], device=input_ids.device)[None]
    return decoder(
        input_ids=input_ids[:, length:],
        attention_mask=attention_mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
