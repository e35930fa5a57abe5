"""From a reference to a folder that transformers can read, and the hash that stands for its contents."""

import re
from functools import lru_cache
from pathlib import Path

from primekd.config.section import Speaker
from primekd.foundation import UserError, hash_file, hash_json, read_json, relative_name
from primekd.models.built import dequantised_folder, random_folder
from primekd.models.download import verified_hashes
from primekd.models.hub import has_tokenizer, local_snapshot
from primekd.models.reference import parse_reference, require_local
from primekd.models.tokenizers import load_tokenizer, tokenizer_folder

SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


def is_present(text: str, weights: bool = True) -> bool:
    """Whether a model can be had without a download; without `weights`, whether its tokenizer can."""
    reference = parse_reference(text)
    if reference.scheme == "random":
        return is_present(reference.target, weights=False)
    if reference.scheme == "hub" and not reference.is_gguf:
        snapshot = local_snapshot(reference)
        if not weights:
            return has_tokenizer(snapshot)
        return snapshot is not None and (snapshot / "config.json").is_file() and not missing_weights(snapshot)
    return reference.local is not None and reference.local.exists()


@lru_cache(maxsize=16)
def model_folder(text: str) -> Path:
    """A folder in Hugging Face's layout (config, safetensors, tokenizer) for any reference. No weights are downloaded.

    Raises UserError if the model is not there, or its folder holds no safetensors, or not all of them."""
    reference = parse_reference(text)
    if reference.scheme == "random":
        return random_folder(tokenizer_folder(reference.target).name, load_tokenizer(reference.target))
    if reference.scheme == "hub" and not reference.is_gguf:
        if not is_present(text):
            fix = "get_models.ipynb, which first says how large it is and whether its licence must be accepted"
            raise UserError(f"The model {text} is not here, or not whole: bring it with inference/{fix}.")
        return local_snapshot(reference)
    folder = require_local(reference)
    if reference.is_gguf:
        return dequantised_folder(folder, hash_file(folder))
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(f"{text} holds no config.json with *.safetensors: other formats are not loaded.")
    if missing := missing_weights(folder):
        gone = f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''} missing ({len(missing)} in all)"
        raise UserError(f"{text} is not whole: {gone}; copy or download the folder again.")
    return folder


def missing_weights(folder: Path) -> list[str]:
    """Names of the safetensors that a folder should hold and does not, by its index and by the shards' own names."""
    here = {p.name for p in folder.glob("*.safetensors")}
    expected = set() if here else {"*.safetensors"}
    index = folder / "model.safetensors.index.json"
    # EXL2 folders often carry the index of the model that they were quantised from.
    if index.is_file() and "model.safetensors" not in here and quantisation(folder) not in ("exl2", "exl3"):
        expected = set(read_json(index).get("weight_map", {}).values()) or expected
    for shard in filter(None, map(SHARD.fullmatch, here)):
        stem, number, count = shard.groups()
        expected |= {f"{stem}-{i:0{len(number)}d}-of-{count}.safetensors" for i in range(1, int(count) + 1)}
    return sorted(expected - here)


def quantisation(folder: Path) -> str | None:
    """`quant_method` of a folder's config.json, such as exl2 or gptq; None for plain weights."""
    if not (folder / "config.json").is_file():
        return None
    return (read_json(folder / "config.json").get("quantization_config") or {}).get("quant_method")


@lru_cache(maxsize=16)
def model_hash(text: str) -> str:
    """sha256 that stands for a model's weights, config and tokenizer: of the GGUF file, or over the folder's files.

    Files of a hub model that were verified at its download, and not written to since, are not read again."""
    reference = parse_reference(text)
    if reference.is_gguf:
        return hash_file(require_local(reference))
    folder = model_folder(text)
    files = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".model", ".jinja"})
    known = verified_hashes(reference.repository, folder) if reference.scheme == "hub" else {}
    return hash_json({p.name: known.get(p.name) or hash_file(p) for p in files})


def weights_hash(of: Speaker) -> str:
    """The hash of a teacher's or student's weights. Raises UserError if the profile names another sha256."""
    found = model_hash(of.model)
    if of.sha256 and found != of.sha256:
        place = relative_name(require_local(parse_reference(of.model)))
        said = f"{place} stands for {of.model} and has another sha256 ({found[:12]}…) than the profile wants"
        raise UserError(f"{said} ({of.sha256[:12]}…): fetch the file again, or mend sha256 in the profile.")
    return found
