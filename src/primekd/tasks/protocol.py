"""What a task is: the items of a split, and how a response to one is judged. Each task has a file beside this one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from primekd.config import DataConfig

Value = Fraction | str
Message = dict[str, str]  # role and content


@dataclass(frozen=True)
class Item:
    """What is asked once."""

    id: str
    question: str  # without any priming text
    solution: str  # the response to fine-tune on, which gives the answer
    answer: Value  # the gold value that a response is judged by

    @property
    def messages(self) -> list[Message]:
        """What a model is sent, before any priming; a task whose items carry more than the question overrides it."""
        return [{"role": "user", "content": self.question}]

    def fingerprint(self) -> list:
        """What is hashed of an item: all that results depend on."""
        plain = [self.id, self.question, self.solution, str(self.answer)]
        return plain if self.messages == Item.messages.fget(self) else [*plain, self.messages]


@dataclass(frozen=True)
class Unlabelled:
    """An item without its gold: all that a teacher is handed, and whoever trains on its answers."""

    id: str
    question: str
    messages: list[Message]


def without_gold(items: Sequence[Item]) -> list[Unlabelled]:
    """What is asked, and nothing to judge answers by or to learn from."""
    return [Unlabelled(item.id, item.question, item.messages) for item in items]


@dataclass(frozen=True)
class ShownItem(Item):
    """An item that is asked in other words than its question's, or behind others."""

    shown: tuple[Message, ...] = ()

    @property
    def messages(self) -> list[Message]:
        return list(self.shown)


def with_examples(items: Sequence[Item], shown: Sequence[Item]) -> list[Item]:
    """Items behind others that are asked and answered with their solutions (few-shot prompting)."""
    pairs = [[*item.messages, {"role": "assistant", "content": item.solution}] for item in shown]
    return _behind([message for pair in pairs for message in pair], items)


def with_instruction(items: Sequence[Item], text: str) -> list[Item]:
    return _behind([{"role": "system", "content": text}], items)


def as_text(items: Sequence[Item | Unlabelled]) -> list[Item | Unlabelled]:
    """Items whose question is read as it stands, without a chat template."""
    return [_as_text(item, {"role": "text", "content": item.question}) for item in items]


def _as_text(item: Item | Unlabelled, message: Message) -> Item | Unlabelled:
    if isinstance(item, Unlabelled):
        return Unlabelled(item.id, item.question, [message])
    return ShownItem(item.id, item.question, item.solution, item.answer, (message,))


def _behind(messages: list[Message], items: Sequence[Item]) -> list[Item]:
    return [ShownItem(i.id, i.question, i.solution, i.answer, (*messages, *i.messages)) for i in items]


class Found(Protocol):
    """What a reader of values makes of a response: value (None if there is none), its rule and its [start, end)."""

    value: Fraction | None
    rule: str
    span: tuple[int, int] | None


Reader = Callable[[str, str], Found]  # a response and the question that it answers


@dataclass(frozen=True)
class Judgement:
    value: Value | None  # what it answers; None where no answer was found
    rule: str  # the rule that found the value, for the log
    span: tuple[int, int] | None  # the characters [start, end) of the response that the value was read from
    correct: bool
    scores: Mapping[str, float] = field(default_factory=dict)  # further measures by name


class Task(Protocol):
    """One task; `items` and `judge` are its own, what stands here for the rest serves answers that are texts."""

    end_matters = True  # whether of an answer that was cut off nobody knows what it would have been
    gold_only_judges = False  # whether gold may reach no student that learns from a teacher

    def items(self, data: "DataConfig", split: str, count: int, seed: int) -> list[Item]:
        """`count` items of a split (train, validation, test, teacher), none in two. UserError if they cannot be had."""
        raise NotImplementedError

    def judge(self, item: Item, response: str, read: Reader) -> Judgement:
        """Judges a response. Of the item it knows what a log keeps: id, question and answer. `read` finds a number in a
        response, by the rules that the profile chose; it never sees the gold answer."""
        raise NotImplementedError

    def unfit(self, question: str, response: str, truncated: bool) -> str:
        """Why a response is no label to train on, in a word or two; empty where it is one. It knows no gold answer."""
        return ""

    @property
    def filters(self) -> bool:
        """Whether there are responses that it takes for no labels."""
        return type(self).unfit is not Task.unfit

    def parse(self, text: str) -> Value:
        """A value as a log or a file writes it. Raises ValueError if it is none."""
        if not text.strip():
            raise ValueError("is empty")
        return text.strip()

    def write(self, value: Value) -> str:
        """The inverse of `parse`: equal values are written alike."""
        return str(value)

    def cluster(self, item_id: str) -> str:
        """What items that are no independent draws have in common; an item that has nothing in common is itself."""
        return item_id

    def metrics(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """What is reported of many responses: accuracy, and the mean of every further score."""
        names = dict.fromkeys(name for one in judgements for name in one.scores)
        sums = {"accuracy": sum(one.correct for one in judgements)}
        sums |= {name: sum(one.scores[name] for one in judgements) for name in names}
        return {name: total / len(judgements) for name, total in sums.items()}
