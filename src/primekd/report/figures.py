"""Figures as SVG text: losses over the steps; accuracies, differences, distances and extractors as dots with intervals.
The ground is light, which the page's dark style inverts. Colours are those of Okabe and Ito, which colour-blind readers
can tell apart; curves also differ in their dashes."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from primekd.assessment.reading import EXTRACTORS
from primekd.config.arm import CONTROL, TEACHER, split_seed
from primekd.foundation import UserError, read_records, relative_name
from primekd.report.formats import interval, percent, points
from primekd.report.results import Results, Row, read_optional
from primekd.statistics.families import title_of
from primekd.statistics.sentences import is_claimed
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
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"], "font.size": 10.5,
    "svg.fonttype": "none",  # letters stay letters: small files, and text that can be searched
    "text.parse_math": False,  # a dollar sign in a title is a dollar sign
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#777777", "axes.grid": True,
    "grid.color": "#e3e3e3", "axes.axisbelow": True, "figure.facecolor": "#ffffff", "legend.frameon": False,
}  # fmt: skip


def draw(name: str, size: tuple[float, float], panels: int, fill, lines: int = 1) -> str:
    """Calls `fill(*axes)` on a figure of `lines` x `panels` axes; returns its SVG, the same bytes for the same data."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt makes the ids inside the file depend on the data alone. No pyplot: it would keep global state.
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"primekd {name}"}):
        figure = Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        FigureCanvasSVG(figure)
        fill(*figure.subplots(lines, panels, squeeze=False).flat)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def loss_curves(logs_folder: Path, of: str = "gold solutions") -> str:
    """Losses over the steps, one line a student, the validation loss `of` what is named. Raises UserError if there is
    none, or one has other columns."""
    summary = read_optional(Path(logs_folder, "summary.csv"), SummaryRow)
    order = {row["model"]: place for place, row in enumerate(summary)}
    paths = sorted(Path(logs_folder, "loss_curves").glob("*.csv"))
    paths.sort(key=lambda path: order.get(path.stem, len(order)))
    if not paths:
        raise UserError(f"{relative_name(Path(logs_folder, 'loss_curves'))} is empty: run the assessment first.")
    curves = {path.stem: _read_curve(path) for path in paths}
    looks = arm_looks(curves)
    named = [label for _, label in looks.values() if label]
    columns = min(len(named), 3 if max(map(len, named)) > 20 else 4)

    def fill(training, validation):
        for name, (train, valid) in curves.items():
            place, label = looks[name]
            line = {"color": PALETTE[place % (len(PALETTE) - 1)], "linestyle": DASHES[place % len(DASHES)]}
            size = max(1, len(train) // 40)  # steps a point, their mean: single batches jump too much to be read
            blocks = [train[start : start + size] for start in range(0, len(train), size)]
            smooth = [(block[-1][0], sum(loss for _, loss in block) / len(block)) for block in blocks]
            training.plot(*zip(*smooth, strict=True), **line, linewidth=1.8, label=label)
            if valid:
                validation.plot(*zip(*valid, strict=True), **line, linewidth=1.8, marker="o", markersize=3.5)
        training.set(title="Training loss (each student's own objective)", xlabel="Step", ylabel="Loss")
        validation.set(title=f"Validation loss ({of})", xlabel="Step", ylabel="Cross-entropy, nats a token")
        for axes in (training, validation):
            axes.title.set_fontsize(10.5)
            axes.ticklabel_format(useOffset=False)
            axes.xaxis.get_major_locator().set_params(integer=True)
        training.figure.legend(loc="outside lower center", ncols=columns)

    return draw("loss curves", (9.6, 3.3 + 0.22 * -(-len(named) // columns)), 2, fill)


def arm_looks(models: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Student -> its arm's place among all, and its title; "" but for the first, as an arm's seeds are named once."""
    arms: dict[str, str] = {}  # to its first student
    first = {name: arms.setdefault(split_seed(name)[0], name) == name for name in models}
    return {n: (list(arms).index(split_seed(n)[0]), title_of(split_seed(n)[0]) if first[n] else "") for n in first}


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


INK, SOFT, BAND = "#333333", "#999999", "#ececec"
GREYS = {CONTROL: "#555555", TEACHER: "#000000"}
MARKERS = ("o", "s", "^", "v", "D")  # one an extractor; shapes, so that nobody has to tell colours apart


def accuracy_forest(results: Results) -> str:
    """Accuracy of every model with its Wilson interval, in percent; hollow dots are adjudicated ones, if any are."""
    label = "Accuracy, % (95 % Wilson interval)"
    return _forest("accuracy", results.summary, _accuracies(results), 100, label, percent)


def kl_forest(results: Results) -> str:
    """Held-out KL to the unprimed teacher with its bootstrap interval, without the teacher itself. A control so far
    away that all students would share half of its scale or less gets a panel with a scale of its own."""
    rows = [row for row in results.summary if row["kl"]]
    label = "KL to the unprimed teacher, nats a token (95 % bootstrap interval)"
    students = [float(row["kl_high"]) for row in rows if row["model"] != CONTROL]
    far = rows[0]["model"] == CONTROL and students and float(rows[0]["kl_high"]) > 2 * max(students)
    return _forest("kl", rows, ["kl"], 1, label, panels=2 if far else 1)


def _accuracies(results: Results) -> list[str]:
    return ["accuracy", "accuracy_adjudicated"] if results.decided else ["accuracy"]


def _forest(name: str, rows: list[Row], measures: list[str], scale: float, label: str, *write, panels=1) -> str:
    """One line a row; with two panels the first row, the control, has the second one for itself."""

    def fill(axes, far=None):
        for place, row in enumerate(rows):
            colour = GREYS.get(row["model"], PALETTE[(place - 1) % (len(PALETTE) - 1)])
            for y, measure in zip(_places(place, measures), measures, strict=True):
                style = {"color": colour, "markerfacecolor": colour if measure == measures[0] else "#ffffff"}
                _estimate(far if far and not place else axes, row, measure, scale, y, clip_on=False, **style)
            # The number itself, so that no one has to read it off the axis.
            _write_beside(far or axes, place, interval(row, measures[0], *write))
        _rows(axes, [row["title"] for row in rows])
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")  # no "1e-5" set aside at the axis' end
        if far:
            _set_apart(axes, far, len(rows))
            return
        axes.set_xlim(left=0)
        if rows and rows[0]["model"] == CONTROL:
            axes.axvline(scale * float(rows[0][measures[0]]), color=SOFT, linewidth=1, linestyle=":")

    return draw(name, (7.6, 1.0 + (0.34 if len(measures) == 1 else 0.46) * len(rows)), panels, fill)


def _estimate(axes, row: Row, measure: str, scale: float, y: float, *, color: str, marker="o", zorder=None, **dot):
    value, low, high = (scale * float(row[f"{measure}{end}"]) for end in ("", "_low", "_high"))
    axes.plot([low, high], [y, y], color=color, linewidth=2, solid_capstyle="butt", zorder=zorder)
    axes.plot([value], [y], marker, color=color, markersize=6, zorder=3, **dot)


def _set_apart(axes, far, count: int) -> None:
    """Shows that the second panel has another scale."""
    axes.get_gridspec().set_width_ratios([4, 1])
    axes.set_title("Students", fontsize=10)
    far.set_title("Control, another scale", fontsize=10)
    far.margins(x=0.3)
    far.locator_params(axis="x", nbins=3)
    far.spines["left"].set_linestyle((0, (2, 3)))
    _rows(far, [""] * count)


def contrast_forest(results: Results) -> str:
    """Differences in accuracy of the planned contrasts, grouped by reference, over the band that could not be seen."""
    lines: list[Row | str] = []
    for reference in dict.fromkeys(row["reference"] for row in results.contrasts):
        lines += [reference, *(row for row in results.contrasts if row["reference"] == reference)]
    measures = _accuracies(results)

    def fill(axes):
        for place, row in enumerate(lines):
            if isinstance(row, str):
                continue
            if row["mde"]:
                most = 100 * float(row["mde"])
                axes.fill_betweenx([place - 0.5, place + 0.5], -most, most, color=BAND, linewidth=0, zorder=0)
            ways = zip(_places(place, measures), measures, ("p_holm", "p_holm_adjudicated"), "oD", strict=False)
            for y, measure, p, marker in ways:
                claimed = is_claimed(row, "accuracy", p)
                colour = PALETTE[0] if claimed else INK
                face = colour if claimed else "#ffffff"
                _estimate(axes, row, measure, 100, y, color=colour, marker=marker, zorder=2, markerfacecolor=face)
            _write_beside(axes, place, interval(row, "accuracy", points))
        _rows(axes, [f"against {title_of(r)}" if isinstance(r, str) else title_of(r["model"]) for r in lines])
        for row, label in zip(lines, axes.get_yticklabels(), strict=True):
            label.set_fontweight("bold" if isinstance(row, str) else "normal")
        axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
        axes.set_xlabel("Difference in accuracy, points (95 % interval, not adjusted)")

    return draw("contrasts", (7.6, 1.0 + (0.33 if len(measures) == 1 else 0.46) * len(lines)), 1, fill)


def extractor_dots(results: Results, accuracies: dict[str, dict[str, Row]]) -> str:
    """Every model's accuracy under every extractor: the spread within a line is extraction, not the model."""
    rows = [row for row in results.summary if row["model"] in accuracies]

    def fill(axes):
        handles = {}
        for place, row in enumerate(rows):
            found = accuracies[row["model"]]
            shares = {name: 100 * float(found[name]["accuracy"]) for name in EXTRACTORS if name in found}
            axes.plot([min(shares.values()), max(shares.values())], [place, place], color="#bbbbbb", linewidth=5,
                      solid_capstyle="round", zorder=1)  # fmt: skip
            for number, (name, share) in enumerate(shares.items()):
                kind = EXTRACTORS.index(name)
                handles[name] = axes.plot(
                    [share], [_places(place, EXTRACTORS, 0.15)[kind]], MARKERS[kind % len(MARKERS)],
                    color=PALETTE[kind], markersize=6, clip_on=False, zorder=3 + number, label=name, linestyle="none",
                )[0]  # fmt: skip
            _write_beside(axes, place, f"{max(shares.values()) - min(shares.values()):.1f} points")
        _rows(axes, [row["title"] for row in rows])
        axes.set_xlim(left=0)
        axes.set_xlabel("Accuracy, % (at the right: most minus least)")
        axes.figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), fontsize=9)

    return draw("extractors", (7.6, 1.4 + 0.55 * len(rows)), 1, fill)


def _places(middle: int, marks: Sequence[str], step: float = 0.17) -> list[float]:
    """Places around a line's middle, so that marks of one line do not hide each other."""
    return [middle + step * (number - (len(marks) - 1) / 2) for number in range(len(marks))]


def _rows(axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def _write_beside(axes, place: int, text: str) -> None:
    axes.annotate(
        text, (1, place), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points", va="center",
        fontsize=9.5, color=INK, annotation_clip=False,
    )  # fmt: skip
