"""LoRA adapters and the base models that they belong to."""

import os
from pathlib import Path

from primekd.foundation.errors import UserError
from primekd.foundation.provenance import MANIFEST, project_root, read_json, read_manifest, relative_name
from primekd.models.folders import model_hash
from primekd.models.reference import SCHEMES, parse_reference


def base_name(model: str) -> tuple[str, str | None]:
    """What adapter_config.json calls a base model, and its revision: names that peft can load, where there are any.

    A hub model is `owner/name` and the revision that the reference names. A folder is its path, relative to the
    checkout where it lies in it. A GGUF file has no name that peft could load: it keeps its reference.
    """
    reference = parse_reference(model)
    if reference.scheme == "hub" and not reference.is_gguf:
        return reference.repository, reference.target.partition("@")[2] or None
    if reference.scheme == "path" and not reference.is_gguf:
        folder = Path(os.path.normpath(project_root() / reference.target))
        return (
            folder.relative_to(project_root()) if folder.is_relative_to(project_root()) else folder
        ).as_posix(), None
    return model, None


def require_same_base(adapter: Path, model: str) -> None:
    """Refuses an adapter (a folder in peft's format) that was trained over another model than `model` refers to.

    Its own adapter_config.json names the model; a student's manifest beside it knows the model's hash too. Raises
    UserError, also if the folder holds no adapter.
    """
    config = adapter / "adapter_config.json"
    if not config.is_file():
        raise UserError(f"{relative_name(adapter)} holds no adapter_config.json: train or fetch the adapter again.")
    base = read_json(config).get("base_model_name_or_path")
    if _name(base) != _name(model):
        raise UserError(
            f"{relative_name(adapter)} is an adapter of {base}, not of {model}: train it again, or name its own model."
        )
    manifest = adapter.parent / MANIFEST
    student = read_manifest(manifest)["inputs"].get("student") or {} if manifest.is_file() else {}
    if "model_sha256" in student and student["model_sha256"] != model_hash(model):
        raise UserError(
            f"{relative_name(adapter)} was trained over other weights of {model} than lie here: train it again, or "
            "fetch the model's old revision."
        )


def _name(base: str | None) -> str | None:
    # Adapters from elsewhere name a model plainly, older ones of ours by its reference.
    return base_name(base)[0] if base and base.partition(":")[0] in SCHEMES else base
