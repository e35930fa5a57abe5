"""Sequences and rows of an arm that does some things as the published study's released code did (config.deviations)."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from primekd.capture.given_text import store_rows
from primekd.capture.jobs import build_spec, open_signals, prompts_of, store_folder, training_job
from primekd.capture.live import LiveTeacher
from primekd.config import OWN, Arm, Profile, get_arm
from primekd.foundation import UserError, hash_json, relative_name
from primekd.models import load_tokenizer
from primekd.models.chat import StudentSequence, build_prompt, encode_response, join, place_of_question
from primekd.signals import Asked, SignalReader
from primekd.signals.codecs import require_served
from primekd.tasks.forms import socratic
from primekd.tasks.protocol import Item, as_text
from primekd.training.examples import Example
from primekd.training.treatment import LentRows

TEXTS = 8  # of a batch that the teacher is asked


def lexicographic(item_ids: Sequence[str]) -> dict[str, str]:
    """Item -> whose rows it gets where keys `Question 1`, `Question 2`, … are read back in the order of their text."""
    keys = {f"Question {number}": item for number, item in enumerate(item_ids, 1)}
    return dict(zip(item_ids, (keys[key] for key in sorted(keys)), strict=True))


@dataclass(frozen=True)
class Texts:
    """Of one item: what the student is asked, and where in it the question stands; what the teacher read, and the
    response, if there is one."""

    asked: list[int]
    question: range
    teacher_prompt: list[int]
    response: list[int]


@dataclass(frozen=True)
class Deviating:
    """A student's lesson under an arm that deviates. `profile` is the arm's view of one."""

    profile: Profile
    arm: Arm
    items: Sequence[Item]
    seed: int

    def has(self, deviation: str) -> bool:
        return deviation in self.arm.deviates

    @cached_property
    def reader(self) -> SignalReader | None:
        """The store that the responses are from; None where there are none."""
        if self.has("question-logits"):
            return None
        return open_signals(training_job(self.profile, self.arm.name, self.seed))

    @cached_property
    def texts(self) -> dict[str, Texts]:
        items = as_text(self.items) if self.has("no-template") else self.items
        tokenizer = load_tokenizer(self.profile.student)
        prompts = {item.id: build_prompt(tokenizer, item.messages) for item in items}
        asked = {item: (prompt, place_of_question(tokenizer, prompt)) for item, prompt in prompts.items()}
        if self.reader is not None:
            stored = {item: self.reader.item(item) for item in asked}
            return {i: Texts(*asked[i], one.prompt_ids, one.response_ids) for i, one in stored.items()}
        own = {"deviations": self.arm.deviations, "protocol": self.arm.protocol}
        primed = self.arm if self.arm.text == OWN else get_arm(self.arm.text).model_copy(update=own)
        read = prompts_of(primed, self.profile.teacher, list(self.items))
        return {i: Texts(*asked[i], prompt, []) for i, prompt in zip(asked, read, strict=True)}

    @property
    def _place_inputs(self) -> dict[str, str]:
        """What the texts are; of responses the store that they stand in, which need not be read to know it."""
        if self.has("question-logits"):
            return {"prompts_sha256": hash_json([list(text.teacher_prompt) for text in self.texts.values()])}
        job = training_job(self.profile, self.arm.name, self.seed)
        return {"responses_spec_sha256": hash_json(build_spec(job, list(self.items)))}

    @property
    def place_spec(self) -> dict[str, Any]:
        """The spec of the store of whole texts, as it would be made today."""
        named = {"strategy": store_folder(self.profile, self.arm, self.seed).name, "text": self._place_inputs}
        return LiveTeacher(self.profile, self.arm).manifest["spec"] | named

    @cached_property
    def source(self) -> LentRows:
        """Where the rows come from; the teacher is asked now where it has to be. Raises UserError as store_rows, and if
        the rows that stand there are of other texts."""
        ids = [item.id for item in self.items]
        donors = lexicographic(ids) if self.has("lexicographic-rows") else {}
        if not self.arm.by_place:
            require_served(self.reader.codec, self.profile.loss)
            return LentRows(self.reader, ids, donors)
        teacher = LiveTeacher(self.profile, self.arm)
        whole = [(item, [*text.teacher_prompt, *text.response]) for item, text in self.texts.items()]
        asked = [Asked(item, ids[:1], ids[1:]) for item, ids in whole]
        batches = [asked[first : first + TEXTS] for first in range(0, len(asked), TEXTS)]
        folder = store_folder(self.profile, self.arm, self.seed)
        with contextlib.closing(teacher):
            placed = store_rows(self.profile, teacher, batches, folder, self._place_inputs)
        if changed := [item for item, ids in whole if placed.item(item).response_ids != ids[1:]]:
            fix = "remove that folder, and run the same command again"
            raise UserError(f"{relative_name(folder)} has rows of another text of {changed[0]}: {fix}.")
        shift = 0 if self.has("priming-prefix") else 1
        offsets = {i: shift * (len(t.teacher_prompt) - len(t.asked)) for i, t in self.texts.items()}
        return LentRows(placed, ids, donors, offsets)

    def examples(self) -> list[Example]:
        """What the student reads. The cross-entropy is taken on the gold solution where the loss says so."""
        offsets = self.source.offsets or {}
        return [self._example(item, self.texts[item.id], offsets.get(item.id, 0)) for item in self.items]

    def _example(self, item: Item, texts: Texts, offset: int) -> Example:
        solution = socratic(item.solution, Random(0)) if self.has("socratic") else item.solution
        gold = encode_response(load_tokenizer(self.profile.student), solution)
        asked, taught, shortest = texts.asked, texts.response, None
        if self.has("question-logits"):
            first = max(1, 1 - offset, texts.question.start)  # the teacher has no row in front of its first token
            asked, taught = asked[:first], asked[first : texts.question.stop]
        if self.has("cut-to-shortest"):
            _, whole, row = self.source.place(item.id, asked)
            shortest = max(1, min(len(taught), len(gold), len(whole) - row))
        sequence = join(asked, taught[:shortest])
        if self.profile.loss.labels != "gold":
            return Example(item.id, sequence)
        if self.has("gold-by-position"):
            return Example(item.id, sequence, by_position(texts.asked, texts.question, gold[:shortest]))
        return Example(item.id, sequence, join(texts.asked, gold[:shortest]))


def by_position(asked: Sequence[int], question: range, gold: Sequence[int]) -> StudentSequence:
    """The prompt alone, the logits at the question's token t against gold token t; nothing reads what stands behind."""
    count = min(len(question), len(gold))
    before, rest = question.start + 1, len(asked) - question.start - count
    mask = [False] * before + [True] * count + [False] * rest
    return StudentSequence([*asked, asked[-1]], mask, [0] * before + list(gold[:count]) + [0] * rest)
