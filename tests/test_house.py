"""The shape of the library: packages only, imports that go one way, and a budget of lines."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

HOUSE = ROOT / "src" / "primekd"
# From the ground up: a package imports from those before it alone.
ORDER = (
    "foundation", "config", "tasks", "models", "teachers", "signals", "capture", "losses", "training", "assessment",
    "statistics", "studies", "report", "planning", "running", "cli",
)  # fmt: skip
# Lines at most.
BUDGET = {
    "": 33_040,
    "planning": 1_000,
    "studies/priming.py": 300,
    "studies/labels.py": 300,
    "studies/micro.py": 300,
    "studies/online.py": 300,
}


def imported(text: str) -> set[str]:
    """The packages of the project that a module's text imports from, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"relative import in line {node.lineno}")  # of no package in the order, and so refused
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"primekd.{alias.name}" for alias in node.names] if node.module == "primekd" else [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("primekd.")}
    return found


def backward(files: dict[str, str]) -> list[str]:
    """`module -> package` for every import that runs back up. `files`: path below the library's folder -> text."""
    return [
        f"{name} -> {package}"
        for name, text in files.items()
        for package in sorted(imported(text))
        if package not in ORDER or ORDER.index(package) > ORDER.index(Path(name).parts[0])
    ]


def test_at_the_root_there_are_packages_alone():
    assert sorted(p.name for p in HOUSE.iterdir() if p.name != "__pycache__") == sorted(["__init__.py", *ORDER])


def test_imports_go_one_way():
    files = {p.relative_to(HOUSE).as_posix(): p.read_text(encoding="utf-8") for p in HOUSE.rglob("*/*.py")}
    assert len(files) > 100 and not backward(files)


@pytest.mark.parametrize(
    "text",
    [
        "from primekd.report.html import render", "import primekd.cli", "def f():\n    from primekd import studies",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from primekd.running import run",
    ],
)  # fmt: skip
def test_an_arrow_that_runs_back_up_is_found(text):
    assert len(backward({"losses/slopes.py": text})) == 1 and not backward({"cli/pages.py": text})


@pytest.mark.parametrize("text", ["from ..report.html import render", "from . import plain"])
def test_a_relative_import_is_refused_wherever_it_goes(text):
    assert len(backward({"losses/slopes.py": text})) == len(backward({"cli/pages.py": text})) == 1


@pytest.mark.parametrize("package", ORDER)
def test_each_package_says_what_lives_there(package):
    said = ast.get_docstring(ast.parse((HOUSE / package / "__init__.py").read_text(encoding="utf-8")))
    assert said and len(said) > 80


@pytest.mark.parametrize("part", BUDGET)
def test_the_library_stays_small(part):
    path = HOUSE / part
    files = [path] if path.is_file() else path.rglob("*.py")
    lines = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in files)
    assert lines <= BUDGET[part], f"{part or 'src/primekd'} has {lines} lines"
