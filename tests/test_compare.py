"""Grading any CSV of answers, and comparing two files of them: the library and the verbs `grade` and `compare`."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from published_logs import FOLDER, needs_published_logs
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint
from typer.testing import CliRunner

from primekd.assessment.logs import COLUMNS, LogRow, read_log, write_log
from primekd.assessment.reading import EXTRACTORS, RULES
from primekd.cli import app
from primekd.config import CONTROL, TEACHER
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_table
from primekd.statistics.compare import check_extractors, compare, in_words, pair_up, read_answers
from primekd.statistics.grade_file import PILE, Columns, grade_file, grade_rows, read_rows, token_limit
from primekd.statistics.inference import McNemar, detectable_difference

PLAIN = Columns("response", "gold")


def write(path: Path, *rows: dict, **more) -> Path:
    """A CSV file of rows; `more` are columns that are the same in every row."""
    rows = [row | more for row in rows]
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def answers(*responses: str, gold: str = "18", **more) -> list[dict]:
    return [{"response": response, "gold": gold} | more for response in responses]


def run(*words) -> str:
    """What a verb prints where it ends well."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def fail(*words) -> str:
    """The one sentence on stderr where a verb ends with 1."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 1 and not done.stdout, done.output
    assert done.stderr.startswith("primekd: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def grade(path, *words, response="response", gold="gold") -> list:
    return ["grade", path, "--response-column", response, "--gold-column", gold, *words]


# grade.


def test_a_file_is_graded_row_by_row(output):
    path = write(
        output / "a.csv",
        {"said": r"So \boxed{18}", "truth": "18"},
        {"said": "18.00 each\n3", "truth": "She makes 9 * 2 = <<9*2=18>>18.\n#### 18"},
        {"said": "One or 2 of 3\nThe answer is 1,080.", "truth": "1,080"},
        {"said": "From 3 to 4\nor 5", "truth": "$6.50"},
        {"said": "no idea", "truth": "-1"},
    )
    result = grade_file(path, Columns("said", "truth"))
    low, high = proportion_confint(3, 5, method="wilson")
    assert list(result) == ["n", "correct", "accuracy", "ci95", "truncated", "rules", "extractor", "truncated_found"]
    assert (result["n"], result["correct"], result["accuracy"]) == (5, 3, 0.6)
    assert result["ci95"] == [pytest.approx(low), pytest.approx(high)]
    assert result["rules"] == {"boxed": 1, "first-line": 1, "phrase": 1, "last-number": 1, "none": 1}
    assert result["extractor"] == "published"
    rows = grade_rows(path, Columns("said", "truth"))
    assert [r.gold for r in rows] == ["18", "18", "1080", "6.5", "-1"]
    assert [r.id for r in rows] == ["1", "2", "3", "4", "5"]
    assert [r.correct for r in rows] == [True, True, True, False, False]


def test_the_verb_prints_json_or_words(output):
    path = write(output / "a.csv", *answers("18", "19"))
    assert json.loads(run(*grade(path, "--json"))) == grade_file(path, PLAIN)
    said = run(*grade(path))
    assert "1 of 2 correct: 50.00%" in said and "first-line 2" in said and "(published)" in said


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_each_extractor_counts_its_own_rules(extractor, output):
    path = write(output / "a.csv", *answers("So 3 and 4\n#### 18", "nothing"))
    result = json.loads(run(*grade(path, "--extractor", extractor, "--json")))
    assert result["extractor"] == extractor and result["correct"] == 1
    assert list(result["rules"]) == list(RULES[extractor])
    assert sum(result["rules"].values()) == 2 and result["rules"]["none"] == 1


def test_the_log_that_grade_writes_is_a_per_item_log(output):
    path = write(output / "a.csv", *answers("18", "So\n19, 20", question="How many?", response_tokens=7))
    run(*grade(path, "--out", output / "log.csv"))
    rows = read_log(output / "log.csv")
    assert rows == grade_rows(path, PLAIN)
    assert [(r.id, r.question, r.response_tokens, r.correct) for r in rows] == [
        ("1", "How many?", 7, True),
        ("2", "How many?", 7, False),
    ]
    assert rows[0].span == "0:2" and (output / "log.csv").read_text(encoding="utf-8").startswith(",".join(COLUMNS))


def test_ids_of_the_file_are_kept(output):
    path = write(output / "a.csv", *(row | {"id": f"q{n}"} for n, row in enumerate(answers("18", "19"))))
    assert [r.id for r in grade_rows(path, PLAIN)] == ["q0", "q1"]


ASKED = "A bus runs all day. How far does it go in 7 hours?"
ANSWERED = "The answer is that in 7 hours it goes 50 miles."


def test_a_column_named_question_is_used_where_no_other_is_named(output):
    """The validated rules tell the question's own numbers from the answer only where they know what was asked."""
    (row,) = answers(ANSWERED, gold="50")
    cases = {
        "auto": (row | {"question": ASKED}, PLAIN),
        "named": (row | {"question": "?", "asked": ASKED}, replace(PLAIN, question="asked")),
        "none": (row, PLAIN),
    }
    found = {}
    for name, (one, columns) in cases.items():
        (graded,) = grade_rows(write(output / "a.csv", one), columns, "validated")
        found[name] = (graded.question, graded.extracted, graded.correct)
    assert found == {"auto": (ASKED, "50", True), "named": (ASKED, "50", True), "none": ("", "7", False)}
    path = write(output / "a.csv", cases["named"][0])
    result = json.loads(run(*grade(path, "--question-column", "asked", "--extractor", "validated", "--json")))
    assert result["correct"] == 1


