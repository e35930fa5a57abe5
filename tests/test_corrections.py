"""Corrected sentences: edits and their measure, languages, what costs nothing, and how it is shown."""

from dataclasses import replace

import pytest

from primekd.assessment.logs import LogRow
from primekd.foundation import write_text
from primekd.foundation.tables import table_text
from primekd.report.corrections import correction_table, example_table, label_table, language_table, learning_figure
from primekd.report.shown import show_table
from primekd.statistics import corrections
from primekd.statistics.corrections import (
    ALL,
    COPY,
    FILE,
    LABELS,
    LabelRow,
    LanguageRow,
    edit_counts,
    edits,
    f_score,
    language_rows,
)
from primekd.statistics.inference import holm, mcnemar_exact
from primekd.tasks.grammar import TASK


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("She have cats.", "She have cats.", set()),
        ("She have cats.", "She has cats.", {(1, 2, ("has",))}),
        ("She has cat", "She has a cat.", {(2, 2, ("a",)), (3, 3, (".",))}),
        ("She has the the cat.", "She has the cat.", {(3, 4, ())}),
        ("lete arrive", "l'été arrive", {(0, 1, ("l'été",))}),
        ("a b c", "x y c", {(0, 1, ("x",)), (1, 2, ("y",))}),
        ("", "A.", {(0, 0, ("A", "."))}),
    ],
)
def test_an_edit_is_a_word_for_a_word_or_a_run_that_is_put_in_or_left_out(source, target, expected):
    found = edits(source, target)
    assert found == expected or source.startswith("She has the the")  # which of two equal words went is open
    assert len(found) == len(expected)


def test_f05_counts_edits_and_is_more_for_few_right_ones_than_for_many_wrong_ones():
    assert edit_counts("She have two cat.", "She has two cat.", "She has two cats.") == (1, 0, 1)
    assert edit_counts("She has cats.", "She had dogs.", "She has cats.") == (0, 2, 0)
    assert f_score((1, 0, 1)) == (1.0, 0.5, pytest.approx(1.25 * 0.5 / (0.25 + 0.5)))
    assert f_score((1, 1, 0))[2] < f_score((1, 0, 1))[2]  # a wrong one costs more than a missing one
    assert f_score((0, 0, 0)) == (1.0, 1.0, 1.0)  # nothing was wanted, and nothing made
    assert f_score((0, 0, 5))[:2] == (1.0, 0.0) and f_score((0, 5, 5)) == (0.0, 0.0, 0.0)


SENTENCES = [  # id, as asked, gold
    ("en-test-0", "She have cats.", "She has cats."),
    ("de-test-1", "Er geht.", "Er geht."),
    ("en-test-2", "He go home.", "He goes home."),
    ("de-test-3", "Sie gehn.", "Sie gehen."),
]


def log_of(*answers: str) -> list[LogRow]:
    from primekd.assessment.logs import grade_row

    rows = zip(SENTENCES, answers, strict=True)
    return [grade_row(LogRow(i, asked, gold, text, 3, False, "", "", "", False), task=TASK)
            for (i, asked, gold), text in rows]  # fmt: skip


LOGS = {
    "control": log_of("She have cats.", "Er ging.", "Sure: home", ""),
    "api-KD": log_of("She has cats.", "Er geht.", "He goes home.", "Sie gehn."),
    "api-KD-half": log_of("She has cats.", "Er geht.", "He go home.", "Sie gehn."),
    "teacher": log_of("She has cats.", "Er geht.", "He goes home.", "Sie gehen."),
}


def test_a_row_a_model_and_language_with_what_costs_nothing_first():
    rows = {(row.model, row.language): row for row in language_rows(LOGS)}
    assert list(rows)[:3] == [(COPY, ALL), (COPY, "en"), (COPY, "de")] and len(rows) == 15
    copied = rows[COPY, ALL]
    assert (copied.right, copied.n, copied.overcorrected, copied.unchanged_n, copied.recall) == (1, 4, 0, 1, 0.0)
    assert copied.exact == 0.25 and copied.precision == 1.0 and copied.p_copy is None
    control, student = rows["control", ALL], rows["api-KD", ALL]
    assert (control.right, control.overcorrected, control.p) == (0, 1, None) and control.overcorrected_low > 0
    test = mcnemar_exact([True, True, True, False], [False] * 4)
    assert (student.only_model, student.only_control, student.p) == tuple(test) and student.p_holm is None
    assert student.f05_low <= student.f05 <= student.f05_high and 0.9 < student.similarity < 1
    single = [row for row in rows.values() if row.language != ALL and row.p is not None and row.model != COPY]
    assert [row.p_holm for row in single] == pytest.approx(holm([row.p for row in single])) and len(single) == 6
    assert language_rows({}) == []


