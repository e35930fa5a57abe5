"""The labelled answers, extractors judged by them, and the published study's own logs graded here."""

import csv
import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT
from published_logs import FOLDER, LABELLED, MODELS, needs_published_logs
from statsmodels.stats.proportion import proportion_confint
from typer.testing import CliRunner

from primekd.assessment.decisions.decisions import answer_hash
from primekd.assessment.decisions.labels import KINDS, SETS, Label, count_labels, labels_file, read_labels
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import EXTRACTORS, RULES, extract
from primekd.cli import app
from primekd.foundation import MANIFEST, read_json
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_table, write_table
from primekd.statistics.grade_file import grade_rows
from primekd.statistics.validation import ValidationRow, judge, kappa, validate
from primekd.studies.published import COLUMNS, grade_published, stated_facts, stated_file

VALIDATION = ROOT / "logs" / "published" / "validation.csv"
HEADER = "log,id,answer_sha256,set,kind,value,first,second"
VALUE = r"-?\d+(\.\d+|/\d+)?"


def label(number: int, value: str = "", kind: str = "", **changes) -> Label:
    made = Label("control", str(number), "0" * 64, "validation", kind or ("stated" if value else "none"), value, "", "")
    return replace(made, **changes)


def answer(response: str, truncated: bool = False, question: str = "How many plums are left?") -> LogRow:
    return LogRow("", question, "1", response, 0, truncated, "", "", "", False)


# The file of labels.


