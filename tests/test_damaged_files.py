"""Damaged files: whatever lies there instead, every verb that reads it ends in one sentence that names the file."""

import json
import shutil
from pathlib import Path

import pytest
from report_logs import make_checkout, write_study
from typer.testing import CliRunner

from primekd.assessment.answers import read_block
from primekd.assessment.decisions.decisions import decisions_file
from primekd.cli import app
from primekd.config import load_profile
from primekd.foundation import now, write_json
from primekd.foundation.errors import UserError
from primekd.foundation.progress import Progress, progress_path, read_state
from primekd.models import built
from primekd.models.download import read_record, record_path
from primekd.report.figures import _read_curve

COLUMNS = ["--response-column", "response", "--gold-column", "gold"]
LOG, TABLE, DECISIONS = "runs/ci/logs/ai-KD.csv", "runs/ci/logs/summary.csv", "assessment/adjudications.csv"
READERS = {
    LOG: (["compare", "runs/ci/logs/control.csv", LOG], ["grade", LOG, *COLUMNS], ["adjudicate", "--list"], ["report"]),
    TABLE: (["adjudicate", "--list"], ["report"]),
    DECISIONS: (["adjudicate", "--list"],),
    "runs/ci/logs/contrasts.csv": (["report"],),
    "runs/ci/progress/capture ai-KD.json": (["status"], ["status", "--json"]),
}
WHOLE = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "binary": bytes(range(128, 256)),
    "zeros": b"\0" * 40,
    "brackets without end": b"[" * 100_000,
    "5,000 digits": b'{"done": ' + b"9" * 5000 + b"}",
    "cut short": None,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A checkout with the logs of a study, a decision file and a stage under way."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        make_checkout(folder, patch)
        profile = write_study(load_profile("ci"))
        with Progress(profile, "capture ai-KD", 4, "item"):
            pass
        decisions_file().parent.mkdir()
        decisions_file().write_text("profile,model,id\n", encoding="utf-8")
    return folder


@pytest.fixture
def checkout(written, tmp_path, monkeypatch) -> Path:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    monkeypatch.delenv("PRIMEKD_OUTPUT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(path: str, words: list[str]) -> str:
    """What a verb says that must end in a sentence about a file."""
    profile = [] if words[0] in ("compare", "grade") else ["--profile", "ci"]
    done = CliRunner().invoke(app, [*words, *profile])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), (words, done.output, done.exception)
    (said,) = done.stderr.splitlines()
    assert said.startswith("primekd: ") and Path(path).name in said and len(said) < 700 and said.isprintable(), said
    return said


# An empty file of decisions holds none.
DAMAGED = [(path, damage) for path in READERS for damage in WHOLE if (path, damage) != (DECISIONS, "empty")]


@pytest.mark.parametrize("path, damage", DAMAGED)
def test_another_file_in_its_place_is_one_sentence(path, damage, checkout):
    content = WHOLE[damage]
    if content is None:
        whole = (checkout / path).read_bytes()
        content = whole[: whole.rindex(b",")]
    (checkout / path).write_bytes(content)
    for words in READERS[path]:
        refused(path, words)


WRONG = ("x", "nan", "1e999", "-1e999", "1e9999999999", "1/0", "-5", "9" * 5000, "\x1b[31m")
CELLS = {
    TABLE: ("accuracy", "n", "kl"),
    "runs/ci/logs/contrasts.csv": ("p_holm", "only_model", "mde"),
}


@pytest.mark.parametrize("path, column", [(path, column) for path, columns in CELLS.items() for column in columns])
def test_a_cell_that_cannot_be_is_one_sentence_with_its_row(path, column, checkout):
    head, first, *rest = (checkout / path).read_text(encoding="utf-8").split("\n")
    place = head.split(",").index(column)
    for text in WRONG if column in ("n", "only_model") else set(WRONG) - {"-5"}:
        cells = first.split(",")
        cells[place] = text
        (checkout / path).write_text("\n".join([head, ",".join(cells), *rest]), encoding="utf-8")
        assert f"row 2: {column}" in refused(path, ["report"])


@pytest.mark.parametrize("text", [*WRONG[:5], "[]", ""])
def test_a_damaged_loss_curve_is_one_sentence(text, tmp_path):
    for rows in (f"{text},0.5,\n", f"1,{text or 'x'},\n", f"1,0.5,{text or 'x'}\n", "1,0.5\n"):
        (tmp_path / "m.csv").write_text("step,loss,eval_loss\n1,0.7,0.8\n" + rows)
        with pytest.raises(UserError, match="m.csv row 3"):
            _read_curve(tmp_path / "m.csv")


