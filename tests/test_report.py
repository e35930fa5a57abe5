"""The report: every part of it is there, hostile text is harmless, and the bytes are the same every time."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from report_logs import DECIDED, HOSTILE, MODELS, NOTHING_FOUND, make_checkout, write_csv, write_published, write_study

from primekd.assessment.costs import FILE as COSTS
from primekd.assessment.costs import CostRow
from primekd.assessment.logs import read_log, write_log
from primekd.assessment.reading import EXTRACTORS
from primekd.config import load_profile
from primekd.config.deviations import DEVIATIONS
from primekd.foundation import hash_file, read_json, write_json
from primekd.foundation.errors import UserError
from primekd.foundation.tables import write_table
from primekd.report.browser import cut, script_json
from primekd.report.costs import cost_figure
from primekd.report.extraction import read_accuracies
from primekd.report.figures import accuracy_forest, contrast_forest, extractor_dots, kl_forest, loss_curves
from primekd.report.findings import NOTHING_DECIDED
from primekd.report.html import write_report
from primekd.report.results import read_results
from primekd.statistics.contrasts import SeedRow
from primekd.statistics.validation import AuditRow


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    return make_checkout(tmp_path, monkeypatch)


@pytest.fixture
def profile(checkout):
    """The profile ci with logs of eight models on six items, all of their text hostile; nothing was adjudicated."""
    return write_study(load_profile("ci"))


@pytest.fixture
def decided(checkout):
    """The same with three answers decided by hand."""
    return write_study(load_profile("ci"), decided=DECIDED)


@pytest.fixture
def published(checkout):
    return write_published(checkout)


def _page(profile) -> str:
    return write_report(profile).read_bytes().decode()


def _section(page: str, name: str) -> str:
    """The text of one section, without tags."""
    html = page[page.index(f'<section id="{name}"') :].split("</section>", 1)[0]
    return " ".join(re.sub(r"<[^>]+>", " ", html).replace("&#39;", "'").split())


def test_figures_are_the_same_every_time(profile):
    results = read_results(profile.logs)
    accuracies = read_accuracies(profile.logs)
    for draw in (
        lambda: accuracy_forest(results),
        lambda: contrast_forest(results),
        lambda: extractor_dots(results, accuracies),
        lambda: kl_forest(results),
        lambda: loss_curves(profile.logs),
    ):
        svg = draw()
        assert svg == draw()
        assert "<text" in svg and "Ground truth-KD" in svg and "dc:date" not in svg
    assert "Teacher, unprimed" not in kl_forest(results)


def test_many_students_are_named_once_an_arm_and_numbers_are_plain(profile, tmp_path):
    """Thirty students of fifteen arms: the legend stays inside the figure, and no axis shows markup."""
    models = [f"{name}-KD{seed}" for name in DEVIATIONS for seed in ("", "-seed1")]
    results = SimpleNamespace(summary=[{"model": m, "accuracy": "0.5"} for m in models], folder=tmp_path)
    costs = [CostRow(m, 10, 100, 1.0, 0.01 * (1 + n), 1.0, "x") for n, m in enumerate(models)]
    write_table(tmp_path / COSTS, CostRow, costs)
    for model in models:
        copy = tmp_path / "loss_curves" / f"{model}.csv"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(profile.logs / "loss_curves" / "ai-KD.csv", copy)
    for svg in (cost_figure(results), loss_curves(tmp_path)):
        height = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)[1])
        places = [float(y) for y in re.findall(r'<text[^>]* y="(-?[\d.]+)"', svg)]
        assert len(places) > 15 and min(places) > 0 and max(places) < height
        assert svg.count("Climbing cosine") == 1 and "seed" not in svg and "mathdefault" not in svg


def test_a_control_far_away_does_not_squash_the_students(profile):
    path = profile.logs / "summary.csv"

    def place(svg: str, number: str) -> float:
        """Where the axis has this number."""
        return float(re.search(rf'<text[^>]* x="([\d.]+)"[^>]*>{number}</text>', svg)[1])

    def drawn(control: float) -> str:
        rows = [row.split(",") for row in path.read_text().splitlines()]
        kl = rows[0].index("kl")
        for shift, row in enumerate(rows[1:-1]):
            value = control if row[0] == "control" else 0.142 + 0.001 * shift
            row[kl : kl + 3] = [str(value), str(value - 0.018), str(value + 0.018)]
        path.write_text("".join(",".join(row) + "\n" for row in rows))
        return kl_forest(read_results(profile.logs))

    broken, whole = drawn(1.35), drawn(0.3)
    assert "another scale" in broken and "another scale" not in whole
    assert place(broken, "0.16") - place(broken, "0.13") > 100  # of 300 points


def test_spans_count_code_points():
    text = HOSTILE[3]
    start = text.index("18")
    assert cut(text, f"{start}:{start + 2}") == [text[:start], "18", text[start + 2 :]]
    assert cut("short", "3:99") == cut("short", "") == cut("short", "x:y") == ["short"]


def test_report_holds_the_answers_and_nothing_hostile(profile):
    page = _page(profile)
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
    assert [m["name"] for m in data["models"] if not m["student"]] == ["control", "teacher"]
    assert data["words"][:2] == ["--profile", "ci"]
    assert data["items"][2]["answers"][1]["kl"] == 0.25  # (0.5 + 1 * 2) nats, 10 tokens
    assert "kl" not in data["items"][2]["answers"][-1]
    assert data["extractors"] == list(EXTRACTORS)
    base = data["items"][3]["answers"][1]
    assert base["read"] == ["18", "17", "-1", "18", "18"] and "read" not in data["items"][0]["answers"][1]
    rest = page.replace(raw, "")
    for text in ("onerror", "window.owned", "<b>Check", "A <cpu>", "{{", "{%", "\u2028"):
        assert text not in rest
    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert "&lt;b&gt;Check twice.&lt;/b&gt;" in page


def test_report_needs_no_network_and_names_its_sources(profile):
    page = write_report(profile).read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    assert policy in page
    beside = set(re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", page))
    curves = {f"loss_curves/{model}.csv" for model in MODELS if model not in ("control", "teacher")}
    assert beside == curves | {f"{model}.csv" for model in MODELS} and all((profile.logs / n).is_file() for n in beside)
    assert f'<code title="{"d" * 40}">{"d" * 7}</code>, with uncommitted changes' in page
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
    write_log(profile.logs / "ai-KD.csv", read_log(profile.logs / "ai-KD.csv")[:1])
    with pytest.raises(UserError, match="ai-KD.csv has other items"):
        write_report(profile)


def test_report_refuses_readings_that_lack_an_answer(profile):
    path = profile.logs / "extractors.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="extractors.csv has no row for teacher on item item-5"):
        write_report(profile)


def test_report_of_logs_that_no_other_extractor_read(profile):
    for name in ("extractors", "accuracies", "seeds", "audit"):
        (profile.logs / f"{name}.csv").unlink()
    assert "by the published rules alone" in _section(_page(profile), "extractors")


def test_report_has_every_extractor_contrast_and_sentence(profile, published):
    page = _page(profile)
    extraction = _section(page, "extractors")
    for name in EXTRACTORS:
        assert f"{name}, %" in extraction
    assert "1 of 6" in extraction and "16.7" in extraction  # base-KD: validated reads one of six otherwise
    contrasts = _section(page, "contrasts")
    assert contrasts.count("no difference can be claimed") == len(read_results(profile.logs).contrasts)
    assert "Detectable" in contrasts
    assert "One training seed a student" in _section(page, "seeds") and NOTHING_DECIDED in _section(
        page, "adjudication"
    )
    validation = _section(page, "validation")
    assert "98.6 [93.0, 99.8]" in validation and "blind to the gold answers" in validation
    assert validation.index("set validation") < validation.index("Set development")


def test_report_shows_decisions_audits_and_seeds(decided):
    write_csv(
        decided.logs / "audit.csv",
        AuditRow,
        [["ai-KD", 40, 2, 0.05, 0.014, 0.165], ["all", 40, 2, 0.05, 0.014, 0.165]],
    )
    seeds = [
        ["ai-KD", "", 2, 6, 0.4, 0.3, 0.5, 0.02, 0.03, 0.01, "", 0.45, 0.35, 0.55],
        ["ai-KD", "base-KD", 2, 6, 0.1, -0.1, 0.3, 0.02, 0.03, 0.01, 0.31, 0.2, 0.1, 0.4],
    ]
    write_csv(decided.logs / "seeds.csv", SeedRow, seeds)
    page = _page(decided)
    adjudication = _section(page, "adjudication")
    assert "Ground truth-KD 6 2 0 1 1 1 0" not in adjudication
    row = re.search(r"Ground truth-KD (\d+ \d+ \d+ \d+ \d+ \d+ \d+)", adjudication)[1]
    assert row == "6 2 1 0 1 1 0"  # 18 kept and now right; the other one: no answer was given
    assert "Ground truth-KD 40 2 5.0 [1.4, 16.5]" in adjudication and "All 40 2" in adjudication
    assert "+10.0 [-10.0, +30.0]" in _section(page, "seeds")
    assert "Adjudicated" in _section(page, "claims") and "Adjudicated" in _section(page, "results")


def test_script_json_is_json():
    value = {"a": "</script><!-- & \u2028\u2029 😀", "b": [1, None, True]}
    assert json.loads(str(script_json(value))) == value


def test_the_report_says_which_extractor_decides(profile):
    assert "by the published rules" in _section(_page(profile), "results")
    manifest = read_json(profile.logs / "manifest.json")
    manifest.setdefault("inputs", {}).setdefault("assess", {})["extractor"] = "validated"
    write_json(profile.logs / "manifest.json", manifest)
    page = _page(profile)
    assert "by the validated rules" in _section(page, "results")
    assert "which validated decides" in " ".join(_section(page, "extractors").split())
    assert "declared" in _section(page, "rules") and "first-line" not in _section(page, "rules")
