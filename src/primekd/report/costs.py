"""What a thousand answers of each model cost, beside how many of them are right."""

from pathlib import Path

from primekd.assessment.costs import FILE, IDLE, CostRow
from primekd.foundation.tables import read_records
from primekd.report.cells import Name, Table
from primekd.report.figures import PALETTE, draw
from primekd.report.formats import MISSING, percent, significant
from primekd.report.results import Results
from primekd.statistics.families import title_of

LABEL = "What a thousand answers cost"


def _costs(folder: Path) -> list[CostRow]:
    path = Path(folder) / FILE
    return read_records(path, CostRow) if path.is_file() else []


def cost_table(results: Results) -> Table:
    """A row a model: right answers, tokens, seconds, watt-hours and grams of CO2e of a thousand answers; without rows
    where none was measured."""
    right = {row["model"]: percent(row["accuracy"]) for row in results.summary}
    rows, methods = [], dict[str, None]()
    for row in _costs(results.folder):
        if row.method:
            methods[row.method] = None
        idle = row.model == IDLE
        per = 1000 / row.answers if row.answers else None
        watts = f"{row.energy_wh * 3600 / row.seconds:.1f} W" if idle and row.energy_wh and row.seconds else MISSING
        amounts = [_amount(value, per) for value in (row.seconds, row.energy_wh, row.co2e_g)]
        name = "The machine, idle" if idle else Name(title_of(row.model), row.model)
        tokens = f"{row.tokens / row.answers:.1f}" if row.answers else MISSING
        rows.append(
            [name, right.get(row.model, MISSING), tokens, *(amounts if not idle else [MISSING, watts, MISSING])]
        )
    head = ["Model", "Right, %", "Tokens an answer", "Seconds", "Wh", "CO2e, g"]
    said = f"Energy: {'; '.join(methods) or 'not measured'}. " if rows else ""
    note = (
        f"{said}Of the whole machine while the answers were made, other work on it included; the teacher's is that of "
        "its capture where its answers were captured, with its signals written to disk."
    )
    return Table(LABEL, head, rows, notes=(note,))


def _amount(value: float | None, per: float | None) -> str:
    return MISSING if value is None or per is None else significant(value * per, 3)


def cost_figure(results: Results) -> str | None:
    """Right answers over the energy of a thousand answers; None where that is known of fewer than two models."""
    right = {row["model"]: 100 * float(row["accuracy"]) for row in results.summary}
    points = [
        (1000 * row.energy_wh / row.answers, right[row.model], row.model)
        for row in _costs(results.folder) if row.model in right and row.answers and row.energy_wh
    ]  # fmt: skip
    if len(points) < 2:
        return None

    def fill(axes):
        for place, (energy, share, name) in enumerate(points):
            axes.plot(energy, share, "o", color=PALETTE[place % len(PALETTE)], markersize=8, label=title_of(name))
        axes.set(xscale="log", title="Right answers over energy", xlabel="Wh a thousand answers", ylabel="Right, %")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return draw("costs", (9, 4.2), 1, fill)
