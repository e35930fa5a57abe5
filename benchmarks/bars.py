"""The bars: what each stage has to reach, what was measured, and whether it did."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.losses import frozen_name
from benchmarks.results import WHOLE, read_part
from benchmarks.training import PLAIN
from primekd.foundation import read_json

LONGEST_S = 15 * 60
Measured = float | dict[str, float]  # the latter with median, low and high


@dataclass(frozen=True)
class Bar:
    """`measured` takes what a part found and gives a number, or a median with its spread.

    KeyError or TypeError: it was not measured.
    """

    name: str
    part: str
    at_most: bool
    target: float
    measured: Callable[[dict[str, Any]], Measured]
    unit: str = "x"


def _bars() -> list[Bar]:
    bars = []
    # Times as ratios to cross-entropy alone, which hold on any machine.
    for section, times, mib in (("49152 float32", 1.85 / 0.85, 340e6 / 2**20), ("128256 float32", 2.0, 370e6 / 2**20)):
        name = f"loss from hidden rows, vocabulary and dtype {section}"
        bars += [
            Bar(f"{name}: time against cross-entropy alone", "losses", True, round(times, 2), _loss(section, "ratio")),
            Bar(f"{name}: peak memory", "losses", True, round(mib), _loss(section, "peak_mib"), "MiB"),
            Bar(f"{name}: relative error of the loss", "losses", True, 1e-5, _loss(section, "relative_error"), ""),
        ]
    for codec, time in (("hidden", 1.25), ("topk", 1.1), ("sampled", 1.1)):
        name = f"step from {codec} signals against {PLAIN}"
        bars.append(Bar(f"{name}: time", "training", True, time, partial(_step_time, codec)))
        if codec == "hidden":
            bars.append(Bar(f"{name}: peak memory", "training", True, 1.1, partial(_step_memory, codec)))
    share = "capture with signals against plain generation"
    return [
        *bars,
        Bar(f"transformers: {share}", "capture_transformers", False, 0.85, lambda x: x["ratio"]),
        Bar("transformers: memory for 8 times the items", "capture_transformers", True, 1.1, _flatness),
        Bar(f"llama.cpp: {share}", "capture_llamacpp", False, 0.85, lambda x: x["capture_share"]),
        Bar("llama.cpp: memory for 8 times the items", "capture_llamacpp", True, 1.1, _flatness),
        Bar("llama.cpp: parallel against its single stream", "capture_llamacpp", False, 2, _parallel),
        Bar("assessment: batches against one by one, the slower model", "assessment", False, 6, _slowest),
        Bar("assessment: share of equal answers in float32", "assessment", False, 1, _equal_answers, ""),
        Bar("choices: against lm-evaluation-harness, the slowest set", "choices", False, 1.5, _slowest_set),
        *(
            Bar(
                f"on-policy, {name}: a step against what its parts cost alone",
                "on_policy",
                True,
                1.15,
                partial(_of_objective, name),
            )
            for name in ("divergence", "minillm")
        ),
    ]


def _parallel(found: dict[str, Any]) -> Measured:
    return found["alternatives"]["parallel"]["ratio"]


def _flatness(found: dict[str, Any]) -> float:
    peaks = sorted((int(items), x["peak_bytes"]) for items, x in found["growth"].items())
    return peaks[-1][1] / peaks[0][1]


def _slowest(found: dict[str, Any]) -> Measured:
    return min((model["ratio"] for model in found["models"].values()), key=itemgetter("median"))


def _slowest_set(found: dict[str, Any]) -> Measured:
    return min((one["ratio"] for one in found["sets"].values()), key=itemgetter("median"))


def _of_objective(name: str, found: dict[str, Any]) -> Measured:
    return found["objectives"][name]["ratio"]


def _equal_answers(found: dict[str, Any]) -> float:
    compared = found["float32"].values()
    return sum(model["equal"] for model in compared) / sum(model["compared"] for model in compared)


def _loss(section: str, key: str) -> Callable[[dict[str, Any]], Measured]:
    def measured(found: dict[str, Any]) -> Measured:
        return found["sections"][section]["alternatives"][frozen_name("hidden")][key]

    return measured


def _step_time(codec: str, found: dict[str, Any]) -> Measured:
    return found["alternatives"][f"{codec} signals"]["ratio"]


def _step_memory(codec: str, found: dict[str, Any]) -> float:
    return found["alternatives"][f"{codec} signals"]["peak_mib"] / found["alternatives"][PLAIN]["peak_mib"]


BARS = _bars()


def judge(folder: Path) -> list[dict[str, Any]]:
    """Of each bar its name, target, unit, what was measured and whether it is met; None for both if it was not run.

    "measured" is a median where there are several rounds, and "spread" the least and the greatest of them;
    "every_round" says whether both of these meet the bar too.
    """
    rows = []
    for bar in BARS:
        try:
            value = bar.measured(read_part(folder, bar.part))
        except (KeyError, TypeError):
            value = None
        rows.append(_row(bar.name, bar.at_most, bar.target, bar.unit, value))
    whole = read_json(folder / WHOLE)["seconds"] if (folder / WHOLE).is_file() else None
    return [*rows, _row("make bench: whole duration", True, LONGEST_S, "s", whole)]


def _row(name: str, at_most: bool, target: float, unit: str, measured: Measured | None) -> dict[str, Any]:
    spread = [measured["low"], measured["high"]] if isinstance(measured, dict) else None
    value = measured["median"] if isinstance(measured, dict) else measured

    def reached(number: float) -> bool:
        return number <= target if at_most else number >= target

    met = None if value is None else reached(value)
    wanted = f"{'at most' if at_most else 'at least'} {target:g} {unit}".strip()
    return {"bar": name, "target": wanted, "measured": value, "spread": spread, "unit": unit, "met": met} | {
        "every_round": None if value is None else all(map(reached, spread or [value]))
    }
