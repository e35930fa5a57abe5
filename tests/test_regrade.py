"""Grading logs anew without models, killed half way or not; the tables beside the logs; what `verify` finds in them."""

import csv
import json
import multiprocessing
import os
import re
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from primekd.assessment.answers import Answer
from primekd.assessment.decisions.decisions import (
    Decision,
    add_decision,
    answer_hash,
    as_written,
    automatic_value,
    read_decisions,
    remove_decision,
)
from primekd.assessment.decisions.session import Session
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow, grade_answer, read_log, read_logs, write_log
from primekd.cli import app
from primekd.config import Profile, load_profile
from primekd.config.arms import load_arms
from primekd.foundation import (
    MANIFEST,
    altered_outputs,
    hash_file,
    is_current,
    provenance,
    read_json,
    write_json,
    write_manifest,
    write_text,
)
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_table, write_records
from primekd.running.verify import _fix, check_decisions, check_models, check_verdicts, summary, verify
from primekd.running.verify_run import check_outputs
from primekd.statistics.contrasts import seed_rows
from primekd.statistics.families import plan_of
from primekd.studies.regrade import regrade, rules_hashes
from primekd.studies.results import KEPT, OPTIONAL, TABLES, answers_hash, decisions_hash, write_results
from primekd.studies.settling import finish
from primekd.tasks.protocol import Item

ALWAYS = set(TABLES) - set(OPTIONAL)  # what every study has
ANSWERS = {
    "control": ["no idea", "", "-1", "it is\r\n1, 2 or\r3 \x1b[2J"],
    "base-KD": [r"\boxed{10}", "ä – 🙂 \u2028 the answer is $11.00.", 'say "12", or\n\n13', " 14 \t\x0b\x00 15 "],
    "ai-KD": [r"\boxed{10}", "The answer is 11.", "first 1\nthen 12", "=1+1,\n 14"],
    "base-fine-tune": ["10", "12", "7\n12", "14\n14"],
    "teacher": [r"\boxed{10}", r"\boxed{11}", r"\boxed{12}", r"\boxed{13}"],
}


def answered(model: str) -> list[LogRow]:
    """One model's log. The questions ask for 10, 11, 12 and 13; every second answer ran into the limit."""
    rows = []
    for number, text in enumerate(ANSWERS[model]):
        item = Item(f"q,{number}", f'Question "{number}"\nor what?', "", Decimal(10 + number))
        rows.append(grade_answer(item, Answer(item.id, list(range(number + 3)), number % 2 == 1, text)))
    return rows


def set_up(profile: Profile) -> None:
    """Logs as an assessment leaves them."""
    logs = {model: answered(model) for model in ANSWERS}
    held_out = [
        HeldOutRow(model, row.id, 5, 0.1 + n / 3, 7, 1 / (n + 2))
        for n, model in enumerate(list(ANSWERS)[:-1])
        for row in logs[model]
    ]
    outputs = write_results(profile, logs, held_out)
    write_records(profile.logs / "held-out.csv", HeldOutRow, held_out)
    curve = profile.logs / "loss_curves" / "base-KD.csv"
    write_text(curve, "step,loss\n1,0.5\n")
    inputs = {"answers": {"x": 1}, "assess": profile.assess.model_dump(mode="json"), "students": {"base-KD": "abc"}}
    inputs |= {"rules": rules_hashes(), "adjudications": decisions_hash(profile)}
    write_manifest(
        profile.logs, "assessment", inputs, [*outputs, curve, profile.logs / "held-out.csv"],
        answers_sha256={model: answers_hash(rows) for model, rows in logs.items()},
        start="yesterday", end="today", models={"base-KD": {"outputs": {}}}, config={"seed": 0}, seconds=1.5,
    )  # fmt: skip


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The `ci` profile in a checkout of its own, where there are logs and nothing that they were made from."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    monkeypatch.delenv("PRIMEKD_OUTPUT", raising=False)
    loaded = load_profile("ci")
    assess = loaded.assess.model_copy(update={"bootstrap_samples": 40, "extractor": "published"})
    small = loaded.model_copy(update={"assess": assess})
    set_up(small)
    return small


def manifest_of(profile: Profile) -> dict:
    return read_json(profile.logs / "manifest.json")


