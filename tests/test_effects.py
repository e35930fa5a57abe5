"""The 2 x 2 of text and logits, matched items, the family that a profile names, and the study's two controls."""

import itertools
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, write_profile
from report_logs import make_checkout, write_study

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.config import load_profile
from primekd.config.arms import arms_of, load_arms
from primekd.config.profile import PlannedContrasts
from primekd.foundation import read_json, write_json, write_manifest, write_text
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_table, table_text, write_records
from primekd.report.beyond import beyond_tables, effect_tables
from primekd.report.claims import claim_table
from primekd.report.findings import findings, how_tested, results_page, results_text
from primekd.report.html import render
from primekd.report.results import read_results
from primekd.statistics.contrasts import ContrastRow, contrast, seed_rows
from primekd.statistics.effects import (
    ANOTHER_SEED,
    ANY_WORDING,
    BEYOND_TEXT,
    INTERACTION,
    LOGITS,
    TEXT,
    TEXT_ALONE,
    EffectRow,
    asked_of,
    effect_rows,
)
from primekd.statistics.families import CHECKS, MAIN, plan_of
from primekd.statistics.inference import holm, mcnemar_exact, sign_flips_exact
from primekd.statistics.sentences import (
    beside_control,
    claims,
    control_sentences,
    effect_sentences,
    is_claimed,
    subset_sentences,
    why_not,
)
from primekd.statistics.subsets import ALL_RIGHT, SAME_LENGTH, SubsetRow, read_taught, subset_rows
from primekd.studies.regrade import regrade
from primekd.studies.results import answers_hash, compute_tables, planned_inputs, write_results
from primekd.studies.study import find_study

