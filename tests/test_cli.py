"""What the command line says of itself."""

import re

import pytest
from conftest import ROOT
from typer.testing import CliRunner

import primekd
from primekd.cli import app
from primekd.foundation.tables import read_table


def test_version_and_commit_are_said():
    done = CliRunner().invoke(app, ["--version"])
    version = re.escape(primekd.__version__)
    assert done.exit_code == 0
    assert re.fullmatch(rf"primekd {version}( \(commit [0-9a-f]{{7}}(, changed since)?\))?\n", done.stdout)


@pytest.mark.parametrize("verb", [[], ["grade"], ["run"]])
def test_help_has_a_short_name_for_every_verb(verb):
    short, long = (CliRunner().invoke(app, [*verb, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0 and short.stdout == long.stdout and "Usage:" in short.stdout


def test_shells_can_complete_verbs():
    environment = {"_PRIMEKD_COMPLETE": "complete_bash", "COMP_WORDS": "primekd ver", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], env=environment, prog_name="primekd")
    assert done.stdout.split() == ["verify"]


def test_the_examples_of_show_are_items_of_the_default_profile():
    text = CliRunner().invoke(app, ["show", "--help"]).output
    ids = {row["id"] for row in read_table(ROOT / "logs" / "pocket" / "control.csv")}
    named = re.findall(r"primekd show (\S+)", text)
    assert len(named) == 2 and all(len([item for item in ids if item.startswith(name)]) == 1 for name in named)
