"""The section `data`: where items come from."""

from typing import Literal

from pydantic import Field, model_validator

from primekd.config.section import Positive, Section


class DataConfig(Section):
    """Where items come from and how many are used.

    `gsm-symbolic` draws from the named templates of reasoning-gym; `hub` reads openai/gsm8k; `jsonl` reads
    `train_file` and `test_file` (fields `question` and `answer`, the gold solution ending in `#### 18`).
    Validation items are taken from the training side, after the training items; never from the test side.
    """

    source: Literal["gsm-symbolic", "hub", "jsonl"]
    train_items: Positive
    validation_items: Positive
    test_items: int = Field(ge=2)  # an interval over items needs two of them
    templates: tuple[int, ...] = ()
    difficulty: float = 1.0
    hub_dataset: str = "openai/gsm8k"
    hub_config: str = "main"
    revision: str | None = None
    train_file: str | None = None
    test_file: str | None = None

    @model_validator(mode="after")
    def complete(self) -> "DataConfig":
        if self.source == "gsm-symbolic" and not self.templates:
            raise ValueError("source gsm-symbolic needs templates: [numbers]")
        if self.source == "jsonl" and not (self.train_file and self.test_file):
            raise ValueError("source jsonl needs train_file and test_file")
        return self
