"""Peak memory of what transformers runs: a teacher or a student that generates and scores, and a student in training.

Counted are the tensors that live at a phase's peak. Where the code that allocates them is ours, it is named; the rest
was read from transformers' Llama. docs/plan.md holds the formulas against measurements.
"""

from dataclasses import dataclass, field

from primekd.config import LoraSettings, LossConfig, TrainConfig
from primekd.losses.chunked import CHUNK_ELEMENTS
from primekd.losses.products import BLOCK_ELEMENTS
from primekd.models.attention import PLAIN_ATTENTION_TOKENS
from primekd.planning.shapes import Shape

RECONSTRUCTION_ITEMS = 2  # primekd.capture.run.measure_reconstruction
RECONSTRUCTION_BYTES = 48  # a token and vocabulary entry: five float64 tensors at once, and two of float32
# Rows of logits that a capture holds at once, in shards: one that is written, its columns joined (with the codec
# full; others keep less), and the next one's. Hidden states are far narrower, and one shard of them is counted.
LOGIT_SHARDS = 3
CPU_RUNTIME = 32 * 2**20  # kernels and threads that the first pass brings in, beyond the imports
GPU_RUNTIME = 0.6 * 2**30  # CUDA context, cuBLAS workspaces and kernels of one process
# glibc keeps freed blocks of up to 32 MiB, so on a CPU 2.4 times the live activations stay resident (measured:
# logs/plan/); torch's caching allocator reuses them on a GPU. Of training's, most are live, and 1.4 times them stay.
CPU_ACTIVATIONS, CPU_SAVED = 2.4, 1.4


@dataclass(frozen=True)
class Batch:
    """Sequences of one pass, and their lengths in tokens."""

    sequences: int
    prompt: float
    response: float

    @property
    def tokens(self) -> float:
        return self.sequences * (self.prompt + self.response)


@dataclass(frozen=True)
class Phase:
    """What lives at the peak of one phase, in bytes, by kind: on the device (a GPU, or the CPU), and in host memory.

    Kinds: weights, KV cache, activations, logits, optimiser, head, loading, runtime.
    """

    name: str
    device: dict[str, float]
    host: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.device.values())

    def merged(self) -> dict[str, float]:
        """Device and host together: one process on a CPU."""
        return {k: self.device.get(k, 0) + self.host.get(k, 0) for k in dict.fromkeys([*self.device, *self.host])}


def forward_bytes(shape: Shape, number: int, tokens: float, cpu: bool) -> float:
    """Activations of a forward pass without gradients: a feed-forward block with its residual."""
    live = (3 * shape.intermediate + 3 * shape.hidden) * number * tokens
    return live * (CPU_ACTIVATIONS if cpu else 1)


def generate_phase(shape: Shape, number: int, weights: float, batch: Batch, cpu: bool) -> Phase:
    """Decoding into a cache that is made whole at the start; on a CPU only what is written of it takes memory."""
    token, prefill = shape.kv_bytes(number), Batch(batch.sequences, batch.prompt, 0).tokens
    base = {"weights": weights, "logits": batch.sequences * shape.vocab * number}
    at_prefill = base | {
        "KV cache": token * (prefill if cpu else batch.tokens),
        "activations": forward_bytes(shape, number, prefill, cpu),
    }
    at_end = base | {"KV cache": token * batch.tokens}
    return Phase("generate", max(at_prefill, at_end, key=lambda parts: sum(parts.values())))


def score_phase(
    shape: Shape, number: int, weights: float, batch: Batch, needs: str | None, items: int, cpu: bool
) -> Phase:
    """Teacher-forced scoring: a batch on the device, the rows of shards of `items` sequences in host memory."""
    rows = items * batch.response
    device = {
        "weights": weights,
        "KV cache": shape.kv_bytes(number) * batch.tokens,  # transformers fills a cache here too
        "activations": forward_bytes(shape, number, batch.tokens, cpu) + batch.tokens * shape.hidden * number,
    }
    if needs == "hidden":
        return Phase("score", device, {"rows": rows * shape.hidden * number})
    head = shape.embedding_weights * 4 if number < 4 else 0
    device |= {"logits": batch.response * shape.vocab * 4, "head": head}
    return Phase("score", device, {"rows": rows * shape.vocab * 4 * LOGIT_SHARDS})


