"""What a teacher engine is asked, and what it answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from primekd.foundation.errors import UserError
from primekd.models.logits import LogitTransform

Want = Literal["hidden", "logits", "top"]
Ids = list[list[int]]  # token ids of several sequences


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. `temperature` 0 is greedy; otherwise the full distribution at that temperature.

    `ended` is called by the thread that asked, once for each response that has ended, while others are in the making.
    `seeds`: one a prompt, 32 bits each, where a response is to depend on its own seed alone, whatever else is asked;
    transformers' own generation, which serves rare architectures, knows none and goes by `seed`. `ends`: the tokens
    that end a response, where those are not the chat template's; transformers alone knows it."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    ended: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
    seeds: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True)
class TopLogprobs:
    """What an engine says that shows only its most probable tokens: T rows of K.

    ids (T, K) int64, log_probs (T, K) float32, natural logarithms at temperature 1 over the whole vocabulary, best
    first. Places that are not filled (an API may show fewer than K, or text that is no token) have id -1 and -inf."""

    ids: Tensor
    log_probs: Tensor

    def __len__(self) -> int:
        return len(self.ids)


Rows = list[Tensor] | list[TopLogprobs]  # what predicts each token, one an item


@dataclass(frozen=True)
class Response:
    """Generated token ids. Unless `truncated` by the token limit they end with a token that ends a turn (`turn_end`),
    the one that was generated, which is trained on as it is: nearly always what the chat template writes there."""

    ids: list[int]
    truncated: bool


Engine = TypeVar("Engine")


def probed(engine: Engine) -> Engine:
    """An engine that has found out how it decodes and reads: no part of what is watched or measured then."""
    for found_out in ("decodes", "branches"):
        getattr(engine, found_out, None)
    return engine


class TeacherEngine(Protocol):
    """A loaded teacher. What an engine does not say itself it takes from here."""

    name: str  # in profiles
    vocab_size: int  # V, the tokenizer's size; the padded columns beyond it are never returned
    offers: frozenset[str]  # of "hidden", "logits" and "top", what `score` can give; nothing where text alone comes
    # What the model does to its logits behind the head; None where that is neither scale nor soft cap, or hidden states
    # are not to be had.
    transform: LogitTransform | None

    def identity(self) -> dict[str, Any]:
        """Engine, versions, model hash and number format: what the signals depend on."""
        ...

    def generate(self, prompts: Ids, sampling: Sampling) -> list[Response]:
        """One response a prompt, in order. Prompts are token ids; nothing is added to them."""
        ...

    def score(self, prompts: Ids, responses: Ids, want: Want) -> Rows:
        """Teacher-forced prefill over prompt + response. Row t predicts response token t: position len(prompt) + t - 1.
        The raw model: no temperature, penalty, top-k.

        One tensor an item: "logits" (T, V) float32; "hidden" (T, D) in the engine's own precision; "top"
        `TopLogprobs`."""
        ...

    def generate_scored(self, prompts: Ids, sampling: Sampling, want: Want) -> tuple[list[Response], Rows]:
        """`generate`, and of the same tokens the rows of `score`, in a second pass: of an engine that does not see its
        own states while it generates."""
        responses = self.generate(prompts, sampling)
        return responses, self.score(prompts, [response.ids for response in responses], want)

    def own_logits(self, prompts: Ids, responses: Ids) -> list[Tensor]:
        """As `score`, the logits (T, V) float32 as the engine's own head gives them: what `hidden` is measured by."""
        return self.score(prompts, responses, "logits")

    def head(self) -> Tensor:
        """The output head, (V, D): logits = transform(hidden.float() @ head.float().T)."""
        raise UserError(f"{self.name} shows neither hidden states nor the head: set signals.codec to topk or text.")

    def close(self) -> None:
        """Frees the model, its GPUs' memory and its processes. Nothing is asked of the engine afterwards."""
        ...


def require_fit(length: int, most: int) -> None:
    """Raises UserError if a sequence of `length` tokens does not fit in a context of `most`."""
    if length > most:
        raise UserError(f"A sequence of {length} tokens does not fit: raise teacher.context_tokens in the profile.")


def longest_first(lengths: Sequence[int], most: int, most_tokens: float = float("inf")) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that a too large batch fails at once: `most` sequences
    and, with their padding, `most_tokens` tokens in each, but one sequence at least."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, int(min(most, most_tokens // max(1, lengths[order[0]]))))
        yield order[:size]
        order = order[size:]
