"""llama.cpp on a GGUF file, through llama-cpp-python's low-level calls.

`create_completion(logprobs=…)` sorts the vocabulary in Python for every token; here logits and final hidden states
are read from the context's own buffers instead.
"""

import importlib.metadata
from typing import Any

import llama_cpp
import numpy as np
import torch
from torch import Tensor

from primekd.errors import UserError
from primekd.models import load_tokenizer, model_hash, parse_reference, require_local
from primekd.provenance import relative_name
from primekd.teachers.protocol import Response, Sampling, Want

BATCH_TOKENS = 512
HEAD_TENSORS = ("output.weight", "token_embd.weight")  # the second one where the head is tied to the embedding


class LlamaCppEngine:
    """A GGUF model served by llama.cpp, one sequence at a time.

    Its final hidden state (embeddings with pooling type NONE) times the dequantised head is not bit-equal to its
    logits, because llama.cpp also quantises activations; capture measures the difference and the store states it.
    """

    name = "llamacpp"
    offers = frozenset({"hidden", "logits"})

    def __init__(self, model: str, context_tokens: int = 2048):
        reference = parse_reference(model)
        if not reference.is_gguf:
            raise UserError(f"The engine llamacpp needs a .gguf file, not {model}: set teacher.engine: transformers.")
        self.reference, self.file = model, require_local(reference)
        self.tokenizer = load_tokenizer(model)
        self.vocab_size = len(self.tokenizer)
        try:
            self.llama = _without_repacking(
                model_path=str(self.file),
                n_ctx=context_tokens,
                n_batch=BATCH_TOKENS,
                n_ubatch=BATCH_TOKENS,
                n_gpu_layers=-1,
                logits_all=True,
                embedding=True,
                pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE,
                verbose=False,
            )
        except ValueError as error:
            raise UserError(
                f"llama.cpp cannot load {relative_name(self.file)} ({error}): fetch or make it again."
            ) from error
        self.context_tokens = context_tokens
        self.columns, self.width = self.llama.n_vocab(), self.llama.n_embd()  # columns may exceed V
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    def __del__(self):
        if hasattr(self, "_batch"):
            llama_cpp.llama_batch_free(self._batch)

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "model": self.reference,
            "model_sha256": model_hash(self.reference),
            "llama_cpp_python": importlib.metadata.version("llama-cpp-python"),
        }

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.llama.ctx), True)

    def _decode(self, ids: list[int], start: int, wanted: set[int]) -> None:
        """Runs one chunk of the sequence; outputs are kept for the chunk places in `wanted`."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place] = token
            batch.pos[place] = start + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = place in wanted
        if code := llama_cpp.llama_decode(self.llama.ctx, batch):
            raise UserError(f"llama.cpp stopped with code {code} on a sequence of {start + len(ids)} tokens.")

    def _fits(self, length: int) -> None:
        if length > self.context_tokens:
            raise UserError(f"A sequence of {length} tokens does not fit: raise teacher.context_tokens in the profile.")

    def _row(self, place: int, want: Want) -> np.ndarray:
        if want == "hidden":
            pointer, size = llama_cpp.llama_get_embeddings_ith(self.llama.ctx, place), self.width
        else:
            pointer, size = llama_cpp.llama_get_logits_ith(self.llama.ctx, place), self.columns
        return np.ctypeslib.as_array(pointer, shape=(size,))

    def _prefill(self, ids: list[int], rows: range, want: Want) -> np.ndarray:
        """Outputs at the sequence places `rows`, (T, D) or (T, columns), float32."""
        self._clear()
        llama_cpp.llama_set_embeddings(self.llama.ctx, want == "hidden")
        size = self.width if want == "hidden" else self.columns
        output = np.empty((len(rows), size), dtype=np.float32)
        for start in range(0, len(ids), BATCH_TOKENS):
            chunk = ids[start : start + BATCH_TOKENS]
            places = [p for p in range(len(chunk)) if start + p in rows]
            # With embeddings on, llama.cpp wants an output at every place.
            self._decode(chunk, start, set(range(len(chunk)) if want == "hidden" else places))
            for place in places:
                output[start + place - rows.start] = self._row(place, want)
        return output

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Response]:
        random = np.random.default_rng(sampling.seed)
        return [self._generate_one(prompt, sampling, random) for prompt in prompts]

    def _generate_one(self, prompt: list[int], sampling: Sampling, random: np.random.Generator) -> Response:
        self._fits(len(prompt) + sampling.max_new_tokens)
        logits = self._prefill(prompt, range(len(prompt) - 1, len(prompt)), "logits")[0, : self.vocab_size]
        ids: list[int] = []
        while True:
            ids.append(_choose(logits, sampling.temperature, random))
            if ids[-1] == self.tokenizer.eos_token_id:
                return Response(ids, truncated=False)
            if len(ids) == sampling.max_new_tokens:
                return Response(ids, truncated=True)
            self._decode(ids[-1:], len(prompt) + len(ids) - 1, {0})
            logits = self._row(0, "logits")[: self.vocab_size]

    def score(self, prompts: list[list[int]], responses: list[list[int]], want: Want) -> list[Tensor]:
        rows = []
        for prompt, response in zip(prompts, responses, strict=True):
            self._fits(len(prompt) + len(response))
            first = len(prompt) - 1
            # The last response token predicts nothing that is kept, so it is not run.
            output = self._prefill([*prompt, *response[:-1]], range(first, first + len(response)), want)
            rows.append(torch.from_numpy(output if want == "hidden" else output[:, : self.vocab_size].copy()))
        return rows

    def own_logits(self, prompts: list[list[int]], responses: list[list[int]]) -> list[Tensor]:
        return self.score(prompts, responses, "logits")

    def head(self) -> Tensor:
        import gguf

        tensors = {t.name: t for t in gguf.GGUFReader(self.file).tensors}
        tensor = next(tensors[name] for name in HEAD_TENSORS if name in tensors)
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(np.ascontiguousarray(weight[: self.vocab_size], dtype=np.float32))

    def close(self) -> None:
        self.llama.close()


def _without_repacking(**options) -> llama_cpp.Llama:
    """Llama with `use_extra_bufts` off: on processors with AMX llama.cpp's repacked weights end in a segmentation fault
    (ggml-org/llama.cpp#20824), and repacked kernels would also make the logits depend on the processor."""
    module = llama_cpp.llama_cpp
    plain = module.llama_model_default_params

    def defaults():
        params = plain()
        params.use_extra_bufts = False
        return params

    module.llama_model_default_params = defaults
    try:
        return llama_cpp.Llama(**options)
    finally:
        module.llama_model_default_params = plain


def _choose(logits: np.ndarray, temperature: float, random: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return int(random.choice(len(weights), p=weights / weights.sum()))
