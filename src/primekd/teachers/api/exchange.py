"""What is sent for a prompt, and what an answer must look like: /chat/completions and /completions."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from primekd.config.teacher import ApiConfig
from primekd.foundation import UserError, clean, findings_text
from primekd.models.chat import Prompt
from primekd.teachers.api.tokens import Shown
from primekd.teachers.protocol import Sampling

SEEDS = 2**31  # servers keep seeds in 32 bits, and some of them read the sign

Word = Annotated[str, AfterValidator(clean)]  # a server's own word, which is printed and written


class _Token(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None
    id: int | None = None
    top_logprobs: list["_Token"] = []

    def shown(self) -> Shown:
        return Shown(self.token, self.logprob, None if self.bytes is None else bytes(self.bytes), self.id)


class _ChatLogprobs(BaseModel):
    content: list[_Token] | None = None

    def rows(self) -> list[tuple[Shown, list[Shown]]] | None:
        return self.content and [(one.shown(), [top.shown() for top in one.top_logprobs]) for one in self.content]


class _TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]

    def rows(self) -> list[tuple[Shown, list[Shown]]]:
        columns = zip(self.tokens, self.token_logprobs, self.top_logprobs, strict=True)
        return [(Shown(token, value), [Shown(*entry) for entry in top.items()]) for token, value, top in columns]


class _Message(BaseModel):
    content: str | None = None


class _ChatChoice(BaseModel):
    message: _Message
    finish_reason: Word | None = None
    logprobs: _ChatLogprobs | None = None

    @property
    def text(self) -> str:
        return self.message.content or ""


class _TextChoice(BaseModel):
    text: str
    finish_reason: Word | None = None
    logprobs: _TextLogprobs | None = None


def _number(value: object) -> object:
    if isinstance(value, bool):  # pydantic takes true for 1
        raise ValueError("true and false are no numbers")
    return value


Tokens = Annotated[int, BeforeValidator(_number), Field(ge=0, le=10**9)]


class Usage(BaseModel):
    prompt_tokens: Tokens
    completion_tokens: Tokens


Choice = TypeVar("Choice", _ChatChoice, _TextChoice)


class _Reply(BaseModel, Generic[Choice]):
    """The fields that are read; whatever else a server sends is kept nowhere."""

    model_config = ConfigDict(ser_json_inf_nan="constants")
    model: Word | None = None
    usage: Usage | None = None
    choices: list[Choice] = Field(min_length=1)


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: str | None
    rows: list[tuple[Shown, list[Shown]]] | None  # each shown token and the most probable ones; None without log-probs
    model: str | None
    prompt_tokens: int | None  # by the server's own count, if it gives one
    response_tokens: int | None
    fields: dict[str, Any]  # what was read of the JSON, from which the same answer can be read again

    @property
    def withheld(self) -> bool:
        """By the provider's own filter: whatever text there is breaks off anywhere."""
        return self.finish_reason == "content_filter"


def build_request(
    config: ApiConfig, prompt: Prompt | list[int], bos: str | None, sampling: Sampling, place: int, top_k: int,
    end: str | None = None,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Path below `base_url` and JSON of the request for one prompt. `place` is the prompt's among those asked for
    together: sampled answers have a seed each. `bos` and `end` (of a turn) are text. A server that renders
    conversations itself knows the end; one that is sent a rendered prompt may end at the end of text alone, and is
    told. Raises UserError if text or messages are to be sent of a prompt of ids alone."""
    if config.prompt != "ids" and not isinstance(prompt, Prompt):
        raise UserError("These prompts are token ids without their text: set teacher.api.prompt to ids.")
    body: dict[str, Any] = {"model": config.model, config.limit_field: sampling.max_new_tokens}
    body |= {"temperature": sampling.temperature, "top_p": 1}
    if sampling.temperature > 0:
        body["seed"] = (sampling.seed + place) % SEEDS
    if config.prompt == "messages":
        path, body["messages"] = "chat/completions", prompt.messages
        body |= {"logprobs": True, "top_logprobs": top_k} if config.logprobs else {}
    else:
        path, body["prompt"] = "completions", list(prompt) if config.prompt == "ids" else prompt.text
        if config.prompt == "text-without-bos" and bos:
            body["prompt"] = prompt.text.removeprefix(bos)
        body |= {"logprobs": top_k} if config.logprobs else {}
        body |= {"stop": [end]} if end else {}
    if config.stop_at_line_end:
        body["stop"] = [*body.get("stop", []), "\n"]
    return path, {key: value for key, value in (body | config.request).items() if value is not None}


def read_answer(config: ApiConfig, fields: dict[str, Any]) -> Answer:
    """An answer's JSON, checked. Raises UserError if a field is missing or wrong, or the promised log-probs are."""
    kind = _ChatChoice if config.prompt == "messages" else _TextChoice
    try:
        reply = _Reply[kind].model_validate(fields)
        choice = reply.choices[0]
        rows = choice.logprobs.rows() if choice.logprobs is not None and config.logprobs else None
    except ValidationError as error:
        said = findings_text(error, 1)
        raise UserError(f"{config.base_url} gave an answer that is none ({said}): check teacher.api.") from None
    except ValueError:  # columns of unequal lengths, or bytes above 255
        raise UserError(f"{config.base_url} gave log-probs that do not fit each other: set logprobs: false.") from None
    if config.logprobs and rows is None and choice.finish_reason != "content_filter":
        fix = "switch them on in the server, or set logprobs: false to keep its text alone"
        raise UserError(f"{config.base_url} gave no log-probs, which teacher.api.logprobs promises: {fix}.")
    counts = (reply.usage.prompt_tokens, reply.usage.completion_tokens) if reply.usage else (None, None)
    kept = reply.model_dump(mode="json", exclude_none=True)
    return Answer(choice.text, choice.finish_reason, rows, reply.model, *counts, kept)
