"""One sitting of a person who decides on answers: what the terminal and the notebook's form have in common."""

import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from primekd.assessment.decisions import decisions as kept
from primekd.assessment.decisions.cases import Case, audit_sample, open_cases
from primekd.assessment.logs import read_logs
from primekd.config import Profile
from primekd.foundation import UserError, now

# Drawn as it is, or otherwise; joiners are what scripts and emoji need.
_DRAWN = {c: "\n" for c in "\n\u2028\u2029"} | {c: " " for c in "\t\r"} | {c: c for c in "\u200c\u200d"}


class Session:
    """Walks through cases, saves each decision at once, and takes the last ones back. `who` may change between
    decisions. In an audit (`blind`) whoever draws `case` leaves out its automatic value, rule and span."""

    def __init__(self, profile: Profile, cases: list[Case], who: str, purpose: str = kept.REVIEW) -> None:
        self.profile, self.cases, self.who, self.purpose = profile, cases, who, purpose
        self.place = 0
        self._steps: list[kept.Decision | None] = []  # one a case that was passed; None for a skipped one

    @property
    def case(self) -> Case | None:
        """The case that is to be decided now; None after the last."""
        return self.cases[self.place] if self.place < len(self.cases) else None

    @property
    def blind(self) -> bool:
        return self.purpose == kept.AUDIT

    @property
    def decided(self) -> list[kept.Decision]:
        """What was decided in this session and not taken back."""
        return [step for step in self._steps if step]

    @property
    def progress(self) -> str:
        return f"{min(self.place + 1, len(self.cases))} of {len(self.cases)}"

    @property
    def actions(self) -> dict[str, Callable[[], None]]:
        """What can be done without a number, by name; a person types the name or its first letter."""
        return {"accept": self.accept, "none": self.none, "skip": self.skip, "undo": self.undo}

    def take(self, typed: str) -> None:
        """Does what was typed: a letter, a number, or `c` and a number. Raises UserError if it is neither."""
        word, _, rest = typed.strip().partition(" ")
        word = word.lower()
        action = next((do for name, do in self.actions.items() if not rest and word in (name, name[0])), None)
        if action:
            action()
        else:
            self.correct(rest if word in ("c", "correct") else typed)

    def accept(self) -> None:
        """The automatic value is what the answer says."""
        case = self._now()
        if self.blind:
            raise UserError("In an audit the automatic value is not shown: type the number, or n if there is none.")
        if case.automatic is None:
            raise UserError("There is no automatic value to accept: type the number, or n if the answer gives none.")
        self._save(case.automatic)

    def correct(self, typed: str) -> None:
        self._now()
        if not typed.strip():
            raise UserError("Type the number that the answer gives, for example 18.")
        self._save(kept.parse_typed(typed))

    def none(self) -> None:
        self._save(None)

    def skip(self) -> None:
        """Decides nothing; the case comes again in another session."""
        self._now()
        self._steps.append(None)
        self.place += 1

    def undo(self) -> None:
        """Takes back the last decision or skip, and goes back to its case."""
        if not self._steps:
            raise UserError("There is nothing to undo in this session.")
        if self._steps[-1]:
            kept.remove_decision(self._steps[-1])
        self._steps.pop()
        self.place -= 1

    def _now(self) -> Case:
        if self.case is None:
            raise UserError("That was the last answer: undo with u, or finish.")
        return self.case

    def _save(self, value: Fraction | None) -> None:
        case = self._now()
        kind = kept.NONE if value is None else kept.ACCEPT if value == case.automatic else kept.CORRECT
        automatic, decided, who = kept.as_written(case.automatic), kept.as_written(value), kept.check_who(self.who)
        decision = kept.Decision(self.profile.name, *case.key, automatic, kind, decided, who, now(), self.purpose)
        kept.add_decision(decision)
        self._steps.append(decision)
        self.place += 1


def open_session(
    profile: Profile, who: str, models: list[str] | None = None, limit: int | None = None, audit: int | None = None,
    seed: int = 0,
) -> tuple[Session, str]:  # fmt: skip
    """A session, and what to say before it starts. Raises UserError if logs or decisions cannot be read."""
    logs, decisions = read_logs(profile), kept.read_decisions()
    if audit:
        cases = audit_sample(profile, logs, decisions, who, audit, models or (), seed)
        said = f"{counted(len(cases), 'answer')} drawn at random for a blind second look."
    else:
        cases = open_cases(profile, logs, decisions, models or (), seed)
        said = f"{counted(len(cases), 'answer')} open: no rule settles them, or rules disagree."
    session = Session(profile, cases[:limit], who, kept.AUDIT if audit else kept.REVIEW)
    return session, " ".join([said, *say_stale(kept.count_stale(profile.name, logs, decisions))])


def list_cases(
    profile: Profile, models: list[str] | None = None, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """What a session would ask about, in its order and without texts: `open` counts all, `cases` are at most `limit`.
    `stale` counts decisions for answers that these logs do not hold. Raises UserError as `open_session` does."""
    logs, decisions = read_logs(profile), kept.read_decisions()
    cases = open_cases(profile, logs, decisions, models or (), seed)
    shown = cases[:limit]
    told = ("model", "id", "answer_sha256", "automatic", "rule", "span", "truncated", "why")
    return {
        "profile": profile.name,
        "open": len(cases),
        "stale": kept.count_stale(profile.name, logs, decisions),
        "cases": [{n: getattr(c, n) for n in told} | {"automatic": kept.as_written(c.automatic)} for c in shown],
    }


def say_stale(count: int) -> list[str]:
    """The sentence on decisions that apply to nothing; none if there are none."""
    if not count:
        return []
    return [f"{counted(count, 'decision')} {'are' if count > 1 else 'is'} for answers that these logs do not hold."]


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def spoken(value: str) -> str:
    """A written value in words a person reads: -1 is none."""
    return "none" if value == "-1" else "-1" if value == "-1.0" else value


def readable(text: str) -> str:
    """A text that can drive no terminal nor turn its direction: control characters become U+FFFD, one for one."""
    return "".join(_DRAWN.get(c, "\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c) for c in text)


def around(text: str, span: tuple[int, int] | None) -> tuple[str, str, str]:
    """A text, made readable, in three parts: before the span, the span, behind it."""
    shown = readable(text)
    start, end = span or (len(shown), len(shown))
    return shown[:start], shown[start:end], shown[end:]
