"""The report in a real browser: the item browser works by mouse and keyboard, and nothing in an answer ever runs."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from report_logs import (
    HOSTILE,
    MODELS,
    NOTHING_FOUND,
    TOKENS,
    make_checkout,
    write_published,
    write_some_tokens,
    write_study,
)  # fmt: skip

from primekd.assessment.stream import Reply
from primekd.assessment.tokens import read_tokens
from primekd.config import load_profile
from primekd.report.cells import Name, Table
from primekd.report.html import write_report
from primekd.report.notebook_page import notebook_page
from primekd.report.playground import Playground
from primekd.report.shown import show_facts, show_figure, show_table, show_texts, source
from primekd.report.token_view import models_view

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from report_page import CONTRASTS, Page  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver (Debian packages of these names) are not installed"
)
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1400,1000",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
NAME = 'item-{}"><img src=x onerror=window.owned=1>'  # ids are foreign text as well
DECIDED = {("ai-KD", 1): "18", ("ai-KD", 4): "-1"}
MANY = 1319


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """One headless Chromium for all tests of this file; what it asks of a network and says on its console is kept."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")  # an alert is to be found, not dismissed
    started = webdriver.Chrome(service=webdriver.ChromeService(DRIVER), options=options)
    yield started
    started.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """Addresses of a report with six hostile items, and of one as large as the paper's."""
    written = {}
    long = [f"Step {place}: " + "so we add 3 and 4, " * 40 + "18 and more." for place in range(len(HOSTILE), MANY)]
    for kind, texts in (("small", HOSTILE), ("large", (*HOSTILE, *long))):
        root = tmp_path_factory.mktemp(kind)
        with pytest.MonkeyPatch.context() as patch:
            make_checkout(root, patch)
            profile = write_study(load_profile("ci"), texts, DECIDED, NAME)
            write_published(root)
            written[kind] = write_report(profile).as_uri()
    return written


@pytest.fixture
def small(driver, pages) -> Page:
    page = Page(driver, pages["small"])
    yield page
    page.unharmed()


@pytest.fixture
def large(driver, pages) -> Page:
    page = Page(driver, pages["large"])
    yield page
    page.unharmed()


def test_hostile_text_is_shown_and_never_runs(small):
    for place, text in enumerate(HOSTILE):
        small.all("#list .row")[place].click()
        assert small.chosen == place
        # Line ends apart: textContent keeps them, and the page's data as well.
        assert small.texts("#detail .question") == [f"Question {place}: {text}"]
        assert set(small.texts("#detail .response")) == {text}
        assert small.texts("#detail a") == [NAME.format(place)]
        assert small.all("#detail img, #detail script, #detail b, #list img, #list script, #list b") == []
    assert small.driver.title == "primekd: ci"
    # A script that someone did manage to put in would still have no network to talk to.
    asked = "return fetch('https://example.org').then(() => 'sent', () => 'refused')"
    assert small.driver.execute_script(asked) == "refused"
    assert "Content Security Policy" in json.dumps(small.driver.get_log("browser"))


def test_the_number_that_was_read_is_marked(small):
    for place in range(len(HOSTILE)):
        small.all("#list .row")[place].click()
        wanted = [] if place == NOTHING_FOUND else ["18"] * len(MODELS)
        assert small.texts("#detail mark") == wanted
    small.all("#list .row")[NOTHING_FOUND].click()
    assert "no number found" in small.card("control").text


def test_each_filter_leaves_what_it_says(small):
    assert small.count == f"{len(HOSTILE)} of {len(HOSTILE)} items."
    assert small.filter("truncated").shown == [2] and small.filter("extractors").shown == [3]
    assert small.filter("none").shown == [3, NOTHING_FOUND]
    assert small.filter("adjudicated").shown == [1, 4]
    # Every third answer is right, shifted by one a model: the six students never agree, nor do all eight models.
    assert small.filter("strategies").shown == list(range(len(HOSTILE)))
    assert small.filter("wrong").shown == [] and "No item passes" in small.one("#detail").text
    for box in small.all("#models input")[1:]:
        box.click()
    # Only the control is left: right on 0 and 3, and no student to disagree with another.
    assert small.shown == [1, 2, 4, 5]
    assert small.filter("right").shown == [0, 3] and small.filter("strategies").shown == []
    options = [option.text for option in small.all("#filter option")]
    assert options[0] == "all items (6)" and "all right (2)" in options


