"""Every notebook, unattended, with the `ci` profile; and the rules they keep."""

import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from primekd.foundation.errors import UserError
from primekd.running.notebooks import normal_form, require_parameters_tag

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in ROOT.glob("*/*.ipynb") if p.parent.name not in {"runs", "logs"})
# The others' cells are the same but for their names, which a test looks at: to run them too takes as long again.
RUN = ("base-KD", "base-fine-tune")
STAGES = [p for p in NOTEBOOKS if p.parent.name in (*RUN, "assessment") and p.stem != "ablation"]  # it only reads logs
PYTHON = [sys.executable]


@pytest.fixture(scope="module", autouse=True)
def warm(warm_python):
    PYTHON.append(warm_python)


def primekd(*words: str, output: Path, ok: bool = True) -> str:
    """Runs the command line as a user would in a checkout; returns what it printed."""
    environment = os.environ | {"PRIMEKD_OUTPUT": "", "PRIMEKD_ROOT": str(output)}
    done = subprocess.run(
        [PYTHON[-1], "-m", "primekd.cli", *words], env=environment, capture_output=True, text=True, timeout=550
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def git(*words: str, folder: Path) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def make_checkout(folder: Path) -> Path:
    """A clone of this checkout, as git would make it; what it builds is shared."""
    notebooks = {path.parent.name for path in NOTEBOOKS}
    for name in (*notebooks, "configs", "docs", "logs", "workflow"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("README.md", "requirements.txt", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "src").symlink_to(ROOT / "src")
    (ROOT / "models" / "cache").mkdir(exist_ok=True)
    (folder / "models").mkdir()
    (folder / "models" / "cache").symlink_to(ROOT / "models" / "cache")
    with open(folder / "configs" / "ci.yaml", "a", encoding="utf-8") as file:
        file.write(f"arms: [{', '.join(RUN)}]\n")
    git("init", "--quiet", folder=folder)
    git("add", "--all", folder=folder)
    git("commit", "--quiet", "--message", "all", folder=folder)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, str]:
    """The whole study on the `ci` profile: its checkout and what it said."""
    output = make_checkout(tmp_path_factory.mktemp("study"))
    return output, primekd("run", "--profile", "ci", output=output)


def test_every_strategy_has_its_notebooks():
    names = {p.relative_to(ROOT).as_posix() for p in NOTEBOOKS}
    taught = [f"{s}/inference_gsm8k.ipynb" for s in ("base-KD", "teacher-KD", "ai-KD", "reverseKL-KD")]
    students = [f"{s}/distill.ipynb" for s in ("base-KD", "teacher-KD", "ai-KD", "reverseKL-KD", "base-fine-tune")]
    others = ["assessment/assess.ipynb", "inference/get_models.ipynb", "inference/inspect.ipynb"]
    others += ["inference/try_student.ipynb", "assessment/teacher.ipynb", "assessment/ablation.ipynb"]
    others += ["analysis/attention.ipynb", "analysis/confidence.ipynb"]
    labels = [f"api-KD/{name}.ipynb" for name in ("get_data", "label", "distill", "assess")]
    micro = [f"micro-KD/{name}.ipynb" for name in ("get_text", "pretrain", "distill", "assess")]
    online = [f"distil-llama/{name}.ipynb" for name in ("get_text", "train", "assess", "compare")]
    assert names == {*taught, *students, *others, *labels, *micro, *online}


@pytest.mark.parametrize("name", ["inference_gsm8k", "distill"])
def test_the_strategies_notebooks_differ_in_their_names_alone(name):
    cells = {
        strategy: [
            cell.source.replace(f"'{strategy}'", "'ai-KD'")
            for cell in nbformat.read(ROOT / strategy / f"{name}.ipynb", 4).cells if cell.cell_type == "code"
        ]
        for strategy in ("base-KD", "teacher-KD", "ai-KD", "reverseKL-KD")
    }  # fmt: skip
    assert len(cells["ai-KD"]) > 2 and all(found == cells["ai-KD"] for found in cells.values())


def test_inference_notebooks_say_which_engines_keep_rows_while_they_generate():
    from primekd.teachers import api, exllamav2_engine, llamacpp_engine, protocol, transformers_engine, vllm_engine

    ones = (transformers_engine.TransformersEngine, llamacpp_engine.LlamaCppEngine)
    twos = (api.ApiEngine, exllamav2_engine.ExLlamaV2Engine, vllm_engine.VllmEngine)
    second = protocol.TeacherEngine.generate_scored  # a second pass
    assert [e.generate_scored is second for e in (*ones, *twos)] == [False] * 2 + [True] * 3
    for strategy in ("base-KD", "teacher-KD", "ai-KD", "reverseKL-KD"):
        cells = nbformat.read(ROOT / strategy / "inference_gsm8k.ipynb", 4).cells
        [text] = [cell.source for cell in cells if "distribution at each token" in cell.source]
        assert "while it generates with transformers and llama.cpp, in a second pass over the response" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_notebooks_are_thin_and_stripped(path: Path):
    notebook = nbformat.read(path, as_version=4)
    require_parameters_tag(notebook, path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert len(cell.source.splitlines()) <= 10
            assert not any(line.lstrip().startswith(("def ", "class ")) for line in cell.source.splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_what_notebooks_import_is_there(path: Path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for node in (node for cell in cells for node in ast.walk(ast.parse(cell.source))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_notebooks_stand_in_their_normal_form(path: Path):
    text = path.read_text(encoding="utf-8")
    assert normal_form(text) == text, "run: make notebooks"


def test_what_running_a_notebook_leaves_is_not_in_its_normal_form():
    text = NOTEBOOKS[0].read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        cell.metadata["collapsed"] = True
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = 7, [nbformat.v4.new_output("stream", text="1")]
    notebook.metadata["language_info"]["version"] = "3.99"
    assert normal_form(nbformat.writes(notebook)) == text


def test_a_cell_more_changes_no_other_line_of_a_notebook():
    text = NOTEBOOKS[0].read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("Text.\nMore."))
    changed = list(difflib.ndiff(text.splitlines(), normal_form(nbformat.writes(notebook)).splitlines()))
    assert not [line for line in changed if line.startswith("- ")]
    assert '+     "Text.\\n",' in [line.rstrip() for line in changed], "one source line a line"


def test_make_notebooks_mends_a_notebook_and_leaves_the_others_alone(tmp_path: Path):
    for name in ("executed", "clean"):
        (tmp_path / name).mkdir()
        shutil.copy(NOTEBOOKS[0], tmp_path / name / "a.ipynb")
    executed, clean = (tmp_path / name / "a.ipynb" for name in ("executed", "clean"))
    executed.write_text(executed.read_text().replace('"execution_count": null', '"execution_count": 7'))
    before = clean.stat().st_mtime_ns
    command = [sys.executable, "-m", "primekd.running.notebooks"]
    environment = os.environ | {"PRIMEKD_OUTPUT": "", "PRIMEKD_ROOT": str(tmp_path)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said == "executed/a.ipynb: brought into its normal form\n" and clean.stat().st_mtime_ns == before
    assert executed.read_text() == clean.read_text() == NOTEBOOKS[0].read_text()


def test_a_notebook_without_the_parameters_tag_is_refused(tmp_path: Path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("profile = 'ci'")])
    with pytest.raises(UserError, match="parameters"):
        require_parameters_tag(notebook, tmp_path / "untagged.ipynb")


def test_one_command_executes_every_stage(study):
    output, said = study
    for source in STAGES:
        copy = output / "runs/ci/notebooks" / source.parent.name / source.name
        cells = [c for c in nbformat.read(copy, as_version=4).cells if c.cell_type == "code"]
        assert all(c.execution_count for c in cells), copy
        assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
        page = copy.with_suffix(".html").read_text()
        assert not re.search(r"<(script|link)[^>]*(src|href)=", page), "the page needs a network"
    assert "No distillation" in said and "report.html" in said


def test_executed_copies_hold_no_path_of_this_machine(study):
    output, _ = study
    for copy in (output / "runs/ci/notebooks").glob("*/*.ipynb"):
        text = copy.read_text()
        assert str(ROOT) not in text and str(output) not in text, copy


def test_executed_copies_show_tables_and_figures(study):
    done = study[0] / "runs/ci/notebooks"
    distilled = nbformat.read(done / "base-KD/distill.ipynb", as_version=4)
    assert any(
        "image/svg+xml" in output.get("data", {}) for cell in distilled.cells for output in cell.get("outputs", [])
    )
    page = (done / "base-KD/distill.html").read_text()
    assert 'src="data:image/svg+xml;base64,' in page and "<Figure" not in page
    page = (done / "assessment/assess.html").read_text()
    assert page.count("<th ") > 20 and "&lt;th" not in page and "NaN" not in page and "\\n" not in page
    for setting in ("learning_rate", "divergence", "lora.rank"):
        assert f"<dt>{setting}</dt>" in (done / "base-KD/distill.html").read_text()


def test_the_study_leaves_logs_that_verify(study):
    output, _ = study
    logs = output / "runs/ci/logs"
    students = list(RUN)
    for name in ["control", *students, "teacher"]:
        header, *rows = (logs / f"{name}.csv").read_text().split("\n", 1)
        assert header == ("id,question,gold,response,response_tokens,truncated,extracted,rule,span,correct,adjudicated")
        assert rows[0]
    manifest = json.loads((logs / "manifest.json").read_text())
    assert set(manifest["models"]) == set(students)
    assert (logs / "report.html").is_file()
    assert "FAIL" not in primekd("verify", "--profile", "ci", output=output)


def test_a_run_leaves_the_checkout_clean_and_reproduces_what_it_published(study):
    output, said = study
    assert "not compared: There are no logs of ci in logs/ci." in said
    assert git("status", "--porcelain", folder=output) == ""
    before = {p: p.stat().st_mtime_ns for p in (output / "runs/ci/notebooks").rglob("*.ipynb")}
    assert "logs/ci now holds the" in primekd("publish", "--profile", "ci", output=output)
    assert git("status", "--porcelain", folder=output).split() == ["??", "logs/ci/"], "no block of README is of ci"
    git("add", "--all", folder=output)
    said = primekd("run", "--profile", "ci", output=output)
    assert "nothing to be done" in said and "\nreproduced.\n" in said
    assert json.loads((output / "runs/ci/logs/reproduction.json").read_text())["verdict"] == "reproduced"
    assert git("diff", "--stat", folder=output) == ""
    assert before == {p: p.stat().st_mtime_ns for p in (output / "runs/ci/notebooks").rglob("*.ipynb")}


def test_a_lost_result_is_made_again_and_nothing_else(study):
    output = study[0]  # in its place: the jobs of a copy would all be planned anew, as rules hold absolute paths
    shard = output / "runs/ci/signals/base-KD/shard-00000.safetensors"
    bytes_before, student = shard.read_bytes(), output / "runs/ci/students/base-KD/manifest.json"
    student_before = student.stat().st_mtime_ns
    shutil.rmtree(output / "runs/ci/signals/base-KD")
    assert "nothing to be done" not in primekd("run", "--profile", "ci", output=output)
    assert shard.read_bytes() == bytes_before
    assert student.stat().st_mtime_ns == student_before, "the same signals give the same student: not trained again"


def test_verify_names_an_edited_verdict_and_an_altered_shard(study, tmp_path: Path):
    output = tmp_path / "copy"
    shutil.copytree(study[0], output, symlinks=True)
    log = output / "runs/ci/logs/base-KD.csv"
    text = log.read_text()
    log.write_text(text.replace(',0,""\n', ',1,""\n', 1))
    shard = output / "runs/ci/signals/base-KD/shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    said = primekd("verify", "--profile", "ci", output=output, ok=False)
    assert "base-KD.csv is missing or has other bytes" in said
    assert "does not follow from its answer" in said
    assert "shard-00001.safetensors was altered" in said


@pytest.mark.parametrize("name", ["get_models", "try_student"])
def test_the_inference_notebooks_run(study, tmp_path: Path, name: str):
    output, _ = study
    source, copy = ROOT / f"inference/{name}.ipynb", tmp_path / f"{name}.ipynb"
    primekd("notebook", str(source), str(copy), "--profile", "ci", output=output)
    assert copy.with_suffix(".html").is_file()