def files_of(profile: Profile) -> dict[str, bytes]:
    return {p.relative_to(profile.logs).as_posix(): p.read_bytes() for p in profile.logs.rglob("*") if p.is_file()}


def tables_of(profile: Profile) -> dict[str, bytes]:
    """Everything but the manifest, which has a date in it."""
    return {name: data for name, data in files_of(profile).items() if name != "manifest.json"}


def decided(profile: Profile, model: str, number: int, value: str) -> Decision:
    row = answered(model)[number]
    return Decision(
        profile.name, model, row.id, answer_hash(row.question, row.response), "-1",
        "none" if value == "-1" else "correct", value, "Ann", "2026-01-01T00:00:00+00:00", "review",
    )  # fmt: skip


def change(profile: Profile, model: str, number: int, honest: bool = False, **cells) -> None:
    """Changes cells of a log. With `honest` its new hash goes into the manifest, as a thorough forger would do."""
    path = profile.logs / f"{model}.csv"
    rows = read_log(path)
    rows[number] = replace(rows[number], **cells)
    write_log(path, rows)
    if honest:
        follow_up(profile, path.name)


def follow_up(profile: Profile, name: str) -> None:
    manifest = manifest_of(profile)
    manifest["outputs"][name] = hash_file(profile.logs / name)
    write_json(profile.logs / "manifest.json", manifest)


# From logs alone.


def test_the_same_answers_and_rules_give_the_same_bytes_as_often_as_you_like(profile):
    written = tables_of(profile)
    for _ in range(2):
        assert regrade(profile) == profile.logs
        assert tables_of(profile) == written
    assert set(manifest_of(profile)["outputs"]) == set(written)


def test_the_tables_are_made_of_the_logs_alone(profile):
    written = tables_of(profile)
    for name in ALWAYS:
        if name not in KEPT:
            (profile.logs / name).unlink()
    regrade(profile)
    assert tables_of(profile) == written
    assert sorted(p.name for p in profile.runs.parent.parent.iterdir()) == ["configs", "runs"], "something was made"


def raw_answers(profile: Profile, model: str) -> list[list[str]]:
    """The cells of a log that come from a model, as they stand in the file."""
    with open(profile.logs / f"{model}.csv", encoding="utf-8", newline="") as handle:
        return [row[:6] for row in csv.reader(handle)]


def test_answers_are_kept_character_by_character_when_the_rules_change(profile):
    """Logs that other rules graded: every verdict changes, and nothing that a model said does."""
    right, before = tables_of(profile), {model: raw_answers(profile, model) for model in ANSWERS}
    for model, texts in ANSWERS.items():
        for number in range(len(texts)):
            change(profile, model, number, extracted="77", rule="boxed", span="0:1", correct=number == 0)
        assert [row.response for row in read_log(profile.logs / f"{model}.csv")] == texts
    regrade(profile)
    assert {model: raw_answers(profile, model) for model in ANSWERS} == before
    assert tables_of(profile) == right


def test_a_decision_reaches_logs_and_tables_and_goes_again(profile):
    written = tables_of(profile)
    found, nothing = decided(profile, "control", 0, "10"), decided(profile, "teacher", 3, "-1")
    for decision in (found, nothing):
        add_decision(decision)
    regrade(profile)
    assert [row.adjudicated for row in read_log(profile.logs / "control.csv")] == ["10", "", "", ""]
    assert [row.adjudicated for row in read_log(profile.logs / "teacher.csv")] == ["", "", "", "-1"]
    rows = {row["model"]: row for row in read_table(profile.logs / "summary.csv")}
    counts = {m: (r["correct"], r["adjudicated"], r["correct_adjudicated"]) for m, r in rows.items()}
    assert counts["control"] == ("0", "1", "1") and counts["teacher"] == ("4", "1", "3")
    assert float(rows["control"]["accuracy_adjudicated"]) == 0.25 and rows["control"]["accuracy"] == "0"
    assert manifest_of(profile)["inputs"]["adjudications"] == decisions_hash(profile)
    for decision in (found, nothing):
        remove_decision(decision)
    regrade(profile)
    assert tables_of(profile) == written


