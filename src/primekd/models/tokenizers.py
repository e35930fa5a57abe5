"""Tokenizers: loading one without the weights, and what two models must share."""

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from primekd.config.section import Speaker
from primekd.foundation import UserError, hash_file, hash_json, hash_text, read_json, relative_name
from primekd.models.built import gguf_tokenizer_folder
from primekd.models.download import download
from primekd.models.hub import describe, has_tokenizer, local_snapshot
from primekd.models.reference import parse_reference, require_local
from primekd.models.template import MARK, QUESTION, render, turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# tokenizer -> (its size and end-of-turn id when it was hashed, the hash): a vocabulary takes long to write as JSON.
_hashes: WeakKeyDictionary = WeakKeyDictionary()


def tokenizer_folder(text: str) -> Path:
    """A folder with a model's tokenizer and configuration; its weights need not be here.

    Of a hub model these small files are downloaded where they are missing. Raises UserError if they cannot be had."""
    reference = parse_reference(text)
    if reference.scheme == "random":
        return tokenizer_folder(reference.target)
    if reference.scheme == "hub" and not reference.is_gguf:
        snapshot = local_snapshot(reference)
        return snapshot if has_tokenizer(snapshot) else download(describe(reference), weights=False)
    local = require_local(reference)
    if reference.is_gguf:
        return gguf_tokenizer_folder(local, hash_file(local))
    if not any(local.glob("tokenizer*")):
        raise UserError(f"{text} holds no tokenizer: it belongs beside config.json and *.safetensors.")
    return local


@lru_cache(maxsize=8)
def load_tokenizer(of: str | Speaker) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model reference, or of a profile's teacher or student with its settings of the chat template.
    It carries what its conversations need: `reference`, `stop_ids` (further ids that end a response) and
    `template_arguments`. Raises UserError if it cannot be read, has no end of turn, or its template does not fit."""
    if isinstance(of, str):
        return _read_tokenizer(of)
    tokenizer = load_tokenizer(of.speaker)
    if of.template_of or of.template_arguments:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.template_arguments = of.template_arguments
        if of.template_of:
            tokenizer.chat_template = _borrowed_template(tokenizer, of.template_of)
    if tokenizer.chat_template is None and not of.template_arguments:
        return tokenizer  # a base model's: it reads text, and whoever renders a conversation says what is missing
    first, other = (render(tokenizer, [{"role": "user", "content": text}]) for text in (QUESTION, MARK))
    if first == other:
        raise UserError(
            f"The chat template of {of.template_of or of.speaker} leaves out what a user says (some read texts and "
            "images as a list): use another model, or name one of the same vocabulary in template_of."
        )
    for name in of.template_arguments:
        if not re.search(rf"\b{name}\b", tokenizer.get_chat_template()):
            raise UserError(f"The chat template of {of.speaker} knows no {name}: mend template_arguments.")
    return tokenizer


def _read_tokenizer(text: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    folder = tokenizer_folder(text)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The tokenizer of {text} cannot be read ({reason}): fetch or make the model again.") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {text} has no end-of-turn token.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padded places are masked by position, never by id
    tokenizer.reference, tokenizer.template_arguments = text, {}
    tokenizer.stop_ids = tuple(i for i in stop_ids(folder) if i < len(tokenizer))
    return tokenizer


def _borrowed_template(tokenizer: "PreTrainedTokenizerBase", other: str) -> str:
    lender = load_tokenizer(other)
    if lender.get_vocab() != tokenizer.get_vocab():
        difference = _difference(tokenizer, lender)
        raise UserError(f"{tokenizer.reference} cannot use the chat template of {other}: {difference}.")
    render(lender, [{"role": "user", "content": QUESTION}])
    return lender.get_chat_template()


def stop_ids(folder: Path) -> list[int]:
    """Ids that end a response by generation_config.json, else by config.json. Raises UserError if it is damaged."""
    file = next((folder / n for n in ("generation_config.json", "config.json") if (folder / n).is_file()), None)
    if file is None:
        return []
    values = read_json(file)
    found = values.get("eos_token_id") if isinstance(values, dict) else "no mapping"
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{relative_name(file)}: eos_token_id is no list of token ids: fetch the model again.")
    return ids


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 over the map from tokens to ids, special tokens included, and the end of text."""
    state = (len(tokenizer), tokenizer.eos_token_id)
    if _hashes.get(tokenizer, (None,))[0] != state:
        _hashes[tokenizer] = (state, hash_json({"vocab": tokenizer.get_vocab(), "eos": tokenizer.eos_token_id}))
    return _hashes[tokenizer][1]


def template_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of the chat template's text, and of the arguments that a profile gives it, if any."""
    arguments = getattr(tokenizer, "template_arguments", {})
    return hash_text(str(tokenizer.chat_template) + (hash_json(arguments) if arguments else ""))


def require_same_tokenizer(teacher: str | Speaker, student: str | Speaker) -> None:
    """Raises UserError if two models number tokens differently, or end a turn with different tokens.

    Logits cannot be compared then, or a student would learn an end that it never writes. The end of text may differ."""
    first, second = load_tokenizer(teacher), load_tokenizer(student)
    for of, tokenizer in ((teacher, first), (student, second)):
        if not isinstance(of, str) and tokenizer.chat_template is None:  # it is to converse, and cannot
            render(tokenizer, [{"role": "user", "content": QUESTION}])
    if first.get_vocab() != second.get_vocab():
        said = f"The tokenizers of teacher {first.reference} and student {second.reference} differ"
        fix = "choose models of one family"
        raise UserError(f"{said}, so their logits do not line up ({_difference(first, second)}): {fix}.")
    ends = [turn_end(tokenizer).token for tokenizer in (first, second)]
    if ends[0] != ends[1]:
        names = [f"{i} {first.convert_ids_to_tokens(i)}" for i in ends]
        raise UserError(
            f"Teacher {first.reference} and student {second.reference} have one vocabulary and end a turn differently, "
            f"with {names[0]} and {names[1]}: set student.template_of to {first.reference}, so that the student uses "
            "its chat template, or choose models of one kind."
        )


def _difference(first: "PreTrainedTokenizerBase", second: "PreTrainedTokenizerBase") -> str:
    """How two vocabularies differ, with the first token that they number differently."""
    one, other = first.get_vocab(), second.get_vocab()
    differing = sorted({*one.items()} ^ {*other.items()}, key=lambda entry: entry[::-1])
    token, place = differing[0]
    return f"{len(one)} and {len(other)} tokens, {len(differing)} entries differ, the first is {token!r} at {place}"
