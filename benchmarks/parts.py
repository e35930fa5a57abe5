"""What `make bench` runs, in this order, and what is run by its name alone. A module is loaded when it is its turn."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from benchmarks.scale import Scale

LIMIT = 3  # times what is expected: a busy machine is slow


@dataclass(frozen=True)
class Part:
    """`seconds`: about how long it takes on two cores; it is stopped after LIMIT times as many.

    `extra`: it is run only if it is named.
    """

    does: str
    seconds: float
    measure: Callable[[Scale, Callable[..., None]], dict[str, Any]]
    extra: bool = False


def _own(module: str) -> Callable[[Scale, Callable[..., None]], dict[str, Any]]:
    return lambda scale, say: import_module(f"benchmarks.{module}").measure(scale, say)


def _by_items(module: str) -> Callable[[Scale, Callable[..., None]], dict[str, Any]]:
    return lambda scale, say: import_module(f"benchmarks.{module}").measure(items=scale.capture_items, say=say)


def _codecs(scale: Scale, say: Callable[..., None]) -> dict[str, Any]:
    return import_module("benchmarks.codecs").measure(tokens=scale.codec_tokens, profile=scale.profile, say=say)


PARTS = {
    "floors": Part("what this machine can do at most", 14, _own("floors")),
    "losses": Part("the loss with a frozen head", 210, _own("losses")),
    "training": Part("a training step", 185, _own("training")),
    "stores": Part("signals on disk", 18, _own("stores")),
    "codecs": Part("gradient error against bytes a token", 34, _codecs),
    "capture_transformers": Part("capture with transformers", 125, _by_items("capture_transformers")),
    "capture_llamacpp": Part("capture with llama.cpp", 140, _by_items("capture_llamacpp")),
    "assessment": Part("generating the answers of an assessment", 110, _by_items("assessment")),
    "choices": Part("scoring choices by likelihood", 90, _by_items("choices"), extra=True),
    "on_policy": Part("a step on the student's own text", 180, _own("on_policy"), extra=True),
    "attention": Part("memory of the attention pass", 30, _own("attention"), extra=True),
    "codec_students": Part("students trained from each codec", 480, _own("codec_students"), extra=True),
}
DEFAULT = [name for name, part in PARTS.items() if not part.extra]
