"""ERRANT's measure against its own commands, with a stand-in for the spaCy model, which no package index carries."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from primekd.assessment.logs import LogRow
from primekd.statistics.corrections import SPACY_MODEL, count_edits, f_score, no_errant, row_of

errant = pytest.importorskip("errant", reason="errant is not installed: pip install -r requirements-test.txt")
spacy = pytest.importorskip("spacy")
import errant_commands  # noqa: E402, F401 - registers the stand-in

# As asked, answered, gold.
SENTENCES = [
    ("She have two cat .", "She has two cats .", "She has two cats ."),
    ("He go to home yesterday", "He goes home yesterday .", "He went home yesterday ."),
    ("Nothing is wrong here .", "Nothing is wrong here .", "Nothing is wrong here ."),
    ("Nothing was wrong there .", "Everything was wrong there .", "Nothing was wrong there ."),
    ("The the teacher writed an long letter", "The teacher wrote a long letter .", "The teacher wrote a long letter ."),
    ("I doesn't knows it .", "I don't know it .", "I don't know it ."),
    ("A few word", "", "A few words"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder that spaCy loads as the model: tags and lemmas by simple rules, every word hanging on the first one."""
    nlp = spacy.blank("en")
    nlp.add_pipe("stand_in")
    folder = tmp_path_factory.mktemp("cwd") / SPACY_MODEL
    nlp.to_disk(folder)
    return folder


def commands_say(folder: Path, sentences) -> str:
    """What errant's own commands print. They load the model by its name, which is a folder where they run; the stand-in
    is registered first."""
    for name, place in (("orig", 0), ("hyp", 1), ("ref", 2)):
        (folder / name).write_text("".join(one[place] + "\n" for one in sentences))
    script = Path(__file__).with_name("errant_commands.py")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_counts_and_scores_are_those_of_errants_own_commands(model):
    said = commands_say(model.parent, SENTENCES)
    tp, fp, fn, precision, recall, f05 = re.search(r"(\d+)\t(\d+)\t(\d+)\t([\d.]+)\t([\d.]+)\t([\d.]+)", said).groups()
    annotator = errant.load("en", spacy.load(model))
    rows = [
        LogRow(f"en-test-{n}", asked, gold, answer, 3, False, answer or "-1", "whole", "", answer == gold)
        for n, (asked, answer, gold) in enumerate(SENTENCES)
    ]
    german = [LogRow("de-test-9", "Er geht", "Er geht.", "Er", 3, False, "Er", "whole", "", False)]
    row = row_of("student", rows + german, annotator, errant.__version__, SPACY_MODEL)
    assert (row.n, row.right, row.wrong, row.missing) == (len(rows), int(tp), int(fp), int(fn))
    assert int(tp) and int(fp) and int(fn)  # there is something of each
    assert [round(x, 4) for x in (row.precision, row.recall, row.f05)] == [float(x) for x in (precision, recall, f05)]


def test_an_answer_that_is_the_sentence_has_no_edit_and_one_that_is_gold_no_other(model):
    annotator = errant.load("en", spacy.load(model))
    asked, _, gold = SENTENCES[0]
    copied = count_edits(annotator, asked, asked, gold)
    assert copied[:2] == (0, 0) and copied[2] > 0
    assert f_score(count_edits(annotator, asked, gold, gold)) == (1.0, 1.0, 1.0)


def test_without_the_model_the_reason_is_named():
    if not spacy.util.is_package(SPACY_MODEL):
        assert (
            no_errant() == f"ERRANT's measure of English was not taken: the spaCy model {SPACY_MODEL} is not installed."
        )
