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
    fewer: Mapping[str, int] | None = None,
) -> Times:
    """Runs A B C A B C …: each once to warm up, then `rounds` that count, fewer if `budget_s` is spent.

    Args:
        rounds: at most so many.
        budget_s: no round begins that would end after so many seconds, judged by the times before; two are made anyhow.
        say: is told how far it is, once a round.
        warm_up: shorter calls that load the same code, instead of the alternatives themselves.
        fewer: of slow alternatives the number of rounds that they take part in, which are the first ones.

    Returns:
        Seconds a round, in the order of `alternatives`; on a GPU between events on its own clock.
    """
    for run in alternatives.values() if warm_up is None else warm_up:
        run()
    most, start = fewer or {}, time.perf_counter()
    times: Times = {name: [] for name in alternatives}
    for number in range(1, rounds + 1):
        now = [name for name in alternatives if number <= most.get(name, rounds)]
        if number > 2 and time.perf_counter() - start + sum(times[name][-1] for name in now) > budget_s:
            break
        for name in now:
            times[name].append(time_once(alternatives[name]))
        say(f"round {number} of {rounds}")
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


class Clock:
    """What is left of a part's time."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, 0 if it is over."""
        return max(0.0, self.end - time.monotonic())


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summary(times: Times, reference: str) -> dict[str, dict[str, Any]]:
    """Of each alternative {"seconds": …, "ratio": …}, both with median, low and high.

    A ratio is taken round by round against the reference of the same round, then its median; an alternative that took
    part in fewer rounds was there in the first ones.
    """
    return {
        name: {
            "seconds": spread(values),
            "ratio": spread([value / base for value, base in zip(values, times[reference], strict=False)]),
            "rounds": len(values),
        }
        for name, values in times.items()
    }


def shown(values: dict[str, float]) -> str:
    """A median with its spread, for the screen and for tables."""
    return f"{values['median']:.2f} [{values['low']:.2f}, {values['high']:.2f}]"
