"""What contrasts.csv, effects.csv and subsets.csv allow to be said, in words."""

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from functools import partial

from primekd.config import UNTRAINED, load_arms, of_role
from primekd.statistics.effects import AND, ANOTHER_SEED, ANY_WORDING, INTERACTION, SUBJECTS
from primekd.statistics.families import title_of
from primekd.statistics.inference import LEVEL
from primekd.statistics.subsets import ALL_RIGHT, FEWEST

Row = dict[str, str]
OF_SEED = "another seed: "  # before a measure, the key of what it made; rows of `beside_control` have it
MOSTLY = 0.5  # of a model that was cut off more often nobody knows what it would have answered

# Measure -> (the column of its adjusted p, the direction in which more is better, words for better, for worse).
MEASURES = {
    "accuracy": ("p_holm", 1, "more correct answers", "fewer correct answers"),
    "kl": ("kl_p_holm", -1, "closer to the unprimed teacher", "further from the unprimed teacher"),
    "nll_gold": ("nll_gold_p_holm", -1, "gold solutions more likely", "gold solutions less likely"),
}
NAMES = {"accuracy": "accuracy", "kl": "KL to the unprimed teacher", "nll_gold": "NLL of the gold solutions"}


def beside_control(rows: list[Row], effects: list[Row]) -> list[Row]:
    """The rows, each with what another seed alone made in the measures in which that made a difference."""
    found: dict[str, list[float]] = {}
    for row in (row for row in effects if row["effect"] == ANOTHER_SEED):
        for measure in _seen(row):
            found.setdefault(OF_SEED + measure, []).append(abs(float(row[measure])))
    made = {measure: str(max(values)) for measure, values in found.items()}
    return [row if row.get("effect") == ANOTHER_SEED else row | made for row in rows]


def _seen(row: Row) -> dict[str, str]:
    """Measure -> p, where it is below LEVEL; not adjusted: a control must not pass because of other tests."""
    tested = {m: row[p] for m, p in (("accuracy", "p"), ("kl", "kl_p"), ("nll_gold", "nll_gold_p")) if row[m]}
    return {m: p for m, p in tested.items() if float(p) < LEVEL}


def sentence(row: Row) -> str:
    """One contrast in words: what may be claimed of the accuracies, and what could have been seen."""
    model, reference = title_of(row["model"]), title_of(row["reference"])
    value, low, high = (points(row[key]) for key in ("accuracy", "accuracy_low", "accuracy_high"))
    covered = f", {seeds}" if (seeds := seeds_of([row])) else ""
    span = f"{value} points [{low}, {high}], Holm-adjusted {p_of(row['p_holm'])}{covered}"
    if reason := why_not(row, "accuracy"):
        return f"Between {model} and {reference} nothing is claimed, as {reason}: {span}."
    if is_claimed(row, "accuracy"):
        more = "more" if float(row["accuracy"]) > 0 else "fewer"
        return f"{model} answers {more} questions correctly than {reference}: {span}."
    return f"Between {model} and {reference} no difference can be claimed: {span}; {would_show(row['mde'])}."


def is_detectable(share: str | float) -> bool:
    """Whether a smallest true difference is one: a test that finds none has 1."""
    return percent(share) != "100.0"


def would_show(detectable: str | float) -> str:
    """What could have been seen, given the smallest true difference that is found in 80 % of repetitions, a share."""
    if not is_detectable(detectable):
        return "so few items or seeds would show no difference, however large, four times in five"
    return f"a true difference of {percent(detectable)} points or more would be shown four times in five"


def claims(contrasts: list[Row], numbers: bool = False) -> list[str]:
    """What the contrasts allow to be said, a sentence a reference and measure. With `numbers` also adjusted p and how
    many training seeds it covers; else the same words on every machine that claims the same."""
    sentences = []
    for reference in dict.fromkeys(row["reference"] for row in contrasts):
        for measure in MEASURES:
            rows = [r for r in contrasts if r["reference"] == reference and r[measure]]
            if rows and (said := _claim(rows, measure, numbers)):
                seeds = f"; {seeds_of(rows)}" if numbers and seeds_of(rows) else ""
                sentences.append(f"Against {title_of(reference)} — {said}{seeds}.")
    return sentences