def test_the_committed_labels_hold_ids_and_values_and_no_text():
    with open(labels_file(), encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert ",".join(rows[0]) == HEADER
    for line, row in enumerate(rows, start=2):
        assert row["log"] in LABELLED and row["set"] in SETS and row["kind"] in KINDS, line
        assert re.fullmatch(r"\d{1,4}", row["id"]) and int(row["id"]) < 1319, line
        assert re.fullmatch(r"[0-9a-f]{64}", row["answer_sha256"]), line
        for column in ("value", "first", "second"):
            words = "|".join(KINDS) if column != "value" else ""
            assert re.fullmatch(rf"({VALUE}|{words})?", row[column]), (line, column)


def test_there_are_enough_labels_of_their_own_for_the_validation():
    labels = read_labels()
    assert len({(one.log, one.id) for one in labels}) == len(labels), "an answer is labelled twice"
    assert len({one.answer_sha256 for one in labels}) > 0.95 * len(labels)
    clear = [one for one in labels if one.set == "validation" and one.kind != "ambiguous"]
    assert len(clear) >= 300
    assert all(sum(one.log == model for one in clear) >= 30 for model in LABELLED)
    twice = [one for one in clear if one.first and one.second]
    assert len(twice) == len(clear), "validation answers are read twice"
    # What both readings gave is the label; a value that is implied may have been read as none.
    agreed = [one for one in twice if one.first == one.second and one.first not in KINDS]
    assert agreed and all(Fraction(one.first) == one.number for one in agreed)


BAD_ROWS = {
    "a kind that there is not": "control,1,{h},validation,guessed,7,,",
    "a set that there is not": "control,1,{h},test,stated,7,,",
    "stated without a value": "control,1,{h},validation,stated,,,",
    "a value where there is none": "control,1,{h},validation,none,7,,",
    "a value where it is ambiguous": "control,1,{h},validation,ambiguous,7,,",
    "a value that is no number": "control,1,{h},validation,stated,seven,,",
    "a value over nought": "control,1,{h},validation,stated,7/0,,",
    "a cell too few": "control,1,{h},validation,stated,7,",
    "a cell too many": "control,1,{h},validation,stated,7,,,",
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=list(BAD_ROWS))
def test_a_label_that_cannot_be_read_is_one_sentence_with_its_row(row, output):
    path = output / "labels.csv"
    good = f"control,0,{'0' * 64},validation,stated,7,7,7"
    path.write_text(f"{HEADER}\n{good}\n{row.format(h='0' * 64)}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"labels\.csv row 3"):
        read_labels(path)
    path.write_text(f"{HEADER}\n{good}\n", encoding="utf-8")
    assert [one.number for one in read_labels(path)] == [7]


def test_missing_labels_and_other_columns_are_one_sentence(output):
    with pytest.raises(UserError, match=r"none\.csv is missing"):
        read_labels(output / "none.csv")
    path = output / "labels.csv"
    path.write_text("log,id,value\ncontrol,1,7\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no column 'answer_sha256'"):
        read_labels(path)


def test_labels_are_counted_by_kind_and_by_agreement_of_their_readings():
    labels = [
        label(0, "7", first="7", second="7"),
        label(1, "7", kind="implied", first="7", second="none"),
        label(2, first="none", second="none"),
        label(3, kind="ambiguous"),
        label(4, "9", set="development", first="9"),
    ]
    found, development = count_labels(labels)
    assert (found.set, found.n, found.read_twice, found.agreed) == ("validation", 4, 3, 2)
    assert (found.stated, found.implied, found.none, found.ambiguous) == (1, 1, 1, 1)
    assert (development.n, development.stated, development.read_twice) == (1, 1, 0)


# Judging.

JUDGED = [
    # label, answer; the published rules read the number in both
    (label(0, "7"), answer("So the answer is 7.")),
    (label(1, "7", kind="implied"), answer("7 plums.")),
    (label(2, "8"), answer("Of 3 and 4\nthe answer is 9.", truncated=True)),  # read wrongly
    (label(3, log="base-KD"), answer("Of 3 and 4, or 5", truncated=True)),  # none, but the last number is read
    (label(4, log="base-KD"), answer("nothing", truncated=True)),  # none, and none is read
    (label(5, "6", log="base-KD"), answer("nothing")),  # not found
    (label(6, kind="ambiguous"), answer("The answer is 1. The answer is 2.")),  # left out of every count
]
LABELS = [one for one, _ in JUDGED]
ANSWERS = {(one.log, one.id): row for one, row in JUDGED}


def of(rows: list[ValidationRow], extractor: str, stratum: str) -> ValidationRow:
    (row,) = [r for r in rows if (r.set, r.extractor, r.stratum) == ("validation", extractor, stratum)]
    return row


def test_every_unambiguous_answer_is_judged_with_what_is_known_of_it(monkeypatch):
    asked = []

    def spy(text, extractor, truncated, question=None):
        asked.append((extractor, truncated, question))
        return extract(text, extractor, truncated, question)

    monkeypatch.setattr("primekd.statistics.validation.extract", spy)
    judged = judge(LABELS, ANSWERS, "validated")
    assert [j.label.id for j in judged] == ["0", "1", "2", "3", "4", "5"]
    assert [j.value for j in judged] == [7, 7, 9, None, None, None]
    assert [j.published_rule for j in judged] == ["first-line", "first-line", "phrase", "last-number", "none", "none"]
    assert [j.truncated for j in judged] == [False, False, True, True, True, False]
    assert ("validated", True, "How many plums are left?") in asked


def test_coverage_and_precision_are_shares_of_what_they_say():
    rows = validate(LABELS, ANSWERS)
    whole = of(rows, "published", "all")
    assert (whole.n, whole.with_value, whole.found) == (6, 4, 4)
    assert (whole.coverage, whole.precision) == (3 / 4, 2 / 4)  # of 7, 7, 8, 6; of 7, 7, 9, 5
    low, high = proportion_confint(3, 4, method="wilson")
    assert (whole.coverage_low, whole.coverage_high) == (pytest.approx(low), pytest.approx(high))
    low, high = proportion_confint(2, 4, method="wilson")
    assert (whole.precision_low, whole.precision_high) == (pytest.approx(low), pytest.approx(high))
    better = of(rows, "validated", "all")
    assert (better.found, better.coverage, better.precision) == (3, 3 / 4, 2 / 3)
    none = of(rows, "strict-match", "all")
    assert (none.found, none.coverage, none.precision, none.precision_low) == (0, 0, None, None)


def test_strata_are_the_endings_the_logs_and_the_rules():
    rows = validate(LABELS, ANSWERS)
    common = [
        "all", "ended", "truncated", "log control", "log base-KD",
        "rule first-line", "rule last-number", "rule none", "rule phrase",
    ]  # fmt: skip
    for extractor in EXTRACTORS:
        names = [r.stratum for r in rows if (r.set, r.extractor) == ("validation", extractor)]
        own = ["by declared", "by leading", "by none"] if extractor == "validated" else []
        assert names == common + own
        parts = [of(rows, extractor, name) for name in common]
        assert parts[0].n == parts[1].n + parts[2].n == parts[3].n + parts[4].n == sum(p.n for p in parts[5:]) == 6
        assert parts[0].found == parts[1].found + parts[2].found
    assert of(rows, "validated", "rule none").with_value == 1
    assert [of(rows, "validated", f"by {rule}").found for rule in ("declared", "leading", "none")] == [2, 1, 0]
    assert {r.set for r in rows} == set(SETS)  # the development labels, of which there are none here, too


def test_an_answer_that_is_not_there_is_no_silent_gap():
    with pytest.raises(KeyError):
        judge(LABELS, {}, "published")


# Cohen's kappa.


def pairs(
    both: int, first_alone: int, second_alone: int, neither: int
) -> list[tuple[Fraction | None, Fraction | None]]:
    seven = Fraction(7)
    return (
        [(seven, seven)] * both
        + [(seven, None)] * first_alone
        + [(None, seven)] * second_alone
        + [(None, None)] * neither
    )


def test_kappa_has_its_textbook_value():
    """20 and 15 of 50 on the diagonal: agreement 0.7, by chance 0.5, so kappa 0.4 and its standard error 0.126."""
    found = kappa(pairs(20, 5, 10, 15))
    assert found.value == pytest.approx(0.4)
    assert found.low < 0.4 < found.high and found.high - found.low == pytest.approx(2 * 1.96 * 0.126, abs=0.01)


def test_kappa_at_its_ends():
    assert kappa(pairs(5, 0, 0, 5)).value == 1
    assert kappa(pairs(0, 5, 5, 0)).value == pytest.approx(-1)
    assert kappa(pairs(5, 0, 0, 0)) is None and kappa([]) is None  # one category: chance explains everything
    values = [(Fraction(n), Fraction(n if n < 8 else n + 100)) for n in range(10)]  # every value is a category
    assert 0.7 < kappa(values).value < 0.8
    none = kappa(pairs(0, 6, 0, 4))  # the second reading never gives a value
    assert none is None or none.value == pytest.approx(0)


# The published logs: the labels are theirs, and the committed figures are today's.


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], LogRow]:
    return {(model, row.id): row for model in MODELS for row in grade_rows(FOLDER / f"{model}.csv", COLUMNS)}


