"""Times of alternatives that take turns in one process, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

Times = dict[str, list[float]]  # of each alternative the seconds of every round


def alternate(
    alternatives: Mapping[str, Callable[[], Any]],
    rounds: int,
    budget_s: float = float("inf"),
    say: Callable[[str], None] = lambda text: None,
    warm_up: Iterable[Callable[[], Any]] | None = None,
) -> Times:
    """Runs A B C A B C …: each once to warm up, then `rounds` that count, fewer if `budget_s` is spent.

    Args:
        rounds: at most so many.
        budget_s: no round begins that would end after so many seconds, judged by the one before; two are made anyhow.
        say: is told how far it is, once a round.
        warm_up: shorter calls that load the same code, instead of the alternatives themselves.

    Returns:
        Seconds a round, in the order of `alternatives`; on a GPU between events on its own clock.
    """
    for run in alternatives.values() if warm_up is None else warm_up:
        run()
    start = time.perf_counter()
    times: Times = {name: [] for name in alternatives}
    for number in range(1, rounds + 1):
        began = time.perf_counter()
        for name, run in alternatives.items():
            times[name].append(time_once(run))
        now = time.perf_counter()
        say(f"round {number} of {rounds}")
        if number >= 2 and now - start + (now - began) > budget_s:
            break
    return times


def time_once(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summary(times: Times, reference: str) -> dict[str, dict[str, Any]]:
    """Of each alternative {"seconds": …, "ratio": …}, both with median, low and high.

    A ratio is taken round by round against the reference of the same round, then its median.
    """
    return {
        name: {
            "seconds": spread(values),
            "ratio": spread([value / base for value, base in zip(values, times[reference], strict=True)]),
            "rounds": len(values),
        }
        for name, values in times.items()
    }


def shown(values: dict[str, float]) -> str:
    """A median with its spread, for the screen and for tables."""
    return f"{values['median']:.2f} [{values['low']:.2f}, {values['high']:.2f}]"