def _claim(rows: list[Row], measure: str, numbers: bool) -> str:
    p_column, direction, *words = MEASURES[measure]
    parts = []
    for word, way in zip(words, (direction, -direction), strict=True):
        found = [row for row in rows if is_claimed(row, measure) and way * float(row[measure]) > 0]
        names = (f"{title_of(r['model'])} ({p_of(r[p_column])})" if numbers else title_of(r["model"]) for r in found)
        parts += [f"{word}: {', '.join(names)}"] if found else []
    broken = of_role("positive-control")  # whose answers run on is part of what was broken, and has its own sentence
    others = [row for row in rows if row["model"] not in broken]
    reasons = dict.fromkeys(why_not(row, measure) for row in others)
    students = [row for row in others if row["model"] not in UNTRAINED]
    tested = [row[p_column] for row in students if not why_not(row, measure)]
    if not parts and tested:
        least = min(tested, key=Decimal)
        who = "any student" if len(tested) == len(students) else "any other student"
        who += ", the positive control apart" if len(others) < len(rows) else ""
        parts = [f"{words[0]}: no difference can be claimed for {who}{f', smallest {p_of(least)}' if numbers else ''}"]
    for reason in filter(None, reasons):
        names = [title_of(row["model"]) for row in others if why_not(row, measure) == reason]
        parts.append(f"{words[0]}: nothing is claimed of {', '.join(names)}, as {reason}")
    return "; ".join(parts)


def is_claimed(row: Row, measure: str, p_column: str = "") -> bool:
    """Whether a difference in a measure may be claimed, by its own adjusted p or that in `p_column`."""
    p = float(row[p_column or MEASURES[measure][0]])
    return p < LEVEL and float(row[measure]) != 0 and not why_not(row, measure)


def why_not(row: Row, measure: str) -> str:
    """Why a contrast cannot be claimed whatever its p is; of held-out fit it does not matter where answers end."""
    single = row["seeds"] == "1" and _trained([row])
    if single and abs(float(row[measure] or 0)) <= float(row.get(OF_SEED + measure, -1)):
        return "another seed alone made as much (negative control)"
    if measure != "accuracy":
        return ""
    cut = [
        f"most answers of {side_title(row[model])} were cut off at the limit of new tokens"
        for model, share in (("reference", "reference_truncated"), ("model", "truncated"))
        if float(row[share]) > MOSTLY
    ]
    return " and ".join(cut)


def side_title(names: str) -> str:
    """The titles of a side, which may be several arms."""
    several = names.split(AND)
    return ("one of " if len(several) > 1 else "") + AND.join(map(title_of, several))


def _trained(rows: list[Row]) -> list[Row]:
    """Those of the rows in which anything was trained on either side."""
    return [row for row in rows if row["model"] not in UNTRAINED or row.get("reference_seeds")]


def seeds_of(rows: list[Row]) -> str:
    """How many trainings contrasts with one reference cover: `one training seed`, `3 training seeds`; "" of none."""
    if not (rows := _trained(rows)):
        return ""
    counts = sorted({int(row["seeds"]) for row in rows})
    said = trainings(counts)
    of_reference = rows[0]["reference_seeds"]
    if not of_reference or [int(of_reference)] == counts:
        return said
    return f"{said}, {of_reference if of_reference != '1' else 'one'} of {title_of(rows[0]['reference'])}"


def trainings(counts: Iterable[int]) -> str:
    """`one training seed`, `1 or 3 training seeds`."""
    counts = sorted(set(counts))
    return "one training seed" if counts == [1] else f"{' or '.join(map(str, counts))} training seeds"


def percent(share: str | float, signed: bool = False) -> str:
    """A share (0.30625) in percent with one decimal (30.6); half is rounded away from zero."""
    rounded = (Decimal(str(share)) * 100).quantize(Decimal("0.1"), ROUND_HALF_UP)
    rounded = abs(rounded) if rounded == 0 else rounded  # no "-0.0"
    return f"{rounded:+}" if signed and rounded else str(rounded)


points = partial(percent, signed=True)  # of a difference of shares