@pytest.fixture(scope="module")
def validation(answers) -> list[ValidationRow]:
    return validate(read_labels(), answers)


@needs_published_logs
def test_every_label_is_of_an_answer_in_the_published_logs(answers):
    for one in read_labels():
        row = answers[one.log, one.id]
        assert answer_hash(row.question, row.response) == one.answer_sha256, (one.log, one.id)


@needs_published_logs
def test_validation_labels_are_spread_over_files_and_rules(answers):
    """Stratified: no file and no published rule that fires often has fewer than thirty."""
    judged = judge([one for one in read_labels() if one.set == "validation"], answers, "published")
    for model in LABELLED:
        assert sum(j.label.log == model for j in judged) >= 30, model
    for rule in ("boxed", "first-line", "phrase", "last-number"):
        assert sum(j.published_rule == rule for j in judged) >= 30, rule
    assert sum(not j.truncated for j in judged) >= 20 and sum(j.truncated for j in judged) >= 200


@needs_published_logs
def test_the_committed_validation_is_what_the_rules_give_today(validation, tmp_path):
    """If this fails after a change of the rules or the labels: run `primekd published-study`."""
    now = read_table(write_table(tmp_path / "validation.csv", ValidationRow, validation))
    committed = read_table(VALIDATION)
    keys = ("set", "extractor", "stratum")
    assert [tuple(row[k] for k in keys) for row in now] == [tuple(row[k] for k in keys) for row in committed]
    assert [row for row, old in zip(now, committed, strict=True) if row != old] == []