@pytest.mark.parametrize("model", ["../x", "9" * 5000, "\x1b[31m", "a\\b", ""])
def test_a_model_that_names_no_file_is_one_sentence(model, checkout):
    path = checkout / TABLE
    path.write_text(path.read_text(encoding="utf-8").replace("ai-KD,", f"{model},", 1), encoding="utf-8")
    refused(TABLE, ["adjudicate", "--list"])


def test_ids_of_others_do_not_drive_the_terminal(checkout):
    path = checkout / LOG
    path.write_text(path.read_text(encoding="utf-8").replace("item-0", "\x1b[31mitem-0", 1), encoding="utf-8")
    done = CliRunner().invoke(app, ["compare", "runs/ci/logs/control.csv", LOG])
    assert "2 ids stand in one alone" in done.stderr and "\x1b" not in done.stderr


STATE = {"stage": "s", "done": 1, "total": 2, "unit": "item", "state": "running", "host": "", "pid": 1}
ODD = [
    {key: value}
    for key in (*STATE, "started", "updated")
    for value in (None, True, -1, 1.5, float("nan"), [], {}, 10**30)
    if not (key in ("host", "pid") and value is None)
]
ODD += [{"done": "x"}, {"state": "idle"}, {"started": "yesterday"}, {"updated": "2026-01-01T00:00:00"}, {"pid": 2**31}]


def test_a_damaged_progress_file_is_one_sentence_and_a_run_goes_on_without_it(ci, output):
    path = progress_path(ci, "s")
    whole = STATE | {"started": now(), "updated": now()}
    write_json(path, whole)
    assert read_state(path).done == 1 and read_state(path.with_name("none.json")) is None
    for change in ODD:
        write_json(path, whole | change)
        assert read_fails(path), change
    for key in set(whole) - {"host", "pid"}:
        write_json(path, {name: value for name, value in whole.items() if name != key})
        assert read_fails(path)


def read_fails(path: Path) -> bool:
    try:
        read_state(path)
    except UserError as error:
        return path.name in str(error)
    return False


RECORD = {
    "repository": "a/b", "revision": "main", "commit": "c" * 40, "gated": False, "licence": "mit", "verified": "",
    "files": {"config.json": {"size": 1, "sha256": "a" * 64, "digest": "b" * 40}},
}  # fmt: skip
FILE = RECORD["files"]["config.json"]


def test_a_damaged_record_of_a_download_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    path = record_path("a/b", "c" * 40)
    whole = RECORD | {"verified": now()}
    write_json(path, whole)
    assert read_record("a/b", "c" * 40).files["config.json"].size == 1
    damaged: list = [[], None, 7, *({k: v for k, v in whole.items() if k != key} for key in whole)]
    damaged += [whole | {"verified": "2026-01-01"}, whole | {"commit": "../x"}, whole | {"files": {"../x": FILE}}]
    damaged += [whole | {"files": {"x": FILE | change}} for change in ({"size": -1}, {"size": True}, {"sha256": "z"})]
    for value in damaged:
        write_json(path, value)
        with pytest.raises(UserError, match=rf"a--b@{'c' * 40}\.json is damaged"):
            read_record("a/b", "c" * 40)


def test_a_built_folder_with_a_damaged_source_is_built_anew(tmp_path):
    def build(folder: Path) -> dict:
        (folder / "weights").write_bytes(b"w")
        return {"of": "test"}

    for text in ("", "[]", "null", '{"bytes": []}', '{"bytes": {"weights": "x"}}', '{"bytes": {}}', "[" * 10**5, "\0"):
        folder = built.build_once(tmp_path / "built", build)
        (folder / "source.json").write_text(text)
        assert json.loads((built.build_once(folder, build) / "source.json").read_text())["bytes"] == {"weights": 1}


def test_a_damaged_block_of_answers_is_no_block(tmp_path):
    path = tmp_path / "block-00000.json"
    row = {"id": "q", "ids": [1, 2], "truncated": False}
    whole = {"inputs_sha256": "a", "rows_sha256": "b", "rows": [row]}
    write_json(path, whole)
    assert read_block(path)["rows"][0]["ids"] == [1, 2]
    damaged: list = [[], None, {}, whole | {"rows": None}, whole | {"rows": [[]]}, whole | {"rows_sha256": None}]
    damaged += [whole | {"rows": [row | change]} for change in ({"ids": [-1]}, {"ids": [1.5]}, {"truncated": 1})]
    for value in damaged:
        write_json(path, value)
        with pytest.raises(UserError, match="block-00000.json is damaged"):
            read_block(path)