def test_decisions_of_other_profiles_and_on_other_answers_change_nothing(profile):
    written = tables_of(profile)
    regrade(profile)
    inputs = manifest_of(profile)["inputs"]
    add_decision(replace(decided(profile, "control", 0, "10"), profile="pocket"))
    regrade(profile)
    assert tables_of(profile) == written and manifest_of(profile)["inputs"] == inputs
    add_decision(replace(decided(profile, "control", 0, "10"), answer_sha256="0" * 64))
    regrade(profile)
    assert tables_of(profile) == written


def test_an_audit_that_differs_is_counted(profile):
    assert read_table(profile.logs / "audit.csv") == []
    add_decision(replace(decided(profile, "control", 0, "10"), purpose="audit"))
    regrade(profile)
    assert [(r["model"], r["n"], r["errors"]) for r in read_table(profile.logs / "audit.csv")] == [
        ("control", "1", "1"), ("all", "1", "1"),
    ]  # fmt: skip


# What the manifest says afterwards.


def test_the_manifest_keeps_where_the_answers_came_from_and_adds_the_grading(profile):
    before = manifest_of(profile)
    assert "regraded" not in before
    before["environment"]["git"] = {"commit": "then", "dirty": False}
    write_json(profile.logs / "manifest.json", before)
    for _ in range(2):
        regrade(profile)
        after = manifest_of(profile)
        assert after["answered"] == before["environment"], "the first one, however often it is graded"
        assert after["environment"]["git"]["commit"] != "then" and after["regraded"]
    kept = ("kind", "start", "end", "models", "config", "seconds", "answers_sha256")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    assert after["inputs"] == before["inputs"] and is_current(profile.logs, before["inputs"])


def test_the_manifest_says_with_how_many_samples_the_intervals_were_drawn(profile):
    other = profile.model_copy(update={"assess": profile.assess.model_copy(update={"bootstrap_samples": 41})})
    before = manifest_of(profile)["inputs"]
    regrade(other)
    assert manifest_of(profile)["inputs"] == before | {"assess": before["assess"] | {"bootstrap_samples": 41}}


def test_logs_keep_the_extractor_that_they_were_made_with(profile):
    before = files_of(profile)
    regrade(profile.model_copy(update={"assess": profile.assess.model_copy(update={"extractor": "validated"})}))
    assert manifest_of(profile)["inputs"]["assess"]["extractor"] == "published"
    assert all(files_of(profile)[f"{model}.csv"] == before[f"{model}.csv"] for model in ANSWERS)


def name_extractor(profile: Profile, name: str | None) -> None:
    manifest = manifest_of(profile)
    manifest["inputs"]["assess"].pop("extractor", None)
    if name:
        manifest["inputs"]["assess"]["extractor"] = name
    write_json(profile.logs / MANIFEST, manifest)


def test_logs_are_verified_and_regraded_by_the_extractor_that_they_name(profile):
    name_extractor(profile, None)  # from before there was a choice
    assert not check_verdicts(profile.logs).problems
    name_extractor(profile, "validated")
    assert check_verdicts(profile.logs).problems
    regrade(profile)
    assert not check_verdicts(profile.logs).problems
    assert any(row.rule in ("declared", "leading", "concluded") for rows in read_logs(profile).values() for row in rows)
    name_extractor(profile, "guess")
    with pytest.raises(UserError, match="names the extractor 'guess'"):
        check_verdicts(profile.logs)


def test_loss_curves_and_held_out_rows_stay_and_stay_named(profile):
    before, manifest = files_of(profile), manifest_of(profile)
    add_decision(decided(profile, "control", 0, "10"))
    regrade(profile)
    for name in ("loss_curves/base-KD.csv", "held-out.csv"):
        assert files_of(profile)[name] == before[name]
        assert manifest_of(profile)["outputs"][name] == manifest["outputs"][name]


# Logs that were altered.

ALTERED = {
    "response": dict(response="11"),
    "question": dict(question="Another?"),
    "gold": dict(gold="11"),
    "response_tokens": dict(response_tokens=1),
    "truncated": dict(truncated=True),
    "id": dict(id="q9"),
}


@pytest.mark.parametrize("cells", ALTERED.values(), ids=ALTERED)
def test_an_altered_answer_is_refused_and_nothing_is_written(cells, profile):
    change(profile, "ai-KD", 2, honest=True, **cells)
    before = files_of(profile)
    with pytest.raises(UserError, match=r"runs/ci/logs: ai-KD\.csv missing or altered.*git checkout"):
        regrade(profile)
    assert files_of(profile) == before


