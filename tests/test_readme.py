"""The README tells the truth: its numbers come from the logs, its commands exist, its files are there."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from primekd.cli import app
from primekd.report.readme import update_readme

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_number_in_a_generated_block_is_what_the_logs_say(page):
    assert update_readme(page, check=True) == []


def test_the_results_block_is_filled():
    block = re.search(r"<!-- primekd:begin results pocket -->\n(.*?)<!-- primekd:end -->", README, re.S)
    assert block and "control" in block[1]


def test_every_verb_in_the_readme_exists_and_has_help_with_an_example():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    mentioned = set(re.findall(r"(?:^    |`)primekd ([a-z][a-z-]+)", README, re.M))
    assert mentioned <= verbs
    for verb in verbs:
        said = CliRunner().invoke(app, [verb, "--help"])
        assert said.exit_code == 0 and f"primekd {verb}" in said.output, verb


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert (
        set(re.findall(r"`make ([a-z]+)`|^ +make ([a-z]+)", README, re.M))
        and {first or second for first, second in re.findall(r"`make ([a-z]+)`|^ +make ([a-z]+)", README, re.M)}
        <= targets
    )


def test_every_file_in_the_layout_is_there():
    for name in ("configs", "workflow/Snakefile", "src/primekd", "models", "assessment/assess.ipynb", "logs/pocket"):
        assert (ROOT / name).exists(), name