# Cell -> the arm that has it: (whose text, whose logits).
CELLS = {("A", "A"): "ai-KD", ("A", "B"): "ai-text-KD", ("B", "A"): "ai-signals-KD", ("B", "B"): "base-KD"}
KEPT = ("placebo-KD", "base-text-KD", "ai-signals-KD")  # of the arms that no profile runs by itself
MORE = {
    "ai-text-KD": {"title": "Ground truth text, base signals", "role": "crossed", "variant_of": "ai-KD",
                   "text": "ai-KD", "signals": "base-KD"},
    "ai-alone-KD": {"title": "Ground truth-KD, text alone", "role": "text-alone", "variant_of": "ai-KD",
                    "text": "ai-KD", "signals": "none"},
    "broken-KD": {"title": "Broken", "role": "positive-control", "variant_of": "base-KD", "text": "base-KD",
                  "signals": "base-KD", "rows": "shuffled"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout whose arms fill the 2 x 2 of ai-KD, with and without logits."""
    folder = make_checkout(tmp_path, monkeypatch)
    path = folder / "configs" / "strategies.yaml"
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    kept = {name: row for name, row in rows.items() if name in KEPT or not row.get("extra")}
    more = {name: row | {"extra": True} for name, row in MORE.items()}
    path.write_text(yaml.safe_dump(kept | more, sort_keys=False), encoding="utf-8")
    return folder


def log_of(verdicts, name: str = "item-{}", truncated: bool = False) -> list[LogRow]:
    return [
        LogRow(name.format(i), "?", "18", "18", 3, truncated, "18", "last-number", "0:2", bool(right))
        for i, right in enumerate(verdicts)
    ]


def simulated(rng, items: int, text: float, logits: float, both: float, seeds: int = 1, seed_sd: float = 0.0):
    """model -> verdicts of each cell, whose chances of being right are 0.35, what the item adds, and the effects."""
    easy = rng.uniform(-0.15, 0.15, items)
    found = {}
    for (of_text, of_logits), name in CELLS.items():
        a, b = of_text == "A", of_logits == "A"
        for seed in range(seeds):
            chance = 0.35 + easy + text * a + logits * b + both * a * b + rng.normal(0, seed_sd)
            found[f"{name}-seed{seed}" if seed else name] = rng.random(items) < chance
    return found


def effects(verdicts, held_out=()) -> dict[tuple[str, str], EffectRow]:
    logs = {model: log_of(own) for model, own in verdicts.items()}
    return {(row.arm, row.effect): row for row in effect_rows(logs, held_out)}


# Which effects there are.


def test_the_cells_of_each_effect_are_those_of_its_definition():
    arms = load_arms()
    base, ai, ai_text, ai_signals = "base-KD", "ai-KD", "ai-text-KD", "ai-signals-KD"
    assert {(one.arm, one.effect): (set(one.plus), set(one.minus), one.weight) for one in asked_of(arms)} == {
        (ai, TEXT): ({ai, ai_text}, {ai_signals, base}, 0.5),
        (ai, LOGITS): ({ai, ai_signals}, {ai_text, base}, 0.5),
        (ai, INTERACTION): ({ai, base}, {ai_text, ai_signals}, 1.0),
        (ai, TEXT_ALONE): ({"ai-alone-KD"}, {"base-text-KD"}, 1.0),
        (ai, BEYOND_TEXT): ({ai}, {"ai-alone-KD"}, 1.0),
        (base, BEYOND_TEXT): ({base}, {"base-text-KD"}, 1.0),
    }
    without = {name: arm for name, arm in arms.items() if name != ai_text}
    assert {one.effect for one in asked_of(without)} == {TEXT_ALONE, BEYOND_TEXT}  # three cells are no 2 x 2


def test_cells_that_differ_in_more_than_their_prompts_are_not_compared():
    arms = load_arms()
    arms["ai-signals-KD"] = arms["ai-signals-KD"].model_copy(update={"loss": {"alpha": 0.9}})
    assert not {TEXT, LOGITS, INTERACTION} & {one.effect for one in asked_of(arms)}
    arms = {name: arm.model_copy(update={"loss": {"alpha": 0.9}}) for name, arm in load_arms().items()}
    assert {TEXT, LOGITS, INTERACTION} <= {one.effect for one in asked_of(arms)}


# What they are.


def test_effects_of_a_table_computed_by_hand():
    """10 items; right: 8 of (A, A), 5 of (A, B), 4 of (B, A), 2 of (B, B)."""
    right = {"ai-KD": 8, "ai-text-KD": 5, "ai-signals-KD": 4, "base-KD": 2}
    found = effects({name: np.arange(10) < count for name, count in right.items()})
    assert found["ai-KD", TEXT].accuracy == pytest.approx((0.4 + 0.3) / 2)
    assert found["ai-KD", LOGITS].accuracy == pytest.approx((0.3 + 0.2) / 2)
    assert found["ai-KD", INTERACTION].accuracy == pytest.approx(0.8 - 0.5 - 0.4 + 0.2)
    # By items: (A, A) alone on 3 of them, all of A's text on 1, all but (B, B) on 2, and so on, in halves.
    assert found["ai-KD", TEXT].p == pytest.approx(sign_flips_exact([0, 0, 0.5, 0.5, 1, 0.5, 0.5, 0.5, 0, 0]).p)


@pytest.mark.parametrize("effect, wanted", [((0.25, 0, 0), TEXT), ((0, 0.25, 0), LOGITS), ((0, 0, 0.45), INTERACTION)])
def test_each_effect_has_its_own_sign_and_a_swapped_cell_is_seen(effect, wanted):
    verdicts = simulated(np.random.default_rng(1), 3000, *effect)
    true = dict(zip((TEXT, LOGITS, INTERACTION), effect, strict=True))
    true |= {name: true[name] + effect[2] / 2 for name in (TEXT, LOGITS)}
    found = effects(verdicts)
    for name, value in true.items():
        row = found["ai-KD", name]
        assert row.accuracy == pytest.approx(value, abs=0.05)
        assert (row.p_holm < 0.001) == (value > 0), name
    swapped = verdicts | {"ai-text-KD": verdicts["ai-signals-KD"], "ai-signals-KD": verdicts["ai-text-KD"]}
    of_swapped = effects(swapped)
    assert of_swapped["ai-KD", TEXT].accuracy == pytest.approx(found["ai-KD", LOGITS].accuracy)
    assert of_swapped["ai-KD", INTERACTION].accuracy == pytest.approx(found["ai-KD", INTERACTION].accuracy)
    if wanted != INTERACTION:
        assert of_swapped["ai-KD", wanted].accuracy_high < true[wanted]
    upside_down = verdicts | {"ai-KD": verdicts["base-KD"], "base-KD": verdicts["ai-KD"]}
    turned = found["ai-KD", LOGITS].accuracy  # its crossed cells now have the base's text where they had A's
    assert effects(upside_down)["ai-KD", TEXT].accuracy == pytest.approx(-turned)


@pytest.mark.parametrize("seeds, seed_sd", [(1, 0.0), (4, 0.04)])
def test_intervals_cover_the_true_effects_and_no_interaction_is_found_where_there_is_none(seeds, seed_sd):
    rng, studies, covered, found = np.random.default_rng(7), 60, dict.fromkeys((TEXT, LOGITS, INTERACTION), 0), 0
    for _ in range(studies):
        rows = effects(simulated(rng, 150, 0.12, 0.05, 0.0, seeds, seed_sd))
        for name, true in ((TEXT, 0.12), (LOGITS, 0.05), (INTERACTION, 0.0)):
            row = rows["ai-KD", name]
            covered[name] += row.accuracy_low <= true <= row.accuracy_high
        found += rows["ai-KD", INTERACTION].p < 0.05
    # Of 60 studies 95 % cover: 51 and fewer have a chance of 1 in 350. Few seeds have wide ranges.
    assert min(covered.values()) >= 52 and found <= 8, (covered, found)


@pytest.fixture
def reworded(checkout):
    """The same checkout with two rewordings of ai-KD."""
    path = checkout / "configs" / "strategies.yaml"
    row = {"role": "rewording", "variant_of": "ai-KD", "extra": True, "priming": "Some other words."}
    more = {f"ai-{n}-KD": {"title": f"Reworded {n}", **row} for n in (2, 3)}
    path.write_text(path.read_text(encoding="utf-8") + yaml.safe_dump(more), encoding="utf-8")


def test_any_wording_is_the_mean_over_them_and_each_is_a_draw(reworded):
    right = {"base-KD": 10, "ai-KD": 18, "ai-2-KD": 22, "ai-3-KD": 20}
    verdicts = {name: np.arange(40) < count for name, count in right.items()}
    row = effects(verdicts)["ai-KD", ANY_WORDING]
    assert row.accuracy == pytest.approx(0.25) and row.seeds == 3
    assert row.model == "ai-KD + ai-2-KD + ai-3-KD" and row.reference == "base-KD"
    assert row.p > 2 * mcnemar_exact(verdicts["ai-2-KD"], verdicts["base-KD"]).p  # two degrees of freedom claim little
    (said,) = (s for s in effect_sentences([{k: "" if v is None else str(v) for k, v in asdict(row).items()}]))
    assert "The priming of Ground truth-KD in any wording, against base-KD" in said and "3 wordings, one" in said
    assert ("ai-KD", ANY_WORDING) not in effects({name: verdicts[name] for name in ("base-KD", "ai-KD")})
    arms = load_arms() | {"ai-2-KD": load_arms()["ai-2-KD"].model_copy(update={"loss": {"alpha": 0.9}})}
    (one,) = (asked for asked in asked_of(arms) if asked.effect == ANY_WORDING)
    assert one.plus == ("ai-KD", "ai-3-KD")  # another loss is no other wording


def test_what_hangs_on_single_sentences_is_no_effect_of_the_priming(reworded):
    """Each wording does something of its own, and their mean nothing: single ones come out, any wording does not."""
    rng, studies, single, any_wording = np.random.default_rng(4), 60, 0, 0
    for _ in range(studies):
        easy = rng.uniform(-0.15, 0.15, 400)
        chances = {"base-KD": 0.4} | {name: 0.4 + rng.normal(0, 0.1) for name in ("ai-KD", "ai-2-KD", "ai-3-KD")}
        verdicts = {name: rng.random(400) < chance + easy for name, chance in chances.items()}
        any_wording += effects(verdicts)["ai-KD", ANY_WORDING].p < 0.05
        single += mcnemar_exact(verdicts["ai-KD"], verdicts["base-KD"]).p < 0.05
    assert single > 20 and any_wording <= 8, (single, any_wording)


def test_held_out_fit_is_a_token_and_exact():
    kl = {"ai-KD": 0.5, "ai-text-KD": 0.4, "ai-signals-KD": 0.2, "base-KD": 0.3}
    rng = np.random.default_rng(3)
    tokens, noise = rng.integers(5, 20, 30), {name: rng.normal(0, 0.01, 30) for name in kl}
    noise = {name: values - (values * tokens).sum() / tokens.sum() for name, values in noise.items()}
    held_out = [
        HeldOutRow(name, f"item-{i}", int(t), float(t * (kl[name] + noise[name][i])), 10, 20 * kl[name] + i)
        for name in kl
        for i, t in enumerate(tokens)
    ]
    found = effects({name: np.arange(30) < 15 for name in kl}, held_out)
    assert found["ai-KD", TEXT].kl == pytest.approx(0.2) and found["ai-KD", LOGITS].kl == pytest.approx(0)
    assert found["ai-KD", INTERACTION].kl == pytest.approx(0.5 - 0.4 - 0.2 + 0.3)
    assert found["ai-KD", TEXT].nll_gold == pytest.approx(0.2 * 2)
    assert found["ai-KD", TEXT].accuracy == 0 and found["ai-KD", TEXT].p == 1 and found["ai-KD", TEXT].mde is None
    rows = list(found.values())
    tests = [p for row in rows for p in (row.p, row.kl_p, row.nll_gold_p)]
    adjusted = [p for row in rows for p in (row.p_holm, row.kl_p_holm, row.nll_gold_p_holm)]
    assert adjusted == pytest.approx(holm(tests))  # one family
    with pytest.raises(ValueError, match="different items"):
        effects({name: np.arange(30) < 15 for name in kl}, held_out[1:])


def test_templates_are_the_clusters_and_seeds_that_one_cell_lacks_are_left_out():
    rng = np.random.default_rng(5)
    verdicts = simulated(rng, 64, 0.2, 0, 0, seeds=2)
    logs = {m: log_of(v) for m, v in verdicts.items()}
    two = {(r.arm, r.effect): r for r in effect_rows(logs, [])}
    assert {row.seeds for key, row in two.items() if key[1] != ANOTHER_SEED} == {2}
    fewer = {model: log for model, log in logs.items() if model != "ai-text-KD-seed1"}
    one = {(r.arm, r.effect): r for r in effect_rows(fewer, [])}
    first = {(r.arm, r.effect): r for r in effect_rows({m: log for m, log in logs.items() if "seed" not in m}, [])}
    assert one["ai-KD", TEXT] == first["ai-KD", TEXT] and one["ai-KD", TEXT].seeds == 1
    symbolic = {m: [r for t in range(8) for r in log_of(v[8 * t : 8 * t + 8], f"gsm-symbolic-{t}-{{}}")]
                for m, v in verdicts.items()}  # fmt: skip
    from primekd.tasks.clusters import cluster_of

    clusters = len({cluster_of(row.id) for row in symbolic["ai-KD"]})
    assert {row.clusters for row in effect_rows(symbolic, [])} == {clusters}


def test_an_effect_that_is_a_planned_contrast_has_its_p_and_is_adjusted_in_no_second_family():
    verdicts = simulated(np.random.default_rng(7), 200, 0.1, 0.1, 0)
    verdicts["ai-alone-KD"] = verdicts["ai-KD"] & (np.random.default_rng(8).random(200) < 0.8)
    logs = {"control": log_of(np.arange(200) < 9), **{model: log_of(own) for model, own in verdicts.items()}}
    contrasts = contrast(logs, [], plan_of(logs, load_arms()))
    [planned] = [row for row in contrasts if (row.model, row.reference) == ("ai-alone-KD", "ai-KD")]
    rows = {row.effect: row for row in effect_rows(logs, [], contrasts) if row.arm == "ai-KD"}
    beyond = rows[BEYOND_TEXT]
    assert (beyond.p, beyond.p_holm, beyond.mde) == (planned.p, planned.p_holm, planned.mde)
    assert beyond.accuracy == pytest.approx(-planned.accuracy) and planned.p_holm > planned.p
    rest = [rows[effect] for effect in (TEXT, LOGITS, INTERACTION)]
    assert [row.p_holm for row in rest] == pytest.approx(holm([row.p for row in rest]))


def test_an_effect_over_fewer_seeds_than_its_contrast_keeps_its_own_p():
    """Else a p of the mean of two trainings would stand beside the difference of one."""
    verdicts = simulated(np.random.default_rng(7), 200, 0.1, 0.1, 0)
    verdicts["ai-alone-KD"] = verdicts["ai-KD"] & (np.random.default_rng(8).random(200) < 0.95)
    for model in ("ai-KD", "base-KD"):
        verdicts[f"{model}-seed1"] = np.random.default_rng(len(model)).random(200) < 0.8
    logs = {"control": log_of(np.arange(200) < 9), **{model: log_of(own) for model, own in verdicts.items()}}
    contrasts = contrast(logs, [], plan_of(logs, load_arms()))
    [planned] = [row for row in contrasts if (row.model, row.reference) == ("ai-alone-KD", "ai-KD")]
    [beyond] = [r for r in effect_rows(logs, [], contrasts) if (r.arm, r.effect) == ("ai-KD", BEYOND_TEXT)]
    assert beyond.seeds == 1 and beyond.accuracy != pytest.approx(-planned.accuracy)
    assert beyond.p == mcnemar_exact(verdicts["ai-KD"], verdicts["ai-alone-KD"]).p != planned.p


def test_the_negative_control_is_the_seed_that_made_most():
    again = {"effect": ANOTHER_SEED, "accuracy": "0", "p": "1", "kl": "", "kl_p": ""}
    effects = [again | {"nll_gold": made, "nll_gold_p": "0.01"} for made in ("0.02", "-0.008")]
    [row] = beside_control([{"model": "ai-KD", "seeds": "1", "nll_gold": "0.015"}], effects)
    assert why_not(row, "nll_gold") == "another seed alone made as much (negative control)"


def test_a_seed_that_one_arm_alone_has_is_its_negative_control_and_widens_nothing():
    verdicts = simulated(np.random.default_rng(7), 200, 0.1, 0.1, 0)
    logs = {"control": log_of(np.arange(200) < 9), **{model: log_of(own) for model, own in verdicts.items()}}
    again = logs | {"base-KD-seed1": log_of(np.random.default_rng(9).random(200) < 0.4)}
    plan = plan_of(logs, load_arms())
    assert contrast(again, [], plan) == contrast(logs, [], plan) and not seed_rows(again, plan)
    [negative] = [row for row in effect_rows(again, []) if row.effect == ANOTHER_SEED]
    assert (negative.model, negative.reference) == ("base-KD-seed1", "base-KD")
    both = again | {"ai-KD-seed1": log_of(np.random.default_rng(9).random(200) < 0.4)}
    assert {row.seeds for row in contrast(both, [], plan) if row.model == "ai-KD"} == {2}


def test_signs_are_tested_exactly():
    for differences in ([1, 1, -1, 0, 1, 1], [0.5, -1, 1, 1, 0.5, 0], [2, -1, 1, 0.5], [0, 0]):
        d = np.array(differences)
        sums = [abs((d * signs).sum()) for signs in itertools.product((-1, 1), repeat=len(d))]
        assert sign_flips_exact(d).p == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9))
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.5, rng.random(400) < 0.6
    found, wanted = sign_flips_exact(a.astype(float) - b), mcnemar_exact(a, b)
    assert found[:2] == wanted[:2] and found.p == pytest.approx(wanted.p)


# The family that a profile names.

NAMED = [["ai-KD", "placebo-KD"], ["ai-KD", "base-KD"]]
RUN = ["base-KD", "ai-KD", "placebo-KD"]


def naming(folder, pairs=NAMED, arms=RUN):
    return load_profile(str(write_profile(folder, arms=arms, planned={"main": pairs})))


def test_a_profile_that_names_nothing_has_the_families_of_the_roles_and_the_inputs_of_before():
    profile = load_profile("ci")
    assert profile.planned.main == () and planned_inputs(profile) == {}
    arms, models = load_arms(), ["control", *RUN]
    families = plan_of(models, arms)
    assert families["ai-KD", "placebo-KD"] == families["ai-KD", "base-KD"] == MAIN
    assert families["placebo-KD", "base-KD"] == families["placebo-KD", "control"] == CHECKS
    order = [reference for model, reference in families if model == "ai-KD"]
    assert order == ["control", "base-KD", "placebo-KD"]  # against the placebo beside against none


def test_what_is_named_is_the_main_family_and_all_else_checks(checkout):
    profile = naming(checkout, [*NAMED, ["placebo-KD", "control"]])
    rng = np.random.default_rng(2)
    logs = {model: log_of(rng.random(60) < 0.4) for model in ("control", *RUN)}
    families = plan_of(logs, load_arms(), profile.planned.main)
    main = [pair for pair, family in families.items() if family == MAIN]
    assert main == [("ai-KD", "placebo-KD"), ("ai-KD", "base-KD"), ("placebo-KD", "control")]
    assert families["ai-KD", "control"] == families["base-KD", "control"] == CHECKS
    rows = {(r.model, r.reference): r for r in contrast(logs, [], families)}
    assert [rows[pair].p_holm for pair in main] == pytest.approx(holm([rows[pair].p for pair in main]))
    tables = find_study(profile).tables(profile, logs, [])
    assert tables["contrasts.csv"] == table_text(ContrastRow, rows.values())
    assert planned_inputs(profile) == {"planned": [*NAMED, ["placebo-KD", "control"]]}


def test_a_contrast_named_the_other_way_round_is_not_tested_twice():
    families = plan_of(["control", *RUN], load_arms(), [("base-KD", "ai-KD")])
    assert families["base-KD", "ai-KD"] == MAIN and ("ai-KD", "base-KD") not in families


@pytest.mark.parametrize(
    "pairs, said",
    [
        ([["ai-KD", "ai-KD"]], r"\[ai-KD, ai-KD\] compares no arm with something else"),
        ([["control", "ai-KD"]], "compares no arm with something else"),
        ([["ai-KD", "base-KD"], ["base-KD", "ai-KD"]], "are compared twice"),
        ([["ai-KD"]], "planned.main"),
        (
            [["ai-KD", "nobody"]],
            "main names 'nobody', which this profile does not run: choose from control, base",
        ),
        ([["teacher-KD", "base-KD"]], "planned.main names 'teacher-KD', which this profile does not run"),
        ([["ai-KD", "teacher"]], "planned.main names 'teacher'"),
    ],
)
def test_a_family_that_cannot_be_is_refused_before_anything_is_spent(pairs, said, checkout):
    with pytest.raises(UserError, match=said):
        profile = naming(checkout, pairs)
        find_study(profile).refuse(profile)
    assert find_study(load_profile("ci")).refuse(load_profile("ci")) is None


def test_the_report_lists_what_was_named_and_says_where_it_was_named_too_late(checkout):
    profile = write_study(load_profile("ci").of_published())
    before = how_tested(read_results(profile.logs))
    path = profile.logs / "manifest.json"
    manifest = read_json(path)
    manifest["inputs"]["planned"] = [["ai-KD", "base-KD"]]
    manifest["models"]["ai-KD"]["planned"] = [["ai-KD", "base-KD"]]
    write_json(path, manifest)
    said = how_tested(read_results(profile.logs))
    assert "named" not in before and "named before the run: Ground truth-KD against base-KD." in said
    assert said.split("Holm-adjusted")[1] != before.split("Holm-adjusted")[1] and "two families, 3 tests" in said
    manifest["models"]["ai-KD"]["planned"] = [["ai-KD", "control"]]
    write_json(path, manifest)
    assert "after the training of Ground truth-KD: Ground truth-KD against" in how_tested(read_results(profile.logs))


def test_a_grading_takes_the_family_that_the_profile_names_by_now_and_says_so_in_its_inputs(checkout):
    profile = naming(checkout).of_published()
    logs = {model: log_of(np.arange(40) % 3 == 0) for model in ("control", *RUN, "teacher")}
    outputs = write_results(profile.model_copy(update={"planned": PlannedContrasts()}), logs, [])
    write_records(profile.logs / "held-out.csv", HeldOutRow, [])
    facts = {"answers_sha256": {model: answers_hash(rows) for model, rows in logs.items()}}
    facts |= {"models": {"ai-KD": {"planned": NAMED, "outputs": {}}, "base-KD": {"outputs": {}}}, "config": {}}
    write_manifest(profile.logs, "assessment", {}, [*outputs, profile.logs / "held-out.csv"], **facts)
    before = (profile.logs / "contrasts.csv").read_text(encoding="utf-8")
    regrade(profile)
    assert read_json(profile.logs / "manifest.json")["inputs"]["planned"] == NAMED
    assert (profile.logs / "contrasts.csv").read_text(encoding="utf-8") != before
    results = read_results(profile.logs)
    assert results.named == tuple(map(tuple, NAMED)) and results.named_after == ("base-KD",)
    regrade(profile.model_copy(update={"planned": PlannedContrasts()}))
    assert "planned" not in read_json(profile.logs / "manifest.json")["inputs"]
    assert (profile.logs / "contrasts.csv").read_text(encoding="utf-8") == before


# Matched items.


def test_subsets_are_of_the_right_items_and_few_items_are_not_tested(checkout):
    taught = {
        "base-KD": {f"item-{i}": (i < 80, 100) for i in range(100)},
        "ai-KD": {f"item-{i}": (i >= 20, 110 if i % 5 else 111) for i in range(100)},
        "placebo-KD": {f"item-{i}": (True, 100) for i in range(100)},
    }
    logs = {"control": log_of(np.arange(100) < 0), "base-KD": log_of(np.arange(100) < 40)}
    logs |= {"ai-KD": log_of(np.arange(100) < 60), "placebo-KD": log_of(np.arange(100) % 2), "teacher": logs["control"]}
    planned = plan_of(logs, load_arms())
    found = {(r.subset, r.model, r.reference): r for r in subset_rows(logs, taught, planned)}
    one = found[ALL_RIGHT, "ai-KD", "base-KD"]
    assert one.n == 60 and one.accuracy == pytest.approx(20 / 60) and one.p < 0.001  # items 20 to 79
    near = found[SAME_LENGTH, "ai-KD", "base-KD"]
    assert near.n == 80 and near.accuracy == pytest.approx(16 / 80)  # 110 against 100 tokens is near, 111 is not
    assert found[SAME_LENGTH, "ai-KD", "placebo-KD"].n == 80
    assert (SAME_LENGTH, "ai-KD", "control") not in found and not [key for key in found if key[1] == "placebo-KD"]
    rows = list(found.values())
    assert [r.p_holm for r in rows] == pytest.approx(holm([r.p for r in rows]))
    few = {arm: {i: (right and int(i[5:]) < 45, n) for i, (right, n) in own.items()} for arm, own in taught.items()}
    one = {(r.subset, r.model, r.reference): r for r in subset_rows(logs, few, planned)}[ALL_RIGHT, "ai-KD", "base-KD"]
    assert one.n == 25 and one.accuracy is not None and one.p is one.p_holm is one.accuracy_low is None
    none = {arm: {i: (False, n) for i, (_, n) in own.items()} for arm, own in taught.items()}
    one = {(r.subset, r.model, r.reference): r for r in subset_rows(logs, none, planned)}[ALL_RIGHT, "ai-KD", "base-KD"]
    assert (one.n, one.accuracy, one.p) == (0, None, None) and subset_rows(logs, {}, planned) == []


def as_cells(kind, rows, folder: Path) -> list[dict[str, str]]:
    """Rows as a report reads them."""
    write_text(folder / "table.csv", table_text(kind, rows))
    return read_table(folder / "table.csv", kind)


def test_sentences_of_subsets_claim_what_is_adjusted_and_nothing_of_few_items(tmp_path):
    rows = [
        SubsetRow(ALL_RIGHT, 90, 128, "ai-KD", "base-KD", 1, 90, 0.0, 0.0, 0.2, 0.1, 0.3, 0.001, 0.003),
        SubsetRow(ALL_RIGHT, 90, 128, "ai-KD", "placebo-KD", 1, 90, 0.0, 0.0, 0.1, 0.0, 0.2, 0.04, 0.08),
        SubsetRow(SAME_LENGTH, 12, 128, "ai-KD", "base-KD", 1, 12, 0.0, 0.0, 0.2, 0.1, 0.3, None, None),
    ]
    first, second = subset_sentences(as_cells(SubsetRow, rows, tmp_path))
    start = (
        "Of 128 test items that the teacher was asked under every prompt, the 90 that it answered rightly under every "
    )
    assert first.startswith(start)
    assert "Ground truth-KD against base-KD: more correct answers, +20.0 points [+10.0, +30.0]" in first
    assert "no other difference in accuracy can be claimed (smallest p = 0.080)" in first
    assert "the 12 to which its answers" in second and second.endswith(
        "nothing is claimed of any contrast, as 30 items are needed for a test."
    )


# Words.


def test_sentences_of_effects_claim_only_what_the_adjusted_p_allows(tmp_path):
    verdicts = simulated(np.random.default_rng(1), 800, 0.25, 0.0, 0.0)
    text, logits, interaction = effect_sentences(as_cells(EffectRow, effects(verdicts).values(), tmp_path))
    assert text.startswith(
        "The text of Ground truth-KD in place of base-KD's (mean over both logits): more correct ans"
    )
    assert "no effect can be claimed on accuracy" in logits and "no effect can be claimed on accuracy" in interaction
    worse = effect_sentences(as_cells(
        EffectRow, effects(simulated(np.random.default_rng(1), 800, -0.25, 0.0, 0.0)).values(), tmp_path))  # fmt: skip
    assert "fewer correct answers, -" in worse[0] and "one training seed." in worse[0]
    logs = {model: log_of(own, truncated=model == "ai-text-KD") for model, own in verdicts.items()}
    cut = effect_sentences(as_cells(EffectRow, effect_rows(logs, []), tmp_path))[0]
    assert "nothing is claimed of accuracy, as most answers of one of Ground truth-KD + Ground truth text" in cut


def control_logs(broken: float, again: float, items: int = 300):
    rng = np.random.default_rng(4)
    shares = {"control": 0.1, "base-KD": 0.5, "base-KD-seed1": again, "broken-KD": broken}
    return {model: log_of(rng.random(items) < share) for model, share in shares.items()}


def said_of_controls(logs, folder) -> list[str]:
    tables = contrast(logs, [], plan_of(logs, load_arms())), effect_rows(logs, [])
    kinds = zip((ContrastRow, EffectRow), tables, strict=True)
    return control_sentences(*(as_cells(kind, rows, folder) for kind, rows in kinds))


def test_controls_say_whether_the_study_can_see_a_broken_training_and_what_a_seed_alone_does(tmp_path):
    positive, negative = said_of_controls(control_logs(0.2, 0.5), tmp_path)
    assert "Broken, whose training was broken on purpose, came out as worse than base-KD, as it must: fewer" in positive
    assert negative.startswith(
        "Negative control: base-KD (seed 1) against base-KD, which differ in the seed alone: no "
        "difference can be claimed (accuracy "
    )
    positive, negative = said_of_controls(control_logs(0.5, 0.25), tmp_path)
    assert positive.endswith(
        "did not come out as worse than base-KD in accuracy: this study has no power to see a broken training."
    )
    assert "differ (accuracy -" in negative and "need not be an effect of a prompt" in negative
    better, _ = said_of_controls(control_logs(0.9, 0.5), tmp_path)
    assert "no power to see a broken training" in better
    # Answers that never end are what a broken training gives; of the baseline's nothing can be said.
    logs = control_logs(0.0, 0.5)
    endless, _ = said_of_controls(logs | {"broken-KD": log_of([False] * 300, truncated=True)}, tmp_path)
    assert "came out as worse than base-KD, as it must: fewer" in endless
    cut = {name: [replace(row, truncated=True) for row in log] for name, log in logs.items() if name != "broken-KD"}
    unknown, _ = said_of_controls(logs | cut, tmp_path)
    assert "did not come out as worse" in unknown and "most answers of base-KD were cut off" in unknown


def test_the_negative_control_is_a_family_of_its_own():
    verdicts = simulated(np.random.default_rng(6), 100, 0.1, 0, 0, seeds=2)
    found = effects(verdicts)
    row = found["base-KD", ANOTHER_SEED]
    assert (row.model, row.reference, row.seeds) == ("base-KD-seed1", "base-KD", 1) and row.p_holm == row.p
    assert row.accuracy == pytest.approx(verdicts["base-KD-seed1"].mean() - verdicts["base-KD"].mean())
    assert row.p == pytest.approx(mcnemar_exact(verdicts["base-KD-seed1"], verdicts["base-KD"]).p)
    others = [one for key, one in found.items() if key[1] != ANOTHER_SEED]
    assert [one.p_holm for one in others] == pytest.approx(holm([one.p for one in others]))


# Tables, files, report.


def study(checkout, models, held_out=True):
    """Published logs of the profile ci with these models, whose answers are those of `simulated`."""
    profile = write_study(load_profile("ci").of_published())
    verdicts = simulated(np.random.default_rng(8), 60, 0.3, 0, 0)
    logs = {model: log_of(verdicts.get(model, np.arange(60) % 3 == 0)) for model in ("control", *models, "teacher")}
    rows = [
        HeldOutRow(m, r.id, 10, 0.5 + i, 20, 30.0 + i) for m in logs if m != "teacher" for i, r in enumerate(logs[m])
    ]
    return profile, logs, rows


def test_tables_of_effects_and_subsets_come_and_go_with_what_they_are_of(checkout):
    profile, logs, held_out = study(checkout, CELLS.values())
    priming = "split,arm,id,correct,tokens,truncated,same,entropy,unsure,kl\n" + "".join(
        f"{split},{arm},item-{i},{int(split == 'test')},{100 + i % 2},0,0.5,,,\n"
        for split in ("train", "test") for arm in ("base-KD", "ai-KD") for i in range(60)
    )  # fmt: skip
    write_text(profile.logs / "priming.csv", priming)
    assert read_taught(profile.logs / "priming.csv")["ai-KD"]["item-1"] == (True, 101)
    written = {path.name for path in write_results(profile, logs, held_out)}
    assert {"effects.csv", "subsets.csv"} <= written and (profile.logs / "priming.csv").is_file()
    assert {row["n"] for row in read_table(profile.logs / "subsets.csv", SubsetRow)} == {"60"}
    fewer = {model: log for model, log in logs.items() if model != "ai-text-KD"}
    (profile.logs / "priming.csv").unlink()
    written = {path.name for path in write_results(profile, fewer, [r for r in held_out if r.model in fewer])}
    assert not {"effects.csv", "subsets.csv"} & written
    assert not (profile.logs / "effects.csv").exists() and not (profile.logs / "subsets.csv").exists()


def test_a_control_that_is_trained_under_each_seed_is_paired_with_the_arms_of_that_seed(tmp_path):
    rng = np.random.default_rng(2)
    shift, noise = {"": 0.0, "1": 3.0}, rng.random(40)  # the control of seed 1 is far worse, and so is what began there
    models = {
        f"{arm}{s and '-seed'}{s}": shift[s] - gain for s in shift for arm, gain in (("control", 0), ("online-KD", 0.2))
    }
    logs = {model: log_of(np.zeros(40)) for model in models}
    rows = [
        HeldOutRow(m, f"item-{i}", 10, 10 * (5 + models[m] + noise[i]), 10, 30.0) for m in models for i in range(40)
    ]
    (row,) = contrast(logs, rows, {("online-KD", "control"): MAIN})
    assert row.kl == pytest.approx(-0.2) and row.kl_high == pytest.approx(-0.2) and row.reference_seeds == 2
    alone = {model: log for model, log in logs.items() if model != "control-seed1"}
    (row,) = contrast(alone, [r for r in rows if r.model in alone], {("online-KD", "control"): MAIN})
    assert row.reference_seeds is None and row.kl == pytest.approx(1.3)


def test_a_second_seed_of_the_baseline_is_the_measure_of_single_trainings_and_in_no_comparison(checkout):
    profile, logs, held_out = study(checkout, ("base-KD", "base-KD-seed1", "ai-KD", "teacher-KD"))
    apart = {"control": 9, "base-KD": 1.0, "base-KD-seed1": 1.5, "ai-KD": 1.3, "teacher-KD": 3.0}  # nats a token
    held_out = [replace(r, kl=10 * apart[r.model] + 0.1 * (i % 7) * apart[r.model]) for i, r in enumerate(held_out)]
    held_out = [row for row in held_out if int(row.id.split("-")[-1]) < 20]
    write_results(profile, logs, held_out)
    write_records(profile.logs / "held-out.csv", HeldOutRow, held_out)
    results = read_results(profile.logs)
    rows = {(row["model"], row["reference"]): row for row in results.contrasts}
    assert float(rows["ai-KD", "base-KD"]["kl_p_holm"]) < 0.05
    assert "another seed alone made as much" in why_not(rows["ai-KD", "base-KD"], "kl")
    assert is_claimed(rows["teacher-KD", "base-KD"], "kl") and not is_claimed(rows["ai-KD", "base-KD"], "kl")
    said = findings(results)
    assert any("Negative control" in one and "differ (KL" in one for one in said)
    assert any("are of the first 20 test items alone" in one for one in said)
    assert any("what another one changes is known of base-KD alone" in one for one in said)
    assert "t test over the first 20 items" in how_tested(results)
    table = claim_table(results)
    (base,) = [dict(zip(table.head, row, strict=True)) for row in table.rows if row[0].model == "base-KD"]
    assert base["Seeds"] == "1" and base["Log"].names == ("logs/ci/base-KD.csv",)


def test_a_study_without_the_new_arms_has_the_tables_of_before(checkout):
    profile, logs, held_out = study(checkout, ("base-KD", "ai-KD", "base-fine-tune"))
    assert list(compute_tables(profile, logs, held_out, plan_of(logs, load_arms()))) == [
        "extractors.csv", "accuracies.csv", "summary.csv", "contrasts.csv", "seeds.csv", "audit.csv",
    ]  # fmt: skip
    assert effect_tables(read_results(profile.logs)) == []


def test_the_report_shows_effects_and_priming_against_none_and_placebo_side_by_side(checkout):
    profile, logs, held_out = study(checkout, (*CELLS.values(), "placebo-KD"))
    write_results(profile, logs, held_out)
    write_records(profile.logs / "held-out.csv", HeldOutRow, held_out)
    results = read_results(profile.logs)
    placebo, found = effect_tables(results)
    assert placebo.head == [
        "Priming",
        "Against base-KD",
        "p (Holm), base-KD",
        "Against Placebo-KD",
        "p (Holm), Placebo-KD",
    ]
    (cells,) = placebo.rows
    rows = {(row["model"], row["reference"]): row for row in results.contrasts}
    for place, reference in ((1, "base-KD"), (3, "placebo-KD")):
        assert cells[place].startswith(f"{100 * float(rows['ai-KD', reference]['accuracy']):+.1f} [")
    assert found.rows[0][2] == (
        "mean(Ground truth-KD; Ground truth text, base signals) − mean(base text, Ground truth signals; base-KD)"
    )
    effect = asdict(effect_rows(logs, held_out)[0])
    assert found.rows[0][1] == TEXT and found.rows[0][5].startswith(f"{100 * effect['accuracy']:+.1f} [")
    page, text, html = results_page(profile.logs), results_text(profile.logs), render(profile)
    for shown in ("\n".join(page.notes), text, html):
        assert "Text, logits and their interaction" in shown and "Priming against none and against a placebo" in shown
    assert any(said.startswith("The text of Ground truth-KD") for said in findings(results)) and "The text of" in html
    assert max(map(len, text.splitlines())) <= 120
    shutil.copytree(profile.logs, profile.logs / "transfer")  # a second set of items has the same table
    [second] = [table for table in beyond_tables(profile.logs) if table.label.endswith(found.label.lower())]
    assert second.rows == found.rows


def test_arms_of_a_profile_that_names_a_family_are_those_of_before(checkout):
    assert list(arms_of(naming(checkout))) == RUN


def test_the_smallest_p_that_is_told_of_students_is_a_students():
    """The untrained model that is asked with examples is none; beside it stands the one with the smallest p."""
    rows = [row for row in read_results(ROOT / "logs" / "laptop").contrasts if row["reference"] == "control"]
    own = {row["model"]: float(row["p_holm"]) for row in rows if row["model"] != "shuffled-KD"}
    few_shot = own.pop("control-few-shot")
    (said,) = [s for s in claims(rows, numbers=True) if "more correct" in s or "fewer correct" in s]
    assert few_shot < min(own.values()) and f"smallest p = {min(own.values()):.3f}" in said
