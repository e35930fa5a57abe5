"""The bars: what each stage has to reach, what was measured, and whether it did."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.losses import frozen_name
from benchmarks.parts import PARTS
from benchmarks.results import read_part
from benchmarks.training import OWN, PLAIN
from primekd.provenance import read_json

LONGEST_S = 15 * 60


@dataclass(frozen=True)
class Bar:
    """`measured` takes what a part found and gives a number; KeyError or TypeError: it was not measured."""

    name: str
    part: str
    at_most: bool
    target: float
    measured: Callable[[dict[str, Any]], float]
    unit: str = "x"


def _bars() -> list[Bar]:
    bars = []
    # Time and memory of the prototype that was to be beaten, the time against cross-entropy alone.
    for section, times, mib in (("49152 float32", 1.85 / 0.85, 340e6 / 2**20), ("128256 float32", 2.0, 370e6 / 2**20)):
        name = f"loss from hidden rows, vocabulary and dtype {section}"
        bars += [
            Bar(f"{name}: time against cross-entropy alone", "losses", True, round(times, 2), _loss(section, "ratio")),
            Bar(f"{name}: peak memory", "losses", True, round(mib), _loss(section, "peak_mib"), "MiB"),
            Bar(f"{name}: relative error of the loss", "losses", True, 1e-5, _loss(section, "relative_error"), ""),
        ]
    for codec, time in (("hidden", 1.25), ("topk", 1.1), ("sampled", 1.1)):
        for reference in (PLAIN, OWN):
            name = f"step from {codec} signals against {reference}"
            bars += [
                Bar(f"{name}: time", "training", True, time, _step(codec, reference, memory=False)),
                Bar(f"{name}: peak memory", "training", True, 1.1, _step(codec, reference, memory=True)),
            ]
    share = "capture with signals against plain generation"
    return [
        *bars,
        Bar(f"transformers: {share}", "capture_transformers", False, 0.85, lambda x: x["ratio"]["median"]),
        Bar("transformers: memory for 8 times the items", "capture_transformers", True, 1.1, _flatness),
        Bar(f"llama.cpp: {share}", "capture_llamacpp", False, 0.85, lambda x: x["capture_share"]["median"]),
        Bar("llama.cpp: parallel against its single stream", "capture_llamacpp", False, 2, _parallel),
        Bar("assessment: batches against one by one, the slower model", "assessment", False, 6, _slowest),
        Bar("assessment: share of equal answers in float32", "assessment", False, 1, _equal_answers, ""),
    ]


def _parallel(found: dict[str, Any]) -> float:
    return found["alternatives"]["parallel"]["ratio"]["median"]


def _flatness(found: dict[str, Any]) -> float:
    peaks = sorted((int(items), peak) for items, peak in found["peaks"].items())
    return peaks[-1][1] / peaks[0][1]


def _slowest(found: dict[str, Any]) -> float:
    return min(model["ratio"]["median"] for model in found["models"].values())


def _equal_answers(found: dict[str, Any]) -> float:
    compared = found["float32"].values()
    return sum(model["equal"] for model in compared) / sum(model["compared"] for model in compared)


def _loss(section: str, key: str) -> Callable[[dict[str, Any]], float]:
    def measured(found: dict[str, Any]) -> float:
        value = found["sections"][section]["alternatives"][frozen_name("hidden")][key]
        return value["median"] if isinstance(value, dict) else value

    return measured


def _step(codec: str, reference: str, memory: bool) -> Callable[[dict[str, Any]], float]:
    def measured(found: dict[str, Any]) -> float:
        name = f"{codec} signals"
        if memory:
            return found["alternatives"][name]["peak_mib"] / found["alternatives"][reference]["peak_mib"]
        return (found["to_own"][name] if reference == OWN else found["alternatives"][name]["ratio"])["median"]

    return measured


BARS = _bars()


def judge(folder: Path) -> list[dict[str, Any]]:
    """Of each bar its name, target, unit, what was measured and whether it is met; None for both if it was not run."""
    rows = []
    for bar in BARS:
        try:
            value = float(bar.measured(read_part(folder, bar.part)))
        except (KeyError, TypeError):
            value = None
        rows.append(_row(bar.name, bar.at_most, bar.target, bar.unit, value))
    seconds = [read_json(folder / f"{part}.json")["seconds"] for part in PARTS if (folder / f"{part}.json").is_file()]
    whole = sum(seconds) if len(seconds) == len(PARTS) else None
    return [*rows, _row("make bench: whole duration", True, LONGEST_S, "s", whole)]


def _row(name: str, at_most: bool, target: float, unit: str, value: float | None) -> dict[str, Any]:
    met = None if value is None else (value <= target if at_most else value >= target)
    wanted = f"{'at most' if at_most else 'at least'} {target:g} {unit}".strip()
    return {"bar": name, "target": wanted, "measured": value, "unit": unit, "met": met}
