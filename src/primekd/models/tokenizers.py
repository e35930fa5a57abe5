"""Tokenizers: loading one without the weights, and what two models must share."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from primekd.errors import UserError
from primekd.models.built import gguf_tokenizer_folder
from primekd.models.download import download
from primekd.models.hub import describe, has_tokenizer, local_snapshot
from primekd.models.reference import parse_reference, require_local
from primekd.provenance import hash_file, hash_json, hash_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# tokenizer -> (its size and end-of-turn id when it was hashed, the hash): a vocabulary takes long to write as JSON.
_hashes: WeakKeyDictionary = WeakKeyDictionary()


def tokenizer_folder(text: str) -> Path:
    """A folder with a model's tokenizer and configuration; its weights need not be here.

    Of a hub model these small files are downloaded where they are missing.

    Raises:
        UserError: the model is not there or has none, or the hub refuses it or is out of reach.
    """
    reference = parse_reference(text)
    if reference.scheme == "random":
        return tokenizer_folder(reference.target)
    if reference.scheme == "hub":
        snapshot = local_snapshot(reference)
        return snapshot if has_tokenizer(snapshot) else download(describe(reference), weights=False)
    local = require_local(reference)
    if reference.is_gguf:
        return gguf_tokenizer_folder(local, hash_file(local))
    if not any(local.glob("tokenizer*")):
        raise UserError(
            f"{text} holds no tokenizer: a model's folder has config.json, *.safetensors and the tokenizer's files; "
            "other formats are not loaded."
        )
    return local


@lru_cache(maxsize=4)
def load_tokenizer(text: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model; the model's weights are not needed.

    Raises:
        UserError: it cannot be had or read, or has no chat template or no end-of-turn token.
    """
    from transformers import AutoTokenizer

    folder = tokenizer_folder(text)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The tokenizer of {text} cannot be read ({reason}): fetch or make the model again.") from error
    if not tokenizer.chat_template:
        raise UserError(f"The tokenizer of {text} has no chat template: use an instruction-tuned model.")
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {text} has no end-of-turn token.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padded places are masked by position, never by id
    return tokenizer


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 over the map from tokens to ids, special tokens included: what teacher and student must share."""
    state = (len(tokenizer), tokenizer.eos_token_id)
    if _hashes.get(tokenizer, (None,))[0] != state:
        _hashes[tokenizer] = (state, hash_json({"vocab": tokenizer.get_vocab(), "eos": tokenizer.eos_token_id}))
    return _hashes[tokenizer][1]


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