def test_extractors_and_decisions_stand_beside_the_answer(small):
    small.filter("extractors")
    values = small.card("base-KD").find_element(By.CSS_SELECTOR, ".readers").text.split("\n")
    assert values == [
        "published", "18 ✓", "validated", "17 ✗", "strict-match", "none ✗", "flexible-extract", "18 ✓",
        "math-verify", "18 ✓",
    ]  # fmt: skip
    small.filter("adjudicated")
    assert small.card("ai-KD").find_element(By.CSS_SELECTOR, ".by-hand").text == "Decided by hand: 18 · ✓ right"
    small.one("#list").send_keys(Keys.ARROW_DOWN)
    assert "Decided by hand: no answer was given · ✗ wrong" in small.card("ai-KD").text
    assert "published\nnone" in small.card("ai-KD").text and len(small.all(".by-hand")) == 1


def test_sorting(small):
    right = [sum((place + shift) % 3 == 0 for shift in range(len(MODELS))) for place in range(len(HOSTILE))]
    assert small.sort("hard").shown == sorted(range(len(HOSTILE)), key=lambda place: right[place])
    assert small.sort("easy").shown == sorted(range(len(HOSTILE)), key=lambda place: -right[place])
    assert small.sort("long").shown == list(range(len(HOSTILE)))[::-1]
    assert small.chosen == len(HOSTILE) - 1  # a new order is read from its top
    assert small.sort("file").shown == list(range(len(HOSTILE)))


def test_every_count_opens_what_it_counts(small):
    links = small.all("#results td a[href^='#'], #contrasts td a[href^='#']")
    assert len(links) > 20
    addresses = [(link.get_attribute("href"), link.text) for link in links]
    for address, count in addresses:
        small.follow(address[address.index("#") :])
        if "filter=a-wrong" in address:  # an accuracy, such as 33.3 [0.0, 80.0]
            count = 6 - round(6 * float(count.split(" [")[0]) / 100)
        assert small.count == f"{count} of 6 items."
    assert sum("filter=a-wrong" in address for address, _ in addresses) == len(MODELS)
    assert "control.csv" in {a.get_attribute("href").split("/")[-1] for a in small.all("#claims a")}
    # base-KD is right on 2 and 5, teacher-KD on 1 and 4.
    address = small.one("#contrasts a[href*='a=teacher-KD'][href*='b=base-KD']").get_attribute("href")
    assert small.follow(address[address.index("#") :]).shown == [1, 4]
    assert (
        small.follow("#filter=a-cut&a=ai-KD").shown == [2] and small.follow("#filter=a-wrong&a=ai-KD").count[0] == "4"
    )


def test_a_right_b_wrong(small):
    assert not small.one("#a").is_displayed() and not small.one("#b").is_displayed()
    small.filter("pair").pick("a", "control").pick("b", "base-KD")
    assert small.shown == [0, 3] and "A right, B wrong (2)" in small.one("#filter").text
    assert small.pick("b", "reverseKL-KD").count == "2 of 6 items." and small.pick("b", "control").count[0] == "0"
    small.filter("a-right")
    assert small.one("#a").is_displayed() and not small.one("#b").is_displayed() and small.shown == [0, 3]


def test_back_leads_to_the_count_and_to_the_item_that_was_open(driver, small):
    small.one("#contrasts a[href*='a=teacher-KD'][href*='b=base-KD']").click()
    WebDriverWait(driver, 5).until(lambda d: small.count == "2 of 6 items." and small.chosen == 1)
    assert driver.execute_script("return document.getElementById('items').getBoundingClientRect().top") < 200
    small.all("#list .row")[1].click()
    assert (
        small.chosen == 4
        and "#item=item-4" in driver.current_url
        and "filter=pair&a=teacher-KD&b=base-KD" in driver.current_url
    )
    small.search("answer")  # typing adds nothing to what Back goes through
    driver.back()
    WebDriverWait(driver, 5).until(lambda d: small.count == "2 of 6 items.")
    assert small.chosen == 1 and small.one("#search").get_property("value") == ""
    driver.back()
    WebDriverWait(driver, 5).until(lambda d: "#" not in d.current_url)


