"""The plan: arithmetic checked by hand, layouts, what will not fit and its remedy, and memory against measured runs."""

import json
from dataclasses import replace

import pytest
import yaml
from conftest import POCKET, ROOT, small_profile, write_profile

from primekd.config import Profile, load_profile
from primekd.config.arms import get_arm
from primekd.config.hardware import HardwareConfig
from primekd.foundation import write_json, write_manifest, write_text
from primekd.foundation.errors import UserError
from primekd.models.shapes import GIB, KNOWN, find_shape, known_shape, student_model, teacher_model
from primekd.planning.amounts import Lengths, find_lengths, find_rates
from primekd.planning.memory import EXL2_CACHE, VLLM_LISTED_BYTES
from primekd.planning.plan import make_plan, memory_errors
from primekd.planning.stages import CPU_MARGIN, IMPORTS, Need, machine_name, memory_needs, on_machine

BIG = KNOWN["llama-3.1-405b"]
CPU = HardwareConfig(memory_gib=64)


@pytest.fixture(scope="module")
def paper():
    return load_profile("paper")


@pytest.fixture(scope="module")
def pocket_plan():
    return make_plan(load_profile("pocket"))


def varied(profile, section: str, **values):
    """A profile with other values in one section."""
    return profile.model_copy(update={section: getattr(profile, section).model_copy(update=values)})


# Arithmetic, by hand.


def test_the_405b_model_counted_by_hand():
    attention = 2 * 16384 * 16384 + 2 * 16384 * (8 * 128)
    layer = attention + 3 * 16384 * 53248
    assert BIG.layer_weights == layer == 3_187_671_040
    assert BIG.weights == 126 * layer + 2 * 128256 * 16384 + (2 * 126 + 1) * 16384 == 405_853_388_800


def test_its_weights_at_six_bits_and_its_signals(paper):
    model = teacher_model(paper)
    assert model.device == pytest.approx(126 * BIG.layer_weights * 6 / 8 + 128256 * 16384 * 6 / 8, rel=1e-4)  # 302.8 GB
    assert model.device == pytest.approx(302.8e9, rel=1e-3)
    assert model.host == 128256 * 16384 * 2  # ExLlamaV2 keeps the embedding in the machine's memory
    token = {cost.name: cost.token for cost in make_plan(paper).codecs}
    ids = token["text"]
    assert (token["hidden"] - ids, token["full"] - ids, token["topk"] - ids) == (32_768, 513_024, 8 * 64 + 8)


@pytest.mark.parametrize("kind, per_token", [("FP16", 516_096), ("Q8", 274_176), ("Q6", 209_664), ("Q4", 145_152)])
def test_the_cache_of_one_token_by_type(kind, per_token):
    # 126 layers, 8 heads of 128: 129,024 keys and as many values; scales are half precision, one for 32 numbers.
    assert BIG.kv_bytes(*EXL2_CACHE[kind]) == per_token


def test_the_published_adapter():
    # r (in + out) of q, k, v, o in 32 layers of Llama 3.1 8B.
    counted = 32 * 4 * ((4096 + 4096) + (4096 + 1024) + (4096 + 1024) + (4096 + 4096))
    assert KNOWN["llama-3.1-8b"].lora_weights(load_profile("paper").student.lora) == counted == 3_407_872


def test_tokens_of_the_published_study(paper):
    capture, held_out, distill, assess = make_plan(paper).stages
    assert capture.response_tokens == 2638 * 4 * 200 and capture.most == 2638 * 4 * 350
    assert held_out.response_tokens == 1319 * 200
    assert distill.response_tokens == 2638 * 5 * 2 * 200
    assert assess.response_tokens == 1319 * 6 * 200


def test_the_arms_that_a_profile_runs_are_counted_and_each_store_once(paper):
    few = paper.model_copy(update={"arms": ("base-KD", "ai-KD", "base-fine-tune")})
    assert [stage.runs for stage in make_plan(few).stages] == [2, 1, 3, 4]
    assert make_plan(few).storage[-1].note == "3 students"


# Shapes.


def test_known_shapes_have_the_published_sizes():
    billions = {"llama-3.1-8b": 8.03, "llama-3.1-70b": 70.55, "llama-3.2-1b": 1.236, "llama-3.2-3b": 3.213,
                "qwen2.5-7b": 7.616, "qwen2.5-0.5b": 0.494, "smollm2-135m": 0.1345, "smollm2-1.7b": 1.711}  # fmt: skip
    for name, size in billions.items():
        assert KNOWN[name].weights / 1e9 == pytest.approx(size, rel=2e-3), name


