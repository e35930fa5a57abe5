"""Arms whose student writes its own text for a primed, live teacher: what trains them, and what is refused."""

import pytest
import yaml
from conftest import small_profile

from primekd.assessment.students import find_students
from primekd.capture.jobs import prompts_of, training_job
from primekd.capture.live import LiveTeacher
from primekd.config import ApiConfig
from primekd.config.arms import arms_file, arms_of, get_arm, load_arms
from primekd.config.student import OnPolicyConfig
from primekd.foundation import read_json
from primekd.foundation.errors import UserError
from primekd.signals import Asked
from primekd.statistics.families import CHECKS, MAIN, plan_of
from primekd.tasks.load import load_items
from primekd.teachers import open_engine
from primekd.training.distill import distill

ARM = "ai-on-policy-KD"
MINILLM = {"divergence": "reverse_kl", "alpha": 0}


@pytest.fixture
def profile(output, lively):
    return small_profile(
        output, arms=["base-KD", "ai-KD", ARM], teacher={"model": lively}, max_new_tokens=8,
        train={"optimizer": "adamw", "learning_rate": 0.01, "epochs": 2, "batch_size": 4, "micro_batch_size": 2},
        loss={"temperature": 1.0},
    )  # fmt: skip


def test_its_stage_trains_it_without_a_capture_and_says_how_its_text_read(profile, capsys):
    folder = distill(profile, ARM)
    manifest = read_json(folder / "manifest.json")
    assert manifest["inputs"]["on_policy"]["objective"] == "divergence"
    assert manifest["inputs"]["loss"]["divergence"] == "reverse_kl" and manifest["inputs"]["signals"]["shards"] == {}
    rows = (folder / "rollouts.csv").read_text().splitlines()
    steps = 2 * (profile.data.train_items // 4)
    assert rows[0] == "step,responses,written_tokens,ended,repeated,entropy" and len(rows) == steps + 1
    assert "rollouts.csv" in " ".join(manifest["outputs"]) and manifest["response_tokens"] > 0
    assert not (profile.runs / "signals").exists(), "nothing is captured"
    [student] = find_students(profile, ARM)
    assert student.name == ARM
    distill(profile, ARM)
    assert "its inputs are unchanged" in capsys.readouterr().out
    other = profile.model_copy(update={"on_policy": OnPolicyConfig(max_new_tokens=3)})
    for changed in (other, profile.model_copy(update={"max_new_tokens": profile.max_new_tokens - 1})):
        with pytest.raises(UserError, match=r"differs from the profile \(on_policy\)"):
            find_students(changed, ARM)


def test_the_teacher_reads_the_priming_and_the_student_does_not(profile):
    items = load_items(profile, "train")
    live = LiveTeacher(profile, get_arm(ARM), items)
    response = [11, 12, 13]
    plain = prompts_of(get_arm("base-KD"), profile.teacher, items)[0]
    rows = live.rows_of([Asked(items[0].id, list(plain), response)])
    engine = open_engine(profile)
    primed = prompts_of(get_arm("ai-KD"), profile.teacher, items)[0]
    assert list(primed) != list(plain)
    expected, other = (engine.score([prompt], [response], "logits")[0] for prompt in (primed, plain))
    assert (rows.to_logits() - expected).abs().max() < 1e-3 < (rows.to_logits() - other).abs().max()
    specs = [LiveTeacher(profile, get_arm(name), items).manifest["spec_sha256"] for name in (ARM, "base-on-policy-KD")]
    assert specs[0] != specs[1], "another prompt is another teacher"


def test_by_roles_its_contrasts_check_the_design_and_the_profile_may_ask_one_of_them():
    arms, names = load_arms(), ["control", "base-KD", "ai-KD", ARM]
    assert plan_of(names, arms)[(ARM, "base-KD")] == CHECKS
    assert plan_of(names, arms, [(ARM, "base-KD")])[(ARM, "base-KD")] == MAIN


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"signals": "none"}, "needs signals"),
        ({"role": "crossed"}, "role: on-policy belong together"),
        ({"on_policy": {"lambda": 1}}, "has no lambda"),
        ({"on_policy": {"share": 0.5}}, "there is none to learn from"),
        ({"loss": {"divergence": "reverse_kl", "alpha": 0.5}}, "there is none to learn from"),
        (
            {"loss": {"divergence": "forward_kl", "alpha": 0}, "on_policy": {"objective": "minillm"}},
            "set the arm's loss.divergence to reverse_kl",
        ),
        ({"loss": MINILLM | {"temperature": 2.0}, "on_policy": {"objective": "minillm"}}, r"loss\.temperature to 1"),
        ({"loss": MINILLM | {"divergence_scale": 9}, "on_policy": {"objective": "minillm"}}, r"divergence_scale to 1"),
        ({"on_policy": {"objective": "minillm", "temperature": 0.5}}, "temperature is 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_spent(profile, changes, said, tmp_path, monkeypatch):
    values = yaml.safe_load(arms_file().read_text())
    values[ARM] |= changes
    path = tmp_path / "strategies.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    monkeypatch.setattr("primekd.config.arms.arms_file", lambda: path)
    with pytest.raises(UserError, match=said):
        arms_of(profile)


def test_there_is_nothing_to_capture_and_a_teacher_of_few_tokens_does_not_do(profile):
    with pytest.raises(UserError, match="there is nothing to capture"):
        training_job(profile, ARM)
    api = ApiConfig(model="m", usd_per_million_input=0, usd_per_million_output=0, max_spend_usd=0)
    teacher = profile.teacher.model_copy(update={"engine": "api", "api": api})
    with pytest.raises(UserError, match="api shows no whole distribution"):
        LiveTeacher(profile.model_copy(update={"teacher": teacher}), get_arm(ARM))
