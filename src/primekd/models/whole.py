"""A trained student outside a study: as it was trained, or one model with the adapter merged, and what that changes."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from primekd.config import StudentConfig
from primekd.foundation import MANIFEST, UserError, altered_outputs, findings_text, read_manifest, relative_name
from primekd.models.loading import load_model
from primekd.models.served import load_beside, load_merged, mean_kl, own_logits, plain_generation
from primekd.models.tokenizers import load_tokenizer
from primekd.tasks.text import end_of_text

ROUNDING = 1e-3  # of the span of a row's logits; sums in another order differ by a thousandth of it in float32
Prompts, Ids = Sequence[list[int]], list[list[int]]


@dataclass(frozen=True)
class Distance:
    """How far one model's next tokens are from another's, at the same places."""

    kl: float  # mean KL(one || other), in nats a token
    equal_top: float  # share of places with the same most probable token
    largest: float  # of all differences of logits, as a share of the span of their row
    tokens: int  # places that were compared


def distance(one: list[Tensor], other: list[Tensor]) -> Distance:
    """Compares logits, (T, V) a response, of two models on the same texts."""
    a, b = torch.cat(one), torch.cat(other)
    largest = float(((a - b).abs().amax(-1) / (a.amax(-1) - a.amin(-1)).clamp_min(1e-30)).max())
    return Distance(mean_kl(one, other), float((a.argmax(-1) == b.argmax(-1)).double().mean()), largest, len(a))


def load_whole(student: StudentConfig, folder: Path) -> PreTrainedModel:
    """A student's folder as one model in float32, with as many rows of embedding and head as its tokenizer has ids.

    An adapter is merged in float32; a base in 4 bits is dequantised. Raises UserError if the adapter does not fit."""
    if student.from_scratch:
        model = load_model(f"path:{folder / 'model'}", "float32")
    else:
        model = load_merged(student.model, "float32", folder / "adapter", quantization=student.quantization)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    model.config.tie_word_embeddings = head is embedding  # an adapter may have parted them
    if len(load_tokenizer(student)) < len(head):  # padded columns are no tokens
        model.resize_token_embeddings(len(load_tokenizer(student)), mean_resizing=False)
    return model


@torch.inference_mode()
def answers_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, most: int) -> Ids:
    """What a model writes greedily behind each prompt, at most so many tokens."""
    settings = plain_generation(model, tokenizer, max_new_tokens=most)
    asked = [torch.tensor([prompt], device=model.device) for prompt in prompts]
    made = [model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings) for ids in asked]
    return [one[0, ids.shape[1] :].tolist() for one, ids in zip(made, asked, strict=True)]


def check_merge(student: StudentConfig, folder: Path, merged: list[Tensor], prompts: Prompts, responses: Prompts):
    """What merging an adapter changed in float32, and how far the merged model is from the student as it was trained
    and scored. Raises UserError if merging changed more than rounding does."""

    def to_merged(dtype: str) -> Distance:
        model = load_beside(student.model, dtype, folder / "adapter", student.quantization)
        return distance(own_logits(model, prompts, responses, merged[0].shape[-1]), merged)

    found = to_merged("float32")
    if not found.largest <= ROUNDING:  # nor NaN
        raise UserError(
            f"{relative_name(folder)}: its adapter, merged, makes other logits than beside the weights (by "
            f"{found.largest:.1e} of their span, {found.kl:.1e} nats a token), so it is not exported: train it again, "
            "with another kind of adapter."
        )
    return found, to_merged(student.dtype)


def read_as_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """For a model that has read text alone, and no conversation: no template, and its ends are texts' ends."""
    tokenizer.chat_template = None
    tokenizer.eos_token, tokenizer.stop_ids = tokenizer.convert_ids_to_tokens(end_of_text(tokenizer)), ()


def load_student(folder: str | os.PathLike) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained student and its tokenizer, on the best device here. `folder`: `runs/<profile>/students/<name>`. The
    adapter lies beside the weights that it was trained with, in the precision of the training; one from scratch is in
    float32, as its weights were trained. An assessment may merge adapters, and rounds products as the training did: in
    bfloat16 single tokens may differ from it. `generate()` answers greedily and stops where a turn, or a text, ends;
    its usual arguments change that. Raises UserError if there is no student, a file was altered, or its base is not
    here or has other weights."""
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
        model = load_model(f"path:{folder / 'model'}", "float32")
    else:
        model = load_beside(student.model, student.dtype, folder / "adapter", student.quantization)
    if "text" in manifest["inputs"]:
        tokenizer = copy.deepcopy(tokenizer)
        read_as_text(tokenizer)
    model.generation_config = plain_generation(model, tokenizer)
    return model, tokenizer