# Truncation: from a column, from the lengths, from the text.


def truncated(path: Path) -> list[bool]:
    return [row.truncated for row in grade_rows(path, PLAIN)]


def test_a_column_says_which_answers_were_truncated(output):
    cells = {"1": True, "true": True, "Yes": True, "0": False, "False": False, "no": False}
    rows = [row | {"truncated": cell} for row, cell in zip(answers(*["It is"] * 6), cells, strict=True)]
    # The texts and the lengths would say that all were.
    assert truncated(write(output / "a.csv", *rows, response_tokens=9)) == list(cells.values())


def test_where_the_column_is_empty_the_text_decides(output):
    assert truncated(write(output / "a.csv", *answers("It is 18.", "It is", truncated=""))) == [False, True]


def test_a_pile_of_answers_of_the_greatest_length_was_truncated(output):
    """Of those at the limit, the last ends like a sentence, and of those below it, the last does not."""
    texts = ["It is", "So that", "We add", "It is 18.", "It is 18.", "It is"]
    lengths = [350] * 4 + [17, 20]
    rows = [row | {"response_tokens": n} for row, n in zip(answers(*texts), lengths, strict=True)]
    assert truncated(write(output / "a.csv", *rows)) == [True] * 4 + [False] * 2
    assert json.loads(run(*grade(output / "a.csv", "--json")))["truncated"] == 4


def test_a_pile_of_answers_that_ended_shows_no_limit(output):
    rows = answers("18", "19", "20", "It is", response_tokens=2)
    assert truncated(write(output / "a.csv", *rows)) == [False, False, False, True]


def test_one_longest_answer_is_no_pile_and_the_text_decides(output):
    rows = [row | {"response_tokens": n} for n, row in enumerate(answers("It is 18.", "It is", "It is 18"), start=5)]
    assert truncated(write(output / "a.csv", *rows)) == [False, True, True]
    assert truncated(write(output / "a.csv", *answers("It is 18.", "It is"))) == [False, True]


@pytest.mark.parametrize(
    "lengths, limit",
    [
        ([350, 350, 12], 350),
        ([350, 340, 12], None),
        ([9], None),
        ([50] * 2 + [3] * (round(2 / PILE) - 2), None),  # as many as chance may give
        ([50] * 3 + [3] * (round(2 / PILE) - 2), 50),
        (["350", "350", ""], 350),  # a length that is not known says nothing
        (["350.0", "350.0", "nan", "12.0"], 350),  # as pandas writes lengths where one is missing
        (["", ""], None),
    ],
)
def test_the_limit_is_the_greatest_length_where_many_answers_have_it(lengths, limit):
    rows = [{"response_tokens": str(n), "said": "It is"} for n in lengths]
    assert token_limit(rows, "said") == limit
    assert token_limit([row | {"said": "It is 18."} for row in rows], "said") is None


def test_an_answer_of_unknown_length_is_judged_by_its_text(output):
    rows = [
        row | {"response_tokens": n} for row, n in zip(answers(*["It is"] * 4), ("50.0", "50.0", "", 7), strict=True)
    ]
    assert truncated(write(output / "a.csv", *rows)) == [True, True, True, False]