def test_all_choices_are_in_the_address(driver, pages, small):
    small.filter("pair").pick("a", "control").pick("b", "base-KD").sort("kl:ai-KD").search("question  18")
    small.all("#models input")[-1].click()
    small.all("#list .row")[0].click()
    before = (small.shown, small.chosen, small.count, small.one("#detail").text)
    address = driver.current_url
    again = Page(driver, pages["small"], address[address.index("#") :])
    assert (again.shown, again.chosen, again.count, again.one("#detail").text) == before and before[0]
    assert again.one("#search").get_property("value") == "question  18" and driver.current_url == address
    assert again.all("#models input")[-1].get_property("checked") is False and len(again.all(".answer")) == 7
    assert "sort=kl%3Aai-KD" in address and "q=question++18" in address and "hide=teacher" in address
    # What no page has is passed over, and an item that a filter would leave out is shown all the same.
    assert Page(driver, pages["small"], "#filter=valueOf&sort=kl%3Anone&a=x").count == "6 of 6 items."
    item = address[address.index("#") : address.index("&")].replace("item-" + str(before[1]), "item-1")
    other = Page(driver, pages["small"], item + "&filter=truncated")
    assert other.chosen == 1 and other.count == "6 of 6 items."


def test_items_are_sorted_by_the_kl_of_a_chosen_model(small):
    assert small.sort("kl:ai-KD").shown == [5, 4, 3, 2, 1, 0] and small.chosen == 5
    assert "KL on the teacher's answer: 1.55 nats a token" in small.card("ai-KD").text
    assert "KL on" not in small.card("teacher").text
    assert "kl:teacher" not in [o.get_attribute("value") for o in small.all("#sort option")]
    assert small.sort("kl:control").shown == list(range(6))  # all the same: as in the logs


def test_hits_are_marked_and_stay_text(small):
    small.search("<script> 1")
    assert small.texts("#list .hit") == ["<script>", "1", "1"] and small.texts("#detail .question .hit")[:1] == [
        "<script>"
    ]
    # The value that was read stays marked, and the hit in it is marked again.
    assert small.texts("#detail .response > mark:not(.hit)") == ["18"] * len(MODELS)
    assert small.texts("#detail .response mark mark.hit") == ["1"] * len(MODELS)
    assert set(small.texts("#detail .response")) == {HOSTILE[0]} and small.all("#detail script, #list script") == []
    small.search("8, no")  # across the end of the value
    assert (
        small.texts("#detail .response")[0] == HOSTILE[3]
        and "".join(small.texts("#detail article:first-child .hit")) == "8,no"
    )
    assert small.search("[.*(\\").count == "0 of 6 items." and small.search("").texts(".hit") == []


def test_a_hit_late_in_a_question_is_in_sight_in_the_list(large):
    large.search("more")
    rows = large.texts("#list .text")
    assert rows and all(text.startswith("… ") and "and more." in text for text in rows)


def test_each_answer_names_the_command_that_shows_it(small):
    command = small.card("ai-KD").find_element(By.CSS_SELECTOR, ".command").text
    words = ["primekd", "show", NAME.format(0), "--model", "ai-KD", "--profile", "ci"]
    assert shlex.split(command) == words
    assert small.card("ai-KD").find_element(By.CSS_SELECTOR, ".command").value_of_css_property("user-select") == "all"
    quoted = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    ).stdout
    assert quoted.splitlines() == words


def test_search_finds_words_in_questions_answers_and_ids(small):
    assert small.search("ANSWER is").shown == [3] and small.count == f"1 of {len(HOSTILE)} items."
    assert small.search("item-4").shown == [4] and small.search("onerror").count == "6 of 6 items."  # in every id
    assert small.search("<script>").shown == [0]
    assert small.search("no such word").shown == [] and "No item passes" in small.one("#detail").text
    small.press(Keys.ESCAPE)
    assert small.count == "6 of 6 items." and small.driver.switch_to.active_element == small.one("#list")


