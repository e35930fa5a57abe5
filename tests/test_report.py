"""The report: numbers as in the files, hostile text harmless, the same bytes every time."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from primekd.assessment.grade import LogRow, write_log
from primekd.assessment.held_out import HeldOutRow, write_rows
from primekd.assessment.summary import write_summary
from primekd.config import load_profile
from primekd.errors import UserError
from primekd.provenance import hash_file, write_json, write_text
from primekd.report.browser import cut, script_json
from primekd.report.figures import accuracy_forest, kl_forest, loss_curves
from primekd.report.formats import markdown, p_value, percent, significant
from primekd.report.html import write_report
from primekd.report.readme import update_readme
from primekd.report.results import read_results
from primekd.report.tables import claim_table, results_table, results_text

ROOT = Path(__file__).parents[1]
MODELS = ("control", "base-KD", "teacher-KD", "ai-KD", "reverseKL-KD", "base-fine-tune", "ai-KD-seed1", "teacher")
HOSTILE = (
    "</script><script>document.title='stolen'</script> 18",
    "<img src=x onerror=alert(1)> 18",
    "{{7*7}} {% raw %} 18",
    "😀👩‍👩‍👧 the answer is 18, no, 19",
    'commas, "quotes"\nand\r\nlines\u2028with\u2029odd ends & <!-- 18 -->',
    "plain 18",
)
NOTHING_FOUND = 4  # the place of the answer that no number was read from


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder with this repository's configuration and no logs."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    monkeypatch.delenv("PRIMEKD_OUTPUT", raising=False)
    return tmp_path


@pytest.fixture
def profile(checkout):
    """The profile ci with logs of eight models on six items, all of their text hostile."""
    profile = load_profile("ci")
    logs, held_out = {}, []
    for shift, model in enumerate(MODELS):
        logs[model] = [_row(place, text, (place + shift) % 3 == 0) for place, text in enumerate(HOSTILE)]
        if model != "teacher":
            held_out += [HeldOutRow(model, r.id, 10, 0.5 + shift * i, 20, 30.0 + i) for i, r in enumerate(logs[model])]
        write_log(profile.logs / f"{model}.csv", logs[model])
        if model not in ("control", "teacher"):
            steps = "".join(f"{s},0.5,0.1,{2 / s},1,1,1,{3 / s if s % 2 == 0 else ''}\n" for s in range(1, 9))
            curve = profile.logs / "loss_curves" / f"{model}.csv"
            write_text(curve, "step,epoch,learning_rate,loss,ce,kd,grad_norm,eval_loss\n" + steps)
    write_rows(profile.logs / "held-out.csv", held_out)
    write_summary(profile, logs, held_out)
    _write_manifest(profile)
    return profile


def _row(place: int, text: str, right: bool) -> LogRow:
    start = text.index("18")
    rule, span = ("none", "") if place == NOTHING_FOUND else ("last-number", f"{start}:{start + 2}")
    question = f"Question {place}: {text}"
    return LogRow(f"item-{place}", question, "18", text, 12 + place, place == 2, "18", rule, span, right)


def _write_manifest(profile) -> None:
    outputs = {p.relative_to(profile.logs).as_posix(): hash_file(p) for p in sorted(profile.logs.rglob("*.csv"))}
    student = {
        "strategy": "ai-KD",
        "inputs": {"seed": 0, "student": {"model_sha256": "c" * 64}, "signals": {"spec_sha256": "5" * 64}},
        "outputs": {"adapter/adapter_model.safetensors": "a" * 64},
        "end": "2026-01-02T03:04:05+00:00", "seconds": 61.0, "energy_kwh": 0.001, "steps": 8, "response_tokens": 96,
        "git": {"commit": "d" * 40, "dirty": True}, "manifest_sha256": "e" * 64,
        "signals": {"spec": {"priming": "<b>Check twice.</b>"}, "items": 8, "tokens": 9, "bytes": 2**20,
                    "sessions": [{"seconds": 2.5, "energy_kwh": None}]},
    }  # fmt: skip
    manifest = {
        "kind": "assessment", "outputs": outputs, "start": "2026-01-02T03:00:00+00:00",
        "end": "2026-01-02T03:10:00+00:00", "config": profile.resolved(), "seconds": 4.5, "energy_kwh": 0.002,
        "models": {"ai-KD": student}, "teacher": {"spec_sha256": "7" * 64, "items": 6, "tokens": 60},
        "environment": {"git": {"commit": "f" * 40, "dirty": False}, "hardware": {"cpu": "A <cpu>", "cores": 2}},
    }  # fmt: skip
    write_json(profile.logs / "manifest.json", manifest)


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
    models, paired = results_table(profile.logs).split("Paired differences")
    rows = _cells(models)
    assert len(_cells(paired)) == len((profile.logs / "contrasts.csv").read_text().splitlines()) - 1
    with open(profile.logs / "contrasts.csv", encoding="utf-8", newline="") as handle:
        tests = {r["model"]: float(r["p_holm"]) for r in csv.DictReader(handle) if r["reference"] == "control"}
    assert [row[0] for row in rows] == [f"{s['title']} (`{s['model']}`)" for s in _summary(profile)]
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
    said = results_table(profile.logs)
    assert f"With n = 6 items, the 95 % interval of an accuracy is up to {100 * widest:.1f} points wide" in said
    assert "unprimed teacher" in said and "cannot rank" in said


def test_terminal_text_is_plain_and_narrow(profile):
    text = results_text(profile.logs)
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 120
    assert not any(line != line.rstrip() for line in text.splitlines())
    for row in _summary(profile):
        assert f"{row['model']} " in text


def test_claim_table_shows_published_beside_measured(profile):
    rows = {re.search(r"\(`(.+)`\)", row[0])[1]: row for row in _cells(claim_table(profile.logs))}
    assert rows["control"][2] == "12.20" and rows["ai-KD"][2] == "48.14" and rows["ai-KD-seed1"][2] == "–"
    assert rows["ai-KD"][1] == "[`logs/ci/ai-KD.csv`](logs/ci/ai-KD.csv)"
    assert rows["ai-KD"][4] == "6"
    assert "not comparable" in claim_table(profile.logs)


def test_missing_or_foreign_tables_are_refused(profile):
    (profile.logs / "summary.csv").write_text("model,title\nx,y\n")
    with pytest.raises(UserError, match="summary.csv"):
        results_table(profile.logs)
    (profile.logs / "contrasts.csv").unlink()
    with pytest.raises(UserError):
        read_results(profile.logs)


def test_markdown_cells_cannot_break_out():
    assert markdown("a|b\n<img> [x](y) `c`") == "a\\|b &lt;img&gt; \\[x\\](y) \\`c\\`"


def test_figures_are_the_same_every_time(profile):
    results = read_results(profile.logs)
    for draw in (lambda: accuracy_forest(results), lambda: kl_forest(results), lambda: loss_curves(profile.logs)):
        svg = draw()
        assert svg == draw()
        assert "<text" in svg and "Ground truth-KD" in svg and "dc:date" not in svg
    assert "Teacher, unprimed" not in kl_forest(results)


def test_spans_count_code_points():
    text = HOSTILE[3]
    start = text.index("18")
    assert cut(text, f"{start}:{start + 2}") == [text[:start], "18", text[start + 2 :]]
    assert cut("short", "3:99") == cut("short", "") == cut("short", "x:y") == ["short"]


def test_report_holds_the_answers_and_nothing_hostile(profile):
    page = write_report(profile).read_bytes().decode()
    assert page.startswith("<!DOCTYPE html>")
    start = '<script id="item-data" type="application/json">'
    raw = page[page.index(start) + len(start) :].split("</script>", 1)[0]
    data = json.loads(raw)
    assert not set(raw) & set("<>&\u2028\u2029")
    assert [m["name"] for m in data["models"]] == list(MODELS)
    for place, item in enumerate(data["items"]):
        assert item["question"] == f"Question {place}: {HOSTILE[place]}"
        for answer in item["answers"]:
            assert "".join(answer["text"]) == HOSTILE[place]
            assert answer["text"][1:2] == ([] if place == NOTHING_FOUND else ["18"])
    rest = page.replace(raw, "")
    for text in ("onerror", "stolen", "<b>Check", "A <cpu>", "{{", "{%", "\u2028"):
        assert text not in rest
    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert "&lt;b&gt;Check twice.&lt;/b&gt;" in page


def test_report_needs_no_network_and_names_its_sources(profile):
    page = write_report(profile).read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    assert policy in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "innerHTML" not in page
    for text in ("a" * 64, "5" * 64, "7" * 64, "d" * 40, "f" * 40, hash_file(profile.logs / "control.csv")):
        assert text in page
    assert "2026-01-02 03:10:00 UTC" in page and "uncommitted changes" in page and "1 min 1 s" in page
    assert "–" in page and "Do not trust" not in page


def test_report_is_the_same_every_time_and_tells_of_altered_logs(profile):
    first = write_report(profile).read_bytes()
    assert write_report(profile).read_bytes() == first
    curve = profile.logs / "loss_curves" / "ai-KD.csv"
    curve.write_text(curve.read_text() + "9,1,0.1,0.1,1,1,1,\n")
    page = write_report(profile).read_text(encoding="utf-8")
    assert "Do not trust" in page and "loss_curves/ai-KD.csv" in page


def test_report_refuses_logs_of_other_items(profile):
    write_log(profile.logs / "ai-KD.csv", [_row(0, HOSTILE[0], True)])
    with pytest.raises(UserError, match="ai-KD.csv has other items"):
        write_report(profile)


def test_script_json_is_json():
    value = {"a": "</script><!-- & \u2028\u2029 😀", "b": [1, None, True]}
    assert json.loads(str(script_json(value))) == value


README = """# Title

<!-- primekd:begin results ci -->
12.3 typed by hand
<!-- primekd:end -->
Between.
<!-- primekd:begin claims ci -->
<!-- primekd:end -->
The end.
"""


def test_readme_drift_is_found_and_mended(profile, checkout):
    readme = checkout / "README.md"
    readme.write_text(README)
    assert update_readme(readme, check=True) == ["results ci", "claims ci"]
    assert readme.read_text() == README
    assert update_readme(readme, check=False) == ["results ci", "claims ci"]
    mended = readme.read_text(encoding="utf-8")
    assert results_table(profile.logs) in mended and claim_table(profile.logs) in mended
    assert "typed by hand" not in mended and "\nBetween.\n" in mended and mended.endswith("\nThe end.\n")
    assert update_readme(readme, check=True) == update_readme(readme, check=False) == []
    assert readme.read_text(encoding="utf-8") == mended
    readme.write_text(mended.replace("48.14", "49.14"), encoding="utf-8")
    assert update_readme(readme, check=True) == ["claims ci"]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- primekd:begin poems ci -->\n<!-- primekd:end -->\n",
        "<!-- primekd:begin results -->\n<!-- primekd:end -->\n",
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
