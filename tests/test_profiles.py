"""The shipped profiles single-gpu and paper: every published setting, and everything in place without a network."""

import pytest

from primekd.capture.jobs import training_job
from primekd.config import load_profile
from primekd.config.arms import default_arms
from primekd.models.shapes import KNOWN
from primekd.planning.plan import largest_movement, make_plan, movement_warning
from primekd.signals import make_codec

LARGE = ["paper", "paper-bf16", "single-gpu"]

# The settings that the paper states, one by one.
PUBLISHED = {
    "max_new_tokens": 350,
    "data.train_items": 2638,
    "data.test_items": 1319,
    "data.hub_dataset": "openai/gsm8k",
    "student.model": "hub:meta-llama/Llama-3.1-8B-Instruct",
    "student.lora.rank": 4,
    "student.lora.alpha": 8,
    "student.lora.dropout": 0.1,
    "student.lora.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "train.optimizer": "sgd",
    "train.learning_rate": 5e-6,
    "train.momentum": 0.9,
    "train.weight_decay": 0.01,
    "train.epochs": 2,
    "loss.temperature": 5.942267,
    "loss.alpha": 0.609335,
}
# What the code that was released with the paper does, where the paper says nothing, or something else.
RELEASED = {
    "loss.divergence": "reverse_kl",
    "loss.labels": "gold",
    "train.batch_size": 1,
    "train.max_grad_norm": 0.0,
    "train.warmup_ratio": 0.0,
}


def setting(profile, path: str):
    for name in path.split("."):
        profile = getattr(profile, name)
    return profile


@pytest.mark.parametrize("name", ["paper", "paper-bf16"])
@pytest.mark.parametrize("path", PUBLISHED | RELEASED)
def test_every_published_setting_is_in_the_profile(name, path):
    assert setting(load_profile(name), path) == (PUBLISHED | RELEASED)[path]


def test_a_training_that_cannot_move_the_student_is_warned_of():
    """The published optimiser with batches of eight and clipping at 1: 660 steps, 0.0165 in all."""
    profile, shape = load_profile("paper"), KNOWN["llama-3.1-8b"]
    slow = profile.model_copy(
        update={"train": profile.train.model_copy(update={"batch_size": 8, "max_grad_norm": 1.0})}
    )
    assert largest_movement(slow.train, 2638, shape.lora_weights(slow.student.lora)) == pytest.approx(0.0165, rel=1e-3)
    warning = movement_warning(slow, shape)
    assert "by 0.017 at most" in warning and "max_grad_norm: 0" in warning
    assert [f.text for f in make_plan(slow).findings if f.level == "warning"] == [warning]
    for name in ("paper", "single-gpu"):
        assert movement_warning(load_profile(name), shape) is None
    # Of layers whose shapes are not known nothing can be said.
    profile = load_profile("single-gpu")
    lora = profile.student.lora.model_copy(update={"target_modules": ("qkv_proj",)})
    other = profile.model_copy(update={"student": profile.student.model_copy(update={"lora": lora})})
    assert movement_warning(other, shape) is None


def test_the_published_teacher_is_served_by_exllamav2_in_six_bits_with_a_q6_cache():
    teacher = load_profile("paper").teacher
    assert teacher.engine == "exllamav2" and "405B-Instruct" in teacher.model and "6.0bpw" in teacher.model
    assert teacher.exllamav2.cache_type == "Q6"


def test_the_bf16_teacher_fills_two_nodes_of_eight():
    profile = load_profile("paper-bf16")
    assert profile.teacher.dtype == "bfloat16" and profile.teacher.exllamav2 is None
    split, hardware = profile.teacher.vllm, profile.hardware
    assert split.tensor_parallel == hardware.gpus_per_node == 8 and split.pipeline_parallel == hardware.nodes == 2
    assert split.backend == "ray"


@pytest.mark.parametrize("name", LARGE)
def test_a_large_profiles_codec_serves_its_loss(name):
    profile = load_profile(name)
    assert make_codec(profile.signals, profile.teacher.offers).refusal(profile.loss) is None


@pytest.mark.parametrize("name", LARGE)
def test_items_fit_into_gsm8k_and_validation_comes_from_the_training_side(name):
    data = load_profile(name).data
    assert data.train_items + data.validation_items <= 7473 and data.test_items <= 1319


@pytest.mark.parametrize("name", LARGE)
def test_every_strategy_has_a_place_of_its_own(name, output):
    profile = load_profile(name)
    folders = {training_job(profile, s).folder for s, entry in default_arms().items() if entry.teacher}
    assert len(folders) == 4


@pytest.mark.parametrize("name", LARGE)
def test_the_doctor_says_which_models_are_missing_and_how_to_get_them(name):
    from primekd.running.doctor import check_profile

    findings = check_profile(load_profile(name))
    assert len(findings) >= 2 and not any("Traceback" in f.text for f in findings)
    assert any("missing" in f.text for f in findings)
