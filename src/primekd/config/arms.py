"""The arms of a study: data in configs/strategies.yaml, read here and nowhere else.

An arm is one student's treatment: which prompt its text came from, which prompt its signals came from, which loss.
"""

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from primekd.config.profile import Profile, explain_validation_error
from primekd.config.section import Positive, is_name
from primekd.config.student import LossConfig
from primekd.foundation.errors import UserError, findings_text
from primekd.foundation.provenance import project_root, relative_name

# Folders, logs and tables of their own, beside those of arms.
RESERVED = (
    "control", "control-few-shot", "teacher", "held-out", "accuracies", "audit", "contrasts", "effects", "extractors",
    "forgetting", "priming", "priming-arms", "priming-positions", "responses", "seeds", "subsets", "summary",
    "tuning",
)  # fmt: skip
# What else is assessed: the student's base as it is, the same with examples, the unprimed teacher.
CONTROL, FEW_SHOT, TEACHER = "control", "control-few-shot", "teacher"
UNTRAINED, NO_STUDENTS = (CONTROL, FEW_SHOT), (CONTROL, FEW_SHOT, TEACHER)
OWN, GOLD, NONE, SHUFFLED = "own", "gold", "none", "shuffled"
WORDS = (OWN, GOLD, NONE)
Role = Literal[
    "baseline", "treatment", "fine-tuning", "placebo", "rewording", "crossed", "text-alone", "other-loss",
    "selection", "positive-control",
]  # fmt: skip
# Roles that say of which arm they are a variant.
ABOUT_ANOTHER = ("rewording", "crossed", "text-alone", "other-loss", "selection", "positive-control")
OF_ONE_STORE = ("other-loss", "selection", "positive-control")  # that arm's text and signals, treated otherwise
PRIMED = ("treatment", "placebo", "rewording")  # roles whose teacher reads a priming text


