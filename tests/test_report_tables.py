"""Tables of results, claims and the published study: numbers as in the files, in Markdown that cannot break."""

import csv
import json
import re
import shutil
from dataclasses import fields
from functools import partial

import pytest
from report_logs import (
    DECIDED,
    make_checkout,
    write_csv,
    write_manifest,
    write_published,
    write_study,
)

from primekd.assessment.logs import LogRow
from primekd.assessment.reading import EXTRACTORS
from primekd.config import load_profile
from primekd.foundation.errors import UserError
from primekd.report.cells import Files, Name, Table, to_markdown
from primekd.report.extraction import audit_note, decision_table, extractor_table
from primekd.report.findings import NOTHING_DECIDED, results_text
from primekd.report.formats import markdown, p_value, percent, percent_range, significant
from primekd.report.html import write_report
from primekd.report.readme import block, update_readme
from primekd.report.results import ADJUDICATED, AUTOMATIC, POINTS_ADJUDICATED, read_results, seed_table
from primekd.statistics.contrasts import SeedRow
from primekd.statistics.primed import PrimedRow
from primekd.statistics.summary import AccuracyRow
from primekd.statistics.validation import AuditRow, ValidationRow
from primekd.studies.responses import ResponseRow


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    return make_checkout(tmp_path, monkeypatch)


@pytest.fixture
def profile(checkout):
    """The profile ci with published logs of eight models on six items, hostile texts and no decision."""
    return write_study(load_profile("ci").of_published())


@pytest.fixture
def decided(checkout):
    """The same with three answers decided by hand."""
    return write_study(load_profile("ci").of_published(), decided=DECIDED)


@pytest.fixture
def published(checkout):
    return write_published(checkout)


def _summary(profile) -> list[dict[str, str]]:
    with open(profile.logs / "summary.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def _numbers(cell: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", cell)]


@pytest.mark.parametrize(
    ("share", "wanted"), [("0.0625", "6.3"), ("0.324408", "32.4"), ("1", "100.0"), ("0", "0.0"), ("-0.0002", "0.0")]
)
def test_percentages_round_half_up(share, wanted):
    assert percent(share) == wanted


def test_numbers_keep_their_digits():
    assert [significant(x) for x in ("0.1", "10.8012", "2.6395e-06", "0", "-0.00348428", "1234", "0.99996")] == [
        "0.1000", "10.80", "2.640e-06", "0", "-0.003484", "1234", "1.000"
    ]  # fmt: skip
    assert [p_value(p) for p in ("1", "0.0031", "0.001", "0.00099", "1e-12")] == [
        "1.000", "0.003", "0.001", "<0.001", "<0.001"
    ]  # fmt: skip
    assert percent("0.05", signed=True) == "+5.0" and percent("0", signed=True) == "0.0"


def test_results_table_has_the_numbers_of_the_files(profile):
    models, paired = block("results", profile.logs).split("Paired differences")
    rows = _cells(models)
    assert len(_cells(paired)) == len((profile.logs / "contrasts.csv").read_text().splitlines()) - 1
    with open(profile.logs / "contrasts.csv", encoding="utf-8", newline="") as handle:
        tests = {r["model"]: float(r["p_holm"]) for r in csv.DictReader(handle) if r["reference"] == "control"}
    names = [f"`{s['model']}`" for s in _summary(profile)]
    assert [row[0].split(" (")[-1].strip("()").split(") (")[-1] for row in rows] == names
    for cells, row in zip(rows, _summary(profile), strict=True):
        assert cells[1:3] == [row["n"], row["correct"]] and cells[5] == row["truncated"]
        wanted = [100 * float(row[f"accuracy{end}"]) for end in ("", "_low", "_high")]
        assert _numbers(cells[3]) == pytest.approx(wanted, abs=0.05001)
        if row["model"] in tests:
            assert float(cells[4]) == pytest.approx(tests[row["model"]], abs=0.00051)
        for cell, measure in ((cells[6], "kl"), (cells[7], "nll_gold")):
            if row["model"] == "teacher":
                assert cell == "–"
            else:
                wanted = [float(row[f"{measure}{end}"]) for end in ("", "_low", "_high")]
                assert _numbers(cell) == pytest.approx(wanted, rel=5.1e-4)