def test_each_model_is_tested_against_the_sentence_as_it_was_over_all_languages():
    rows = language_rows(LOGS)
    found = {row.model: row.p_copy for row in rows if row.p_copy is not None}
    copied = [asked == gold for _, asked, gold in SENTENCES]
    raw = {model: mcnemar_exact([row.correct for row in log], copied).p for model, log in LOGS.items()}
    assert found == pytest.approx(dict(zip(raw, holm(list(raw.values())), strict=True)))
    assert {row.language for row in rows if row.p_copy is not None} == {ALL}


def test_sentences_of_one_document_are_no_independent_draws(monkeypatch):
    """The same verdicts ten times over, once as forty sentences and once as ten copies of four documents."""
    many = {model: [replace(row, id=f"{row.id}-{n}") for row in log for n in range(10)] for model, log in LOGS.items()}
    monkeypatch.setattr(corrections, "language_of", lambda item: "en")
    alone = next(row for row in language_rows(many) if (row.model, row.language) == ("api-KD", ALL))
    monkeypatch.setattr(corrections, "cluster_of", lambda item: item.rsplit("-", 1)[0])
    shared = next(row for row in language_rows(many) if (row.model, row.language) == ("api-KD", ALL))
    assert alone.exact == shared.exact and alone.f05 == shared.f05
    assert shared.exact_high - shared.exact_low > 1.5 * (alone.exact_high - alone.exact_low)
    assert shared.f05_high - shared.f05_low > 1.5 * (alone.f05_high - alone.f05_low)
    assert shared.p > 10 * alone.p


def test_tables_and_figure_say_what_the_rows_say(tmp_path):
    write_text(tmp_path / FILE, table_text(LanguageRow, language_rows(LOGS)))
    table, languages = correction_table(tmp_path), language_table(tmp_path)
    assert [row[0].model for row in table.rows] == [COPY, *LOGS] and table.rows[2][1].startswith("75.0 [")
    assert languages.head == ["Model", "en (n = 2)", "de (n = 2)"] and languages.rows[2][1].startswith("100.0 [")
    assert "p = " in languages.rows[2][1] and "p = " not in languages.rows[1][1]
    assert language_table(tmp_path / "none").rows == correction_table(tmp_path / "none").rows == []
    assert learning_figure(tmp_path) is None  # nobody knows how many labels
    labels = [
        LabelRow("api-KD", 100, 3, "chatty: 2; empty: 1", 97, 80, 90.0, 12.0, 400.0, 0.24),
        LabelRow("api-KD-half", 50, 0, "", 50, 41, 90.0, 12.0, 400.0, 0.24),
    ]
    write_text(tmp_path / LABELS, table_text(LabelRow, labels))
    cells = label_table(tmp_path).rows[0]
    assert cells[1:] == ["100", "3", "chatty: 2; empty: 1", "97", "80.0", "90, 12", "400", "0.240"]
    drawn = learning_figure(tmp_path)
    assert "Labels trained on" in drawn and ">97<" in drawn and "copied" in drawn
    examples = example_table(LOGS)
    assert [row[0] for row in examples.rows] == [i for i, *_ in SENTENCES]
    assert examples.rows[0][3:] == ["✗ She have cats.", "✓ She has cats.", "✓ She has cats."]
    assert examples.rows[3][3] == "✗ no answer"


def test_what_a_model_wrote_is_text_in_the_table_of_examples():
    hostile = '<img src=x onerror="alert(1)"> </td><script>alert(2)</script>'
    shown = show_table(example_table(LOGS | {"api-KD": log_of(hostile, *["Er geht."] * 3)}))
    page = shown._repr_html_()
    assert "<img" not in page and "<script" not in page and "&lt;script&gt;" in page
