"""Notebooks in real kernels: what a user sees of progress and of mistakes, and what is left of one that is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from jupyter_server.services.contents.filemanager import FileContentsManager
from traitlets.config import Config

from primekd.foundation import provenance
from primekd.foundation.progress import bar_text
from primekd.running.notebooks import normal_form

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
PROGRESS = """\
import time
from primekd.config import load_profile
from primekd.foundation import provenance
from primekd.foundation.progress import Progress
with Progress(load_profile("ci"), "capture base-KD", 4, "item") as bar:
    for _ in range(4):
        time.sleep(0.6)
        bar.advance()"""
MISTAKE = """\
from primekd.foundation.errors import UserError
try:
    1 / 0
except ZeroDivisionError as error:
    raise UserError("There are no <b>signals</b>: capture them.") from error"""


def write_notebook(folder: Path, *cells: str) -> Path:
    first = nbformat.v4.new_code_cell("profile = 'ci'", metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *rest], metadata=KERNEL), folder / "source.ipynb")
    return folder / "source.ipynb"


def start(source: Path, output: Path, **environment: str) -> subprocess.Popen:
    """`primekd notebook`, with its temporary files in output/tmp."""
    (output / "tmp").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PRIMEKD_OUTPUT": str(output), "TMPDIR": str(output / "tmp")} | environment
    command = [sys.executable, "-m", "primekd.cli", "notebook", str(source), str(output / "copy.ipynb")]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def outputs(path: Path) -> list[dict]:
    return [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]


def test_a_saved_copy_holds_the_last_state_of_a_bar_and_whoever_runs_it_sees_all_of_it(tmp_path: Path):
    process = start(write_notebook(tmp_path, PROGRESS), tmp_path / "out")
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0 and "capture base-KD:   0%|" in said and "| 4/4 [" in said, said
    [shown] = outputs(tmp_path / "out/copy.ipynb")
    assert shown.output_type == "display_data", "plain text, not the red of stderr"
    assert shown.data["text/plain"].startswith("capture base-KD: 4 of 4 items, 0:0")
    assert shown.data["text/html"] == f"<div>{shown.data['text/plain']}</div>"


def test_a_mistake_of_the_user_is_one_sentence_in_the_copy_and_on_the_terminal(tmp_path: Path):
    process = start(write_notebook(tmp_path, MISTAKE), tmp_path / "out")
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1 and "Traceback" not in said
    assert "source.ipynb stopped in cell" in said and "There are no <b>signals</b>: capture them. The copy is" in said
    [error] = [o for o in outputs(tmp_path / "out/copy.failed.ipynb") if o.output_type == "error"]
    assert error.traceback == ["primekd: There are no <b>signals</b>: capture them."]
    assert not (tmp_path / "out/copy.ipynb").exists()


def test_in_a_notebook_that_a_person_runs_bars_move_in_one_line_and_libraries_have_none(tmp_path: Path, monkeypatch):
    from jupyter_client.manager import start_new_kernel

    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "PRIMEKD_STDERR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(tmp_path))
    bars = "\nfrom transformers.utils import logging\nfrom datasets import are_progress_bars_disabled as off\n"
    bars += "assert not logging.is_progress_bar_enabled() and off()"
    manager, client = start_new_kernel(kernel_name="python3")
    messages = []
    try:
        reply = client.execute_interactive(PROGRESS + bars, timeout=100, output_hook=messages.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    first, *later = [m["content"] for m in messages if m["msg_type"] in ("display_data", "update_display_data")]
    assert not [m for m in messages if m["msg_type"] == "stream"]
    assert {m["transient"]["display_id"] for m in later} == {first["transient"]["display_id"]} and len(later) > 2
    assert "left" in later[1]["data"]["text/plain"] and '<progress max="4" value=' in later[1]["data"]["text/html"]


def test_a_bar_says_what_is_done_and_how_long_it_takes():
    state = {"prefix": "fetch <x>", "n": 64, "total": 128, "initial": 0, "elapsed": 41.0, "unit": "item"}
    state["unit_scale"] = False
    assert bar_text(state, False) == "fetch <x>: 64 of 128 items, 0:41, about 0:41 left"
    assert bar_text(state | {"n": 128, "elapsed": 683}, True) == "fetch <x>: 128 of 128 items, 11:23"
    assert bar_text(state | {"total": None}, False) == "fetch <x>: 64 items, 0:41"
    resumed = state | {"unit": "B", "unit_scale": True, "n": 3e9, "total": 4e9, "initial": 2e9}
    assert bar_text(resumed, False) == "fetch <x>: 3.00G of 4.00GB, 0:41, about 0:41 left"


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_notebook_leaves_nothing_beside_it_and_no_kernel(tmp_path: Path, kind):
    folder, started = tmp_path / "beside", tmp_path / "started"
    folder.mkdir()
    source = write_notebook(
        folder, f"import os, time\nopen({str(started)!r}, 'w').write(f'{{os.getpid()}}\\n')", "time.sleep(99)"
    )
    process = start(source, tmp_path / "out", TMPDIR="/tmp")
    kernel, end = 0, time.monotonic() + 60
    while not kernel and time.monotonic() < end:
        time.sleep(0.1)
        kernel = int(started.read_text().strip() or 0) if started.is_file() else 0
    held = [Path(f"/proc/{kernel}/cwd").resolve(), *Path("/tmp").glob("primekd-*/k-ipc-1")]
    assert held[0] == folder and len(held) > 1, "the kernel's sockets lie in the temporary folder"
    working = Path(
        dict(x.split("=", 1) for x in Path(f"/proc/{kernel}/environ").read_text().split("\0") if "=" in x)["IPYTHONDIR"]
    )
    assert working.is_dir()
    process.send_signal(kind)
    _, said = process.communicate(timeout=30)
    while Path(f"/proc/{kernel}").exists() and time.monotonic() < end + 30:
        time.sleep(0.1)
    assert not Path(f"/proc/{kernel}").exists() and os.listdir(folder) == ["source.ipynb"]
    if kind == signal.SIGTERM:
        assert said == "primekd: stopped; run the same command again to go on.\n" and not working.exists()
    shutil.rmtree(working, ignore_errors=True)


def test_the_sockets_fit_however_long_the_temporary_folder_is_called(tmp_path: Path):
    long = tmp_path / ("n" * 100)
    long.mkdir()
    process = start(write_notebook(tmp_path, "1 + 1"), tmp_path / "out", TMPDIR=str(long))
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_notebook_that_was_opened_run_and_saved_is_no_change_for_git(tmp_path: Path, monkeypatch):
    (tmp_path / "base-KD").mkdir()
    for name in (".gitattributes", ".gitignore", "base-KD/distill.ipynb"):
        shutil.copy(ROOT / name, tmp_path / name)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    path = tmp_path / "base-KD/distill.ipynb"
    clean = path.read_text(encoding="utf-8")
    notebook = json.loads(clean)
    notebook["metadata"]["language_info"] |= {"version": "3.99", "pygments_lexer": "ipython3"}
    notebook["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    notebook["cells"][1] |= {"execution_count": 7, "outputs": [nbformat.v4.new_output("stream", text="é\n1")]}
    notebook["cells"][1]["metadata"]["collapsed"] = True
    path.write_text(json.dumps(notebook, indent=2), encoding="utf-8")
    assert git(tmp_path, "status", "--porcelain") == " M base-KD/distill.ipynb\n", "no filter: git as it is"
    make = [
        "make",
        "--silent",
        "--file",
        str(ROOT / "Makefile"),
        "notebook-filter",
        f"BIN={Path(sys.executable).parent}",
    ]
    subprocess.run(make, cwd=tmp_path, check=True)
    hook = tmp_path / ".venv/etc/jupyter/jupyter_server_config.json"
    saved = FileContentsManager(root_dir=str(tmp_path), config=Config(json.loads(hook.read_text())))
    monkeypatch.setattr(provenance, "project_root", lambda: tmp_path)
    assert git(tmp_path, "diff") == "" and not provenance.git_state()["dirty"]
    saved.save({"type": "notebook", "content": notebook}, "base-KD/distill.ipynb")
    assert git(tmp_path, "status", "--porcelain") == ""
    assert '"execution_count": 7' in path.read_text(encoding="utf-8"), "the outputs stay in the file"
    notebook["cells"][0]["source"] = ["# A person wrote this"]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert '+    "# A person wrote this"\n' in git(tmp_path, "diff") and '"collapsed"' not in git(tmp_path, "diff")
    conflict = "<<<<<<< ours\n" + clean
    path.write_text(conflict, encoding="utf-8")
    assert provenance.git_state()["dirty"]
    git(tmp_path, "add", "base-KD")
    assert git(tmp_path, "show", ":base-KD/distill.ipynb") == conflict, "what is no notebook stays as it is"


@pytest.mark.parametrize("text", ["[]", "{}", '{"nbformat": 3, "cells": []}', "no JSON"])
def test_what_is_no_notebook_has_no_normal_form(text):
    with pytest.raises(ValueError):
        normal_form(text)


def test_a_filter_of_another_version_fails_so_that_git_keeps_the_file():
    words = [sys.executable, "-m", "primekd.running.notebooks", "-"]
    done = subprocess.run(words, input=b"{}", capture_output=True, timeout=60)
    assert done.returncode and not done.stdout