def remove_a_row(profile: Profile) -> None:
    write_log(profile.logs / "ai-KD.csv", read_log(profile.logs / "ai-KD.csv")[:-1])


def swap_rows(profile: Profile) -> None:
    write_log(profile.logs / "ai-KD.csv", read_log(profile.logs / "ai-KD.csv")[::-1])


DAMAGE = {
    "a row less": (remove_a_row, "ai-KD.csv"),
    "another order": (swap_rows, "ai-KD.csv"),
    "no log": (lambda p: (p.logs / "ai-KD.csv").unlink(), "ai-KD.csv"),
    "half a log": (lambda p: os.truncate(p.logs / "ai-KD.csv", 100), "ai-KD.csv"),
    "another loss": (lambda p: write_text(p.logs / "loss_curves/base-KD.csv", "x\n"), "loss_curves/base-KD.csv"),
    "no loss curve": (lambda p: (p.logs / "loss_curves/base-KD.csv").unlink(), "loss_curves/base-KD.csv"),
    "other fits": (lambda p: write_records(p.logs / "held-out.csv", HeldOutRow, []), "held-out.csv"),
    "no fits": (lambda p: (p.logs / "held-out.csv").unlink(), "held-out.csv"),
    "no manifest": (lambda p: (p.logs / "manifest.json").unlink(), "runs/ci/logs has no logs: run `primekd run"),
}


@pytest.mark.parametrize("damage, named", DAMAGE.values(), ids=DAMAGE)
def test_damage_that_no_grading_can_mend_is_one_sentence_and_nothing_is_written(damage, named, profile):
    damage(profile)
    before = files_of(profile)
    with pytest.raises(UserError) as refused:
        regrade(profile)
    assert named in str(refused.value) and "\n" not in str(refused.value)
    assert files_of(profile) == before


def test_a_row_taken_out_of_the_summary_takes_no_model_out_of_the_study(profile):
    written = tables_of(profile)
    lines = (profile.logs / "summary.csv").read_text().splitlines(keepends=True)
    write_text(profile.logs / "summary.csv", "".join(lines[:-1]))
    regrade(profile)
    assert tables_of(profile) == written


def test_logs_whose_manifest_does_not_vouch_for_the_answers_are_refused(profile):
    manifest = manifest_of(profile)
    del manifest["answers_sha256"]
    write_json(profile.logs / "manifest.json", manifest)
    with pytest.raises(UserError, match="logs/manifest.json has no hashes of the answers: run the assessment again"):
        regrade(profile)


# Killed between two files.


class Killed(BaseException):
    """Stands in for a signal: nothing catches it."""


def replaces_until(count: int, end):
    """os.replace, which works `count` times and then calls `end`."""
    done = []

    def replacing(source, target, real=os.replace):
        if len(done) == count:
            end()
        done.append(target)
        real(source, target)

    return replacing, done


def kill():
    raise Killed


def test_a_grading_killed_between_any_two_files_is_finished_by_the_next(profile, monkeypatch):
    for model, number, value in (("control", 0, "10"), ("base-KD", 3, "13"), ("teacher", 0, "-1")):
        add_decision(decided(profile, model, number, value))
    start = files_of(profile)
    replacing, done = replaces_until(10**6, kill)
    with monkeypatch.context() as patch:
        patch.setattr(provenance.os, "replace", replacing)
        regrade(profile)
    expected, outcomes = tables_of(profile), set()
    assert len(done) == len(ANSWERS) + len(ALWAYS - set(KEPT)) + 1
    for count in range(len(done)):
        for name, data in start.items():
            (profile.logs / name).write_bytes(data)
        replacing, _ = replaces_until(count, kill)
        with monkeypatch.context() as patch:
            patch.setattr(provenance.os, "replace", replacing)
            with pytest.raises(Killed):
                regrade(profile)
        half = altered_outputs(profile.logs / "manifest.json", manifest_of(profile))
        outcomes.add(len(half))
        said = [f"{name} is missing or has other bytes" for name in half]
        assert check_outputs(profile.logs / "manifest.json").problems == said
        regrade(profile)
        assert tables_of(profile) == expected, count
        assert not check_outputs(profile.logs / "manifest.json").problems
    assert len(outcomes) > 3, "it was never killed half way"


