"""Arms as data: what an arm's text and signals are from, what it is compared with, and what a file may not say."""

import pytest
import torch
import yaml
from conftest import ROOT, small_profile

from primekd.capture.run import build_spec, capture, open_signals, training_job
from primekd.config.arms import Arm, arms_of, default_arms, get_arm, load_arms, unprimed
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import read_json
from primekd.statistics.families import CHECKS, MAIN, plan_of, planned_contrasts, title_of
from primekd.tasks.load import load_items
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.distill import distill

ALL = ("base-KD", "ai-KD", "base-fine-tune", "placebo-KD", "base-text-KD", "ai-signals-KD")


@pytest.fixture
def profile(output, lively):
    """`ci` with a teacher that is not the student, and with every kind of arm."""
    return small_profile(
        output, arms=list(ALL), teacher={"model": lively}, data={"train_items": 4, "validation_items": 2}
    )


def test_the_published_arms_run_where_a_profile_lists_none(ci):
    assert list(arms_of(ci)) == list(default_arms()) == [
        "base-KD", "teacher-KD", "ai-KD", "reverseKL-KD", "base-fine-tune",
    ]  # fmt: skip
    assert unprimed().name == "base-KD" and not any(arm.crossed for arm in default_arms().values())
    assert {name: arm.store for name, arm in default_arms().items()} == {
        name: name if arm.teacher else None for name, arm in default_arms().items()
    }


def test_a_profile_runs_the_arms_that_it_lists_and_those_alone(profile):
    assert list(arms_of(profile)) == [name for name in load_arms() if name in ALL]
    assert get_arm("base-text-KD").store == "base-KD" and get_arm("ai-signals-KD").store == "ai-signals-KD"
    assert get_arm("ai-signals-KD").crossed and not get_arm("base-text-KD").crossed
    with pytest.raises(UserError, match="base-text-KD takes its text or signals from base-KD: list that too"):
        arms_of(profile.model_copy(update={"arms": ("base-text-KD",)}))
    with pytest.raises(UserError, match="No strategy is called 'nobody'"):
        arms_of(profile.model_copy(update={"arms": ("nobody",)}))


@pytest.mark.parametrize(
    "row, said",
    [
        ({"role": "rewording", "priming": "x"}, "name the arm that they are variant_of"),
        ({"role": "baseline", "variant_of": "base-KD"}, "name the arm that they are variant_of"),
        ({"role": "treatment", "text": "gold"}, "belong together"),
        ({"text": "gold", "signals": "base-KD"}, "have no signals"),
        ({"signals": "gold"}, "signals are own, none or an arm"),
        ({"role": "crossed", "variant_of": "base-KD", "text": "nobody"}, "text names 'nobody', which is no other arm"),
        ({"role": "crossed", "variant_of": "base-KD", "text": "gold-KD"}, "has no text of its own"),
        ({"loss": {"alhpa": 1}}, "loss has no alhpa"),
        ({"role": "hero"}, "role"),
    ],
)
def test_an_arm_that_cannot_be_is_refused_with_the_reason(row, said, tmp_path, monkeypatch):
    rows = yaml.safe_load((ROOT / "configs" / "strategies.yaml").read_text(encoding="utf-8"))
    rows = {"base-KD": rows["base-KD"], "gold-KD": rows["base-fine-tune"], "new-KD": {"title": "new"} | row}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "strategies.yaml").write_text(yaml.safe_dump(rows), encoding="utf-8")
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    with pytest.raises(UserError, match=said):
        load_arms()


def test_files_from_before_there_were_roles_are_read_as_they_were_meant():
    arms = [
        Arm(name="a", title="A", **row)
        for row in ({"teacher": True}, {"teacher": True, "priming": "x"}, {"teacher": False})
    ]
    assert [(arm.role, arm.teacher) for arm in arms] == [
        ("baseline", True),
        ("treatment", True),
        ("fine-tuning", False),
    ]


