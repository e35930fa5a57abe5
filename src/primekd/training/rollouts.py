"""Text that a student writes while it learns, in the place of given text: which batches, and by which draws. Nothing
flows back through the sampling. Draws depend on the seed, the step and an item's place in it alone, so a training that
goes on after a stop writes what it would have written."""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from primekd.config.student import OnPolicyConfig
from primekd.foundation.errors import UserError
from primekd.losses.on_policy import log_prob_of, minillm_weights
from primekd.losses.slopes import log_mixture
from primekd.models import join, refuse_too_long
from primekd.signals import SignalRows
from primekd.teachers.cache import SlotCache, has_plain_cache, narrowest_window
from primekd.teachers.decoding import LastPosition, Row, decode
from primekd.teachers.protocol import Sampling
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.examples import Example
from primekd.training.objective import StudentObjective
from primekd.training.processes import process_count

CHUNK = 128  # rows of logits at a time


@dataclass(frozen=True)
class Written:
    """What a student wrote for a micro-batch: one example an item; of its N tokens log-probabilities, (N,) each."""

    examples: list[Example]
    ended: list[bool]
    entropy: Tensor  # (N,), nats, of the student's own distribution at each token
    log_q: Tensor  # under the student
    log_drawn: Tensor | None = None  # under the mixture that they were drawn from, where the teacher took part

    @property
    def responses(self) -> list[list[int]]:
        """The tokens that each example is trained on."""
        pairs = ((e.sequence.input_ids, e.sequence.response_mask) for e in self.examples)
        return [[token for token, own in zip(ids, mask, strict=True) if own] for ids, mask in pairs]


