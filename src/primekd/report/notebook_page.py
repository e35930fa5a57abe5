"""An executed notebook as one HTML page: no network, no script, light and dark, and foreign text inert. Pygments and
nbconvert make HTML of code and text. That, and the HTML of outputs, keeps the tags of texts, tables and images; all
else is shown as the characters that it is. The page's own policy lets no script run and loads nothing."""

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from primekd.report.shown import STYLE, source, svg_address, templates

TAGS = (
    *("a", "b", "blockquote", "br", "code", "dd", "del", "details", "div", "dl", "dt", "em", "figcaption", "figure"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "mark", "ol", "p", "pre", "s", "small"),
    *("span", "strong", "sub", "summary", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"),
)  # fmt: skip
WORDS = ("class", "title", "role", "tabindex", "scope", "colspan", "aria-label", "alt", "open")
IMAGES = ("image/png", "image/jpeg", "image/svg+xml")


def notebook_page(path: Path) -> str:
    """The page of an executed notebook (.ipynb); its own style, and any script in it, are left out."""
    import nbformat
    from pygments.formatters import HtmlFormatter

    notebook = nbformat.read(path, as_version=4)
    cells = [_cell(cell) for cell in notebook.cells]
    light, dark = (HtmlFormatter(style=name).get_style_defs(".code") for name in ("default", "github-dark"))
    code = [light, "@media (prefers-color-scheme: dark) {", dark, "}"]
    own = Markup("\n".join([source("assets/notebook.css"), source(STYLE), *code]))
    title = next((line.lstrip("# ") for c in notebook.cells for line in c.source.splitlines() if line[:2] == "# "), "")
    return templates().get_template("notebook.html.j2").render(cells=cells, style=own, title=title or Path(path).stem)


def _cell(cell: Any) -> dict[str, Any]:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    if cell.cell_type != "code":
        return {"kind": "text", "body": _markdown(cell.source), "outputs": [], "number": ""}
    code = Markup(highlight(cell.source, PythonLexer(), HtmlFormatter(nowrap=True)))
    outputs = [_output(output) for output in cell.outputs]
    return {"kind": "code", "body": code, "outputs": outputs, "number": cell.execution_count or ""}


def _markdown(text: str) -> Markup:
    from nbconvert.filters import markdown2html_mistune

    return _clean(markdown2html_mistune(text))


def _output(output: Any) -> Markup:
    """One output in the best form that it has: HTML, an image, or its text."""
    if output.output_type == "stream":
        return _plain(output.text)
    if output.output_type == "error":
        return _plain("\n".join(output.traceback) or f"{output.ename}: {output.evalue}")
    data = output.data
    if "text/html" in data:
        return _clean(re.sub(r"(?is)<(style|script)\b.*?(</\1\s*>|\Z)", "", data["text/html"]))
    if kind := next((kind for kind in IMAGES if kind in data), None):
        plain = f"data:{kind};base64,{data[kind].strip()}"
        return Markup('<img src="{}" alt="">').format(svg_address(data[kind]) if "svg" in kind else plain)
    if "text/markdown" in data:
        return _markdown(data["text/markdown"])
    return _plain(data.get("text/plain", ""))


def _plain(text: str) -> Markup:
    return Markup("<pre>{}</pre>").format(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text))


def _clean(html: str) -> Markup:
    """HTML without what could run, load, or leave its place."""
    from bleach.sanitizer import Cleaner

    def allowed(tag: str, name: str, value: str) -> bool:
        if name == "src":
            return tag == "img" and value.startswith(tuple(f"data:{kind};base64," for kind in IMAGES))
        if name == "href":
            return tag == "a" and bool(re.match(r"(https?:|#|[\w./-]+$)", value))
        return name in WORDS

    # Tags that are not known are shown as the text that they are, so that nothing of an answer is lost.
    cleaner = Cleaner(TAGS, allowed, protocols=("http", "https", "data"), strip=False, strip_comments=True)
    return Markup(cleaner.clean(html))