def test_keyboard_alone_is_enough(large):
    body = large.one("body")
    body.send_keys("/")
    assert large.driver.switch_to.active_element == large.one("#search")
    large.press("s", "/", Keys.BACKSPACE)  # a slash in the search is a letter
    assert large.one("#search").get_property("value") == "s"
    large.press(Keys.ESCAPE)
    assert large.chosen == 0 and large.one("#search").get_property("value") == ""
    large.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert large.chosen == 2
    large.press(Keys.ARROW_UP)
    assert large.chosen == 1
    large.press(Keys.PAGE_DOWN)
    page = large.chosen - 1
    assert page > 3
    large.press(Keys.PAGE_DOWN, Keys.PAGE_UP)
    assert large.chosen == 1 + page
    large.press(Keys.END, Keys.ARROW_DOWN)
    assert large.chosen == MANY - 1
    box, row = large.one("#list").rect, large.one("#list [aria-selected=true]").rect
    assert box["y"] <= row["y"] and row["y"] + row["height"] <= box["y"] + box["height"] + 1
    large.press(Keys.HOME)
    assert large.chosen == 0 and large.driver.execute_script("return document.getElementById('list').scrollTop") == 0


def test_a_long_list_keeps_few_rows_in_the_page(large):
    nodes = "return document.querySelectorAll('#list *').length"
    assert large.count == f"{MANY} of {MANY} items."
    most = 0
    for share in (0, 0.2, 0.7, 1):
        scroll = "const l = document.getElementById('list'); l.scrollTop = arguments[0] * l.scrollHeight"
        large.driver.execute_script(scroll, share)
        large.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        most = max(most, large.driver.execute_script(nodes))
        assert len(large.shown) > 5
    assert most < 1000
    assert large.shown[-1] == MANY - 1 and large.shown[0] == 0  # the chosen row stays, for whoever hears the page
    large.filter("adjudicated").filter("all").search("step 1200")
    assert 1200 in large.shown and large.driver.execute_script(nodes) < 1000


def test_an_address_names_an_item(driver, pages, small):
    small.all("#list .row")[3].click()
    address = driver.current_url
    assert "#item=item-3%22%3E" in address and small.one("#detail a").get_attribute("href") == address
    again = Page(driver, pages["small"], address[address.index("#") :])
    assert again.chosen == 3
    again.filter("truncated")
    assert again.chosen == 2 and "#item=item-2" in driver.current_url  # the address never names another item
    driver.execute_script("location.hash = arguments[0]", address[address.index("#") :])
    WebDriverWait(driver, 5).until(lambda d: again.count == "6 of 6 items.")
    assert again.chosen == 3
    assert Page(driver, pages["small"], "#item=%E0%A4%A").chosen == 0  # no address of ours, and no error


@pytest.mark.parametrize(("scheme", "width"), [("light", 700), ("dark", 420)])
def test_text_can_be_read_in_light_and_dark_and_on_a_narrow_page(driver, pages, scheme, width):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page = Page(driver, pages["small"], "#filter=pair&a=control&b=base-KD&q=18")
        assert page.all(".hit") and page.driver.execute_script(CONTRASTS) == []
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.driver.execute_script(wide) <= 0  # tables scroll in their own boxes
        page.unharmed()
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# Tokens in the report, and executed notebooks as pages.


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        make_checkout(root, patch)
        profile = write_study(load_profile("ci"), HOSTILE, DECIDED)
        write_published(root)
        write_some_tokens(profile.logs, "item-0")
        return write_report(profile).as_uri()


