"""How large everything is: Llama's shapes on a GPU, and tiny ones that show on a CPU that all of it runs."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Shape:
    """A Llama: what transformers' LlamaConfig is told."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool


@dataclass(frozen=True)
class Sizes:
    """`teacher_widths`: of stored hidden states; `checked`: tokens that are compared with float64."""

    vocabulary: int
    students: dict[str, Shape]
    teacher_widths: tuple[int, ...]
    checked: int
    checked_width: int
    sequences: int
    prompt: int
    response: int
    rounds: int
    alone: int  # tokens of the loss alone
    square: int  # rows of the square product that the matrix rate is measured with
    copied: int  # bytes of the copy that the bandwidth is measured with
    captured: Shape = field(repr=False)
    arms: tuple[str, ...] = ("base-KD", "ai-KD")  # of the tiny study; the fine-tuned student is in it anyhow
    several: bool = True  # several processes of a study at once; the tests do that on a CPU
    capture_prompts: int = 32
    capture_tokens: int = 128


LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128, False)
LLAMA_1B = Shape(2048, 8192, 16, 32, 8, 64, True)
TINY = Shape(32, 64, 2, 4, 2, 8, False)

FULL = Sizes(
    vocabulary=128_256,
    students={"8B": LLAMA_8B, "1B": LLAMA_1B},
    teacher_widths=(4096, 16384),
    checked=1000,  # more than one chunk of the frozen head's loss
    checked_width=4096,
    sequences=4,
    prompt=150,
    response=362,
    rounds=7,
    alone=8192,
    square=8192,
    copied=2**32,
    captured=LLAMA_1B,
)
SMALL = Sizes(
    vocabulary=300,
    students={"8B": TINY},
    teacher_widths=(32, 48),
    checked=24,
    checked_width=32,
    sequences=2,
    prompt=6,
    response=8,
    rounds=2,
    alone=32,
    square=256,
    copied=2**22,
    captured=TINY,
    arms=("ai-KD",),
    several=False,
    capture_prompts=4,
    capture_tokens=6,
)


def llama(shape: Shape, vocabulary: int, dtype: torch.dtype, **more):
    """A Llama with random weights on the GPU, or on the CPU where there is none."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096, **shape.__dict__, **more)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
