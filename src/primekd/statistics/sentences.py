"""What contrasts.csv allows to be said, in words; of effects, subsets and controls in effect_sentences.py."""

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal

from primekd.config.arm import UNTRAINED
from primekd.config.arms import of_role
from primekd.statistics.effects import AND
from primekd.statistics.families import title_of
from primekd.statistics.inference import LEVEL

Row = dict[str, str]
MOSTLY = 0.5  # of a model that was cut off more often nobody knows what it would have answered

# Measure -> (the column of its adjusted p, the direction in which more is better, words for better, for worse).
MEASURES = {
    "accuracy": ("p_holm", 1, "more correct answers", "fewer correct answers"),
    "kl": ("kl_p_holm", -1, "closer to the unprimed teacher", "further from the unprimed teacher"),
    "nll_gold": ("nll_gold_p_holm", -1, "gold solutions more likely", "gold solutions less likely"),
}


def sentence(row: Row) -> str:
    """One contrast in words: what may be claimed of the accuracies, and what could have been seen."""
    model, reference = title_of(row["model"]), title_of(row["reference"])
    points, low, high, mde = (points_of(row[key]) for key in ("accuracy", "accuracy_low", "accuracy_high", "mde"))
    span = f"{points} points [{low}, {high}], Holm-adjusted {p_of(row['p_holm'])}, {seeds_of([row])}"
    if reason := why_not(row, "accuracy"):
        return f"Between {model} and {reference} nothing is claimed, as {reason}: {span}."
    if is_claimed(row, "accuracy"):
        more = "more" if float(row["accuracy"]) > 0 else "fewer"
        return f"{model} answers {more} questions correctly than {reference}: {span}."
    return (
        f"Between {model} and {reference} no difference can be claimed: {span}; so many items show a true difference "
        f"of {mde.lstrip('+')} points or more four times in five."
    )


def claims(contrasts: list[Row], numbers: bool = False) -> list[str]:
    """What the contrasts allow to be said, a sentence for each reference and measure. With `numbers` also each
    difference's adjusted p (the smallest one where none is claimed) and how many training seeds it covers; else the
    same words on every machine that claims the same."""
    sentences = []
    for reference in dict.fromkeys(row["reference"] for row in contrasts):
        for measure in MEASURES:
            rows = [r for r in contrasts if r["reference"] == reference and r[measure]]
            if rows:
                said, seeds = _claim(rows, measure, numbers), f"; {seeds_of(rows)}" if numbers else ""
                sentences.append(f"Against {title_of(reference)} — {said}{seeds}.")
    return sentences


def _claim(rows: list[Row], measure: str, numbers: bool) -> str:
    """What the contrasts with one reference say of one measure."""
    p_column, direction, *words = MEASURES[measure]
    parts = []
    for word, way in zip(words, (direction, -direction), strict=True):
        found = [row for row in rows if is_claimed(row, measure) and way * float(row[measure]) > 0]
        names = (f"{title_of(r['model'])} ({p_of(r[p_column])})" if numbers else title_of(r["model"]) for r in found)
        parts += [f"{word}: {', '.join(names)}"] if found else []
    broken = of_role("positive-control")  # whose answers run on is part of what was broken, and has its own sentence
    reasons = dict.fromkeys(why_not(row, measure) for row in rows if row["model"] not in broken)
    if not parts and "" in reasons:
        least = f", smallest {p_of(min((r[p_column] for r in rows), key=Decimal))}" if numbers else ""
        who = "any student" if len(reasons) == 1 else "any other student"
        parts = [f"{words[0]}: no difference can be claimed for {who}{least}"]
    for reason in filter(None, reasons):
        names = [title_of(r["model"]) for r in rows if why_not(r, measure) == reason and r["model"] not in broken]
        parts.append(f"{words[0]}: nothing is claimed of {', '.join(names)}, as {reason}")
    return "; ".join(parts)


def is_claimed(row: Row, measure: str, p_column: str = "") -> bool:
    """Whether a difference in a measure may be claimed, by its own adjusted p or that in `p_column`."""
    p = float(row[p_column or MEASURES[measure][0]])
    return p < LEVEL and float(row[measure]) != 0 and not why_not(row, measure)


def why_not(row: Row, measure: str) -> str:
    """Why a contrast cannot be claimed whatever its p is; empty where it can. Held-out fit is measured on given texts:
    where a model's own answers end does not matter there."""
    if measure != "accuracy":
        return ""
    cut = [
        f"most answers of {side_title(row[model])} were cut off at the limit of new tokens"
        for model, share in (("reference", "reference_truncated"), ("model", "truncated"))
        if float(row[share]) > MOSTLY
    ]
    return " and ".join(cut)


def side_title(names: str) -> str:
    """The titles of a side of a comparison, which may be several arms."""
    several = names.split(AND)
    return ("one of " if len(several) > 1 else "") + AND.join(map(title_of, several))


def seeds_of(rows: list[Row]) -> str:
    """How many trainings contrasts with one reference cover: `one training seed`, `3 training seeds`."""
    counts = sorted({int(row["seeds"]) for row in rows})
    said = trainings(counts)
    of_reference = rows[0]["reference_seeds"]
    if rows[0]["reference"] in UNTRAINED or [int(of_reference)] == counts:
        return said
    return f"{said}, {of_reference if of_reference != '1' else 'one'} of {title_of(rows[0]['reference'])}"


def trainings(counts: Iterable[int]) -> str:
    """`one training seed`, `1 or 3 training seeds`."""
    counts = sorted(set(counts))
    return "one training seed" if counts == [1] else f"{' or '.join(map(str, counts))} training seeds"


def p_of(p: str) -> str:
    """`p = 0.012`."""
    value = Decimal(p)
    return "p < 0.001" if value < Decimal("0.001") else f"p = {value.quantize(Decimal('0.001'), ROUND_HALF_UP)}"


def points_of(share: str) -> str:
    """A share in points, rounded half up as in the tables."""
    points = (100 * Decimal(share)).quantize(Decimal("0.1"), ROUND_HALF_UP)
    return f"{points:+}" if points else "0.0"