def _killed_regrade(profile: Profile, count: int) -> None:
    provenance.os.replace, _ = replaces_until(count, lambda: os._exit(9))
    regrade(profile)


def test_a_grading_whose_process_dies_is_finished_by_the_next(profile):
    add_decision(decided(profile, "control", 0, "10"))
    worker = multiprocessing.get_context("fork").Process(target=_killed_regrade, args=(profile, 3))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 9
    assert altered_outputs(profile.logs / "manifest.json", manifest_of(profile))
    regrade(profile)
    assert not check_outputs(profile.logs / "manifest.json").problems
    assert not check_verdicts(profile.logs).problems and not check_decisions(profile).problems


def test_the_end_of_a_sitting_finishes_a_grading_that_was_cut_short(profile, monkeypatch):
    """Also where all logs hold the decision by then, and only a table does not."""

    def said(_profile):
        return ["the report was written"]

    assert finish(Session(profile, [], "Ann"), said) == "Nothing was decided."
    add_decision(decided(profile, "control", 0, "10"))
    replacing, _ = replaces_until(len(ANSWERS), kill)
    with monkeypatch.context() as patch:
        patch.setattr(provenance.os, "replace", replacing)
        with pytest.raises(Killed):
            regrade(profile)
    assert [row.adjudicated for row in read_log(profile.logs / "control.csv")][0] == "10"
    assert finish(Session(profile, [], "Ann"), said).startswith("0 decisions saved.\nthe report was written\n")
    assert not check_outputs(profile.logs / "manifest.json").problems and not check_verdicts(profile.logs).problems
    assert finish(Session(profile, [], "Ann"), said) == "Nothing was decided."


# The tables.


def test_every_table_is_named_and_nothing_else_is_beside_the_logs(profile):
    names = {f"{model}.csv" for model in ANSWERS} | ALWAYS
    assert {p.name for p in profile.logs.glob("*.csv")} == names
    assert list(read_logs(profile)) == list(ANSWERS)
    assert [row["extractor"] for row in read_table(profile.logs / "accuracies.csv")][:2] == ["published", "validated"]
    readings = read_table(profile.logs / "extractors.csv")
    assert [(r["model"], r["id"]) for r in readings] == [(m, f"q,{n}") for m in ANSWERS for n in range(4)]
    published = [r["published"] for r in readings]
    assert published == [as_written(automatic_value(row)) for rows in read_logs(profile).values() for row in rows]


def test_a_true_minus_one_is_found_and_none_is_not(profile):
    readings = {(r["model"], r["id"]): r for r in read_table(profile.logs / "extractors.csv")}
    assert readings["control", "q,0"]["published"] == "-1" and readings["control", "q,2"]["published"] == "-1.0"
    rows = {(r["model"], r["extractor"]): r for r in read_table(profile.logs / "accuracies.csv")}
    assert rows["control", "published"]["found"] == "2"
    assert [row.extracted for row in read_log(profile.logs / "control.csv")][:3] == ["-1", "-1", "-1"]


def test_a_decision_replaces_the_value_of_every_extractor(profile):
    rows = {(r["model"], r["extractor"]): r for r in read_table(profile.logs / "accuracies.csv")}
    for row in rows.values():
        for column in ("correct", "accuracy", "accuracy_low", "accuracy_high"):
            assert row[column] == row[column.replace("correct", "correct_adjudicated").replace(
                "accuracy", "accuracy_adjudicated")]  # fmt: skip
    add_decision(decided(profile, "control", 0, "10"))
    add_decision(decided(profile, "teacher", 0, "-1"))
    regrade(profile)
    for row in read_table(profile.logs / "accuracies.csv"):
        before = rows[row["model"], row["extractor"]]
        assert row["correct"] == before["correct"] and row["accuracy"] == before["accuracy"]
        right = before["extractor"] != "strict-match" and row["model"] == "teacher"
        change = {"control": 1, "teacher": -right}.get(row["model"], 0)
        assert int(row["correct_adjudicated"]) == int(row["correct"]) + change
        assert float(row["accuracy_adjudicated"]) == int(row["correct_adjudicated"]) / 4


