"""Beyond the training task: a second set of items, sampled answers, and what was forgotten."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, save_llama, small_profile, write_profile
from scipy.stats import t
from transformers import AutoModelForCausalLM

from primekd.assessment.answers import answer_inputs, generate_answers
from primekd.assessment.forgetting import FILE, LIMIT, ForgettingRow, as_teacher, measure, open_reference
from primekd.assessment.logs import read_log, read_logs
from primekd.assessment.score import Model, made_of, score_some, scoring_costs, untrained_models
from primekd.capture.jobs import held_out_job, training_job
from primekd.capture.run import capture
from primekd.config import Profile, load_profile
from primekd.config.arm import CONTROL
from primekd.config.arms import arms_of, load_arms
from primekd.foundation import hash_file, read_json, write_json
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_records, read_table
from primekd.models.chat import build_prompt
from primekd.planning.amounts import Lengths, stages
from primekd.report.beyond import beyond_tables
from primekd.report.findings import results_page, results_text
from primekd.report.html import render, write_report
from primekd.running.publishing import exchange, results_of
from primekd.running.show import show
from primekd.running.verify import check_logs
from primekd.running.verify_run import check_outputs, check_run
from primekd.statistics.families import planned_contrasts
from primekd.statistics.inference import accuracy
from primekd.studies.assess import assess
from primekd.studies.priming import START
from primekd.studies.regrade import regrade
from primekd.studies.study import find_study
from primekd.tasks.clusters import cluster_of, item_of
from primekd.tasks.load import NEUTRAL, load_answer_sets, load_items, neutral_items
from primekd.tasks.protocol import with_examples
from primekd.tasks.splits import hash_items
from primekd.teachers import transformers_engine
from primekd.teachers.decoding import Sampling
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.teachers.vllm_engine import generation_settings
from primekd.training.distill import distill

SECOND = {"task": "gsm-symbolic", "templates": [6], "test_items": 3}
ALL = {"transfer": SECOND, "samples": 2, "forgetting_items": 3, "batch_size": 2}


# The settings.


@pytest.mark.parametrize(
    "given, said",
    [
        ({"transfer": SECOND | {"templates": [6, 43]}}, "template 43, which is trained on"),
        ({"transfer": SECOND | {"train_items": 1}}, "train_items"),
        ({"transfer": {"task": "word-problems", "test_items": 3}}, "test_file"),
        ({"samples": -1}, "samples"),
        ({"samples": True}, "samples"),
        ({"sampling_temperature": 0}, "sampling_temperature"),
        ({"forgetting_items": 1}, "at least 2: an interval over prompts"),
        ({"held_out_items": 1}, "at least 2: an interval over items"),
        ({"held_out_items": 10_000}, "held_out_items 10000 is more than the"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(given, said, tmp_path):
    with pytest.raises(UserError, match=said):
        small_profile(tmp_path, assess=given)


def test_the_second_set_needs_no_training_file(tmp_path):
    lines = [f'{{"question": "Q{n}?", "answer": "#### {n}"}}' for n in range(3)]
    (tmp_path / "second.jsonl").write_text("\n".join(lines))
    data = {"task": "word-problems", "test_file": str(tmp_path / "second.jsonl"), "test_items": 2}
    ((view, items),) = load_answer_sets(small_profile(tmp_path, assess={"transfer": data}))
    assert view.answer_set == "transfer" and [item.question for item in items] == ["Q0?", "Q1?"]
    assert [item.id for item in items] == ["transfer:test-0", "transfer:test-1"], "no id is one of a test item"


def test_a_question_that_was_trained_on_is_refused_before_anything_is_spent(tmp_path):
    known = load_items(small_profile(tmp_path), "train")[2]
    (tmp_path / "second.jsonl").write_text(
        f'{{"question": "New?", "answer": "#### 1"}}\n{{"question": "{known.question}", "answer": "#### 1"}}\n'
    )
    data = {"task": "word-problems", "test_file": str(tmp_path / "second.jsonl"), "test_items": 2}
    profile = small_profile(tmp_path, assess={"transfer": data})
    with pytest.raises(UserError, match=f"stand in the assess.transfer items and in the train items.*{known.id}"):
        find_study(profile).refuse(profile)
    profile = small_profile(tmp_path, assess={"forgetting_items": 100_000})
    with pytest.raises(UserError, match="there are 300 neutral prompts: lower it"):
        find_study(profile).refuse(profile)


def test_what_is_off_is_in_no_identity(ci):
    plain = ci.model_copy(update={"assess": ci.assess.model_copy(update={"sampling_temperature": 1.5})})
    assert not ci.answer_sets() and answer_inputs(plain, [], None) == answer_inputs(ci, [], None)
    assert answer_inputs(ci, [], None)["decoding"] == "greedy"
    assert set(made_of(ci, CONTROL)) == {"answers", "held_out"}


def test_views_have_folders_of_their_own_and_stay_views(tmp_path):
    profile = small_profile(tmp_path, assess=ALL)
    transfer, samples = profile.answer_sets()
    assert transfer.data.templates == (6,) and samples.data == profile.data
    assert transfer.logs == profile.logs / "transfer" and transfer.published == profile.published / "transfer"
    assert (
        transfer.of_published().logs
        == profile.published / "transfer"
        == profile.of_published().answering("transfer").logs
    )
    assert transfer.of_published().of_machine() == transfer and profile.answer_set == ""
    assert transfer.resolved()["data"]["templates"] == [6]


def test_neutral_prompts_are_different_and_have_nothing_to_do_with_numbers():
    prompts = [item.question for item in neutral_items(300)]
    assert len(set(map(str.lower, prompts))) == 300
    assert not [p for p in prompts if any(c.isdigit() for c in p) or "how many" in p.lower() or p != p.strip()]


# Forgetting.


def log_probs(model: str, prompt: list[int], response: list[int], columns: int) -> torch.Tensor:
    """(T, V) float64, row t predicting response token t, from one plain forward pass."""
    plain = AutoModelForCausalLM.from_pretrained(model.removeprefix("path:"), dtype=torch.float64)
    with torch.no_grad():
        logits = plain(torch.tensor([prompt + response])).logits[0]
    return logits[len(prompt) - 1 : -1, :columns].log_softmax(-1)


def test_forgetting_is_the_kl_from_the_students_side_on_the_controls_text(output, lively, tokenizer):
    other = save_llama(output / "other", tokenizer, seed=7)
    profile = small_profile(output, student={"model": lively}, assess={"forgetting_items": 5, "batch_size": 2})
    items = load_items(profile, NEUTRAL)
    reader = open_reference(profile, lambda: Model(CONTROL).open(profile))
    rows = measure(profile, "other", TransformersEngine(other, "float32", 2), items, reader)
    own = measure(profile, CONTROL, TransformersEngine(lively, "float32", 2), items, reader)
    assert [row.id for row in rows] == [item.id for item in items]
    for item, row, of_control in zip(items, rows, own, strict=True):
        text, prompt = reader.item(item.id).response_ids, build_prompt(tokenizer, item.messages)
        (expected,) = TransformersEngine(lively, "float32", 1).generate([prompt], Sampling(LIMIT))
        assert text == expected.ids, "the control's greedy answer to the plain prompt"
        q, p = (log_probs(model, prompt, text, len(tokenizer)) for model in (other, lively))
        forward, reverse = float((p.exp() * (p - q)).sum()), float((q.exp() * (q - p)).sum())
        assert row.kl == pytest.approx(reverse, rel=1e-5)
        assert abs(row.kl - reverse) < 0.05 * abs(row.kl - forward), "not the other direction"
        assert row.nll == pytest.approx(-float(q[torch.arange(len(text)), torch.tensor(text)].sum()), rel=1e-4)
        assert row.tokens == len(text) and abs(of_control.kl) < 1e-4 * len(text) < row.kl
        assert of_control.nll < row.nll


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_controls_own_profile_names_no_arm_that_it_does_not_run(path):
    """laptop names further seeds and contrasts of arms that a capture of the control knows nothing of."""
    if (
        path.stem != "strategies" and load_profile(path.stem).student.model
    ):  # none is answered by a student from scratch
        assert list(arms_of(as_teacher(load_profile(path.stem)))) == ["base-KD"]


def test_the_control_is_asked_once_and_anew_where_it_is_another(output, lively):
    profile = small_profile(output, student={"model": lively}, assess={"forgetting_items": 2})
    first = open_reference(profile, lambda: Model(CONTROL).open(profile))
    again = open_reference(profile, lambda: pytest.fail("the control was opened"))
    assert again.manifest == first.manifest and again.spec["split"] == NEUTRAL
    more = small_profile(output, student={"model": lively, "quantization": "nf4"}, assess={"forgetting_items": 2})
    with pytest.raises(ZeroDivisionError):
        open_reference(more, lambda: 1 / 0)


# Samples.


def test_samples_depend_on_their_own_seed_alone(output, lively):
    def answers(batch: int, **changes):
        profile = small_profile(output, student={"model": lively}, assess={"samples": 3, "batch_size": batch} | changes)
        ((view, items),) = load_answer_sets(profile)
        engine = TransformersEngine(lively, "float32", batch)
        found = generate_answers(view, f"m{batch}{changes}", items, answer_inputs(view, items, None), lambda: engine)
        return {answer.item_id: answer.ids for answer in found}

    alone = answers(1)
    assert answers(5) == alone, "other blocks and other batches change nothing"
    ids = [item.id for item in load_items(small_profile(output), "test")]
    assert list(alone) == [f"{i}#sample-{n}" for i in ids for n in (1, 2, 3)]
    assert len({tuple(alone[f"{ids[0]}#sample-{n}"]) for n in (1, 2, 3)}) == 3
    assert answers(1, sampling_temperature=1.9) != alone


def test_vllm_is_given_the_same_seeds():
    settings = generation_settings(Sampling(4, 0.7, seeds=(5, 2**32 - 1)), {1}, 2)
    assert [one["seed"] for one in settings] == [5, 2**32 - 1] and settings[0]["temperature"] == 0.7


def test_an_interval_over_samples_is_clustered_by_item():
    correct = [n < 8 or n in (9, 14, 15) for n in range(20)]
    items = [name for name in "abcdefghij" for _ in range(2)]
    found = accuracy(correct, items)
    shares = np.array(correct, float).reshape(10, 2).mean(1)  # (items,) means over samples
    half = t.ppf(0.975, 9) * shares.std(ddof=1) / 10**0.5
    assert tuple(found) == pytest.approx((shares.mean(), shares.mean() - half, shares.mean() + half))
    naive = accuracy(correct)
    assert naive.value == pytest.approx(found.value) and found.high - found.low > 1.2 * (naive.high - naive.low)
    assert accuracy([True] * 20, items) == accuracy([True] * 10), "as sure as of one answer to each item"
    assert accuracy(correct, range(20)) == naive


def test_a_samples_cluster_is_its_items():
    assert item_of("q#1#sample-12") == "q#1" and item_of("q7") == "q7"
    assert cluster_of("gsm-symbolic-6-123#sample-2") == cluster_of("transfer:gsm-symbolic-6-9") == "gsm-symbolic-6"
    assert cluster_of("transfer:test-3") == "test-3"


# A whole study of the smallest size, with all of it.


@pytest.fixture(scope="module")
def assessed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("beyond")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "models").symlink_to(ROOT / "models")  # the tokenizer that was read from a GGUF file lies there
    sizes = {"data": {"train_items": 2, "validation_items": 1, "test_items": 2}, "train": {"epochs": 1}}
    write_profile(folder, arms=["base-KD", "base-fine-tune"], assess=ALL, **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIMEKD_ROOT", str(folder))
        patch.setenv("PRIMEKD_OUTPUT", str(folder))
        profile = load_profile(str(folder / "small.yaml"))
        capture(training_job(profile, "base-KD"))
        for name in profile.arms:
            distill(profile, name)
        assess(profile)
        write_report(profile)
    return folder


@pytest.fixture
def study(assessed, tmp_path, monkeypatch) -> Profile:
    """A copy of it that a test may change. From here on no model may be opened."""
    shutil.copytree(assessed, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(tmp_path))
    monkeypatch.setattr(transformers_engine, "TransformersEngine", lambda *_, **__: pytest.fail("a model was opened"))
    return load_profile(str(tmp_path / "small.yaml"))


def problems(profile: Profile) -> list[str]:
    return [f"{check.what}: {problem}" for check in check_logs(profile) for problem in check.problems]


def test_all_of_it_is_logged_verified_and_stands(study, capsys):
    assert not problems(study) and not [p for check in check_run(study) for p in check.problems]
    transfer, samples = study.answer_sets()
    models = ["control", "base-KD", "base-fine-tune"]
    assert list(read_logs(transfer)) == list(read_logs(samples)) == models
    assert [row.id for row in read_log(transfer.logs / "control.csv")] == [i.id for i in load_items(transfer, "test")]
    rows = {row["model"]: row for row in read_table(samples.logs / "summary.csv")}
    assert rows["control"]["n"] == "4"
    pairs = {(row["model"], row["reference"]): row for row in read_table(samples.logs / "contrasts.csv")}
    assert ("base-KD", "control") in pairs
    forgotten = read_records(study.logs / FILE, ForgettingRow)
    assert [(row.model, row.id) for row in forgotten] == [(m, f"neutral-{n:03d}") for m in models for n in (1, 2, 3)]
    assert all(abs(row.kl) < 1e-3 for row in forgotten if row.model == CONTROL)
    assess(study)
    assert "assess: nothing to do" in capsys.readouterr().out
    assert not [folder for *_, folder in results_of(study) if not (folder / "manifest.json").is_file()]


def test_every_altered_file_fails(study):
    names = ["transfer/control.csv", "samples/base-KD.csv", "transfer/summary.csv", "samples/manifest.json", FILE]
    for name in names:
        path = study.logs / name
        path.write_text(path.read_text().replace("0", "1", 1) + "\n")
    (study.logs / "transfer" / "more.csv").touch()
    found = check_outputs(study.logs / "manifest.json").problems
    assert {p.split(" ")[0] for p in found} == {*names, "transfer/more.csv"}


def test_a_verdict_that_was_altered_with_all_hashes_is_found(study):
    """Of the second set by its own checks: manifests vouch for the bytes, not for what they say."""
    view = study.answering("transfer")
    log = view.logs / "control.csv"
    row = read_log(log)[0]
    log.write_text(
        log.read_text().replace(f'"{row.span}",{int(row.correct)}', f'"{row.span}",{int(not row.correct)}', 1)
    )
    for folder in (view.logs, study.logs):
        manifest = read_json(folder / "manifest.json")
        manifest["outputs"] = {name: hash_file(folder / name) for name in manifest["outputs"]}
        write_json(folder / "manifest.json", manifest)
    assert any("transfer" in p and "does not follow from its answer" in p for p in problems(study))


def test_grading_anew_reaches_the_sets_and_changes_nothing(study, capsys):
    before = {p: p.read_bytes() for p in study.logs.rglob("*.csv")}
    regrade(study)
    assert {p: p.read_bytes() for p in study.logs.rglob("*.csv")} == before and not problems_but_report(study)
    assess(study)
    assert "assess: nothing to do" in capsys.readouterr().out
    log = study.logs / "samples" / "control.csv"
    log.write_text(log.read_text().replace("sample-1", "sample-7", 1))
    with pytest.raises(UserError, match="samples: .*control.csv missing or altered"):
        regrade(study)


def test_one_answer_of_a_set_is_shown_with_what_it_came_from(study):
    item = load_items(study.answering("transfer"), "test")[1]
    parts = {part.title: dict(part.rows) for part in show(study, item.id, "base-KD")}
    assert parts["Item"]["Question"] == item.question and item.question in parts["What the model read"]["Prompt"]
    assert parts["Files"]["Log"].endswith("logs/transfer/base-KD.csv, row 2")
    assert parts["Files"]["Answers"].endswith("answers-transfer/base-KD") and parts["Made from"]
    first = load_items(study, "test")[0].id
    assert dict(show(study, first)[0].rows)["Id"] == first, "an item goes before its samples"
    assert dict(show(study, f"{first}#sample-2")[0].rows)["Id"] == f"{first}#sample-2"


def test_the_report_and_the_readmes_table_show_it_and_others_do_not(study):
    second, second_pairs, sampled, sampled_pairs, forgotten = beyond_tables(study.logs)
    assert "3 items of gsm-symbolic" in second.notes[0] and [row[1] for row in second.rows] == ["3"] * 3
    assert "2 sampled answers" in sampled.notes[0] and [row[1] for row in sampled.rows] == ["4"] * 3
    rows = [row for row in read_records(study.logs / FILE, ForgettingRow) if row.model == "base-KD"]
    mean = sum(row.kl for row in rows) / sum(row.tokens for row in rows)
    assert float(forgotten.rows[1][3].split(" [")[0]) == pytest.approx(mean, rel=1e-2) and len(second_pairs.rows) == 3
    page = render(study)
    for text in (page, results_page(study.logs).notes, results_text(study.logs)):
        assert "What was forgotten" in "".join(text) and "A second set of items" in "".join(text)
    assert page.index('id="beyond"') > page.index('id="results"')
    shutil.rmtree(study.logs / "transfer")
    shutil.rmtree(study.logs / "samples")
    (study.logs / FILE).unlink()
    assert "beyond" not in render(study) and not beyond_tables(study.logs)


def test_what_is_published_holds_the_sets(study):
    names = [*read_json(study.logs / "manifest.json")["outputs"], "manifest.json"]
    exchange(study.logs, study.published, names)
    published = study.of_published()
    write_report(published)
    assert {"transfer/manifest.json", "samples/summary.csv", FILE} <= set(names) and not problems(published)


def test_what_is_asked_no_more_is_gone_and_what_is_asked_otherwise_is_made(study, capsys):
    def asking(**changes):
        return study.model_copy(update={"assess": study.assess.model_copy(update=changes)})

    with pytest.raises(pytest.fail.Exception, match="a model was opened"):
        assess(asking(sampling_temperature=0.9))
    less = asking(transfer=None, samples=0, forgetting_items=0)
    assess(less)
    assert "assess: nothing to do" not in capsys.readouterr().out
    assert not (study.logs / FILE).exists() and not (study.logs / "transfer").exists() and not problems_but_report(less)


def problems_but_report(profile: Profile) -> list[str]:
    write_report(profile)
    return problems(profile)


def test_a_plan_counts_what_is_asked_beside_the_test_items(ci):
    more = ci.model_copy(update={"assess": ci.assess.model_copy(update={"samples": 3, "forgetting_items": 10})})
    costs, costs_more = (find_study(ci).costs(profile) for profile in (ci, more))
    assert more.asked_items == 4 * 8 + 10 and ci.asked_items == 8
    assert costs_more["score"] - START == pytest.approx((costs["score"] - START) * 42 / 8)
    assert {name for name in costs if costs[name] != costs_more[name]} == {"score"}
    assert stages(more, Lengths(1, 1, "", 1, 1, ""))[-1].items == 42


def test_a_lost_answer_set_is_scored_again(study):
    done = study.runs / "notebooks" / "scored"
    done.mkdir(parents=True)
    (done / "control.done").touch()
    lost = find_study(study).lost
    assert done / "control.done" not in lost(study)
    shutil.rmtree(study.runs / "answers-transfer" / "control")
    assert done / "control.done" in lost(study)


def test_examples_stand_in_front_of_the_question_as_a_conversation(ci):
    items, shown = load_items(ci, "test"), load_items(ci, "train")[:2]
    asked = with_examples(items, shown)
    roles = [message["role"] for message in asked[0].messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert (
        asked[0].messages[1]["content"] == shown[0].solution and asked[0].messages[-1]["content"] == items[0].question
    )
    assert asked[0].question == items[0].question and asked[0].answer == items[0].answer
    assert hash_items(asked) != hash_items(items), "an answer behind examples is not one without them"


def test_the_untrained_student_is_scored_with_examples_beside_the_control(output, lively):
    scored = {"few_shot": 2, "forgetting_items": 2}
    profile = small_profile(output, arms=["base-KD"], teacher={"model": lively}, assess=scored)
    assert [model.name for model in untrained_models(profile)] == ["control", "control-few-shot"]
    without = profile.model_copy(update={"assess": profile.assess.model_copy(update={"few_shot": 0})})
    assert [model.name for model in untrained_models(without)] == ["control"]
    assert planned_contrasts(["control", "control-few-shot", "base-KD", "teacher"], load_arms()) == [
        ("base-KD", "control"), ("control-few-shot", "control"), ("base-KD", "control-few-shot"),
    ]  # fmt: skip
    capture(held_out_job(profile))
    score_some(profile, ["control", "control-few-shot"])
    answers = profile.runs / "answers"
    plain, shown = (read_json(answers / name / "manifest.json") for name in ("control", "control-few-shot"))
    assert plain["inputs"]["items_sha256"] != shown["inputs"]["items_sha256"]
    assert (profile.runs / "held-out" / "control-few-shot" / "manifest.json").is_file()
    # What is said to be made of a model is all there: of the shown one there is nothing that could be forgotten.
    for name in ("control", "control-few-shot"):
        made = made_of(profile, name)
        assert all((folder / "manifest.json").is_file() for *_, folder in made.values())
        assert ("forgetting" in made) == (name == "control")
    assert scoring_costs(profile, ["control", "control-few-shot"])["seconds"] > 0