def test_the_result_says_how_truncation_was_found(output):
    long = answers(*["It is"] * 3, response_tokens=50)
    cases = {
        "by its column": answers("It is", truncated=0, response_tokens=9),
        "by its column, 1 guessed from how the texts end": [
            *answers("a 3", truncated=1), *answers("a 3", truncated="")
        ],
        "by a pile of answers of the greatest length": long,
        "by a pile of answers of the greatest length, 1 guessed from how the texts end": [
            *long, *answers("3", response_tokens="")
        ],
        "guessed from how the texts end": answers("a 3", "3", response_tokens=7),
    }  # fmt: skip
    for said, rows in cases.items():
        path = write(output / "a.csv", *rows)
        assert json.loads(run(*grade(path, "--json")))["truncated_found"] == said
        assert f" truncated ({said})\n" in run(*grade(path))


def test_an_id_that_stands_twice_is_refused_with_its_rows(output):
    ids = ["a", "b", "a", ""]
    rows = [row | {"id": name} for row, name in zip(answers(*"1234"), ids, strict=True)]
    path = write(output / "a.csv", *rows)
    said = fail(*grade(path, "--out", output / "log.csv"))
    assert "an id may stand once; a (row 2, row 4): give each row its own" in said
    assert not (output / "log.csv").exists()


def test_a_byte_order_mark_belongs_to_no_column(output):
    path = output / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfgold,response\r\n18,18\r\n")
    assert grade_file(path, PLAIN)["correct"] == 1


def test_a_separator_that_was_found_once_is_the_files(output):
    """The other one would cut the header of a further column into more."""
    file = output / "a.csv"
    file.write_text('response;gold;note (x, y, z, w)\nSo 18;18;"good"\n')
    assert grade_file(file, Columns("response", "gold"))["correct"] == 1


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_spreadsheets_separator_is_found(separator, output):
    path = output / "a.csv"
    path.write_text(
        f"gold{separator}response{separator}{separator}\r\n18{separator}So 1, 2, 18{separator}{separator}\r\n"
    )
    assert grade_file(path, PLAIN)["correct"] == 1


# What is wrong with a file is one sentence.

BROKEN = {
    "an absent file": (None, [], "is not there"),
    "an empty file": (b"", [], "is empty"),
    "a file without rows": (b"response,gold\n", [], "has no rows"),
    "no such response column": (b"answer,gold\n18,18\n", [], "has no column 'response': it has answer, gold"),
    "no such gold column": (b"response,truth\n18,18\n", [], "has no column 'gold'"),
    "no such question column": (b"response,gold\n1,1\n", ["--question-column", "q"], "has no column 'q'"),
    "a gold value that is no number": (b"response,gold\n18,18\n18,many\n", [], "row 3: the gold value in 'gold'"),
    "a gold value that is missing": (b"gold,response\n,18\n", [], "row 2: the gold value in 'gold' '' is no number"),
    "a solution that ends in no number": (b"response,gold\n18,so #### many\n", [], "'many' is no number"),
    "a row cut short": (b"gold,response\n18,18\n18\n", [], "row 3 has 1 cells, not 2: it was cut short"),
    "a row cut short behind a long one": (b'gold,response\n18,"a\n\nb"\n18\n', [], "row 3 (line 5) has 1 cells"),
    "a file cut short in a cell": (b'gold,response\n18,"18 is', [], "cannot be read as UTF-8 CSV"),
    "a length that is none": (b"response,gold,response_tokens\n1,1,many\n", [], "row 2: 'response_tokens' is 'many'"),
    "a negative length": (b"response,gold,response_tokens\n1,1,-3\n", [], "row 2: 'response_tokens' is '-3'"),
    "a gold value of 5,000 digits": (b"response,gold\n1," + b"9" * 5000, [], "longer than 4,000"),
    "a cell too many": (b"response,gold\n18,18\n1,080,18\n", [], "row 3 has more cells than columns"),
    "two columns of one name": (b"response,gold,gold\n18,18,19\n", [], "has two columns of one name"),
    "a flag that says nothing": (b"response,gold,truncated\n1,1,maybe\n", [], "row 2: 'truncated' is 'maybe'"),
    "an unknown extractor": (b"response,gold\n18,18\n", ["--extractor", "guess"], "No extractor is called 'guess'"),
    "another encoding": ("response,gold\n18 \u20ac,18\n".encode("cp1252"), [], "cannot be read as UTF-8 CSV"),
}


