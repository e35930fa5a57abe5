"""Which attention a model is run with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

PLAIN_ATTENTION_TOKENS = 256
PACKED = "packed"  # this attention's name in transformers
PACKED_PLAIN_TOKENS = 1024  # plain products in rows of up to so many: three times faster in training at 370


def choose_attention(model: nn.Module, tokens: int) -> None:
    """Plain products instead of fused attention where those are faster: bfloat16 on a CPU, at most so many `tokens`.

    Fused attention takes twice as long there in training, a fifth longer in reading; plain keeps length^2 numbers."""
    short = model.device.type == "cpu" and model.dtype == torch.bfloat16 and tokens <= PLAIN_ATTENTION_TOKENS
    if short and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float | None = None,
    *, shared: int, lengths: Sequence[int], **kwargs,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention of rows that stand one behind the other without padding, all behind one shared beginning. query
    (1, H, S, d), key and value (1, G, S, d) -> (1, S, H, d), and no weights; H / G heads look at the same keys.
    `shared`: tokens that every row begins with, which stand once in front of all; `lengths`: those of each row behind
    them; S = shared + sum(lengths). Raises NotImplementedError if scores are more than scaled and masked."""
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("scores with a soft cap or sinks")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = query[0].unflatten(0, (key.shape[1], -1)), key[0], value[0]  # (G, R, S, d), (G, S, d)
    before = [part[:, :shared] for part in (k, v)]
    parts = [_causal(q[:, :, :shared], *before, scaling)] if shared else []
    rows = zip(*(x.split(lengths, -2) for x in (q[:, :, shared:], k[:, shared:], v[:, shared:])), strict=True)
    parts += [_causal(a, torch.cat([before[0], b], 1), torch.cat([before[1], c], 1), scaling) for a, b, c in rows]
    return torch.cat(parts, -2).flatten(0, 1).transpose(0, 1)[None], None


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """(G, R, n, d) of the last n of N places, (G, N, d) both -> (G, R, n, d)."""
    (groups, heads, n, _), whole = query.shape, key.shape[1]
    if query.dtype != torch.bfloat16 or whole > PACKED_PLAIN_TOKENS:
        shown = None if n == whole else torch.ones(n, whole, dtype=torch.bool).tril(whole - n)
        key, value = (x[:, None].expand(-1, heads, -1, -1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, shown, is_causal=shown is None, scale=scaling)
    # A constant a query changes no softmax, and scores near zero are rounded less: keys share large parts.
    key = (key - key.mean(1, keepdim=True, dtype=torch.float32).detach()).to(query.dtype)
    hidden = query.new_full((n, whole), -torch.inf).triu(1 + whole - n).repeat(heads, 1)  # (R n, N)
    scores = torch.baddbmm(hidden.expand(groups, -1, -1), query.flatten(1, 2), key.mT, alpha=scaling)
    return (scores.softmax(-1) @ value).unflatten(1, (heads, n))


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)


@contextmanager
def attending(model: nn.Module, name: str = "", tokens: int = 0) -> Iterator[None]:
    """A model of transformers with the attention of this name, with PACKED its passes take `shared` and `lengths`; or
    with what `choose_attention` takes for so many tokens."""
    before = model.config._attn_implementation
    if name:
        model.set_attn_implementation(name)
    else:
        choose_attention(model, tokens)
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
