"""primekd: does the way a teacher is prompted change how much a student learns from its logits?

`primekd.load_student(folder)` gives the model and the tokenizer of a trained student."""

import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["load_student"]

if "ipykernel" in sys.modules:  # a notebook: what comes from here, bars too, is said by the project alone
    import_module("primekd.foundation.progress").quiet_libraries()


def __getattr__(name: str) -> Any:
    if name == "load_student":  # when it is asked for: it imports torch's world, and no stage's code depends on it
        return import_module("primekd.models.whole").load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