@pytest.mark.parametrize("content, words, sentence", BROKEN.values(), ids=list(BROKEN))
def test_what_cannot_be_graded_is_one_sentence(content, words, sentence, output):
    path = output / "a.csv"
    if content is not None:
        path.write_bytes(content)
    said = fail(*grade(path, *words))
    assert sentence in said
    assert not (output / "log.csv").exists()


def test_the_log_does_not_overwrite_the_file_that_is_graded(output):
    path = write(output / "a.csv", *answers("18"))
    before = path.read_bytes()
    assert "is the file that is graded" in fail(*grade(path, "--out", path))
    assert path.read_bytes() == before


def test_an_unknown_extractor_names_those_that_there_are(output):
    path = write(output / "a.csv", *answers("18"))
    assert all(name in fail(*grade(path, "--extractor", "guess")) for name in EXTRACTORS)


def test_both_columns_have_to_be_named(output):
    done = CliRunner().invoke(app, ["grade", str(output / "a.csv"), "--response-column", "response"])
    assert done.exit_code == 2 and "gold-column" in done.stderr


@needs_published_logs
def test_the_published_log_of_base_kd_under_the_published_rules():
    """404 in the release, with a stale variable, dropped minus signs and verdicts by hand; 416 by the rules.

    A reading of "1/3." as 3 would find one more.
    """
    result = json.loads(run(*grade(FOLDER / "base-KD.csv", "--json", gold="gold_solution")))
    assert (result["n"], result["correct"]) == (1319, 416)
    assert result["accuracy"] == pytest.approx(416 / 1319)
    assert result["ci95"] == pytest.approx(proportion_confint(416, 1319, method="wilson"))
    assert sum(result["rules"].values()) == 1319 and result["truncated"] == 1294
    (row,) = [
        r for r in read_table(ROOT / "logs" / "published" / "accuracies.csv")
        if (r["model"], r["extractor"]) == ("base-KD", "published")
    ]  # fmt: skip
    assert int(row["correct"]) == result["correct"]


# compare.


def log(verdicts: str, adjudicated: str = "") -> list[LogRow]:
    """A log with one item a character: 1 was right. `adjudicated`: + a person's right value, x a wrong one, . none."""
    values = {"+": "18", "x": "-1", ".": ""}
    return [
        LogRow(f"q{n}", f"Question {n}?", "18", "18" if v == "1" else "19", 5, False, "", "first-line", "0:2", v == "1",
               values[adjudicated[n]] if adjudicated else "")
        for n, v in enumerate(verdicts)
    ]  # fmt: skip


FIRST, SECOND = "1100110010" * 4, "1011111011" * 4


def test_two_logs_are_compared_pair_by_pair():
    result = compare(pair_up(log(FIRST), log(SECOND)))
    pairs = list(zip(FIRST, SECOND, strict=True))
    assert (result["n"], result["both"]) == (40, pairs.count(("1", "1")))
    assert (
        (result["only_first"], result["only_second"]) == (pairs.count(("1", "0")), pairs.count(("0", "1"))) == (4, 16)
    )
    assert result["first"]["correct"] == FIRST.count("1") and result["second"]["correct"] == SECOND.count("1")
    assert result["first"]["ci95"] == pytest.approx(proportion_confint(FIRST.count("1"), 40, method="wilson"))
    assert result["difference"] == pytest.approx(12 / 40)
    low, high = result["difference_ci95"]
    assert low < 12 / 40 < high and low > 0
    assert result["mcnemar_p"] == pytest.approx(binomtest(4, 20, 0.5).pvalue)
    assert result["changed"] == [f"q{n}" for n, (a, b) in enumerate(pairs) if a != b]
    assert result["says"].startswith("The second file answers more questions correctly than the first: +30.00 points")


def test_swapped_files_give_the_negated_difference():
    one, other = log(FIRST), log(SECOND)
    forth, back = compare(pair_up(one, other)), compare(pair_up(other, one))
    assert back["difference"] == -forth["difference"]
    low, high = forth["difference_ci95"]
    assert back["difference_ci95"] == pytest.approx([-high, -low], abs=1e-12)
    assert (back["only_first"], back["only_second"]) == (forth["only_second"], forth["only_first"])
    assert (back["first"], back["second"]) == (forth["second"], forth["first"])
    for same in ("n", "both", "mcnemar_p", "detectable_difference", "changed"):
        assert back[same] == forth[same], same
    assert back["says"].startswith("The second file answers fewer questions correctly than the first: -30.00 points")


