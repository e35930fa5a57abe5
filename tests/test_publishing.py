"""This machine's logs beside the published ones: whether they say the same, and how they take their place."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from report_logs import make_checkout, write_manifest, write_study
from typer.testing import CliRunner

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import read_log, read_logs, write_log
from primekd.cli import app
from primekd.config import Profile, load_profile
from primekd.foundation import output_root, read_json, write_json, write_text
from primekd.foundation import write_manifest as write_stage_manifest
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_records
from primekd.report.html import write_report
from primekd.running import publishing
from primekd.running.publishing import exchange, made_anew, publish, refuse_unpublishable
from primekd.running.reproduction import _treated, _unlike, compare_with_published, verdict_text
from primekd.running.run import open_study as run_open_study
from primekd.running.verify_run import Check, check_outputs
from primekd.studies.results import logs_in_use
from primekd.studies.study import find_study

TEXTS = tuple(f"so it is 18, whatever {n} says" for n in range(12))
README = "# Title\n\n<!-- primekd:begin results ci -->\n<!-- primekd:end -->\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A checkout whose profile ci has the same logs of this machine's own and published, with reports."""
    with pytest.MonkeyPatch.context() as patch:
        folder = make_checkout(tmp_path_factory.mktemp("checkout"), patch)
        profile = write_study(load_profile("ci"), TEXTS)
        shutil.copytree(profile.logs, profile.published)
        write_report(profile)
        write_report(profile.of_published())
    return folder


@pytest.fixture
def checkout(written: Path, tmp_path: Path, monkeypatch) -> Path:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    monkeypatch.delenv("PRIMEKD_OUTPUT")
    return tmp_path


@pytest.fixture
def profile(checkout: Path) -> Profile:
    return load_profile("ci")


def answer_anew(profile: Profile, model: str, right: dict[int, bool], text: str | None = None) -> None:
    """Other verdicts of some of a model's answers (and another text, where given), with tables that follow."""
    path = profile.logs / f"{model}.csv"
    rows = read_log(path)
    for place, verdict in right.items():
        rows[place] = replace(rows[place], correct=verdict, response=text or rows[place].response)
    write_log(path, rows)
    add_up(profile)


def add_up(profile: Profile) -> None:
    tables = find_study(profile).tables(
        profile, read_logs(profile), read_records(profile.logs / "held-out.csv", HeldOutRow)
    )
    for name in ("summary.csv", "contrasts.csv"):
        write_text(profile.logs / name, tables[name])


# Does a run say the same?


def test_the_same_logs_are_reproduced_and_the_verdict_is_kept(profile):
    found = compare_with_published(profile)
    assert (found["verdict"], found["reasons"]) == ("reproduced", [])
    assert all(m["inside"] and m["published_inside"] and m["same_texts"] == 1 for m in found["models"])
    assert found["largest"]["kl"]["difference"] == 0 and found["sentences"]["only_here"] == []
    assert json.loads(json.dumps(found)) == read_json(profile.logs / "reproduction.json")
    lines = verdict_text(found).splitlines()
    assert lines[0] == "Compared with the published logs: logs/ci (commit fffffff, A <cpu>)."
    assert lines[-2] == "reproduced." and "95 % interval" in lines[-1] and len(lines) == len(found["models"]) + 6
    assert all(len(line) <= 120 for line in lines[:-1])


def test_what_a_server_or_a_template_was_told_is_a_setting_too(profile):
    manifest = read_json(profile.logs / "manifest.json")
    manifest["config"]["student"]["template_arguments"] = {"enable_thinking": False}
    write_json(profile.logs / "manifest.json", manifest)
    found = compare_with_published(profile)
    assert found["verdict"] == "not compared" and "student.template_arguments" in found["reasons"][0]


def test_answers_that_change_within_the_intervals_are_counted_and_forgiven(profile):
    rows = read_log(profile.logs / "ai-KD.csv")
    answer_anew(profile, "ai-KD", {0: not rows[0].correct}, "it is 19, not 18")
    found = compare_with_published(profile)
    (model,) = [m for m in found["models"] if m["model"] == "ai-KD"]
    assert found["verdict"] == "reproduced"
    assert model["same_verdicts"] == model["same_texts"] == pytest.approx(11 / 12)
    assert model["accuracy"][0] != model["published_accuracy"][0]