def test_the_teachers_answer_is_shown_token_by_token_under_each_model(driver, with_tokens):
    page = Page(driver, with_tokens, "#item=item-0")
    panels = page.all("#detail .tokens .answer")
    assert [panel.find_element(By.TAG_NAME, "h3").text.split(" KL")[0] for panel in panels] == [
        "Teacher, unprimed entropy 0.250 nats a token", "No distillation", "Ground truth-KD",
    ]  # fmt: skip
    assert "KL 2.00 nats over 6 tokens" in panels[2].text
    assert page.classes(panels[0]) == ["k2"] * 6, "the teacher's by its entropy"
    assert page.classes(panels[2]) == ["k0 parts", *["k0"] * 3, "k4", "k0"], "its own answer begins otherwise"
    driver.execute_script("arguments[0].focus()", panels[2].find_elements(By.CLASS_NAME, "tk")[3])
    strip = panels[2].find_element(By.CLASS_NAME, "strip").text
    image = "“<img src=x onerror=window.owned=1>”"
    assert f"{image}, which the teacher gave 89.9 %; its entropy 0.250 nats, KL 0.000 nats" in strip
    assert f"{image} 89.9 %" in strip and "“ 18” 10.0 %" in strip, "one number, however often it is shown"
    assert "“ 18” 75.0 %" in strip and f"{image} 25.0 %" in strip and "end" not in strip, "0.04 % is left out"
    assert not [level for level in "1234" if not page.all(f"#detail .tokens .note .k{level}")], "the scale has swatches"
    page.unharmed()
    other = Page(driver, with_tokens, "#item=item-1")
    assert not other.all("#detail .tokens .answer")  # of this one no tokens were kept


def test_tokens_are_a_click_away_and_one_stop_of_the_tab_key_a_panel(driver, with_tokens):
    page = Page(driver, with_tokens, "#filter=a-right&a=ai-KD&item=item-0")
    titles = page.texts("#detail article h3")
    assert titles[0].startswith("Ground truth-KD") and titles[len(MODELS) + 1].startswith("Ground truth-KD")
    page.one("#detail .jump").click()
    top = driver.execute_script("return document.querySelector('#detail .tokens').getBoundingClientRect().top")
    assert 0 < top < 200 and driver.switch_to.active_element == page.one("#detail .tk")
    assert len(page.all("#detail .tk[tabindex='0']")) == 3
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.one(".strip").text.startswith("“ is”")
    page.press(Keys.END, Keys.ARROW_RIGHT)
    assert page.one(".strip").text.startswith("“<|end|>”") and len(page.all("#detail .tk[tabindex='0']")) == 3
    page.press(Keys.TAB)
    assert driver.switch_to.active_element == page.all("#detail .run")[1].find_element(By.CLASS_NAME, "tk")
    assert not Page(driver, with_tokens, "#item=item-1").all("#detail .jump")


@pytest.mark.parametrize("own, place", [
    ("It is\nso", 3), ("It is", 2), ("It is\n<img src=x onerror=window.owned=1> 18", -1),
    ("It is\n<img src=x onerror=window.owned=1> 18 more", 5), ("", 0),
])  # fmt: skip
def test_where_an_answer_first_differs_from_the_teachers(driver, own, place):
    """The last token ends the answer and is no text: whoever goes on there differs."""
    call = "return parting(arguments[0].map((text) => ({ text })), { text: [arguments[1]] })"
    script = f"{source('assets/tokens.js')}\n{call}"
    driver.get("about:blank")
    assert driver.execute_script(script, TOKENS, own) == place
    assert driver.execute_script(script, [*TOKENS[:2], "\ufffd"], own) == -1, "a part of a character is no text"


# The playground's answers, as Jupyter lays them out.

LAYOUT = ("flex", "flex_flow", "align_items", "margin", "min_width", "width")


def widget_styles() -> str:
    """What ipywidgets brings into JupyterLab: a style sheet within a script."""
    folder = Path(sys.prefix, "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager/static")
    [sheet] = [
        part for path in folder.glob("*.js") for part in path.read_text(encoding="utf-8").split("`")
        if ".widget-html > .widget-html-content" in part
    ]  # fmt: skip
    return sheet


def styled(widget) -> str:
    layout = {name: getattr(widget.layout, name) for name in LAYOUT}
    return "".join(f"{name.replace('_', '-')}:{value};" for name, value in layout.items() if value)


class Said(list):
    """Stands for an answer in the making: its texts so far."""

    name, reply = "", None


