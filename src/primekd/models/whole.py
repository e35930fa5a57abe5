"""A trained student as one model of its own: the adapter merged, and what that and rounding change."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from primekd.config import StudentConfig
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import relative_name
from primekd.models.loading import load_model
from primekd.models.served import load_beside, load_merged, mean_kl, own_logits, plain_generation
from primekd.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUNDING = 1e-3  # of the span of a row's logits; sums in another order differ by a thousandth of it in float32
Prompts = Sequence[list[int]]


@dataclass(frozen=True)
class Distance:
    """How far one model's next tokens are from another's, at the same places.

    Attributes:
        kl: mean KL(one || other), in nats a token.
        equal_top: share of places with the same most probable token.
        largest: of all differences of logits, as a share of the span of their row.
        tokens: places that were compared.
    """

    kl: float
    equal_top: float
    largest: float
    tokens: int


def distance(one: list[Tensor], other: list[Tensor]) -> Distance:
    """Compares logits, (T, V) a response, of two models on the same texts."""
    a, b = torch.cat(one), torch.cat(other)
    span = (a.amax(-1) - a.amin(-1)).clamp_min(1e-30)
    largest = float(((a - b).abs().amax(-1) / span).max())
    return Distance(mean_kl(one, other), float((a.argmax(-1) == b.argmax(-1)).double().mean()), largest, len(a))


def load_whole(student: StudentConfig, folder: Path) -> "PreTrainedModel":
    """A student's folder as one model in float32, with as many rows of embedding and head as its tokenizer has ids.

    An adapter is merged in float32 into its base's weights in float32; those of a base in 4 bits are dequantised.
    Raises UserError if the adapter does not fit the base.
    """
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
def answers_of(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Prompts, most: int
) -> list[list[int]]:
    """What a model writes greedily behind each prompt, at most so many tokens."""
    settings = plain_generation(model, tokenizer, max_new_tokens=most)
    asked = [torch.tensor([prompt], device=model.device) for prompt in prompts]
    made = [model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings) for ids in asked]
    return [one[0, ids.shape[1] :].tolist() for one, ids in zip(made, asked, strict=True)]


def check_merge(student: StudentConfig, folder: Path, merged: list[Tensor], prompts: Prompts, responses: Prompts):
    """What merging changed in float32, and how far the merged model is from the student in the precision that it was
    trained and scored in; (None, Distance) of a student from scratch. Raises UserError if merging changed more than
    rounding does."""
    size, adapter = merged[0].shape[-1], folder / "adapter"
    if student.from_scratch:
        scored = load_model(f"path:{folder / 'model'}", student.dtype)
        return None, distance(own_logits(scored, prompts, responses, size), merged)
    beside = load_beside(student.model, "float32", adapter, student.quantization)
    found = distance(own_logits(beside, prompts, responses, size), merged)
    if not found.largest <= ROUNDING:  # nor NaN
        raise UserError(
            f"{relative_name(folder)}: its adapter, merged, makes other logits than beside the weights (by "
            f"{found.largest:.1e} of their span, {found.kl:.1e} nats a token), so it is not exported: train it again, "
            "with another kind of adapter."
        )
    scored = load_beside(student.model, student.dtype, adapter, student.quantization)
    return found, distance(own_logits(scored, prompts, responses, size), merged)
