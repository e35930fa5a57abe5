"""What a priming's text does, what its logits do, and whether they add up: the 2 x 2 of both (effects.csv)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.config import NONE, PRIMED, Arm, load_arms, of_role, split_seed
from primekd.foundation import Estimated, MaybeEstimated, hash_json, nested, table_row
from primekd.statistics.contrasts import FITS, ContrastRow, compared, fits_of, verdicts_of
from primekd.statistics.inference import LEVEL, UNKNOWN, Seeds, clustered, compare_sums, holm_of
from primekd.tasks.clusters import cluster_of

TEXT, LOGITS, INTERACTION = "text", "logits", "interaction"
TEXT_ALONE, BEYOND_TEXT, ANOTHER_SEED = "text alone", "logits beyond text", "another seed"
ANY_WORDING = "any wording"
# What is compared with what, in words: before the arm's title and the unprimed one's are put in.
SUBJECTS = {
    TEXT: "The text of {arm} in place of {base}'s (mean over both logits)",
    LOGITS: "The logits under the prompt of {arm} in place of {base}'s (mean over both texts)",
    INTERACTION: "Text and logits of {arm} together, beyond what each of them adds alone",
    TEXT_ALONE: "The text of {arm} in place of {base}'s, without any logits",
    BEYOND_TEXT: "The logits of {arm} beyond its text alone",
    ANY_WORDING: "The priming of {arm} in any wording, against {base}",
}
OF_CONTRAST = ("p", "p_holm", "kl_p", "kl_p_holm", "nll_gold_p", "nll_gold_p_holm", "mde")  # taken from such a row
AND = " + "  # between the arms of one side
# What of an arm is no setting of its own: its names, and the prompts that the cells cross.
NO_SETTING = {
    "name", "title", "role", "variant_of", "priming", "priming_file", "placement", "text", "signals", "notebooks",
    "extra",
}  # fmt: skip


class Asked(NamedTuple):
    """The mean of the arms in `plus` less that of those in `minus`; of an interaction the sum less the sum."""

    arm: str
    effect: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]

    @property
    def weight(self) -> float:
        return 1.0 if self.effect == INTERACTION else 1 / len(self.plus)


@table_row
class EffectRow:
    """One effect, over the same items and the seeds that all of its cells have: the arms of `model` less those of
    `reference`. `effect`: A is the arm's prompt, B the unprimed one, and (text, logits) are what a student learned
    from. text: mean of (A, A) - (B, A) and (A, B) - (B, B). logits: mean of (A, A) - (A, B) and (B, A) - (B, B).
    interaction: (A, A) - (A, B) - (B, A) + (B, B). text alone: (A, none) - (B, none). logits beyond text: (A, A) - (A,
    none). another seed: the unprimed arm trained again, less itself; the negative control. any wording: the mean over
    an arm and its rewordings, less the unprimed one; each wording is a draw, as a seed is (`seeds` counts them, of one
    training each); what varies between trainings of the unprimed arm is not in its error. Columns are as in
    `ContrastRow`, with the exact test of signs in place of McNemar's. The columns `p_holm` are adjusted over all
    measures of all effects but planned contrasts, which have the p of that family, and the negative control, which has
    its own. `truncated`: of each side's cell that was cut off most. `mde` is of the t test; empty where the cells do
    not differ at all."""

    arm: str
    effect: str
    model: str
    reference: str
    seeds: int
    n: int
    clusters: int
    truncated: float
    reference_truncated: float
    accuracy: Estimated
    p: float
    p_holm: float
    kl: MaybeEstimated
    kl_p: float | None
    kl_p_holm: float | None
    nll_gold: MaybeEstimated
    nll_gold_p: float | None
    nll_gold_p_holm: float | None
    mde: float | None


def asked_of(arms: Mapping[str, Arm]) -> list[Asked]:
    """The effects that these arms have all cells for. Cells that differ in more than their two prompts are no 2 x 2."""
    cells: dict[tuple[str, ...], str] = {}
    for arm in arms.values():
        if arm.role in (*PRIMED, "baseline", "crossed", "text-alone"):
            cells.setdefault((_settings(arm), *arm.cell), arm.name)
    found: list[Asked | None] = []
    for b in of_role("baseline", arms)[:1]:
        of_text = _settings(arms[b])
        found.append(_pair(b, BEYOND_TEXT, b, cells.get((of_text, b, NONE))))
        for a in (arm.name for arm in arms.values() if arm.role in PRIMED):
            own = _settings(arms[a])
            both, a_text, a_logits, neither = (cells.get((own, *cell)) for cell in ((a, a), (a, b), (b, a), (b, b)))
            if both and a_text and a_logits and neither:
                found.append(Asked(a, TEXT, (both, a_text), (a_logits, neither)))
                found.append(Asked(a, LOGITS, (both, a_logits), (a_text, neither)))
                found.append(Asked(a, INTERACTION, (both, neither), (a_text, a_logits)))
            others = [r for r in of_role("rewording", arms) if arms[r].variant_of == a and _settings(arms[r]) == own]
            found.append(Asked(a, ANY_WORDING, (a, *others), (b,)) if others and own == of_text else None)
            alone = cells.get((own, a, NONE))
            found += [_pair(a, TEXT_ALONE, alone, cells.get((own, b, NONE))), _pair(a, BEYOND_TEXT, a, alone)]
    return [one for one in found if one]


def _settings(arm: Arm) -> str:
    return hash_json(arm.model_dump(mode="json", exclude=NO_SETTING))


def _pair(arm: str, effect: str, one: str | None, other: str | None) -> Asked | None:
    return Asked(arm, effect, (one,), (other,)) if one and other else None


def effect_rows(
    logs: dict[str, list[LogRow]], held_out: Iterable[HeldOutRow], contrasts: Iterable[ContrastRow] = ()
) -> list[EffectRow]:
    """The effects that the models' arms have all cells for, and the negative control where the baseline has two seeds.
    One of the planned `contrasts` has that one's p: no test is adjusted twice. Raises ValueError as `contrast`."""
    arms, names = load_arms(), {split_seed(model)[0] for model in logs}
    here = {name: arm for name, arm in arms.items() if name in names}
    again = [
        Asked(name, ANOTHER_SEED, (model,), (name,))
        for name in of_role("baseline", here)[:1] for model in logs if split_seed(model)[0] == name and model != name
    ]  # fmt: skip
    held_out, planned = list(held_out), {frozenset((row.model, row.reference)): row for row in contrasts}
    asked = asked_of(here)
    seeds = {arm: own.keys() for arm, own in compared(verdicts_of(logs)).items()}
    # A contrast is over all seeds of both sides, an effect over those that both have: its p is of another number else.
    of_contrasts = [
        one for one in asked
        if frozenset(one.plus + one.minus) in planned and len({frozenset(seeds[a]) for a in one.plus + one.minus}) == 1
    ]  # fmt: skip
    found: dict[Asked, dict[str, tuple]] = {}
    for family in ([one for one in asked if one not in of_contrasts], again, of_contrasts):
        found |= _tested(family, logs, held_out)
    rows = {one: _row(one, logs, found[one]) for one in [*asked, *again] if one in found}
    for one in of_contrasts:
        if one in rows:
            same = planned[frozenset(one.plus + one.minus)]
            rows[one] = replace(rows[one], **{name: getattr(same, name) for name in OF_CONTRAST})
    return list(rows.values())


