"""Memory of engines with their own allocation: ExLlamaV2, vLLM, llama.cpp.

ExLlamaV2's numbers were read from the source of release 0.3.2, vLLM's from that of 0.32.0; neither was measured.
llama.cpp's were measured on a CPU (logs/plan/).
"""

from primekd.config import TeacherConfig
from primekd.config.teacher import ExLlamaConfig, VllmConfig
from primekd.foundation.errors import UserError
from primekd.planning.memory import (
    CPU_RUNTIME,
    GPU_RUNTIME,
    LOGIT_SHARDS,
    RECONSTRUCTION_BYTES,
    RECONSTRUCTION_ITEMS,
    Batch,
    Phase,
)
from primekd.planning.weights import Model

# Bytes a stored key and value: Q6 keeps keys in 8 bits and values in 4; a half-precision scale for every 32 numbers.
EXL2_CACHE = {"FP16": (2, 2), "Q8": (1.0625, 1.0625), "Q6": (1.0625, 0.5625), "Q4": (0.5625, 0.5625)}
EXL2_RESERVE = (192 + 256) * 2**20  # load_autosplit: left free on the first GPU (64 MiB on others), and to load
EXL2_DEQUANTISE = 512 * 2**20  # numbers of one matrix that are dequantised at a time, in half precision
PAGE = 256
# Tokens of one call, and what a cache is padded to: primekd.teachers.llamacpp_context, PART_TOKENS and CELLS.
LLAMACPP_CPU_PART, LLAMACPP_GPU_PART, LLAMACPP_CELLS = 63, 512, 256
VLLM_STEP_TOKENS = 16384  # that vLLM sets memory aside for (max_num_batched_tokens on GPUs of 70 GiB; 8192 below)
# Prompt log-probs, one prompt at a time: logits and log-softmax; with all of them also sorted values and ids, twice.
VLLM_TOP_BYTES, VLLM_FULL_BYTES = 8, 32
# Host memory of one of all log-probs of a prompt: vLLM's four Python lists (id, value, rank, text) with their numbers,
# and our rows of them, 153 bytes as measured in CPython 3.11 with lists built as vLLM builds them; and the tensors that
# they come from, once here and once in vLLM's own process.
VLLM_LISTED_BYTES = 153 + 2 * 12