def p_value(p: str) -> str:
    """Three decimals, or <0.001."""
    return "<0.001" if Decimal(p) < Decimal("0.001") else str(Decimal(p).quantize(Decimal("0.001"), ROUND_HALF_UP))


def p_of(p: str) -> str:
    """`p = 0.012`."""
    return f"p = {p_value(p)}".replace("= <", "< ")


def effect_sentences(effects: list[Row]) -> list[str]:
    base = title_of(next(iter(of_role("baseline")), ""))
    return [
        f"{SUBJECTS[row['effect']].format(arm=title_of(row['arm']), base=base)}: {_effect(row)}."
        for row in effects
        if row["effect"] in SUBJECTS
    ]


def _effect(row: Row) -> str:
    """What is claimed of each measure, then where nothing can be, then how many trainings that covers."""
    measured = [measure for measure in MEASURES if row[measure]]
    parts = [_claimed(row, measure) for measure in measured if is_claimed(row, measure)]
    for reason in dict.fromkeys(filter(None, (why_not(row, m) for m in measured))):
        of = _listed([m for m in measured if why_not(row, m) == reason])
        parts.append(f"nothing is claimed of {of}, as {reason}")
    if open_ones := [m for m in measured if not is_claimed(row, m) and not why_not(row, m)]:
        least = min((row[MEASURES[m][0]] for m in open_ones), key=Decimal)
        parts.append(f"no effect can be claimed on {_listed(open_ones)} (smallest Holm-adjusted {p_of(least)})")
    seeds = trainings([int(row["seeds"])])
    if row["effect"] == ANY_WORDING:
        seeds = f"{row['seeds']} wordings, one training seed each, all against one training of {row['reference']}"
    return "; ".join([*parts, seeds])


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
    value, low, high = (points(x) if measure == "accuracy" else f"{float(x):+.3g}" for x in ends)
    return f"{value} {unit} [{low}, {high}]"


def _listed(measures: list[str]) -> str:
    *first, last = (NAMES[measure] for measure in measures)
    return f"{', '.join(first)} and {last}" if first else last


def subset_sentences(subsets: list[Row]) -> list[str]:
    return [_subset(name, subsets) for name in dict.fromkeys(row["subset"] for row in subsets)]


def _subset(name: str, subsets: list[Row]) -> str:
    rows = [row for row in subsets if row["subset"] == name]
    counts = sorted({int(row["n"]) for row in rows})
    n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    asked = max(int(row["asked"]) for row in rows)
    which = "that it answered rightly under every one"
    if name != ALL_RIGHT:
        which = "to which its answers under the two compared prompts are within 10 % in length"
    parts, rest, reasons = [], [], {}
    for row in rows:
        pair = f"{title_of(row['model'])} against {title_of(row['reference'])}"
        if reason := why_not(row, "accuracy") if row["p_holm"] else f"{FEWEST} items are needed for a test":
            reasons.setdefault(reason, []).append(pair)
        elif is_claimed(row, "accuracy"):
            parts.append(f"{pair}: {_claimed(row | {'effect': name}, 'accuracy')}")
        else:
            rest.append(row["p_holm"])
    if rest:
        least = p_of(min(rest, key=Decimal))
        parts.append(f"no {'other ' if parts else ''}difference in accuracy can be claimed (smallest {least})")
    for reason, of in reasons.items():
        parts.append(f"nothing is claimed of {'any contrast' if len(of) == len(rows) else ', '.join(of)}, as {reason}")
    return f"Of {asked} test items that the teacher was asked under every prompt, the {n} {which}: {'; '.join(parts)}."


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
    """By the p of `_seen`."""
    start = f"Negative control: {title_of(row['model'])} against {title_of(row['reference'])}, which differ in the seed"
    measured, differ = [m for m in MEASURES if row[m]], _seen(row)
    if not differ:
        sizes = "; ".join(f"{NAMES[m]} {_span(row, m)}" for m in measured)
        return f"{start} alone: no difference can be claimed ({sizes})."
    sizes = "; ".join(f"{NAMES[m]} {_span(row, m)}, {p_of(p)}" for m, p in differ.items())
    return (
        f"{start} alone, differ ({sizes}, not adjusted): another seed makes that much, so that a difference of this "
        "size between single trainings need not be an effect of a prompt."
    )