class Arm(BaseModel):
    """One way to make a student.

    Attributes:
        name: the arm's own, in every path and log. title: the one used in the published tables.
        role: what it is compared with follows from it (statistics.families).
        variant_of: the arm that a rewording rewords, and so on.
        priming: the text that the teacher alone sees (None: the model's own default), read from `priming_file` where
            that is given: a path relative to the checkout, or absolute. `placement` goes before the profile's
            teacher.priming_placement.
        text: whose prompt the responses were written under: own, another arm's name, or gold for the gold solutions.
        signals: whose prompt they were scored under: own, another arm's name, or none to train on the text alone.
        responses: a file with the responses (id and response a row) that are scored instead of the teacher's own; a
            path as of `priming_file`. Then `text` stays own.
        rows: shuffled gives each item the signal rows of another one.
        keep_right: train on responses with the right answer alone. cut_tokens: on so many first tokens of each.
        loss: what differs from the profile's loss.
        notebooks: the folder whose notebooks run it; the arm's own name if left out.
        extra: it runs in those profiles alone that list it in `arms`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    role: Role
    variant_of: str | None = None
    priming: str | None = None
    priming_file: str | None = None
    placement: Literal["system", "user"] | None = None
    text: str = OWN
    signals: str = OWN
    responses: str | None = None
    rows: Literal["own", "shuffled"] = OWN
    keep_right: bool = False
    cut_tokens: Positive | None = None
    loss: dict[str, Any] = {}
    notebooks: str | None = None
    extra: bool = False

    @model_validator(mode="before")
    @classmethod
    def older_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Files said `teacher: false` for `text: gold`, and no role, before arms had any."""
        values = dict(values)
        if not values.pop("teacher", True):
            values |= {"text": GOLD}
        primed = values.get("priming") or values.get("priming_file")
        role = "fine-tuning" if values.get("text") == GOLD else "treatment" if primed else "baseline"
        return {"role": role} | values

    @model_validator(mode="after")
    def consistent(self) -> "Arm":
        if broken := [rule for holds, rule in self._rules() if not holds]:
            raise ValueError(broken[0])
        return self

    def _rules(self) -> list[tuple[bool, str]]:
        """What must hold, each with the sentence for whom it does not: nothing that a file says may be ignored."""
        changed = {"other-loss": bool(self.loss), "selection": self.keep_right or bool(self.cut_tokens),
                   "positive-control": self.rows == SHUFFLED}  # fmt: skip
        gold, alone, primed = self.text == GOLD, self.signals == NONE, bool(self.priming or self.priming_file)
        plain, asked = self.text == self.signals == OWN, OWN in (self.text, self.signals)
        unknown = sorted(set(self.loss) - set(LossConfig.model_fields))
        named = (self.role in ABOUT_ANOTHER) == (self.variant_of is not None)
        return [
            (self.text != NONE and self.signals != GOLD,
             "text is own, gold or an arm; signals are own, none or an arm"),
            (gold == (self.role == "fine-tuning"), "text: gold and role: fine-tuning belong together"),
            (not gold or self.signals == OWN, "gold solutions have no signals: leave signals out"),
            (not gold or not (primed or self.loss), "gold solutions have no teacher: leave priming and loss out"),
            (named, f"the roles {', '.join(ABOUT_ANOTHER)}, and no other, name the arm that they are variant_of"),
            (alone == (self.role == "text-alone"), "signals: none and role: text-alone belong together"),
            (not alone or not self.loss, "text alone is trained on with the cross-entropy alone: leave loss out"),
            (not primed or asked, "nobody reads its priming, as its text and signals are other arms': leave it out"),
            (self.role != "baseline" or (plain and not primed),
             "a baseline has no priming, and text and signals of its own"),
            (self.role not in PRIMED or (plain and primed),
             f"{', '.join(PRIMED)}: each has a priming, and text and signals of its own"),
            (self.role not in OF_ONE_STORE or self.text == self.signals == self.variant_of,
             f"{', '.join(OF_ONE_STORE)}: each has text and signals of the arm that it is variant_of"),
            (changed.get(self.role, True), "other-loss has a loss, a selection keep_right or cut_tokens, and a "
             "positive-control rows: shuffled"),
            (self.role == "selection" or not changed["selection"], "keep_right and cut_tokens are a selection's"),
            (self.role == "positive-control" or not changed["positive-control"],
             "rows: shuffled is a positive-control's"),
            (not self.responses or (self.text == OWN and not alone),
             "with responses from a file, text stays own, and somebody scores them"),
            (self.crossed == (self.role == "crossed"),
             "role: crossed and taking text and signals from two prompts, or text from a file, belong together"),
            (not unknown, f"loss has no {''.join(unknown[:1])}"),
        ]  # fmt: skip

    @property
    def teacher(self) -> bool:
        """Whether a teacher is asked; if not, it is trained on the gold solutions."""
        return self.text != GOLD

    @property
    def store(self) -> str | None:
        """The arm whose captured store its student reads: its own, or that of the arm that has its text and signals."""
        if not self.teacher:
            return None
        return self.name if self.text == OWN or self.signals not in (NONE, self.text) else self.text

    @property
    def crossed(self) -> bool:
        """Whether its responses are scored under another prompt than they were written under."""
        return self.store == self.name and bool(self.text != OWN or self.signals not in (OWN, NONE) or self.responses)

    @property
    def treatment(self) -> dict[str, Any]:
        """What is done to the store's items before training, without what is left as it is."""
        return self.model_dump(include={"rows", "keep_right", "cut_tokens"}, exclude_defaults=True)

    @property
    def cell(self) -> tuple[str, str]:
        """(whose text, whose signals) its student learns from: names of arms, gold or none."""
        text, signals = (self.name if of == OWN else of for of in (self.text, self.signals))
        return text, signals

    @property
    def folder(self) -> str:
        """Of its notebooks."""
        return self.notebooks or self.name

    def loss_of(self, profile: Profile) -> LossConfig:
        """The profile's loss with what the arm says itself; of text alone, the cross-entropy on the responses.

        Raises:
            UserError: the two do not go together.
        """
        own = {"alpha": 1.0, "labels": "response"} if self.signals == NONE else self.loss
        try:
            return LossConfig(**profile.loss.model_dump() | own)
        except ValidationError as error:
            said = findings_text(error)
            raise UserError(f"{self.name} in configs/strategies.yaml: its loss in {profile.name}: {said}.") from error


def split_seed(model: str) -> tuple[str, str]:
    """(arm, further seed) of a model's name: ai-KD-seed1 is (ai-KD, 1); the profile's own seed has no name."""
    match = re.fullmatch(r"(.+)-seed(\d+)", model)
    return (match[1], match[2]) if match else (model, "")


def _can_name(name: str) -> bool:
    taken = name in RESERVED or name.startswith("held-out-") or ".old-" in name
    return is_name(name) and not taken and not split_seed(name)[1]


def arms_file() -> Path:
    """configs/strategies.yaml of this checkout."""
    return project_root() / "configs" / "strategies.yaml"


