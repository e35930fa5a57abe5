"""The playground: a form in which control, students and teacher are asked a question of one's own, side by side."""

import threading
from collections.abc import Sequence

from primekd.assessment.decisions.form import escape, is_attended
from primekd.assessment.decisions.session import readable
from primekd.assessment.stream import Reply, Stream
from primekd.assessment.try_student import Asker, ask, read_as
from primekd.config import CONTROL, TEACHER, Profile, get_arm
from primekd.foundation.errors import UserError
from primekd.models.chat import Priming
from primekd.report.figures import PALETTE, draw
from primekd.report.shown import Shown, show_figure, show_texts
from primekd.report.token_view import tokens_view

NO_PRIMING, OWN = "none", "my own"
WRAPPED = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"
BOX = f"margin:0;{WRAPPED};text-align:left;font:inherit;line-height:1.4"
COLOURS = "color:var(--jp-content-font-color1,inherit);background:var(--jp-layout-color1,transparent)"
FRAME = f"{COLOURS};border:1px solid var(--jp-border-color1,gray);padding:.6em;box-sizing:border-box"


class Playground:
    """The widgets around one `Asker`; `root` is what a notebook shows. The boxes of `strategies` are ticked at first;
    None ticks all that are trained, and the teacher. Models are loaded and asked in a thread: the kernel hears Stop
    meanwhile."""

    def __init__(self, asker: Asker, question: str = "", strategies: Sequence[str] | None = None):
        import ipywidgets as widgets

        self.asker, self._stream, self._stopped, self._lock = asker, None, False, threading.Lock()
        wide = lambda: widgets.Layout(width="auto")  # noqa: E731 - one each: what hides one must not hide another
        ticked = [*asker.trained, TEACHER] if strategies is None else strategies
        tall = widgets.Layout(width="auto", height="6em")
        self.question = widgets.Textarea(question, placeholder="A question of your own", layout=tall)
        # Every model of the profile, and what to do before it can be asked.
        known = {name: asker.missing(name) for name in (CONTROL, *asker.arms)}
        known[TEACHER] = asker.no_teacher
        self.models = {name: _box(widgets, name, why, name in (CONTROL, *ticked)) for name, why in known.items()}
        self.priming = widgets.Dropdown(options=[NO_PRIMING, *asker.primed, OWN], description="Teacher primed")
        self.priming.style.description_width = "initial"
        self.priming.disabled = self.models[TEACHER].disabled
        self.by_token = _box(widgets, "token by token, beside the teacher", asker.no_teacher, ticked=False)
        self.own = widgets.Textarea("", placeholder="A text that the teacher alone reads", layout=wide())
        self.ask_button = widgets.Button(description="Ask", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", disabled=True)
        self.message, self.text, self.chart = (widgets.HTML(layout=wide()) for _ in range(3))
        self.answers = widgets.HBox([], layout=widgets.Layout(flex_flow="row wrap", align_items="stretch"))
        self._new_box = lambda: widgets.HTML(layout=widgets.Layout(flex="1 1 20em", margin="4px", min_width="16em"))
        self.ask_button.on_click(lambda _: self.ask())
        self.stop_button.on_click(lambda _: self.stop())
        self.priming.observe(lambda _: self._show_priming(), "value")
        row = widgets.Layout(flex_flow="row wrap")
        boxes = widgets.HBox([*self.models.values()], layout=row)
        buttons = widgets.HBox([self.ask_button, self.stop_button, self.priming, self.by_token], layout=row)
        self.root = widgets.VBox(
            [self.question, boxes, buttons, self.own, self.text, self.message, self.answers, self.chart], layout=wide()
        )
        self._show_priming()
        who = "" if asker.missing(CONTROL) else ": the control answers"
        self._say("" if asker.trained else f"No student of {asker.profile.name} is trained yet{who}.")
        self.thread = self._start(asker.load)

    def _start(self, action) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(action,), daemon=True)
        thread.start()
        return thread

    def _guarded(self, action) -> None:
        """Runs one action after the other; a mistake is one sentence in the form."""
        with self._lock:
            try:
                action()
            except UserError as error:
                self._say(str(error))
            except Exception as error:  # a thread's traceback would be lost
                self._say(f"{type(error).__name__}: {error}")
            finally:
                self._stream = None

    @property
    def chosen(self) -> list[str]:
        return [name for name, box in self.models.items() if box.value and not box.disabled]

    def _priming(self) -> Priming | None:
        chosen = self.priming.value
        if chosen == NO_PRIMING:
            return None
        return self.asker.own_priming(self.own.value) if chosen == OWN else self.asker.priming(chosen)

    def _show_priming(self) -> None:
        own = self.priming.value == OWN
        self.own.layout.display = None if own else "none"
        priming = None if own else self._priming()
        self.text.value = f'<pre style="{BOX}">{escape(priming.text)}</pre>' if priming else ""

    def ask(self) -> None:
        if not self.chosen:
            return self._say("No model is ticked: tick one.")
        try:
            names, question, priming = self.chosen, self.question.value, self._priming()
        except UserError as error:
            return self._say(str(error))
        self._stopped, self.ask_button.disabled, self.stop_button.disabled = False, True, False
        self._say("Asking …")
        self.thread = self._start(lambda: self._ask(names, question, priming))

    def stop(self) -> None:
        """Ends the answer that is in the making; those that wait are not asked."""
        self._stopped = True
        if stream := self._stream:
            stream.stop()

    def _ask(self, names: list[str], question: str, priming: Priming | None) -> None:
        try:
            self.answers.children, self.chart.value, replies = [], "", []
            for name in names:
                if self._stopped:
                    break
                self._say(f"{name} …")
                self._stream = self.asker.stream(name, question, priming)
                self._show(self._stream, priming)
                replies.append(self._stream.reply)
                self.chart.value = speed_chart(replies)._repr_html_()
            self._say("Stopped." if self._stopped else "")
        finally:
            self.ask_button.disabled, self.stop_button.disabled = False, True

    def _show(self, stream: Stream, priming: Priming | None) -> None:
        box = self._new_box()
        box.value = _draw(stream.name, "", "…")
        self.answers.children = [*self.answers.children, box]
        if self._stopped:
            stream.stop()
        for text in stream:
            box.value = _draw(stream.name, text, "…")
        box.value = draw_reply(stream.reply, self.asker.profile.assess.extractor)
        if self.by_token.value and stream.name != TEACHER and not self._stopped:
            self._say(f"{stream.name}, token by token …")
            box.value += tokens_view({stream.name: self.asker.tokens(stream, priming)})._repr_html_()

    def _say(self, text: str) -> None:
        self.message.value = f'<div role="status" aria-live="polite" style="{BOX}">{escape(text)}</div>'


