"""The README tells the truth: its numbers come from the logs, its commands exist, its files are there."""

import itertools
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from primekd.cli import app
from primekd.report.readme import update_readme
from primekd.report.results import read_results
from primekd.statistics.sentences import is_claimed
from primekd.studies.priming import STUDY

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
TEXTS = "\n".join(page.read_text() for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_number_in_a_generated_block_is_what_the_logs_say(page):
    assert update_readme(page, check=True) == []


def test_the_first_screen_has_the_question_the_commands_and_a_commit_in_every_row_that_was_measured():
    assert len(README.splitlines()) < 200
    question, commands, table = (
        README.index(t) for t in ("is *prompted* change", "make reproduce", "begin headline laptop")
    )
    assert question < commands < table < 1500
    block = re.search(r"<!-- primekd:begin headline laptop -->\n(.*?)<!-- primekd:end -->", README, re.S)[1]
    rows = [line for line in block.splitlines() if "(`" in line or "| `" in line]
    models = [row["model"] for row in read_results(ROOT / "logs" / "laptop").summary if "-seed" not in row["model"]]
    assert len(rows) == len(models) > 7 and all(re.search(r"\| [^|]*[0-9a-f]{7}[^|]* \|$", row) for row in rows)


def test_the_results_block_is_filled():
    for page, name in (
        ("results.md", "laptop"),
        ("results-pocket.md", "pocket"),
        ("results-pocket.md", "pocket-plain"),
    ):
        text = (ROOT / "docs" / page).read_text()
        block = re.search(rf"<!-- primekd:begin results {name} -->\n(.*?)<!-- primekd:end -->", text, re.S)
        assert block and "control" in block[1]


def test_the_result_to_be_expected_is_the_one_of_the_recipe_and_of_the_logs():
    page = " ".join((ROOT / "docs" / "profiles.md").read_text(encoding="utf-8").split())
    assert all(f"`{name}`: {said}" in page for name, said in STUDY.expected.items())
    planted, plain = (read_results(ROOT / "logs" / name).contrasts for name in ("pocket", "pocket-plain"))
    [found] = [row for row in planted if (row["model"], row["reference"]) == ("ai-KD", "base-KD")]
    assert is_claimed(found, "accuracy") and float(found["accuracy"]) < 0
    assert plain and not any(is_claimed(row, "accuracy") for row in plain)
    rows = {(row["model"], row["reference"]): row for row in read_results(ROOT / "logs" / "laptop").contrasts}
    for pair in itertools.product(("teacher-KD", "ai-KD", "reverseKL-KD"), ("base-KD", "placebo-KD")):
        assert not is_claimed(rows[pair], "accuracy")
        assert is_claimed(rows[pair], "nll_gold") and float(rows[pair]["nll_gold"]) < 0
    broken = rows["shuffled-KD", "base-KD"]
    assert float(broken["p_holm"]) < 0.05 and float(broken["accuracy"]) < -0.2


def test_every_profile_with_published_logs_says_what_it_is_known_to_give():
    block = re.search(r"primekd:begin expected ([^>]*?) -->", (ROOT / "docs" / "profiles.md").read_text())
    published = {path.parent.name for path in (ROOT / "logs").glob("*/summary.csv")}
    assert "pocket" in published and set(block[1].split()) == published


def test_the_layout_names_every_package_and_folder():
    layout = re.search(r"^## Layout\n(.*?)^## ", README, re.S | re.M)[1]
    folders, packages = layout.split("src/primekd/ ")
    named = re.findall(r"^      ([a-z]+)/ ", packages, re.M)
    found = [p.name for p in (ROOT / "src" / "primekd").iterdir() if (p / "__init__.py").is_file()]
    assert sorted(named) == sorted(found)
    beside = " ".join(re.findall(r"^    ((?:[\w-]+/ )+)", folders, re.M)).split()
    assert {"configs/", "base-KD/", "tests/"} <= set(beside) and all((ROOT / name).is_dir() for name in beside)


def test_every_page_is_on_the_start_page_and_every_link_leads_somewhere():
    start = (ROOT / "docs" / "README.md").read_text()
    assert all(f"]({page.name})" in start for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_verb_in_the_readme_exists_and_has_help_with_an_example():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    mentioned = set(re.findall(r"(?:^    |`)primekd ([a-z][a-z-]+)", TEXTS, re.M))
    assert mentioned <= verbs
    for verb in verbs:
        said = CliRunner().invoke(app, [verb, "--help"])
        assert said.exit_code == 0 and f"primekd {verb}" in said.output, verb


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert (
        set(re.findall(r"`make ([a-z-]+)`|^ +make ([a-z-]+)", TEXTS, re.M))
        and {first or second for first, second in re.findall(r"`make ([a-z-]+)`|^ +make ([a-z-]+)", TEXTS, re.M)}
        <= targets
    )


def test_every_file_in_the_layout_is_there():
    for name in ("configs", "workflow/Snakefile", "src/primekd", "models", "assessment/assess.ipynb", "logs/pocket"):
        assert (ROOT / name).exists(), name
