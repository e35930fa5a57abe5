"""A student all of whose weights were trained, asked as its training computes: what is scored is what was trained."""

from functools import cached_property
from pathlib import Path

from torch import Tensor

from primekd.config import LossConfig
from primekd.models import load_model, load_tokenizer
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.objective import StudentObjective


class AsTrained(TransformersEngine):
    """The student inside an objective, as it is now: rounded as its loss and its validation round it."""

    @classmethod
    def inside(cls, objective: StudentObjective, tokenizer, batch_size: int) -> "AsTrained":
        engine = cls.around(objective.model, tokenizer, batch_size)
        engine.objective, engine.dtype = objective, "bfloat16" if objective.rounds else engine.dtype
        return engine

    @classmethod
    def load(cls, folder: Path, dtype: str, batch_size: int) -> "AsTrained":
        """The student of a folder that `save_student` wrote; `dtype`: what its products run in."""
        reference = f"path:{folder}"
        tokenizer = load_tokenizer(reference)
        objective = StudentObjective(load_model(reference, "float32"), LossConfig(), len(tokenizer), dtype=dtype)
        return cls.inside(objective, tokenizer, batch_size)

    def _states(self, **inputs) -> Tensor:
        return self.objective.states(**inputs)

    def last_states(self, **inputs) -> Tensor:
        return self.objective.last_states(**inputs)

    @cached_property
    def _head(self) -> Tensor:
        return self.objective.head()[0].detach()