def test_results_say_how_wide_the_intervals_are(profile):
    widest = max(float(r["accuracy_high"]) - float(r["accuracy_low"]) for r in _summary(profile))
    said = block("results", profile.logs)
    assert f"With n = 6 items, the 95 % interval of an accuracy is up to {100 * widest:.1f} points wide" in said
    assert "unprimed teacher" in said and "cannot rank" in said


def test_terminal_text_is_plain_and_narrow(profile):
    text = results_text(profile.logs)
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 120
    assert not any(line != line.rstrip() for line in text.splitlines())
    for row in _summary(profile):
        assert re.search(rf"\b{row['model']}[ )]", text)


def _claims(profile) -> dict[str, list[str]]:
    return {re.search(r"`([^`]+)`", row[0])[1]: row for row in _cells(block("claims", profile.logs))}


def test_claim_table_shows_stated_recounted_and_measured(profile, published):
    rows = _claims(profile)
    assert rows["base-fine-tune"][1:3] == ["25.01", "22.97 (303 of 1319)"]
    assert rows["reverseKL-KD"][1:3] == ["34.04", "37.83 (499 of 1319)"]
    assert rows["ai-KD"][1:3] == ["48.14", "–"] and rows["teacher-KD"][1:3] == ["–", "–"]
    # Each row names what made it: this student was trained elsewhere, its second seed has no facts of its own.
    assert rows["ai-KD"][-1] == "ddddddd dirty, answered fffffff; fffffff" and rows["teacher-KD"][-1] == "fffffff"
    assert rows["control"][4:] == ["6", "–", "[`logs/ci/control.csv`](logs/ci/control.csv)", "fffffff"]
    measured = {row["model"]: percent(row["accuracy"]) for row in _summary(profile)}
    assert rows["base-KD"][3].startswith(f"{measured['base-KD']} [")
    # A further seed stands in its strategy's row.
    assert "ai-KD-seed1" not in rows and rows["ai-KD"][5] == "2" and "logs/ci/ai-KD-seed1.csv" in rows["ai-KD"][6]
    assert "not comparable" in block("claims", profile.logs)


def test_a_planted_effect_is_said_to_be_planted(profile):
    path = profile.logs / "manifest.json"
    manifest = json.loads(path.read_text())
    for solutions, said in (
        ({"base-KD": "varied", "ai-KD": "answer"}, True),
        ({"base-KD": "varied"}, False),
        ({}, False),
    ):
        manifest["config"]["prepare"] = {"solutions": solutions}
        path.write_text(json.dumps(manifest))
        note = block("claims", profile.logs)
        assert ("is planted" in note and "(base-KD: varied, ai-KD: answer)" in note) == said


def test_claim_table_without_published_logs_and_from_a_dirty_checkout(profile):
    rows = _claims(profile)
    assert all(row[1:3] == ["–", "–"] for row in rows.values())
    manifest = profile.logs / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["environment"]["git"] = {"commit": "1234567890", "dirty": True}
    manifest.write_text(json.dumps(facts))
    assert _claims(profile)["control"][-1] == "1234567 dirty"
    facts["answered"] = {"git": {"commit": "abcdef012345", "dirty": False}, "hardware": {"cpu": "the first one"}}
    manifest.write_text(json.dumps(facts | {"regraded": "2027-01-01T00:00:00+00:00"}))
    assert _claims(profile)["control"][-1] == "abcdef0, regraded 1234567 dirty"
    assert _claims(profile)["ai-KD"][-1].split("; ")[0] == "ddddddd dirty, answered abcdef0, regraded 1234567 dirty"
    page = write_report(profile).read_text(encoding="utf-8")
    assert "abcdef012345" in page and "2027-01-01 00:00:00 UTC" in page and "the first one" in page


def test_claim_table_takes_the_mean_of_several_seeds(profile):
    row = ["ai-KD", "", 2, 6, 0.4, 0.3, 0.5, 0.02, 0.03, 0.01, "", 0.5, 0.35, 0.65]
    write_csv(profile.logs / "seeds.csv", SeedRow, [row])
    assert _claims(profile)["ai-KD"][3] == "40.0 [30.0, 50.0]"
    write_study(profile, decided=DECIDED)
    write_csv(profile.logs / "seeds.csv", SeedRow, [row])
    assert _claims(profile)["ai-KD"][3:5] == ["40.0 [30.0, 50.0]", "50.0 [35.0, 65.0]"]


