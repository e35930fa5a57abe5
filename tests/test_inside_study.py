"""The whole look inside a small study: its files, its pages, what stands and what does not."""

import re
import shutil
from dataclasses import replace

import nbformat
import pytest
import torch
from conftest import ROOT, small_profile
from typer.testing import CliRunner

from primekd.assessment.inside import inside_folder, parts
from primekd.assessment.inside.confidence import FILE, SureRow
from primekd.assessment.logs import read_log, write_log
from primekd.capture.jobs import test_job as teacher_job
from primekd.capture.jobs import training_job
from primekd.capture.run import capture
from primekd.cli import app
from primekd.config import Profile
from primekd.foundation import read_manifest
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_records
from primekd.report.deviations import show_deviations
from primekd.report.html import render, write_report
from primekd.report.inside import inside_page, pair_table, show_attention, show_confidence, show_head
from primekd.report.inside_figures import map_figure
from primekd.running.publishing import files_beside
from primekd.running.verify import check_inside, check_logs, verify
from primekd.running.verify_run import Check
from primekd.statistics.calibration import CalibrationRow
from primekd.statistics.inside import ATTENTION, EVERY, PAIRS, AttentionRow, PairRow
from primekd.studies import inside
from primekd.studies.assess import assess
from primekd.studies.inside import analyse, look_at_heads
from primekd.studies.regrade import regrade, tell_inside_anew
from primekd.training.distill import distill