def test_roles_say_what_is_compared_and_in_which_family():
    arms, models = load_arms(), ["control", *ALL, "teacher"]
    pairs = planned_contrasts(models, arms)
    assert len(pairs) == len(set(pairs)) and "teacher" not in {name for pair in pairs for name in pair}
    assert ("ai-KD", "placebo-KD") in pairs and ("placebo-KD", "placebo-KD") not in pairs
    assert {pair for pair in pairs if pair[0] == "ai-signals-KD"} == {
        ("ai-signals-KD", ref) for ref in ("control", "base-KD", "base-fine-tune", "ai-KD")
    }
    families = plan_of(models, arms)
    assert families["ai-KD", "base-KD"] == families["base-KD", "control"] == MAIN
    assert families["ai-KD", "placebo-KD"] == families["base-text-KD", "control"] == CHECKS
    # What checks the design takes nothing from the study's own family.
    main = {pair for pair, family in families.items() if family == MAIN}
    assert main == set(plan_of(["control", "base-KD", "ai-KD", "base-fine-tune"], arms))
    assert title_of("placebo-KD-seed2") == "Placebo-KD (seed 2)"


def test_a_crossed_arm_has_one_prompts_text_and_anothers_signals(profile):
    with pytest.raises(UserError, match="base-KD has no signals"):
        capture(training_job(profile, "ai-signals-KD"))
    for name in ("base-KD", "ai-KD", "ai-signals-KD"):
        capture(training_job(profile, name))
    base, ai, crossed = (open_signals(training_job(profile, name)) for name in ("base-KD", "ai-KD", "ai-signals-KD"))
    engine = TransformersEngine(profile.teacher.model, profile.teacher.dtype)
    for name in crossed.item_ids:
        item = crossed.item(name)
        assert item.response_ids == base.item(name).response_ids and item.prompt_ids == ai.item(name).prompt_ids
        (expected,) = engine.score([item.prompt_ids], [item.response_ids], "hidden")
        torch.testing.assert_close(crossed.rows(name, item.response_ids).hidden, expected, rtol=1e-4, atol=1e-5)
        plain = base.rows(name, item.response_ids).hidden
        assert (plain - expected).abs().max() > 1e-2, "the two prompts give the same signals"


def test_the_crossed_store_is_another_one_when_its_text_is(profile):
    spec = build_spec(training_job(profile, "ai-signals-KD"), load_items(profile, "train"))
    other = profile.model_copy(update={"max_new_tokens": profile.max_new_tokens + 1})
    assert spec["text"] != build_spec(training_job(other, "ai-signals-KD"), load_items(other, "train"))["text"]
    assert "text" not in build_spec(training_job(profile, "ai-KD"), load_items(profile, "train"))


def test_text_alone_is_trained_on_the_responses_and_on_no_row(profile):
    capture(training_job(profile, "base-KD"))
    student = distill(profile, "base-text-KD")
    inputs = read_json(student / "manifest.json")["inputs"]
    rows = (student / "loss_curve.csv").read_text(encoding="utf-8").splitlines()
    head = rows[0].split(",")
    steps = [dict(zip(head, row.split(","), strict=True)) for row in rows[1:]]
    assert all(float(step["kd"]) == 0 and float(step["loss"]) == float(step["ce"]) for step in steps if step["loss"])
    assert inputs["text_alone"] and inputs["signals"]["spec_sha256"]
    assert read_json(distill(profile, "base-KD") / "manifest.json")["inputs"].get("text_alone") is None


def test_an_arms_own_loss_goes_before_the_profiles(profile, monkeypatch):
    arms = load_arms()
    own = arms["ai-KD"].model_copy(update={"loss": {"alpha": 0.9}})
    assert own.loss_of(profile).alpha == 0.9 and own.loss_of(profile).temperature == profile.loss.temperature
    assert arms["ai-KD"].loss_of(profile) == profile.loss
    with pytest.raises(ValueError):
        own.model_copy(update={"loss": {"alpha": 2}}).loss_of(profile)


def test_a_report_says_how_many_families_of_tests_there_are():
    from primekd.report.results import Results, how_tested

    def said(*names: str) -> str:
        rows = [{"model": a, "reference": b, "p": "1", "kl_p": "", "nll_gold_p": "", "clusters": "8", "seeds": "1"}
                for a, b in planned_contrasts(["control", *names], load_arms())]  # fmt: skip
        return how_tested(Results(ROOT, [{"model": "control", "n": "8", "kl": "", "nll_gold": ""}], rows, []))

    assert "over one family of 3 tests" in said("base-KD", "ai-KD")
    assert "over two families, 3 tests of the study's own questions and 3 that check its design" in said(
        "base-KD", "ai-KD", "placebo-KD"
    )
