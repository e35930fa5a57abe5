"""llama.cpp on a GGUF file: several sequences at a time, and the signal rows of what it generates in the same pass.
`create_completion(logprobs=…)` of llama-cpp-python sorts the vocabulary in Python for every token; here logits and
final hidden states are read from the context's own buffers instead."""

import importlib.metadata
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from primekd.foundation.errors import UserError
from primekd.models import load_tokenizer, model_hash, parse_reference, require_local, turn_end
from primekd.models.logits import PROBE, LogitTransform, best_transform
from primekd.teachers.llamacpp_context import PART_TOKENS, Context, Model
from primekd.teachers.protocol import Ids, Response, Sampling, TeacherEngine, Want, require_fit

HEAD_TENSORS = ("output.weight", "token_embd.weight")  # the second one where the head is tied to the embedding
PROBED_COLUMNS = 4096  # of the head: enough to tell a scale and a cap from nothing
PROBE_ERROR = 0.05  # of the logits' norm, which 8-bit activations explain; what is finer, `reconstruction` finds


@dataclass
class _Answer:
    """A response on its way, in one of the context's sequences."""

    item: int
    prompt: list[int]
    random: np.random.Generator
    ids: list[int] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)


class LlamaCppEngine(TeacherEngine):
    """A GGUF model served by llama.cpp, `batch_size` responses at a time, of up to `context_tokens` with their prompt.
    `tokenizer`: `load_tokenizer` of a profile's teacher, where that sets a template; else the model's.

    Its final hidden state (embeddings with pooling type NONE) times the dequantised head is not bit-equal to its
    logits, because llama.cpp also quantises activations; capture measures the difference and the store states it."""

    name = "llamacpp"
    offers = frozenset({"hidden", "logits"})  # of nearly every file; an engine may find less

    def __init__(
        self, model: str, context_tokens: int = 2048, batch_size: int = 32,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):  # fmt: skip
        reference = parse_reference(model)
        if not reference.is_gguf:
            raise UserError(f"The engine llamacpp needs a .gguf file, not {model}: set teacher.engine: transformers.")
        self.reference, self.file = model, require_local(reference)
        self.tokenizer = tokenizer or load_tokenizer(model)
        self.vocab_size = len(self.tokenizer)
        self.model = Model(self.file)
        self.context_tokens, self.batch_size = context_tokens, min(batch_size, self.model.most_sequences)
        self.context: Context | None = None
        self.transform = self._find_transform()
        if self.transform is None:
            self.offers = frozenset({"logits"})

    def _find_transform(self) -> LogitTransform | None:
        """What makes llama.cpp's logits of its hidden states; None where nothing does that the file names."""
        logits, hidden = self._open(1, len(PROBE)).predict(PROBE, range(len(PROBE)), 0, hidden=True)
        head = self._head_rows(PROBED_COLUMNS)
        products, own = torch.from_numpy(hidden.copy()) @ head.T, torch.from_numpy(logits[:, : len(head)].copy())
        self._close_context()
        return best_transform(products, own, self.model.logit_numbers, PROBE_ERROR)

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name, "model": self.reference, "model_sha256": model_hash(self.reference),
            "llama_cpp_python": importlib.metadata.version("llama-cpp-python"),
        }  # fmt: skip

    def generate(self, prompts: Ids, sampling: Sampling) -> list[Response]:
        return [response for response, _ in self._generate(prompts, sampling, None)]

    def generate_scored(self, prompts: Ids, sampling: Sampling, want: Want) -> tuple[list[Response], list[Tensor]]:
        made = self._generate(prompts, sampling, want)
        return [response for response, _ in made], [torch.from_numpy(rows) for _, rows in made]

    def _generate(
        self, prompts: Ids, sampling: Sampling, want: Want | None
    ) -> list[tuple[Response, np.ndarray | None]]:
        """Continuously: where a response ends, the next prompt takes its place. Longest prompts first."""
        longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
        context = self._open(min(self.batch_size, len(prompts)), longest)
        shared = self._read_shared(context, prompts, min(context.sequences, len(prompts)))
        waiting = sorted(range(len(prompts)), key=lambda item: len(prompts[item]))
        active: dict[int, _Answer] = {}  # by the context's sequence
        made: dict[int, tuple[Response, np.ndarray | None]] = {}
        ends = turn_end(self.tokenizer).stops
        while waiting or active:
            for sequence in range(context.sequences):
                if waiting and sequence not in active:
                    item = waiting.pop()
                    self._read_rest(context, sequence, prompts[item], shared)
                    random = np.random.default_rng([sampling.seed, item])  # whatever place an answer gets
                    active[sequence] = _Answer(item, prompts[item], random)
            _close_gaps(context, active)
            self._step(context, active, sampling, want)
            for sequence, answer in list(active.items()):
                ended = answer.ids[-1] in ends
                if ended or len(answer.ids) == sampling.max_new_tokens:
                    # Joined at once, so that rows are held twice for one response only.
                    rows = np.stack(answer.rows) if want else None
                    made[answer.item] = Response(answer.ids, truncated=not ended), rows
                    del active[sequence]
                    sampling.ended()
        return [made[item] for item in range(len(prompts))]

    def _step(self, context: Context, active: dict[int, _Answer], sampling: Sampling, want: Want | None) -> None:
        """One token more for each response."""
        sequences, answers = zip(*sorted(active.items()), strict=True)
        newest = [(answer.ids or answer.prompt)[-1] for answer in answers]
        positions = [len(answer.prompt) + len(answer.ids) - 1 for answer in answers]
        logits, hidden = context.predict(newest, positions, sequences, hidden=want == "hidden")
        logits = logits[:, : self.vocab_size]
        likeliest = logits.argmax(-1) if sampling.temperature == 0 else None
        for n, answer in enumerate(answers):
            if want is not None:
                answer.rows.append((logits if hidden is None else hidden)[n].copy())
            drawn = _draw(logits[n], sampling.temperature, answer.random) if likeliest is None else int(likeliest[n])
            answer.ids.append(drawn)

    def score(self, prompts: Ids, responses: Ids, want: Want) -> list[Tensor]:
        """One sequence after the other: a response is a batch of tokens already, and has as many rows of logits."""
        longest = max((len(p) + len(r) for p, r in zip(prompts, responses, strict=True)), default=0)
        context = self._open(1, longest)
        shared, rows = self._read_shared(context, prompts, 1), []
        for prompt, response in zip(prompts, responses, strict=True):
            self._read_rest(context, 0, prompt, shared)
            # The last response token predicts nothing that is kept, so it is not run.
            ids, parts = [*prompt, *response[:-1]], []
            for start in range(len(prompt) - 1, len(ids), PART_TOKENS):
                part = ids[start : start + PART_TOKENS]
                logits, hidden = context.predict(part, range(start, start + len(part)), 0, hidden=want == "hidden")
                parts.append((logits[:, : self.vocab_size] if hidden is None else hidden).copy())
            rows.append(torch.from_numpy(np.concatenate(parts)))
        return rows

    def head(self) -> Tensor:
        return self._head_rows(self.vocab_size)

    def _head_rows(self, count: int) -> Tensor:
        """The head's first rows, dequantised, (count, D) float32."""
        import gguf

        weight = gguf.dequantize(self._head_tensor.data[: min(count, self.vocab_size)], self._head_tensor.tensor_type)
        return torch.from_numpy(np.array(weight, dtype=np.float32))  # of its own memory: the file may be closed

    @cached_property
    def _head_tensor(self):
        import gguf

        tensors = {t.name: t for t in gguf.GGUFReader(self.file).tensors}
        return next(tensors[name] for name in HEAD_TENSORS if name in tensors)

    def close(self) -> None:
        self._close_context()
        self.model.close()

    def _close_context(self) -> None:
        if self.context is not None:
            self.context.close()
            self.context = None

    def _open(self, sequences: int, tokens: int) -> Context:
        """An empty context with room for so many sequences of so many tokens; a larger one is kept."""
        require_fit(tokens, self.context_tokens)
        if self.context is not None and (self.context.sequences < sequences or self.context.tokens < tokens):
            sequences, tokens = max(sequences, self.context.sequences), max(tokens, self.context.tokens)
            self._close_context()
        if self.context is None:
            self.context = Context(self.model, max(sequences, 1), tokens)
        self.context.clear()
        return self.context

    def _read_shared(self, context: Context, prompts: Ids, sequences: int) -> int:
        """Reads what all prompts begin with (the primed system message) once, for so many sequences; its length."""
        shared = self.shared_prefix(prompts)
        if shared:
            context.read(0, prompts[0][:shared], 0)
            for sequence in range(1, sequences):
                context.copy(0, sequence)
        return shared

    def shared_prefix(self, prompts: Ids) -> int:
        """How many tokens all prompts begin with and are read once; the last token of a prompt is never counted."""
        if len(prompts) < 2 or not self.model.keeps_positions:
            return 0
        return min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)

    def _read_rest(self, context: Context, sequence: int, prompt: list[int], shared: int) -> None:
        """Reads a prompt up to its last token, which is to predict the first one of the response."""
        context.cut(sequence, shared)
        context.read(sequence, prompt[shared:-1], shared)


def _close_gaps(context: Context, active: dict[int, _Answer]) -> None:
    """Moves answers to the first sequences: llama.cpp runs neighbours together and others one after the other."""
    for gap in range(len(active)):
        if gap not in active:
            last = max(active)
            context.copy(last, gap)
            active[gap] = active.pop(last)


def _draw(logits: np.ndarray, temperature: float, random: np.random.Generator) -> int:
    """A token of the whole distribution softmax(logits / temperature)."""
    scaled = logits.astype(np.float64) / temperature
    cumulated = np.exp(scaled - scaled.max()).cumsum()
    return int(cumulated.searchsorted(random.random() * cumulated[-1], side="right"))
