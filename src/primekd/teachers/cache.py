"""A key-value cache of preallocated slots, whose rows come and go while others are being decoded.

transformers' DynamicCache copies all of itself at every step, to make room for one more token. Here a token is written
into its slot. A row's keys have their positions in them already, so a row may lie in any slots, as long as the
attention mask shows them; rows that were filled elsewhere are copied in, and a row that has ended makes room."""

from functools import partial

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class SlotLayer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, slots, head size) each; the first `length` slots are in use."""

    def __init__(self, rows: int, slots: int):
        super().__init__()
        self.rows, self.slots, self.length = rows, slots, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # Zeros: a masked slot has weight 0, and 0 times what was in this memory before may be nan.
        both = (key_states, value_states)
        self.keys, self.values = (x.new_zeros(self.rows, x.shape[1], self.slots, x.shape[3]) for x in both)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, end = len(key_states), self.length + key_states.shape[-2]
        self.keys[:rows, :, self.length : end] = key_states
        self.values[:rows, :, self.length : end] = value_states
        self.length = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_seq_length(self) -> int:
        return self.length


class SlotCache(Cache):
    """Room for `rows` sequences of `slots` tokens. All end at the same slot, where the next token is written."""

    def __init__(self, rows: int, slots: int, device: torch.device):
        super().__init__(layer_class_to_replicate=partial(SlotLayer, rows, slots))
        self.mask = torch.zeros(rows, slots, dtype=torch.bool, device=device)  # True where a row has a token
        self.slots, self.length = slots, 0  # `length` of them are in use

    def extend(self, tokens: Tensor) -> Tensor:
        """Makes the next slots tokens of the first rows as `tokens` (rows, new) says; returns the mask so far."""
        rows, new = tokens.shape
        self.mask[:rows, self.length : self.length + new] = tokens
        self.length += new
        return self.mask[:rows, : self.length]

    def restart(self, length: int) -> None:
        """Forgets all rows; the next ones end at slot `length`."""
        self._set_length(length)
        self.mask[:] = False

    def place(self, other: "SlotCache", rows: int, first: int) -> None:
        """Copies the first rows of another cache into the rows from `first` on, ending where all rows end."""
        start = self.length - other.length
        own, taken = slice(first, first + rows), slice(0, rows if len(other.mask) > 1 else 1)  # one row goes to all
        self.mask[own, :start] = False
        self.mask[own, start : self.length] = other.mask[taken, : other.length]
        while len(self.layers) < len(other.layers):
            self.layers.append(self.layer_class_to_replicate())
        for layer, source in zip(self.layers, other.layers, strict=True):
            if source.is_initialized:  # not where a layer uses another one's keys
                if not layer.is_initialized:
                    layer.lazy_initialization(source.keys, source.values)
                layer.length = self.length
                layer.keys[own, :, start : self.length] = source.keys[taken, :, : other.length]
                layer.values[own, :, start : self.length] = source.values[taken, :, : other.length]

    def move(self, source: int, target: int) -> None:
        self.mask[target] = self.mask[source]
        for layer in self._filled():
            layer.keys[target, :, : self.length] = layer.keys[source, :, : self.length]
            layer.values[target, :, : self.length] = layer.values[source, :, : self.length]

    def make_room(self, rows: int) -> None:
        """Drops the slots in front of the first token of the first `rows` rows."""
        first = int(self.mask[:rows, : self.length].int().argmax(-1).min())
        kept = self.length - first
        for layer in self._filled():
            for stored in (layer.keys, layer.values):
                stored[:rows, :, :kept] = stored[:rows, :, first : self.length].clone()
        self.mask[:rows, :kept] = self.mask[:rows, first : self.length].clone()
        self._set_length(kept)

    def _filled(self) -> list[SlotLayer]:
        return [layer for layer in self.layers if layer.is_initialized]

    def _set_length(self, length: int) -> None:
        self.length = length
        for layer in self.layers:
            layer.length = length


def has_plain_cache(config) -> bool:
    """Whether every layer of an architecture keeps keys and values of single tokens, and nothing else.

    Recurrent layers keep a state that padding and other rows' lengths would enter."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def narrowest_window(config) -> float:
    """How many slots back the layer looks that looks back least; infinity without sliding or chunked attention."""
    text = config.get_text_config(decoder=True)
    windows = (getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None))
    return min((window for window in windows if window), default=float("inf"))