@needs_published_logs
def test_the_validated_rules_keep_their_precision_and_coverage(validation):
    ended, truncated = (of(validation, "validated", name) for name in ("ended", "truncated"))
    assert ended.precision >= 0.99 and ended.coverage >= 0.95
    (stated,) = [
        row for row in read_table(VALIDATION)
        if (row["set"], row["extractor"], row["stratum"]) == ("validation", "validated", "truncated")
    ]  # fmt: skip
    assert truncated.precision >= float(stated["precision"]) - 5e-7  # the table has six digits
    assert truncated.coverage >= float(stated["coverage"]) - 5e-7
    assert truncated.precision >= 0.88 and truncated.coverage >= 0.75  # whatever the table says


@needs_published_logs
def test_the_validated_rules_are_right_more_often_than_any_other_extractor(validation):
    by_name = {name: of(validation, name, "all") for name in EXTRACTORS}
    best = by_name.pop("validated")
    for name, row in by_name.items():
        assert best.kappa > row.kappa if row.kappa is not None else True, name
        assert row.precision is None or best.precision > row.precision, name


def logged(text: str) -> Fraction | None:
    """A value as logs write it: -1 is none, and -1.0 is minus one."""
    return None if text == "-1" else Fraction(text)


@needs_published_logs
def test_the_committed_verdicts_are_what_the_rules_give_today(answers):
    """Every eleventh answer under every extractor; if it fails, run `primekd published-study`."""
    rows = read_table(ROOT / "logs" / "published" / "verdicts.csv")
    assert len(rows) == len(answers) == len(MODELS) * 1319
    for row in rows[::11]:
        there = answers[row["log"], row["id"]]
        assert answer_hash(there.question, there.response) == row["answer_sha256"]
        for extractor in EXTRACTORS:
            found = extract(there.response, extractor, there.truncated, there.question)
            assert found.value == logged(row[extractor]), (row["log"], row["id"], extractor)


def test_the_committed_study_counts_all_six_logs_and_tests_the_headline_contrast():
    folder = ROOT / "logs" / "published"
    recounted = {r["model"]: (r["logged_correct"], r["logged_n"]) for r in read_table(folder / "stated.csv")}
    assert recounted["teacher-KD"] == ("558", "1319") and recounted["ai-KD"] == ("635", "1319")
    assert set(read_json(folder / MANIFEST)["inputs"]["logs"]) == set(MODELS)
    contrasts = {(r["extractor"], r["model"], r["reference"]): r for r in read_table(folder / "contrasts.csv")}
    for extractor in EXTRACTORS:
        assert sum(key[0] == extractor for key in contrasts) == 12
        assert {(extractor, primed, "base-KD") for primed in ("teacher-KD", "ai-KD", "reverseKL-KD")} <= set(contrasts)
    won = [e for e in EXTRACTORS if float(contrasts[e, "ai-KD", "base-KD"]["p_holm"]) < 0.05]
    assert won == ["published", "validated", "math-verify"]


