"""Peak memory of passes: the tensors that live at a phase's peak. docs/plan.md holds the formulas against measurements.
ExLlamaV2's numbers were read from the source of release 0.3.2, vLLM's from that of 0.32.0; neither was measured. Those
of transformers and llama.cpp were, on a CPU (logs/plan/)."""

from dataclasses import dataclass, field

from primekd.config import ExLlamaConfig, LoraSettings, LossConfig, Profile, TrainConfig, VllmConfig
from primekd.foundation.errors import UserError
from primekd.losses.chunked import CHUNK_ELEMENTS
from primekd.losses.products import BLOCK_ELEMENTS
from primekd.models.attention import PLAIN_ATTENTION_TOKENS
from primekd.models.shapes import GIB, Model, Shape

RECONSTRUCTION_ITEMS = 2  # primekd.capture.run.measure_reconstruction
RECONSTRUCTION_BYTES = 48  # a token and vocabulary entry: five float64 tensors at once, and two of float32
# Shards of logits that a capture holds at once: one that is written, its columns joined (with the codec full; others
# keep less), and the next one's. Hidden states are far narrower, and one shard of them is counted.
LOGIT_SHARDS = 3
CPU_RUNTIME = 32 * 2**20  # kernels and threads that torch's first pass brings in, beyond the imports
GPU_RUNTIME = 0.6 * GIB  # CUDA context, cuBLAS workspaces and kernels of one process
# glibc keeps freed blocks of up to 32 MiB, so on a CPU 2.4 times the live activations stay resident (measured:
# logs/plan/); torch's caching allocator reuses them on a GPU. Of training's, most are live, and 1.4 times them stay.
CPU_ACTIVATIONS, CPU_SAVED = 2.4, 1.4
# Bytes a stored key and value: Q6 keeps keys in 8 bits and values in 4; a half-precision scale for every 32 numbers.
EXL2_CACHE = {"FP16": (2, 2), "Q8": (1.0625, 1.0625), "Q6": (1.0625, 0.5625), "Q4": (0.5625, 0.5625)}
EXL2_RESERVE = (192 + 256) * 2**20  # load_autosplit: left free on the first GPU (64 MiB on others), and to load
EXL2_DEQUANTISE = 512 * 2**20  # numbers of one matrix that are dequantised at a time, in half precision
PAGE = 256  # tokens: a page of ExLlamaV2's cache, and what llama.cpp's is padded to (teachers.llamacpp_context, CELLS)
LLAMACPP_CPU_PART, LLAMACPP_GPU_PART = 63, 512  # tokens of one call: teachers.llamacpp_context, PART_TOKENS
VLLM_STEP_TOKENS = 16384  # that vLLM sets memory aside for (max_num_batched_tokens on GPUs of 70 GiB; 8192 below)
# Prompt log-probs, one prompt at a time: logits and log-softmax; with all of them also sorted values and ids, twice.
VLLM_TOP_BYTES, VLLM_FULL_BYTES = 8, 32
# Host memory of one of all log-probs of a prompt: vLLM's four Python lists and our rows of them, 153 bytes as measured
# in CPython 3.11; and the tensors that they come from, once here and once in vLLM's own process.
VLLM_LISTED_BYTES = 153 + 2 * 12


@dataclass(frozen=True)
class Batch:
    """Sequences of one pass, their lengths in tokens, and the items of a shard of signals."""

    sequences: int
    prompt: float
    response: float
    items: int = 0

    @property
    def tokens(self) -> float:
        return self.sequences * (self.prompt + self.response)

    def rows(self, width: int, number: int) -> dict[str, float]:
        """Bytes of a shard's rows of so many numbers."""
        return {"rows": self.items * self.response * width * number}

    def reconstruction(self, shape: Shape) -> float:
        """Bytes of the logits that the check of the head compares, in host memory."""
        return min(RECONSTRUCTION_ITEMS, self.items) * self.response * shape.vocab * RECONSTRUCTION_BYTES


