"""The published study graded in a small checkout: released verdicts against the rules, and what `verify` finds."""

import csv
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from primekd.assessment.decisions.decisions import answer_hash
from primekd.assessment.decisions.labels import Label
from primekd.config import load_profile, profile_names
from primekd.foundation import MANIFEST, hash_file, read_json, write_json
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_table
from primekd.running.verify import check_published
from primekd.studies.published import grade_published, published_folder, read_verdicts, stated_file

GOLD = ["18", "4", "-1", "9"]
STUDY = {
    "control": ["18", "3", "-1", "nothing"],
    "base-KD": [r"\boxed{18}", "4", "nothing", "It is 9, or 10, or\nsome"],
}
RELEASED = {"control": "1100", "base-KD": ["", "", "", ""]}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """logs/published of a checkout of its own, graded."""
    checkout, logs = tmp_path / "checkout", tmp_path / "study"
    shutil.copytree(ROOT / "configs", checkout / "configs")
    labels = checkout / "assessment" / "labels" / "published-logs.csv"
    labels.parent.mkdir(parents=True)
    shutil.copy(ROOT / "assessment" / "published.yaml", checkout / "assessment")
    digest = answer_hash("Question 1?", "4")
    labels.write_text(f"{','.join(Label.__dataclass_fields__)}\nbase-KD,1,{digest},validation,stated,4,,\n")
    monkeypatch.setenv("PRIMEKD_ROOT", str(checkout))
    monkeypatch.delenv("PRIMEKD_OUTPUT", raising=False)
    logs.mkdir()
    for model, responses in STUDY.items():
        with open(logs / f"{model}.csv", "w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["id", "question", "gold_solution", "response", "response_tokens", "published_correct"])
            for n, (response, verdict) in enumerate(zip(responses, RELEASED[model], strict=True)):
                writer.writerow([n, f"Question {n}?", f"Thus\n#### {GOLD[n]}", response, 30, verdict])
    return grade_published(logs)


def problems() -> dict[str, list[str]]:
    return {check.what: check.problems for check in check_published()}


def mend_hash(folder: Path, name: str) -> None:
    manifest = read_json(folder / MANIFEST)
    manifest["outputs"][name] = hash_file(folder / name)
    write_json(folder / MANIFEST, manifest)


def test_both_ways_in_which_verdicts_and_rules_differ_are_counted(study):
    (row,) = read_table(study / "disagreements.csv")  # base-KD was released without verdicts
    assert row == {"model": "control", "both": "1", "only_released": "1", "only_rules": "1", "neither": "1", "n": "4"}
    assert "disagreements.csv" in read_json(study / MANIFEST)["outputs"]


def test_a_true_minus_one_is_told_from_nothing(study):
    values = {(r["log"], r["id"]): r["published"] for r in read_table(study / "verdicts.csv")}
    assert (values["control", "2"], values["control", "3"]) == ("-1.0", "-1")
    rows = {(r["model"], r["extractor"]): r for r in read_table(study / "accuracies.csv")}
    assert (rows["control", "published"]["found"], rows["control", "published"]["correct"]) == ("3", "2")
    assert all(r["correct"] == r["correct_adjudicated"] for r in rows.values())
    readings, released = read_verdicts(study / "verdicts.csv")
    assert [r.values["published"] for r in readings["control"]] == [18, 3, -1, None]
    assert released["control"] == ["1", "1", "0", "0"]


def test_a_value_of_many_digits_is_read_as_it_was_written(study):
    """Some extractors read a degenerate run of digits as a number."""
    path = study / "verdicts.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[1] = lines[1].rstrip("\n").rpartition(",")[0] + f",{'91' * 300}\n"
    path.write_text("".join(lines), encoding="utf-8")
    assert read_verdicts(path)[0]["control"][0].values["math-verify"] == int("91" * 300)


def test_logs_that_nobody_touched_verify(study):
    assert problems() == dict.fromkeys(("logs/published", "inputs of logs/published", "tables in logs/published"), [])


def test_without_published_logs_there_is_nothing_to_verify(study):
    shutil.rmtree(study)
    assert check_published() == []


@pytest.mark.parametrize("name", ["accuracies.csv", "contrasts.csv", "stated.csv", "disagreements.csv"])
def test_a_table_that_does_not_follow_from_the_verdicts_is_named(name, study):
    path = study / name
    path.write_text(path.read_text(encoding="utf-8").replace("control", "teacher", 1), encoding="utf-8")
    found = problems()
    assert found["logs/published"] == [f"{name} is missing or has other bytes"]
    assert found["tables in logs/published"] == [f"{name} is missing or does not follow from verdicts.csv"]
    mend_hash(study, name)
    found = problems()
    assert found["logs/published"] == [] and len(found["tables in logs/published"]) == 1


def test_a_changed_verdict_changes_the_tables(study):
    path = study / "verdicts.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[1] = lines[1].replace(",18,18", ",18,17").replace(",1,18", ",1,17")
    path.write_text("".join(lines), encoding="utf-8")
    mend_hash(study, "verdicts.csv")
    assert any("accuracies.csv" in problem for problem in problems()["tables in logs/published"])


@pytest.mark.parametrize("damage", ["x", "log,id\n1,2\n", None], ids=["no table", "other columns", "no file"])
def test_verdicts_that_cannot_be_read_are_a_finding(damage, study):
    path = study / "verdicts.csv"
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(UserError, match="verdicts.csv"):
        read_verdicts(path)
    assert "verdicts.csv" in problems()["tables in logs/published"][0]


@pytest.mark.parametrize("name", ["labels", "stated", "rules"])
def test_a_grading_by_other_labels_or_rules_is_stale(name, study, monkeypatch):
    if name == "rules":
        monkeypatch.setattr("primekd.studies.published.rules_hashes", lambda: {"extract.py": "other"})
    else:
        path = stated_file() if name == "stated" else stated_file().parent / "labels" / "published-logs.csv"
        path.write_text(path.read_text() + "\n")
    sentence = f"{name} changed since the logs were graded: run `primekd published-study`"
    assert problems()["inputs of logs/published"] == [sentence]


def test_a_missing_manifest_or_labels_file_is_a_finding(study):
    (stated_file().parent / "labels" / "published-logs.csv").unlink()
    assert "published-logs.csv" in problems()["inputs of logs/published"][0]
    (study / MANIFEST).unlink()
    assert "manifest.json is missing" in problems()["logs/published"][0]
    assert published_folder() == study


def test_what_the_paper_states_is_no_profile():
    assert "published" not in profile_names()
    assert [load_profile(name).name for name in profile_names()] == profile_names()
    with pytest.raises(UserError, match="No profile 'published'.*Known: .*ci"):
        load_profile("published")
