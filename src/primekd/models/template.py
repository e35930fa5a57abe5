"""What a model's chat template does with messages: the text it writes, where a turn ends, where a system text goes.
Everything here is found by rendering. A template is a program of somebody else's, so nothing is read out of its
source."""

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from primekd.foundation.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]

# Some templates write a date, some of them today's: a student would then be trained and scored on other prompts.
DATE = datetime.datetime(2024, 7, 26)
TEMPLATE_DATE = DATE.strftime("%d %b %Y")  # what Llama 3.1's template writes if it is told none
DIRECTIVES = "aAbBcdDeFgGHIjklmMnpPrRStTuUVwWxXyYzZ"  # of strftime; not %s, which depends on the time zone

MARK, QUESTION = "primekdmark", "1 + 1 = ?"

_ends: WeakKeyDictionary = WeakKeyDictionary()  # tokenizer -> (what its end of turn is found from, the end of turn)


@dataclass(frozen=True)
class TurnEnd:
    """Where a response ends. `token` is the first control token that the template writes behind an assistant's message;
    a written response (a gold solution) ends with it. `stops` are the ids that end a response when a model generates
    them: `token`, the end of text, and what the model's generation_config names. The one that was generated stays the
    response's last token."""

    token: int
    stops: frozenset[int]
    before: str = ""  # what the template writes between the message and `token`, nearly always nothing
    written: bool = True  # False where it writes no control token there: then `token` is the tokenizer's end of text

    def describe(self) -> dict[str, Any]:
        return asdict(self) | {"stops": sorted(self.stops)}


# A macro in front of a template: `strftime_now` of `DATE`, whatever the day. transformers makes text of whatever is
# handed to a template, functions too, so it cannot be replaced from outside. The line's end counts as the template's
# first line's beginning: spaces in front of its first tag go, as without it.
_DATES = {f"%{letter}": DATE.strftime(f"%{letter}") for letter in DIRECTIVES}
_DATES |= {f"%-{directive[1]}": value.lstrip("0") or "0" for directive, value in _DATES.items()}
_FILTERS = "".join(f' | replace("{name}", {value!r})' for name, value in _DATES.items())
FIXED_DATE = "{% macro strftime_now(format) %}{{ format" + _FILTERS + ' | replace("%%", "%") }}{% endmacro %}\n'


def render(tokenizer: "PreTrainedTokenizerBase", messages: Messages, generate: bool = True) -> str:
    """The text that the template makes of messages; with `generate`, up to where the answer starts. It gets the
    tokenizer's `template_arguments` and one fixed date. Raises UserError if there is none, or it refuses."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{_name(tokenizer)} has no chat template: use an instruction-tuned model, or name one of the same "
            "vocabulary in the profile, whose template is used (student.template_of or teacher.template_of)."
        )
    arguments = {"date_string": TEMPLATE_DATE} | getattr(tokenizer, "template_arguments", {})
    try:
        template = tokenizer.get_chat_template()
        arguments["chat_template"] = FIXED_DATE + template if "strftime_now" in template else template
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, **arguments)
    except Exception as error:  # a program of somebody else's may raise anything
        roles = " and ".join(message["role"] for message in messages)
        raise UserError(
            f"The chat template of {_name(tokenizer)} refuses messages of {roles} "
            f"({' '.join(str(error).split()) or type(error).__name__}): use another model, or mend its template."
        ) from error


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return getattr(tokenizer, "reference", "the tokenizer")


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> TurnEnd:
    """Where responses of a model end, from its chat template, its tokenizer and its generation_config.

    Where that has none, or writes no control token behind an assistant's message, the end of text ends a turn."""
    stops = frozenset({tokenizer.eos_token_id, *getattr(tokenizer, "stop_ids", ())})
    if not getattr(tokenizer, "chat_template", None):
        return TurnEnd(tokenizer.eos_token_id, stops, written=False)
    state = (str(tokenizer.chat_template), str(getattr(tokenizer, "template_arguments", {})), len(tokenizer), stops)
    if _ends.get(tokenizer, (None,))[0] != state:
        _ends[tokenizer] = (state, _find_end(tokenizer, stops))
    return _ends[tokenizer][1]


def _find_end(tokenizer: "PreTrainedTokenizerBase", stops: frozenset[int]) -> TurnEnd:
    names = control_tokens(tokenizer) | set(tokenizer.convert_ids_to_tokens(sorted(stops)))
    question, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": MARK}
    # Some write it in front of the next turn alone, as that turn's own first token.
    for more in ([], [question]):
        text = render(tokenizer, [question, answer, *more], generate=False)
        behind = text.rpartition(MARK)[2] if MARK in text else ""
        if places := [(behind.index(name), -len(name), name) for name in names if name in behind]:
            start, _, name = min(places)
            token = tokenizer.convert_tokens_to_ids(name)
            if not more or token in stops:
                return TurnEnd(token, stops | {token}, behind[:start])
    return TurnEnd(tokenizer.eos_token_id, stops, written=False)


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """The tokens that structure a conversation, such as `<|im_end|>`, as text."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return special.union(tokenizer.all_special_tokens)


def require_system_role(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises UserError if the template refuses system messages, or leaves them out in silence."""
    question = {"role": "user", "content": QUESTION}
    render(tokenizer, [question])
    try:
        written = MARK in render(tokenizer, [{"role": "system", "content": MARK}, question])
    except UserError:
        written = False
    if not written:
        raise UserError(
            f"The chat template of {_name(tokenizer)} takes no system message, where the priming text would stand: set "
            "teacher.priming_placement to user in the profile, and it is put in front of the question."
        )


def default_system(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The system text that the template writes where it is given none; a system message takes its place."""
    question = {"role": "user", "content": QUESTION}
    given = render(tokenizer, [{"role": "system", "content": MARK}, question])
    before, mark, behind = given.partition(QUESTION)[0].partition(MARK)
    plain = render(tokenizer, [question]).partition(QUESTION)[0]
    around = len(before) + len(behind)
    if mark and len(plain) > around and plain.startswith(before) and plain.endswith(behind):
        return plain[len(before) : len(plain) - len(behind)]
    return ""
