"""The reference engine: any causal language model that transformers can load, on CPU or GPU.

It also generates and scores for students (with an adapter), so that all models share one path."""

import importlib.metadata
import inspect
from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from primekd.foundation.memory import release_gpu_memory
from primekd.models import load_model, load_tokenizer, model_hash, refuse_too_long, turn_end
from primekd.models.attention import attending
from primekd.models.logits import find_transform
from primekd.models.served import cast_weights, effective_weight, load_beside, load_merged, own_logits, plain_generation
from primekd.teachers.branches import read_branches
from primekd.teachers.cache import has_plain_cache, narrowest_window
from primekd.teachers.decoding import SHORTEST_PREFIX, LastPosition, Row, decode, shared_prefix
from primekd.teachers.protocol import Ids, Response, Sampling, TeacherEngine, Want, longest_first

CPU_PASS_TOKENS = 2**12  # that a CPU reads in one pass: of more, what a layer makes does not stay in its caches
PROBED_PREFIX = [5 + place % 7 for place in range(SHORTEST_PREFIX + 2)]  # token ids


class TransformersEngine(TeacherEngine):
    """A model (and, for students, a LoRA adapter) served by transformers.

    Args:
        dtype: weights' and activations' precision. Rows of logits are computed in float32 from the last hidden state,
            so they are finer than a bfloat16 model's own; tokens are chosen from products in `dtype`.
        adapter: a peft folder. It stays beside the weights that it was trained with.
        quantization: nf4 serves the model in 4 bits.
        tokenizer: `load_tokenizer` of a profile's teacher or student, where that sets a template; else the model's.
        merged: it is merged in float32 before the weights are rounded to `dtype`, not in 4 bits; generation is then as
            fast as the base model's. What that costs `measure_merge` says.
        weights: the precision of the weights in training, where `dtype` is a finer one: they are rounded to it."""

    name = "transformers"

    def __init__(
        self, model: str, dtype: str, batch_size: int = 32, adapter: Path | None = None,
        quantization: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None, merged: bool = False,
        weights: str | None = None,
    ):  # fmt: skip
        self.reference, self.dtype, self.batch_size = model, dtype, batch_size
        self.tokenizer = tokenizer or load_tokenizer(model)
        self.vocab_size = len(self.tokenizer)
        if adapter is None:
            self.model = load_model(model, weights or dtype, quantization)
            if weights:
                cast_weights(self.model, dtype)
        elif merged:
            self.model = load_merged(model, dtype, adapter, weights)
        else:
            self.model = load_beside(model, dtype, adapter, quantization)
        self._look()
        self.model.generation_config = plain_generation(self.model, self.tokenizer)

    @classmethod
    def around(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 32):
        """One that scores with a model which is in memory already, such as one in training, as it is now.

        The caller puts it into evaluation mode. An adapter's product is what it was when it was first asked for."""
        engine = cls.__new__(cls)
        engine.reference, engine.dtype, engine.batch_size = "a model in memory", str(model.dtype)[6:], batch_size
        engine.model, engine.tokenizer, engine.vocab_size = model, tokenizer, len(tokenizer)
        engine._look()
        return engine

    def _look(self) -> None:
        """Finds the parts of the model that are run apart, and what it offers."""
        self.decoder, self._output = self.model.get_decoder(), self.model.get_output_embeddings()
        self.transform = find_transform(self.model, self.vocab_size)
        # A store keeps no bias.
        hidden_is_enough = self.transform is not None and self.bias() is None
        self.offers = frozenset({"hidden", "logits"} if hidden_is_enough else {"logits"})

    def identity(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in ("transformers", "torch")}
        own = {"engine": self.name, "model": self.reference, "model_sha256": model_hash(self.reference)}
        return own | {"dtype": self.dtype} | versions

    def _passes(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        most = CPU_PASS_TOKENS if self.model.device.type == "cpu" else float("inf")
        return longest_first(lengths, self.batch_size, most)

    def _padded(self, sequences: Ids, side: str) -> BatchEncoding:
        """Their input_ids and attention_mask, (B, S) both, padded on that side."""
        how = {"padding_side": side, "return_attention_mask": True, "return_tensors": "pt"}
        return self.tokenizer.pad({"input_ids": sequences}, **how).to(self.model.device)

    def _require_fit(self, prompts: Ids, more: Sequence[int]) -> None:
        """Raises UserError if a prompt and so many tokens more are longer than what the model was trained on."""
        longest = max((len(prompt) + count for prompt, count in zip(prompts, more, strict=True)), default=0)
        said = "a prompt and its response have up to"
        refuse_too_long(self.model, {self.reference: longest}, said, "lower max_new_tokens, or shorten the prompt")

    def generate(self, prompts: Ids, sampling: Sampling) -> list[Response]:
        self._require_fit(prompts, [sampling.max_new_tokens] * len(prompts))
        if not self.decodes:
            return self._generate_with_library(prompts, sampling)
        return [self._cut(row.ids, sampling) for row in self._decode(prompts, sampling, keep_states=False)]

    def generate_scored(self, prompts: Ids, sampling: Sampling, want: Want) -> tuple[list[Response], list[Tensor]]:
        """The rows are made of the states that the tokens were chosen from. In float32 they are what `score` gives;
        in bfloat16 they differ from it as sums over other batch shapes do."""
        if not self.decodes:
            return super().generate_scored(prompts, sampling, want)
        self._require_fit(prompts, [sampling.max_new_tokens] * len(prompts))
        made = self._decode(prompts, sampling, keep_states=True)
        return [self._cut(row.ids, sampling) for row in made], [self._finish(row.states(), want).cpu() for row in made]

    @torch.inference_mode()
    def _decode(
        self, prompts: Ids, sampling: Sampling, keep_states: bool, ends: Container[int] | None = None
    ) -> list[Row]:
        ends = self._ends(sampling) if ends is None else ends
        return decode(self._last_position(), prompts, sampling, ends, self.batch_size, keep_states)

    def _last_position(self) -> LastPosition:
        model = self.model
        return LastPosition(self.last_states, self.last_logits, model.device, narrowest_window(model.config))

    def last_states(self, **inputs) -> Tensor:
        """What is kept of the last position: (B, D) hidden states, or (B, V) logits where those are all there is."""
        if self.transform is not None:
            # Copied: a view of one position would keep the whole prompt's states.
            return self.decoder(**inputs, use_cache=True).last_hidden_state[:, -1].clone()
        return self.model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1, : self.vocab_size].clone()

    def last_logits(self, states: Tensor) -> Tensor:
        """Of a position's states (B, D), in the model's own precision; or the logits (B, V) that those are already."""
        if self.transform is None:
            return states
        head = self.head()
        return self.transform.apply(torch.nn.functional.linear(states.to(head.dtype), head, self.bias()))

    @cached_property
    def decodes(self) -> bool:
        """Whether the decode loop of this project is right for this architecture; otherwise transformers' own runs."""
        takes = inspect.signature(self.model.forward).parameters
        if not (has_plain_cache(self.model.config) and {"position_ids", "logits_to_keep"} <= takes.keys()):
            return False
        # The same tokens from cached slots, behind a shared prefix and padding, and in one plain pass.
        prompts = [[*PROBED_PREFIX, 6, 7, 8, 9], [*PROBED_PREFIX, 9]]
        made = self._decode(prompts, Sampling(3), keep_states=True, ends=())  # rows of one length, whatever is said
        plain = self.score(prompts, [row.ids for row in made], self._finest)  # (3, D) each
        return self._alike([self._finish(row.states(), self._finest).cpu() for row in made], plain)

    @property
    def _finest(self) -> Want:
        """The rows that say all that the model does."""
        return "hidden" if self.transform is not None else "logits"

    def _alike(self, found: list[Tensor], plain: list[Tensor]) -> bool:
        """Whether rows (T, D) are those of a plain pass, as far as the precision can tell."""
        # The median: single states of such odd texts are far off in bfloat16 (0.05 of them with a 0.5B model, 0.10 with
        # an adapter beside its weights); wrong positions put all of a row off, one other token in the text 0.4 of it.
        pairs = ((a.float(), b.float()) for a, b in zip(found, plain, strict=True))
        most = 1e-3 if self.dtype == "float32" else 0.2
        return all(bool(((a - b).norm(dim=-1) / b.norm(dim=-1)).median() <= most) for a, b in pairs)

    @torch.inference_mode()
    def _generate_with_library(self, prompts: Ids, sampling: Sampling) -> list[Response]:
        settings = {"max_new_tokens": sampling.max_new_tokens}
        if sampling.temperature > 0:
            torch.manual_seed(sampling.seed)
            settings |= {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        config = plain_generation(self.model, self.tokenizer, **settings)
        config.eos_token_id = sorted(self._ends(sampling))
        responses: list[Response | None] = [None] * len(prompts)
        for batch in longest_first([len(p) for p in prompts], self.batch_size):
            inputs = self._padded([prompts[i] for i in batch], "left")
            output = self.model.generate(**inputs, generation_config=config)
            for row, i in enumerate(batch):
                responses[i] = self._cut(output[row, inputs["input_ids"].shape[1] :].tolist(), sampling)
                sampling.ended()
        return responses

    def _ends(self, sampling: Sampling) -> Container[int]:
        return sampling.ends or turn_end(self.tokenizer).stops

    def _cut(self, ids: list[int], sampling: Sampling) -> Response:
        """Cuts at the first end of turn; what follows it is padding."""
        ends = self._ends(sampling)
        place = next((place for place, token in enumerate(ids) if token in ends), None)
        return Response(ids, truncated=True) if place is None else Response(ids[: place + 1], truncated=False)

    @torch.inference_mode()
    def score(self, prompts: Ids, responses: Ids, want: Want) -> list[Tensor]:
        self._require_fit(prompts, [len(response) for response in responses])
        rows: list[Tensor | None] = [None] * len(prompts)
        # The last response token predicts nothing that is kept, so it is not run.
        sequences = [[*p, *r[:-1]] for p, r in zip(prompts, responses, strict=True)]
        for batch in self._passes([len(s) for s in sequences]):
            inputs = self._padded([sequences[i] for i in batch], "right")
            with attending(self.model, tokens=inputs["input_ids"].shape[1]):
                states = self._states(**inputs)
            for row, i in enumerate(batch):
                first = len(prompts[i]) - 1
                rows[i] = self._finish(states[row, first : first + len(responses[i])], want).cpu()
        return rows

    def score_each(self, prompts: Ids, responses: list[Ids], want: Want) -> list[list[Tensor]]:
        """`score` of several responses to each prompt; what they share is read once where the architecture lets it."""
        if self.branches:
            return self._score_branches(prompts, responses, want)
        asked = [(prompt, response) for prompt, own in zip(prompts, responses, strict=True) for response in own]
        rows = iter(self.score([prompt for prompt, _ in asked], [response for _, response in asked], want))
        return [[next(rows) for _ in own] for own in responses]

    @torch.inference_mode()
    def _score_branches(self, prompts: Ids, responses: list[Ids], want: Want) -> list[list[Tensor]]:
        self._require_fit(prompts, [max(map(len, own), default=0) for own in responses])
        prefix = shared_prefix(self._last_position(), prompts, 0)
        longest = max(len(prompt) + sum(map(len, own)) for prompt, own in zip(prompts, responses, strict=True))
        with attending(self.model, tokens=longest):
            states = read_branches(self._states, prefix, prompts, responses, self._passes, self.model)
        return [[self._finish(rows, want).cpu() for rows in own] for own in states]

    def _states(self, **inputs) -> Tensor:
        """What is kept of all positions: (B, S, D) hidden states, or (B, S, V) logits where those are all there is."""
        return self.model(**inputs).logits if self.transform is None else self.decoder(**inputs).last_hidden_state

    @cached_property
    def branches(self) -> bool:
        """Whether this architecture reads several responses behind one prompt as if each were alone.

        One with windows counts slots, not positions; one without a plain cache keeps a state that runs through all."""
        if not self.decodes or narrowest_window(self.model.config) < float("inf"):
            return False
        prompts = [[*PROBED_PREFIX, 6, 7], [*PROBED_PREFIX, 9]]
        responses = [[[8, 9, 6], [5, 5, 7, 8]], [[7, 6, 5, 9], [9, 8]]]
        alone = [self.score([prompt] * 2, own, self._finest) for prompt, own in zip(prompts, responses, strict=True)]
        try:
            behind = self._score_branches(prompts, responses, self._finest)
        except (ValueError, RuntimeError, IndexError):  # it reads two dimensions of a mask and no more
            return False
        return self._alike(sum(behind, []), sum(alone, []))

    @torch.inference_mode()
    def _finish(self, states: Tensor, want: Want) -> Tensor:
        """States (T, D), or logits (T, columns) where those are all there is -> rows as `score` gives them."""
        if want == "hidden":
            if self.transform is None:
                raise ValueError(f"{self.reference}: hidden states do not rebuild this architecture's logits")
            return states.clone()
        if self.transform is None:
            return states[:, : self.vocab_size].float()
        logits = states.float() @ self.head().float().T  # (T, V)
        return self.transform.apply_(logits if self.bias() is None else logits.add_(self.bias().float()))

    @torch.inference_mode()
    def own_logits(self, prompts: Ids, responses: Ids) -> list[Tensor]:
        return own_logits(self.model, prompts, responses, self.vocab_size)

    def head(self) -> Tensor:
        return self._head[: self.vocab_size]

    @cached_property
    def _head(self) -> Tensor:
        """(columns, D); with an adapter beside it, the sum of both."""
        return effective_weight(self._output)

    def bias(self) -> Tensor | None:
        """The output head's bias, (V,), if it has one."""
        bias = getattr(self._output, "bias", None)
        return None if bias is None else bias.detach()[: self.vocab_size]

    def close(self) -> None:
        del self.model, self.decoder, self._output
        self.__dict__.pop("_head", None)
        release_gpu_memory()