def test_a_file_compared_with_itself_claims_nothing():
    result = compare(pair_up(log(FIRST), log(FIRST)))
    assert (result["difference"], result["mcnemar_p"]) == (0, 1)
    _, none_of_them = proportion_confint(0, len(FIRST), method="wilson")  # what so few items could not have shown
    assert result["difference_ci95"] == pytest.approx([-none_of_them, none_of_them])
    assert result["changed"] == [] and result["says"].startswith("No difference can be claimed")


def test_a_difference_without_significance_is_not_claimed():
    result = compare(pair_up(log("1110" * 5), log("1101" * 5)))
    assert result["difference"] == 0 and result["only_first"] == 5
    few = compare(pair_up(log("0000011111"), log("0001111111")))
    assert few["difference"] == pytest.approx(0.2) and few["mcnemar_p"] == 0.5
    assert few["says"].startswith("No difference can be claimed: +20.00 points")
    assert f"{100 * few['detectable_difference']:.1f} points or more" in few["says"]


def test_small_p_values_are_said_as_bounds():
    known = {"difference": -0.5, "difference_ci95": [-0.6, -0.4], "p": 1e-9, "detectable_difference": 0.1}
    known |= {"templates": None, "truncated": [0.5, 0.5]}
    assert in_words(known) == (
        "The second file answers fewer questions correctly than the first: -50.00 points [-60.00, -40.00], "
        "exact McNemar p < 0.001."
    )


def test_items_of_one_template_are_no_independent_draws():
    """Sixteen against four is beyond doubt of 40 questions; where the sixteen are of a few templates it is not."""

    def by_template(verdicts: str) -> list[LogRow]:
        order = sorted(range(40), key=lambda n: FIRST[n] + SECOND[n])
        return [replace(r, id=f"gsm-symbolic-{order.index(n) // 5}-{n}") for n, r in enumerate(log(verdicts))]

    alone, shared = compare(pair_up(log(FIRST), log(SECOND))), compare(pair_up(by_template(FIRST), by_template(SECOND)))
    assert alone["templates"] is None and alone["p"] == alone["mcnemar_p"] < 0.05
    assert shared["templates"] == 8 and shared["mcnemar_p"] == alone["mcnemar_p"] and shared["p"] > 0.05
    assert shared["difference"] == pytest.approx(alone["difference"])
    assert shared["difference_ci95"][0] < 0 < alone["difference_ci95"][0]
    assert shared["detectable_difference"] > alone["detectable_difference"]
    assert (
        shared["says"].startswith("No difference can be claimed")
        and "clustered by 8 groups of items p = " in shared["says"]
    )
    larger = in_words(shared | {"p": shared["mcnemar_p"]})  # where that is the larger one, it is the one that counts
    assert "exact McNemar p = " in larger and "clustered" not in larger


@pytest.mark.parametrize("cut", ["first", "second"])
def test_nothing_is_claimed_of_a_file_whose_answers_were_mostly_cut_off(cut):
    files = {"first": log(FIRST), "second": log(SECOND)}
    files[cut] = [replace(r, truncated=n < 30) for n, r in enumerate(files[cut])]
    result = compare(pair_up(files["first"], files["second"]))
    assert result["says"].startswith(
        f"Nothing is claimed, as 75% of the {cut} file's answers were cut off: +30.00 points"
    )


def test_items_are_paired_by_id_and_not_by_place():
    one, other = log(FIRST), log(SECOND)
    assert compare(pair_up(one, other[::-1])) == compare(pair_up(one, other))


def test_decisions_of_people_count_where_they_are_asked_for():
    one, other = log("1100"), log("1100", adjudicated="x.+.")
    assert compare(pair_up(one, other))["difference"] == 0
    result = compare(pair_up(one, other), adjudicated=True)
    assert result["adjudicated"] is True and result["changed"] == ["q0", "q2"]
    assert (result["only_first"], result["only_second"], result["second"]["correct"]) == (1, 1, 2)


def other_gold(rows):
    return [replace(rows[0], gold="19"), *rows[1:]]


