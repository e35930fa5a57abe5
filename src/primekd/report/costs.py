"""What a thousand answers of each model cost, beside how many of them are right."""

from pathlib import Path

from primekd.assessment.costs import FILE, IDLE, CostRow
from primekd.foundation import MANIFEST, read_manifest, read_records
from primekd.report.cells import Name, Table
from primekd.report.figures import MARKERS, PALETTE, arm_looks, draw
from primekd.report.formats import MISSING, known, percent, significant
from primekd.report.results import Results, read_optional
from primekd.statistics.families import title_of
from primekd.statistics.summary import SummaryRow

LABEL = "What a thousand answers cost"
MOST_NAMES = 12  # in a column beside the figure


def cost_table(folder: Path) -> Table:
    """A row a model: right answers, and what a thousand of its answers took; without rows where none was measured."""
    right = {row["model"]: row["accuracy"] for row in read_optional(Path(folder) / "summary.csv", SummaryRow)}
    rows, methods = [], dict[str, None]()
    for row in read_records(Path(folder) / FILE, CostRow, needed=False):
        if row.method:
            methods[row.method] = None
        idle = row.model == IDLE
        per = 1000 / row.answers if row.answers else None
        joules = None if row.energy_wh is None else row.energy_wh * 3600
        watts = f"{joules / row.seconds:.1f} W" if idle and joules and row.seconds else MISSING
        taken = row.seconds, row.energy_wh, joules, row.co2e_g
        amounts = [MISSING if None in (value, per) else significant(value * per, 3) for value in taken]
        name = "The machine, idle" if idle else Name(title_of(row.model), row.model)
        tokens = f"{row.tokens / row.answers:.1f}" if row.answers else MISSING
        amounts = [MISSING, watts, MISSING, MISSING] if idle else amounts
        rows.append([name, known(right.get(row.model), percent), tokens, *amounts])
    head = ["Model", "Right, %", "Tokens an answer", "Seconds", "Wh", "Joules", "CO2e, g"]
    said = f"Energy: {'; '.join(methods) or 'not measured'}. " if rows else ""
    note = (
        f"For 1,000 answers. {said}Of the whole machine while the answers were made, other work on it included; the "
        "teacher's is that of its capture where its answers were captured, with its signals written to disk."
        f"{_apart(folder)}"
    )
    return Table(LABEL, head, rows, notes=(note,))


def _apart(folder: Path) -> str:
    """Which rows were not measured in one session on one machine, in a sentence; nothing where all were."""
    path, sessions = Path(folder) / MANIFEST, dict[str, list[str]]()
    for model, session in (read_manifest(path).get("measured") or {} if path.is_file() else {}).items():
        sessions.setdefault(session, []).append(title_of(model))
    if len(sessions) < 2:
        return ""
    parts = "; ".join(f"{', '.join(models)}: {session}" for session, models in sessions.items())
    return (
        f" Not all were measured in one session on one machine, so seconds and energy do not compare between: {parts}."
    )


def cost_figure(results: Results) -> str | None:
    """Right answers over the energy of a thousand answers; None where that is known of fewer than two models."""
    right = {row["model"]: 100 * float(row["accuracy"]) for row in results.summary}
    points = [
        (1000 * row.energy_wh / row.answers, right[row.model], row.model)
        for row in read_records(results.folder / FILE, CostRow, needed=False)
        if row.model in right and row.answers and row.energy_wh
    ]  # fmt: skip
    if len(points) < 2:
        return None

    looks = arm_looks(name for *_, name in points)
    columns = -(-sum(bool(label) for _, label in looks.values()) // MOST_NAMES)

    def fill(axes):
        from matplotlib.ticker import LogLocator, NullFormatter

        for energy, share, name in points:
            place, label = looks[name]
            look = {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place // len(PALETTE) % len(MARKERS)]}
            axes.plot(energy, share, **look, linestyle="", markersize=8, label=label)
        axes.set(xscale="log", title="Right answers over energy", xlabel="Wh a thousand answers", ylabel="Right, %")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.figure.legend(loc="outside right upper", ncols=columns)

    return draw("costs", (6.4 + 2.6 * columns, 4.2), 1, fill)