def test_the_committed_tables_of_the_published_study_hold_no_text():
    """Texts are not ours to pass on: ids, hashes, names and numbers alone."""
    folder = ROOT / "logs" / "published"
    names = {*MODELS, *EXTRACTORS, *stated_facts(), *SETS, *(rule for rules in RULES.values() for rule in rules)}
    with open(folder / "verdicts.csv", encoding="utf-8", newline="") as handle:
        rows = csv.reader(handle)
        next(rows)
        for row in rows:
            assert row[0] in MODELS and row[1].isdecimal() and re.fullmatch("[0-9a-f]{64}", row[2]), row
            assert all(re.fullmatch(rf"({VALUE})?", cell) for cell in row[3:]), row
    for row in read_table(folder / "validation.csv"):
        stratum = row["stratum"].removeprefix("log ").removeprefix("rule ").removeprefix("by ")
        assert stratum in names | {"all", "ended", "truncated"}


# The published study in a small checkout of its own, with four answers a model.

STUDY = {
    "control": ["18", "3", "nothing", "So the answer is 9."],
    "base-fine-tune": ["18", "4", "7", "So the answer is 9."],
    "base-KD": [r"\boxed{18}", "4", "7", "It is 9, or 10, or\nsome"],
}
GOLD = ["18", "4", "7", "1,009"]


def write_study(folder: Path, study: dict[str, list[str]] = STUDY, verdict: str = "1") -> None:
    folder.mkdir(exist_ok=True)
    for model, responses in study.items():
        with open(folder / f"{model}.csv", "w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["id", "question", "gold_solution", "response", "response_tokens", "published_correct"])
            for n, response in enumerate(responses):
                row = [n, f"Question {n}?", f"Thus\n#### {GOLD[n]}", response, 30, verdict if n != 3 else "0"]
                writer.writerow(row)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of small logs; the checkout around it has the real configs/ and two labels."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "configs", checkout / "configs")
    (checkout / "assessment" / "labels").mkdir(parents=True)
    shutil.copy(stated_file(), checkout / "assessment")
    (checkout / "README.md").write_text("Nothing generated.\n", encoding="utf-8")
    monkeypatch.setenv("PRIMEKD_ROOT", str(checkout))
    monkeypatch.delenv("PRIMEKD_OUTPUT", raising=False)
    write_study(tmp_path / "study")
    labels = [("control", 3, "9", "stated"), ("base-KD", 0, "18", "stated"), ("control", 2, "", "none")]
    rows = [
        f"{model},{n},{answer_hash(f'Question {n}?', STUDY[model][n])},validation,{kind},{value},,"
        for model, n, value, kind in labels
    ]
    path = checkout / "assessment" / "labels" / "published-logs.csv"
    path.write_text("\n".join([HEADER, *rows, ""]), encoding="utf-8")
    return tmp_path / "study"


def test_grading_the_published_study_counts_under_every_extractor(study):
    out = grade_published(study)
    found = {(r["model"], r["extractor"]): (r["n"], r["correct"]) for r in read_table(out / "accuracies.csv")}
    assert found["control", "published"] == ("4", "1")
    assert found["base-fine-tune", "published"] == found["base-KD", "published"] == ("4", "3")
    assert found["base-KD", "strict-match"] == ("4", "0")
    assert len(found) == 3 * len(EXTRACTORS)
    rows = {(r["extractor"], r["model"], r["reference"]): r for r in read_table(out / "contrasts.csv")}
    one = rows["published", "base-KD", "control"]
    assert (one["only_model"], one["only_reference"], one["accuracy"]) == ("2", "0", "0.5")
    assert float(one["p_holm"]) >= float(one["p"]) == 0.5
    assert {extractor for extractor, *_ in rows} == set(EXTRACTORS)
    verdicts = read_table(out / "verdicts.csv")
    assert len(verdicts) == 12 and [v["gold"] for v in verdicts[:4]] == ["18", "4", "7", "1009"]
    assert verdicts[3]["published"] == "9" and verdicts[2]["published"] == "-1"
    assert (verdicts[3]["released_verdict"], verdicts[2]["released_verdict"]) == ("0", "1")
    (row,) = [
        r for r in read_table(out / "validation.csv")
        if (r["set"], r["extractor"], r["stratum"]) == ("validation", "published", "all")
    ]  # fmt: skip
    assert (row["n"], row["with_value"], row["found"], row["precision"]) == ("3", "2", "2", "1")
    for path in out.iterdir():
        assert "Question" not in path.read_text(encoding="utf-8"), path.name
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["inputs"]["logs"]) == set(STUDY)
    assert set(manifest["outputs"]) == {path.name for path in out.glob("*.csv")}