def test_seeds_and_extractors_are_shown_with_and_without_adjudication(profile, decided):
    row = ["ai-KD", "", 2, 6, 0.4, 0.3, 0.5, 0.02, 0.03, 0.01, "", 0.5, 0.35, 0.65]
    write_csv(profile.logs / "seeds.csv", SeedRow, [row])
    assert seed_table(read_results(profile.logs)).rows[0][4:6] == ["40.0 [30.0, 50.0]", "50.0 [35.0, 65.0]"]
    path = profile.logs / "accuracies.csv"
    shares = list(csv.DictReader(path.read_text().splitlines()))
    shares[0] |= {"accuracy_adjudicated": "0.75", "accuracy_adjudicated_low": "0.7", "accuracy_adjudicated_high": "0.8"}
    write_csv(path, AccuracyRow, [list(share.values()) for share in shares])
    assert "75.0 [70.0, 80.0]" in write_report(profile).read_text(encoding="utf-8")
    write_study(profile)
    write_csv(profile.logs / "seeds.csv", SeedRow, [row])
    assert "adjudicated" not in " ".join(seed_table(read_results(profile.logs)).head)


def test_sentences_say_by_which_verdicts_they_go(profile):
    page = write_report(profile).read_text(encoding="utf-8")
    for section in ("results", "contrasts"):
        assert AUTOMATIC in page[page.index(f'<section id="{section}"') :].split("</section>", 1)[0]


def test_an_audit_of_some_models_says_which(profile):
    audit = [["ai-KD", 4, 2, 0.5, 0.2, 0.8], ["base-KD", 1, 0, 0, 0, 0.8], ["all", 5, 2, 0.4, 0.1, 0.8]]
    write_csv(profile.logs / "audit.csv", AuditRow, audit)
    titles = read_results(profile.logs).titles
    said = audit_note(profile.logs, titles)
    assert said.startswith("The row of all covers base-KD, Ground truth-KD alone; no answer was looked at of No dist")
    assert "base-KD," not in said.split(";")[1] and said in write_report(profile).read_text(encoding="utf-8")
    assert audit_note(profile.logs, {"ai-KD": "", "base-KD": ""}) == ""
    write_csv(profile.logs / "audit.csv", AuditRow)
    assert audit_note(profile.logs, titles) == ""


def test_a_true_minus_one_is_no_missing_answer():
    rows = [
        LogRow("1", "q", "-1", "-1", 1, False, "-1", "first-line", "0:2", True, "-1.0"),
        LogRow("2", "q", "-1", "x", 1, False, "-1", "none", "", False, "-1.0"),
        LogRow("3", "q", "-1", "-1", 1, False, "-1", "first-line", "0:2", True, "-1"),
    ]
    (cells,) = decision_table({"ai-KD": rows}, {"ai-KD": "A"}).rows
    assert cells == ["A", "3", "3", "1", "1", "1", "1", "1"]


def test_extractors_that_read_a_true_minus_one_disagree_with_others(profile):
    none, minus_one, other = (dict.fromkeys(EXTRACTORS, "-1") | {"validated": v} for v in ("-1", "-1.0", "7"))
    readings = {"ai-KD": {"1": none, "2": minus_one, "3": other, "4": minus_one | {"published": "7"}}}
    rows = {row[0].model: row for row in extractor_table(read_results(profile.logs), {}, readings).rows}
    assert rows["ai-KD"][-1] == "1 of 4"


def test_adjudicated_numbers_stand_beside_automatic_ones_only_if_there_are_any(profile, decided):
    with_decisions = block("results", decided.logs)
    assert ADJUDICATED in with_decisions and POINTS_ADJUDICATED in with_decisions
    assert NOTHING_DECIDED not in with_decisions
    rows = {re.search(r"`([^`]+)`", row[0])[1]: row for row in _cells(with_decisions.split("Paired")[0])}
    assert rows["ai-KD"][3].startswith("33.3 ") and rows["ai-KD"][4].startswith("50.0 ")
    write_study(profile)
    without = block("results", profile.logs)
    assert ADJUDICATED not in without and POINTS_ADJUDICATED not in without and NOTHING_DECIDED in without