def test_seeds_are_counted_with_and_without_decisions(profile):
    logs = read_logs(profile)
    planned = plan_of(logs, load_arms())
    of_two = seed_rows(logs | {f"{arm}-seed1": logs["base-KD"] for arm in ("ai-KD", "base-KD")}, planned)
    assert {r.accuracy == r.accuracy_adjudicated for r in of_two} == {True}
    decided_on = [replace(row, adjudicated="7") for row in logs["ai-KD"]]
    decided_logs = logs | {"ai-KD": decided_on, "ai-KD-seed1": logs["ai-KD"], "base-KD-seed1": logs["base-KD"]}
    rows = {(r.model, r.reference): r for r in seed_rows(decided_logs, planned)}
    right = sum(row.correct for row in logs["ai-KD"]) / 4
    one = rows["ai-KD", ""]
    assert (one.accuracy, one.accuracy_adjudicated) == (right, right / 2)
    assert one.accuracy_adjudicated_low <= one.accuracy_adjudicated <= one.accuracy_adjudicated_high
    both = rows["ai-KD", "control"]
    assert (both.accuracy, both.accuracy_adjudicated) == (right, right / 2)  # the control is never right


def test_the_log_of_a_model_that_is_no_more_is_removed_and_other_files_stay(profile):
    write_text(profile.logs / "notes.txt", "mine")
    logs = {model: rows for model, rows in read_logs(profile).items() if model != "ai-KD"}
    outputs = write_results(profile, logs, [])
    assert not (profile.logs / "ai-KD.csv").exists() and (profile.logs / "notes.txt").exists()
    assert {p.name for p in outputs} == {f"{model}.csv" for model in logs} | ALWAYS - set(KEPT)
    assert all(p.is_file() for p in outputs)


def test_where_a_table_cannot_be_computed_no_file_is_touched(profile):
    before = files_of(profile)
    logs = {model: [replace(row, adjudicated="1") for row in rows] for model, rows in read_logs(profile).items()}
    with pytest.raises(ValueError, match="different items"):
        write_results(profile, logs, [HeldOutRow("base-KD", f"q,{n}", 1, 1.0, 1, 1.0) for n in range(4)])
    assert files_of(profile) == before


def test_an_answers_hash_stands_for_the_answers_and_for_nothing_else():
    rows = answered("ai-KD")
    whole = answers_hash(rows)
    graded = [replace(r, extracted="7", rule="none", span="", correct=not r.correct, adjudicated="7") for r in rows]
    assert answers_hash(graded) == whole
    others = [answers_hash([replace(rows[0], **cells), *rows[1:]]) for cells in ALTERED.values()]
    others += [answers_hash(rows[:-1]), answers_hash(rows[::-1]), answers_hash([])]
    assert len({whole, *others}) == len(others) + 1


# Verify.


def test_logs_that_nobody_touched_verify(profile):
    add_decision(decided(profile, "control", 0, "10"))
    regrade(profile)
    checks = {check.what: check for check in verify(profile)}
    report = checks.pop("runs/ci/logs/report.html")
    found = {what: check.problems for what, check in checks.items()}
    parts = [f"{what} in runs/ci/logs" for what in ("models", "verdicts", "decisions", "tables", "tokens")]
    assert found == dict.fromkeys(("runs/ci/logs", *parts, "lineage"), [])
    assert len(report.problems) == 1 and "primekd report" in report.fix


@pytest.mark.parametrize(
    "cells",
    [
        dict(correct=False),
        dict(extracted="13"),
        dict(rule="last-number"),
        dict(span="0:2"),
        dict(response="The answer is 12."),
        dict(gold="12"),
    ],
    ids=lambda cells: next(iter(cells)),
)
def test_a_verdict_that_does_not_follow_is_named_even_if_the_manifest_was_mended(cells, profile):
    change(profile, "ai-KD", 1, honest=True, **cells)
    assert not check_outputs(profile.logs / "manifest.json").problems
    problems = check_verdicts(profile.logs).problems
    assert "ai-KD.csv: the verdict on q,1 does not follow from its answer" in problems
    others = [p for p in problems if not p.startswith(("ai-KD.csv: the verdict on q,1 ", "summary.csv"))]
    of_answers = {"response", "gold"} & {*cells}
    assert others == ["manifest.json has another hash of ai-KD.csv's answers"] * len(of_answers)


