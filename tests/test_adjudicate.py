"""Adjudication: decisions on disk, which answers are shown, the blind audit, the terminal and the notebook's form."""

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections import Counter
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT
from rich.console import Console
from statsmodels.stats.proportion import proportion_confint
from typer.testing import CliRunner

from primekd.assessment.answers import Answer
from primekd.assessment.decisions import (
    cases,
)
from primekd.assessment.decisions import (
    form as adjudicate_form,
)
from primekd.assessment.decisions import (
    session as adjudicate_session,
)
from primekd.assessment.decisions import (
    terminal as adjudicate_terminal,
)
from primekd.assessment.decisions.cases import Case, audit_sample, open_cases
from primekd.assessment.decisions.decisions import (
    COLUMNS,
    Decision,
    add_decision,
    answer_hash,
    apply_decisions,
    as_read,
    as_written,
    check_who,
    count_stale,
    decisions_file,
    default_who,
    parse_typed,
    read_decisions,
    remove_decision,
)
from primekd.assessment.decisions.session import Session, around, open_session, readable
from primekd.assessment.logs import LogRow, grade_answer, read_logs, write_log
from primekd.assessment.reading import Extraction
from primekd.cli import app
from primekd.config import Profile, load_profile
from primekd.foundation import write_manifest, write_table
from primekd.foundation.errors import UserError
from primekd.report import readme
from primekd.statistics.summary import SummaryRow
from primekd.statistics.validation import AuditRow, audit_rows
from primekd.studies import settling
from primekd.tasks.protocol import Item

GOLD = "999983"  # stands in no question and no answer: whoever sees it was shown a gold value
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m[red]18[/red] <script>alert(1)</script> \u202e81 \r\x00 end"


def graded(number: int, response: str, gold: str = GOLD) -> LogRow:
    item = Item(f"q{number}", f"Question number {number}?", "", Decimal(gold))
    return grade_answer(item, Answer(item.id, [1, 2], False, response))


def made(row: LogRow, value: str, **changes) -> Decision:
    """A decision on a row of the model `ai-KD` in the profile `ci`."""
    decision = Decision(
        "ci", "ai-KD", row.id, answer_hash(row.question, row.response), row.extracted,
        "none" if value == "-1" else "accept" if value == row.extracted else "correct",
        value, "Ann", "2026-01-01T00:00:00+00:00", "review",
    )  # fmt: skip
    return replace(decision, **changes)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own, so that no test writes decisions into the real one. logs/ lie in it too."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    monkeypatch.delenv("PRIMEKD_OUTPUT", raising=False)
    return tmp_path


LOGS = {
    "control": [graded(n, f"Let us see.\nSo {n} and {n + 1}") for n in range(10)],  # last number n + 1
    "ai-KD": [graded(n, f"\\boxed{{{n}}}") for n in range(10)],
}


def write_logs(profile: Profile, logs: dict[str, list[LogRow]]) -> None:
    for model, rows in logs.items():
        write_log(profile.logs / f"{model}.csv", rows)
    rows = [SummaryRow(m, m, 4, 1, *[0.25] * 3, 0, 0, 1.0, *[None] * 6, 2, 2, *[0.5] * 3) for m in logs]
    write_table(profile.logs / "summary.csv", SummaryRow, rows)
    write_manifest(profile.logs, "assessment", {}, [profile.logs / "summary.csv"])


@pytest.fixture
def profile(checkout: Path) -> Profile:
    loaded = load_profile("ci")
    write_logs(loaded, LOGS)
    return loaded


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> dict[str, Extraction]:
    """What the validated rules read in a response; the first number of the text where a test says nothing.

    So that they differ from the published rules on every answer of `control` and agree on every one of `ai-KD`.
    """
    readings: dict[str, Extraction] = {}
    real = cases.extract

    def extract(text, extractor, truncated, question):
        assert question.startswith("Question")
        if extractor == "published":
            return real(text, extractor, truncated, question)
        return readings.get(text) or Extraction(Fraction(re.findall(r"\d+", text)[0]), "stub")

    monkeypatch.setattr(cases, "extract", extract)
    return readings