def test_logs_without_held_out_answers_have_no_columns_for_them(profile):
    for name in ("summary", "contrasts"):
        path = profile.logs / f"{name}.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        cells = [["" if key.startswith(("kl", "nll")) else value for key, value in row.items()] for row in rows]
        write_csv(path, ",".join(rows[0]), cells)
    said = block("results", profile.logs)
    assert "KL to" not in said and "KL," not in said and "NLL" not in said
    write_manifest(profile)
    assert "Held-out KL" not in write_report(profile).read_text(encoding="utf-8")


def test_what_the_teacher_wrote_is_shown_where_the_logs_have_it(profile):
    shown = [partial(block, "results"), results_text, lambda logs: write_report(profile).read_text(encoding="utf-8")]
    assert not any("training items" in show(profile.logs) for show in shown[:2])
    assert 'id="responses"' not in shown[2](profile.logs)
    rows = [
        ["base-KD", 48, 30, 0.625, 0.48, 0.75, 243.4375, 10, "", ""],
        ["ai-KD", 48, 36, 0.75, 0.61, 0.85, 176.0, 7, 0.1234, 0],
    ]
    write_csv(profile.logs / "responses.csv", ResponseRow, rows)
    base, ai = _cells(block("results", profile.logs).split("training items")[1].split("\n- ")[0])
    assert base == ["`base-KD`", "48", "30", "62.5 [48.0, 75.0]", "243.4", "10", "–", "–"]
    assert ai == ["Ground truth-KD (`ai-KD`)", "48", "36", "75.0 [61.0, 85.0]", "176.0", "7", "12.3", "0"]
    assert "243.4" in shown[1](profile.logs) and max(map(len, shown[1](profile.logs).splitlines())) <= 120
    page = shown[2](profile.logs)
    section = page[page.index('<section id="responses"') :].split("</section>", 1)[0]
    assert "243.4" in section and "12.3" in section and 'href="#responses"' in page


def test_missing_or_foreign_tables_are_refused(profile):
    (profile.logs / "summary.csv").write_text("model,title\nx,y\n")
    with pytest.raises(UserError, match="summary.csv"):
        block("results", profile.logs)


def test_a_missing_table_is_named(profile):
    (profile.logs / "contrasts.csv").unlink()
    with pytest.raises(UserError, match=r"contrasts\.csv"):
        read_results(profile.logs)


def test_markdown_tables_escape_words_and_leave_numbers():
    cells = [Name("a|b", "<img>"), "+3.2 [1.0, 4.0]; p <0.001", Files(("a b",))]
    table = Table("x", ["Model", "A [95 %]", "Log"], [cells])
    head, _, row = to_markdown(table).splitlines()
    assert head == "| Model | A [95 %] | Log |"
    assert row == "| a\\|b (&lt;img&gt;) | +3.2 [1.0, 4.0]; p &lt;0.001 | a b |"
    assert "[x](y)" not in to_markdown(Table("x", ["[x](y)"], [["1 [x](y)"], ["[1](2)"]]))
    assert "[1](2)" not in to_markdown(Table("x", ["h"], [["[1](2)"]]))
    assert [percent_range(v) for v in (["0.1"], ["0.052", "0.0312"])] == ["10.0", "3.1 to 5.2"]


def test_markdown_cells_cannot_break_out():
    assert markdown("a|b\n<img> [x](y) `c`") == "a\\|b &lt;img&gt; \\[x\\](y) \\`c\\`"


README = """# Title

<!-- primekd:begin results ci -->
12.3 typed by hand
<!-- primekd:end -->
Between.
<!-- primekd:begin claims ci -->
<!-- primekd:end -->
The end.
"""
PAGE = "".join(
    f"<!-- primekd:begin {kind} published -->\n<!-- primekd:end -->\n"
    for kind in (
        "validation",
        "validation-strata",
        "published-study",
        "published-disagreements",
        "published-contrasts",
    )  # fmt: skip
)


