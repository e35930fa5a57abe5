"""Figures of what is inside the students: heads, layers, reliability; None where there is nothing to draw."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from primekd.assessment.inside import FOLDER, MAPS
from primekd.assessment.inside.attention import BETWEEN, MEASURES
from primekd.config import CONTROL, TEACHER, split_seed, unprimed
from primekd.foundation import MANIFEST, read_records
from primekd.report.figures import DASHES, PALETTE, draw
from primekd.report.results import read_optional
from primekd.statistics.calibration import RELIABILITY, VALUE, ReliabilityRow
from primekd.statistics.families import title_of
from primekd.statistics.inside import ATTENTION, EVERY, AttentionRow

SAID = {BETWEEN[0]: "Total variation", "entropy": "Entropy, difference", "first": "First token, difference"}
CURVES = tuple(SAID)


def map_figure(folder: Path, most: int = 4) -> str | None:
    """Layer by head, a line of panels for each of CURVES, of the first `most` planned students: how far each head's map
    lies from the control's, and by how much its entropy and its weight on the first token rose (red) or fell (blue)."""
    with safe_open(folder / MAPS, framework="np") as handle:
        names = [name for name in handle.keys() if not name.startswith("maps.")]  # noqa: SIM118 - no mapping
        order = [row["model"] for row in read_optional(folder / ATTENTION, AttentionRow)]
        names = [name for name in sorted(names, key=order.index) if not split_seed(name)[1]][:most]
        shifts = [handle.get_tensor(name).astype(float) for name in names]  # (layers, heads, measures)
    if not names:
        return None

    def fill(*panels):
        for line, measure in enumerate(CURVES):
            own = panels[line * len(names) : (line + 1) * len(names)]
            values = [shift[..., MEASURES.index(measure)] for shift in shifts]
            top, signed = max(abs(value).max() for value in values) or 1.0, measure not in BETWEEN
            colours = {"cmap": "RdBu_r" if signed else "viridis", "vmin": -top if signed else 0, "vmax": top}
            for axes, value, name in zip(own, values, names, strict=True):
                image = axes.imshow(value, aspect="auto", origin="lower", **colours)
                axes.set_title(title_of(name) if not line else "", fontsize=10)
                axes.set_xlabel("Head" if measure == CURVES[-1] else "")
                axes.grid(visible=False)
                for axis in (axes.xaxis, axes.yaxis):
                    axis.get_major_locator().set_params(integer=True)
            own[0].set_ylabel("Layer")
            own[0].figure.colorbar(image, ax=list(own), label=SAID[measure], shrink=0.9)

    return draw("head maps", (2.4 * len(names) + 1.2, 3.1 * len(CURVES)), len(names), fill, len(CURVES))


def layer_figure(folder: Path) -> str | None:
    """Three measures along the layers, one line a student, with bands; None where there is no student."""
    rows = [row for row in read_records(folder / ATTENTION, AttentionRow) if row.layer != EVERY]
    models = list(dict.fromkeys(row.model for row in rows))
    if not models:
        return None

    def fill(*panels):
        for axes, measure in zip(panels, CURVES, strict=True):
            for number, model in enumerate(models):
                own = [row for row in rows if row.model == model and row.measure == measure]
                style = {"color": PALETTE[number % len(PALETTE)]}
                places = [int(row.layer) for row in own]
                band = {"alpha": 0.15, "linewidth": 0} | style
                axes.fill_between(places, [r.difference_low for r in own], [r.difference_high for r in own], **band)
                axes.plot(
                    places, [r.difference for r in own], linestyle=DASHES[number // len(PALETTE) % len(DASHES)],
                    label=title_of(model), **style,
                )  # fmt: skip
            axes.axhline(0, color="#333333", linewidth=0.8)
            axes.set(title=measure, xlabel="Layer")
            axes.title.set_fontsize(10)
        panels[0].set_ylabel("Student minus control")
        panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)

    return draw("layers", (10.4, 4.2), len(CURVES), fill)


def reliability_figure(folder: Path) -> str | None:
    """Share of right answers against confidence in the value: control, unprimed arm's student, teacher, 3 others."""
    rows = [row for row in read_records(folder / RELIABILITY, ReliabilityRow) if row.kind == VALUE]
    models = list(dict.fromkeys(row.model for row in rows))
    first = [name for name in (CONTROL, unprimed().name, TEACHER) if name in models]
    others = [name for name in models if name not in first and " " not in name and not split_seed(name)[1]]
    shown = [*first, *others[:3]]
    if not shown:
        return None

    def fill(axes):
        axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1.2)
        for number, model in enumerate(shown):
            own = [row for row in rows if row.model == model]
            sizes = [12 + 1.5 * row.n for row in own]
            axes.plot([r.confidence for r in own], [r.right for r in own], color=PALETTE[number], label=title_of(model),
                      linestyle=DASHES[number % len(DASHES)])  # fmt: skip
            axes.scatter([r.confidence for r in own], [r.right for r in own], sizes, color=PALETTE[number], zorder=3)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="Probability of the value", ylabel="Share of right answers")
        axes.legend(fontsize=9)

    return draw("reliability", (6.2, 4.4), 1, fill)


def head_figure(maps_L_H_T_T: np.ndarray, tokens: Sequence[str], layer: int, head: int, title: str) -> str:
    """One head's map on the first tokens of one prompt; rows are queries. Raises IndexError for no such head."""
    weights = maps_L_H_T_T[layer, head].astype(float) / 255

    def fill(axes):
        image = axes.imshow(weights, cmap="viridis", vmin=0, vmax=1)
        names = [token.replace("\n", "⏎").strip() or "␣" for token in tokens]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.grid(visible=False)
        axes.set_title(title, fontsize=10)
        axes.figure.colorbar(image, ax=axes, shrink=0.8, label="Weight")

    return draw(f"head {title}", (7.2, 6.4), 1, fill)


def inside_figures(logs: Path) -> dict[str, str | None]:
    folder = Path(logs) / FOLDER
    if not (folder / MANIFEST).is_file():
        return {}
    return {"heads": map_figure(folder), "layers": layer_figure(folder), "reliability": reliability_figure(folder)}