def test_an_accuracy_outside_the_other_interval_is_not_reproduced(profile):
    answer_anew(profile, "teacher", dict.fromkeys(range(12), True))
    found = compare_with_published(profile)
    (model,) = [m for m in found["models"] if m["model"] == "teacher"]
    assert found["verdict"] == "not reproduced" and found["reasons"] == ["teacher has another accuracy"]
    assert not model["inside"] and "not reproduced: teacher has another accuracy." in verdict_text(found)


def test_an_accuracy_has_to_lie_inside_both_intervals(profile):
    """0 of 12 lies outside the interval of 2 of 12, which lies inside that of 0 of 12."""
    answer_anew(profile.of_published(), "teacher", {n: n < 2 for n in range(12)})
    answer_anew(profile, "teacher", dict.fromkeys(range(12), False))
    found = compare_with_published(profile)
    (model,) = [m for m in found["models"] if m["model"] == "teacher"]
    assert model["inside"] != model["published_inside"] and found["reasons"] == ["teacher has another accuracy"]


def test_another_sentence_is_named_on_both_sides(profile):
    answer_anew(profile.of_published(), "ai-KD", {})  # tables of the same making on both sides
    held_out = [
        replace(row, kl=row.kl / 1e6) if row.model == "teacher-KD" else row
        for row in read_records(profile.logs / "held-out.csv", HeldOutRow)
    ]
    tables = find_study(profile).tables(profile, read_logs(profile), held_out)
    for name in ("summary.csv", "contrasts.csv"):
        write_text(profile.logs / name, tables[name])
    found = compare_with_published(profile)
    assert found["largest"]["kl"]["model"] == "teacher-KD" and found["largest"]["kl"]["difference"] < 0
    only = found["sentences"]["only_here"], found["sentences"]["only_published"]
    assert found["verdict"] == "not reproduced" and all(only), found["sentences"]
    said = verdict_text(found)
    assert f"Only here: {only[0][0]}" in said and f"Only published: {only[1][0]}" in said


def edit_manifest(profile: Profile, change) -> None:
    manifest = read_json(profile.logs / "manifest.json")
    change(manifest)
    write_json(profile.logs / "manifest.json", manifest)


UNLIKE = {
    "settings": (lambda p: edit_manifest(p, lambda m: m["config"]["train"].update(epochs=99)), "train.epochs"),
    "items": (lambda p: write_log(p.logs / "control.csv", read_log(p.logs / "control.csv")[:-1]), "test items"),
    "no logs": (lambda p: shutil.rmtree(p.logs), "no logs of ci in logs/ci"),
    "older columns": (lambda p: write_text(p.logs / "contrasts.csv", "model\nx\n"), "contrasts.csv has no column"),
}


@pytest.mark.parametrize(("change", "said"), UNLIKE.values(), ids=UNLIKE)
def test_what_cannot_be_compared_is_not_called_wrong(profile, change, said):
    change(profile.of_published())
    found = compare_with_published(profile)
    assert found["verdict"] == "not compared" and said in found["reasons"][0] and said in verdict_text(found)


def test_what_a_profile_says_of_the_machine_is_no_other_setting(profile):
    edit_manifest(profile.of_published(), lambda m: m["config"].update(description="old", launch={"processes": 8}))
    edit_manifest(profile.of_published(), lambda m: m["config"]["assess"].pop("engine"))
    assert compare_with_published(profile)["verdict"] == "reproduced"


