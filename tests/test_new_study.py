"""docs/new-study.md: the study on that page is put together as it says, run by the one command, and verified."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from primekd.config import load_profile
from primekd.foundation.errors import UserError
from primekd.studies.study import Study, find_study

PAGE = (ROOT / "docs" / "new-study.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^## \d\. .*?: `([\w./-]+)`.*?```\w+\n(.*?)```", re.M | re.S)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a run needs, with the page's files in it."""
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "primekd", tmp_path / "src" / "primekd", ignore=without)
    for name in ("configs", "workflow", "requirements.txt"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "models").symlink_to(ROOT / "models")
    found = dict(BLOCK.findall(PAGE))
    assert list(found) == ["src/primekd/studies/untaught.py", "workflow/untaught.smk", "configs/untaught.yaml"]
    for name, text in found.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_study_of_the_page_runs_and_its_logs_verify(checkout, warm_python):
    environment = os.environ | {
        "PYTHONPATH": str(checkout / "src"), "PRIMEKD_ROOT": str(checkout), "PRIMEKD_OUTPUT": str(checkout),
    }  # fmt: skip

    def primekd(*words: str) -> str:
        command = [warm_python, "-m", "primekd.cli", *words, "--profile", "untaught"]
        done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    said = primekd("run")
    logs = checkout / "runs" / "untaught" / "logs"
    assert "To be expected: none of the answers is right, as the model is a random one." in said
    assert "done: capture held-out (1 of 3 steps)" in said and (logs / "report.html").is_file()
    manifest = json.loads((logs / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest["answers_sha256"]) == ["control", "teacher"] and manifest["config"]["study"] == "untaught"
    assert not [line for line in primekd("verify").splitlines() if line and not line.startswith("ok")]
    assert "nothing to be done" in primekd("run")


@pytest.mark.parametrize("name", ["nowhere", "study", "results", "../priming", "priming.x"])
def test_a_profile_that_names_no_recipe_is_told_which_there_are(name):
    profile = load_profile("ci").model_copy(update={"study": name})
    with pytest.raises(UserError, match="set study to one of labels, micro, online, priming"):
        find_study(profile)


def test_every_recipe_says_what_it_asks_and_what_to_expect():
    study = find_study(load_profile("pocket"))
    assert (
        isinstance(study, Study)
        and study.question.endswith("?")
        and all(len(said) > 40 for said in study.expected.values())
    )
    assert (ROOT / "workflow" / study.rules).is_file()
