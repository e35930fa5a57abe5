"""What effects.csv and subsets.csv allow to be said, and what the study's two controls say of it, in words."""

from decimal import Decimal

from primekd.config.arms import load_arms, of_role
from primekd.statistics.effects import ANOTHER_SEED, ANY_WORDING, BEYOND_TEXT, INTERACTION, LOGITS, TEXT, TEXT_ALONE
from primekd.statistics.families import title_of
from primekd.statistics.inference import LEVEL
from primekd.statistics.sentences import MEASURES, Row, is_claimed, p_of, points_of, trainings, why_not
from primekd.statistics.subsets import ALL_RIGHT, FEWEST

NAMES = {"accuracy": "accuracy", "kl": "KL to the unprimed teacher", "nll_gold": "NLL of the gold solutions"}
# What is compared with what, before its title and the unprimed arm's are put in.
SUBJECTS = {
    TEXT: "The text of {arm} in place of {base}'s (mean over both logits)",
    LOGITS: "The logits under the prompt of {arm} in place of {base}'s (mean over both texts)",
    INTERACTION: "Text and logits of {arm} together, beyond what each of them adds alone",
    TEXT_ALONE: "The text of {arm} in place of {base}'s, without any logits",
    BEYOND_TEXT: "The logits of {arm} beyond its text alone",
    ANY_WORDING: "The priming of {arm} in any wording, against {base}",
}


def effect_sentences(effects: list[Row]) -> list[str]:
    """A sentence an effect, for all that was measured."""
    base = title_of(next(iter(of_role("baseline")), ""))
    return [
        f"{SUBJECTS[row['effect']].format(arm=title_of(row['arm']), base=base)}: {_effect(row)}; {_trainings(row)}."
        for row in effects
        if row["effect"] in SUBJECTS
    ]


def _trainings(row: Row) -> str:
    said = trainings([int(row["seeds"])])
    if row["effect"] == ANY_WORDING:
        return f"{row['seeds']} wordings, one training seed each, all against one training of {row['reference']}"
    return said


def _effect(row: Row) -> str:
    """What is claimed of each measure, then where nothing can be."""
    measured = [measure for measure in MEASURES if row[measure]]
    parts = [_claimed(row, measure) for measure in measured if is_claimed(row, measure)]
    if reason := why_not(row, "accuracy"):
        parts.append(f"nothing is claimed of accuracy, as {reason}")
    open_ones = [m for m in measured if not is_claimed(row, m) and not why_not(row, m)]
    if open_ones:
        least = min((row[MEASURES[m][0]] for m in open_ones), key=Decimal)
        parts.append(f"no effect can be claimed on {_listed(open_ones)} (smallest Holm-adjusted {p_of(least)})")
    return "; ".join(parts)


def _claimed(row: Row, measure: str) -> str:
    p_column, direction, better, worse = MEASURES[measure]
    above = float(row[measure]) > 0
    words = better if above == (direction > 0) else worse
    if row["effect"] == INTERACTION:
        words = f"{NAMES[measure]} {'above' if above else 'below'} the sum of both effects"
    return f"{words}, {_span(row, measure)}, Holm-adjusted {p_of(row[p_column])}"


def _span(row: Row, measure: str) -> str:
    """A difference with its interval and its unit."""
    unit = "points" if measure == "accuracy" else "nats a token"
    ends = [row[measure + end] for end in ("", "_low", "_high")]
    value, low, high = (points_of(x) if measure == "accuracy" else f"{float(x):+.3g}" for x in ends)
    return f"{value} {unit} [{low}, {high}]"


def _listed(measures: list[str]) -> str:
    *first, last = (NAMES[measure] for measure in measures)
    return f"{', '.join(first)} and {last}" if first else last


def subset_sentences(subsets: list[Row]) -> list[str]:
    """A sentence a kind of subset of the test items."""
    return [
        _subset(name, [row for row in subsets if row["subset"] == name])
        for name in dict.fromkeys(row["subset"] for row in subsets)
    ]