def test_readme_drift_is_found_and_mended(profile, published, checkout):
    readme = checkout / "README.md"
    readme.write_text(README)
    assert update_readme(readme, check=True) == ["results ci", "claims ci"]
    assert readme.read_text() == README
    assert update_readme(readme, check=False) == ["results ci", "claims ci"]
    mended = readme.read_text(encoding="utf-8")
    assert block("results", profile.logs) in mended and block("claims", profile.logs) in mended
    assert "typed by hand" not in mended and "\nBetween.\n" in mended and mended.endswith("\nThe end.\n")
    assert update_readme(readme, check=True) == update_readme(readme, check=False) == []
    assert readme.read_text(encoding="utf-8") == mended
    readme.write_text(mended.replace("48.14", "49.14"), encoding="utf-8")
    assert update_readme(readme, check=True) == ["claims ci"]


def test_the_headline_has_teacher_student_and_both_differences(profile):
    """A row an arm, of several seeds their mean; what the prompt did to the teacher stands before it."""
    primed = {column.name: "" for column in fields(PrimedRow)}
    primed |= dict.fromkeys(("n", "correct", "truncated", "measured", "accuracy_low", "accuracy_high"), 0)
    primed |= {"split": "train", "arm": "ai-KD", "accuracy": 0.625, "tokens": 41.6, "kl": 0.01234}
    primed |= {"kl_low": 0.01, "kl_high": 0.02}
    shown = [primed, primed | {"split": "test", "accuracy": 0.1}, primed | {"arm": "base-KD", "kl": ""}]
    write_csv(profile.logs / "priming-arms.csv", ",".join(primed), [row.values() for row in shown])
    path = profile.logs / "seeds.csv"
    mean = dict.fromkeys(path.read_text().strip().split(","), "0.5") | {
        "model": "ai-KD",
        "reference": "",
        "seeds": "2",
        "n": "6",
    }
    write_csv(path, ",".join(mean), [mean.values()])
    rows = {row[0]: row[1:] for row in _cells(block("headline", profile.logs))}
    assert rows["Ground truth-KD (`ai-KD`)"][:4] == [
        "62.5 [0.0, 0.0]", "42", "0.012 [0.010, 0.020]", "50.0 [50.0, 50.0]",
    ]  # fmt: skip
    assert (
        rows["`base-KD`"][:3] == ["62.5 [0.0, 0.0]", "42", "–"] and rows["No distillation (`control`)"][:3] == ["–"] * 3
    )
    with open(profile.logs / "contrasts.csv", encoding="utf-8", newline="") as handle:
        [found] = [r for r in csv.DictReader(handle) if (r["model"], r["reference"]) == ("ai-KD", "base-KD")]
    said = rows["Ground truth-KD (`ai-KD`)"][4]
    assert said.startswith(f"{percent(found['accuracy'], signed=True)} [") and ", p " in said
    assert rows["Ground truth-KD (`ai-KD`)"][5] == "2" and "ai-KD-seed1.csv" in rows["Ground truth-KD (`ai-KD`)"][6]
    assert not any("seed1" in name for name in rows)


def test_expected_results_are_a_row_a_profile(profile, checkout):
    folders = [profile.logs, profile.logs.with_name("other")]
    shutil.copytree(*folders)
    manifest = folders[1] / "manifest.json"
    facts = json.loads(manifest.read_text())
    # A second arm read the same store: its training counts, the capture does not count again.
    facts["models"]["base-KD"] = facts["models"]["ai-KD"] | {"seconds": 30.0}
    manifest.write_text(json.dumps(facts))
    summary = _summary(profile)
    for row, (share, kl) in zip(summary[1:3], ((0.125, 0.2), (0.5, 0.3)), strict=True):
        row |= {"accuracy": share, "kl": kl}
    write_csv(profile.logs / "summary.csv", ",".join(summary[0]), [row.values() for row in summary])
    rows = _cells(block("expected", *folders))
    assert [row[0] for row in rows] == ["ci", "other"] and [row[1] for row in rows] == ["6", "6"]
    by_model = {row["model"]: row for row in summary}
    assert [rows[0][2], rows[0][4]] == [percent(by_model[m]["accuracy"]) for m in ("control", "teacher")]
    assert rows[0][3] == "12.5 to 50.0" and rows[1][3] == "33.3"
    assert rows[0][5] == significant(by_model["control"]["kl"], 3) and rows[0][6].startswith("0.200 to ")
    assert [row[8] for row in rows] == ["1 min 8 s", "1 min 38 s"], "61 + 2.5 + 4.5 s, and 30 more"
    assert rows[0][9:] == ["A &lt;cpu&gt;", "fffffff"]