class MixedPosition:
    """Student and teacher (`share` of the mixture; MiniLLM, section 2.2), whose states stand side by side, (B, D + D of
    the teacher) float32. One cache serves both, the student's layers in front. The teacher is of transformers, and
    offers hidden states."""

    def __init__(self, student: StudentObjective, teacher: TransformersEngine, share: float):
        self.student, self.teacher, self.share, self.logits = student, teacher, share, student.as_it_is()
        self.width, self.layers = student.config.hidden_size, student.config.num_hidden_layers

    def position(self) -> LastPosition:
        """As `decode` takes it."""
        window = min(narrowest_window(model.config) for model in (self.student, self.teacher.model))
        return LastPosition(self._states, self.mixture, self.student.device, window)

    def mixture(self, states: Tensor) -> Tensor:
        """States (B, D + D) -> log-probabilities (B, V) float32 of the mixture."""
        q, p = (z.float().softmax(-1) for z in self.both(states))
        return q.lerp_(p, self.share).log_()

    def both(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, V) of the student and of the teacher."""
        return self.logits(states[:, : self.width]), self.teacher.last_logits(states[:, self.width :])

    def _states(self, past_key_values: SlotCache, **inputs) -> Tensor:
        both = self.layers + self.teacher.model.config.num_hidden_layers
        while len(past_key_values.layers) < both:
            past_key_values.layers.append(past_key_values.layer_class_to_replicate())
        own, other = (Cache(layers=past_key_values.layers[a:b]) for a, b in ((0, self.layers), (self.layers, both)))
        models = ((self.student, own), (self.teacher, other))
        return torch.cat([m.last_states(**inputs, past_key_values=cache).float() for m, cache in models], -1)


class Rollouts:
    """A student's own text for the batches that the settings name, of `limit` new tokens at most, where they name no
    number. `ends`: the tokens that end a response. `with_text`: whether the given text stays beside the written one.
    `teacher`: gives the engine that takes part in the sampling, if one does. Raises UserError if several processes
    train or, where it writes, if the architecture's cache cannot be decoded from or the context is too short."""

    def __init__(
        self, settings: OnPolicyConfig, limit: int, ends: Iterable[int], seed: int, with_text: bool = False,
        teacher: Callable[[], TransformersEngine] | None = None,
    ):  # fmt: skip
        if process_count() > 1:
            raise UserError("A student that writes its own text is trained by one process: set launch.processes to 1.")
        self.settings, self.limit, self.ends = settings, settings.max_new_tokens or limit, frozenset(ends)
        self.seed, self.with_text, self.teacher = seed, with_text, teacher

    def due(self, step: int) -> bool:
        """Whether the batch of a step, counted from 0, is the student's own."""
        if step < self.settings.warmup_steps:
            return False
        return self.settings.share == 1 or np.random.default_rng([self.seed, step]).random() < self.settings.share

    def write(self, student: StudentObjective, examples: Sequence[Example], step: int, first: int) -> Written:
        """The student's own responses to some examples of a step, the first of which is the `first` one of it."""
        if not has_plain_cache(student.config):
            raise UserError(f"A student of the architecture {student.config.model_type} cannot write while it learns.")
        prompts = [prompt_of(example, self.settings.prompt_tokens, self.ends) for example in examples]
        share = self.settings.teacher_share
        mixed = MixedPosition(student, self.teacher(), share) if share and self.teacher else None
        longest = {e.item_id: len(ids) + self.limit for e, ids in zip(examples, prompts, strict=True)}
        what, fix = "the prompt and max_new_tokens make", "lower on_policy.max_new_tokens or on_policy.prompt_tokens"
        for model in (student, *([mixed.teacher.model] if mixed else [])):
            refuse_too_long(model, longest, what, fix)
        draws = [np.random.SeedSequence([self.seed, step, first + i]) for i in range(len(prompts))]
        seeds = tuple(int(draw.generate_state(1)[0]) for draw in draws)
        sampling = Sampling(self.limit, self.settings.temperature, seeds=seeds)
        was_training = student.training
        student.eval()
        window = narrowest_window(student.config)
        alone = LastPosition(student.last_states, student.as_it_is(), student.device, window)
        position = mixed.position() if mixed else alone
        rows = decode(position, prompts, sampling, self.ends, len(prompts), keep_states=True)
        measured = _measures(student, mixed, rows)
        student.train(was_training)
        given = [example.sequence if self.with_text else None for example in examples]
        joined = [join(list(prompt), row.ids) for prompt, row in zip(prompts, rows, strict=True)]
        own = [Example(e.item_id, text, also) for e, text, also in zip(examples, joined, given, strict=True)]
        return Written(own, [row.ids[-1] in self.ends for row in rows], *measured)

    def weights(self, written: Written, teacher: SignalRows) -> Tensor | None:
        """(N, 2) of the objective, or None where the divergence is all of it; `teacher`: N rows of the written text."""
        if self.settings.objective == "divergence":
            return None
        responses, s = written.responses, self.settings
        ids = torch.tensor([token for response in responses for token in response], device=written.log_q.device)
        # Of the rows that the divergence is taken of: they may be a primed teacher's, the mixture's never are.
        log_p = log_prob_of(teacher, ids)
        drawn = written.log_q if written.log_drawn is None else written.log_drawn
        return minillm_weights(written.log_q, log_p, drawn, list(map(len, responses)), s.clip, s.length_normalised)


@torch.no_grad()
def _measures(student: StudentObjective, mixed: MixedPosition | None, rows: Sequence[Row]) -> list[Tensor]:
    """What `Written` has of every token, (N,) float32 each; in chunks, so that few rows of logits are there at once."""
    states, ids = torch.cat([row.states() for row in rows]), [token for row in rows for token in row.ids]
    found = []
    for own, tokens in zip(states.split(CHUNK), torch.tensor(ids, device=states.device).split(CHUNK), strict=True):
        logits, *taught = mixed.both(own) if mixed else (student.logits(own),)  # (C, V)
        log_q = logits.float().log_softmax(-1)
        values = [-(log_q.exp() * log_q).sum(-1), log_q.gather(1, tokens[:, None])[:, 0]]
        for z in taught:
            log_p = z.float().gather(1, tokens[:, None])[:, 0] - z.float().logsumexp(-1)
            values.append(log_mixture(log_p, values[1], mixed.share))
        found.append(values)
    return [torch.cat(values) for values in zip(*found, strict=True)]


def prompt_of(example: Example, block_tokens: int, ends: Container[int]) -> list[int]:
    """What a student writes behind: an item's prompt or, of a piece of text, its first tokens, and of a document that
    ends among them what stands before its end."""
    ids, mask = example.sequence.input_ids, example.sequence.response_mask
    first = mask.index(True) if True in mask else len(ids)
    if first > 1:
        return list(ids[:first])
    return [ids[0], *takewhile(lambda token: token not in ends, ids[1:block_tokens])]
