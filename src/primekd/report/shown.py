"""What notebooks show, light and dark, and as plain text elsewhere: tables (those of the README and the report), texts,
facts and figures. Everything that is put in is escaped."""

import base64
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from primekd.report.cells import Table, to_text

STYLE = "assets/shown.css"  # follows the theme of Jupyter, or of an executed copy's page
COMMIT = re.compile(r"\b([0-9a-f]{40})\b")  # split by it, every second part is a commit


@cache
def source(name: str) -> str:
    return files("primekd.report").joinpath(*name.split("/")).read_text(encoding="utf-8")


@cache
def templates() -> Environment:
    """The templates; everything in double braces is escaped."""
    found = Environment(
        loader=FunctionLoader(lambda name: source(f"templates/{name}")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters["commits"] = COMMIT.split
    return found


class Shown:
    """Something that a notebook shows: `html` (safe as it is) in Jupyter, `text` where there is no page."""

    def __init__(self, html: str, text: str, image: str | None = None):
        self.html, self.text, self.image = html, text, image

    def __add__(self, other: "Shown") -> "Shown":
        return Shown(self.html + other.html, "\n".join(filter(None, (self.text, other.text))))

    def __radd__(self, nothing: int) -> "Shown":  # what sum() begins with
        return self

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f'<style>{source(STYLE)}</style><div class="primekd">{self.html}</div>'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        image = {"image/svg+xml": self.image} if self.image else {}
        return {"text/plain": self.text, "text/html": self._repr_html_(), **image}


def _macro(name: str, *arguments, **options) -> str:
    return str(getattr(templates().get_template("macros.html.j2").module, name)(*arguments, **options))


def show_table(table: Table, note: str = "") -> Shown:
    """A table as the report has it, with a note below it: its own, unless one is given."""
    note = note or " ".join(table.notes)
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return Shown(_macro("table", table) + below, "\n".join([table.label, "", to_text(table), note]))


def show_facts(rows: list[tuple[str, str]], title: str = "", folded: bool = False) -> Shown:
    """Names and values; `folded` behind their title."""
    inner = _macro("facts", rows)
    head = f"<details><summary>{escape(title)}</summary>{inner}</details>" if folded else inner
    head = f"<h4>{escape(title)}</h4>{inner}" if title and not folded else head
    return Shown(head, "\n".join([title, *(f"  {name}: {value}" for name, value in rows)]))


def show_texts(texts: list[tuple[str, str]], notes: Sequence[str] = ()) -> Shown:
    """Texts side by side under their titles, with their own line breaks, whole; with a note below each, if given."""
    below = [Markup('<p class="note">{}</p>').format(note) for note in notes] or [""] * len(texts)
    cards = Markup("").join(
        Markup('<figure class="text"><figcaption>{}</figcaption><pre>{}</pre>{}</figure>').format(title, text, note)
        for (title, text), note in zip(texts, below, strict=True)
    )
    return Shown(f'<div class="side">{cards}</div>', "\n\n".join(f"{title}:\n{text}" for title, text in texts))


def show_figure(svg: str | None, alt: str) -> Shown:
    """A figure, if there is one; `alt` says what it shows to whoever does not see it."""
    if svg is None:
        return Shown("", "")
    return Shown(_macro("figure", svg_address(svg), alt, alt), f"[figure: {alt}]", svg)


def svg_address(svg: str) -> str:
    """A figure as a data address: inside <img> its ids and styles cannot meet those of the page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def side_by_side(parts: list[Shown]) -> Shown:
    """Several things beside each other, or below each other on a narrow page."""
    html = "".join(f"<div>{part.html}</div>" for part in parts)
    return Shown(f'<div class="side">{html}</div>', "\n\n".join(part.text for part in parts))


def show_sentences(sentences: list[str]) -> Shown:
    items = Markup("").join(Markup("<li>{}</li>").format(sentence) for sentence in sentences)
    return Shown(f"<ul>{items}</ul>", "\n".join(f"- {sentence}" for sentence in sentences))
