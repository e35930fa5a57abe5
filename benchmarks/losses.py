"""The distillation loss with a frozen head: this project's, TRL's and plain PyTorch's, and the floor."""

from functools import partial
from typing import Any

from benchmarks.memory import peak_bytes
from benchmarks.objectives import (
    CROSS_ENTROPY,
    FROZEN,
    PRODUCTS,
    TRL_CHUNKED,
    TRL_WHOLE,
    WHOLE,
    Case,
    alternative,
    exact_gradient,
    has_trl,
    make_case,
)
from benchmarks.scale import Scale
from benchmarks.timing import alternate, shown, summary

WIDTH = 576  # SmolLM2-135M's; both vocabularies are taken at it
CHECKED_TOKENS = 64  # of each case, in float64; the warm-up has as many
SIGNALS = ("hidden", "full", "topk", "sampled")
RIVALS = (CROSS_ENTROPY, TRL_WHOLE, TRL_CHUNKED, WHOLE)
FAST_RIVALS = (CROSS_ENTROPY, TRL_WHOLE)  # the others take too long at the large vocabulary


def measure(scale: Scale, say=print) -> dict[str, Any]:
    """Time, peak memory and error of every alternative.

    Returns:
        sections: {name: {"vocabulary", "tokens", "dtype", "divergence", "alternatives": {name: {"seconds", "ratio",
        "peak_mib", "relative_error", "gradient_error"}}}}, ratios to the cross-entropy alone of the same round;
        growth: for each number of tokens the same.
    """
    sections = {}
    for vocabulary in scale.vocabularies:
        rivals = RIVALS if vocabulary == scale.vocabularies[0] else FAST_RIVALS
        for dtype in ("float32", "bfloat16"):
            name = f"{vocabulary} {dtype}"
            shared = {"vocabulary": vocabulary, "dtype": dtype, "tokens": scale.tokens, "divergence": "forward_kl"}
            sections[name] = _section(scale, partial(say, name), shared, rivals, SIGNALS)
    for divergence in ("reverse_kl", "jsd"):
        shared = {"vocabulary": scale.vocabularies[0], "dtype": "float32", "tokens": scale.tokens // 2}
        shared |= {"divergence": divergence}
        sections[divergence] = _section(scale, partial(say, divergence), shared, (*FAST_RIVALS, WHOLE), ("hidden",))
    return {"width": WIDTH, "sections": sections, "growth": _growth(scale, partial(say, "growth"))}


def frozen_name(signal: str) -> str:
    """What this project's loss from such rows is called."""
    return f"{FROZEN}, {signal} rows"


def _section(
    scale: Scale, say, shared: dict[str, Any], rivals: tuple[str, ...], signals: tuple[str, ...]
) -> dict[str, Any]:
    """`shared`: what `make_case` takes, the same for all alternatives."""
    chosen = {name: (name, "hidden") for name in (*_installed(rivals), PRODUCTS)}
    chosen |= {frozen_name(signal): (FROZEN, signal) for signal in signals}
    cases = {signal: make_case(**shared, width=WIDTH, signal=signal) for signal in signals}
    calls = {name: partial(alternative(kind), cases[signal]) for name, (kind, signal) in chosen.items()}
    few = {signal: case.first(CHECKED_TOKENS) for signal, case in cases.items()}
    warm_up = [partial(alternative(kind), few[signal]) for kind, signal in chosen.values()]
    times = alternate(calls, scale.rounds, scale.loss_budget_s, say, warm_up)
    alternatives = summary(times, CROSS_ENTROPY)
    for name, (kind, signal) in chosen.items():
        if kind not in (CROSS_ENTROPY, PRODUCTS):
            alternatives[name] |= errors(kind, few[signal])
    del cases, calls
    for name, (kind, signal) in chosen.items():
        peak = peak_bytes("benchmarks.objectives:prepare", kind, **shared, width=WIDTH, signal=signal)
        alternatives[name]["peak_mib"] = peak / 2**20
    say(_line(alternatives))
    return shared | {"width": WIDTH, "alternatives": alternatives}


def errors(name: str, case: Case) -> dict[str, float]:
    """How far its loss and gradient are from float64's, relative to their size."""
    value = alternative(name)(case)
    exact, gradient = exact_gradient(case)
    off = (case.hidden.grad.double() - gradient).norm() / gradient.norm()
    return {"relative_error": abs(value - exact) / abs(exact), "gradient_error": off.item()}


def _growth(scale: Scale, say) -> dict[str, Any]:
    """Time and peak memory for 1x, 2x, 4x, 8x tokens at the smaller vocabulary."""
    found: dict[str, Any] = {}
    for tokens in scale.growth_tokens:
        shared = {"tokens": tokens, "width": WIDTH, "vocabulary": scale.vocabularies[0]}
        case = make_case(**shared)
        names = [*_installed(FAST_RIVALS), FROZEN]
        calls = {name: partial(alternative(name), case) for name in names}
        found[str(tokens)] = summary(alternate(calls, scale.growth_rounds), CROSS_ENTROPY)
        del case, calls
        for name in names:
            found[str(tokens)][name]["peak_mib"] = peak_bytes("benchmarks.objectives:prepare", name, **shared) / 2**20
        say(f"{tokens} tokens: {_line(found[str(tokens)])}")
    return found


def _installed(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if has_trl() or name not in (TRL_WHOLE, TRL_CHUNKED)]


def _line(alternatives: dict[str, Any]) -> str:
    return "; ".join(f"{name} {shown(x['ratio'])} x, {x['peak_mib']:.0f} MiB" for name, x in alternatives.items())
