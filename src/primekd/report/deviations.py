"""What each deviation of the published protocol did: a table, a figure, and what choosing on the test split gains."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from scipy.stats import t as student_t

from primekd.assessment.logs import read_log
from primekd.config import CONTROL, FEW_SHOT, PRIMED, Profile, load_arms, split_seed, unprimed
from primekd.config.deviations import PUBLISHED, SAID
from primekd.foundation import MANIFEST, UserError, read_manifest
from primekd.report.cells import Name, Table, table_of
from primekd.report.claims import planted
from primekd.report.figures import BAND, INK, PALETTE, draw
from primekd.report.formats import MISSING, between, known, p_value, percent, points, signed_nats, written
from primekd.report.results import Results, Row, read_results
from primekd.report.shown import Shown, show_facts, show_figure, show_table
from primekd.statistics.families import title_of
from primekd.statistics.inference import LEVEL
from primekd.statistics.subsets import SelectionRow, selection_rows
from primekd.studies.results import logs_in_use

NOTE = (
    "Each arm minus the one that it is a variant of: the corrected arm, or gold labels where it learns those too; and "
    "the primed student minus the unprimed one, under the corrected and under the published protocol. Over their "
    "training seeds, on the same items: 95 % t intervals clustered by seed, and by template where items have one; p "
    "Holm-adjusted over all contrasts that the profile names (over all others for one that it does not). Behind an "
    "interval stands each seed's own difference; items alone: an interval that does not cover another training. Never "
    "end: answers that run on to the token limit. KL: to the unprimed teacher; NLL: of the gold solution; nats a "
    "token, less is closer. Arms without a template are asked and measured without it."
)
TWO_SEEDS = (
    " Two seeds leave one degree of freedom: intervals reach 12.7 standard errors to either side, so that hardly any p "
    "can stay small."
)
ASKED = {CONTROL: "as every student here", FEW_SHOT: "as released: 50 new tokens, the answer alone"}
SELECTION_NOTE = (
    "The best of several students, chosen on one half of the test items: its accuracy there, which is what a release "
    "that tunes on the test split states, and on the other half; beside it the mean of all. The halves change places, "
    "and the means over both are shown. Templates stand in both halves, so the other one is not wholly new, and a "
    "share of so few answers can be ten points off: no interval is given, and nothing is claimed."
)


def deviating(results: Results) -> list[Row]:
    """The contrasts of arms that deviate with the arm that they are a variant of, and of the priming under both: of two
    arms that deviate, and of the corrected arms that they are variants of."""
    arms, pairs = load_arms(), [(row["model"], row["reference"]) for row in results.contrasts]
    deviate = {name for pair in pairs for name in pair if name in arms and arms[name].deviates}
    wanted = {(name, arms[name].variant_of) for name in deviate}
    wanted |= {pair for pair in pairs if deviate.issuperset(pair)}
    wanted |= {(of, unprimed().name) for name, of in wanted if arms[of].role in PRIMED}
    return [row for row, pair in zip(results.contrasts, pairs, strict=True) if pair in wanted]


def seed_differences(results: Results, measure: str, row: Row) -> list[float]:
    """Each training's own difference in a contrast."""
    own = {one["model"]: one[measure] for one in results.summary}
    seeds = [name.removeprefix(row["model"]) for name in own if split_seed(name)[0] == row["model"]]
    pairs = [[own.get(row[side] + seed) for side in ("model", "reference")] for seed in seeds]
    return [float(one) - float(other) for one, other in pairs if one and other]


def each_seed(results: Results, measure: str, write: Callable, row: Row) -> str:
    """`value [low, high]` of a contrast and, where there are several, each training's own difference."""
    found = [write(value) for value in seed_differences(results, measure, row)]
    return between(measure, write)(row) + (f"; {', '.join(found)}" if len(found) > 1 else "")


def item_interval(results: Results, row: Row) -> tuple[float, ...]:
    """A 95 % interval of the difference in accuracy over other items (or templates), of these trainings alone; empty
    where all items differ alike, which does not say that no other would."""
    pair = row["model"], row["reference"]
    for seeds in (one for one in results.seeds if (one["model"], one["reference"]) == pair):
        half = student_t.isf(LEVEL / 2, int(row["clusters"]) - 1) * float(seeds["item_se"])
        return (float(seeds["accuracy"]) - half, float(seeds["accuracy"]) + half) if half else ()
    return ()


def items_alone(results: Results, row: Row) -> str:
    ends = item_interval(results, row)
    return "[{}, {}]".format(*map(points, ends)) if ends else MISSING


def deviation_table(folder: Path) -> Table:
    """A row a deviation; without rows in studies that have none."""
    results = read_results(folder)
    columns = {
        "Deviation": lambda row: Name(title_of(row["model"]), row["model"]), "Against": written("reference", title_of),
        "Accuracy, points [95 %]; seeds": partial(each_seed, results, "accuracy", points),
        "p (Holm)": written("p_holm", p_value), "Items alone [95 %]": partial(items_alone, results),
        "Never end, %": lambda row: f"{percent(row['truncated'])} against {percent(row['reference_truncated'])}",
        "KL [95 %]; seeds": partial(each_seed, results, "kl", signed_nats), "KL, p": written("kl_p_holm", p_value),
        "NLL of gold [95 %]; seeds": partial(each_seed, results, "nll_gold", signed_nats),
        "NLL, p": written("nll_gold_p_holm", p_value),
    }  # fmt: skip
    rows, manifest = deviating(results), Path(folder) / MANIFEST
    note = NOTE + TWO_SEEDS * ({row["seeds"] for row in rows} == {"2"})
    note += planted(read_manifest(manifest).get("config") or {}) if rows and manifest.is_file() else ""
    return table_of("The published protocol's deviations", rows, columns, left=2, notes=(note,))


