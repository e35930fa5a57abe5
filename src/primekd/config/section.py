"""What all sections of a profile share: frozen, unknown keys refused, numbers finite."""

import re
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_serializer, model_validator

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every random generator takes


def is_name(text: str) -> bool:
    """Whether a text can name a profile or a strategy: names become folders, and words of commands and file names."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text, re.ASCII) is not None


# What a template is given by this project or by transformers.
ENGINES_OWN = re.compile(
    "messages|conversation|tools|documents|chat_template|add_generation_prompt|continue_final_message|tokenize|padding|"
    "truncation|max_length|return_tensors|return_dict|return_assistant_tokens_mask|tokenizer_kwargs|processor_kwargs|"
    "strftime_now|raise_exception|bos_token|eos_token"
)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`true` would be read as 1."""
        wanted = set(re.findall(r"\w+", str(cls.model_fields[info.field_name].annotation)))
        if isinstance(value, bool) and not {"bool", "Any"} & wanted:
            raise ValueError("is true or false, which is no value for it")
        return value


class Younger(Section):
    """One some of whose keys are younger than identities that were made of it: these stay what they were, as such a key
    is left out where it has its default."""

    younger: ClassVar[tuple[str, ...]]

    @model_serializer(mode="wrap")
    def without_defaults(self, handler: Any) -> dict[str, Any]:
        plain = {key: type(self).model_fields[key].default for key in self.younger}
        return {key: value for key, value in handler(self).items() if key not in plain or value != plain[key]}


class Speaker(Section):
    """A model that answers messages, by its own chat template.

    `sha256` is what a GGUF file must have, wherever it lies; one on the hub needs it, as a copy in models/ may stand in
    for it. `template_of` names another model of the same vocabulary whose chat template is used instead: for a base
    model that has none. `template_arguments` are handed to the template, as in `{enable_thinking: false}`."""

    model: str
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    template_of: str | None = None
    template_arguments: dict[str, Any] = {}

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def speaker(self) -> str:
        """The model whose tokenizer and chat template it uses."""
        return self.model

    @model_validator(mode="after")
    def pinned(self) -> "Speaker":
        file = re.fullmatch(r"(hub|path|package):[^@]+\.gguf(@.*)?", self.model or "")
        if self.sha256 and not file:
            raise ValueError("sha256 is of one GGUF file: leave it out")
        if file and file[1] == "hub" and not self.sha256:
            raise ValueError(f"{self.model} is a file on the hub: write its sha256 beside it")
        return self

    @field_validator("template_arguments")
    @classmethod
    def named(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z]\w*", name) or ENGINES_OWN.fullmatch(name):
                raise ValueError(f"{name} is no argument that a profile can give a template: take it out")
        return value
