"""Folders that are built from something else, once, in `models/cache/<hash>/`. Transformers works on folders, so a GGUF
file is dequantised (float32, exact) for it; llama.cpp reads the file itself."""

import contextlib
import os
import secrets
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.foundation import UserError, disk_errors, hash_text, project_root, relative_name, sync_folder, write_json
from primekd.foundation.storage import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# 64 columns more than the tokenizer has ids, as many published checkpoints have: they must never reach a softmax.
RANDOM_PADDING = 64


def written(target: Path, write: Callable[[Path], Any], made: Callable[[Path], bool] | None = None) -> list[Path]:
    """A folder as `write` fills it, whole or not at all; its files. Where several processes may be at it, the one that
    was faster, whose folder is `made`, is let stand."""
    own = f".{os.getpid()}-{secrets.token_hex(4)}" if made else ""  # ids of processes are alike in two containers
    temporary = target.with_name(f".{target.name}{own}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with disk_errors(target):
        temporary.mkdir(parents=True)
        try:
            write(temporary)
            if made is None or not made(target):
                shutil.rmtree(target, ignore_errors=True)
                os.replace(temporary, target)
                sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return sorted(p for p in target.iterdir() if p.is_file())


def build_once(folder: Path, build: Callable[[Path], dict]) -> Path:
    """Runs `build(temporary_folder)` unless `folder` is already whole: source.json, written last, names every file."""

    def write(target: Path) -> None:
        source = build(target)
        source["bytes"] = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
        write_json(target / "source.json", source)

    if not _is_built(folder):
        written(folder, write, _is_built)
    return folder


def _is_built(folder: Path) -> bool:
    try:
        sizes = read_json(folder / "source.json")["bytes"].items()
    except (UserError, AttributeError, LookupError, TypeError):  # a damaged one is built anew
        return False
    return bool(sizes) and all((folder / n).is_file() and (folder / n).stat().st_size == b for n, b in sizes)


def _cache_folder(key: str) -> Path:
    return project_root() / "models" / "cache" / key


def dequantised_folder(file: Path, digest: str) -> Path:
    """A GGUF file as a folder in Hugging Face's layout, in float32; otherwise as `gguf_tokenizer_folder`."""

    def build(target: Path) -> dict:
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig

        tokenizer = gguf_tokenizer_folder(file, digest)
        shutil.copytree(tokenizer, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("source.json"))
        how = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32, "trust_remote_code": False}
        with _gguf_errors(file), _no_bar():
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **how)
        model.config._name_or_path = file.name
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(target)
        return {"file": file.name, "sha256": digest, "dtype": "float32"}

    return build_once(_cache_folder(digest[:16]), build)


def gguf_tokenizer_folder(file: Path, digest: str) -> Path:
    """The tokenizer inside a GGUF file as a folder of its own: no weight is read. `digest`: the file's sha256. Raises
    UserError if the file is no GGUF model that transformers can read."""

    def build(target: Path) -> dict:
        from transformers import AutoTokenizer

        with _gguf_errors(file):
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
            tokenizer.save_pretrained(target)
            write_json(target / "generation_config.json", {"eos_token_id": _gguf_ends(file)})
        return {"file": file.name, "sha256": digest}

    return build_once(_cache_folder(f"{digest[:16]}-chat"), build)


def _gguf_ends(file: Path) -> list[int]:
    """The ids of the tokens that end a text, a turn and a message, as far as a GGUF file names them."""
    import gguf

    fields = gguf.GGUFReader(file).fields
    found = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return sorted({int(field.contents()) for field in found if field is not None})


@contextlib.contextmanager
def _no_bar():
    """transformers' bar over the tensors of a GGUF file has no switch; in a notebook it would stand for good."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar, reader.tqdm = reader.tqdm, lambda tensors, **how: tensors
    try:
        yield
    finally:
        reader.tqdm = bar


@contextlib.contextmanager
def _gguf_errors(file: Path):
    try:
        yield
    except (ValueError, KeyError, OSError, IndexError, struct.error) as error:
        raise UserError(f"{relative_name(file)} cannot be read as a GGUF file ({error}): fetch it again.") from error


def random_folder(source: str, tokenizer: "PreTrainedTokenizerBase") -> Path:
    """A random two-layer Llama for a tokenizer, the same every time. `source` names where the tokenizer is from."""

    def build(target: Path) -> dict:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        ends = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("bos", "eos", "pad")}
        config = LlamaConfig(
            vocab_size=len(tokenizer) + RANDOM_PADDING, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
            **ends,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(target)
        tokenizer.save_pretrained(target)
        return {"random": True, "tokenizer": source, "config": config.to_diff_dict()}

    return build_once(_cache_folder("random-" + hash_text(source)[:8]), build)
