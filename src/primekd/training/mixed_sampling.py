"""What a student in training is asked for its next token, alone or mixed with its teacher (MiniLLM, section 2.2)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from primekd.losses.plain import log_mixture
from primekd.teachers.cache import SlotCache, narrowest_window
from primekd.teachers.decoding import LastPosition

if TYPE_CHECKING:
    from primekd.teachers.transformers_engine import TransformersEngine
    from primekd.training.objective import StudentObjective


def student_position(student: "StudentObjective") -> LastPosition:
    """The student's hidden state (B, D) of the last position and its logits, in the precision that it trains in."""
    return LastPosition(student.last_states, student.logits, student.device, narrowest_window(student.config))


class MixedPosition:
    """Both models, whose states stand side by side, (B, D of the student + D of the teacher) float32.

    They read the same tokens, so one cache serves both: the student's layers lie in front of the teacher's.

    Args:
        teacher: of transformers, of the student's vocabulary, offering hidden states.
        share: the teacher's part of the mixture.
    """

    def __init__(self, student: "StudentObjective", teacher: "TransformersEngine", share: float):
        self.student, self.teacher, self.share = student, teacher, share
        self.width, self.layers = student.config.hidden_size, student.config.num_hidden_layers

    def position(self) -> LastPosition:
        """As `decode` takes it: the logits are those of the mixture."""
        window = min(narrowest_window(model.config) for model in (self.student, self.teacher.model))
        return LastPosition(self._states, lambda states: self.log_probs(states)[2], self.student.device, window)

    def log_probs(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, D + D) -> log-probabilities (B, V) float32 of the student, the teacher and their mixture."""
        own, other = states[:, : self.width], states[:, self.width :]
        log_q, log_p = (f(x).float().log_softmax(-1) for f, x in ((self.student.logits, own), (self._taught, other)))
        return log_q, log_p, log_mixture(log_p, log_q, self.share)

    def _taught(self, states: Tensor) -> Tensor:
        return self.teacher.last_logits(states)

    def _states(self, past_key_values: SlotCache, **inputs) -> Tensor:
        both = self.layers + self.teacher.model.config.num_hidden_layers
        while len(past_key_values.layers) < both:
            past_key_values.layers.append(past_key_values.layer_class_to_replicate())
        parts: list[tuple[Callable[..., Tensor], slice]] = [
            (self.student.last_states, slice(0, self.layers)), (self.teacher.last_states, slice(self.layers, both))
        ]  # fmt: skip
        states = [
            model(**inputs, past_key_values=Cache(layers=past_key_values.layers[own])).float() for model, own in parts
        ]
        return torch.cat(states, -1)
