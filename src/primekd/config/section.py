"""What all sections of a profile share: frozen, and unknown keys are refused."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every random generator takes


def is_name(text: str) -> bool:
    """Whether a text can name a profile or a strategy: names become folders, and words of commands and file names."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text, re.ASCII) is not None


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
