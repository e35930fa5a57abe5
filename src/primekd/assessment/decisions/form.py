"""Adjudication in a notebook: a small form. Everything it decides is done by `Session`; the widgets only call it.
Questions and answers are other people's text: they are escaped, so that nothing in them is run as HTML."""

import asyncio
import html
from collections.abc import Callable

from primekd.assessment.decisions.decisions import as_written
from primekd.assessment.decisions.session import Session, around, readable, spoken
from primekd.foundation.errors import UserError

_BOX = "white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid gray;padding:.5em;max-height:24em;"
_BOX += "overflow-y:auto;line-height:1.4;box-sizing:border-box"
_MESSAGE = "white-space:pre-wrap;font-family:monospace;line-height:1.4"
PATIENCE = 0.5  # seconds between the two messages of one Enter


class Form:
    """The widgets around one session; `root` is what a notebook shows. The text field takes a number or the letter of a
    button, Enter submits it, and it keeps the focus. Enter sends two messages, `submit` and the new value, mostly in
    this order, and none of the value if it is known already. Acting on the first would decide on what stood in the
    field before (half a number, for who types fast). So Enter acts on the value that comes with it, or, if none comes
    soon, on the one that is known. The field reports nothing while it is typed into: such reports come late."""

    def __init__(
        self, session: Session, end: Callable[[Session], str], said: str = "",
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:  # fmt: skip
        import ipywidgets as widgets

        self.session, self._end, self._later, self._entered = session, end, later or _call_later, None
        wide = widgets.Layout(width="auto")
        self.who = widgets.Text(session.who, description="Who", disabled=session.blind)
        self.view = widgets.HTML(layout=wide)
        letters = "n s u" if session.blind else "a n s u"
        self.entry = widgets.Text(placeholder=f"a number, or a letter: {letters}", description="Value")
        self.entry.continuous_update = False
        self.message = widgets.HTML(layout=wide)
        self.buttons = {
            name: widgets.Button(description=label, tooltip=tip)
            for name, label, tip in (
                ("accept", "Accept (a)", "The automatic value is what the answer says"),
                ("correct", "Correct (Enter)", "The answer says the number in the field"),
                ("none", "None (n)", "The answer gives no value"),
                ("skip", "Skip (s)", "Decide nothing"),
                ("undo", "Undo (u)", "Take the last decision back"),
                ("finish", "Finish", "Regrade with these decisions and write the report anew"),
            )
            if not (session.blind and name == "accept")
        }
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.press(name))
        row = widgets.HBox([*self.buttons.values()], layout=widgets.Layout(flex_flow="row wrap"))
        self.entry.on_msg(self._on_message)
        self.entry.observe(self._on_value, "value")
        self.root = widgets.VBox([self.who, self.view, self.entry, row, self.message], layout=wide)
        self.show(said)

    def _on_message(self, _widget, content, _buffers) -> None:
        if content.get("event") == "submit":
            self._entered = entered = object()
            self._later(PATIENCE, lambda: self._submit(entered))

    def _on_value(self, change) -> None:
        if change["new"] and self._entered:
            self._submit(self._entered)

    def _submit(self, entered: object) -> None:
        """Does what stands in the text field, once for each Enter."""
        if entered is self._entered:
            self._entered = None
            self._do(lambda: self.session.take(self.entry.value))

    def press(self, name: str) -> None:
        if name == "finish":
            return self._finish()
        actions = self.session.actions | {"correct": lambda: self.session.correct(self.entry.value)}
        self._entered = None  # an Enter that is under way is overtaken
        self._do(actions[name])

    def _do(self, action: Callable[[], None]) -> None:
        """Runs one action and says what was saved; after a mistake the case stays. The field is emptied either way."""
        if not self.session.blind:
            self.session.who = self.who.value
        before = len(self.session.decided)
        try:
            action()
        except UserError as error:
            self.entry.value = ""
            return self._say(str(error))
        self.entry.value = ""
        after = self.session.decided
        self.show(f"Saved: {spoken(after[-1].value)}." if len(after) > before else "")

    def _finish(self) -> None:
        self._say("Regrading …")
        try:
            self._say(self._end(self.session))
        except UserError as error:
            self._say(str(error))

    def _say(self, text: str) -> None:
        self.message.value = f'<div role="status" aria-live="polite" style="{_MESSAGE}">{escape(text)}</div>'
        self.entry.focus()

    def show(self, said: str = "") -> None:
        self.view.value = draw(self.session)
        over = self.session.case is None
        for name in self.buttons.keys() - {"undo", "finish"}:
            self.buttons[name].disabled = over
        if "accept" in self.buttons and not over:
            self.buttons["accept"].disabled = self.session.case.automatic is None
        self._say(said)


def _call_later(seconds: float, action: Callable[[], None]) -> None:
    """Calls `action` after a while from the kernel's own loop; at once where there is none."""
    try:
        asyncio.get_running_loop().call_later(seconds, action)
    except RuntimeError:
        action()


def escape(text: str) -> str:
    """Foreign text for HTML: nothing in it is run, or turns the direction of reading."""
    return html.escape(readable(text))


def draw(session: Session) -> str:
    """The case as HTML: in an audit without the automatic value, its rule and its span."""
    case = session.case
    if case is None:
        return f"<p><b>{len(session.decided)} decided, none left.</b> Finish regrades and writes the report anew.</p>"
    before, span, behind = map(html.escape, around(case.response, None if session.blind else case.span))
    marked = f"<mark>{span}</mark>" if span else ""
    cut = " (cut off at the token limit)" if case.truncated else ""
    parts = [
        f"<div><b>{session.progress}</b></div>",
        f'Question<div style="{_BOX}">{escape(case.question)}</div>',
        f'Answer{cut}<div style="{_BOX}" tabindex="0">{before}{marked}{behind}</div>',
    ]
    if not session.blind:
        value = f"Automatic value: <b>{escape(spoken(as_written(case.automatic)))}</b> (rule {escape(case.rule)})"
        parts.append(f"<div>Listed because {escape('; '.join(case.why))}.<br>{value}</div>")
    return "".join(parts)


def is_attended() -> bool:
    """Whether a person can answer this notebook: an unattended run tells the kernel that it takes no input."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))
