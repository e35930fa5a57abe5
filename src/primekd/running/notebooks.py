"""Runs a notebook unattended: typed parameters in, an executed copy and its HTML out."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from primekd.foundation import MANIFEST, UserError, write_manifest
from primekd.foundation.storage import hash_file, now, project_root, relative_name, write_text

START_TIMEOUT = 300  # seconds; kernels that start side by side on few cores are slow


def require_parameters_tag(notebook, path: Path) -> None:
    """Raises UserError if no code cell has the tag `parameters`: papermill only warns, and runs the defaults."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = sum("parameters" in cell.metadata.get("tags", []) for cell in cells)
    if tagged != 1:
        raise UserError(f"{relative_name(path)} must have exactly one code cell tagged `parameters`, not {tagged}.")


def execute(source: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Executes `source` from its own folder; writes `output` (.ipynb) and the HTML beside it. Raises UserError if the
    notebook has no parameters cell, or a cell failed. The copy up to the failing cell is kept as
    `<output>.failed.ipynb`; an earlier good copy stays."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    from primekd.report.notebook_page import notebook_page

    source, output = Path(source).resolve(), Path(output).resolve()
    try:
        require_parameters_tag(nbformat.read(source, as_version=4), source)
    except (OSError, nbformat.reader.NotJSONError) as error:
        raise UserError(f"{relative_name(source)} is not there or is no notebook.") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    failed, start = output.with_suffix(".failed.ipynb"), now()
    # Kernels of one IPYTHONDIR share a history file and lock each other out; sockets in a folder need no free ports.
    # They lie beside the connection file, and their paths have at most 107 characters.
    short = None if len(tempfile.gettempdir()) < 80 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="primekd-", dir=short) as folder:
        os.environ |= {"IPYTHONDIR": folder, "PRIMEKD_STDERR": f"/proc/{os.getpid()}/fd/2"}
        os.environ.setdefault("PRIMEKD_ROOT", str(project_root()))
        copy = Path(folder) / output.name
        try:
            papermill.execute_notebook(
                str(source), str(copy), parameters=parameters, cwd=str(source.parent), kernel_name="python3",
                progress_bar=False, start_timeout=START_TIMEOUT, stderr_file=sys.stderr, stdout_file=sys.stdout,
                extra_arguments=["--log-level=CRITICAL"],  # not what a kernel that is stopped says of its sockets
                config=Config({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/k.json"}}),
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            write_text(failed, without_machine(copy))
            reason = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
            where = f"{relative_name(source)} stopped in cell {error.exec_count}"
            raise UserError(f"{where}: {reason} The copy is {relative_name(failed)}.") from error
        except DeadKernelError as error:
            fix = "free some and run the same command again; it goes on where it stopped"
            what = f"{relative_name(source)}: its kernel was killed, most often for want of memory"
            raise UserError(f"{what}: {fix}.") from error
        write_text(output, without_machine(copy))
    failed.unlink(missing_ok=True)
    page = output.with_suffix(".html")
    write_text(page, notebook_page(output))
    inputs = {"notebook": relative_name(source), "sha256": hash_file(source), "parameters": parameters}
    name = f"{output.stem}.{MANIFEST}"
    write_manifest(output.parent, "notebook", inputs, [output, page], name, start=start, end=now())


def without_machine(path: Path) -> str:
    """An executed copy's text without papermill's notes of where files lay: it is passed on."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for key in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(key, None)
    return nbformat.writes(notebook)


def normal_form(text: str) -> str:
    """A notebook as it stands in git, so that a diff shows what a person changed: nothing that running it leaves, and
    tags as the only metadata. Cells keep their ids: numbered anew, all behind an inserted one would change. Without
    nbformat, whose import takes a second for each notebook that git asks for. Raises ValueError for another format."""
    notebook = json.loads(text)
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4 or "cells" not in notebook:
        raise ValueError("this is no notebook of format 4")
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def note_in_git(os_path: str, **_: object) -> None:
    """Jupyter's hook behind each save: `git status` judges by size before it asks the filter, so git is told that a
    notebook whose normal form did not change is unchanged. Nothing is staged."""
    git = ["git", "-C", str(Path(os_path).parent)]
    with contextlib.suppress(OSError):  # no git
        if subprocess.run([*git, "diff", "--quiet", "--", os_path], capture_output=True).returncode == 0:
            subprocess.run([*git, "add", "--update", "--", os_path], capture_output=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["clean"]:  # set up in git by `make setup`
        given = sys.stdin.buffer.read()
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):  # what is none stays as it is
            given = normal_form(given.decode()).encode()
        sys.stdout.buffer.write(given)
    elif sys.argv[1:]:  # a filter that says nothing and ends well would make git keep an empty notebook
        raise SystemExit(f"{sys.argv[1]} is no command: leave it out, or say clean.")
    else:  # `make notebooks`
        for notebook_path in sorted(project_root().glob("*/*.ipynb")):
            before = notebook_path.read_text(encoding="utf-8")
            if (after := normal_form(before)) != before:
                write_text(notebook_path, after)
                print(f"{relative_name(notebook_path)}: brought into its normal form")
