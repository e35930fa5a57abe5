"""Messages to token ids and masks: the model's own template, one BOS, text that cannot pose as a tag."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from primekd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Templates of Llama 3 write a date, some of them today's: a student would then be trained and scored on other prompts.
TEMPLATE_DATE = "26 Jul 2024"  # what Llama 3.1's template writes if it is told none


@dataclass(frozen=True)
class StudentSequence:
    """Prompt and response as one training sequence.

    Attributes:
        input_ids: prompt ids followed by response ids, length S.
        response_mask: length S, True at response tokens (end of turn included). It is made from lengths, never from
            ids, so that a padding id that doubles as end of turn is not confused with one.
    """

    input_ids: list[int]
    response_mask: list[bool]


class Prompt(list[int]):
    """Token ids of a conversation up to where the answer starts, with what they were made from.

    Engines take the ids. A server that renders conversations itself needs `messages`, one that tokenizes needs `text`:
    neither can be had back from ids without loss.
    """

    def __init__(self, ids: Iterable[int], messages: list[dict[str, str]], text: str):
        super().__init__(ids)
        self.messages, self.text = messages, text


def build_prompt(tokenizer: "PreTrainedTokenizerBase", question: str, priming: str | None = None) -> Prompt:
    """Token ids of a conversation up to where the answer starts.

    Args:
        priming: system message; None leaves the template's own default. Students are always given None.

    Raises:
        UserError: a text contains one of the tokenizer's control tokens and would be read as a tag.
    """
    messages = [{"role": "user", "content": question}]
    if priming is not None:
        messages.insert(0, {"role": "system", "content": priming})
    for message in messages:
        refuse_control_tokens(tokenizer, message["content"])
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, date_string=TEMPLATE_DATE
    )
    # The template writes BOS itself, if the model wants one; adding special tokens here would double it.
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
        raise UserError("The chat template starts with two BOS tokens: mend the tokenizer's template.")
    return Prompt(ids, messages, text)


def refuse_control_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    """Raises UserError if `text` holds a control token such as `<|im_end|>`, which would end the turn."""
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    for token in sorted(special.union(tokenizer.all_special_tokens)):
        if token in text:
            raise UserError(f"An item's text contains the control token {token!r}: remove it from {text[:60]!r}…")


def encode_response(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a written response, end of turn included. Control tokens in it are refused."""
    refuse_control_tokens(tokenizer, text)
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def join(prompt_ids: list[int], response_ids: list[int]) -> StudentSequence:
    """Prompt + response as a training sequence whose mask marks the response alone."""
    mask = [False] * len(prompt_ids) + [True] * len(response_ids)
    return StudentSequence([*prompt_ids, *response_ids], mask)


def decode_response(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The response's text without its control tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True)
