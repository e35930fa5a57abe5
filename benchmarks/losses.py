"""The distillation loss with a frozen head: this project's, TRL's and plain PyTorch's, and the floor."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

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
from benchmarks.timing import Clock, alternate, shown, summary

WIDTH = 576  # SmolLM2-135M's; both vocabularies are taken at it
CHECKED_TOKENS = 64  # of each case, in float64; the warm-up has as many
SIGNALS = ("hidden", "full", "topk", "sampled")
OTHER_ROUNDS = 1  # of those that no bar compares; they are slow
PREPARE = "benchmarks.objectives:prepare"
SHORTEST_S = 15  # a section is not begun with less time left


@dataclass(frozen=True)
class Inputs:
    """What the inputs of a section are, as `make_case` takes them."""

    vocabulary: int
    dtype: str = "float32"
    tokens: int = 1024
    divergence: str = "forward_kl"
    width: int = WIDTH


def measure(scale: Scale, say=print) -> dict[str, Any]:
    """Time, peak memory and error of every alternative.

    Returns:
        sections: {name: {"vocabulary", "tokens", "dtype", "divergence", "alternatives": {name: {"seconds", "ratio",
        "peak_mib", "relative_error", "gradient_error"}}}}, ratios to the cross-entropy alone of the same round;
        growth: for each number of tokens the same.
    """
    clock = Clock(scale.losses_s)
    small, large = (Inputs(vocabulary, tokens=scale.tokens) for vocabulary in scale.vocabularies)
    quarter = replace(small, tokens=scale.tokens // 4)
    sections = {
        _name(small): _section(scale, say, small, (CROSS_ENTROPY, TRL_WHOLE, TRL_CHUNKED, WHOLE, PRODUCTS), SIGNALS),
        _name(large): _section(scale, say, large, (CROSS_ENTROPY, TRL_WHOLE, PRODUCTS), ("hidden",)),
    }
    growth = _growth(scale, partial(say, "growth"), sections[_name(small)]["alternatives"])
    for inputs, rivals in (
        *((replace(quarter, divergence=divergence), (CROSS_ENTROPY, WHOLE)) for divergence in ("reverse_kl", "jsd")),
        (replace(small, dtype="bfloat16"), (CROSS_ENTROPY, TRL_WHOLE)),
        (replace(large, dtype="bfloat16"), (CROSS_ENTROPY,)),
    ):
        if clock.left() < SHORTEST_S:
            say(_name(inputs), "not run: this part's time is over")
        else:
            sections[_name(inputs)] = _section(replace(scale, rounds=min(3, scale.rounds)), say, inputs, rivals)
    return {"width": WIDTH, "sections": sections, "growth": growth}


def _name(inputs: Inputs) -> str:
    if inputs.divergence != "forward_kl":
        return inputs.divergence
    return f"{inputs.vocabulary} {inputs.dtype}"


def frozen_name(signal: str) -> str:
    """What this project's loss from such rows is called."""
    return f"{FROZEN}, {signal} rows"


def _section(
    scale: Scale, say, inputs: Inputs, rivals: tuple[str, ...], signals: tuple[str, ...] = ("hidden",)
) -> dict[str, Any]:
    """The rivals and this project's loss from rows of these codecs, on inputs that are the same for all."""
    shared, say = asdict(inputs), partial(say, _name(inputs))
    chosen = {name: (name, "hidden") for name in _installed(rivals)}
    chosen |= {frozen_name(signal): (FROZEN, signal) for signal in signals}
    cases = {signal: make_case(**shared, signal=signal) for signal in signals}
    calls = {name: partial(alternative(kind), cases[signal]) for name, (kind, signal) in chosen.items()}
    few = {signal: case.first(CHECKED_TOKENS) for signal, case in cases.items()}
    compared = {name: calls[name] for name in (CROSS_ENTROPY, frozen_name("hidden"))}
    times = alternate(compared, scale.rounds, scale.loss_budget_s, say)
    # The others in rounds of their own with the same reference, which is warm by now.
    others = {name: call for name, call in calls.items() if name == CROSS_ENTROPY or name not in compared}
    warm_up = [partial(alternative(kind), few[signal]) for name, (kind, signal) in chosen.items() if name in others]
    measured = summary(alternate(others, OTHER_ROUNDS, warm_up=warm_up), CROSS_ENTROPY) | summary(times, CROSS_ENTROPY)
    alternatives = {name: measured[name] for name in chosen}
    exact = {signal: exact_gradient(case) for signal, case in few.items()}
    for name, (kind, signal) in chosen.items():
        if kind not in (CROSS_ENTROPY, PRODUCTS):
            alternatives[name] |= errors(kind, few[signal], *exact[signal])
    del cases, calls, compared, others, warm_up
    for name, (kind, signal) in chosen.items():
        alternatives[name]["peak_mib"] = peak_bytes(PREPARE, kind, **shared, signal=signal) / 2**20
    say(_line(alternatives))
    return shared | {"alternatives": alternatives}


def errors(name: str, case: Case, exact: float, gradient: Tensor) -> dict[str, float]:
    """How far its loss and gradient are from float64's, `exact_gradient`, relative to their size."""
    value = alternative(name)(case)
    off = (case.hidden.grad.double() - gradient).norm() / gradient.norm()
    return {"relative_error": abs(value - exact) / abs(exact), "gradient_error": off.item()}


def _growth(scale: Scale, say, whole: dict[str, Any]) -> dict[str, Any]:
    """Time and peak memory for 1x, 2x, 4x, 8x tokens at the smaller vocabulary.

    Args:
        whole: the alternatives at `scale.tokens`, measured in the same way; they are not measured twice.
    """
    found: dict[str, Any] = {}
    for tokens in scale.growth_tokens:
        if tokens == scale.tokens:
            found[str(tokens)] = {CROSS_ENTROPY: whole[CROSS_ENTROPY], FROZEN: whole[frozen_name("hidden")]}
            continue
        shared = asdict(Inputs(scale.vocabularies[0], tokens=tokens))
        case = make_case(**shared)
        names = [CROSS_ENTROPY, FROZEN]
        calls = {name: partial(alternative(name), case) for name in names}
        found[str(tokens)] = summary(alternate(calls, scale.growth_rounds), CROSS_ENTROPY)
        del case, calls
        for name in names:
            found[str(tokens)][name]["peak_mib"] = peak_bytes(PREPARE, name, **shared) / 2**20
        say(f"{tokens} tokens: {_line(found[str(tokens)])}")
    return found


def _installed(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if has_trl() or name not in (TRL_WHOLE, TRL_CHUNKED)]


def _line(alternatives: dict[str, Any]) -> str:
    return "; ".join(f"{name} {shown(x['ratio'])} x, {x['peak_mib']:.0f} MiB" for name, x in alternatives.items())
