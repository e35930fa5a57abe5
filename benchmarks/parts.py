"""What `make bench` runs, in this order. Each part's module is loaded when it is its turn."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from benchmarks.scale import Scale


@dataclass(frozen=True)
class Part:
    """`seconds`: about how long it takes on two cores, for the time left that is shown."""

    does: str
    seconds: float
    measure: Callable[[Scale, Callable[..., None]], dict[str, Any]]


def _own(module: str) -> Callable[[Scale, Callable[..., None]], dict[str, Any]]:
    return lambda scale, say: import_module(f"benchmarks.{module}").measure(scale, say)


def _by_items(module: str) -> Callable[[Scale, Callable[..., None]], dict[str, Any]]:
    return lambda scale, say: import_module(f"benchmarks.{module}").measure(items=scale.capture_items)


PARTS = {
    "floors": Part("what this machine can do at most", 10, _own("floors")),
    "losses": Part("the loss with a frozen head", 360, _own("losses")),
    "training": Part("a training step", 190, _own("training")),
    "stores": Part("signals on disk", 40, _own("stores")),
    "codecs": Part("gradient error against bytes a token", 60, lambda scale, say: _codecs(scale)),
    "capture_transformers": Part("capture with transformers", 90, _by_items("capture_transformers")),
    "capture_llamacpp": Part("capture with llama.cpp", 90, _by_items("capture_llamacpp")),
    "assessment": Part("generating the answers of an assessment", 90, _by_items("assessment")),
}


def _codecs(scale: Scale) -> dict[str, Any]:
    return import_module("benchmarks.codecs").measure(tokens=scale.codec_tokens, profile=scale.profile)
