"""Adjudication in a terminal. Other people's text is drawn as plain text, without markup and control characters."""

import sys
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from primekd.assessment.decisions.decisions import as_written
from primekd.assessment.decisions.session import Session, around, counted, readable, say_stale, spoken
from primekd.foundation.errors import UserError

KEYS = "type the number  [n]one  [s]kip  [u]ndo  [q]uit"


def run_session(session: Session, console: Console | None = None) -> None:
    """Asks until every case is decided or the person quits (q, Ctrl-C, Ctrl-D). Every decision is on disk by then."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an answer's emoji must not stop a session on an old terminal
    console = console or Console(highlight=False)
    shown = None
    while True:
        if session.case is not None and shown != session.place:
            console.print(draw(session))
            shown = session.place
        try:
            typed = console.input(Text(f"{keys(session)} > "))
        except (KeyboardInterrupt, EOFError):
            console.print()
            return
        except UnicodeDecodeError:
            typed = "?"  # bytes that are no text: asked again below
        if typed.strip().lower() in ("q", "quit") or (session.case is None and not typed.strip()):
            return
        try:
            session.take(typed)
        except UserError as error:
            console.print(Text(readable(str(error))))


def keys(session: Session) -> str:
    if session.case is None:
        return "That was the last one. Enter finishes, [u] goes back"
    return KEYS if session.blind else f"[a]ccept  [c]orrect: {KEYS}"


def draw(session: Session) -> Group:
    """The case as it is shown: in an audit without the automatic value, its rule and its span."""
    case = session.case
    before, span, behind = around(case.response, None if session.blind else case.span)
    answer = Text(before)
    if span:
        answer.append(f"»{span}«", style="bold reverse")
    answer.append(behind)
    cut = " (cut off at the token limit)" if case.truncated else ""
    parts = [
        Text(f"\n{session.progress}", style="bold"),
        Panel(Text(readable(case.question)), title="Question", title_align="left"),
        Panel(answer, title=f"Answer{cut}", title_align="left"),
    ]
    if not session.blind:
        parts.append(Text(f"Listed because {'; '.join(case.why)}."))
        parts.append(Text(f"Automatic value: {spoken(as_written(case.automatic))} (rule {case.rule})", style="bold"))
    return Group(*parts)


def list_text(found: dict[str, Any]) -> str:
    lines = [
        f"{case['model']:16} {readable(case['id'])}  {spoken(case['automatic'])}  {'; '.join(case['why'])}"
        for case in found["cases"]
    ]
    return "\n".join([*lines, f"{counted(found['open'], 'answer')} open.", *say_stale(found["stale"])])