def test_what_the_study_states_stands_beside_what_its_verdicts_count(study):
    rows = {r["model"]: r for r in read_table(grade_published(study) / "stated.csv")}
    assert (rows["control"]["stated"], rows["control"]["logged_correct"], rows["control"]["logged_n"]) == (
        "12.20",
        "3",
        "4",
    )
    # No log here: the counts are those that assessment/published.yaml states, or none.
    assert (rows["reverseKL-KD"]["n"], rows["reverseKL-KD"]["logged_correct"]) == ("", "499")
    assert (rows["ai-KD"]["stated"], rows["ai-KD"]["logged_correct"]) == ("48.14", "")


def test_a_log_without_released_verdicts_counts_none(study):
    write_study(study, {"reverseKL-KD": STUDY["base-KD"]}, verdict="")
    with open(study / "reverseKL-KD.csv", encoding="utf-8") as handle:
        text = handle.read()
    (study / "reverseKL-KD.csv").write_text(re.sub(r",0$", ",", text, flags=re.MULTILINE), encoding="utf-8")
    rows = {r["model"]: r for r in read_table(grade_published(study) / "stated.csv")}
    assert (rows["reverseKL-KD"]["n"], rows["reverseKL-KD"]["logged_correct"]) == ("4", "499")


def shorten(study: Path) -> None:
    write_study(study, {"base-KD": STUDY["base-KD"][:3]})


def reorder(study: Path) -> None:
    path = study / "base-fine-tune.csv"
    header, first, second = path.read_text(encoding="utf-8").split('"Thus\n')[0].split("\n")[0], None, None
    with open(path, encoding="utf-8", newline="") as handle:
        _, first, second, *rest = csv.reader(handle)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header.strip().split(","), second, first, *rest])


BROKEN = {
    "an answer that was changed": (
        lambda study: write_study(study, {"control": [*STUDY["control"][:3], "So the answer is 10."]}),
        "The answer 3 of control is not the one that was labelled",
    ),
    "a log that is missing": (lambda study: (study / "control.csv").unlink(), "of control is not the one"),
    "a log of other length": (shorten, "base-KD.csv has other items than control.csv"),
    "a log in another order": (reorder, "base-fine-tune.csv has other items than control.csv"),
    "no logs": (lambda study: [path.unlink() for path in study.glob("*.csv")], "has no CSV files"),
    "a column that is missing": (
        lambda study: (study / "control.csv").write_text("id\n1\n"),
        "has no column 'response'",
    ),
}


@pytest.mark.parametrize("break_it, sentence", BROKEN.values(), ids=list(BROKEN))
def test_logs_that_do_not_fit_the_labels_are_refused_before_anything_is_written(break_it, sentence, study):
    break_it(study)
    with pytest.raises(UserError, match=re.escape(sentence)):
        grade_published(study)
    assert not (study.parent / "checkout" / "logs").exists()


def test_the_verb_grades_the_study_and_says_where(study):
    done = CliRunner().invoke(app, ["published-study", str(study)])
    assert done.exit_code == 0, done.output
    assert "wrote logs/published" in done.output
    assert (study.parent / "checkout" / "logs" / "published" / "validation.csv").is_file()
    failed = CliRunner().invoke(app, ["published-study", str(study / "none")])
    assert failed.exit_code == 1 and failed.stderr.count("\n") == 1 and "has no CSV files" in failed.stderr
