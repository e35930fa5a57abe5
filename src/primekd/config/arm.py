"""One arm of a study: a student's treatment, and the rules that its entry in configs/strategies.yaml has to keep."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from primekd.config.deviations import LORA, LOSS, PUBLISHED, TRAIN, Deviation, settings
from primekd.config.profile import Profile
from primekd.config.section import Positive, Section
from primekd.config.student import LossConfig, OnPolicyConfig
from primekd.foundation.errors import UserError, findings_text

# What else is assessed: the student's base as it is, the same with examples, the unprimed teacher.
CONTROL, FEW_SHOT, TEACHER = "control", "control-few-shot", "teacher"
UNTRAINED, NO_STUDENTS = (CONTROL, FEW_SHOT), (CONTROL, FEW_SHOT, TEACHER)
OWN, GOLD, NONE, SHUFFLED, STUDENT, CORPUS = "own", "gold", "none", "shuffled", "student", "corpus"
WORDS = (OWN, GOLD, NONE, STUDENT, CORPUS)
Role = Literal[
    "baseline", "treatment", "fine-tuning", "placebo", "rewording", "crossed", "text-alone", "other-loss",
    "selection", "positive-control", "on-policy", "corpus", "deviation",
]  # fmt: skip
# Roles that say of which arm they are a variant.
ABOUT_ANOTHER = (
    "rewording", "crossed", "text-alone", "other-loss", "selection", "positive-control", "on-policy", "deviation",
)  # fmt: skip
OF_ONE_STORE = ("other-loss", "selection", "positive-control")  # that arm's text and signals, treated otherwise
PRIMED = ("treatment", "placebo", "rewording")  # roles whose teacher reads a priming text


class Arm(BaseModel):
    """One way to make a student. configs/strategies.yaml says what each key is; `name` is in every path and log.

    Of text `corpus` a live teacher scores the profile's blocks, or what the student writes behind their beginnings,
    unless signals are none; with `start: control` it goes on from the control's weights with the text behind, with
    `scratch` it reads the control's own text, from the same fresh weights; where it is `stored` its teacher's rows are
    stored first. `placement` goes before the profile's teacher.priming_placement. `notebooks`: their folder."""

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
    start: Literal["control", "scratch"] = CONTROL
    stored: bool = False
    keep_right: bool = False
    cut_tokens: Positive | None = None
    share: float = Field(1.0, gt=0, le=1)
    loss: dict[str, Any] = {}
    on_policy: dict[str, Any] = {}
    deviations: tuple[Deviation, ...] = ()
    protocol: Literal["corrected", "published"] = "corrected"
    notebooks: str | None = None
    extra: bool = False

    @model_validator(mode="after")
    def consistent(self) -> "Arm":
        if broken := [rule for holds, rule in self._rules() if not holds]:
            raise ValueError(broken[0])
        return self

    def _rules(self) -> list[tuple[bool, str]]:
        """What must hold, each with the sentence for whom it does not: nothing that a file says may be ignored."""
        selected = self.keep_right or bool(self.cut_tokens) or self.share < 1
        changed = {"other-loss": bool(self.loss), "selection": selected, "positive-control": self.rows == SHUFFLED}
        gold, alone, primed = self.text == GOLD, self.signals == NONE, bool(self.priming or self.priming_file)
        plain, asked = self.text == self.signals == OWN, OWN in (self.text, self.signals)
        unknown = sorted(set(self.loss) - set(LossConfig.model_fields))
        unknown += sorted(set(self.on_policy) - set(OnPolicyConfig.model_fields))
        named = (self.role in ABOUT_ANOTHER) == (self.variant_of is not None)
        return [
            (self.text != NONE and self.signals not in (GOLD, STUDENT, CORPUS),
             "text is own, gold or an arm; signals are own, none or an arm"),
            (self.live == (self.role == "on-policy"), "text: student and role: on-policy belong together"),
            ((self.text == CORPUS) == (self.role == "corpus"), "text: corpus and role: corpus belong together"),
            (self.role != "corpus" or self.signals in (OWN, NONE) and not primed,
             "an arm of the corpus has no priming, and signals own or none"),
            (self.role == "corpus" or self.start == CONTROL and not self.stored, "start and stored are the corpus'"),
            (not self.stored or not (alone or self.on_policy), "what is stored are signals on given text"),
            (self.live or self.role == "corpus" or not self.on_policy,
             "on_policy is for text: student and text: corpus"),
            (not (alone and (self.live or self.on_policy)), "a student that writes its own text needs signals"),
            (gold == (self.role == "fine-tuning"), "text: gold and role: fine-tuning belong together"),
            (not gold or self.signals == OWN, "gold solutions have no signals: leave signals out"),
            (not gold or not (primed or self.loss), "gold solutions have no teacher: leave priming and loss out"),
            (named, f"the roles {', '.join(ABOUT_ANOTHER)}, and no other, name the arm that they are variant_of"),
            (alone or self.role != "text-alone", "role: text-alone has signals: none"),
            (not alone or self.role in ("text-alone", "selection", "corpus"),
             "signals: none is for the roles text-alone, selection and corpus"),
            (not alone or not self.loss, "text alone is trained on with the cross-entropy alone: leave loss out"),
            (not primed or asked, "nobody reads its priming, as its text and signals are other arms': leave it out"),
            (self.role != "baseline" or (plain and not primed),
             "a baseline has no priming, and text and signals of its own"),
            (self.role not in PRIMED or (plain and primed),
             f"{', '.join(PRIMED)}: each has a priming, and text and signals of its own"),
            (changed.get(self.role, True), "other-loss has a loss, a selection keep_right, cut_tokens or share, and "
             "a positive-control rows: shuffled"),
            (self.role == "selection" or not changed["selection"], "keep_right, cut_tokens, share are a selection's"),
            (bool(self.deviates) == (self.role == "deviation"),
             "role: deviation has deviations, or protocol: published, and no other role has any"),
            (self.protocol == "corrected" or not self.deviations, "protocol: published has all deviations: name none"),
            (self.role != "deviation" or plain or self.text == self.signals,
             "a deviation has text and signals of its own, or of one arm"),
            ("no-template" not in self.deviates or self.text == OWN or "question-logits" in self.deviates,
             "no-template is what the teacher reads, too: text and signals are its own"),
            (self.role == "positive-control" or not changed["positive-control"],
             "rows: shuffled is a positive-control's"),
            (not self.responses or (self.text == OWN and not alone),
             "with responses from a file, text stays own, and somebody scores them"),
            (self.crossed == (self.role == "crossed"),
             "role: crossed and taking text and signals from two prompts, or text from a file, belong together"),
            (primed or not self.placement, "a placement and no priming to place: add priming or priming_file"),
            (self.priming is None or not self.priming_file, "both priming and priming_file: leave one of them out"),
            (not unknown, f"loss or on_policy has no {''.join(unknown[:1])}"),
        ]  # fmt: skip

    @property
    def teacher(self) -> bool:
        """Whether a teacher is asked; if not, it is trained on the gold solutions."""
        return self.text != GOLD

    @property
    def live(self) -> bool:
        """Whether its student writes its text itself, for a teacher that is asked while it learns."""
        return self.text == STUDENT

    @property
    def store(self) -> str | None:
        """The arm whose store its student reads: itself, or the one that has its text and signals; None without any."""
        if not self.teacher or self.text in (STUDENT, CORPUS) or "question-logits" in self.deviates:
            return None
        return self.name if self.text == OWN or self.signals not in (NONE, self.text) else self.text

    @property
    def deviates(self) -> frozenset[str]:
        """What it does as the published study's released code did."""
        return PUBLISHED if self.protocol == "published" else frozenset(self.deviations)

    @property
    def by_place(self) -> bool:
        """Whether its teacher's rows are those of places in a whole text, which a teacher is asked for as it trains."""
        return bool(self.deviates & {"question-logits", "priming-prefix"})

    @property
    def crossed(self) -> bool:
        """Whether its responses are scored under another prompt than they were written under."""
        return self.store == self.name and bool(self.text != OWN or self.signals not in (OWN, NONE) or self.responses)

    @property
    def treatment(self) -> dict[str, Any]:
        """What is done to the store's items before training, without what is left as it is."""
        return self.model_dump(include={"rows", "keep_right", "cut_tokens", "share"}, exclude_defaults=True)

    @property
    def cell(self) -> tuple[str, str]:
        """(whose text, whose signals) its student learns from: names of arms, gold or none."""
        text, signals = (self.name if of == OWN else of for of in (self.text, self.signals))
        return text, signals

    @property
    def folder(self) -> str:
        return self.notebooks or self.name

    @property
    def _place(self) -> str:
        return f"{self.name} in configs/strategies.yaml"

    def loss_of(self, profile: Profile) -> LossConfig:
        """The profile's loss with what the arm says itself; of text alone cross-entropy. UserError if they clash."""
        own = {"alpha": 1.0, "labels": "response"} if self.signals == NONE else self.loss
        own = own | settings(LOSS, self.deviates)
        return _built(LossConfig, profile.loss.model_dump() | own, f"{self._place}: its loss in {profile.name}")

    def view_of(self, profile: Profile) -> Profile:
        """The profile as this arm's student is trained. Raises UserError as `loss_of`."""
        changes: dict[str, Any] = {"loss": self.loss_of(profile)}
        if own := settings(TRAIN, self.deviates):
            changes["train"] = profile.train.model_copy(update=own)
        if (own := settings(LORA, self.deviates)) and profile.student.lora:
            lora = profile.student.lora.model_copy(update=own)
            changes["student"] = profile.student.model_copy(update={"lora": lora})
        return profile.model_copy(update=changes)

    def on_policy_of(self, profile: Profile) -> OnPolicyConfig | None:
        """As `loss_of`, of the section `on_policy`; None where the student writes nothing."""
        if not (self.live or self.on_policy):
            return None
        given = profile.on_policy.model_dump(exclude_none=True) if profile.on_policy else {}
        place, loss = f"{self._place}: on_policy in {profile.name}", self.loss_of(profile)
        given = {"max_new_tokens": profile.max_new_tokens} | given
        settings = _built(OnPolicyConfig, given | self.on_policy, place)
        needed = {"divergence": "reverse_kl", "temperature": 1, "divergence_scale": 1}
        changed = [name for name, value in needed.items() if getattr(loss, name) != value]
        if settings.objective == "minillm" and changed:
            fix = f"set the arm's loss.{changed[0]} to {needed[changed[0]]}"
            raise UserError(f"{place}: the objective minillm is the reverse KL of the models as they are: {fix}.")
        if self.live and (loss.alpha or settings.share < 1 or settings.warmup_steps):
            fix = "set the arm's loss.alpha to 0, share to 1 and warmup_steps to 0"
            raise UserError(f"{place}: beside its own text there is none to learn from: {fix}.")
        return settings


def _built(kind: type[Section], values: dict[str, Any], place: str) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(f"{place}: {findings_text(error)}.") from error


def split_seed(model: str) -> tuple[str, str]:
    """(arm, further seed) of a model's name: ai-KD-seed1 is (ai-KD, 1); the profile's own seed has no name."""
    match = re.fullmatch(r"(.+)-seed(\d+)", model)
    return (match[1], match[2]) if match else (model, "")
