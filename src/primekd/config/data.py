"""The section `data`: where items come from."""

from typing import Literal

from pydantic import Field, model_validator

from primekd.config.section import Positive, Section


class DataConfig(Section):
    """Where items come from and how many are used.

    `gsm-symbolic` draws from the named templates of reasoning-gym; `hub` reads openai/gsm8k or a set like it (GSM8K-
    Platinum, GSM-Plus, MGSM); `jsonl` reads `train_file` and `test_file` (the fields are those of `item_of_row`).
    Where a hub's set has no training side (Platinum), `train_dataset` names another set for it.
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
    train_dataset: str | None = None
    train_config: str = "main"
    train_revision: str | None = None
    train_file: str | None = None
    test_file: str | None = None

    @model_validator(mode="after")
    def complete(self) -> "DataConfig":
        if self.source == "gsm-symbolic" and not self.templates:
            raise ValueError("source gsm-symbolic needs templates: [numbers]")
        if self.source == "jsonl" and not (self.train_file and self.test_file):
            raise ValueError("source jsonl needs train_file and test_file")
        return self

    def hub_side(self, side: str) -> tuple[str, str, str | None]:
        """The hub's data set, its configuration and revision, of the training or the test side."""
        if side == "train" and self.train_dataset:
            return self.train_dataset, self.train_config, self.train_revision
        return self.hub_dataset, self.hub_config, self.revision
