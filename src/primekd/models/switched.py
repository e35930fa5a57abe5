"""Many students from one loaded base: each wears its adapter as the assessment serves it, and is switched in place."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

# Their makers' code is recorded with published logs, so they stay where they are, under their own names.
from primekd.models.served import _adapted, _base_weight, _cast_adapter, _ready, _untie, _with_adapter


class SwitchedAdapters:
    """The adapters of several students on one base; one of them, or none, is worn at a time. An adapter beside the
    weights multiplies in `dtype`. A merged one is added in float32 to the base's weights, which are kept in host
    memory, and rounded once: the same weights as `load_merged` makes.

    `base` is as `load_model` gives it: where an adapter is merged, in float32 or, if training rounded it, in `rounded`,
    the precision of weights and adapters in training where `dtype` is a finer one. `adapters`: student -> (folder in
    peft's format, whether it is merged). Raises UserError if one is not there, or does not fit this base."""

    def __init__(
        self, base: nn.Module, reference: str, dtype: str, adapters: Mapping[str, tuple[Path, bool]],
        rounded: str | None = None,
    ):  # fmt: skip
        self.base, self._merged = base, {name for name, (_, merged) in adapters.items() if merged}
        self._keys = {name: f"student{place}" for place, name in enumerate(adapters)}  # peft takes no dots
        self._student, self._changed = None, False
        for name, (folder, _) in adapters.items():
            self._student = _with_adapter(self._student or base, reference, folder, self._keys[name])
        if self._student is not None:
            _untie(self._student)
            _cast_adapter(self._student, (rounded or "float32") if self._merged else dtype)
        layers = _adapted(base) if self._merged else []
        self._originals = [(layer, _base_weight(layer).detach().to("cpu", copy=True)) for layer in layers]
        self._cast(dtype)

    def _cast(self, dtype: str) -> None:
        """Weights in `dtype`, and adapters, but for those that are merged: these are added in float32."""
        merged = {self._keys[name] for name in self._merged}
        for name, parameter in self.base.named_parameters():
            if merged & set(name.split(".")):
                parameter.data = parameter.data.float()
            elif parameter.is_floating_point():
                parameter.data = parameter.data.to(getattr(torch, dtype))

    @torch.no_grad()
    def wear(self, name: str | None) -> nn.Module:
        """Makes the base this student, or itself again with None; returns its output head, adapted or plain."""
        if self._changed:
            for layer, original in self._originals:
                _base_weight(layer).copy_(original)
            self._changed = False
        beside = name is not None and name not in self._merged
        if name is not None:
            self._student.set_adapter(self._keys[name])
        if name in self._merged:
            self._changed = True
            self._merge(self._keys[name])
        if self._student is not None:
            tuner = self._student.base_model
            tuner.enable_adapter_layers() if beside else tuner.disable_adapter_layers()
        _ready(self.base)
        head = self.base.get_output_embeddings()
        return head if beside or not hasattr(head, "get_base_layer") else head.get_base_layer()

    @torch.no_grad()
    def read_together(self, names: Sequence[str | None], input_ids: Tensor) -> None:
        """One pass of rows (B, T), each through its student's adapter, or the base alone for None; none is merged."""
        self.wear(None)
        if self._student is None:
            self.base.get_decoder()(input_ids=input_ids, use_cache=False)
            return
        self._student.base_model.enable_adapter_layers()
        keys = ["__base__" if name is None else self._keys[name] for name in names]  # peft's word for no adapter
        self._student(input_ids=input_ids, use_cache=False, logits_to_keep=1, adapter_names=keys)

    def _merge(self, key: str) -> None:
        for layer, original in self._originals:
            if key in layer.scaling:
                weight = _base_weight(layer)
                weight.copy_(original.to(weight.device, torch.float32).add(layer.get_delta_weight(key)))
