"""Tables beside the single contrasts: priming against a placebo, text and logits apart, matched items."""

from functools import partial

from primekd.config.arms import load_arms, of_role
from primekd.report.cells import Name, Table, table_of
from primekd.report.formats import between, known, p_value, percent, points, significant, written
from primekd.report.results import Results, fit_columns
from primekd.statistics.families import title_of
from primekd.statistics.sentences import side_title
from primekd.statistics.subsets import FEWEST

nats = partial(significant, digits=3, signed=True)
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
    columns = {"Priming": lambda model: Name(title_of(model), model)}
    for ref in [name for name in of_role("baseline", arms) if name in models] + placebos:
        for what, write in (("Against ", between("accuracy", points)), ("p (Holm), ", written("p_holm", p_value))):
            columns[f"{what}{title_of(ref)}"] = lambda model, ref=ref, write=write: known(rows.get((model, ref)), write)
    primed = [model for model in models if placebos and model in of_role("treatment", arms)]
    return table_of("Priming against none and against a placebo", primed, columns, notes=(PLACEBO_NOTE,))


def _effect_table(results: Results) -> Table:
    columns = {
        "Arm": lambda row: Name(title_of(row["arm"]), row["arm"]), "Effect": "effect",
        "Of": lambda row: f"{_side(row['model'])} less {_side(row['reference'])}",
        "Seeds": "seeds", "n": "n", "Accuracy, points [95 %]": between("accuracy", points),
        "p (Holm)": written("p_holm", p_value), "Detectable, points": written("mde", percent),
        "KL [95 %]": between("kl", nats), "KL, p (Holm)": written("kl_p_holm", p_value),
        "NLL of gold [95 %]": between("nll_gold", nats), "NLL, p (Holm)": written("nll_gold_p_holm", p_value),
    }  # fmt: skip
    notes = (EFFECTS_NOTE,)
    table = table_of("Text, logits and their interaction", results.effects, columns, left=3, notes=notes)
    return table if results.fitted else table.without(*fit_columns(table))


def _side(names: str) -> str:
    return side_title(names).removeprefix("one of ")


def _subset_table(results: Results) -> Table:
    columns = {
        "Items": "subset", "n": "n", "Of": "asked", "Model": written("model", title_of),
        "Against": written("reference", title_of), "Accuracy, points [95 %]": between("accuracy", points),
        "p (Holm)": written("p_holm", p_value),
    }  # fmt: skip
    return table_of("Matched items", results.subsets, columns, left=5, notes=(SUBSETS_NOTE,))