@dataclass(frozen=True)
class Phase:
    """Bytes at the peak of one phase by kind (weights, KV cache, …): on the device, GPU or CPU, and in host memory."""

    name: str
    device: dict[str, float]
    host: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A model in transformers. `number`, `source`: bytes of a number, here and on file; `weights`: of all of them."""

    shape: Shape
    number: int
    weights: float
    source: int
    cpu: bool

    def forward_bytes(self, tokens: float) -> float:
        """Activations of a forward pass without gradients: a feed-forward block with its residual."""
        live = 3 * (self.shape.intermediate + self.shape.hidden) * self.number * tokens
        return live * (CPU_ACTIVATIONS if self.cpu else 1)

    def load(self) -> list[Phase]:
        """Reading weights that are converted: on a CPU the file's pages are the process's until that is done."""
        parts = {"weights": self.weights, "loading": self.source * self.shape.weights}
        return [Phase("load", parts)] if self.cpu and self.source != self.number else []

    def generate(self, batch: Batch) -> Phase:
        """Decoding into a cache that is made whole at the start; on a CPU only what is written of it takes memory."""
        prefill, token = batch.sequences * batch.prompt, self.shape.kv_bytes(self.number)
        base = {"weights": self.weights, "logits": batch.sequences * self.shape.vocab * self.number}
        at_end = base | {"KV cache": token * batch.tokens}
        at_prefill = at_end | {"activations": self.forward_bytes(prefill)}
        at_prefill |= {"KV cache": token * prefill} if self.cpu else {}
        return Phase("generate", max(at_prefill, at_end, key=lambda parts: sum(parts.values())))

    def score(self, batch: Batch, needs: str | None) -> Phase:
        """Teacher-forced scoring: a batch on the device, the rows of shards in host memory."""
        shape, number, tokens = self.shape, self.number, batch.tokens
        activations = self.forward_bytes(tokens) + tokens * shape.hidden * number
        cache = shape.kv_bytes(number) * tokens  # transformers fills one here too
        device = {"weights": self.weights, "KV cache": cache, "activations": activations}
        if needs == "hidden":
            return Phase("score", device, batch.rows(shape.hidden, number))
        device |= {"logits": batch.response * shape.vocab * 4, "head": shape.embedding_weights * 4 * (number < 4)}
        return Phase("score", device, batch.rows(shape.vocab * LOGIT_SHARDS, 4))

    def head_check(self, batch: Batch) -> Phase:
        """`measure_reconstruction`: two items' logits twice, in float64, on the CPU."""
        shape, one = self.shape, batch.prompt + batch.response
        logits = one * shape.vocab * self.number + batch.response * shape.vocab * 4
        device = {"weights": self.weights, "activations": self.forward_bytes(one), "logits": logits}
        head = shape.embedding_weights * 4 * (self.number < 4 or not self.cpu)
        return Phase("head check", device, {"head": head, "logits": batch.reconstruction(shape)})

    def train(self, batch: Batch, lora: LoraSettings, train: TrainConfig, loss_parts: dict[str, float]) -> Phase:
        """The end of a micro-batch's forward pass: all layers' activations and the loss's tables are there at once."""
        activations = self.shape.layers * self.saved_bytes(lora, batch.prompt + batch.response) * batch.tokens
        optimiser = optimiser_bytes(self.shape, lora, train)
        device = {"weights": self.weights, "activations": activations, "optimiser": optimiser}
        return Phase("train", device | loss_parts)

    def saved_bytes(self, lora: LoraSettings, length: float) -> float:
        """Bytes a token that one layer keeps for the backward pass of sequences of `length` tokens (docs/plan.md)."""
        shape, number, names = self.shape, self.number, self.shape.adapted(lora)
        d, q, i = shape.hidden, shape.heads * shape.head_dim, shape.intermediate
        kept = 2 * 4 * d + number * 5 * q + number * 3 * i
        groups = [({"q_proj", "k_proj", "v_proj"}, d), ({"gate_proj", "up_proj"}, d), ({"down_proj"}, i)]
        kept += number * sum(width for members, width in groups if members & names)
        kept += (number + 1) * sum(shape.linears[name][0] for name in names) if lora.dropout else 0
        if self.cpu and number < 4 and length <= PLAIN_ATTENTION_TOKENS:
            kept += shape.heads * length * (4 + number)  # attention's weights, in float32 and half precision
        return kept * (CPU_SAVED if self.cpu else 1)

    def loss_bytes(self, head: float, loss: LossConfig, rows: float, codec: str) -> dict[str, float]:
        """What the loss of so many rows adds: float32 (chunk, vocabulary) tensors, and heads; `head`: the teacher's."""
        mixed = loss.divergence not in ("forward_kl", "reverse_kl")
        tables = {"text": 0, "topk": 1, "sampled": 1}.get(codec, 10 if mixed else 3)
        half = self.number < 4  # the gradient's product is taken in half precision, where the states are of it
        chunk = min(rows * self.shape.vocab, CHUNK_ELEMENTS["cpu" if self.cpu else "cuda"])
        blocks = 4 * BLOCK_ELEMENTS["cpu"] if self.cpu and half else 0
        # Two tables more: logits, and their gradient.
        return {"logits": chunk * (4 * (2 + tables) + (self.number if half else 0)), "head": blocks + head}