def head_check_phase(shape: Shape, number: int, weights: float, batch: Batch, items: int, cpu: bool) -> Phase:
    """`measure_reconstruction`: two items' logits twice, in float64, on the CPU."""
    tokens = min(RECONSTRUCTION_ITEMS, items) * batch.response
    one = Batch(1, batch.prompt, batch.response)
    device = {
        "weights": weights,
        "activations": forward_bytes(shape, number, one.tokens, cpu),
        "logits": one.tokens * shape.vocab * number + one.response * shape.vocab * 4,
    }
    head = shape.embedding_weights * (4 if number < 4 or not cpu else 0)
    return Phase("head check", device, {"logits": tokens * shape.vocab * RECONSTRUCTION_BYTES, "head": head})


def lora_weights(shape: Shape, lora: LoraSettings) -> int:
    """Trainable numbers of a LoRA adapter."""
    names = shape.linears if lora.target_modules == "all-linear" else lora.target_modules
    known = [shape.linears[name] for name in names if name in shape.linears]
    return shape.layers * lora.rank * sum(a + b for a, b in known)


def optimiser_bytes(shape: Shape, lora: LoraSettings, train: TrainConfig) -> float:
    """Adapter, gradient and the optimiser's state, all float32."""
    states = 2 if train.optimizer == "adamw" else 1 if train.momentum else 0
    return lora_weights(shape, lora) * 4 * (2 + states)


def saved_bytes(shape: Shape, number: int, lora: LoraSettings, length: float, cpu: bool) -> float:
    """Bytes a token that one layer keeps for the backward pass (no gradient checkpointing).

    Args:
        length: tokens of a sequence.

    Two norms keep their float32 input; attention its queries, its repeated keys and values, its output twice; the gated
    block four tensors of its width. An adapted linear map keeps its input, with dropout a copy of its own and a mask.
    """
    names = set(shape.linears) if lora.target_modules == "all-linear" else set(lora.target_modules)
    d, q, i = shape.hidden, shape.query, shape.intermediate
    kept = 2 * 4 * d + number * 5 * q + number * 3 * i
    groups = [({"q_proj", "k_proj", "v_proj"}, d), ({"gate_proj", "up_proj"}, d), ({"down_proj"}, i)]
    for members, width in groups:  # o_proj's input is attention's output, which is kept already
        if members & names:
            kept += number * width
    if lora.dropout:
        for name in names & set(shape.linears):
            kept += shape.linears[name][0] * (number + 1)
    if cpu and number < 4 and length <= PLAIN_ATTENTION_TOKENS:  # attention's weights, in float32 and half precision
        kept += shape.heads * length * (4 + number)
    return kept * (CPU_SAVED if cpu else 1)


def loss_bytes(
    student: Shape, number: int, teacher_head: float, loss: LossConfig, rows: float, codec: str | None, cpu: bool
) -> dict[str, float]:
    """What the loss adds: (rows of a chunk, vocabulary) tensors in float32, and the heads that it multiplies with.

    Args:
        number: bytes of one of the student's numbers.
        teacher_head: bytes of the teacher's head as the store keeps it, where the codec needs it.
        rows: response tokens of a micro-batch.
        codec: None where there is no teacher.
    """
    chunk = min(rows * student.vocab, CHUNK_ELEMENTS["cpu" if cpu else "cuda"])
    tables = 2  # logits, and their gradient
    if codec in ("hidden", "full"):
        tables += {"forward_kl": 3, "reverse_kl": 3, "jsd": 10}[loss.divergence]
    elif codec in ("topk", "sampled"):
        tables += 1
    # The gradient's product is taken in half precision, where the states are of it.
    logits = chunk * (4 * tables + (number if number < 4 else 0))
    blocks = 4 * BLOCK_ELEMENTS["cpu"] if cpu and number < 4 else 0
    return {"logits": logits, "head": blocks + (teacher_head if codec == "hidden" else 0)}


def train_phase(
    shape: Shape, number: int, weights: float, batch: Batch, lora: LoraSettings, train: TrainConfig,
    loss_parts: dict[str, float], cpu: bool,
) -> Phase:  # fmt: skip
    """The end of a micro-batch's forward pass: every layer's activations and the loss's tables are there at once."""
    saved = saved_bytes(shape, number, lora, batch.prompt + batch.response, cpu)
    return Phase(
        "train",
        {
            "weights": weights,
            "activations": shape.layers * saved * batch.tokens,
            "optimiser": optimiser_bytes(shape, lora, train),
        }
        | loss_parts,
    )
