"""Which code makes a result: found from the imports, changed by code alone, said where it is not today's."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from primekd.foundation import write_manifest
from primekd.foundation.code_identity import closure
from primekd.foundation.errors import UserError
from primekd.foundation.manifests import read_manifest
from primekd.foundation.stage_code import STAGES, mixed, note_session, other_code, say_kept, stage_code, stands

FILES = {
    "__init__": '"""The package."""\n',
    "stage": (
        '"""A stage."""\nfrom typing import TYPE_CHECKING\n\nimport torch\n\nfrom pack.parts import double\n\n'
        "if TYPE_CHECKING:\n    from pack.typing_only import Nothing\n\n\n"
        'def run(x):\n    """Runs."""\n    from pack import late\n    import importlib\n\n'
        '    importlib.import_module("pack.named")\n    return late.half(double(x))  # a comment\n'
    ),
    "parts/__init__": (
        '"""Passes names on."""\n\nfrom pack.parts.other import triple\nfrom pack.parts.sums import double\n\n'
        '__all__ = ["double", "triple"]\n'
    ),
    "parts/sums": "from . import numbers as n\n\n\ndef double(x):\n    return n.TWO * x\n",
    "parts/numbers": "TWO = 2\n",
    "parts/other": "def triple(x):\n    return 3 * x\n",
    "late": "from scipy import stats\n\n\ndef half(x):\n    return x / 2\n",
    "named": "X = 1\n",
    "typing_only": "import vllm\n",
    "unused": "Y = 1\n",
}


@pytest.fixture
def package(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "pack" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "pack"


def code_of(package):
    return closure(["pack.stage"], source=package)


def edit(package, name: str, old: str, new: str) -> None:
    path = package / f"{name}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_the_code_of_a_stage_is_what_it_imports_and_nothing_else(package):
    found = code_of(package)
    used = ["late", "named", "parts.numbers", "parts.sums", "stage"]
    assert list(found.modules) == [f"pack.{name}" for name in used]
    assert found.foreign == {"torch", "scipy", "importlib", "typing"}
    stopped = closure(["pack.stage"], ["pack.parts"], package)
    assert list(stopped.modules) == ["pack.late", "pack.named", "pack.stage"]


CODE = {
    "a number": ("parts/numbers", "2", "3"),
    "an operator": ("late", "x / 2", "x // 2"),
    "a default": ("stage", "def run(x)", "def run(x=1)"),
    "another name of the same module": ("stage", "import double", "import triple as double"),
    "another library": ("late", "from scipy", "from numpy"),
}


@pytest.mark.parametrize("name, old, new", CODE.values(), ids=CODE)
def test_an_edit_of_the_code_changes_its_hash(name, old, new, package):
    before = code_of(package)
    edit(package, name, old, new)
    after = code_of(package)
    assert after.sha256 != before.sha256
    assert after.modules[f"pack.{name.replace('/', '.')}"] != before.modules[f"pack.{name.replace('/', '.')}"]


NO_CODE = {
    "a comment": ("stage", "# a comment", "# another, longer one"),
    "a docstring": ("stage", '"""Runs."""', '"""Does what it should.\n\n    And more.\n    """'),
    "a module's docstring": ("stage", '"""A stage."""\n', ""),
    "formatting": ("stage", "return late.half(double(x))", "return late.half(\n        double(x)\n    )"),
    "what type checkers alone read": ("stage", "from pack.typing_only import Nothing", "from pack import unused"),
    "a module that is not used": ("parts/other", "3", "4"),
    "where a name is taken from": ("stage", "from pack.parts import double", "from pack.parts.sums import double"),
}


@pytest.mark.parametrize("name, old, new", NO_CODE.values(), ids=NO_CODE)
def test_what_is_no_code_changes_nothing(name, old, new, package):
    before = code_of(package).sha256
    edit(package, name, old, new)
    assert code_of(package).sha256 == before


def test_moving_and_renaming_files_changes_nothing(package):
    before = code_of(package).sha256
    (package / "deep").mkdir()
    (package / "deep" / "__init__.py").write_text('"""Another package."""\n')
    (package / "parts" / "sums.py").rename(package / "deep" / "adding.py")
    (package / "parts" / "numbers.py").rename(package / "deep" / "constants.py")
    (package / "late.py").rename(package / "deep" / "halves.py")
    edit(package, "deep/adding", "from . import numbers as n", "from pack.deep import constants as n")
    edit(package, "parts/__init__", "pack.parts.sums", "pack.deep.adding")
    edit(package, "stage", "from pack import late", "from pack.deep import halves as late")
    after = code_of(package)
    assert "pack.deep.adding" in after.modules and after.sha256 == before


def test_a_module_that_cannot_be_read_or_is_not_there_is_one_sentence(package):
    (package / "late.py").write_text("def half(x:\n")
    with pytest.raises(UserError, match=r"late\.py cannot be read"):
        code_of(package)
    with pytest.raises(UserError, match="pack.gone is no module"):
        closure(["pack.gone"], source=package)


def test_imports_in_a_circle_end(package):
    (package / "named.py").write_text("from pack import stage\n\nX = stage\n")
    assert "pack.named" in code_of(package).modules


# The project's own stages.


def test_a_module_that_is_edited_while_a_process_runs_is_not_the_code_that_it_runs(tmp_path):
    """In a process of its own, on a copy of the project."""
    shutil.copytree(ROOT / "src" / "primekd", tmp_path / "primekd", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import pathlib, primekd, primekd.models.chat\nfrom primekd.foundation.stage_code import stage_code\n"
        "module = pathlib.Path(primekd.__file__).parent / 'models' / 'chat.py'\n"
        "before, was = stage_code('answers'), stage_code('held-out')\n"
        "module.write_text(module.read_text() + '\\nEDITED = 1\\n')\n"
        "assert stage_code('answers') == before, 'it is imported'\nprint(before['sha256'])\n"
        "late = module.parents[1] / 'losses' / 'chunked.py'\nlate.write_text(late.read_text() + '\\nEDITED = 1\\n')\n"
        "assert stage_code('held-out') != was, 'it is imported later, as it is now'"
    )
    settings = os.environ | {"PYTHONPATH": str(tmp_path), "PRIMEKD_ROOT": str(tmp_path)}
    hashes = [subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, check=True)
              for _ in range(2)]  # fmt: skip
    assert len({done.stdout for done in hashes}) == 2, "the next process runs what was edited, and says so"


USES = {
    "losses/chunked": ({"distill", "held-out", "train-teacher"}, {"capture", "answers", "grading", "assess"}),
    "models/chat": ({"capture", "distill", "answers", "held-out"}, {"grading"}),
    "training/trainer": ({"distill", "train-teacher"}, {"capture", "answers", "held-out", "grading"}),
    "teachers/transformers_engine": ({"capture", "answers", "held-out", "distill"}, {"grading"}),
    "teachers/llamacpp_engine": (set(), set(STAGES)),  # the profile's engine is another
    "signals/codecs": ({"capture", "distill", "held-out"}, {"grading"}),
    "assessment/reading/published": ({"grading", "assess", "published-study"}, {"answers", "distill", "capture"}),
    "statistics/inference": ({"grading"}, {"answers", "held-out", "distill", "capture"}),
}


@pytest.mark.parametrize("name", USES)
def test_an_edit_is_noticed_by_the_stages_that_use_the_module(name, ci, edited):
    def hashes():
        return {stage: stage_code(stage, ci)["sha256"] for stage in STAGES}

    before, (noticed, not_noticed) = hashes(), USES[name]
    edited(name)
    changed = {stage for stage, digest in hashes().items() if digest != before[stage]}
    assert noticed <= changed and not changed & not_noticed


def test_the_packages_are_those_that_the_stage_computes_with(ci):
    packages = {stage: set(stage_code(stage, ci)["packages"]) for stage in STAGES}
    assert {"torch", "transformers", "tokenizers", "safetensors", "peft", "accelerate", "numpy"} <= packages["distill"]
    assert {"scipy", "statsmodels"} <= packages["grading"] and "torch" not in packages["grading"]
    assert "llama-cpp-python" not in packages["capture"]
    llama = ci.model_copy(update={"teacher": ci.teacher.model_copy(update={"engine": "llamacpp"})})
    assert "llama-cpp-python" in stage_code("capture", llama)["packages"]


def test_what_differs_is_said_with_commit_modules_and_versions(ci, edited):
    was = stage_code("distill", ci)
    was["packages"] = was["packages"] | {"torch": "2.12"}
    record = {"environment": {"git": {"commit": "abc1234" + "0" * 33, "dirty": False}}, "code": was}
    edited("losses/slopes")
    today = stage_code("distill", ci)
    said = other_code(record, today)
    assert said == f"commit abc1234; changed since: losses.slopes; torch 2.12 -> {today['packages']['torch']}"
    assert other_code(record | {"code": today}, today) == ""
    assert "not recorded" in other_code({"environment": {}}, today)


def test_a_result_of_other_code_is_kept_and_said_and_made_anew_when_asked(output, ci, edited, capsys):
    folder, code = output / "made", stage_code("distill", ci)
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    write_manifest(folder, "thing", {"x": 1}, [folder / "a.txt"], code=code)
    assert stands(folder, {"x": 1}, code, "stage", "all is there.")
    assert capsys.readouterr().out == "stage: nothing to do, all is there.\n"
    edited("losses/slopes")
    assert stands(folder, {"x": 1}, stage_code("distill", ci), "stage", "all is there.")
    said = capsys.readouterr().out
    assert "made by other code (commit" in said and "changed since: losses.slopes): kept" in said
    assert not stands(folder, {"x": 1}, code, "stage", since=float("inf"))
    assert not stands(folder, {"x": 2}, code, "stage")


def test_parts_of_different_code_are_listed_and_of_one_are_not(tmp_path, capsys):
    one, other = ({"git": None, "code": {"sha256": digest * 64, "packages": {}}} for digest in "ab")
    assert mixed({"1": one, "2": one}) == []
    groups = mixed({"1": one, "2": other, "3": one})
    assert [group["parts"] for group in groups] == [["1", "3"], ["2"]] and groups[1]["code"] == other["code"]
    say_kept("stage", {"code": one["code"], "mixed": groups}, {**one["code"], "modules": {}})
    assert "parts of it were made by different code" in capsys.readouterr().out
    path = tmp_path / "sessions.json"
    assert [s["code"] for s in note_session(path, {"n": 1}, goes_on=False)] == [{"n": 1}]
    assert [s["code"] for s in note_session(path, {"n": 2}, goes_on=True)] == [{"n": 1}, {"n": 2}]
    path.write_text("{")
    first, _ = note_session(path, {"n": 3}, goes_on=True)
    assert first == {}, "who did the work so far is not known"


def test_a_manifest_that_vouches_for_nothing_is_neither_written_nor_read(output):
    with pytest.raises(ValueError, match="without outputs"):
        write_manifest(output, "thing", {}, [])
    (output / "a").write_text("a")
    write_manifest(output, "thing", {}, [output / "a"])
    assert read_manifest(output / "manifest.json")["outputs"]


@pytest.mark.parametrize(
    "before, after",
    [
        (
            "from pack.late import half\nfrom pack.swap import other",
            "from pack.swap import half, other",
        ),
        ("from pack import late as m\nimport pack.swap", "from pack import swap as m\nimport pack.late"),
    ],
)
def test_a_name_that_comes_from_another_module_is_other_code(before, after, package):
    (package / "swap.py").write_text("def half(x):\n    return x // 2\n\n\ndef other(x):\n    return x\n")
    rest = "\nimport pack.late\nimport pack.swap\n\n\ndef run(x):\n    return x\n"
    hashes = []
    for imports in (before, after):
        (package / "stage.py").write_text(imports + rest)
        hashes.append(closure(["pack.stage"], source=package).sha256)
    assert hashes[0] != hashes[1]