def test_in_the_playground_the_token_view_follows_its_answer(driver, tmp_path):
    """Nothing is blank between the two, and nothing lies out of sight, however long the answer beside it is."""
    write_some_tokens(tmp_path, "item-0")
    tokens = read_tokens(tmp_path).tokens("item-0")
    asker = SimpleNamespace(
        profile=load_profile("ci"), arms={}, trained=[], primed={}, no_teacher="", load=list, tokens=lambda *_: tokens,
        missing=lambda name: "",
    )  # fmt: skip
    form = Playground(asker, "1 + 1 = ?")
    form.by_token.value = True
    for name, text in (("control", "two"), ("ai-KD", "line\n" * 40)):
        said = Said([text])
        said.name, said.reply = name, Reply(name, text, 9, 1.0, False, False, {"validated": "2"})
        form._show(said, None)
    boxes = "".join(
        f'<div class="jupyter-widgets widget-inline-hbox widget-html" style="{styled(box)}">'
        f'<div class="widget-html-content">{box.value}</div></div>'
        for box in form.answers.children
    )
    page = f'<style>{widget_styles()}</style><div style="height:900px;overflow:auto"><div class="jupyter-widgets '
    page += f'widget-container widget-box widget-hbox" style="{styled(form.answers)}">{boxes}</div></div>'
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{page}", encoding="utf-8")
    driver.get((tmp_path / "page.html").as_uri())
    script = """return [...document.querySelectorAll(".widget-html")].map((box) => {
        const [card, view] = [box.querySelector("pre").parentElement, box.querySelector(".primekd")];
        const [a, b, c] = [card, view, box].map((e) => e.getBoundingClientRect());
        return [b.top - a.bottom, c.bottom - b.bottom, box.scrollHeight - box.clientHeight, b.height];
    })"""
    for gap, below, hidden, height in driver.execute_script(script):
        assert 0 <= gap < 30 and below >= 0 and hidden <= 0 and height > 100


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> str:
    """An executed notebook with everything that notebooks show, as a page."""
    folder = tmp_path_factory.mktemp("copy")
    write_some_tokens(folder, "item-0")
    head = ["Model", *(f"Column {n} [95 %]" for n in range(9))]
    long = Name("path:models/teachers/pocket/pocket-teacher.gguf" * 2, "ai-KD")
    table = Table("Results", head, [[long, *["18.8 [12.9, 26.4]"] * 9]])
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="700" height="90"><text y="40">loss</text></svg>'
    shown = [
        show_table(table, "A note."), show_texts([("Teacher", HOSTILE[0] * 9), ("Student", HOSTILE[1])]),
        show_facts([("learning_rate", "0.002"), ("model", "x/" * 90)], "train"), show_figure(svg, "A curve"),
        models_view(read_tokens(folder), "item-0", ["control", "ai-KD"]),
    ]  # fmt: skip
    cells = [nbformat.v4.new_markdown_cell(f"# A title\n\nText with `code`.\n\n{HOSTILE[1]}")]
    for part in shown:
        output = nbformat.v4.new_output("display_data", part._repr_mimebundle_())
        cells.append(nbformat.v4.new_code_cell("display.it(settings)  # " + "long " * 40, outputs=[output]))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "copy.ipynb")
    (folder / "copy.html").write_text(notebook_page(folder / "copy.ipynb"), encoding="utf-8")
    return (folder / "copy.html").as_uri()


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_executed_copy_can_be_read_and_nothing_in_it_runs(driver, copy, scheme, width):
    emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        driver.get(copy)
        assert len(driver.find_elements(By.CSS_SELECTOR, "thead th")) == 10 and driver.find_element(By.TAG_NAME, "h1")
        assert "<th" not in driver.find_element(By.TAG_NAME, "body").text
        assert driver.execute_script("return document.querySelector('figure img').naturalWidth") == 700
        assert driver.execute_script("return window.owned") is None
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert width > 700 or driver.execute_script("return document.querySelector('tbody th').offsetWidth") < width / 2
        driver.execute_script("document.querySelectorAll('.tk')[16].focus()")
        tip = driver.find_elements(By.CSS_SELECTOR, ".tk .tip")[16]
        assert tip.is_displayed() and "KL 2.000 nats" in tip.text and "Ground truth-KD" in tip.text
        assert "“ 18” 89.9 %" in tip.text and "of this token 89.9 %" in tip.text and " 0.0 %" not in tip.text
        assert len(driver.find_elements(By.CSS_SELECTOR, ".note > [class^=k]")) == 4, "the scale has swatches"
        assert driver.execute_script(CONTRASTS) == []
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
