"""llama.cpp's own calls: a GGUF model, and a context that runs several sequences in one batch.

llama-cpp-python's `Llama` runs one sequence; here the context is opened with `n_seq_max` sequences, and logits and
final hidden states are read from its own buffers. Written from the source of llama-cpp-python 0.3.36."""

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import torch

from primekd.foundation import UserError, relative_name

# Tokens of one sequence in one call. On a CPU llama.cpp's flash attention takes a tiled path from 64 queries on, whose
# last bits differ: below, a row of a quantised model is the same whatever batch it is computed in.
PART_TOKENS = 512 if llama_cpp.llama_supports_gpu_offload() else 63
CELLS = 256  # llama.cpp pads a sequence's key-value cells to a multiple of this


class Model:
    """A GGUF file, loaded. Raises UserError if llama.cpp cannot read it."""

    def __init__(self, file: Path):
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)  # its loader says much
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = -1  # all, where there is a GPU
        # On processors with AMX llama.cpp's repacked weights end in a segmentation fault (ggml-org/llama.cpp#20824),
        # and repacked kernels would also make the logits depend on the processor.
        params.use_extra_bufts = False
        self.pointer = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self.pointer:
            raise UserError(f"llama.cpp cannot load {relative_name(file)}: fetch or make it again.")
        # Of the logits; they may exceed the tokenizer's V.
        self.columns = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.pointer))
        self.width = llama_cpp.llama_model_n_embd_out(self.pointer)  # D, of the hidden states
        self.most_sequences = llama_cpp.llama_max_parallel_sequences()  # in one context
        # Whether a sequence can be cut back to a prefix: the state of a recurrent model cannot.
        stateful = (llama_cpp.llama_model_is_recurrent, llama_cpp.llama_model_is_hybrid)
        self.keeps_positions = not any(asked(self.pointer) for asked in stateful)
        # Scale and soft cap of the logits, as far as the file names them.
        kind = self._metadata("general.architecture")
        said = (self._metadata(f"{kind}.{name}") for name in ("logit_scale", "final_logit_softcapping"))
        self.logit_numbers = [float(value) for value in said if value]

    def _metadata(self, key: str) -> str | None:
        value = ctypes.create_string_buffer(64)
        length = llama_cpp.llama_model_meta_val_str(self.pointer, key.encode(), value, len(value))
        return value.value.decode() if length >= 0 else None

    def close(self) -> None:
        llama_cpp.llama_model_free(self.pointer)


class Context:
    """The key-value cache and the output buffers of up to `sequences` sequences of up to `tokens` tokens.

    Each sequence has a cache of its own (llama.cpp calls it a stream): in one unified cache every token would be held
    against the tokens of all sequences. Flash attention is on: it is quicker on a CPU too, and there it goes row by
    row, so that neither the batch nor the other sequences change a bit (but from 512 cells on the last sequence that is
    left is cut among the threads). As many threads as torch has, for prompts and for single tokens alike. Raises
    UserError if llama.cpp makes no such context; nearly always the memory does not suffice."""

    def __init__(self, model: Model, sequences: int, tokens: int):
        self.model, self.sequences = model, sequences
        self.tokens = -(-tokens // CELLS) * CELLS
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max, params.n_ctx, params.kv_unified = sequences, sequences * self.tokens, False
        size = params.n_batch = params.n_ubatch = params.n_outputs_max = max(PART_TOKENS, sequences)
        params.n_outputs_max_per_seq = 0  # as many as in all
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.embeddings, params.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_NONE
        self.pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise UserError(
                f"llama.cpp could not open a context for {sequences} sequences of {self.tokens} tokens and gives no "
                "reason: lower teacher.batch_size, as it is mostly memory, or set teacher.engine to transformers."
            )
        self.memory = llama_cpp.llama_get_memory(self.pointer)
        self._make_batch(size)

    def _make_batch(self, size: int) -> None:
        """A llama_batch whose arrays belong to numpy; each token is of one sequence."""
        self._ids, self._positions, self._sequences = np.zeros((3, size), np.int32)
        self._counts, self._outputs = np.ones(size, np.int32), np.zeros(size, np.int8)
        integer, first = ctypes.POINTER(ctypes.c_int32), self._sequences.ctypes.data
        self._places = (integer * size)(*(ctypes.cast(first + 4 * i, integer) for i in range(size)))
        token, pos, n_seq_id = (a.ctypes.data_as(integer) for a in (self._ids, self._positions, self._counts))
        logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self._batch = llama_cpp.llama_batch(
            n_tokens=0, token=token, embd=None, pos=pos, n_seq_id=n_seq_id, seq_id=self._places, logits=logits
        )

    def close(self) -> None:
        llama_cpp.llama_free(self.pointer)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, False)

    def cut(self, sequence: int, length: int) -> None:
        """Forgets what stands behind the first `length` tokens of a sequence."""
        if not llama_cpp.llama_memory_seq_rm(self.memory, sequence, length, -1):
            raise UserError("llama.cpp cannot cut this model's sequences: set teacher.engine to transformers.")

    def copy(self, source: int, target: int) -> None:
        llama_cpp.llama_memory_seq_rm(self.memory, target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def read(self, sequence: int, ids: Sequence[int], start: int) -> None:
        """Adds tokens from position `start` on; nothing is put out for them, which saves the product with the head."""
        llama_cpp.llama_set_embeddings(self.pointer, False)
        if not ids:
            return
        for part in np.array_split(ids, -(-len(ids) // PART_TOKENS)):  # a short part would cost more a token
            self._decode(part, np.arange(start, start + len(part)), sequence, output=False)
            start += len(part)

    def predict(
        self, ids: Sequence[int], positions: Sequence[int], sequences: Sequence[int] | int, hidden: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Adds n tokens, at most PART_TOKENS or one a sequence, and returns what each of them predicts, float32: logits
        (n, columns) and, if asked for, hidden states (n, D), views of the context's own buffers until its next call."""
        # With embeddings on llama.cpp puts out every token of a call.
        llama_cpp.llama_set_embeddings(self.pointer, hidden)
        self._decode(ids, positions, sequences, output=True)
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.pointer), (len(ids), self.model.columns))
        if not hidden:
            return logits, None
        states = llama_cpp.llama_get_embeddings(self.pointer)
        return logits, np.ctypeslib.as_array(states, (len(ids), self.model.width))

    def _decode(self, ids, positions, sequences, output: bool) -> None:
        count = self._batch.n_tokens = len(ids)
        self._ids[:count], self._positions[:count], self._sequences[:count] = ids, positions, sequences
        self._outputs[:count] = output
        if code := llama_cpp.llama_decode(self.pointer, self._batch):
            raise UserError(f"llama.cpp stopped with code {code} on a batch of {len(ids)} tokens: run this step again.")