def _subset(name: str, rows: list[Row]) -> str:
    counts = sorted({int(row["n"]) for row in rows})
    n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    asked = max(int(row["asked"]) for row in rows)
    which = "that it answered rightly under every one"
    if name != ALL_RIGHT:
        which = "to which its answers under the two compared prompts are within 10 % in length"
    claimed = [row for row in rows if row["p_holm"] and is_claimed(row, "accuracy")]
    parts = [f"{_pair(row)}: {_claimed(row | {'effect': name}, 'accuracy')}" for row in claimed]
    reasons = {_pair(row): _why_not(row) for row in rows}
    if rest := [row["p_holm"] for row in rows if row not in claimed and not reasons[_pair(row)]]:
        least = p_of(min(rest, key=Decimal))
        parts.append(f"no {'other ' if parts else ''}difference in accuracy can be claimed (smallest {least})")
    for reason in filter(None, dict.fromkeys(reasons.values())):
        of = [pair for pair, why in reasons.items() if why == reason]
        parts.append(f"nothing is claimed of {'any contrast' if len(of) == len(rows) else ', '.join(of)}, as {reason}")
    return f"Of {asked} test items that the teacher was asked under every prompt, the {n} {which}: {'; '.join(parts)}."


def _why_not(row: Row) -> str:
    return why_not(row, "accuracy") if row["p_holm"] else f"fewer than {FEWEST} items are too few"


def _pair(row: Row) -> str:
    return f"{title_of(row['model'])} against {title_of(row['reference'])}"


def control_sentences(contrasts: list[Row], effects: list[Row]) -> list[str]:
    """Whether what must come out as worse did, and whether what must not differ does not."""
    arms = load_arms()
    broken, bases = of_role("positive-control", arms), of_role("baseline", arms)
    found = [_positive(row) for row in contrasts if row["model"] in broken and row["reference"] in bases]
    return found + [_negative(row) for row in effects if row["effect"] == ANOTHER_SEED]


def _positive(row: Row) -> str:
    """That its answers run on to the limit is part of what was broken, so it is no reason here not to count them."""
    model, reference = title_of(row["model"]), title_of(row["reference"])
    measured, row = [measure for measure in MEASURES if row[measure]], row | {"truncated": "0"}
    worse = [m for m in measured if is_claimed(row, m) and float(row[m]) * MEASURES[m][1] < 0]
    seen = "; ".join(_claimed(row | {"effect": ""}, measure) for measure in worse)
    start = f"Positive control: {model}, whose training was broken on purpose,"
    if not (missed := [measure for measure in measured if measure not in worse]):
        return f"{start} came out as worse than {reference}, as it must: {seen}."
    why = f" ({reason})" if (reason := why_not(row, "accuracy")) else ""
    said = f"{start} did not come out as worse than {reference} in {_listed(missed)}{why}"
    if worse:
        return f"{said}: in that, this study has no power to see a broken training. It came out as worse so: {seen}."
    return f"{said}: this study has no power to see a broken training."


def _negative(row: Row) -> str:
    """By p that are not adjusted: a control must not pass because other tests are counted with it."""
    start = f"Negative control: {title_of(row['model'])} against {title_of(row['reference'])}, which differ in the seed"
    p_of_measure = {m: row[p] for m, p in (("accuracy", "p"), ("kl", "kl_p"), ("nll_gold", "nll_gold_p")) if row[m]}
    differ = [m for m, p in p_of_measure.items() if Decimal(p) < Decimal(str(LEVEL))]
    if not differ:
        least = p_of(min(p_of_measure.values(), key=Decimal))
        return f"{start} alone, show no difference in {_listed(list(p_of_measure))} (smallest p: {least})."
    sizes = "; ".join(f"{NAMES[m]} {_span(row, m)}, {p_of(p_of_measure[m])}" for m in differ)
    return (
        f"{start} alone, differ ({sizes}): another seed makes that much, so that a difference of this size between "
        "single trainings is no effect of a prompt."
    )
