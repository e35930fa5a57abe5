"""The GPU check itself: all of it at tiny shapes on a CPU; it finds what is wrong and keeps what it found."""

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gpu")]

import pack  # noqa: E402
from check import exactness, machine, page  # noqa: E402
from check.findings import CUT, DONE, JSON, TABLE, Report, Row, markdown  # noqa: E402
from check.parts import PARTS  # noqa: E402
from check.sizes import SMALL  # noqa: E402

from primekd.config import refuse_namesake  # noqa: E402

RUN = ROOT / "tests" / "gpu" / "run.sh"


def run_check(out: Path, *words: str, python: str = "") -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": python}
    command = [RUN, "--tiny", "--out", out, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def test_every_part_runs_on_the_cpu_and_its_rows_hold(tmp_path, warm_python):
    done = run_check(tmp_path, python=warm_python)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = Report(tmp_path)
    assert {name: found["state"] for name, found in report.facts["parts"].items()} == dict.fromkeys(PARTS, DONE)
    assert not report.wrong() and all(report.rows(part) for part in PARTS)
    assert sum(row.holds is True for part in PARTS for row in report.rows(part)) > 35
    table = (tmp_path / TABLE).read_text(encoding="utf-8")
    assert "none: on the CPU" in table and "there is no GPU" in table
    assert report.row("study", "logs").value == 1


def test_what_is_cut_off_leaves_what_it_has(tmp_path, warm_python):
    done = run_check(tmp_path, "--parts", "kernel", "study", "alone", "--minutes", "0.3", python=warm_python)
    assert done.returncode == 1
    report = Report(tmp_path)
    states = {name: found["state"] for name, found in report.facts["parts"].items()}
    assert states == {"kernel": DONE, "study": CUT, "alone": CUT} and report.rows("kernel")
    assert "the whole time was over" in report.facts["parts"]["alone"]["why"]
    assert "| study | *the part: cut off* |" in (tmp_path / TABLE).read_text(encoding="utf-8")


def test_the_profile_of_the_check_is_no_others_namesake(tmp_path):
    """Verbs that write refuse such a file; on a GPU two processes capture and two train from it."""
    from check import study

    refuse_namesake(str(study.write_profile(tmp_path, ("ai-KD",))))


def test_a_loss_without_its_square_of_the_temperature_is_found(monkeypatch):
    from primekd.losses import chunked

    right, rows = chunked.chunked_loss, []

    def wrong(hidden, head, bias, targets, teacher, loss, tokens, **more):
        _, parts = right(hidden, head, bias, targets, teacher, loss, tokens, **more)
        alone = right(hidden, head, bias, targets, teacher, loss.model_copy(update={"alpha": 0.0}), tokens, **more)[0]
        return loss.alpha * parts["ce"] + (1 - loss.alpha) * alone / loss.temperature**2, parts

    monkeypatch.setattr(chunked, "chunked_loss", wrong)
    exactness.run(SMALL, lambda *found: rows.extend(found), None)
    for path in ("frozen head", "whole logits"):
        found = [row for row in rows if row.key.startswith(path)]
        assert found and not any(row.holds for row in found), path
        assert all("T 5.94" in row.note for row in found if "loss's" in row.what), path


def test_nan_never_holds_and_stays_the_worst_of_several():
    assert Row("a", "a", math.nan, most=1).holds is False and Row("a", "a", math.nan, least=1).holds is False
    assert Row("a", "a", None, most=1).holds is None and Row("a", "a", 3).holds is None
    found = [
        (f"T {n}", {"relative_error": value, "gradient_error": 0.0}) for n, value in enumerate((1e-9, math.nan, 1))
    ]
    row = exactness.rows_of("x", "float32", "full", found)[0]
    assert math.isnan(row.value) and row.holds is False and "T 1" in row.note


def test_a_table_escapes_what_it_is_told(tmp_path):
    report = Report(tmp_path)
    report.begin("losses")
    report.add("losses", Row("a", "a|b", None, note="<b>x</b>\n| y"))
    report.end("losses", DONE, seconds=1)
    assert "a\\|b" in markdown(report) and "&lt;b>x&lt;/b> \\| y" in markdown(report)


def test_hopes_are_no_errors_and_the_farthest_one_comes_first(tmp_path):
    report = Report(tmp_path)
    report.begin("steps")
    report.add("steps", Row("a", "near", 2, most=1.5, hope=True), Row("b", "far", 0.1, least=0.9, hope=True))
    report.add("steps", Row("c", "reached", 1, most=1.5, hope=True))
    assert not report.wrong() and [row.what for _, row in report.missed()] == ["far", "near"]


def test_the_page_is_what_was_found():
    assert subprocess.run([RUN, "page", "--check"], capture_output=True).returncode == 0
    assert (page.KEPT.is_file()) != (page.NOT_RUN in page.PAGE.read_text(encoding="utf-8"))


def test_the_page_takes_no_cpu_and_no_tiny_shapes(tmp_path):
    for facts in ({"machine": {"card": "none"}, "tiny": False}, {"machine": {"CUDA": "13.0"}, "tiny": True}):
        (tmp_path / JSON).write_text(json.dumps(facts | {"parts": {}}))
        with pytest.raises(SystemExit, match="stays as it is"):
            page.take(tmp_path / JSON)
    (tmp_path / JSON).write_text("[]")
    with pytest.raises(SystemExit, match="name the file"):
        page.take(tmp_path / JSON)
    rows = [{"key": "a", "what": "a step", "value": 9.0, "most": 1.5, "hope": True}]
    facts = {
        "machine": {"card": "H200", "CUDA": "13.0"},
        "tiny": False,
        "parts": {"steps": {"state": DONE, "rows": rows}},
    }
    (tmp_path / JSON).write_text(json.dumps(facts))
    assert page.take(tmp_path / JSON) == facts
    table = page.table(tmp_path / JSON)
    assert table.startswith("Farthest from what was hoped (steps): a step: 9") and "- card: H200" in table


def test_every_packed_wheel_has_a_pin_and_git_ignores_the_folder():
    pins = pack.pinned() | pack.UNPINNED
    assert not [name for name in (*pack.NEEDED, *pack.LIGER, *pack.TRL, *pack.LARGE) if pack.key(name) not in pins]
    assert subprocess.run(["git", "check-ignore", "-q", pack.PACKED / "x.whl"], cwd=ROOT).returncode == 0


def test_only_wheels_that_are_missing_and_work_are_taken(tmp_path, monkeypatch):
    # datasets without pandas would break transformers' Trainer.
    monkeypatch.setattr(pack, "PACKED", tmp_path)
    for name in (
        "peft-1-py3-none-any.whl",
        "pydantic_core-2-cp312-cp312-linux_x86_64.whl",
        "datasets-5-py3-none-any.whl",
    ):
        (tmp_path / name).touch()
    here = {"peft"}
    monkeypatch.setattr(pack, "installed", lambda name: name in here)
    assert [path.name.split("-")[0] for path in pack.missing()] == ["pydantic_core"]
    here |= {"pandas", "pyarrow"}
    assert [path.name.split("-")[0] for path in pack.missing()] == ["datasets", "pydantic_core"]


def test_wheels_are_unpacked_without_pip_and_those_for_another_python_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "PACKED", tmp_path)
    for name in ("good-1-py3-none-any.whl", "other-1-cp399-cp399-linux_x86_64.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr(f"{name[:4]}_module.py", "X = 1\n")
    pack.unpack(tmp_path / "site")
    said = capsys.readouterr().out
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["good_module.py"]
    assert "From tests/gpu/packed: good." in said and "left out: other. Pack again with --python 3." in said


def test_a_second_run_keeps_the_parts_of_the_same_code_and_machine(tmp_path):
    report = Report(tmp_path)
    report.open({"machine": {"card": "A"}, "tiny": True})
    report.begin("losses")
    report.end("losses", DONE)
    again = Report(tmp_path)
    again.open({"machine": {"card": "A"}, "tiny": True})
    assert list(Report(tmp_path).facts["parts"]) == ["losses"]
    again.open({"machine": {"card": "B"}, "tiny": True})
    assert not Report(tmp_path).facts["parts"]
    runs = [
        {"machine": {"card": "A"}, "parts": {"losses": 1, "steps": 1}},
        {"machine": {"card": "A"}, "parts": {"steps": 2}},
    ]
    assert page.merged(runs)["parts"] == {"losses": 1, "steps": 2}
    with pytest.raises(SystemExit, match="different cards"):
        page.merged([*runs, {"machine": {"card": "B"}, "parts": {}}])


def test_a_machine_without_git_says_which_code_it_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "STAMP", tmp_path / "packed.json")
    monkeypatch.setattr(machine, "git_commit", lambda: None)
    assert machine.commit() is None
    machine.STAMP.write_text(json.dumps({"commit": "abc", "code": machine.code_hash()}))
    assert machine.commit() == "abc"
    machine.STAMP.write_text(json.dumps({"commit": "abc", "code": "other"}))
    assert machine.commit() == "abc with changes"