def control_table(folder: Path) -> Table:
    """The control as the release asked it, beside the control as it is asked here; empty where it was not."""
    results = read_results(folder)
    rows = [row for row in results.summary if row["model"] in (CONTROL, FEW_SHOT)]
    paired = {r["model"]: r for r in results.contrasts if (r["model"], r["reference"]) == (FEW_SHOT, CONTROL)}
    columns = {
        "Control": lambda row: ASKED[row["model"]],
        "n": "n", "Accuracy, % [95 %]": between("accuracy", percent), "Truncated": "truncated",
        "Difference, points [95 %]": lambda row: known(paired.get(row["model"]), between("accuracy", points)),
        "p (Holm)": lambda row: known(paired.get(row["model"]), written("p_holm", p_value)),
    }  # fmt: skip
    return table_of("The control's conditions", rows if len(rows) == 2 and deviating(results) else [], columns)


def selection_table(folder: Path) -> Table:
    """What choosing alpha and temperature on the test split gains."""
    columns = {
        "Students": lambda row: ", ".join(title_of(name) for name in row.models.split()),
        "Chosen, on its half, %": lambda row: percent(row.chosen),
        "All, on that half, %": lambda row: percent(row.mean),
        "Chosen, on the other half, %": lambda row: percent(row.chosen_other),
        "All, on the other half, %": lambda row: percent(row.mean_other),
    }  # fmt: skip
    logs = {row["model"]: read_log(Path(folder) / f"{row['model']}.csv") for row in read_results(folder).summary}
    rows: list[SelectionRow] = selection_rows(logs, load_arms(), unprimed().name)
    return table_of("Chosen on the test split", rows, columns, notes=(SELECTION_NOTE,))


def deviation_tables(folder: Path) -> list[Table]:
    """Those of the report's section; none in studies without such arms."""
    table = deviation_table(folder)
    return [t for t in (table, control_table(folder), selection_table(folder)) if t.rows] if table.rows else []


def said_of(folder: Path) -> list[tuple[str, str]]:
    """(title, what it does) of every arm in the table."""
    arms = load_arms()
    models = dict.fromkeys(row["model"] for row in deviating(read_results(folder)) if arms[row["model"]].deviates)
    whole = f"All {len(PUBLISHED)} that go together."
    return [(title_of(m), whole if arms[m].protocol == "published" else SAID[arms[m].deviations[0]]) for m in models]


def deviation_figure(results: Results) -> str | None:
    """Differences in accuracy, KL and NLL, a line a contrast: each training's own, their mean, its t interval, which
    may leave the panel, and of accuracy that over items alone. None where there is no such contrast."""
    rows = deviating(results)
    if not rows:
        return None

    def fill(*panels):
        for axes, (measure, scale, label) in zip(
            panels, (("accuracy", 100, "Accuracy, points"), ("kl", 1, "KL, nats"), ("nll_gold", 1, "NLL, nats")),
            strict=True,
        ):  # fmt: skip
            seen = [0.0]  # what has to be inside the panel
            for place, row in enumerate(rows):
                if row[measure]:
                    value, low, high = (scale * float(row[f"{measure}{end}"]) for end in ("", "_low", "_high"))
                    own = [scale * one for one in seed_differences(results, measure, row)]
                    over = [scale * end for end in item_interval(results, row)] if measure == "accuracy" else []
                    axes.plot([low, high], [place, place], color=BAND, linewidth=5, solid_capstyle="butt")
                    axes.plot(over, [place] * len(over), color=PALETTE[0], linewidth=1.5)
                    axes.plot(own, [place] * len(own), "o", color=PALETTE[0], markersize=5, fillstyle="none")
                    axes.plot([value], [place], "|", color=INK, markersize=11, markeredgewidth=2)
                    seen += [value, *own, *over]
            axes.axvline(0, color=INK, linewidth=1)
            room = 0.08 * (max(seen) - min(seen)) or 1.0
            axes.set_xlim(min(seen) - room, max(seen) + room)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            names = ["\nminus ".join(title_of(row[key]) for key in ("model", "reference")) for row in rows]
            axes.set_yticks(range(len(rows)), names if axes is panels[0] else [], fontsize=9)
            axes.set_xlabel(label)
            axes.grid(axis="y", visible=False)

    return draw("deviations", (10.4, 1.2 + 0.42 * len(rows)), 3, fill)


def show_deviations(profile: Profile) -> Shown:
    """Tables and figure of the logs in use, in a notebook. Raises UserError if the profile has no such arms."""
    view = logs_in_use(profile)
    tables = deviation_tables(view.logs)
    if not tables:
        raise UserError(f"{profile.name} runs no arm that deviates: take ablation-pocket, or list some in arms.")
    first, *rest = map(show_table, tables)
    drawn = deviation_figure(read_results(view.logs))
    said = show_facts(said_of(view.logs), "What each of them is")
    return sum(rest, first + show_figure(drawn, "Each deviation minus its reference") + said)
