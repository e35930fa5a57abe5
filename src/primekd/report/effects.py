"""Tables beside the single contrasts: priming against a placebo, text and logits apart, matched items."""

from functools import partial

from primekd.config.arms import load_arms, of_role
from primekd.report.cells import Name, Table
from primekd.report.formats import MISSING, interval, p_value, percent, significant
from primekd.report.results import Results, Row
from primekd.statistics.families import title_of
from primekd.statistics.sentences import side_title
from primekd.statistics.subsets import FEWEST

points, nats = partial(percent, signed=True), partial(significant, digits=3, signed=True)
PLACEBO_NOTE = (
    "A placebo is a priming about nothing: what it changes as well is no effect of what the priming says. Differences "
    "in accuracy, in points, model minus reference; p as in the planned contrasts."
)
EFFECTS_NOTE = (
    "Text, logits: mean over both levels of the other. Interaction: what both do beyond what each does alone. "
    "Accuracy in points by the automatic verdicts, KL and NLL in nats a token, on the same items and over the seeds "
    "that all of the arms have. Any wording: its seeds are wordings of the priming, each a draw. Intervals are "
    "clustered by template where items have one, and by seed where there are several. p is Holm-adjusted over this "
    "table, that of another seed (the negative control) by itself; an effect that is a planned contrast has its p."
)
SUBSETS_NOTE = (
    "The main family's contrasts on some of the test items that the teacher was asked under every prompt (Of), chosen "
    "by its answers. All right: it answered "
    "them rightly under every prompt. Same length: its answers under the two prompts are within 10 % of each other in "
    f"tokens. p is Holm-adjusted over this table; fewer than {FEWEST} items are not tested."
)


def effect_tables(results: Results) -> list[Table]:
    """Those of the tables that a study has rows for, each with its note."""
    return [t for t in (_placebo_table(results), _effect_table(results), _subset_table(results)) if t.rows]


def _placebo_table(results: Results) -> Table:
    """A row a priming: against no priming, and against each placebo beside it."""
    arms, rows = load_arms(), {(row["model"], row["reference"]): row for row in results.contrasts}
    models = dict.fromkeys(model for model, _ in rows)
    placebos = [name for name in of_role("placebo", arms) if name in models]
    references = [name for name in of_role("baseline", arms) if name in models] + placebos
    head = ["Priming", *(f"{what}{title_of(ref)}" for ref in references for what in ("Against ", "p (Holm), "))]
    cells = [
        [Name(title_of(model), model), *(cell for ref in references for cell in _difference(rows.get((model, ref))))]
        for model in models
        if placebos and model in of_role("treatment", arms)
    ]
    return Table("Priming against none and against a placebo", head, cells, notes=(PLACEBO_NOTE,))


def _difference(row: Row | None) -> tuple[str, str]:
    return (interval(row, "accuracy", points), p_value(row["p_holm"])) if row else (MISSING, MISSING)


def _effect_table(results: Results) -> Table:
    head = [
        "Arm", "Effect", "Of", "Seeds", "n", "Accuracy, points [95 %]", "p (Holm)", "Detectable, points", "KL [95 %]",
        "KL, p (Holm)", "NLL of gold [95 %]", "NLL, p (Holm)",
    ]  # fmt: skip
    rows = [
        [
            Name(title_of(row["arm"]), row["arm"]), row["effect"],
            f"{_side(row['model'])} less {_side(row['reference'])}",
            row["seeds"], row["n"], interval(row, "accuracy", points), p_value(row["p_holm"]),
            percent(row["mde"]) if row["mde"] else MISSING,
            *(cell for measure in ("kl", "nll_gold") for cell in _fit(row, measure)),
        ]
        for row in results.effects
    ]  # fmt: skip
    table = Table("Text, logits and their interaction", head, rows, left=3, notes=(EFFECTS_NOTE,))
    return table if results.fitted else table.without(*(title for title in head if title.startswith(("KL", "NLL"))))


def _side(names: str) -> str:
    return side_title(names).removeprefix("one of ")


def _fit(row: Row, measure: str) -> tuple[str, str]:
    return interval(row, measure, nats), p_value(row[f"{measure}_p_holm"]) if row[measure] else MISSING


def _subset_table(results: Results) -> Table:
    head = ["Items", "n", "Of", "Model", "Against", "Accuracy, points [95 %]", "p (Holm)"]
    rows = [
        [
            row["subset"], row["n"], row["asked"], title_of(row["model"]), title_of(row["reference"]),
            interval(row, "accuracy", points), p_value(row["p_holm"]) if row["p_holm"] else MISSING,
        ]
        for row in results.subsets
    ]  # fmt: skip
    return Table("Matched items", head, rows, left=5, notes=(SUBSETS_NOTE,))