def load_arms() -> dict[str, Arm]:
    """All arms in the order of the file, keyed by name.

    Raises:
        UserError: the file is no valid YAML, or an entry has an unknown or missing key, or names an arm that cannot be
            what it is named for.
    """
    path = arms_file()
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
        if odd := [name for name in map(str, rows) if not _can_name(name)]:
            raise UserError(
                f"{relative_name(path)}: {odd[0]!r} cannot name a strategy: take letters, digits, dots, dashes and "
                f"underscores, a letter or digit first, no -seed and number at the end, and none of "
                f"{', '.join(RESERVED)}."
            )
        arms = {name: Arm(name=name, **row) for name, row in rows.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise UserError(f"{relative_name(path)} cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError(explain_validation_error(error, path)) from error
    arms = {name: _with_text(arm) for name, arm in arms.items()}
    for arm in arms.values():
        _refuse_references(arm, arms)
    return arms


def default_arms() -> dict[str, Arm]:
    """Those that run where a profile lists none: the published study's own."""
    return {name: arm for name, arm in load_arms().items() if not arm.extra}


def arms_of(profile: Profile) -> dict[str, Arm]:
    """The arms that a profile runs, in the order of the file.

    Raises:
        UserError: it lists one that is not there, or not an arm that another one needs, or an arm's loss does not go
            with the profile's, or a planned contrast names something that it does not run.
    """
    known = load_arms()
    for name in profile.arms or ():
        get_arm(name)
    wanted = [name for name, arm in known.items() if not arm.extra] if profile.arms is None else profile.arms
    chosen = {name: arm for name, arm in known.items() if name in wanted}
    for arm in chosen.values():
        arm.loss_of(profile)
        if missing := [name for name in (arm.text, arm.signals) if name not in (*WORDS, *chosen)]:
            raise UserError(
                f"{profile.name}: the arm {arm.name} takes its text or signals from {missing[0]}: list that too."
            )
    for name, seeds in profile.seeds.items():
        if name not in chosen or len({profile.seed, *seeds}) <= len(seeds):
            raise UserError(
                f"{profile.name}: seeds names {name!r}: it must be one of {', '.join(chosen)}, with seeds that differ "
                f"from each other and from {profile.seed}."
            )
    for name in (name for pair in profile.planned.main for name in pair):
        if name not in (CONTROL, *chosen):
            raise UserError(
                f"{profile.name}: planned.main names {name!r}, which this profile does not run: choose from "
                f"{', '.join((CONTROL, *chosen))}, or list it in arms."
            )
    return chosen


def get_arm(name: str) -> Arm:
    """One arm by its name.

    Raises:
        UserError: there is none of that name.
    """
    known = load_arms()
    if name not in known:
        raise UserError(f"No strategy is called {name!r} in configs/strategies.yaml: choose from {', '.join(known)}.")
    return known[name]


def of_role(role: Role, arms: dict[str, Arm] | None = None) -> list[str]:
    """The names of the arms with a role, of all arms if none are given."""
    return [name for name, arm in (load_arms() if arms is None else arms).items() if arm.role == role]


def unprimed() -> Arm:
    """The arm whose teacher has no priming text: the reference of held-out fit.

    Raises:
        UserError: no arm has the role baseline.
    """
    if not (found := of_role("baseline")):
        raise UserError("configs/strategies.yaml has no arm with the role baseline, which others are compared with.")
    return get_arm(found[0])


def _refuse_references(arm: Arm, arms: dict[str, Arm]) -> None:
    """Text and signals are taken from arms that have their own, so that no arm stands for another that stands for…"""
    place = f"{relative_name(arms_file())}: {arm.name}"
    for key in ("text", "signals", "variant_of"):
        other = getattr(arm, key)
        if other in WORDS or other is None:
            continue
        if other not in arms or other == arm.name:
            raise UserError(f"{place}: {key} names {other!r}, which is no other arm: choose from {', '.join(arms)}.")
        if key != "variant_of" and not arms[other].text == arms[other].signals == OWN:
            raise UserError(f"{place}: {key} names {other}, which has no {key} of its own: name the arm that has.")


def _with_text(arm: Arm) -> Arm:
    """The arm with the text of its priming file, without the white space around it."""
    place = f"{relative_name(arms_file())}: {arm.name}"
    if arm.priming_file is None:
        if arm.placement and arm.priming is None:
            raise UserError(f"{place} has a placement and no priming to place: add priming or priming_file.")
        return arm
    if arm.priming is not None:
        raise UserError(f"{place} has both priming and priming_file: leave one of them out.")
    file = project_root() / arm.priming_file
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: priming_file {arm.priming_file} is no readable UTF-8 text: mend it.") from error
    if not text:
        raise UserError(f"{place}: priming_file {arm.priming_file} is empty: write the priming text into it.")
    return arm.model_copy(update={"priming": text})