def other_question(rows):
    return [replace(rows[0], question="Another?"), *rows[1:]]


UNLIKE = {
    "an item more": (lambda rows: [*rows, replace(rows[0], id="q9")], r"1 ids stand in one alone \(q9"),
    "other ids": (lambda rows: [replace(r, id=f"x{r.id}") for r in rows], "8 ids stand in one alone"),
    "an id twice": (lambda rows: [*rows[:-1], rows[0]], "an id twice"),
    "another gold value": (other_gold, "Item q0 has another question or gold value"),
    "another question": (other_question, "Item q0 has another question or gold value"),
}


@pytest.mark.parametrize("change, sentence", UNLIKE.values(), ids=list(UNLIKE))
def test_files_of_other_items_are_refused_both_ways(change, sentence):
    rows = log("1100")
    with pytest.raises(UserError, match=sentence):
        pair_up(rows, change(rows))
    with pytest.raises(UserError, match=sentence):
        pair_up(change(rows), rows)


def test_a_file_without_questions_fits_one_that_has_them():
    rows = log("1100")
    assert len(pair_up(rows, [replace(r, question="") for r in rows])) == 4


def test_one_item_alone_is_refused():
    with pytest.raises(UserError, match="One item alone"):
        compare(pair_up(log("1"), log("0")))


# compare, the verb.


@pytest.fixture
def logs(output) -> tuple[Path, Path]:
    write_log(output / "a.csv", log(FIRST, adjudicated="." * 40))
    write_log(output / "b.csv", log(SECOND, adjudicated="x" * 40))
    return output / "a.csv", output / "b.csv"


def test_the_verb_compares_per_item_logs_by_their_logged_verdicts(logs):
    result = json.loads(run("compare", *logs, "--json"))
    assert result == compare(pair_up(log(FIRST), log(SECOND)))
    said = run("compare", *logs)
    assert f"{logs[0]}: 20 of 40, 50.00% [" in said and f"{logs[1]}: 32 of 40, 80.00% [" in said
    assert "only in the first 4, only in the second 16" in said and said.strip().endswith(result["says"])


def test_the_verb_takes_decisions_of_people_on_demand(logs):
    result = json.loads(run("compare", *logs, "--adjudicated", "--json"))
    assert result["adjudicated"] is True and result["second"]["correct"] == 0


def test_logged_verdicts_are_not_computed_anew(logs):
    """What the log says counts, even where today's rules would say otherwise."""
    rows = [replace(r, correct=True) for r in log(SECOND)]
    write_log(logs[1], rows)
    assert json.loads(run("compare", *logs, "--json"))["second"]["correct"] == 40


def test_other_files_are_graded_by_their_columns(output):
    one = write(output / "a.csv", *answers("18", "19", "So 3, 4\n#### 18"))
    other = write(output / "b.csv", *answers("18", "18", "19 or 20\nor 21"))
    columns = ["--response-column", "response", "--gold-column", "gold"]
    result = json.loads(run("compare", one, other, *columns, "--json"))
    assert (result["first"]["correct"], result["second"]["correct"], result["changed"]) == (2, 2, ["2", "3"])
    strict = json.loads(run("compare", one, other, *columns, "--extractor", "strict-match", "--json"))
    assert (strict["first"]["correct"], strict["second"]["correct"], strict["changed"]) == (1, 0, ["3"])


def test_a_log_can_be_graded_anew_by_naming_its_columns(logs):
    write_log(logs[1], [replace(r, correct=True) for r in log(SECOND)])
    columns = ["--response-column", "response", "--gold-column", "gold", "--question-column", "question"]
    result = json.loads(run("compare", *logs, *columns, "--extractor", "validated", "--json"))
    assert result["second"]["correct"] == SECOND.count("1")


