"""A model in memory as a GGUF file for llama.cpp: F16 written here, coarser types by llama.cpp's own quantiser.

Names and fields: the `gguf` package and llama.cpp's convert_hf_to_gguf.py. What a tokenizer splits text into first has
a name of llama.cpp's own there; whether it is the right one is asked of llama.cpp (`refuse_other_tokens`)."""

import errno
import importlib.util
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from primekd.foundation.errors import UserError
from primekd.models.template import turn_end
from primekd.tasks.text import begins_with_bos

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE_TYPES = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15}  # llama.h: enum llama_ftype
# The types of tensors that each is meant to have; where a row's width does not divide, llama.cpp takes others.
MEANT = {"F16": {"F16"}, "Q8_0": {"Q8_0"}, "Q4_K_M": {"Q4_K", "Q5_K", "Q6_K"}}
ARCHITECTURES = ("llama", "qwen2")
OTHERS = "leave out --gguf, and convert the exported folder with llama.cpp's convert_hf_to_gguf.py"


def require_types(types: Sequence[str]) -> None:
    """Raises UserError if files of these types cannot be made here, of any model."""
    if unknown := sorted({*types} - FILE_TYPES.keys()):
        raise UserError(f"--gguf {unknown[0]} is not made here: name {', '.join(FILE_TYPES)}.")
    if {*types} - {"F16"} and importlib.util.find_spec("llama_cpp") is None:
        raise UserError("GGUF files other than F16 are made by llama.cpp: `make setup-llamacpp`, or --gguf F16 alone.")


def require_architecture(model: "PreTrainedModel") -> None:
    """Raises UserError if a model's names and numbers in a GGUF file are not known here."""
    kind = model.config.model_type
    rope = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in ARCHITECTURES or rope not in ("default", "llama3"):
        raise UserError(f"A GGUF file of a model of the kind {kind} ({rope}) is not made here: {OTHERS}.")


def write_f16(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", target: Path, name: str) -> None:
    """Writes an F16 file; vectors stay float32. `tokenizer` has the chat template that the file is to name.

    Raises UserError if a weight is too large for F16, or llama.cpp has no name for how the tokenizer splits text."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(target, config.model_type)
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or width // heads
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES["F16"])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokenizer))
    _add_tokenizer(writer, tokenizer)
    _add_tensors(writer, model, head_dim)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:  # numpy's own tells only how much was written
        raise (error if error.errno else OSError(errno.ENOSPC, "No space left on device", str(target))) from error


def _add_tensors(writer, model: "PreTrainedModel", head_dim: int) -> None:
    import gguf

    config = model.config
    kind = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        weight, ending = tensor.float().cpu().numpy(), name.rpartition(".")[2]
        if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
            weight = permute_rotary(weight, len(weight) // head_dim)
        narrow = weight.astype(np.float16) if weight.ndim > 1 else weight
        if not np.isfinite(narrow).all():
            raise UserError(f"{name} has a weight that F16 cannot hold: leave out --gguf.")
        writer.add_tensor(f"{names.get_name(name.removesuffix('.' + ending))}.{ending}", narrow)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, head_dim, 2) / head_dim)
        factors = plain / model.base_model.rotary_emb.inv_freq.float().cpu()
        writer.add_tensor("rope_freqs.weight", factors.numpy().astype(np.float32))


def permute_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's order of rotary rows (two halves a head) -> GGUF's (pairs). (heads * d, …) -> the same shape."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _add_tokenizer(writer, tokenizer: "PreTrainedTokenizerBase") -> None:
    import gguf

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in parts["model"].get("merges") or []]
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    added = {i: token.special for i, token in tokenizer.added_tokens_decoder.items()}
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    for i, special in added.items():
        kinds[i] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    if parts["model"].get("byte_fallback"):  # SentencePiece's: a merge is the sooner, the higher the score of its token
        ranks = {"".join(pair): float(-rank) for rank, pair in reversed([*enumerate(merges)])}
        for i in (i for i, token in enumerate(tokens) if len(token) == 6 and token.startswith("<0x")):
            kinds[i] = gguf.TokenType.BYTE
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([ranks.get(token, -1e6) for token in tokens])
        writer.add_add_space_prefix("prepend" in json.dumps([parts["normalizer"], parts["pre_tokenizer"]]).lower())
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre(parts["pre_tokenizer"]))
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "eot": turn_end(tokenizer).token}
    for which, i in (ids | {"unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}).items():
        if i is not None:
            getattr(writer, f"add_{which}_token_id")(i)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pre(splitter: dict[str, Any] | None) -> str:
    """llama.cpp's name for what a byte-level tokenizer splits a text into before it merges."""
    parts = (splitter or {}).get("pretokenizers", [splitter or {}])
    regex = "".join(part["pattern"].get("Regex", "") for part in parts if part.get("type") == "Split")
    if any(part.get("type") == "Digits" and part.get("individual_digits") for part in parts):
        return "smollm"
    if "ByteLevel" not in {part.get("type") for part in parts}:
        raise UserError(f"llama.cpp has no name for how this tokenizer splits text: {OTHERS}.")
    return "llama-bpe" if r"\p{N}{1,3}" in regex else "qwen2" if r"|\p{N}|" in regex else "gpt-2"


def refuse_other_tokens(file: Path, texts: Sequence[str], ids: Sequence[list[int]]) -> None:
    """Raises UserError if llama.cpp, where it is here, reads texts as other tokens than these by a file."""
    if importlib.util.find_spec("llama_cpp") is None:
        return
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
    if not model:
        raise UserError(f"llama.cpp cannot read the GGUF file that was written: {OTHERS}.")
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    for text, wanted in zip(texts, ids, strict=True):
        raw, room = text.encode(), (llama_cpp.llama_token * (len(text.encode()) + 8))()
        count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), room, len(room), False, True)
        if list(room[: max(count, 0)]) != list(wanted):
            raise UserError(f"llama.cpp reads the profile's prompts as other tokens than the student does: {OTHERS}.")
    llama_cpp.llama_model_free(model)


def quantise(source: Path, target: Path, kind: str) -> None:
    """Writes an F16 file's weights as another type (`llama_model_quantize`), or raises UserError or OSError."""
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[kind], torch.get_num_threads()
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params):  # its reasons it only logs
        if shutil.disk_usage(target.parent).free < source.stat().st_size:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        raise UserError(f"llama.cpp could not make {kind} of the F16 file: ask for F16 alone.")


def types_of(file: Path, kind: str) -> dict[str, Any]:
    """The types of a file's weights, vectors not counted: type -> share, and the share of others than its name says."""
    import gguf

    sizes: dict[str, int] = {}
    for tensor in gguf.GGUFReader(file).tensors:
        if len(tensor.shape) > 1:
            sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    shares = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    return {"types": shares, "of_other_types": sum(share for name, share in shares.items() if name not in MEANT[kind])}
