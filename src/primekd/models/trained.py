"""A trained student by the folder that it is kept in, for use outside a study."""

import os
from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from primekd.config import StudentConfig
from primekd.foundation.errors import UserError, findings_text
from primekd.foundation.provenance import MANIFEST, altered_outputs, read_manifest, relative_name
from primekd.models.loading import load_model
from primekd.models.served import load_beside, plain_generation
from primekd.models.tokenizers import load_tokenizer


def load_student(folder: str | os.PathLike) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained student and its tokenizer, on the best device here. `folder`: `runs/<profile>/students/<name>`.

    The adapter lies beside the weights that it was trained with, in the precision of the training. `generate()` answers
    greedily, as in an assessment, and stops where a turn ends; its usual arguments change that. Raises UserError if
    there is no student, a file was altered, or its base is not here or has other weights.
    """
    folder = Path(folder).resolve()
    folder = folder.parent if folder.name in ("adapter", "model") else folder
    path, name = folder / MANIFEST, relative_name(folder)
    if not path.is_file():
        raise UserError(f"{name} has no {MANIFEST}, so no student: an adapter alone is loaded with peft (see README).")
    manifest = read_manifest(path)
    if altered := altered_outputs(path, manifest):
        raise UserError(f"{name}: {', '.join(altered)} missing or altered: train or copy the student again.")
    settings = manifest["inputs"].get("student") or {}
    try:
        student = StudentConfig(**{key: value for key, value in settings.items() if key != "model_sha256"})
    except ValidationError as error:
        raise UserError(f"{name}/{MANIFEST} is of no student ({findings_text(error)}): train it again.") from error
    tokenizer = load_tokenizer(student)
    if student.from_scratch:
        model = load_model(f"path:{folder / 'model'}", student.dtype)
    else:
        model = load_beside(student.model, student.dtype, folder / "adapter", student.quantization)
    model.generation_config = plain_generation(model, tokenizer)
    return model, tokenizer