def test_what_cannot_be_compared_is_one_sentence(logs, output):
    plain = write(output / "plain.csv", *answers("18", "19"))
    columns = ["--response-column", "response", "--gold-column", "gold"]
    assert "plain.csv is no per-item log: name its columns" in (said := fail("compare", logs[0], plain))
    assert "(a log has id, question, response_tokens, truncated, extracted, rule, span, correct, adjudicated" in said
    assert "Name both" in fail("compare", *logs, "--gold-column", "gold")
    assert "name the columns to grade them anew" in fail("compare", *logs, "--extractor", "validated")
    assert "No extractor is called 'guess'" in fail("compare", plain, plain, *columns, "--extractor", "guess")
    assert "is not there" in fail("compare", logs[0], output / "none.csv")
    assert "ids stand in one alone" in fail("compare", logs[0], plain, *columns)
    write_log(output / "other.csv", [replace(r, rule="declared") for r in log(SECOND)])
    assert "graded by different extractors" in fail("compare", logs[0], output / "other.csv")
    (output / "empty.csv").write_text("", encoding="utf-8")
    assert "is empty" in fail("compare", logs[0], output / "empty.csv")
    write_log(logs[1], [replace(r, gold="19") for r in log(SECOND)])
    assert "Item q0 has another question or gold value" in fail("compare", *logs)


def test_an_id_twice_is_refused_by_the_verb(logs):
    write_log(logs[1], [*log(SECOND)[:-1], log(SECOND)[0]])
    assert "has an id twice" in fail("compare", *logs)


def test_read_answers_tells_logs_from_other_files(logs, output):
    assert read_answers(logs[0], None, "published") == read_log(logs[0])
    plain = write(output / "plain.csv", *answers("18"))
    assert read_answers(plain, PLAIN, "published") == grade_rows(plain, PLAIN)
    assert read_rows(plain, ["gold"]) == [("row 2", {"response": "18", "gold": "18"})]


@needs_published_logs
def test_two_published_logs_are_compared_as_the_committed_contrasts_say():
    columns = ["--response-column", "response", "--gold-column", "gold_solution"]
    result = json.loads(run("compare", FOLDER / "base-KD.csv", FOLDER / "reverseKL-KD.csv", *columns, "--json"))
    rows = [r for r in read_table(ROOT / "logs" / "published" / "contrasts.csv") if r["extractor"] == "published"]
    (row,) = [r for r in rows if (r["model"], r["reference"]) == ("reverseKL-KD", "base-KD")]
    assert (result["n"], result["both"] + result["only_first"]) == (1319, 416)
    assert (result["only_second"], result["only_first"]) == (int(row["only_model"]), int(row["only_reference"]))
    assert result["mcnemar_p"] == pytest.approx(float(row["p"]), rel=1e-5)
    found = [result["difference"], *result["difference_ci95"]]
    assert found == pytest.approx([float(row[n]) for n in ("accuracy", "accuracy_low", "accuracy_high")], rel=1e-5)
    # Two files are one test; the published contrasts are as many as there are rows.
    test = McNemar(result["only_second"], result["only_first"], result["mcnemar_p"])
    assert result["detectable_difference"] == pytest.approx(detectable_difference(test, 1319, 0.05))
    assert float(row["mde"]) == pytest.approx(detectable_difference(test, 1319, 0.05 / len(rows)), rel=1e-5)


def test_logs_of_other_tasks_are_compared_by_their_own_manifest():
    """A grammar log's values are sentences, a choice's are texts: read as numbers, the file itself would be blamed."""
    for pair in (("labels-pocket", "control", "base-KD"), ("online-pocket", "control", "online-KD")):
        folder, *names = pair
        rows = [read_answers(ROOT / "logs" / folder / f"{name}.csv", None, "published") for name in names]
        check_extractors(*rows)
        assert compare(pair_up(*rows))["n"] == len(rows[0]) > 100
    found = [read_answers(ROOT / "logs" / "online-pocket" / f"{n}.csv", None, "published") for n in (CONTROL, TEACHER)]
    assert compare(pair_up(*found))["says"].startswith("The second file answers more"), "there ends do not matter"


def test_a_foreign_manifest_beside_a_log_says_nothing_of_it(tmp_path):
    write_log(tmp_path / "a.csv", [LogRow("q1", "", "1", "", 1, False, "1", "declared", "", True, "")])
    (tmp_path / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    assert read_answers(tmp_path / "a.csv", None, "published")[0].extracted == "1"


def test_samples_of_one_item_are_no_independent_answers():
    rows = [LogRow(f"q{n // 4}#sample-{n % 4 + 1}", "", "1", "", 1, False, "1", "declared", "", n // 4 % 2 == 0, "")
            for n in range(80)]  # fmt: skip
    found = compare([(row, row) for row in rows])
    low, high = found["first"]["ci95"]
    assert found["first"]["accuracy"] == 0.5 and high - low > 0.35, "as if each of 20 items had one answer"
