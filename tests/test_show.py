"""From a number back to what it was made of: `primekd show`, and executed notebooks as pages."""

import nbformat
import pytest
from report_logs import HOSTILE, MODELS, make_checkout, write_study

from primekd.config import load_profile
from primekd.foundation.errors import UserError
from primekd.report.cells import Name, Table
from primekd.report.notebook_page import notebook_page
from primekd.report.shown import show_facts, show_table, show_texts
from primekd.running.show import as_text, show


@pytest.fixture
def study(tmp_path, monkeypatch):
    make_checkout(tmp_path, monkeypatch)
    return write_study(load_profile("pocket"))


def test_an_item_of_a_model_is_shown_with_what_it_was_made_from(study):
    parts = {part.title: dict(part.rows) for part in show(study, "item-0", "ai-KD")}
    assert parts["Item"]["Id"] == "item-0" and set(parts["Verdicts"]) == set(MODELS)
    assert parts["Answer"]["Answer"] == HOSTILE[0] and parts["Answer"]["Read by validated"]
    assert "item-0" in parts["Files"]["Report"] and "row 1" in parts["Files"]["Log"]
    assert parts["Files"]["Student"].endswith("not in this checkout")
    alone = [part.title for part in show(study, "item-0")]
    assert alone == ["Item", "Verdicts", "Next"]


def test_a_terminal_is_told_nothing_that_it_would_obey(study):
    for place in range(len(HOSTILE)):
        text = as_text(show(study, f"item-{place}", "ai-KD"))
        assert not {"\x1b", "\u202e", "\u2066", "\u200b", "\r"} & set(text)


@pytest.mark.parametrize(
    "item, model, said",
    [
        ("item", "ai-KD", "Several items begin"),
        ("nothing", None, "No item is called"),
        ("item-0", "me", "has no model"),
    ],
)
def test_what_is_not_there_is_one_sentence(study, item, model, said):
    with pytest.raises(UserError, match=said):
        show(study, item, model)


def page_of(tmp_path, *cells) -> str:
    path = tmp_path / "page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return notebook_page(path)


def code(*outputs):
    return nbformat.v4.new_code_cell("1 + 1", outputs=list(outputs))


def out(**data):
    return nbformat.v4.new_output("display_data", {kind.replace("__", "/"): text for kind, text in data.items()})


def test_the_pages_own_tags_work(tmp_path):
    table = show_table(Table("Results", ["Model", "%"], [[Name("Confidence-KD", "reverseKL-KD"), "18.8"]]))
    page = page_of(
        tmp_path, nbformat.v4.new_markdown_cell("# Title\n\nA `word` and a [link](https://example.org)."),
        code(out(text__html=table._repr_html_(), text__plain="plain"), out(image__png="aGVsbG8=")),
    )  # fmt: skip
    assert "<h1>Title" in page and "<code>word</code>" in page and 'href="https://example.org"' in page
    assert '<th scope="col">Model</th>' in page.replace(' class="left"', "") and "&lt;th" not in page
    assert '<img src="data:image/png;base64,aGVsbG8="' in page and page.count("<style>") == 1


@pytest.mark.parametrize("hostile", [
    "<script>window.owned=1</script>", "<img src=x onerror=window.owned=1>",
    "<a href='javascript:window.owned=1'>x</a>",
    "<iframe src='https://example.org'></iframe>", "<div style='background:url(https://example.org)'>x</div>",
    "<svg onload=window.owned=1></svg>", "<style>body{background:url(https://example.org)}</style>",
    "<meta http-equiv=refresh>",
    "<img src='https://example.org/x.png'>", "<form action='https://example.org'><input></form>",
])  # fmt: skip
def test_foreign_html_is_inert_wherever_it_stands(hostile, tmp_path):
    from bs4 import BeautifulSoup

    stream = nbformat.v4.new_output("stream", text=hostile)
    page = page_of(tmp_path, nbformat.v4.new_markdown_cell(hostile), code(stream, out(text__html=hostile),
                   out(text__plain=hostile), out(text__markdown=hostile)))  # fmt: skip
    found = BeautifulSoup(page, "html.parser")
    assert "default-src 'none'" in found.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert not found.find_all(["script", "iframe", "svg", "form", "input"]) and len(found.find_all("style")) == 1
    assert len(found.find_all("meta", {"http-equiv": True})) == 1
    for tag in found.body.find_all(True):
        assert not [name for name in tag.attrs if name.startswith("on") or name == "style"]
        assert not str(tag.get("href", "")).startswith("javascript") and "example.org" not in str(tag.get("src", ""))


def test_what_is_shown_is_escaped_and_has_a_plain_form():
    shown = show_texts([("<b>who</b>", "a\n<i>b</i>")]) + show_facts([("<u>", "<s>")])
    assert "<i>" not in shown.html and "&lt;i&gt;b" in shown.html and "<u>" not in shown.html
    assert "a\n<i>b</i>" in repr(shown)
    assert set(shown._repr_mimebundle_()) == {"text/html", "text/plain"}