def test_the_model_that_is_here_is_read_and_agrees_with_the_table():
    profile = load_profile("pocket")
    assert find_shape(profile, POCKET) == KNOWN["smollm2-135m"]


def test_a_shape_counts_what_transformers_allocates(ci, lively):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = find_shape(ci, lively)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(lively.removeprefix("path:")))
    assert shape.weights == sum(p.numel() for p in model.parameters())


def test_a_random_model_has_the_shape_that_is_built(ci):
    from primekd.models import model_folder

    built = json.loads((model_folder(ci.teacher.model) / "config.json").read_text())
    shape = find_shape(ci, ci.teacher.model)
    assert (shape.hidden, shape.layers, shape.vocab) == (
        built["hidden_size"], built["num_hidden_layers"], built["vocab_size"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "name, key",
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("turboderp/Llama-3.1-8B-Instruct-exl2@6.0bpw", "llama-3.1-8b"),
        ("models/Llama-3.1-405B-Instruct-6.0bpw", "llama-3.1-405b"),
        ("unsloth/Llama-3.2-1B", "llama-3.2-1b"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b"),
        ("acme/Llama-3.1-88B", None),
        ("acme/xLlama-3.1-8B", None),
    ],
)
def test_names_of_known_architectures(name, key):
    assert known_shape(name) == (KNOWN[key] if key else None)


def test_an_unknown_model_is_one_sentence_that_says_where_to_name_its_shape(output):
    profile = small_profile(output, student={"model": "hub:acme/wonder"})
    with pytest.raises(UserError, match="hub:acme/wonder.*hardware.shapes") as caught:
        make_plan(profile)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_does_not_say_its_shape_is_one_sentence(output):
    write_json(output / "odd" / "config.json", {"num_hidden_layers": 2})
    with pytest.raises(UserError, match="odd does not say its shape.*hidden_size.*hardware.shapes"):
        find_shape(load_profile("pocket"), f"path:{output / 'odd'}")


def test_a_stated_shape_is_used(output):
    stated = {"layers": 2, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "intermediate": 16, "vocab": 100}
    hardware = {"memory_gib": 4, "shapes": {"hub:acme/wonder": stated}}
    expected = {"source": "a test", "prompt_tokens": 5, "longest_prompt_tokens": 9, "response_tokens": 7}
    profile = small_profile(output, student={"model": "hub:acme/wonder"}, hardware=hardware | {"expected": expected})
    assert student_model(profile).shape.vocab == 100 and make_plan(profile).lengths.response == 7


def test_bits_that_nobody_stated_are_asked_for(output):
    profile = load_profile("single-gpu")
    unnamed = varied(profile, "teacher", model="hub:meta-llama/Llama-3.1-8B-Instruct")
    with pytest.raises(UserError, match="hardware.bits_per_weight"):
        make_plan(unnamed)
    stated = varied(unnamed, "hardware", bits_per_weight=4.0)
    assert teacher_model(stated).device < teacher_model(profile).device


def test_gpus_without_their_memory_are_refused(output):
    with pytest.raises(UserError, match="gpus_per_node needs gpu_memory_gib"):
        small_profile(output, hardware={"memory_gib": 4, "gpus_per_node": 1})


def test_the_machine_that_plans_is_read_where_the_profile_states_none(output, monkeypatch, paper):
    facts = {
        "cpu": "Some CPU",
        "cores": 8,
        "memory_gib": 60.0,
        "gpus": ["NVIDIA L4, 23034 MiB", "NVIDIA L4, 23000 MiB"],
    }
    monkeypatch.setattr("primekd.planning.stages.hardware", lambda: facts)
    machine = on_machine(small_profile(output)).hardware
    assert (machine_name(machine), machine.gpu_memory_gib, machine.memory_gib) == ("2 x NVIDIA L4", 23000 / 1024, 60)
    monkeypatch.setattr("primekd.planning.stages.hardware", lambda: facts | {"gpus": []})
    machine = on_machine(small_profile(output)).hardware
    assert (machine_name(machine), machine.gpus_per_node) == ("Some CPU, 8 cores", 0)
    assert on_machine(paper) is paper


# Layouts.


def test_the_published_teacher_fits_on_four_of_eight_gpus(paper):
    plan = make_plan(paper)
    gpus = [need for need in plan.needs if need.phase == "generate, score"]
    assert plan.works and [need.place for need in gpus] == ["GPU 0", "GPU 1", "GPU 2", "GPU 3"]
    assert sum(need.parts["weights"] for need in gpus) == pytest.approx(teacher_model(paper).device)
    assert sum(need.parts["KV cache"] for need in gpus) == pytest.approx(209_664 * 32 * 1024)


def test_the_last_gpu_dequantises_the_whole_head_beside_weights_and_cache(paper):
    (check,) = [need for need in make_plan(paper).needs if need.phase == "head check"]
    (last,) = [n for n in make_plan(paper).needs if n.place == check.place and n.phase == "generate, score"]
    assert check.place == "GPU 3" and check.parts["head"] == 128256 * 16384 * 2
    assert check.total == last.total - last.parts["logits"] + check.parts["head"]


def test_all_log_probs_of_one_sequence_at_a_time_lie_in_host_memory():
    profile = load_profile("paper-bf16")

    def host(profile) -> dict[str, float]:
        return next(n.parts for n in make_plan(profile).needs if (n.stage, n.place) == ("capture", "host memory"))

    assert host(profile) == host(varied(profile, "teacher", batch_size=8))
    assert host(profile)["logits"] == (384 + 350) * 128257 * VLLM_LISTED_BYTES
    assert host(profile)["rows"] == 8 * 350 * 128256 * 4 * 3


def test_the_source_of_a_teacher_takes_disk_until_it_is_converted(paper):
    def parts(profile) -> dict[str, float]:
        return {part.what: part.bytes / GIB for part in make_plan(profile).storage}

    source = "hub:meta-llama/Llama-3.1-405B-Instruct"
    paper = varied(paper, "teacher", model="path:models/Llama-3.1-405B-Instruct-6.0bpw", made_from=source)
    found = parts(paper)
    assert found["teacher's source"] == pytest.approx(756, abs=0.1)
    assert found["conversion's work folder"] == found["teacher model"]
    assert "teacher's source" not in parts(varied(paper, "teacher", made_from=None))


def test_a_tensor_parallel_teacher_is_split_evenly(paper):
    settings = paper.teacher.exllamav2.model_copy(update={"tensor_parallel": True})
    needs = make_plan(varied(paper, "teacher", exllamav2=settings)).needs
    shares = [need.parts["weights"] for need in needs if need.stage == "capture" and need.place.startswith("GPU")]
    assert shares == [teacher_model(paper).device / 8] * 8


def test_two_nodes_hold_the_bf16_teacher_and_one_does_not():
    profile = load_profile("paper-bf16")
    plan = make_plan(profile)
    shares = [need.parts["weights"] for need in plan.needs if need.place.startswith("GPU") and need.stage == "capture"]
    assert plan.works and len(shares) == 16
    assert sum(shares) == pytest.approx(2 * BIG.weights, rel=1e-3)
    one = varied(profile, "teacher", vllm=profile.teacher.vllm.model_copy(update={"pipeline_parallel": 1}))
    errors = [finding.text for finding in make_plan(one).findings if finding.level == "error"]
    assert len(errors) == 1 and "Set teacher.vllm.pipeline_parallel to 2 (16 GPUs in all)." in errors[0]


def test_heads_that_cannot_be_split_are_one_sentence():
    profile = load_profile("paper-bf16")
    split = profile.teacher.vllm.model_copy(update={"tensor_parallel": 6})
    with pytest.raises(UserError, match="128 attention heads.*6 GPUs"):
        make_plan(varied(profile, "teacher", vllm=split))


# What will not fit, and the one change that helps.


def test_two_gpus_are_too_few_and_the_remedy_is_true(paper):
    small = varied(paper, "hardware", gpus_per_node=2)
    plan = make_plan(small)
    (error,) = [finding.text for finding in plan.findings if finding.level == "error"]
    assert not plan.works and "capture does not fit" in error and "Use 4 such GPUs in one node." in error
    assert make_plan(varied(paper, "hardware", gpus_per_node=4)).works
    assert not make_plan(varied(paper, "hardware", gpus_per_node=3)).works


def test_a_micro_batch_that_is_too_large_is_halved_until_it_fits():
    profile = varied(load_profile("single-gpu"), "train", micro_batch_size=32, batch_size=32)
    (error,) = [finding.text for finding in make_plan(profile).findings if finding.level == "error"]
    assert "distill does not fit" in error and "Set train.micro_batch_size to 8." in error
    assert make_plan(varied(profile, "train", micro_batch_size=8)).works
    half = [f.text for f in make_plan(varied(profile, "train", micro_batch_size=16)).findings if f.level == "error"]
    assert len(half) == 1 and half[0].endswith("Set train.micro_batch_size to 8.")


def test_a_student_that_is_too_large_is_loaded_in_four_bits():
    profile = load_profile("single-gpu")
    big = profile.model_copy(
        update={
            "student": profile.student.model_copy(update={"model": "hub:meta-llama/Llama-3.1-8B-Instruct"}),
            "train": profile.train.model_copy(update={"micro_batch_size": 1}),
            "assess": profile.assess.model_copy(update={"batch_size": 4}),
        }
    )
    errors = {f.text.split()[0]: f.text for f in make_plan(big).findings if f.level == "error"}
    assert "Set student.quantization to nf4." in errors["distill"]
    quantised = student_model(varied(big, "student", quantization="nf4"))
    assert quantised.device < 0.4 * student_model(big).device


def test_one_gpu_of_a_teacher_in_transformers_is_refused_with_the_engines_that_spread_it(paper):
    teacher = paper.teacher.model_copy(
        update={"engine": "transformers", "model": "hub:meta-llama/Llama-3.1-405B-Instruct", "exllamav2": None}
    )
    errors = [f.text for f in make_plan(paper.model_copy(update={"teacher": teacher})).findings if f.level == "error"]
    assert len(errors) == 1 and "exllamav2 or vllm" in errors[0]


def test_a_finding_follows_from_needs_alone(ci):
    lengths = Lengths(5, 5, "given", 5, 5, "given")
    need = Need("capture", "score", "GPU 0", {"weights": 90.0, "logits": 10.0}, 101.5, 0.15)
    assert need.asked == pytest.approx(101.5) and need.fits
    assert replace(need, place="process").asked == pytest.approx(115)
    here = ci.model_copy(update={"hardware": CPU})
    assert list(memory_errors(here, lengths, [need])) == []
    tight = replace(need, capacity=101.4)
    assert not tight.fits and len(list(memory_errors(here, lengths, [need, tight, tight]))) == 1


def test_a_context_that_is_too_short_is_an_error(paper):
    errors = [f.text for f in make_plan(varied(paper, "teacher", context_tokens=512)).findings if f.level == "error"]
    assert errors == ["The longest prompt and response have 734 tokens: set teacher.context_tokens to that or more."]


def test_a_disk_that_is_too_small_is_an_error_with_a_remedy(paper):
    full = varied(varied(paper, "signals", codec="full"), "hardware", disk_gib=1300)
    errors = [f.text for f in make_plan(full).findings if f.level == "error"]
    assert len(errors) == 1 and errors[0].endswith("Set signals.codec to hidden.")
    assert any(f.text.endswith("GiB more.") for f in make_plan(varied(paper, "hardware", disk_gib=50)).findings)


def test_a_split_that_is_too_narrow_is_to_be_left_out(paper):
    narrow = paper.teacher.exllamav2.model_copy(update={"gpu_split": (20.0, 70.0, 70.0)})
    errors = [f.text for f in make_plan(varied(paper, "teacher", exllamav2=narrow)).findings if f.level == "error"]
    assert len(errors) == 1 and errors[0].endswith("Leave teacher.exllamav2.gpu_split out.")


# Codecs.


def smallest(profile) -> str:
    return next(f.text for f in make_plan(profile).findings if f.text.startswith("The smallest codec"))


def test_the_published_temperature_needs_hidden_states(paper):
    assert "temperature 5.94227" in smallest(paper) and "is hidden" in smallest(paper)


def test_at_temperature_one_a_sample_of_a_few_tokens_does(paper):
    assert "is sampled" in smallest(varied(paper, "loss", temperature=1.0, divergence="forward_kl"))


def test_reverse_kl_needs_the_whole_distribution(paper):
    profile = varied(paper, "loss", temperature=1.0, divergence="reverse_kl")
    assert "is hidden" in smallest(profile)


def test_an_engine_that_shows_top_tokens_only_cannot_serve_the_published_temperature():
    profile = load_profile("paper-bf16")
    few = varied(profile, "teacher", vllm=profile.teacher.vllm.model_copy(update={"full_logprobs": False}))
    errors = [f.text for f in make_plan(varied(few, "signals", codec="auto")).findings if f.level == "error"]
    assert len(errors) == 1 and errors[0].startswith("No codec of this engine serves reverse_kl at temperature 5.94227")


def test_bytes_a_token_are_those_of_a_real_store(pocket_plan):
    logs = json.loads((ROOT / "logs/pocket/manifest.json").read_text())["models"]["base-KD"]["signals"]
    cost = next(c for c in pocket_plan.codecs if c.name == logs["spec"]["codec"]["name"])
    assert cost.token == pytest.approx(logs["bytes"] / logs["tokens"], rel=0.01)


# Tokens, hours.


def test_rates_of_the_published_logs_are_used_where_this_machine_has_none():
    """For the arms that they have: the profile may have more. A store that several arms read was captured once."""
    logs = json.loads((ROOT / "logs/pocket/manifest.json").read_text())["models"]
    plan = make_plan(load_profile("pocket").model_copy(update={"arms": tuple(logs)}))
    took = {stage.name: stage for stage in plan.stages}
    own = [m for name, m in logs.items() if get_arm(name).store == name]
    seconds = sum(s["seconds"] for m in own for s in m["signals"]["sessions"])
    assert took["capture"].rate_source.startswith("measured: logs/pocket/manifest.json (")
    assert took["capture"].hours * 3600 == pytest.approx(seconds, rel=0.02)
    assert took["distill"].hours * 3600 == pytest.approx(sum(m["seconds"] for m in logs.values()), rel=0.02)


def test_this_machines_own_captures_and_trainings_come_before_the_published_ones(output):
    profile = load_profile("pocket")
    session = {"end": "2026-01-02T03:00:00+00:00", "seconds": 10.0, "energy_kwh": None}
    store = {"format": 1, "spec": {"codec": {"name": "text"}}, "spec_sha256": "0" * 64, "shards": {}, "complete": True}
    store |= {"tokens": 1000, "items": 50, "sessions": [session]}
    write_json(profile.runs / "signals" / "ai-KD" / "manifest.json", store)
    write_json(profile.runs / "signals" / "base-KD" / "manifest.json", store | {"complete": False, "tokens": 10**9})
    student = profile.student_folder("ai-KD")
    write_text(student / "loss_curve.csv", "step\n")
    write_manifest(student, "adapter", {}, [student / "loss_curve.csv"], seconds=5.0, response_tokens=2500)
    rates, lengths = find_rates(profile), find_lengths(profile)
    assert rates["capture"] == (100, "measured: runs/pocket/signals")
    assert rates["distill"] == (500, "measured: runs/pocket/students")
    assert rates["held-out"][1].startswith("measured: logs/pocket/manifest.json ("), "of another machine, as it says"
    assert lengths.response == 20 and lengths.response_source == "measured: 50 responses in runs/pocket/signals"


def test_stated_rates_say_so(paper):
    capture = make_plan(paper).stages[0]
    assert capture.rate_source.startswith("stated: ")
    assert capture.hours == pytest.approx(2638 * 4 * 200 / 70 / 3600)


def test_no_rate_is_made_up(output):
    plan = make_plan(small_profile(output))
    assert [stage.hours for stage in plan.stages] == [None] * 4
    assert plan.lengths.response == plan.lengths.most == 12 and "limit" in plan.lengths.response_source


def test_prompts_are_counted_where_items_and_tokenizer_are_here(ci, items, tokenizer):
    lengths = find_lengths(ci)
    assert lengths.prompt_source == "counted" and 20 < lengths.prompt < lengths.longest_prompt


# Memory against measured runs.

LOGGED = json.loads((ROOT / "logs/plan/memory.json").read_text(encoding="utf-8"))
PUBLISHED_LORA = {"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
# What was measured: (stage, changes to the profile pocket-plain, sequences, prompt, response).
CASES = [
    ("teacher", {"teacher": {"dtype": "bfloat16"}}, 4, 96, 64),
    ("teacher", {"teacher": {"dtype": "bfloat16"}}, 16, 96, 64),
    ("teacher", {"teacher": {"dtype": "float32"}}, 4, 96, 64),
    ("teacher", {"teacher": {"dtype": "float32"}}, 16, 96, 64),
    ("teacher", {"teacher": {"engine": "llamacpp"}}, 2, 96, 64),
    ("student", {}, 4, 96, 64),
    ("student", {}, 8, 96, 64),
    # The model's constants were set with the cases above and not with these.
    ("teacher", {"teacher": {"dtype": "bfloat16"}}, 8, 256, 96),
    ("student", {"train": {"optimizer": "sgd"}, "student": {"lora": PUBLISHED_LORA}}, 4, 160, 96),
    ("student", {"student": {"dtype": "float32"}}, 2, 160, 96),
]


def predict(profile: Profile, stage: str, sequences: int, prompt: int, response: int) -> dict[str, float]:
    """Bytes by phase that the plan predicts for one pass on a CPU, without the imports."""
    profile = varied(varied(profile, "teacher", batch_size=sequences), "train", micro_batch_size=sequences)
    profile = varied(profile, "signals", items_per_shard=sequences).model_copy(update={"hardware": CPU})
    needs = memory_needs(profile, Lengths(prompt, prompt, "given", response, response, "given"))
    return {need.phase: need.total - IMPORTS[stage] for need in needs if need.stage == stage}


def test_the_log_holds_every_case_and_the_page_says_how_far_off_the_model_was():
    seen = {(row["stage"], row["sequences"], row["prompt"], row["response"]) for row in LOGGED["rows"]}
    assert seen == {(stage, *numbers) for stage, _, *numbers in CASES}
    worst = max((row["error"] for row in LOGGED["rows"]), key=abs)
    assert f"largest error: {worst:+.1%}" in (ROOT / "docs/plan.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c[0]}-{c[2]}x({c[3]}+{c[4]})-{yaml.safe_dump(c[1]).strip()[:40]}"
)
def test_predictions_are_the_logged_ones_and_within_the_margin(case, tmp_path):
    stage, changes, *numbers = case
    teacher = {"model": LOGGED["model"]} | changes.get("teacher", {})  # untaught, so that it is always here
    changes = {"extends": "pocket-plain", "prepare": None} | changes | {"teacher": teacher}
    write_text(tmp_path / "case.yaml", yaml.safe_dump(changes))
    profile = load_profile(str(tmp_path / "case.yaml"))
    predicted = predict(profile, {"teacher": "capture", "student": "distill"}[stage], *numbers)
    engine = profile.teacher.engine if stage == "teacher" else "transformers"
    dtype = profile.teacher.dtype if stage == "teacher" else profile.student.dtype
    key = [stage, engine, dtype, *numbers]
    rows = [
        row for row in LOGGED["rows"]
        if [row[k] for k in ("stage", "engine", "dtype", "sequences", "prompt", "response")] == key
    ]  # fmt: skip
    assert rows
    for row in rows:
        assert round(predicted[row["phase"]]) == row["predicted"]
        assert abs(row["measured"] / row["predicted"] - 1) <= CPU_MARGIN


# The command.


def invoke(*arguments: str):
    from typer.testing import CliRunner

    from primekd.cli import app

    return CliRunner().invoke(app, ["plan", *arguments])


def test_the_text_has_every_table_and_no_ragged_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = invoke("--profile", "paper")
    assert result.exit_code == 0
    for text in ("EXL2 6 bpw", "GPU 0-2", "KV cache", "hidden (this profile)", "stated", "The smallest codec"):
        assert text in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.split("\n"))


def test_json_is_the_same_plan(paper):
    values = json.loads(invoke("--profile", "paper", "--json").stdout)
    assert values["works"] is True and len(values["needs"]) == len(make_plan(paper).needs)
    assert all(row["asked"] >= row["total"] > 0 for row in values["needs"] if row["parts"])


def test_what_cannot_fit_is_still_printed_and_ends_with_status_1(output):
    path = output / "small.yaml"
    path.write_text("extends: paper\nhardware: {gpus_per_node: 2}\n")
    result = invoke("--profile", str(path))
    assert result.exit_code == 1 and "TOO LARGE" in result.stdout and "WILL NOT WORK: capture" in result.stdout


def test_a_mistake_is_one_line(output):
    result = invoke("--profile", str(write_profile(output, student={"model": "hub:acme/wonder"})))
    assert result.exit_code == 1 and result.stderr.startswith("primekd: ") and result.stderr.count("\n") == 1


def test_the_help_has_examples():
    assert "primekd plan --profile paper" in invoke("--help").stdout


def test_memory_is_planned_for_every_profile_of_the_checkout():
    lengths = Lengths(80, 110, "given", 42, 96, "given")
    for name in ("ci", "pocket", "pocket-plain", "pocket-llamacpp"):
        needs = memory_needs(load_profile(name).model_copy(update={"hardware": CPU}), lengths)
        assert {need.stage for need in needs} == {"capture", "distill", "assess"} and all(need.fits for need in needs)


@pytest.mark.parametrize("name", ["micro-pocket", "online-pocket"])
def test_a_study_of_students_from_scratch_is_not_planned_and_says_so(name):
    with pytest.raises(UserError, match=f"{name}: plans know students that learn an adapter .*how much time is left"):
        make_plan(load_profile(name))
