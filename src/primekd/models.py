"""Model references, and the checks that a model is what it is taken for.

    hub:owner/name[@revision]        a Hugging Face repository
    path:folder-or-file.gguf         relative to the checkout
    package:module/file.gguf         a GGUF file shipped inside an installed Python package
    random:REFERENCE                 a tiny random Llama with REFERENCE's tokenizer (tests only)

Transformers works on folders, so a GGUF file is dequantised once into `models/cache/<hash>/` (float32, exact)
and used from there; llama.cpp reads the GGUF file itself.
"""

import importlib.util
import os
import shutil
import struct
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from primekd.errors import UserError
from primekd.provenance import (
    disk_errors,
    hash_file,
    hash_json,
    hash_text,
    project_root,
    read_json,
    relative_name,
    sync_folder,
    write_json,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCHEMES = ("hub", "path", "package", "random")
# 64 columns more than the tokenizer has ids, as many published checkpoints have: they must never reach a softmax.
RANDOM_PADDING = 64


@dataclass(frozen=True)
class ModelReference:
    """A parsed reference; `text` is how the profile writes it."""

    scheme: str
    target: str

    @property
    def text(self) -> str:
        return f"{self.scheme}:{self.target}"

    @cached_property
    def local(self) -> Path | None:
        """The file or folder behind a path: or package: reference, whether it exists or not."""
        if self.scheme == "path":
            return (project_root() / self.target).resolve()
        if self.scheme == "package":
            module, _, file = self.target.partition("/")
            found = importlib.util.find_spec(module)
            if found is None or not found.submodule_search_locations:
                return None
            return Path(next(iter(found.submodule_search_locations))) / file
        return None

    @property
    def is_gguf(self) -> bool:
        return self.target.endswith(".gguf") and self.scheme in ("path", "package")


def parse_reference(text: str) -> ModelReference:
    """Reads a reference.

    Raises:
        UserError: unknown scheme or nothing behind it.
    """
    scheme, colon, target = text.partition(":")
    if not colon or scheme not in SCHEMES or not target:
        raise UserError(f"{text!r} is no model reference: write one of {', '.join(s + ':…' for s in SCHEMES)}.")
    return ModelReference(scheme, target)


def require_local(reference: ModelReference) -> Path:
    """The existing file or folder of a path: or package: reference.

    Raises:
        UserError: it is not there; the sentence says how to get it.
    """
    if reference.local is None or not reference.local.exists():
        fix = {
            "package": f"pip install -r requirements.txt (package {reference.target.partition('/')[0]}).",
            "path": "make it with `primekd prepare-teacher`, download it with inference/get_models.ipynb, "
            "or mend the path in the profile.",
        }.get(reference.scheme, "it must be a path: or a package: reference here.")
        raise UserError(f"The model {reference.text} is not there: {fix}")
    return reference.local


def is_present(text: str) -> bool:
    """Whether a model can be had without a download."""
    reference = parse_reference(text)
    if reference.scheme == "random":
        return is_present(reference.target)
    if reference.scheme == "hub":
        return _hub_folder(reference, local_only=True) is not None
    return reference.local is not None and reference.local.exists()


def _hub_folder(reference: ModelReference, local_only: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    name, _, revision = reference.target.partition("@")
    try:
        folder = snapshot_download(
            name,
            revision=revision or None,
            local_files_only=local_only,
            allow_patterns=["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"],
        )
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had
        if local_only:
            return None
        raise UserError(
            f"The model {reference.text} could not be downloaded ({type(error).__name__}). Go online, log in if it is "
            "gated (`hf auth login`), or put it in a folder and write path:FOLDER in the profile."
        ) from error
    return Path(folder)


@lru_cache(maxsize=16)
def model_folder(text: str) -> Path:
    """A folder in Hugging Face's layout (config, safetensors, tokenizer) for any reference.

    Raises:
        UserError: the model is not there, or its folder holds no safetensors.
    """
    reference = parse_reference(text)
    if reference.scheme == "random":
        return _random_folder(reference)
    if reference.scheme == "hub":
        folder = _hub_folder(reference, local_only=False)
    else:
        folder = require_local(reference)
        if reference.is_gguf:
            return _dequantised_folder(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(f"{reference.text} holds no config.json with *.safetensors: other formats are not loaded.")
    return folder


@lru_cache(maxsize=16)
def model_hash(text: str) -> str:
    """sha256 that stands for a model's weights, config and tokenizer: of the GGUF file, or over the folder's files."""
    reference = parse_reference(text)
    if reference.is_gguf:
        return hash_file(require_local(reference))
    folder = model_folder(text)
    files = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".model", ".jinja"})
    return hash_json({p.name: hash_file(p) for p in files})


def _build_once(folder: Path, build) -> Path:
    """Runs `build(temporary_folder)` unless `folder` is already whole: source.json, written last, names every file."""
    if _is_built(folder):
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with disk_errors(folder):
        temporary.mkdir(parents=True)
        try:
            source = build(temporary)
            source["bytes"] = {p.name: p.stat().st_size for p in sorted(temporary.iterdir())}
            write_json(temporary / "source.json", source)
            if not _is_built(folder):  # another process may have been faster
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
                sync_folder(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_built(folder: Path) -> bool:
    if not (folder / "source.json").is_file():
        return False
    sizes = read_json(folder / "source.json").get("bytes", {})
    return bool(sizes) and all((folder / n).is_file() and (folder / n).stat().st_size == b for n, b in sizes.items())


def _cache_folder(key: str) -> Path:
    return project_root() / "models" / "cache" / key[:16]


def _dequantised_folder(file: Path) -> Path:
    digest = hash_file(file)

    def build(target: Path) -> dict:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        try:
            AutoTokenizer.from_pretrained(**place).save_pretrained(target)
            model = AutoModelForCausalLM.from_pretrained(
                **place, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
        except (ValueError, KeyError, OSError, IndexError, struct.error) as error:
            raise UserError(
                f"{relative_name(file)} cannot be read as a GGUF model ({error}): fetch or make it again."
            ) from error
        model.config._name_or_path = file.name
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(target)
        return {"file": file.name, "sha256": digest, "dtype": "float32"}

    return _build_once(_cache_folder(digest), build)


def _random_folder(reference: ModelReference) -> Path:
    tokenizer_folder = model_folder(reference.target)

    def build(target: Path) -> dict:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = load_tokenizer(reference.target)
        config = LlamaConfig(
            vocab_size=len(tokenizer) + RANDOM_PADDING,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(target)
        tokenizer.save_pretrained(target)
        return {"random": True, "tokenizer": tokenizer_folder.name, "config": config.to_diff_dict()}

    return _build_once(_cache_folder("random-" + hash_text(tokenizer_folder.name)[:8]), build)


@lru_cache(maxsize=4)
def load_tokenizer(text: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model.

    Raises:
        UserError: it has no chat template or no end-of-turn token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder(text), local_files_only=True)
    if not tokenizer.chat_template:
        raise UserError(f"The tokenizer of {text} has no chat template: use an instruction-tuned model.")
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {text} has no end-of-turn token.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padded places are masked by position, never by id
    return tokenizer


def load_model(text: str, dtype: str) -> "PreTrainedModel":
    """A causal language model in evaluation mode on the best device here. `dtype`: float32 or bfloat16."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    # peft still asks by the old name; the warning would print this machine's paths into every executed notebook.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_folder(text), dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
        )
    except (SafetensorError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The model {text} cannot be read ({reason}): fetch or make it again.") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 over the map from tokens to ids, special tokens included: what teacher and student must share."""
    return hash_json({"vocab": tokenizer.get_vocab(), "eos": tokenizer.eos_token_id})


def template_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of the chat template's text."""
    return hash_text(str(tokenizer.chat_template))


def require_same_tokenizer(teacher: str, student: str) -> None:
    """Raises UserError if two models number tokens differently: logits cannot be compared then."""
    first, second = load_tokenizer(teacher), load_tokenizer(student)
    if tokenizer_hash(first) != tokenizer_hash(second):
        raise UserError(
            f"The tokenizers of teacher {teacher} ({len(first)} tokens) and student {student} ({len(second)} tokens) "
            "differ, so their logits do not line up: choose models of one family."
        )