ARMS = ["base-KD", "ai-KD", "placebo-KD", "base-fine-tune"]
HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def study(tmp_path_factory, lively) -> Profile:
    """Two arms, a placebo, and the gold students of a model with random weights, assessed and looked into."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIMEKD_OUTPUT", str(folder))
        profile = small_profile(
            folder, arms=ARMS, student={"model": lively}, teacher={"model": lively}, seeds={"base-KD": [1]},
            inside={"items": 5, "attributed_items": 1, "orders": 1, "map_tokens": 8}, max_new_tokens=16,
            assess={"teacher_items": 3},
        )  # fmt: skip
        for name in ARMS[:3]:
            capture(training_job(profile, name))
        for name in ARMS[:3]:
            capture(teacher_job(profile, name))
        for name in ARMS:
            distill(profile, name)
        distill(profile, "base-KD", 1)
        assess(profile)
        analyse(profile)
        yield profile


def test_every_student_is_a_difference_from_the_control(study):
    rows = read_records(inside_folder(study) / ATTENTION, AttentionRow)
    whole = {(row.model, row.measure): row for row in rows if row.layer == EVERY}
    models = ["base-KD", "base-KD-seed1", "ai-KD", "placebo-KD", "base-fine-tune"]
    assert {row.model for row in rows} == set(models)
    assert all(row.difference_low <= row.difference <= row.difference_high for row in rows)
    assert whole["base-KD", "total_variation"].control == 0 and whole["base-KD", "cosine"].control == pytest.approx(1)
    assert whole["base-KD", "total_variation"].value > 0
    assert read_manifest(inside_folder(study) / "manifest.json")["students"] == list(
        dict.fromkeys(row.model for row in rows)
    )


def test_students_are_held_against_each_other_and_against_a_second_seed(study):
    rows = read_records(inside_folder(study) / PAIRS, PairRow)
    pairs = list(dict.fromkeys((row.model, row.reference) for row in rows))
    assert pairs[0] == ("base-KD-seed1", "base-KD") and ("ai-KD", "base-KD") in pairs
    whole = {(row.model, row.reference): row for row in rows if row.layer == EVERY}
    for pair in pairs:
        heads = [row.total_variation for row in rows if (row.model, row.reference) == pair][1:]
        assert len(heads) == 4 and heads == sorted(heads, reverse=True)  # two layers of two heads
        assert whole[pair].total_variation_low <= whole[pair].total_variation == pytest.approx(sum(heads) / 4, rel=1e-4)
    table = pair_table(inside_folder(study))
    assert [row[1] for row in table.rows][:1] == ["base-KD"] and table.rows[0][4].count("; ") == 2


def test_confidence_is_that_of_the_answers_in_the_logs(study):
    rows = read_records(inside_folder(study) / FILE, SureRow)
    by_model = {name: [row for row in rows if row.model == name] for name in {row.model for row in rows}}
    assert {"control", "base-KD", "ai-KD", "teacher"} <= by_model.keys() and len(by_model["control"]) == 5
    shared = [row.id for row in by_model["control"]][:3]  # the teacher is compared with itself on the same items
    assert [[row.id for row in by_model[name]] for name in ("teacher", "teacher under ai-KD")] == [shared] * 2
    assert all(row.log_prob <= 0 and row.entropy >= 0 and row.margin >= 0 and row.tokens > 0 for row in rows)


def test_what_stands_is_not_made_again_and_what_changed_is(study, monkeypatch):
    monkeypatch.setattr(inside, "read_attention", lambda subject, pairs: pytest.fail("the model was opened"))
    with pytest.raises(pytest.fail.Exception):
        analyse(study)
    monkeypatch.undo()
    monkeypatch.setattr(parts, "open_side_by_side", lambda *a: pytest.fail("the model was opened"))
    monkeypatch.setattr(parts, "_opened", lambda *a: pytest.fail("a model was opened"))
    before = (inside_folder(study) / "manifest.json").read_bytes()
    analyse(study)
    assert (inside_folder(study) / "manifest.json").read_bytes() == before
    block = next((study.runs / "inside" / "attention").glob("block-*"))
    kept = block.read_bytes()
    block.write_bytes(kept[:-1])
    with pytest.raises(pytest.fail.Exception):  # an altered part is made again
        analyse(study)
    block.write_bytes(kept)


def test_a_forced_part_or_one_of_other_code_takes_nothing_from_what_is_there(study):
    folder, marks = study.runs / "inside" / "tried", {"inputs_sha256": "a", "code_sha256": "b"}
    block = folder / "block-00000.safetensors"

    def make(made, progress):
        assert not parts._is_block(block, marks)  # what a stopped call left behind before it was asked for anew
        parts._save(block, {"values": torch.ones(1)}, marks)
        assert parts._is_block(block, marks)
        assert not parts._is_block(block, marks | {"code_sha256": "c"}) and not parts._is_block(
            block, {**marks, "x": ""}
        )
        return [block]

    for _ in range(2):
        parts.Subject(study, force=True).part("tried", {}, 1, "prompt", make)
    for path in folder.parent.glob("tried*"):
        shutil.rmtree(path)


def test_the_report_has_both_sections_and_nothing_of_a_text_runs(study, monkeypatch):
    page = inside_page(study.logs)
    assert page and len(page["attention"]) >= 2 and page["confidence"]
    html = write_report(study).read_text()
    assert 'id="attention"' in html and 'id="confidence"' in html and 'id="head-data"' in html
    assert 'id="deviations"' not in html
    with pytest.raises(UserError, match="runs no arm that deviates"):
        show_deviations(study)
    rows = inside.json.loads(re.search(r'id="head-data" type="application/json">(.*?)</script>', html, re.S)[1])
    assert rows["size"] == 8 and len(rows["tokens"]) == 8
    assert [one["title"] for one in rows["models"]] == ["No distillation", "Ground truth-KD", "base-KD"]
    monkeypatch.setattr("primekd.report.inside.title_of", lambda name: HOSTILE)
    assert HOSTILE not in render(study)


def test_notebooks_show_it(study, monkeypatch):
    said = show_attention(study)
    assert "total_variation" in said.text and "Students against each other" in said.text
    assert all(label in map_figure(inside_folder(study)) for label in ("Total variation", "Entropy, difference"))
    assert "ECE" in show_confidence(study).text
    assert show_head(study, "ai-KD", 0, 1).image.startswith("<?xml")
    monkeypatch.setattr("primekd.config.load_profile", lambda name: study)  # the notebooks run on these logs
    for name in ("attention", "confidence"):
        cells = nbformat.read(ROOT / "analysis" / f"{name}.ipynb", 4).cells
        exec("\n".join(cell.source for cell in cells if cell.cell_type == "code"), {})
    with pytest.raises(UserError, match="no head 99 in layer 0 of 'ai-KD': choose from control, base-KD"):
        show_head(study, "ai-KD", 0, 99)


def test_verify_finds_what_does_not_follow_from_the_logs(study, monkeypatch):
    monkeypatch.setattr(
        "primekd.running.verify.check_report", lambda profile: Check("report", [])
    )  # it has its own test

    def problems():
        return [p for check in check_logs(study) for p in check.problems]

    assert problems() == []
    path = inside_folder(study) / "arithmetic.csv"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b"control", b"contr0l"))
    assert any("arithmetic.csv" in problem for problem in problems())
    (fix,) = [check.fix for check in verify(study) if check.what.endswith("/inside")]
    assert fix == f"`primekd analyse --profile {study.name}` makes it anew."
    path.write_bytes(kept)
    log = study.logs / "ai-KD.csv"
    answers = log.read_bytes()
    log.write_bytes(answers.replace(b",1,", b",0,", 1))
    assert any("ai-KD.csv is not the log that it was made with" in problem for problem in problems())
    log.write_bytes(answers)
    names = [p.relative_to(study.logs).as_posix() for p in files_beside(study)]
    assert "inside/manifest.json" in names and "inside/attention.csv" in names and "inside/maps.safetensors" in names


def test_a_student_or_an_answer_that_is_not_the_assessed_one_is_refused(study):
    subject = parts.Subject(study)
    model = next(model for model in subject.models if model.name == "ai-KD")
    assert parts._answer_inputs(subject, model)["answers"] and len(parts._answers(subject, "ai-KD")) == 5
    with pytest.raises(UserError, match="ai-KD is not the student that was assessed: run `primekd assess` again"):
        parts._answer_inputs(subject, replace(model, hashes={"adapter/adapter_model.safetensors": "0"}))
    first = subject.items[0].id
    older = [replace(row, response="older") if row.id == first else row for row in subject.logs["ai-KD"]]
    subject.logs["ai-KD"] = older
    with pytest.raises(UserError, match=f"ai-KD's answer to {first} is not that of the logs"):
        parts._answers(subject, "ai-KD")


def test_a_grading_writes_the_tables_anew_that_follow_from_the_logs(study):
    folder, models = inside_folder(study), study.logs / "ai-KD.csv"
    words, verdicts, attention = (p.read_bytes() for p in (folder / "words.csv", models, folder / ATTENTION))
    (folder / "words.csv").write_text("as an older version wrote it\n")
    regrade(study)
    assert (folder / "words.csv").read_bytes() == words and check_inside(study).problems == []
    assert read_manifest(folder / "manifest.json")["regraded"] and models.read_bytes() == verdicts
    (folder / ATTENTION).write_bytes(attention[:-5])
    with pytest.raises(UserError, match="attention.csv altered: run `primekd analyse` again"):
        regrade(study)
    (folder / ATTENTION).write_bytes(attention)
    other = [replace(row, response=f"{row.response}?") for row in read_log(models)]
    write_log(models, other)
    (folder / "words.csv").write_text("of other answers\n")
    tell_inside_anew(study)
    assert (folder / "words.csv").read_text() == "of other answers\n"
    models.write_bytes(verdicts)
    regrade(study)


def test_a_persons_decision_leaves_what_is_inside_as_it_was(study):
    """What is measured inside students follows from answers and automatic verdicts; a fresh clone has no students."""
    log = study.logs / "ai-KD.csv"
    before = log.read_bytes()
    rows = read_log(log)
    write_log(log, [replace(rows[0], adjudicated="7"), *rows[1:]])
    assert log.read_bytes() != before and check_inside(study).problems == []
    log.write_bytes(before)


def test_without_logs_or_with_an_arm_that_is_not_run_it_says_so(study, tmp_path, monkeypatch):
    unknown = study.model_copy(update={"inside": study.inside.model_copy(update={"arms": ("teacher-KD",)})})
    with pytest.raises(UserError, match="inside.arms names teacher-KD, which it does not run"):
        look_at_heads(unknown)
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(tmp_path))
    said = CliRunner().invoke(app, ["analyse", "--profile", "ci"]).stderr
    assert "has no logs: run `primekd run --profile ci` first" in said


def test_fewer_arms_may_be_looked_into(study):
    few = study.model_copy(
        update={"inside": study.inside.model_copy(update={"arms": ("ai-KD",), "attributed_items": 0})}
    )
    kept = study.runs / "kept"
    shutil.copytree(inside_folder(study), kept)
    analyse(few)
    rows = read_records(inside_folder(few) / ATTENTION, AttentionRow)
    assert {row.model for row in rows} == {"ai-KD"}
    found = read_records(inside_folder(few) / "calibration.csv", CalibrationRow)
    assert {row.model for row in found} == {
        "control",
        "ai-KD",
        "teacher",
        "teacher under ai-KD",
        "teacher under placebo-KD",
    }
    shutil.rmtree(inside_folder(study))
    kept.rename(inside_folder(study))
