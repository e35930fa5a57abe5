"""PNG figures of what the parts found. Colours as in the report; bars also carry their numbers, lines their markers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import read_part
from primekd.foundation import write_atomically
from primekd.report.figures import DASHES, PALETTE, STYLE

MARKERS = "osD^v"
Found = dict[str, Any]


def draw_all(folder: Path) -> list[Path]:
    """Draws every figure whose part was run; returns their files."""
    drawn = []
    for name, (part, size, panels, fill) in FIGURES.items():
        found = read_part(folder, part)
        if found is not None:
            drawn.append(folder / f"{name}.png")
            _draw(drawn[-1], size, panels, lambda *axes, fill=fill, found=found: fill(found, *axes))
    if (found := read_part(folder, "codecs")) is not None:
        from benchmarks.codecs import draw

        drawn.append(folder / "codecs.png")
        draw(found, drawn[-1])
    return drawn


def _draw(path: Path, size: tuple[float, float], panels: int, fill: Callable[..., None]) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        fill(*figure.subplots(1, panels, squeeze=False)[0])
        with write_atomically(path) as temporary:
            # Without the version of matplotlib in it, equal data give an equal file.
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _bars(axes, names: list[str], values: list[Found | float], colour: str, title: str, digits: int) -> None:
    """Horizontal bars in the order given, from the top; {"median", "low", "high"} has its spread drawn."""
    middles = [v["median"] if isinstance(v, dict) else v for v in values]
    axes.barh(range(len(names)), middles, color=colour, height=0.65)
    for place, value in enumerate(values):
        if isinstance(value, dict):
            axes.plot([value["low"], value["high"]], [place, place], color="#222222", linewidth=1.4)
        end = value["high"] if isinstance(value, dict) else value
        axes.annotate(f" {middles[place]:,.{digits}f}", (end, place), va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.18)
    axes.set_title(title, fontsize=10.5)


def _losses(found: Found, *axes) -> None:
    sections = list(found["sections"].values())[:2]  # float32, both vocabularies
    for place, section in enumerate(sections):
        alternatives = section["alternatives"]
        where = f"V = {section['vocabulary']:,}, {section['tokens']:,} tokens, {section['dtype']}"
        seconds = [x["seconds"] for x in alternatives.values()]
        _bars(axes[2 * place], list(alternatives), seconds, PALETTE[0], f"Time, s ({where})", 2)
        peaks = [x["peak_mib"] for x in alternatives.values()]
        _bars(axes[2 * place + 1], list(alternatives), peaks, PALETTE[1], "Peak memory, MiB", 0)
        axes[2 * place + 1].set_yticklabels([])


def _loss_growth(found: Found, time, memory) -> None:
    growth = found["growth"]
    tokens = [int(n) for n in growth]
    for place, name in enumerate(next(iter(growth.values()))):
        line = {"color": PALETTE[place], "linestyle": DASHES[place % len(DASHES)], "marker": MARKERS[place]}
        time.plot(tokens, [growth[str(n)][name]["seconds"]["median"] for n in tokens], label=name, **line)
        memory.plot(tokens, [growth[str(n)][name]["peak_mib"] for n in tokens], label=name, **line)
    time.set_title("Time, s", fontsize=10.5)
    memory.set_title("Peak memory, MiB", fontsize=10.5)
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel="Tokens")
        axes.set_xticks(tokens, [f"{n:,}" for n in tokens])
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:,g}")
        axes.minorticks_off()
    time.legend()


def _training(found: Found, time, memory) -> None:
    alternatives = found["alternatives"]
    _bars(time, list(alternatives), [x["seconds"] for x in alternatives.values()], PALETTE[0], "Time a step, s", 2)
    _bars(memory, list(alternatives), [x["peak_mib"] for x in alternatives.values()], PALETTE[1], "Peak memory, MiB", 0)
    memory.set_yticklabels([])


def _stores(found: Found, sizes, writing, reading) -> None:
    alternatives = found["alternatives"]
    names = list(alternatives)
    _bars(
        sizes,
        names,
        [x["bytes_per_token"] for x in alternatives.values()],
        PALETTE[0],
        "Bytes a token (diamond: order-0 coder)",
        0,
    )
    for place, x in enumerate(alternatives.values()):
        if "entropy_bytes_per_token" in x:
            sizes.plot(x["entropy_bytes_per_token"], place, "D", color=PALETTE[1], markersize=5)
    for axes, verb in ((writing, "write"), (reading, "read")):
        rates = [x[verb]["tokens_per_s"] for x in alternatives.values()]
        title = {"write": "Written, tokens a second", "read": "Read, tokens a second"}[verb]
        _bars(axes, names, rates, PALETTE[2], title, 0)
        axes.set_yticklabels([])
    for axes in (sizes, writing, reading):
        axes.set_xscale("log")
        axes.set_xlim(right=axes.get_xlim()[1] * 4)  # room for the numbers
        axes.xaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")  # 10^5 would need mathematical text
        axes.minorticks_off()


def _reading_growth(found: Found, time, memory) -> None:
    growth = found["growth"]
    items = [int(n) for n in growth]
    seconds = [growth[str(n)]["seconds"]["median"] for n in items]
    time.plot(items, seconds, color=PALETTE[0], marker="o")
    memory.plot(items, [growth[str(n)]["peak_mib"] for n in items], color=PALETTE[1], marker="s", label="peak memory")
    memory.plot(
        items,
        [growth[str(n)]["bytes"] / 2**20 for n in items],
        color=PALETTE[6],
        linestyle="--",
        label="bytes of the store",
    )
    time.set_title("Reading a whole store, s", fontsize=10.5)
    memory.set_title("MiB", fontsize=10.5)
    memory.legend()
    for axes in (time, memory):
        axes.set(xlabel="Items", ylim=(0, None))
        axes.set_xticks(items)


def _capture_transformers(found: Found, rates, time, memory) -> None:
    _bars(rates, list(found["rates"]), list(found["rates"].values()), PALETTE[2], "Tokens a second", 0)
    items, growth = [int(n) for n in found["growth"]], found["growth"].values()
    time.plot(items, [x["seconds"] for x in growth], color=PALETTE[0], marker="o")
    memory.plot(items, [x["peak_bytes"] / 2**20 for x in growth], color=PALETTE[1], marker="s")
    time.set_title("Capture of short responses, s", fontsize=10.5)
    memory.set_title("Memory above the engine's, MiB", fontsize=10.5)
    for axes in (time, memory):
        axes.set(xlabel="Items", ylim=(0, None))
        axes.set_xticks(items)


def _capture_llamacpp(found: Found, rates) -> None:
    values = [x["tokens_per_second"] for x in found["alternatives"].values()]
    _bars(rates, list(found["alternatives"]), values, PALETTE[2], "Tokens a second", 0)


def _assessment(found: Found, *panels) -> None:
    for axes, (name, model) in zip(panels, found["models"].items(), strict=False):
        rates = model["tokens_per_second"]
        _bars(axes, list(rates), list(rates.values()), PALETTE[2], f"Tokens a second, {name}", 2)


def _codec_students(found: Found, axes) -> None:
    for place, (name, x) in enumerate(found["codecs"].items()):
        low, high = x["kl_mean"] - min(x["kl"]), max(x["kl"]) - x["kl_mean"]
        mark = {"color": PALETTE[place], "marker": MARKERS[place % len(MARKERS)], "capsize": 3, "linestyle": "none"}
        axes.errorbar([x["bytes"]], [x["kl_mean"]], yerr=[[low], [high]], label=name, **mark)
    axes.axhline(found["untrained"], color="#222222", linestyle="--", linewidth=1, label="untrained")
    axes.set(xscale="log", xlabel="Bytes a token", ylabel="Held-out KL to the teacher, nats", ylim=(0, None))
    ticks = [2**power for power in range(4, 12)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title("Students of each codec; lines: from the least to the greatest over seeds", fontsize=10.5)
    axes.legend()


FIGURES: dict[str, tuple[str, tuple[float, float], int, Callable[..., None]]] = {
    "losses": ("losses", (17, 3.6), 4, _losses),
    "loss_growth": ("losses", (9.6, 3.6), 2, _loss_growth),
    "training": ("training", (10.5, 3.4), 2, _training),
    "stores": ("stores", (13, 2.9), 3, _stores),
    "codec_students": ("codec_students", (7, 4), 1, _codec_students),
    "capture_transformers": ("capture_transformers", (13, 2.6), 3, _capture_transformers),
    "capture_llamacpp": ("capture_llamacpp", (6.5, 2.6), 1, _capture_llamacpp),
    "assessment": ("assessment", (10.5, 2), 2, _assessment),
    "reading_growth": ("stores", (9.6, 3.2), 2, _reading_growth),
}