def _box(widgets, name: str, why: str, ticked: bool):
    label = f"{name} ({why})" if why else name
    layout = widgets.Layout(width="auto", margin="0 1em 0 0")
    return widgets.Checkbox(ticked and not why, description=label, disabled=bool(why), indent=False, layout=layout)


def _draw(name: str, text: str, below: str) -> str:
    return (
        f'<div style="{FRAME}"><b>{escape(name)}</b><pre style="{BOX};margin:.4em 0">{escape(text)}</pre>'
        f'<div style="color:var(--jp-content-font-color2,inherit);line-height:1.4">{below}</div></div>'
    )


def draw_reply(reply: Reply, extractor: str = "") -> str:
    """A whole answer as HTML, with what is known of it; the value that `extractor` reads stands out."""
    values = "".join(
        f"<br>{escape(name)}: " + (f"<b>{escape(value)}</b>" if name == extractor else escape(value))
        for name, value in reply.values.items()
    )
    return _draw(reply.name, reply.text, f"{reply.facts}{values}")


def playground(profile: Profile, question: str = "", strategies: Sequence[str] | None = None) -> None:
    """Shows the form; where nobody sits before the notebook (`primekd run`), asks the question once instead. Raises
    UserError if the profile's students cannot be asked, or there is no such strategy; unattended also as `ask` does."""
    from IPython.display import display

    for name in strategies or ():
        get_arm(name)
    if is_attended():
        display(Playground(Asker(profile), question, strategies).root)
    else:
        display(answers_view(question, ask(profile, question, strategies)))


def answers_view(question: str, replies: Sequence[Reply]) -> Shown:
    """Answers side by side, whole, with what is known of each."""
    cards = [(f"{r.name}: {r.facts}", readable(r.text)) for r in replies]
    notes = [f"Read as {', '.join(read_as(r))}" if r.values else "" for r in replies]
    shown = show_texts([("Question", readable(question))]) + show_texts(cards, notes)
    plain = [f"{r.name} ({'; '.join([r.facts, *read_as(r)])})\n{readable(r.text)}" for r in replies]
    return Shown((shown + speed_chart(replies)).html, "\n\n".join([readable(question), *plain]))


def speed_chart(replies: Sequence[Reply]) -> Shown:
    names, speeds = [r.name for r in replies], [r.speed for r in replies]

    def fill(axes):
        bars = axes.barh(range(len(names)), speeds, color=PALETTE[0], height=0.6)
        axes.bar_label(bars, fmt="%.1f", padding=4)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("Tokens a second")

    said = ", ".join(f"{name} {speed:.1f}" for name, speed in zip(names, speeds, strict=True))
    return show_figure(draw("speeds", (7.0, 0.9 + 0.36 * len(names)), 1, fill), f"Tokens a second: {said}")