@pytest.mark.parametrize("column", ["n", "correct", "adjudicated", "correct_adjudicated"])
def test_a_count_of_the_summary_that_its_log_does_not_give_is_named(column, profile):
    path = profile.logs / "summary.csv"
    with open(path, encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    rows[2][rows[0].index(column)] = "99"
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows(rows)
    follow_up(profile, "summary.csv")
    assert not check_outputs(profile.logs / "manifest.json").problems
    right = sum(row.correct for row in answered("base-KD"))
    assert check_verdicts(profile.logs).problems == [
        f"summary.csv does not say {right} of 4 ({right} adjudicated) for base-KD"
    ]


def test_a_log_that_the_summary_does_not_know_is_named(profile):
    write_log(profile.logs / "invented.csv", answered("teacher"))
    assert check_verdicts(profile.logs).problems == ["summary.csv does not say 4 of 4 (4 adjudicated) for invented"]


def test_a_made_up_a_missing_and_a_changed_decision_are_named(profile):
    add_decision(decided(profile, "control", 0, "10"))
    add_decision(decided(profile, "control", 1, "-1"))
    regrade(profile)
    assert check_decisions(profile).problems == []
    change(profile, "control", 0, honest=True, adjudicated="11")
    change(profile, "control", 1, honest=True, adjudicated="")
    change(profile, "control", 2, honest=True, adjudicated="12")
    assert check_decisions(profile).problems == [
        "control: q,0 is logged as adjudicated 11, the decisions say 10",
        "control: q,1 is logged as adjudicated by nobody, the decisions say -1",
        "control: q,2 is logged as adjudicated 12, the decisions say nobody",
    ]
    regrade(profile)
    assert check_decisions(profile).problems == []


def test_a_decision_made_after_the_grading_or_taken_back_since_is_named(profile):
    add_decision(decided(profile, "teacher", 0, "-1"))
    (problem,) = check_decisions(profile).problems
    assert problem == "teacher: q,0 is logged as adjudicated by nobody, the decisions say -1"
    regrade(profile)
    remove_decision(read_decisions()[0])
    assert check_decisions(profile).problems == ["teacher: q,0 is logged as adjudicated -1, the decisions say nobody"]


def test_a_decision_is_not_applied_to_an_answer_that_changed(profile):
    add_decision(decided(profile, "teacher", 0, "-1"))
    regrade(profile)
    change(profile, "teacher", 0, honest=True, response=r"so \boxed{10}")
    assert check_decisions(profile).problems == ["teacher: q,0 is logged as adjudicated -1, the decisions say nobody"]


def test_what_cannot_be_read_is_a_finding_and_the_rest_is_checked(profile):
    (profile.logs / "teacher.csv").unlink()
    change(profile, "ai-KD", 1, correct=False)
    found = {check.what: check.problems for check in verify(profile)}
    assert {"teacher.csv is missing or has other bytes", "ai-KD.csv is missing or has other bytes"} == set(
        found["runs/ci/logs"]
    )
    assert any("ai-KD.csv: the verdict on q,1" in problem for problem in found["verdicts in runs/ci/logs"])
    assert "teacher.csv is missing" in found["decisions in runs/ci/logs"][0]


def summary_names(profile, model: str) -> None:
    path = profile.logs / "summary.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("base-KD,", f"{model},", 1), encoding="utf-8")


def manifest_names(profile, model: str) -> None:
    manifest = manifest_of(profile)
    manifest["models"][model] = manifest["models"]["base-KD"]
    write_json(profile.logs / "manifest.json", manifest)


MISSING = {
    "a model of the summary": (lambda p: summary_names(p, "new-KD"), "new-KD has no log"),
    "a student of the lineage": (lambda p: manifest_names(p, "new-KD"), "new-KD has no log"),
    "a row of the summary": (lambda p: summary_names(p, "new-KD"), "base-KD is not in summary.csv"),
    "a log": (lambda p: (p.logs / "ai-KD.csv").unlink(), "ai-KD has no log"),
    "a table": (lambda p: (p.logs / "audit.csv").unlink(), "audit.csv is missing"),
    "who made a log": (lambda p: shutil.copy(p.logs / "ai-KD.csv", p.logs / "x.csv"), "x has a log and no lineage"),
}


@pytest.mark.parametrize("remove, said", MISSING.values(), ids=MISSING)
def test_what_is_missing_is_found(remove, said, profile):
    assert check_models(profile).problems == []
    remove(profile)
    assert said in check_models(profile).problems


def test_a_file_that_no_manifest_names_is_found(profile):
    (profile.logs / "notes").mkdir()
    (profile.logs / "notes" / "a.txt").write_text("a")
    (profile.logs / ".control.csv.1.tmp").write_text("left by a kill")
    assert check_outputs(profile.logs / MANIFEST).problems == ["notes/a.txt is named by no manifest"]


def test_inputs_that_were_edited_in_the_manifest_are_named(profile):
    manifest = manifest_of(profile)
    manifest["inputs"]["students"]["base-KD"] = "def"
    (profile.logs / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert check_outputs(profile.logs / "manifest.json").problems == ["the inputs in the manifest were edited"]


def test_a_hash_of_answers_that_was_edited_in_the_manifest_is_named(profile):
    regrade(profile)
    manifest = read_json(profile.logs / MANIFEST)
    manifest["answers_sha256"]["ai-KD"] = "0" * 64
    write_json(profile.logs / MANIFEST, manifest)
    assert check_verdicts(profile.logs).problems == ["manifest.json has another hash of ai-KD.csv's answers"]


@pytest.mark.parametrize("name", ["contrasts.csv", "accuracies.csv", "extractors.csv", "seeds.csv"])
def test_verify_names_a_table_that_does_not_follow_from_the_logs(profile, name):
    """The manifest's hash is mended too, so that only the recomputation can tell."""
    path, manifest = profile.logs / name, profile.logs / MANIFEST
    regrade(profile)
    path.write_text(path.read_text(encoding="utf-8") + "control,made up\n", encoding="utf-8")
    facts = read_json(manifest)
    facts["outputs"][name] = hash_file(path)
    write_json(manifest, facts)
    found = {check.what: check.problems for check in verify(profile)}
    assert found["tables in runs/ci/logs"] == [f"{name} is missing or does not follow from the logs"]


def test_a_passing_verify_ends_with_one_line_that_says_so(profile, monkeypatch):
    regrade(profile)
    write_text(profile.logs / "report.html", "page")
    monkeypatch.setattr("primekd.report.html.render", lambda _: "page")
    checks = verify(profile)
    assert not [check for check in checks if check.problems or check.fix]
    assert summary(checks).startswith(f"ok   all is well: {len(checks)} checks of files against their hashes")


def test_every_finding_ends_with_what_to_do_and_that_mends_it(profile):
    (profile.logs / "report.html").write_text("x")
    change(profile, "ai-KD", 1, correct=False)
    (profile.runs / "answers" / "control").mkdir(parents=True)
    (profile.runs / "answers" / "control" / MANIFEST).write_text("{}")
    done = CliRunner().invoke(app, ["verify", "--profile", "ci"])
    assert done.exit_code == 1
    said = done.stdout.splitlines()
    for number, line in enumerate(said):
        if line.startswith("FAIL ") and line != said[-1]:
            behind = next(one for one in said[number + 1 :] if not one.startswith("       "))
            assert behind.startswith("    -> "), line
    assert "    -> Delete runs/ci/logs and run `primekd assess --profile ci`: whole answers are kept." in said
    assert "    -> `primekd report --profile ci` writes it." in said
    assert [line for line in said if line.startswith("    -> Delete runs/ci/answers/control and run `primekd run")]
    assert re.fullmatch(r"FAIL \d of \d+ checks: do what stands behind each arrow, then run this again\.", said[-1])


def test_each_kind_of_result_has_its_own_way_back(profile):
    published = _fix(load_profile("pocket").of_published(), "tables in logs/pocket")
    assert published.startswith("`git checkout logs/pocket` brings the files back; `primekd publish --profile pocket`")
    assert _fix(profile, "tables in runs/ci/logs").startswith("Delete runs/ci/logs and run `primekd assess")
    assert _fix(profile, "inputs of logs/published").startswith("`git checkout logs/published`")
    assert "prepare-teacher" in _fix(load_profile("pocket"), "models/teachers/pocket")
    assert "primekd distill NAME --profile ci" in _fix(profile, "lineage")
