"""What a notebook's kernel shows and leaves: a mistake is a sentence, a bar a line, and nothing lies beside it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from primekd.foundation.errors import UserError
from primekd.running.notebooks import execute


def notebook(folder: Path, *cells: str) -> Path:
    parameters = nbformat.v4.new_code_cell("profile = 'ci'", metadata={"tags": ["parameters"]})
    made = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, cells)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(exist_ok=True)
    nbformat.write(made, folder / "it.ipynb")
    return folder / "it.ipynb"


def test_a_mistake_of_the_user_is_one_sentence(tmp_path):
    source = notebook(tmp_path / "a", "from primekd.config import load_profile\n\nload_profile('nothing')")
    with pytest.raises(UserError, match="stopped in cell 2: No profile 'nothing'"):
        execute(source, tmp_path / "out.ipynb", {})
    (output,) = nbformat.read(tmp_path / "out.failed.ipynb", as_version=4).cells[-1].outputs
    assert output.ename == "UserError" and len(output.traceback) == 1 and "\n" not in output.traceback[0]
    assert output.traceback[0].startswith("No profile 'nothing'")


def test_a_bar_is_one_line_that_a_saved_copy_has_at_its_end(tmp_path):
    work = f"""from pathlib import Path
from types import SimpleNamespace
import os, time
from primekd.foundation.progress import Progress
with Progress(SimpleNamespace(runs=Path({str(tmp_path)!r})), "capture x", 5, "item") as bar:
    for _ in range(5):
        time.sleep(0.2)
        bar.advance()
print(os.environ["HF_HUB_DISABLE_PROGRESS_BARS"])"""
    execute(notebook(tmp_path / "a", work), tmp_path / "out.ipynb", {})
    bar, printed = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs
    assert bar.output_type == "display_data" and bar.data["text/plain"].startswith("capture x: 5 of 5 items, 00:0")
    assert printed.name == "stdout" and printed.text == "1\n"
    assert (tmp_path / "progress" / "capture x.json").is_file()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_a_killed_notebook_leaves_nothing_beside_it_and_no_kernel(kind, tmp_path):
    started = tmp_path / "started"
    work = f"import os, pathlib, time\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(300)"
    source = notebook(tmp_path / "a", work)
    command = "import sys\nfrom primekd.running.notebooks import execute\nexecute(sys.argv[1], sys.argv[2], {})"
    words = [sys.executable, "-c", command, str(source), str(tmp_path / "out.ipynb")]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait(lambda: started.is_file() and started.read_text())
    kernel = psutil.Process(int(started.read_text()))
    process.send_signal(kind)
    assert process.wait(60) != 0
    wait(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    assert [path.name for path in source.parent.iterdir()] == ["it.ipynb"]
    assert not list(Path(os.getcwd()).glob("kernel-ipc*"))


def wait(happened, most: float = 60.0):
    end = time.monotonic() + most
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
