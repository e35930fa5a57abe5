"""Figures as SVG text on a light ground, which the page's dark style inverts, and the loss curves. Colours are those of
Okabe and Ito, which colour-blind readers can tell apart; curves also differ in their dashes."""

import io
from dataclasses import dataclass
from pathlib import Path

from primekd.foundation.errors import UserError
from primekd.foundation.provenance import relative_name
from primekd.foundation.tables import read_records
from primekd.report.results import read_optional
from primekd.statistics.families import title_of
from primekd.statistics.summary import SummaryRow


@dataclass(frozen=True)
class CurvePoint:
    """What is drawn of one row of a loss curve; a loss is None where none was measured."""

    step: float
    loss: float | None
    eval_loss: float | None


PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
DASHES = ("-", "--", "-.", ":")
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10.5,
    "svg.fonttype": "none",  # letters stay letters: small files, and text that can be searched
    "text.parse_math": False,  # a dollar sign in a title is a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "axes.axisbelow": True,
    "figure.facecolor": "#ffffff",
    "legend.frameon": False,
}


def draw(name: str, size: tuple[float, float], panels: int, fill) -> str:
    """Calls `fill(*axes)` on a new figure and returns its SVG, the same bytes for the same data."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt makes the ids inside the file depend on the data alone. No pyplot: it would keep global state.
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"primekd {name}"}):
        figure = Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        FigureCanvasSVG(figure)
        fill(*figure.subplots(1, panels, squeeze=False)[0])
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def loss_curves(logs_folder: Path) -> str:
    """Training and validation loss over the steps, one line a student, in the order of the study. Raises UserError if
    there is no loss curve, or one of them has other columns."""
    summary = read_optional(Path(logs_folder, "summary.csv"), SummaryRow)
    order = {row["model"]: place for place, row in enumerate(summary)}
    paths = sorted(Path(logs_folder, "loss_curves").glob("*.csv"))
    paths.sort(key=lambda path: order.get(path.stem, len(order)))
    if not paths:
        raise UserError(f"{relative_name(Path(logs_folder, 'loss_curves'))} is empty: run the assessment first.")
    curves = {path.stem: _read_curve(path) for path in paths}

    def fill(training, validation):
        for place, (name, (train, valid)) in enumerate(curves.items()):
            line = {"color": PALETTE[place % (len(PALETTE) - 1)], "linestyle": DASHES[place % len(DASHES)]}
            training.plot(*zip(*_smooth(train), strict=True), **line, linewidth=1.8, label=title_of(name))
            if valid:
                validation.plot(*zip(*valid, strict=True), **line, linewidth=1.8, marker="o", markersize=3.5)
        training.set(title="Training loss (each student's own objective)", xlabel="Step", ylabel="Loss")
        validation.set(title="Validation loss (gold solutions)", xlabel="Step", ylabel="Cross-entropy, nats a token")
        for axes in (training, validation):
            axes.title.set_fontsize(10.5)
            axes.ticklabel_format(useOffset=False)
            axes.xaxis.get_major_locator().set_params(integer=True)
        training.figure.legend(loc="outside lower center", ncols=min(len(curves), 4))

    return draw("loss curves", (9.6, 3.9), 2, fill)


def loss_curve(path: Path, title: str) -> str:
    """Training and validation loss of one student over the steps. Raises UserError as `loss_curves` does."""
    train, valid = _read_curve(Path(path))

    def fill(axes):
        axes.plot(*zip(*train, strict=True), color=PALETTE[0], linewidth=1.6, label="training loss (objective)")
        if valid:
            label = "validation loss (cross-entropy on gold solutions)"
            axes.plot(*zip(*valid, strict=True), color=PALETTE[1], linewidth=1.8, marker="o", markersize=4, label=label)
        axes.set(title=title, xlabel="Step", ylabel="Nats a token")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    return draw(f"loss curve {title}", (7.5, 3.8), 1, fill)


def _read_curve(path: Path) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(step, training loss) and (step, validation loss) wherever they were measured."""
    points = read_records(path, CurvePoint)
    train = [(p.step, p.loss) for p in points if p.loss is not None]
    valid = [(p.step, p.eval_loss) for p in points if p.eval_loss is not None]
    if not train:
        raise UserError(f"{relative_name(path)} has no training step: run the assessment again.")
    return train, valid


def _smooth(points: list[tuple[float, float]], shown: int = 40) -> list[tuple[float, float]]:
    """Means over blocks of steps, about `shown` of them: single batches jump too much to be read."""
    size = max(1, len(points) // shown)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(block[-1][0], sum(loss for _, loss in block) / len(block)) for block in blocks]