@pytest.fixture
def regraded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for regrading and for the report; says for which profiles they were called."""
    called: list[str] = []

    monkeypatch.setattr(settling, "regrade", lambda p: called.append(f"regrade {p.name}"))
    monkeypatch.setattr(readme, "write_anew", lambda p: called.append(f"report {p.name}") or ["Report: anew"])
    return called


def finish(session: Session) -> str:
    """The end of a sitting, with the report writer of the fixture `regraded`."""
    return settling.finish(session, readme.write_anew)


# Values and names.


@pytest.mark.parametrize("value, text", [(None, "-1"), (Fraction(-1), "-1.0"), (Fraction(18), "18")])
def test_no_answer_and_minus_one_are_written_differently(value, text):
    assert as_written(value) == text and as_read(text) == value


@pytest.mark.parametrize("value", [Fraction(0), Fraction(-5, 2), Fraction(1, 3), Fraction(10**30)])
def test_a_written_value_is_read_back(value):
    assert as_read(as_written(value)) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "1/00", "1e999999999", "١٨", " 18", "18\n", "--1", "1."])
def test_what_is_no_value_is_refused(text):
    with pytest.raises(ValueError):
        as_read(text)


@pytest.mark.parametrize(
    "typed, value",
    [
        ("18", "18"), (" 18 ", "18"), ("1,000", "1000"), ("$29.00", "29"), ("-4", "-4"), ("\u22124", "-4"), 
        ("25%", "25"),
        ("1/3", "1/3"), ("2.50", "2.5"), ("+7", "7"), ("18.", "18"), ("-1", "-1.0"), ("0", "0"),
    ],
)  # fmt: skip
def test_a_typed_number_is_read(typed, value):
    assert as_written(parse_typed(typed)) == value


@pytest.mark.parametrize("typed", ["", "abc", "18 apples", "1 2", "12-3", "1/0", "x18", "\x1b[A", "a", "1,2", "3+4"])
def test_what_is_no_number_is_refused_in_one_sentence(typed):
    with pytest.raises(UserError, match="is no number: type one such as") as refused:
        parse_typed(typed)
    assert readable(str(refused.value)) == str(refused.value), "the sentence holds control characters"


@pytest.mark.parametrize("who", [None, "", "  ", "A\nB", "A\x1b[2J", "A\u2028B", "A\u202eB", "A\x00"])
def test_a_name_that_is_empty_or_holds_control_characters_is_refused(who):
    with pytest.raises(UserError):
        check_who(who)


def test_the_default_name_is_gits_or_the_users(checkout, monkeypatch):
    for key in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(key, str(checkout))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.parent))
    monkeypatch.setenv("USER", "ann")
    assert default_who() == "ann"
    (checkout / ".gitconfig").write_text("[user]\n\tname = Ann Example\n")
    assert default_who() == "Ann Example"
    (checkout / ".gitconfig").unlink()
    monkeypatch.delenv("USER")
    with pytest.raises(UserError, match="--who"):
        default_who()


# Decisions on disk.


def test_decisions_are_read_as_they_were_saved_and_taken_back_one_by_one(checkout):
    rows = [graded(n, f"{n}") for n in range(3)]
    decisions = [made(rows[0], "0"), made(rows[1], "-1", who='O\'Neil, "Zoë"'), made(rows[2], "1/3", purpose="audit")]
    assert read_decisions() == []
    for decision in decisions:
        add_decision(decision)
    assert read_decisions() == decisions
    header = decisions_file().read_text().splitlines()[0]
    assert header == "profile,model,id,answer_sha256,automatic,decision,value,who,when,purpose"
    remove_decision(decisions[1])
    remove_decision(decisions[1])  # is not there any more
    assert read_decisions() == [decisions[0], decisions[2]]
    assert sorted(p.name for p in decisions_file().parent.iterdir()) == ["adjudications.csv"], (
        "something was left behind"
    )


def test_of_equal_decisions_only_the_last_is_taken_back(checkout):
    first, other = made(graded(1, "1"), "2"), made(graded(2, "2"), "2")
    for decision in (first, other, first):
        add_decision(decision)
    remove_decision(first)
    assert read_decisions() == [first, other]


def _add_many(who: str) -> None:
    for number in range(12):
        add_decision(made(graded(number, "x 1 y 2"), "7", who=who))


def test_people_who_decide_at_the_same_time_lose_nothing(checkout):
    people = ["Ann", "Bob", "Cem", "Dee"]
    workers = [multiprocessing.get_context("fork").Process(target=_add_many, args=(who,)) for who in people]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert Counter(d.who for d in read_decisions()) == dict.fromkeys(people, 12)


DAMAGE = {
    "a cell too few": lambda cells: cells[:-1],
    "a cell too many": lambda cells: [*cells, "x"],
    "another decision": lambda cells: [*cells[:5], "maybe", *cells[6:]],
    "another purpose": lambda cells: [*cells[:9], "fun"],
    "no hash": lambda cells: [*cells[:3], "abc", *cells[4:]],
    "no value": lambda cells: [*cells[:6], "many", *cells[7:]],
    "no automatic value": lambda cells: [*cells[:4], "", *cells[5:]],
    "none with a value": lambda cells: [*cells[:5], "none", *cells[6:]],
    "correct without a value": lambda cells: [*cells[:5], "correct", "-1", *cells[7:]],
    "no time": lambda cells: [*cells[:8], "yesterday", *cells[9:]],
    "a time without an offset": lambda cells: [*cells[:8], "2026-01-01T00:00:00", *cells[9:]],
    "nobody": lambda cells: [*cells[:7], "", *cells[8:]],
    "a line break in the name": lambda cells: [*cells[:7], "A\nB", *cells[8:]],
    "a merge conflict": lambda cells: ["<<<<<<< HEAD"],
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_row_that_cannot_be_read_is_named_and_nothing_is_written_over_it(change, checkout):
    row = graded(1, "1")
    add_decision(made(row, "5"))
    good = [getattr(made(row, "5"), c) for c in COLUMNS]
    with open(decisions_file(), "a", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([change(list(good)), good])
    before = decisions_file().read_bytes()
    for call in (read_decisions, lambda: add_decision(made(row, "6")), lambda: remove_decision(made(row, "5"))):
        with pytest.raises(UserError, match=r"assessment/adjudications\.csv row 3"):
            call()
    assert decisions_file().read_bytes() == before


def test_other_columns_and_other_bytes_are_one_sentence(checkout):
    decisions_file().parent.mkdir()
    decisions_file().write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="adjudications.csv has no column"):
        read_decisions()
    decisions_file().write_bytes(",".join(COLUMNS).encode() + b"\n\xff\xfe\n")
    with pytest.raises(UserError, match="adjudications.csv"):
        read_decisions()


def test_a_file_that_a_spreadsheet_saved_is_read(checkout):
    decision = made(graded(1, "1"), "5")
    add_decision(decision)
    text = decisions_file().read_text().replace('"', "").replace("\n", "\r\n")
    decisions_file().write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    assert read_decisions() == [decision]
    turned = [",".join(line.split(",")[::-1]) for line in text.split("\r\n")]
    decisions_file().write_text("\n".join(turned))
    assert read_decisions() == [decision]
    for lines, said in (
        (["x," + line for line in turned[:2]], "a column too many, 'x'"),
        (["id,who"], "no column 'profile', 'model'"),
    ):
        decisions_file().write_text("\n".join(lines))
        with pytest.raises(UserError, match=f"adjudications.csv.*{said}"):
            read_decisions()


def test_a_failed_write_leaves_the_old_file(checkout, monkeypatch):
    row = graded(1, "1")
    add_decision(made(row, "5"))
    before = decisions_file().read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="disk is full"):
        add_decision(made(row, "6"))
    assert decisions_file().read_bytes() == before
    assert len(list(decisions_file().parent.iterdir())) == 1


# Applying them.


def test_a_hash_stands_for_one_answer_to_one_question():
    assert len({answer_hash("ab", "c"), answer_hash("a", "bc"), answer_hash("ab", "c "), answer_hash("c", "ab")}) == 4


def test_a_decision_is_applied_to_its_answer_and_to_no_other():
    row, other = graded(1, "x 7 or 8"), graded(2, "x 7 or 8")
    decision = made(row, "7")
    changed = replace(row, response=row.response + ".")
    asked = replace(row, question="Another question?")
    found = apply_decisions("ci", "ai-KD", [row, other, changed, asked], [decision])
    assert [r.adjudicated for r in found] == ["7", "", "", ""]
    assert [replace(r, adjudicated="") for r in found] == [row, other, changed, asked], "something else was changed"
    assert apply_decisions("ci", "base-KD", [row], [decision]) == [row]
    assert apply_decisions("pocket", "ai-KD", [row], [decision]) == [row]


def test_the_latest_decision_counts_whatever_its_place_in_the_file():
    row = graded(1, "x 7 or 8")
    late = made(row, "7", when="2026-03-01T09:30:00+00:00")
    early = made(row, "-1", when="2026-03-01T11:00:00+02:00")  # nine in UTC
    for decisions in ([early, late], [late, early]):
        assert apply_decisions("ci", "ai-KD", [row], decisions)[0].adjudicated == "7"
    same = [made(row, "7"), made(row, "9")]
    assert apply_decisions("ci", "ai-KD", [row], same)[0].adjudicated == "9"


def test_a_decision_that_is_no_more_leaves_no_trace():
    row = replace(graded(1, "x 7 or 8"), adjudicated="7")
    assert apply_decisions("ci", "ai-KD", [row], [])[0].adjudicated == ""


def test_none_and_accept_are_written_into_the_log():
    row = graded(1, "x 7 or 8")
    assert apply_decisions("ci", "ai-KD", [row], [made(row, "-1")])[0].adjudicated == "-1"
    assert apply_decisions("ci", "ai-KD", [row], [made(row, "8")])[0].adjudicated == "8"


def test_an_audit_adjudicates_where_it_differs_or_overrules():
    row = graded(1, "x 7 or 8")
    agrees, differs = made(row, "8", purpose="audit"), made(row, "7", purpose="audit")
    review = made(row, "7", when="2025-01-01T00:00:00+00:00")
    assert apply_decisions("ci", "ai-KD", [row], [agrees])[0].adjudicated == ""
    assert apply_decisions("ci", "ai-KD", [row], [differs])[0].adjudicated == "7"
    assert apply_decisions("ci", "ai-KD", [row], [review, agrees])[0].adjudicated == "8"
    # Rules that read the same answer otherwise by now: the audit differs from them.
    reread = replace(row, extracted="7", rule="phrase")
    assert apply_decisions("ci", "ai-KD", [reread], [agrees])[0].adjudicated == "8"


def test_a_found_minus_one_is_not_the_same_as_nothing_found():
    row = graded(1, "-1")
    assert (row.extracted, row.rule) == ("-1", "first-line")
    none = made(row, "-1", automatic="-1.0", purpose="audit")
    assert apply_decisions("ci", "ai-KD", [row], [none])[0].adjudicated == "-1"
    assert audit_rows("ci", {"ai-KD": [row]}, [none])[0].errors == 1
    found = made(row, "-1.0", decision="accept", purpose="audit")
    assert audit_rows("ci", {"ai-KD": [row]}, [found])[0].errors == 0


def test_decisions_for_answers_that_are_gone_are_counted():
    row = graded(1, "x 7 or 8")
    decisions = [
        made(row, "7"),
        made(row, "7", model="no-such"),
        made(row, "7", id="gone"),
        made(row, "7", answer_sha256="0" * 64),
        made(row, "7", profile="pocket"),  # another profile's logs were not looked at
    ]
    assert count_stale("ci", {"ai-KD": [row]}, decisions) == 3


def test_the_error_rate_counts_each_answer_once_with_its_latest_audit_and_a_wilson_interval():
    rows = [graded(n, f"so {n} and {n + 1}") for n in range(8)]
    logs = {"ai-KD": rows[:5], "base-KD": rows[5:], "control": rows}
    audits = [made(r, r.extracted, purpose="audit") for r in rows[:4]]
    audits += [made(rows[4], "100", purpose="audit"), made(rows[5], "100", purpose="audit", model="base-KD")]
    audits.append(made(rows[0], "100", purpose="audit", when="2025-01-01T00:00:00+00:00", who="Bob"))  # earlier
    audits.append(made(rows[1], "100"))  # a review
    audits.append(made(rows[2], "100", purpose="audit", answer_sha256="0" * 64))  # of an answer that is gone
    found = audit_rows("ci", logs, audits)
    assert [(r.model, r.n, r.errors) for r in found] == [("ai-KD", 5, 1), ("base-KD", 1, 1), ("all", 6, 2)]
    assert (found[2].rate_low, found[2].rate_high) == pytest.approx(proportion_confint(2, 6, method="wilson"))
    assert found[2].rate == pytest.approx(1 / 3)
    assert [f.name for f in fields(found[0])] == ["model", "n", "errors", "rate", "rate_low", "rate_high"]
    assert audit_rows("ci", logs, [made(rows[1], "100")]) == []


# Which answers are shown.


def test_an_answer_is_listed_with_the_reason_unless_both_rule_sets_agree(profile, validated):
    rows = {
        "boxed, both agree": graded(1, r"\boxed{7}"),
        "differ": graded(2, r"\boxed{7} eight"),
        "ambiguous": graded(3, r"\boxed{7} or so"),
        "validated none": graded(4, r"\boxed{7}!"),
        "none": graded(5, "no idea at all"),
        "last number, both agree": graded(6, "see\nfirst 1 then 2"),
        "last number, differ": graded(7, "see\nfirst 3 then 4"),
        "published none alone": graded(8, "no idea either"),
    }
    assert [row.rule for row in rows.values()] == [*["boxed"] * 4, "none", "last-number", "last-number", "none"]
    validated[rows["differ"].response] = Extraction(Fraction(8), "stub")
    validated[rows["ambiguous"].response] = Extraction(Fraction(7), "stub", None, False, True)
    validated[rows["validated none"].response] = Extraction(None, "none")
    validated[rows["none"].response] = Extraction(None, "none")
    validated[rows["last number, both agree"].response] = Extraction(Fraction(2), "stub")
    validated[rows["published none alone"].response] = Extraction(Fraction(5), "stub")
    found = {case.id: case.why for case in open_cases(profile, {"ai-KD": [*rows.values()]}, [])}
    assert found == {
        "q2": ("published and validated rules differ: 7, 8",),
        "q3": ("the validated rules call it ambiguous",),
        "q4": ("the validated rules found no value",),
        "q5": ("the published rules found no number", "the validated rules found no value"),
        "q7": ("published and validated rules differ: 4, 3",),
        "q8": ("the published rules found no number",),
    }


def test_a_case_holds_no_gold_value_and_no_verdict():
    assert not {"gold", "correct", "adjudicated"} & {f.name for f in fields(Case)}


def test_what_was_decided_is_not_asked_again_unless_the_answer_changed(profile, validated):
    rows = LOGS["control"]
    decision = made(rows[0], "3", model="control")
    assert {c.id for c in open_cases(profile, LOGS, [])} == {f"q{n}" for n in range(10)}
    assert {c.id for c in open_cases(profile, LOGS, [decision])} == {f"q{n}" for n in range(1, 10)}
    changed = LOGS | {"control": [replace(rows[0], response="other 2 and 7\nthen 3"), *rows[1:]]}
    assert {c.id for c in open_cases(profile, changed, [decision])} == {f"q{n}" for n in range(10)}
    assert len(open_cases(profile, LOGS, [replace(decision, model="ai-KD")])) == 10


def test_the_order_is_random_mixes_models_and_comes_again_with_the_same_seed(profile, validated):
    logs = {"control": LOGS["control"], "base-KD": LOGS["control"]}
    orders = [[c.key for c in open_cases(profile, logs, [], seed=seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    models = [key[0] for key in orders[0]]
    assert models != sorted(models) and models != sorted(models, reverse=True)
    assert [key[1] for key in orders[0]] != sorted(key[1] for key in orders[0])
    # An answer keeps its place among the others when one of them is decided, or when only one model is asked for.
    decided = made(LOGS["control"][3], "1", model="control")
    left = [c.key for c in open_cases(profile, logs, [decided])]
    assert left == [key for key in orders[0] if key[:2] != ("control", "q3")]
    assert [c.key for c in open_cases(profile, logs, [], ["control"])] == [k for k in orders[0] if k[0] == "control"]


def test_a_model_without_a_log_is_refused(profile, validated):
    with pytest.raises(UserError, match="no model 'gpt'.*control, ai-KD"):
        open_cases(profile, LOGS, [], ["gpt"])


def test_an_audit_draws_from_every_answer_whatever_its_rule_and_verdict(profile):
    right = [graded(n, f"\\boxed{{{n}}}", gold=str(n)) for n in range(5)]
    logs = LOGS | {"teacher": right}
    drawn = audit_sample(profile, logs, [], "Ann", 1000)
    assert Counter(c.model for c in drawn) == {"control": 10, "ai-KD": 10, "teacher": 5}
    assert all(not c.why for c in drawn), "a reason gives away what the rules made of it"


def test_every_answer_is_drawn_about_as_often(profile):
    counts = Counter(c.key for seed in range(400) for c in audit_sample(profile, LOGS, [], "Ann", 5, seed=seed))
    assert len(counts) == 20
    assert min(counts.values()) > 60 and max(counts.values()) < 140  # 100 expected, standard deviation below 9


def test_nobody_audits_an_answer_twice_and_a_sample_left_half_way_goes_on(profile):
    first = audit_sample(profile, LOGS, [], "Ann", 8)
    audits = [
        Decision("ci", *c.key, "1", "correct", "5", "Ann", "2026-01-01T00:00:00+00:00", "audit") for c in first[:3]
    ]
    again = audit_sample(profile, LOGS, audits, "Ann", 8)
    assert again[:5] == first[3:] and not {c.key for c in again} & {c.key for c in first[:3]}
    assert audit_sample(profile, LOGS, audits, "Bob", 8) == first
    reviews = [replace(a, purpose="review") for a in audits]
    assert audit_sample(profile, LOGS, reviews, "Ann", 8) == again, "a review has shown the automatic value"
    assert audit_sample(profile, LOGS, reviews, "Bob", 8) == first
    other = [replace(a, answer_sha256="0" * 64) for a in reviews]  # of an answer that has changed since
    assert audit_sample(profile, LOGS, other, "Ann", 8) == first


def test_a_missing_or_damaged_log_is_one_sentence(profile):
    assert list(read_logs(profile)) == ["control", "ai-KD"]
    damaged = {"ai-KD": [replace(graded(1, "1"), span="a:b")]}
    with pytest.raises(UserError, match="ai-KD.csv has a row that cannot be read"):
        audit_sample(profile, damaged, [], "Ann", 1)
    (profile.logs / "ai-KD.csv").unlink()
    with pytest.raises(UserError, match="ai-KD.csv is missing"):
        read_logs(profile)


# A session.


@pytest.fixture
def session(profile, validated) -> Session:
    return open_session(profile, "Ann")[0]


@pytest.fixture
def audit(profile) -> Session:
    return open_session(profile, "Ann", audit=4)[0]


def test_each_decision_is_on_disk_before_the_next_case_is_shown(session):
    asked = session.cases[:3]
    for typed, decision, value in (
        ("a", "accept", as_written(asked[0].automatic)),
        ("1,234", "correct", "1234"),
        ("n", "none", "-1"),
    ):
        session.take(typed)
        saved = read_decisions()[-1]
        assert (saved.decision, saved.value) == (decision, value)
    assert [(d.model, d.id, d.answer_sha256) for d in read_decisions()] == [c.key for c in asked]
    saved = read_decisions()[0]
    assert (saved.profile, saved.who, saved.purpose) == ("ci", "Ann", "review")
    assert saved.when.endswith("+00:00") and session.progress == "4 of 10"


@pytest.mark.parametrize(
    "typed, value", [("c 18", "18"), ("C 18", "18"), ("correct 18", "18"), ("18", "18"), ("N", "-1"), ("none", "-1")]
)
def test_what_can_be_typed(session, typed, value):
    session.take(typed)
    assert read_decisions()[0].value == value


@pytest.mark.parametrize("typed", ["", "  ", "c", "x", "c x", "18 19", "accept it", "q1"])
def test_a_slip_decides_nothing_and_the_case_stays(session, typed):
    case = session.case
    with pytest.raises(UserError):
        session.take(typed)
    assert session.case is case and read_decisions() == [] and session.decided == []


def test_the_typed_automatic_value_is_an_acceptance(session):
    session.take(f"{as_written(session.case.automatic)}.00")
    assert read_decisions()[0].decision == "accept"


def test_undo_takes_back_decisions_and_skips_one_by_one_and_no_other_persons(session):
    first = session.case
    for typed in ("a", "s", "n"):
        session.take(typed)
    stranger = made(graded(1, "1"), "5", who="Bob")
    add_decision(stranger)
    session.take("u")
    assert [d.value for d in read_decisions()] == [as_written(first.automatic), "5"] and session.progress == "3 of 10"
    session.take("u")
    session.take("u")
    assert read_decisions() == [stranger] and session.case is first and session.decided == []
    with pytest.raises(UserError, match="nothing to undo"):
        session.take("u")


def test_after_the_last_case_only_undo_is_left(profile, validated):
    session = open_session(profile, "Ann", limit=1)[0]
    session.take("n")
    for typed in ("a", "n", "s", "5"):
        with pytest.raises(UserError, match="last answer"):
            session.take(typed)
    session.take("u")
    assert session.case is not None and read_decisions() == []


def test_nothing_can_be_accepted_where_the_rules_found_nothing(profile, validated):
    validated["no idea"] = Extraction(None, "none")
    write_logs(profile, {"ai-KD": [graded(1, "no idea")]})
    session = open_session(profile, "Ann")[0]
    with pytest.raises(UserError, match="no automatic value"):
        session.take("a")
    session.take("-1")
    saved = read_decisions()[0]
    assert (saved.automatic, saved.decision, saved.value) == ("-1", "correct", "-1.0")


def test_a_decision_without_a_name_is_refused(session):
    session.who = " "
    with pytest.raises(UserError, match="Nobody"):
        session.take("n")
    assert read_decisions() == [] and session.progress == "1 of 10"


def test_an_audit_is_blind_and_says_whether_the_person_agreed(audit):
    with pytest.raises(UserError, match="not shown"):
        audit.take("a")
    first, second, third, _ = audit.cases
    audit.take(as_written(first.automatic))
    audit.take("123456")
    audit.take("n")
    assert [(d.decision, d.purpose) for d in read_decisions()] == [
        ("accept", "audit"), ("correct", "audit"), ("none", "audit"),
    ]  # fmt: skip
    assert [d.automatic for d in read_decisions()] == [as_written(c.automatic) for c in (first, second, third)]


def test_stale_decisions_are_said_when_a_session_is_opened(profile, validated):
    add_decision(made(graded(1, "gone"), "5"))
    assert "1 decision is for answers that these logs do not hold." in open_session(profile, "Ann")[1]
    add_decision(made(graded(2, "gone"), "5"))
    assert "2 decisions are for answers that these logs do not hold." in open_session(profile, "Ann", audit=2)[1]


def test_finishing_regrades_once_and_shows_both_accuracies(session, regraded):
    assert finish(session) == "Nothing was decided." and regraded == []
    session.take("n")
    said = finish(session)
    assert regraded == ["regrade ci", "report ci"]
    assert "1 decision saved.\nReport: anew\n" in said and re.search(r"ai-KD +25\.00% +50\.00% +2\n?", said)


def test_decisions_of_a_session_that_was_killed_reach_the_logs_with_the_next(profile, validated, regraded):
    open_session(profile, "Ann")[0].take("5")  # and then the terminal is closed
    session = open_session(profile, "Ann")[0]
    finish(session)
    assert regraded[0] == "regrade ci"


def test_a_decision_reaches_this_machines_logs_and_the_published_ones_where_both_hold_the_answer(
    profile, validated, monkeypatch
):
    """The published answer to question 3 is another one, so nothing that was decided here is applied to it."""
    other = [graded(n, "Let us see.\nSo 7 and 8") if n == 3 else row for n, row in enumerate(LOGS["control"])]
    write_logs(profile.of_published(), LOGS | {"control": other})
    called = []
    monkeypatch.setattr(settling, "regrade", lambda p: called.append(p.logs))
    here = open_session(profile, "Ann", ["control"])[0]
    while here.case.id != "q3":
        here.skip()
    here.take("33")
    settling.finish(here, lambda p: [])
    assert called == [profile.logs]
    there = open_session(profile.of_published(), "Ann", ["control"])[0]
    while there.case.id in ("q3",):
        there.skip()
    there.take("44")
    called.clear()
    said = settling.finish(there, lambda p: [f"wrote {p.logs.name}"])
    assert sorted(called) == sorted([profile.published, profile.logs]) and "wrote ci" in said and "wrote logs" in said


def test_an_audit_ends_with_the_error_rate_and_the_answers_that_differ(audit, regraded):
    audit.take(as_written(audit.case.automatic))
    wrong = audit.case
    audit.take("n")
    said = finish(audit)
    low, high = proportion_confint(1, 2, method="wilson")
    assert f"1 of 2: 50.00% (95 % interval {low:.2%} to {high:.2%})" in said
    assert f"differs: {wrong.model} {wrong.id}: automatic {wrong.automatic}, you none" in said
    assert said.count("differs:") == 1


def test_the_error_rate_over_all_says_which_models_it_covers(audit, regraded):
    while audit.case and audit.case.model != "control":
        audit.skip()
    audit.take("5")
    said = finish(audit)
    assert "The row of all covers control alone; no answer was looked at of ai-KD." in said
    rows = [AuditRow(model, 2, 1, 0.5, 0.1, 0.9) for model in ("control", "ai-KD", "all")]
    assert "covers" not in settling.audit_text(rows, LOGS)


def test_the_assessment_of_a_sitting_knows_no_report():
    text = Path(adjudicate_session.__file__).read_text(encoding="utf-8")
    assert "primekd.report" not in text


def test_the_readme_is_written_anew_with_the_report_of_the_published_logs_alone(profile, monkeypatch):
    called = []
    monkeypatch.setattr(readme, "write_report", lambda p: called.append("report") or p.logs / "report.html")
    monkeypatch.setattr(readme, "update_pages", lambda check, only: called.append(f"pages {only}") or ["README.md: b"])
    said = readme.write_anew(profile.of_published())
    assert said == ["Report: logs/ci/report.html", "README.md: b written anew"]
    assert readme.write_anew(profile) == ["Report: runs/ci/logs/report.html"]
    assert called == ["report", "pages ci", "report"]


# Texts that nobody vouches for.


def test_a_readable_text_keeps_its_length_and_loses_every_control_character():
    text = readable(HOSTILE)
    assert len(text) == len(HOSTILE) and "18" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)
    assert readable("ä – 🙂 \u2212\u00a018 €\n") == "ä – 🙂 \u2212\u00a018 €\n"


def test_the_span_is_cut_out_where_it_stands_behind_control_characters():
    text = "\x1b[31m\r\nso 18 it is"
    start = text.index("18")
    assert around(text, (start, start + 2))[1] == "18"
    assert around("abc", None) == ("abc", "", "")


def drawn(session: Session, width: int = 100) -> str:
    """What the terminal shows of the current case, with its escape sequences."""
    console = Console(force_terminal=True, width=width, highlight=False, color_system="standard")
    with console.capture() as capture:
        console.print(adjudicate_terminal.draw(session))
    return capture.get()


def hostile(profile: Profile, purpose: str) -> Session:
    row = graded(1, HOSTILE)
    case = Case(
        "ai-KD", row.id, row.question + HOSTILE, row.response, True, Fraction(18), row.rule, None, ("a reason",)
    )
    return Session(profile, [case], "Ann", purpose)


def test_an_answer_cannot_drive_the_terminal(profile):
    shown = drawn(hostile(profile, "review"))
    assert shown.count("[red]18[/red]") == 2, "markup was read, in the question or in the answer"
    without_styles = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", without_styles)
    assert "\x1b[31m" not in shown


def test_an_answer_cannot_run_in_the_form(profile):
    shown = adjudicate_form.draw(hostile(profile, "review"))
    assert "<script" not in shown and shown.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert "\x1b" not in shown and "\u202e" not in shown


@pytest.mark.parametrize("draw", [drawn, adjudicate_form.draw], ids=["terminal", "form"])
def test_the_span_is_marked_and_gold_model_and_id_are_not_shown(session, draw):
    for _ in range(5):
        shown = draw(session)
        value = as_written(session.case.automatic)
        assert f"»{value}«" in shown or f"<mark>{value}</mark>" in shown
        assert "Automatic value" in shown and "rules differ" in shown
        assert GOLD not in shown and session.case.model not in shown and not re.search(rf"\b{session.case.id}\b", shown)
        session.skip()


@pytest.mark.parametrize("draw", [drawn, adjudicate_form.draw], ids=["terminal", "form"])
def test_an_audit_shows_question_and_answer_and_nothing_of_the_rules(audit, draw):
    for _ in range(4):
        shown = draw(audit)
        assert audit.case.response.splitlines()[-1] in shown and audit.case.question in shown
        for secret in ("utomatic", "»", "<mark>", "rule", "isted", GOLD, audit.case.model):
            assert secret not in shown
        audit.skip()


# The verb.


def adjudicate(*words: str, typed: str = ""):
    return CliRunner().invoke(app, ["adjudicate", "--profile", "ci", "--who", "Ann", *words], input=typed)


def test_the_verb_takes_decisions_from_a_pipe(profile, validated, regraded):
    done = adjudicate("--limit", "3", typed="a\nwhat\nc\n7.5\nn\nu\ns\n\n")
    assert done.exit_code == 0, done.output
    assert "'what' is no number" in done.output and "3 of 3" in done.output and "4 of" not in done.output
    assert [d.decision for d in read_decisions()] == ["accept", "correct"]
    assert regraded.count("regrade ci") == 1 and "2 decisions saved." in done.output


@pytest.mark.parametrize("end", ["", "q\n", "Q\n", "quit\n"])
def test_quitting_or_the_end_of_the_input_loses_nothing(profile, validated, regraded, end):
    done = adjudicate(typed=f"a\n{end}")
    assert done.exit_code == 0 and len(read_decisions()) == 1 and regraded[0] == "regrade ci"


def test_ctrl_c_loses_nothing(session, monkeypatch, regraded):
    console, typed = Console(), iter(["5", KeyboardInterrupt])

    def answer(*_, **__):
        given = next(typed)
        if given is KeyboardInterrupt:
            raise KeyboardInterrupt
        return given

    monkeypatch.setattr(console, "input", answer)
    adjudicate_terminal.run_session(session, console)
    assert [d.value for d in read_decisions()] == ["5"]


def test_the_verb_audits(profile, regraded):
    done = adjudicate("--audit", "2", typed="123456\n123456\n\n")
    assert done.exit_code == 0, done.output
    assert "2 of 2: 100.00% (95 % interval 34.24% to 100.00%)" in done.output
    assert {d.purpose for d in read_decisions()} == {"audit"}
    before_end = done.output.split("last one")[0]
    assert "utomatic" not in before_end.replace("automatic value", ""), "the reading was shown before the end"


def test_the_list_names_open_answers_and_asks_nothing(profile, validated):
    add_decision(made(graded(1, "gone"), "5"))
    found = json.loads(adjudicate("--list", "--json", "--limit", "4").stdout)
    assert (found["profile"], found["open"], found["stale"], len(found["cases"])) == ("ci", 10, 1, 4)
    assert set(found["cases"][0]) == {"model", "id", "answer_sha256", "automatic", "rule", "span", "truncated", "why"}
    assert GOLD not in json.dumps(found)
    lines = adjudicate("--list").stdout.splitlines()
    assert len(lines) == 12 and lines[-2] == "10 answers open." and "1 decision is for answers" in lines[-1]
    assert json.loads(adjudicate("--list", "--json", "--model", "ai-KD").stdout)["open"] == 0


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("--who", ""), "Nobody is named"),
        (("--who", "a\nb"), "no line break"),
        (("--model", "gpt"), "no model 'gpt'"),
        (("--json",), "--json belongs to --list"),
        (("--list", "--audit", "3"), "leave out --audit"),
        (("--profile", "nope"), "No profile 'nope'"),
    ],
)
def test_a_mistake_is_one_sentence(profile, validated, words, sentence):
    done = adjudicate(*words)
    assert done.exit_code == 1 and sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_where_nothing_is_open_nothing_is_asked(profile, validated, regraded):
    done = adjudicate("--model", "ai-KD")
    assert done.exit_code == 0 and "0 answers open" in done.output and ">" not in done.output and regraded == []


def test_in_a_real_terminal_a_decision_is_saved_undone_and_left_with_ctrl_c(profile):
    pexpect = pytest.importorskip("pexpect")
    words = ["-m", "primekd.cli", "adjudicate", "--profile", "ci", "--who", "Ann", "--model", "control"]
    environment = os.environ | {"TERM": "xterm-256color"}
    child = pexpect.spawn(
        sys.executable, words, env=environment, encoding="utf-8", timeout=120, dimensions=(40, 100),
        # Who starts the tests in the background of a script makes them, and this child, deaf to interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    child.expect("1 of 10.*> ")
    child.sendline("no number")
    child.expect("is no number.*> ")
    child.sendline("31")
    child.expect("2 of 10.*> ")
    assert [d.value for d in read_decisions()] == ["31"], "it is not on disk while the next case is shown"
    child.sendline("u")
    child.expect("1 of 10.*> ")
    for _ in range(60):  # readline misses an interrupt that comes after the prompt is shown and before it waits
        child.sendintr()
        if child.expect(["Nothing was decided.", pexpect.TIMEOUT], timeout=2) == 0:
            break
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0 and read_decisions() == []


# The form.


@pytest.fixture
def form(session) -> adjudicate_form.Form:
    return adjudicate_form.Form(session, lambda s: f"{len(s.decided)} at the end <b>", "hello")


def enter(form: adjudicate_form.Form, text: str) -> None:
    """Types into the field and presses Enter, as the browser reports it."""
    form.entry.value = text
    form.entry._handle_custom_msg({"event": "submit"}, [])


def test_the_form_decides_by_keyboard(form):
    assert "hello" in form.message.value and "1 of 10" in form.view.value
    enter(form, "a")
    enter(form, "7.5")
    assert [d.decision for d in read_decisions()] == ["accept", "correct"]
    assert form.entry.value == "" and "3 of 10" in form.view.value
    enter(form, "u")
    assert len(read_decisions()) == 1 and "2 of 10" in form.view.value


def test_enter_takes_the_value_that_comes_with_it_and_leaving_the_field_decides_nothing(session):
    waiting = []
    form = adjudicate_form.Form(session, str, later=lambda _, action: waiting.append(action))
    assert not form.entry.continuous_update, "the field's reports would be held back, and Enter would overtake them"
    form.entry.value = "1"  # the field was left
    assert read_decisions() == []
    form.entry._handle_custom_msg({"event": "submit"}, [])
    assert read_decisions() == [], "the value that comes with this Enter is not here yet"
    form.entry.value = "12.5"
    assert [d.value for d in read_decisions()] == ["12.5"] and "Saved: 12.5." in form.message.value
    waiting.pop()()  # too late: it has been taken
    assert len(read_decisions()) == 1
    # A value that is known already is taken when no other comes.
    form.entry.value = "7"
    form.entry._handle_custom_msg({"event": "submit"}, [])
    waiting.pop()()
    assert [d.value for d in read_decisions()] == ["12.5", "7"]
    # Enter and a button at once are one decision: the button's.
    form.entry._handle_custom_msg({"event": "submit"}, [])
    form.buttons["none"].click()
    waiting.pop()()
    form.entry.value = "9"
    assert [d.value for d in read_decisions()] == ["12.5", "7", "-1"]


def test_the_form_decides_by_buttons(form):
    assert list(form.buttons) == ["accept", "correct", "none", "skip", "undo", "finish"]
    form.buttons["accept"].click()
    form.entry.value = "12"
    form.buttons["correct"].click()
    form.buttons["skip"].click()
    form.buttons["none"].click()
    form.buttons["undo"].click()
    assert [(d.decision, d.value) for d in read_decisions()][1:] == [("correct", "12")]
    assert "4 of 10" in form.view.value
    form.buttons["finish"].click()
    assert "2 at the end &lt;b&gt;" in form.message.value


def test_a_slip_in_the_form_is_said_and_decides_nothing(form):
    enter(form, "<b>x</b>")
    assert "is no number" in form.message.value and "<b>" not in form.message.value
    assert "1 of 10" in form.view.value and read_decisions() == []
    form.who.value = ""
    enter(form, "5")
    assert "Nobody is named" in form.message.value and read_decisions() == []
    form.who.value = "Bob"
    enter(form, "5")
    assert read_decisions()[0].who == "Bob"


def test_the_form_ends_with_the_last_case(profile, validated):
    form = adjudicate_form.Form(open_session(profile, "Ann", limit=1)[0], str)
    enter(form, "n")
    assert "none left" in form.view.value
    assert all(form.buttons[name].disabled for name in ("accept", "correct", "none", "skip"))
    form.buttons["undo"].click()
    assert "1 of 1" in form.view.value and not form.buttons["accept"].disabled


def test_the_form_of_an_audit_has_nothing_to_accept(audit):
    form = adjudicate_form.Form(audit, str)
    assert "accept" not in form.buttons and form.who.disabled
    enter(form, "55")
    assert read_decisions()[0].purpose == "audit"


CODE = """
from primekd.report.adjudication_form import adjudication_form
from primekd.config import load_profile
adjudication_form(load_profile("ci"), who="Ann")
"""


@pytest.mark.parametrize("attended", [True, False])
def test_a_notebook_shows_the_form_only_where_somebody_sits_before_it(profile, attended):
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=120)
    said: list[dict] = []
    try:
        reply = client.execute_interactive(
            CODE, allow_stdin=attended, timeout=120, output_hook=said.append, stdin_hook=lambda _: None
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    kinds = [m["content"]["data"] for m in said if m["msg_type"] == "display_data"]
    printed = "".join(m["content"]["text"] for m in said if m["msg_type"] == "stream")
    assert any("application/vnd.jupyter.widget-view+json" in data for data in kinds) == attended
    assert ("10 answers open" in printed and "primekd adjudicate --profile ci" in printed) != attended
    assert any(m["msg_type"] == "comm_open" for m in said) == attended