def optimiser_bytes(shape: Shape, lora: LoraSettings, train: TrainConfig) -> float:
    """Adapter, gradient and the optimiser's state, all float32."""
    return shape.lora_weights(lora) * 4 * (4 if train.optimizer == "adamw" else 3 if train.momentum else 2)


def _padded(tokens: float) -> int:
    return int(-(-tokens // PAGE) * PAGE)


def exl2_phases(profile: Profile, model: Model) -> list[tuple[str, Phase]]:
    """(GPU, phase) for each GPU that gets a part of the model: one after the other until full, or all evenly.
    Generating and scoring use the same buffers; before them the last GPU dequantises the whole head
    (`ExLlamaV2Engine.head`; not where it is split evenly)."""
    teacher, gpus, shape = profile.teacher, profile.hardware.gpus_per_node, model.shape
    settings, context = teacher.exllamav2 or ExLlamaConfig(), _padded(teacher.context_tokens)
    cache = shape.kv_bytes(*EXL2_CACHE[settings.cache_type])
    cache *= _padded(settings.cache_tokens or teacher.batch_size * context)
    # Buffers of one forward of a whole context (mlp.py, linear.py).
    scratch = 2 * min(max(a * b for a, b in shape.linears.values()), EXL2_DEQUANTISE)
    scratch += 2 * context * (2 * max(shape.intermediate, shape.hidden) + 3 * shape.hidden)
    common = {"activations": scratch, "runtime": GPU_RUNTIME}
    logits = context * shape.vocab * (2 + 4)  # half precision, and one float32 copy
    if settings.tensor_parallel:
        share = {"weights": model.device / gpus, "KV cache": cache / gpus, "logits": logits / gpus}
        return [(f"GPU {index}", Phase("generate, score", common | share)) for index in range(gpus)]
    rooms = settings.gpu_split or [profile.hardware.gpu_memory_gib] * gpus
    layer_cache, reserve = cache / shape.layers, scratch + GPU_RUNTIME + EXL2_RESERVE
    counts = _fill([gib * GIB - reserve for gib in rooms], shape.layers, model.layer + layer_cache)
    parts = [common | {"weights": count * model.layer, "KV cache": count * layer_cache} for count in counts]
    parts[-1]["weights"] += model.rest
    check = Phase("head check", parts[-1] | {"head": shape.embedding_weights * 2})
    parts[-1]["logits"] = logits
    found = [(f"GPU {index}", Phase("generate, score", part)) for index, part in enumerate(parts)]
    return [*found, (found[-1][0], check)]


def _fill(rooms: list[float], layers: int, layer: float) -> list[int]:
    """Layers on each GPU up to the last that has any, in order; what fits nowhere is put there and will be refused."""
    counts: list[int] = []
    for room in rooms:
        counts.append(min(max(0, int(room // layer)), layers - sum(counts)))
    counts[-1] += layers - sum(counts)
    return counts[: max(index for index, count in enumerate(counts) if count) + 1]


def split_host(engine: str, model: Model, batch: Batch, needs: str | None) -> dict[str, float]:
    """Host memory of a teacher on GPUs: embedding, shards' rows, check of the head; vLLM's lists of one sequence."""
    shape, own = model.shape, {"weights": model.host}
    if needs == "hidden":
        check = {"head": shape.embedding_weights * (2 + 4), "logits": batch.reconstruction(shape)}
        return own | batch.rows(shape.hidden, 2) | check
    if needs is None or (engine == "vllm" and needs != "logits"):  # vLLM's top tokens are few
        return own
    own |= batch.rows(shape.vocab * LOGIT_SHARDS, 4)
    listed = (batch.prompt + batch.response) * (shape.vocab + 1) * VLLM_LISTED_BYTES
    return own | ({"logits": listed} if engine == "vllm" else {})


def vllm_phases(own: VllmConfig, model: Model, sequences: int, context: int, room: float) -> list[tuple[str, Phase]]:
    """(GPU, phase) for each GPU of `room` bytes. vLLM takes its whole share of a GPU for the cache; counted is what the
    sequences can use of it, at least one. Raises UserError if the heads cannot be split that way."""
    shape, across, stages = model.shape, own.tensor_parallel, own.pipeline_parallel
    if shape.heads % across:
        fix = f"which cannot be split over {across} GPUs: set teacher.vllm.tensor_parallel to a divisor"
        raise UserError(f"{model.reference} has {shape.heads} attention heads, {fix}.")
    parts = {  # the embedding lies with the first stage, the head with the last
        "weights": (shape.layers / stages * model.layer + model.rest / min(stages, 2)) / across,
        "activations": VLLM_STEP_TOKENS * (2 * shape.intermediate / across + 4 * shape.hidden) * 2,
        "logits": context * shape.vocab * (VLLM_FULL_BYTES if own.full_logprobs else VLLM_TOP_BYTES),
        "runtime": GPU_RUNTIME,
    }
    # One sequence's cache on one GPU, in half precision. Heads are copied where there are fewer than GPUs.
    one = shape.layers / stages * max(1, shape.kv_heads / across) * shape.head_dim * 2 * 2 * context
    parts["KV cache"] = max(one, min(one * sequences, room * own.gpu_memory_utilization - sum(parts.values())))
    return [(f"GPU {index}", Phase("generate, score", parts)) for index in range(across * stages)]


def llamacpp_phases(profile: Profile, model: Model, batch: Batch, needs: str | None) -> list[Phase]:
    """Generating, several sequences at a time, and scoring, one by one; on a GPU all layers lie there."""
    shape, cpu = model.shape, not profile.hardware.gpus_per_node
    cells = _padded(min(batch.prompt + batch.response, profile.teacher.context_tokens))
    part = LLAMACPP_CPU_PART if cpu else LLAMACPP_GPU_PART
    base = {
        "weights": model.device,
        "KV cache": shape.kv_bytes(2) * cells * batch.sequences,
        "activations": max(part, batch.sequences) * 4 * 3 * (shape.intermediate + shape.hidden),
        "runtime": 0 if cpu else GPU_RUNTIME,
    }
    # A GPU's compute buffer is laid out for a full batch of outputs; on a CPU untouched pages take no memory.
    together, one = (batch.sequences, min(part, batch.response)) if cpu else (max(part, batch.sequences), part)
    phases, scored = [Phase("generate", base | {"logits": together * shape.vocab * 4})], one * shape.vocab * 4
    if needs:
        rows = batch.rows(shape.hidden if needs == "hidden" else LOGIT_SHARDS * shape.vocab, 4)
        phases.append(Phase("score", base | {"logits": scored}, rows))
    if needs == "hidden":
        kernels = CPU_RUNTIME if cpu else GPU_RUNTIME  # on a CPU torch's: nothing before needs them
        check = {"head": shape.embedding_weights * 4, "logits": batch.reconstruction(shape)}
        phases.append(Phase("head check", base | {"logits": scored, "runtime": kernels}, check))
    return phases