def test_the_verb_says_it_and_fails_where_it_is_not_reproduced(profile):
    done = CliRunner().invoke(app, ["verify", "--profile", "ci", "--against-published", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["verdict"] == "reproduced"
    answer_anew(profile, "teacher", dict.fromkeys(range(12), True))
    done = CliRunner().invoke(app, ["verify", "--profile", "ci", "--against-published"])
    assert done.exit_code == 1 and "not reproduced: teacher" in done.stdout
    shutil.rmtree(profile.logs)
    done = CliRunner().invoke(app, ["verify", "--profile", "ci", "--against-published"])
    assert done.exit_code == 1 and done.stderr.startswith("primekd: runs/ci/logs has no logs: run `primekd run")


# Which logs a verb works on.


def test_verbs_work_on_this_machines_logs_where_there_are_any(profile):
    assert logs_in_use(profile).logs == profile.logs
    assert logs_in_use(profile, published=True).logs == profile.published
    shutil.rmtree(profile.logs)
    assert logs_in_use(profile).logs == profile.published
    shutil.rmtree(profile.published)
    with pytest.raises(UserError, match="no logs of ci in runs/ci/logs and logs/ci: run `primekd run --profile ci`"):
        logs_in_use(profile)


def test_no_test_sees_the_runs_of_the_checkout():
    assert not output_root().is_relative_to(ROOT)


def status() -> str:
    done = CliRunner().invoke(app, ["status", "--profile", "ci"])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_arms_that_were_treated_otherwise_do_not_compare():
    """What an arm does to its student is no key of a profile. A key that came later is no difference."""

    def unlike(one: dict, other: dict) -> list[str]:
        return _unlike(_treated({"inputs": one}), _treated({"inputs": other}))

    cut = {"treatment": {"cut_tokens": 9}}
    assert unlike(cut, {}) == unlike(cut, {"treatment": {"keep_right": True}}) == ["treatment"]
    assert unlike({"loss": {"divergence_scale": 0.5}}, {"loss": {}}) == ["loss.divergence_scale"]
    written = {"on_policy": {"share": 1.0, "max_new_tokens": 24}}
    assert unlike(written, {}) == ["writes"] and unlike({"deviations": ["no-shuffle"]}, {}) == ["deviations"]
    assert not unlike(written, {"on_policy": {"share": 1.0, "max_new_tokens": None}, "max_new_tokens": 24})
    primed = [{"signals": {"spec": {"priming": text}}} for text in ("a", "b")]
    assert _unlike(*map(_treated, primed)) == ["priming"]


def test_status_says_which_logs_there_are_and_how_they_differ(profile):
    said = status()
    assert "This machine's logs: runs/ci/logs, of 2026-01-02T03:10:00+00:00, commit fffffff\n" in said
    assert "Published logs: logs/ci, of 2026-01-02T03:10:00+00:00, commit fffffff: the same\n" in said
    assert "Not compared yet: `primekd verify --against-published --profile ci`" in said
    compare_with_published(profile)
    assert "This machine's logs against the published ones: reproduced" in status()
    edit_manifest(profile.of_published(), lambda m: m.update(end="2025-01-01T00:00:00+00:00"))
    assert ": other, and older\nNot compared yet" in status(), "what was found is of other logs"
    edit_manifest(profile.of_published(), lambda m: m["config"]["train"].update(epochs=99))
    assert "older; they were made with other settings: train.epochs" in status()
    shutil.copytree(profile.published, profile.logs, dirs_exist_ok=True)
    edit_manifest(profile, lambda m: m["config"]["train"].update(shuffle=False))
    assert "they were made with other settings: train.shuffle" in status(), "left out of a profile where it is as usual"
    edit_manifest(profile, lambda m: m["config"]["train"].pop("shuffle"))
    assert "made with other settings" not in status()
    shutil.rmtree(profile.logs)
    assert "This machine's logs: none in runs/ci/logs\nPublished logs: logs/ci, of" in status()


# Publishing.


@pytest.fixture
def good(profile, checkout: Path, monkeypatch) -> Profile:
    """The same where this machine's logs differ, and nothing but their bytes is looked at."""
    write_text(profile.logs / "audit.csv", "model,n,errors,rate,rate_low,rate_high\nall,4,1,0.25,0.1,0.5\n")
    write_manifest(profile)
    (checkout / "README.md").write_text(README)
    monkeypatch.setattr(publishing, "check_logs", lambda p: [check_outputs(p.logs / "manifest.json")])
    monkeypatch.setattr(publishing, "refuse_unpublishable", lambda p, mixed: None)  # there is no run behind these logs
    return profile


def invoke(*words: str):
    return CliRunner().invoke(app, ["publish", "--profile", "ci", *words])


def test_publishing_moves_the_logs_and_writes_the_report_and_the_tables(good, checkout):
    write_text(good.published / "gone.csv", "of a model that is no more")
    compare_with_published(good)
    done = invoke()
    assert done.exit_code == 0, done.output
    assert "logs/ci now holds the" in done.stdout and "README.md: results ci written anew" in done.stdout
    names = {p.relative_to(good.logs).as_posix() for p in good.logs.rglob("*") if p.is_file()}
    published = {p.relative_to(good.published).as_posix() for p in good.published.rglob("*") if p.is_file()}
    assert published == names - {"reproduction.json"}
    assert all((good.published / n).read_bytes() == (good.logs / n).read_bytes() for n in names if n.endswith("csv"))
    report = (good.published / "report.html").read_text(encoding="utf-8")
    assert "logs/ci" in report and "runs/ci" not in report
    assert [p.name for p in (checkout / "logs").iterdir()] == ["ci"], "nothing is left beside it"
    assert compare_with_published(good)["verdict"] == "reproduced"


def test_nothing_is_published_that_not_one_commit_made(good, monkeypatch):
    monkeypatch.setattr(publishing, "refuse_unpublishable", refuse_unpublishable)
    done = invoke()
    assert done.exit_code == 1 and "runs/ci/signals/base-KD has no manifest: run `primekd run" in done.stderr


def test_nothing_is_published_that_does_not_verify(good, checkout):
    write_text(good.logs / "teacher.csv", "other bytes")
    before = {p: p.read_bytes() for p in (checkout / "logs").rglob("*") if p.is_file()}
    done = invoke()
    assert done.exit_code == 1
    assert "runs/ci/logs is not published: runs/ci/logs: teacher.csv is missing or has other bytes." in done.stderr
    assert before == {p: p.read_bytes() for p in (checkout / "logs").rglob("*") if p.is_file()}
    assert (checkout / "README.md").read_text() == README


def test_nothing_is_published_beside_published_study_logs_that_do_not_verify(good, monkeypatch):
    monkeypatch.setattr(publishing, "check_published", lambda: [Check("inputs of logs/published", ["rules changed"])])
    assert "inputs of logs/published: rules changed" in invoke().stderr


def test_what_makes_results_anew_are_commands_that_are_taken(profile):
    run = "primekd run --profile ci"
    said = made_anew(profile, ["distill", "inside"])
    assert said == f"`{run} --force-stage distill`, then `{run} --only inside --force-stage inside`"
    assert made_anew(profile, ["inside"]) == f"`{run} --only inside --force-stage inside`"
    assert run_open_study(profile, ["inside"], "inside") and run_open_study(profile, ["distill"])


def test_nothing_is_published_with_a_student_that_was_altered(good):
    folder = good.runs / "students" / "ai-KD"
    write_text(folder / "adapter.txt", "new")
    write_stage_manifest(folder, "adapter", {}, [folder / "adapter.txt"])
    write_text(folder / "adapter.txt", "altered")
    done = invoke()
    assert done.exit_code == 1 and "students/ai-KD: adapter.txt is missing or has other bytes" in done.stderr


def test_nothing_is_published_while_a_run_is_under_way(good):
    with publishing.only_one(good):
        assert "Another run" in invoke().stderr


def test_a_profile_that_is_called_like_another_folder_of_logs_is_not_published(good):
    named = good.model_copy(update={"name": "engines"})
    shutil.copytree(good.logs, named.logs)
    with pytest.raises(UserError, match="logs/engines is no profile's folder"):
        publish(named)


@pytest.mark.parametrize("place", ["copying", "renaming"])
def test_what_stops_publishing_leaves_the_old_logs(good, checkout, monkeypatch, place):
    before = {p: p.read_bytes() for p in (checkout / "logs").rglob("*") if p.is_file()}
    real = Path.rename

    def rename(self, target):
        if self.name == ".ci.new":
            raise OSError("stopped")
        return real(self, target)

    def copy(source, target):
        raise OSError("stopped")

    monkeypatch.setattr(*((Path, "rename", rename) if place == "renaming" else (shutil, "copyfile", copy)))
    with pytest.raises(OSError, match="stopped"):
        exchange(good.logs, good.published, ["teacher.csv", "manifest.json"])
    assert before == {p: p.read_bytes() for p in (checkout / "logs").rglob("*") if p.is_file()}


def test_logs_that_a_killed_call_had_put_aside_come_back_first(good, checkout, monkeypatch):
    good.published.rename(checkout / "logs" / ".ci.old")
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError("stopped")))
    with pytest.raises(OSError, match="stopped"):
        exchange(good.logs, good.published, ["teacher.csv"])
    assert (good.published / "teacher.csv").is_file() and not (checkout / "logs" / ".ci.old").exists()
    good.published.rename(checkout / "logs" / ".ci.old")
    write_text(good.logs / "teacher.csv", "other bytes")
    assert "is not published" in invoke().stderr and (good.published / "teacher.csv").is_file(), "refused, and mended"
