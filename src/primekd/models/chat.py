"""Messages to token ids and masks: the model's own template, one BOS, text that cannot pose as a tag."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from primekd.foundation.errors import UserError
from primekd.models.template import control_tokens, default_system, render, require_system_role, turn_end
from primekd.tasks.protocol import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = "text"  # the role of a message that no template renders


@dataclass(frozen=True)
class StudentSequence:
    """Prompt and response as one training sequence of S ids; the mask is True at response tokens, end of turn included.

    The mask is made from lengths, never from ids: a padding id that doubles as end of turn is not confused with one."""

    input_ids: list[int]
    response_mask: list[bool]
    labels: list[int] | None = None  # where another token than the one that stands there is to be predicted


class Prompt(list[int]):
    """Token ids of a conversation up to where the answer starts, with what they were made from. Engines take the ids. A
    server that renders needs `messages`, one that tokenizes `text`, which ids do not give back."""

    def __init__(self, ids: Iterable[int], messages: list[Message], text: str):
        super().__init__(ids)
        self.messages, self.text = messages, text


@dataclass(frozen=True)
class Priming:
    """A priming text and where the teacher reads it."""

    text: str
    placement: Literal["system", "user"] = "system"  # or in front of the question, with a blank line between
    mode: Literal["replace", "add"] = "replace"  # the model's default system text, or add to it behind a blank line


def conversation(
    tokenizer: "PreTrainedTokenizerBase", asked: str | list[Message], priming: Priming | str | None = None
) -> list[Message]:
    """The messages that a model is sent: those of an item, or a question alone, and the priming text with them. An
    item's own system message replaces the model's default. A text alone is one; UserError if the template has none."""
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    primed = Priming(priming) if isinstance(priming, str) else priming
    if primed is None:
        return messages
    if primed.placement == "user":
        *before, last = messages
        return [*before, last | {"content": f"{primed.text}\n\n{last['content']}"}]
    require_system_role(tokenizer)
    own = messages[0]["content"] if messages[0]["role"] == "system" else ""
    default = (own or default_system(tokenizer)) if primed.mode == "add" else ""
    system = f"{default}\n\n{primed.text}" if default else primed.text
    return [{"role": "system", "content": system}, *messages[bool(own) :]]


def build_prompt(
    tokenizer: "PreTrainedTokenizerBase", asked: str | list[Message], priming: Priming | str | None = None
) -> Prompt:
    """Token ids of a conversation, or of a question alone, up to where the answer starts. Students have no priming.

    Raises UserError if a text has one of the tokenizer's control tokens, or the template takes no system message."""
    if not isinstance(asked, str) and [message["role"] for message in asked] == [TEXT]:
        return _bare_prompt(tokenizer, asked, priming)
    messages = conversation(tokenizer, asked, priming)
    for message in messages:
        refuse_control_tokens(tokenizer, message["content"])
    text = render(tokenizer, messages)
    # The template writes BOS itself, if the model wants one; adding special tokens here would double it.
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
        raise UserError("The chat template starts with two BOS tokens: mend the tokenizer's template.")
    return Prompt(ids, messages, text)


def place_of_question(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> range:
    """Which of a prompt's ids are those of its last message's text, and not of the template; of a bare text, all."""
    if prompt.messages[-1]["role"] == TEXT:
        return range(len(prompt))
    asked = prompt.messages[-1]["content"].strip()
    first = prompt.text.rindex(asked)
    spans = tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [place for place, (start, end) in enumerate(spans) if start < first + len(asked) and end > first]
    return range(inside[0], inside[-1] + 1)


def text_prompt(tokenizer: "PreTrainedTokenizerBase", text: str) -> Prompt:
    """Token ids of a text to go on with, as the tokenizer alone reads it. UserError if a control token stands in it."""
    return build_prompt(tokenizer, [{"role": TEXT, "content": text}])


def _bare_prompt(tokenizer: "PreTrainedTokenizerBase", asked: list[Message], priming: Priming | str | None) -> Prompt:
    """Text as the tokenizer alone reads it, a priming in front of it, a blank line between."""
    primed = priming.text if isinstance(priming, Priming) else priming
    text = asked[0]["content"] if primed is None else f"{primed}\n\n{asked[0]['content']}"
    refuse_control_tokens(tokenizer, text)
    return Prompt(tokenizer(text)["input_ids"], asked, text)


def refuse_control_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    """Raises UserError if `text` holds a control token such as `<|im_end|>`, which would end the turn."""
    for token in sorted(control_tokens(tokenizer)):
        if token in text:
            raise UserError(f"A text contains the control token {token!r}: remove it from {text[:60]!r}…")


def encode_response(tokenizer: "PreTrainedTokenizerBase", text: str, ended: bool = True) -> list[int]:
    """Token ids of a written response, `ended` as the chat template ends it. Control tokens in it are refused."""
    refuse_control_tokens(tokenizer, text)
    if not ended:
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    end = turn_end(tokenizer)
    return [*tokenizer(text + end.before, add_special_tokens=False)["input_ids"], end.token]


def join(prompt_ids: list[int], response_ids: list[int]) -> StudentSequence:
    """Prompt + response as a training sequence whose mask marks the response alone."""
    mask = [False] * len(prompt_ids) + [True] * len(response_ids)
    return StudentSequence([*prompt_ids, *response_ids], mask)


def decode_response(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The response's text without its control tokens, nor the token that ended it, if that is another."""
    ended = bool(ids) and ids[-1] in turn_end(tokenizer).stops
    return tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
