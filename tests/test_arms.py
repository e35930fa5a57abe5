"""Arms as data: what an arm's text and signals are from, what it is compared with, and what a file may not say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, small_profile

from primekd.capture.jobs import build_spec, open_signals, training_job
from primekd.capture.run import capture
from primekd.config.arm import Arm
from primekd.config.arms import arms_of, default_arms, get_arm, load_arms, unprimed
from primekd.config.profile import PlannedContrasts
from primekd.foundation import hash_json, read_json, write_json
from primekd.foundation.errors import UserError
from primekd.planning.plan import make_plan
from primekd.report.formats import MISSING
from primekd.report.lineage import costs, job_seconds, model_facts
from primekd.running.verify_run import check_signals
from primekd.signals import SignalReader
from primekd.signals.shards import save_shard
from primekd.statistics.families import CHECKS, MAIN, plan_of, planned_contrasts, title_of
from primekd.studies.priming import refuse
from primekd.studies.results import TABLES
from primekd.tasks.load import load_items
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.distill import distill

BASE = {"variant_of": "base-KD", "text": "base-KD", "signals": "base-KD"}
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
    with pytest.raises(UserError, match="base-text-KD takes text or signals from base-KD: list that too"):
        arms_of(profile.model_copy(update={"arms": ("base-text-KD",)}))
    with pytest.raises(UserError, match="No strategy is called 'nobody'"):
        arms_of(profile.model_copy(update={"arms": ("nobody",)}))


def test_primed_arms_without_the_one_they_are_compared_with_are_refused(profile):
    with pytest.raises(UserError, match="primed teachers are compared with base-KD's: list that arm too"):
        refuse(profile.model_copy(update={"arms": ("ai-KD", "placebo-KD")}))
    sampled = profile.teacher.model_copy(update={"sampling_temperature": 0.7})
    right = {"arms": ("base-KD", "base-right-KD"), "seeds": {"base-right-KD": (1,)}, "planned": PlannedContrasts()}
    arms_of(profile.model_copy(update=right))
    with pytest.raises(UserError, match="base-right-KD keeps right answers, which are judged under one seed"):
        arms_of(profile.model_copy(update=right | {"teacher": sampled}))


def write_arms(folder, monkeypatch, rows):
    """A checkout that has these arms and nothing else; what is not there is found in the real one by absolute path."""
    (folder / "configs").mkdir()
    (folder / "configs" / "strategies.yaml").write_text(yaml.safe_dump(rows), encoding="utf-8")
    monkeypatch.setenv("PRIMEKD_ROOT", str(folder))


@pytest.mark.parametrize(
    "row, said",
    [
        ({"role": "rewording", "priming": "x"}, "name the arm that they are variant_of"),
        ({"role": "baseline", "variant_of": "base-KD"}, "name the arm that they are variant_of"),
        ({"role": "treatment", "text": "gold"}, "belong together"),
        ({"role": "fine-tuning", "text": "gold", "signals": "base-KD"}, "have no signals"),
        ({"role": "fine-tuning", "text": "gold", "loss": {"alpha": 0.1}}, "leave priming and loss out"),
        ({"text": "gold", "role": "fine-tuning", "priming": "x"}, "leave priming and loss out"),
        ({"role": "baseline", "priming": "x"}, "a baseline has no priming"),
        ({"role": "baseline", "text": "base-KD"}, "a baseline has no priming, and text"),
        ({"role": "treatment"}, "each has a priming"),
        ({"role": "placebo", "priming": "x", "signals": "base-KD"}, "each has a priming, and text and signals of its"),
        ({"role": "crossed", "variant_of": "base-KD"}, "from two prompts, or text from a file"),
        ({"role": "crossed", "variant_of": "base-KD", "text": "base-KD", "signals": "base-KD"}, "from two prompts"),
        (
            {"role": "crossed", "variant_of": "base-KD", "text": "base-KD", "signals": "base-KD", "priming": "x"},
            "nobody reads its priming",
        ),
        ({"role": "text-alone", "variant_of": "base-KD", "text": "base-KD"}, "role: text-alone has signals: none"),
        (
            {"role": "text-alone", "variant_of": "base-KD", "text": "base-KD", "signals": "none", "priming": "x"},
            "nobody reads its priming",
        ),
        (
            {"role": "text-alone", "variant_of": "base-KD", "text": "base-KD", "signals": "none", "loss": {"alpha": 1}},
            "leave loss out",
        ),
        (
            {"role": "other-loss", "variant_of": "base-KD", "loss": {"alpha": 0.1}},
            "each has text and signals of the arm",
        ),
        (
            {"role": "crossed", "variant_of": "base-KD", "text": "base-KD", "signals": "none"},
            "text-alone, selection and corpus",
        ),
        ({"role": "selection", **BASE, "signals": "none", "share": 0.5}, "each has text and signals of the arm"),
        ({"role": "selection", **BASE, "share": 0}, "share"),
        ({"role": "other-loss", "loss": {"alpha": 0.1}, "share": 0.5, **BASE}, "are a selection's"),
        ({"role": "other-loss", "variant_of": "base-KD", "text": "base-KD", "signals": "base-KD"}, "has a loss"),
        (
            {"role": "positive-control", "variant_of": "base-KD", "rows": "shuffled"},
            "each has text and signals of the arm",
        ),
        ({"role": "positive-control", "rows": "shuffled"}, "name the arm that they are variant_of"),
        ({"role": "positive-control", **BASE}, "and a positive-control rows: shuffled"),
        ({"role": "selection", **BASE}, "a selection keep_right, cut_tokens or share"),
        ({"role": "other-loss", "loss": {"alpha": 0.1}, "keep_right": True, **BASE}, "are a selection's"),
        ({"role": "selection", "cut_tokens": 9, "rows": "shuffled", **BASE}, "is a positive-control's"),
        ({"role": "selection", "cut_tokens": 0, **BASE}, "cut_tokens"),
        ({"role": "crossed", "responses": "x.csv", **BASE}, "with responses from a file, text stays own"),
        ({"role": "baseline", "responses": "x.csv"}, "or text from a file"),
        ({"role": "crossed", "variant_of": "base-KD", "priming": "x", "signals": "cross-KD"}, "has no signals of its"),
        ({"role": "baseline", "signals": "gold"}, "signals are own, none or an arm"),
        ({"role": "deviation", **BASE, "deviations": ["no-template"]}, "no-template is what the teacher reads, too"),
        ({"role": "crossed", "variant_of": "base-KD", "text": "nobody"}, "text names 'nobody', which is no other arm"),
        ({"role": "crossed", "variant_of": "base-KD", "text": "gold-KD"}, "has no text of its own"),
        ({"role": "baseline", "loss": {"alhpa": 1}}, "loss or on_policy has no alhpa"),
        ({"role": "hero"}, "role"),
    ],
)
def test_an_arm_that_cannot_be_is_refused_with_the_reason(row, said, tmp_path, monkeypatch):
    rows = yaml.safe_load((ROOT / "configs" / "strategies.yaml").read_text(encoding="utf-8"))
    crossed = {"title": "x", "role": "crossed", "variant_of": "base-KD", "text": "base-KD", "priming": "y"}
    rows = {"base-KD": rows["base-KD"], "gold-KD": rows["base-fine-tune"], "cross-KD": crossed, "new-KD": row}
    rows["new-KD"] = {"title": "new"} | row
    write_arms(tmp_path, monkeypatch, rows)
    with pytest.raises(UserError, match=said):
        load_arms()


@pytest.mark.parametrize("name", ["control", "x-seed1", "a.old-1", "a/b", *(Path(table).stem for table in TABLES)])
def test_an_arm_cannot_have_the_name_of_something_else(name, tmp_path, monkeypatch):
    write_arms(tmp_path, monkeypatch, {name: {"title": "x"}})
    with pytest.raises(UserError, match="cannot name a strategy"):
        load_arms()


def test_roles_say_what_is_compared_and_in_which_family():
    arms, models = load_arms(), ["control", *ALL, "teacher"]
    pairs = planned_contrasts(models, arms)
    assert len(pairs) == len(set(pairs)) and "teacher" not in {name for pair in pairs for name in pair}
    assert ("ai-KD", "placebo-KD") in pairs and ("placebo-KD", "placebo-KD") not in pairs
    assert {pair for pair in pairs if pair[0] == "ai-signals-KD"} == {
        ("ai-signals-KD", ref) for ref in ("control", "base-KD", "base-fine-tune", "ai-KD")
    }
    chosen = planned_contrasts(["base-KD", "ai-KD", "base-cut-KD", "ai-cut-KD", "ai-right-KD"], arms)
    assert ("ai-cut-KD", "base-cut-KD") in chosen and ("ai-right-KD", "base-cut-KD") not in chosen
    families = plan_of(models, arms)
    assert families["ai-KD", "base-KD"] == families["base-KD", "control"] == MAIN
    assert families["placebo-KD", "base-KD"] == families["base-text-KD", "control"] == CHECKS
    # What checks the design takes nothing from the study's own family, which asks of a placebo what priming adds to it.
    main = {pair for pair, family in families.items() if family == MAIN}
    own = set(plan_of(["control", "base-KD", "ai-KD", "base-fine-tune"], arms))
    assert main == own | {("ai-KD", "placebo-KD")}
    assert title_of("placebo-KD-seed2") == "Placebo-KD (seed 2)"


def test_a_crossed_arm_has_one_prompts_text_and_anothers_signals(profile):
    with pytest.raises(
        UserError, match="scores the responses of base-KD, which are not captured: run `primekd capture base-KD"
    ):
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
    facts = {"inputs": {}, "signals": {"spec": crossed.spec}}
    said = dict(model_facts({"models": {"ai-signals-KD": facts}}, "ai-signals-KD"))
    assert said["Priming text"] == get_arm("ai-KD").priming and said["Priming text of the responses"] == "none"
    assert said["Responses taken from"].startswith("base-KD, ")


def test_the_spec_of_a_crossed_store_says_what_the_teacher_read_when_it_wrote(profile, monkeypatch):
    """Placement and mode of the writing prompt change the responses, and so the store."""
    arm = Arm(name="own-KD", title="x", role="crossed", variant_of="base-KD", priming="Be brief.", signals="base-KD")
    arms = load_arms() | {"own-KD": arm}
    monkeypatch.setattr("primekd.config.arms.load_arms", lambda: arms)
    specs = {}
    for placement in ("system", "user"):
        for mode in ("replace", "add"):
            teacher = profile.teacher.model_copy(update={"priming_placement": placement, "priming_mode": mode})
            job = training_job(profile.model_copy(update={"teacher": teacher}), "own-KD")
            specs[placement, mode] = build_spec(job, load_items(profile, "train"))
    assert all(spec["priming"] is None and "Be brief." in spec["text"]["prompt"] for spec in specs.values())
    prompts = {spec["text"]["prompt"] for spec in specs.values()}
    texts = {hash_json(spec["text"]) for spec in specs.values()}
    assert len(prompts) == 3 and len(texts) == 4  # the mode is of a system message alone


def test_a_crossed_store_whose_text_was_captured_anew_is_refused_named_and_made_anew(profile):
    for name in ("base-KD", "ai-KD", "ai-signals-KD"):
        capture(training_job(profile, name))
    job, text = training_job(profile, "ai-signals-KD"), training_job(profile, "base-KD")
    assert check_signals(job.folder).problems == []
    rewrite_responses(text.folder)
    with pytest.raises(UserError, match="another text"):
        open_signals(job)
    with pytest.raises(UserError, match="another text"):
        distill(profile, "ai-signals-KD")
    assert "not those that lie in" in check_signals(job.folder).problems[0]
    before = open_signals(text).item(open_signals(text).item_ids[0]).response_ids
    capture(job)
    reader = open_signals(job)
    assert reader.item(reader.item_ids[0]).response_ids == before and check_signals(job.folder).problems == []


def rewrite_responses(folder):
    """The same store with one token fewer in its first response, as another capture might have given."""
    reader = SignalReader(folder)
    stored = [reader.item(name) for name in reader.item_ids]
    places = [reader._place(item.item_id) for item in stored]
    rows = [reader._handle(item.item_id).get_slice("row.hidden")[place.response : place.response_end]
            for item, place in zip(stored, places, strict=True)]  # fmt: skip
    stored[0] = replace(stored[0], response_ids=stored[0].response_ids[:-1])
    rows[0] = rows[0][:-1]
    manifest, start = read_json(folder / "manifest.json"), 0
    for name, entry in manifest["shards"].items():
        part = slice(start, start + entry["items"])
        columns = [{"hidden": row.contiguous()} for row in rows[part]]
        entry |= save_shard(folder / name, stored[part], columns, manifest["spec_sha256"])
        start = part.stop
    write_json(folder / "manifest.json", manifest)
    for vouch in folder.glob("shard-*.json"):
        entry = manifest["shards"][vouch.with_suffix(".safetensors").name]
        write_json(vouch, read_json(vouch) | entry)


def test_the_crossed_store_is_another_one_when_its_text_is(profile):
    capture(training_job(profile, "base-KD"))
    spec = build_spec(training_job(profile, "ai-signals-KD"), load_items(profile, "train"))
    other = profile.model_copy(update={"max_new_tokens": profile.max_new_tokens + 1})
    capture(training_job(other, "base-KD"))
    assert spec["text"] != build_spec(training_job(other, "ai-signals-KD"), load_items(other, "train"))["text"]
    assert "text" not in build_spec(training_job(profile, "ai-KD"), load_items(profile, "train"))


def as_logged(student):
    """As the logs' manifest keeps a student's."""
    return student | {"signals": student["signals"] | student["inputs"]["signals"]}


def test_text_alone_is_trained_on_the_responses_and_on_no_row(profile):
    capture(training_job(profile, "base-KD"))
    student = distill(profile, "base-text-KD")
    inputs = read_json(student / "manifest.json")["inputs"]
    rows = (student / "loss_curve.csv").read_text(encoding="utf-8").splitlines()
    head = rows[0].split(",")
    steps = [dict(zip(head, row.split(","), strict=True)) for row in rows[1:]]
    assert all(float(step["kd"]) == 0 and float(step["loss"]) == float(step["ce"]) for step in steps if step["loss"])
    assert inputs["text_alone"] and inputs["signals"]["spec_sha256"]
    whole = read_json(distill(profile, "base-KD") / "manifest.json")
    assert whole["inputs"].get("text_alone") is None
    # The report says which is which, and counts the store that both read once.
    manifest = {
        "models": {"base-text-KD": as_logged(read_json(student / "manifest.json")), "base-KD": as_logged(whole)},
        "config": {"loss": profile.loss.model_dump(mode="json")},
    }
    said = {name: dict(model_facts(manifest, name)) for name in manifest["models"]}
    assert "alone" in said["base-text-KD"]["Trained on"] and "Trained on" not in said["base-KD"]
    assert "Shards trained on" in said["base-KD"] and "Shards trained on" not in said["base-text-KD"]
    assert said["base-text-KD"]["Loss, where it is not the profile's"] == "alpha 1.0"
    assert "Loss, where it is not the profile's" not in said["base-KD"]
    assert [row[0] for row in costs(manifest, {})] == ["Capture", "Training", "Training", "Assessment", "All"]
    assert costs(manifest, {})[-1][3] != MISSING
    manifest["models"]["base-KD"]["energy_kwh"] = None  # the sum of all is of all, or of none
    assert costs(manifest, {})[-1][3] == MISSING
    taken = [part["seconds"] for part in (*whole["signals"]["sessions"], *manifest["models"].values())]
    assert job_seconds(manifest) == pytest.approx(sum(taken))


def test_an_arms_own_loss_goes_before_the_profiles(profile, monkeypatch):
    arms = load_arms()
    own = arms["ai-KD"].model_copy(update={"loss": {"alpha": 0.9}})
    assert own.loss_of(profile).alpha == 0.9 and own.loss_of(profile).temperature == profile.loss.temperature
    assert arms["ai-KD"].loss_of(profile) == profile.loss
    with pytest.raises(UserError, match="ai-KD in configs/strategies.yaml: its loss in .*: alpha"):
        own.model_copy(update={"loss": {"alpha": 2}}).loss_of(profile)


def test_text_alone_is_the_cross_entropy_on_responses_whatever_the_profile_says(profile):
    gold = profile.model_copy(update={"loss": profile.loss.model_copy(update={"labels": "gold", "alpha": 0.3})})
    loss = arms_of(gold)["base-text-KD"].loss_of(gold)
    assert (loss.alpha, loss.labels, loss.divergence) == (1, "response", gold.loss.divergence)


def test_what_the_loss_of_any_arm_cannot_have_is_refused_before_its_store_is_captured(profile, monkeypatch):
    """The arm that owns the store could be trained on it; the one that shares it could not."""
    arms = load_arms()
    shared = Arm(name="hot-KD", title="hot", role="other-loss", variant_of="base-KD", text="base-KD",
                 signals="base-KD", loss={"temperature": 4.0})  # fmt: skip
    monkeypatch.setattr("primekd.config.arms.load_arms", lambda: arms | {"hot-KD": shared})
    codec = profile.signals.model_copy(update={"codec": "topk"})
    sparse = profile.model_copy(update={"signals": codec, "arms": ("base-KD", "hot-KD")})
    monkeypatch.setattr("primekd.capture.run.SharedStore", lambda *args: pytest.fail("a store was begun"))
    with pytest.raises(UserError, match="temperature"):
        capture(training_job(sparse, "base-KD"))
    assert [cost.refusal is None for cost in make_plan(sparse).codecs if cost.name == "topk"] == [False]


def test_a_report_says_how_many_families_of_tests_there_are():
    from primekd.report.findings import how_tested
    from primekd.report.results import Results

    def said(*names: str) -> str:
        rows = [{"model": a, "reference": b, "p": "1", "kl_p": "", "nll_gold_p": "", "clusters": "8", "seeds": "1"}
                for a, b in planned_contrasts(["control", *names], load_arms())]  # fmt: skip
        return how_tested(Results(ROOT, [{"model": "control", "n": "8", "kl": "", "nll_gold": ""}], rows, []))

    assert "over one family of 3 tests" in said("base-KD", "ai-KD")
    assert "over two families, 4 tests of the study's own questions and 2 that check its design" in said(
        "base-KD", "ai-KD", "placebo-KD"
    )