def _tested(
    asked: list[Asked], logs: dict[str, list[LogRow]], held_out: list[HeldOutRow]
) -> dict[Asked, dict[str, tuple]]:
    """Effect -> measure -> (comparison or effect, p, adjusted p, first threshold): all that is adjusted together."""
    found = {}
    groups, verdicts = [cluster_of(r.id) for r in next(iter(logs.values()), [])], verdicts_of(logs)
    for one in asked:
        if differences := _difference(one, verdicts):
            found[one, "accuracy"] = compare_sums(differences, groups, one.weight * len(one.plus))
    for measure in FITS:
        sums, counts, fit_groups = fits_of(held_out, measure)
        for one in asked:
            if differences := _difference(one, sums):
                found[one, measure] = clustered(differences, {}, counts, fit_groups)
    adjusted = holm_of({test: result.p for test, result in found.items()})
    return nested((*test, (result, result.p, adjusted[test], LEVEL / len(found))) for test, result in found.items())


def _difference(asked: Asked, of_arms: Mapping[str, Seeds]) -> Seeds:
    """seed -> (items,) what an effect is on each item, for the seeds that all of its cells have; or by wording."""
    # Every further seed is an arm of its own too, which has the profile's own seed alone.
    apart = {f"{arm}-seed{seed}": {"": values} for arm, own in of_arms.items() for seed, values in own.items() if seed}
    cells = {**of_arms, **apart}
    sides = [(asked.weight, name) for name in asked.plus] + [(-asked.weight, name) for name in asked.minus]
    if not all(name in cells for _, name in sides):
        return {}
    if asked.effect == ANY_WORDING:
        (base,) = asked.minus
        return {name: cells[name][""] - cells[base][""] for name in asked.plus}
    seeds = [seed for seed in cells[asked.plus[0]] if all(seed in cells[name] for _, name in sides)]
    return {seed: np.sum([weight * cells[name][seed] for weight, name in sides], axis=0) for seed in seeds}


def _row(asked: Asked, logs: dict[str, list[LogRow]], measured: dict[str, tuple]) -> EffectRow:
    accuracy, p, p_holm, level = measured["accuracy"]
    fits = []
    for effect, *tested in (measured.get(measure, (None,)) for measure in FITS):
        fits += [*effect.estimate, *tested[:2]] if effect else [*UNKNOWN, None, None]
    cut = {model: float(np.mean([r.truncated for r in log])) for model, log in logs.items()}
    most_cut = [
        max(share for model, share in cut.items() if {model, split_seed(model)[0]} & {*side})
        for side in (asked.plus, asked.minus)
    ]
    return EffectRow(
        asked.arm, asked.effect, AND.join(asked.plus), AND.join(asked.minus), accuracy.effect.seeds, accuracy.items,
        accuracy.clusters, *most_cut, *accuracy.effect.estimate, p, p_holm, *fits,
        accuracy.effect.detectable(level, accuracy.items, asked.weight, asked.weight * len(asked.plus))
        if accuracy.effect.error else None,
    )  # fmt: skip