def pages(tokens: float) -> int:
    """Whole pages of 256 tokens, as ExLlamaV2's paged cache has them."""
    return int(-(-tokens // PAGE) * PAGE)


def exl2_cache_tokens(teacher: TeacherConfig) -> int:
    """Tokens of ExLlamaV2's cache: as stated, or a whole batch of full contexts."""
    settings = teacher.exllamav2 or ExLlamaConfig()
    return pages(settings.cache_tokens or teacher.batch_size * pages(teacher.context_tokens))


def exl2_phases(teacher: TeacherConfig, model: Model, gpus: int, gpu_bytes: float) -> list[tuple[str, Phase]]:
    """(GPU, phase) for each GPU that gets a part of the model.

    Layers and their cache are put on one GPU after the other until each is full (`load_autosplit`), as `gpu_split`
    says, or evenly (tensor parallel). Generating and scoring use the same buffers, so there is one phase; before them
    the engine holds its logits against the head, which the last GPU dequantises whole (`ExLlamaV2Engine.head`; not
    where it is split evenly).
    """
    settings = teacher.exllamav2 or ExLlamaConfig()
    shape = model.shape
    cache = exl2_cache_tokens(teacher)
    keys, values = EXL2_CACHE[settings.cache_type]
    layer_cache = shape.kv_bytes(keys, values) * cache / shape.layers
    scratch = exl2_scratch(teacher, model)
    logits = pages(teacher.context_tokens) * shape.vocab * (2 + 4)  # half precision, and one float32 copy
    if settings.tensor_parallel:
        share = {
            "weights": model.device / gpus, "KV cache": layer_cache * shape.layers / gpus,
            "activations": scratch, "logits": logits / gpus, "runtime": GPU_RUNTIME,
        }  # fmt: skip
        return [(f"GPU {index}", Phase("generate, score", dict(share))) for index in range(gpus)]
    rooms = [gb * 2**30 for gb in settings.gpu_split] if settings.gpu_split else [gpu_bytes] * gpus
    counts = _fill(rooms, shape.layers, model.layer + layer_cache, scratch + GPU_RUNTIME + EXL2_RESERVE)
    used = max((i for i, count in enumerate(counts) if count), default=0)
    found = []
    for index, count in enumerate(counts[: used + 1]):
        parts = {
            "weights": count * model.layer, "KV cache": count * layer_cache, "activations": scratch,
            "logits": 0.0, "runtime": GPU_RUNTIME,
        }  # fmt: skip
        if index == used:
            parts |= {"weights": parts["weights"] + model.rest, "logits": float(logits)}
        found.append((f"GPU {index}", Phase("generate, score", parts)))
    place, last = found[-1]
    head = last.device | {"logits": 0.0, "head": shape.embedding_weights * 2}
    return [*found, (place, Phase("head check", head))]


def exl2_scratch(teacher: TeacherConfig, model: Model) -> float:
    """Buffers that ExLlamaV2 lays out on every GPU for one forward of `context_tokens` tokens (mlp.py, linear.py)."""
    shape, tokens = model.shape, pages(teacher.context_tokens)
    widest = max(shape.intermediate, shape.hidden)
    dequantised = 2 * min(max(a * b for a, b in shape.linears.values()), EXL2_DEQUANTISE)
    return dequantised + 2 * tokens * (2 * widest + 3 * shape.hidden)


def _fill(rooms: list[float], layers: int, layer: float, reserve: float) -> list[int]:
    """Layers on each GPU, filled in order; what fits nowhere is put on the last one, where it will be refused."""
    counts = []
    for room in rooms:
        fits = max(0, int((room - reserve) // layer))
        counts.append(min(fits, layers - sum(counts)))
    counts[-1] += layers - sum(counts)
    return counts


def exl2_host(model: Model, response: float, items: int, needs: str | None) -> dict[str, float]:
    """Host memory: the embedding, the rows of shards, and the head and logits of `measure_reconstruction`."""
    shape = model.shape
    if needs != "hidden":
        return {"weights": model.host, "rows": items * response * shape.vocab * 4 * LOGIT_SHARDS if needs else 0}
    tokens = min(RECONSTRUCTION_ITEMS, items) * response
    return {
        "weights": model.host,
        "rows": items * response * shape.hidden * 2,
        "head": shape.embedding_weights * (2 + 4),
        "logits": tokens * shape.vocab * RECONSTRUCTION_BYTES,
    }


def vllm_phases(
    settings: VllmConfig, model: Model, sequences: int, context: int, gpu_bytes: float
) -> list[tuple[str, Phase]]:
    """(GPU, phase) for each GPU: weights and activations by the split, and a cache for all sequences in flight.

    vLLM takes its whole share of a GPU for the cache; counted here is what the sequences can use of it, at least one.

    Raises:
        UserError: the heads cannot be split that way.
    """
    shape = model.shape
    across, stages = settings.tensor_parallel, settings.pipeline_parallel
    if shape.heads % across:
        raise UserError(
            f"{model.reference} has {shape.heads} attention heads, which cannot be split over {across} GPUs: set "
            "teacher.vllm.tensor_parallel to a divisor."
        )
    # The embedding lies with the first stage, the head with the last.
    parts = {
        "weights": (shape.layers / stages * model.layer + model.rest / min(stages, 2)) / across,
        "activations": VLLM_STEP_TOKENS * (2 * shape.intermediate / across + 4 * shape.hidden) * 2,
        "logits": context * shape.vocab * (VLLM_FULL_BYTES if settings.full_logprobs else VLLM_TOP_BYTES),
        "runtime": GPU_RUNTIME,
    }
    one = vllm_token_bytes(settings, model) * context
    left = gpu_bytes * settings.gpu_memory_utilization - sum(parts.values())
    parts["KV cache"] = max(one, min(one * sequences, left))
    return [(f"GPU {index}", Phase("generate, score", dict(parts))) for index in range(across * stages)]


def vllm_host(model: Model, sequence: float, response: float, items: int, needs: str | None) -> dict[str, float]:
    """Host memory: the rows of shards, and the one sequence that is scored at a time (`VllmEngine._scored`)."""
    if needs != "logits":
        return {"rows": 0}
    vocab = model.shape.vocab
    return {"rows": items * response * vocab * 4 * LOGIT_SHARDS, "logits": sequence * (vocab + 1) * VLLM_LISTED_BYTES}


def vllm_token_bytes(settings: VllmConfig, model: Model) -> float:
    """KV cache of one token on one GPU, in half precision. Heads are copied where there are fewer than GPUs."""
    shape = model.shape
    heads = max(1, shape.kv_heads / settings.tensor_parallel)
    return shape.layers / settings.pipeline_parallel * heads * shape.head_dim * 2 * 2


def llamacpp_phases(
    teacher: TeacherConfig, model: Model, batch: Batch, needs: str | None, items: int, cpu: bool
) -> list[Phase]:
    """Generating, several sequences at a time, and scoring, one by one; on a GPU all layers lie there."""
    shape = model.shape
    length = min(batch.prompt + batch.response, teacher.context_tokens)
    cells = -(-length // LLAMACPP_CELLS) * LLAMACPP_CELLS
    part = LLAMACPP_CPU_PART if cpu else LLAMACPP_GPU_PART
    # A GPU's compute buffer is laid out for a full batch of outputs; on a CPU untouched pages take no memory.
    outputs = min(part, batch.response) if cpu else part
    base = {
        "weights": model.device,
        "KV cache": shape.kv_bytes(2) * cells * batch.sequences,
        "activations": max(part, batch.sequences) * 4 * 3 * (shape.intermediate + shape.hidden),
        "runtime": 0 if cpu else GPU_RUNTIME,
    }
    together = batch.sequences if cpu else max(part, batch.sequences)
    phases = [Phase("generate", base | {"logits": together * shape.vocab * 4})]
    if needs is None:
        return phases
    width = shape.hidden if needs == "hidden" else LOGIT_SHARDS * shape.vocab
    rows = {"rows": items * batch.response * width * 4}
    phases.append(Phase("score", base | {"logits": outputs * shape.vocab * 4}, rows))
    if needs == "hidden":
        tokens = min(RECONSTRUCTION_ITEMS, items) * batch.response
        head = {"head": shape.embedding_weights * 4, "logits": tokens * shape.vocab * RECONSTRUCTION_BYTES}
        base |= {"runtime": CPU_RUNTIME} if cpu else {}  # torch's kernels: nothing before needs them
        phases.append(Phase("head check", base | {"logits": outputs * shape.vocab * 4}, head))
    return phases