def test_expected_results_count_what_the_sentences_claim(profile):
    """As many as claims() would name: a difference whose adjusted p is under the level."""
    path = profile.logs / "contrasts.csv"
    with open(path, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        row |= {"p_holm": "1", "kl_p_holm": "1", "nll_gold_p_holm": "1"}
    rows[0] |= {"kl_p_holm": "0.001", "kl": "-0.5", "nll_gold_p_holm": "0.001", "nll_gold": "0"}
    write_csv(path, ",".join(rows[0]), [row.values() for row in rows])
    tests = sum(bool(row[p]) for row in rows for p in ("p_holm", "kl_p_holm", "nll_gold_p_holm"))
    assert _cells(block("expected", profile.logs))[0][7] == f"accuracy 0, KL 1, NLL 0 of {tests}"


def test_links_of_a_page_lead_to_logs_also_in_a_checkout_that_is_called_docs(tmp_path, monkeypatch):
    checkout = make_checkout(tmp_path / "docs", monkeypatch)
    write_study(load_profile("ci").of_published())
    readme, page = checkout / "README.md", checkout / "docs" / "results.md"
    page.parent.mkdir()
    for path in (readme, page):
        path.write_text("<!-- primekd:begin claims ci -->\n<!-- primekd:end -->\n")
        update_readme(path, check=False)
        links = re.findall(r"\]\(([^)]+\.csv)\)", path.read_text(encoding="utf-8"))
        assert links and all((path.parent / link).is_file() for link in links)


def test_blocks_of_several_folders_are_written_when_one_of_them_changes(profile, checkout):
    readme = checkout / "README.md"
    shutil.copytree(profile.logs, profile.logs.with_name("other"))
    readme.write_text("<!-- primekd:begin expected ci other -->\n<!-- primekd:end -->\n")
    assert update_readme(readme, check=True, only="pocket") == []
    assert update_readme(readme, check=False, only="other") == ["expected ci other"]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- primekd:begin poems ci -->\n<!-- primekd:end -->\n",
        "<!-- primekd:begin results -->\n<!-- primekd:end -->\n",
        "<!-- primekd:begin results ci ci -->\n<!-- primekd:end -->\n",
        "<!-- primekd:begin results ../ci -->\n<!-- primekd:end -->\n",
        "<!-- primekd:begin results ci -->\n",
        "<!-- primekd:begin results ci -->\n<!-- primekd:begin claims ci -->\n<!-- primekd:end -->\n",
        "<!-- primekd:end -->\n",
        "<!-- primekd:begin results nowhere -->\n<!-- primekd:end -->\n",
    ],
)
def test_readme_with_wrong_markers_is_refused(profile, checkout, text):
    readme = checkout / "README.md"
    readme.write_text(text)
    with pytest.raises(UserError):
        update_readme(readme, check=False)
    assert readme.read_text() == text


def test_a_page_under_docs_has_blocks_of_the_published_logs(published, checkout):
    page = checkout / "docs" / "published.md"
    page.parent.mkdir()
    page.write_text(PAGE)
    assert len(update_readme(page, check=False)) == 5 and update_readme(page, check=True) == []
    text = page.read_text(encoding="utf-8")
    assert "| Fine-tuning (`base-fine-tune`) | 25.01 | 22.97 (303 of 1319) | 1319 |" in text
    assert "+5.0 [+1.0, +8.0]; p &lt;0.001" in text and "3.2 points" in text
    assert "| `base-KD` | 1319 | 384 | 20 | 33 | 882 |" in text
    assert "| validated | truncated | 100 | 75 | 74 | 98.6 [93.0, 99.8] |" in text
    assert "| validated | log base-KD |" in text and "development" not in text
    write_csv(published / "validation.csv", ValidationRow)
    with pytest.raises(UserError, match="no row of the set"):
        update_readme(page, check=True)
    (published / "stated.csv").write_text("model,title\n")
    page.write_text("<!-- primekd:begin published-study published -->\n<!-- primekd:end -->\n")
    with pytest.raises(UserError, match="stated.csv has no column 'n', 'stated'"):
        update_readme(page, check=True)
