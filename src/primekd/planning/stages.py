"""What each stage needs of each GPU, or of the process on a CPU: phases laid over the machine of `profile.hardware`."""

import re
import shutil
from dataclasses import dataclass

from primekd.assessment.held_out import TOGETHER
from primekd.config import HardwareConfig, Profile, VllmConfig
from primekd.foundation import UserError, hardware, output_root
from primekd.models.shapes import BYTES, GIB, Model, student_model, teacher_model
from primekd.planning import memory
from primekd.planning.amounts import Lengths, find_codec, head_bytes
from primekd.planning.memory import Batch, Loaded, Phase

# Resident before a model is loaded (measured, logs/plan/): Python with torch and transformers; peft and the trainer.
IMPORTS = {"capture": 0.42e9, "distill": 0.61e9, "assess": 0.61e9}
CPU_MARGIN = 0.12  # above the largest shortfall against the measured runs of logs/plan/
GPU_MARGIN = 0.15  # of what is neither weights nor cache, which lie there to the byte; not measured on a GPU


@dataclass(frozen=True)
class Need:
    """Peak memory of one phase in one place, in bytes by kind; what the place has; the share that is added."""

    stage: str
    phase: str
    place: str
    parts: dict[str, float]
    capacity: float
    margin: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def asked(self) -> float:
        """With the margin; on a GPU none is added to weights and cache."""
        exact = self.parts.get("weights", 0) + self.parts.get("KV cache", 0) if self.place.startswith("GPU") else 0
        return self.total + self.margin * (self.total - exact)

    @property
    def fits(self) -> bool:
        return self.asked <= self.capacity


def on_machine(profile: Profile) -> Profile:
    """The profile with the machine that it is planned for: as it states it, else the one that plans."""
    if profile.hardware is not None:
        return profile
    facts = hardware()
    gpus = facts.get("gpus") or []
    sizes = [int(found.group(1)) / 1024 for gpu in gpus if (found := re.search(r"(\d+) MiB", gpu))]
    root = next(p for p in (output_root(), *output_root().parents) if p.exists())
    here = HardwareConfig(
        gpus_per_node=len(sizes),
        gpu=gpus[0].split(",")[0] if sizes else f"{facts['cpu']}, {facts['cores']} cores",
        gpu_memory_gib=min(sizes, default=None),
        memory_gib=facts["memory_gib"],
        disk_gib=shutil.disk_usage(root).free / GIB or None,
    )
    return profile.model_copy(update={"hardware": here})


def machine_name(machine: HardwareConfig) -> str:
    """Nodes and GPUs in words; of a machine without GPUs its processor."""
    nodes = f"{machine.nodes} x " if machine.nodes > 1 else ""
    return f"{nodes}{machine.gpus_per_node} x {machine.gpu or 'GPU'}" if machine.gpus_per_node else machine.gpu or "CPU"


def memory_needs(profile: Profile, lengths: Lengths) -> list[Need]:
    """Every phase of capture, training and assessment; the profile has a machine (`on_machine`). Raises UserError if a
    model's shape is not known, or an engine cannot split it as asked."""
    teacher, student = teacher_model(profile), student_model(profile)
    captured = _capture(profile, lengths, teacher) if teacher else []  # None: behind an API
    return [*captured, *_distill(profile, lengths, student), *_assess(profile, lengths, student)]


def _loaded(profile: Profile, model: Model, number: int, weights: float | None = None) -> Loaded:
    # A GGUF file's dequantised copy is float32; published checkpoints are bfloat16.
    source, cpu = 4 if model.dequantised else 2, not profile.hardware.gpus_per_node
    return Loaded(model.shape, number, model.device if weights is None else weights, source, cpu)


def _capture(profile: Profile, lengths: Lengths, model: Model) -> list[Need]:
    teacher, items = profile.teacher, profile.signals.items_per_shard
    batch = Batch(min(teacher.batch_size, items), lengths.longest_prompt, lengths.most, items)
    codec, _ = find_codec(profile)
    needs = codec.needs if codec else None
    if teacher.engine in ("exllamav2", "vllm"):
        return _split_capture(profile, model, batch, needs)
    if teacher.engine == "llamacpp":
        return _place(profile, "capture", memory.llamacpp_phases(profile, model, batch, needs))
    loaded = _loaded(profile, model, BYTES[teacher.dtype])
    scored = [loaded.score(batch, needs)] if needs else []
    checked = [loaded.head_check(batch)] if needs == "hidden" else []
    return _place(profile, "capture", [*loaded.load(), loaded.generate(batch), *scored, *checked])


def _split_capture(profile: Profile, model: Model, batch: Batch, needs: str | None) -> list[Need]:
    """A teacher that its engine spreads over GPUs."""
    teacher, machine = profile.teacher, profile.hardware
    if not machine.gpus_per_node:
        fix = "state the GPUs under hardware in the profile, or set teacher.engine to transformers or llamacpp"
        here = f"is planned for GPUs, and this plan is for {machine_name(machine)}"
        raise UserError(f"The engine {teacher.engine} {here}: {fix}.")
    room, host = machine.gpu_memory_gib * GIB, memory.split_host(teacher.engine, model, batch, needs)
    if teacher.engine == "exllamav2":
        placed = memory.exl2_phases(profile, model)
    else:
        own = teacher.vllm or VllmConfig()
        placed = memory.vllm_phases(own, model, teacher.batch_size, teacher.context_tokens, room)
    found = [Need("capture", phase.name, place, phase.device, room, GPU_MARGIN) for place, phase in placed]
    return [*found, Need("capture", "all", "host memory", host, machine.memory_gib * GIB, GPU_MARGIN)]


def _distill(profile: Profile, lengths: Lengths, student: Model) -> list[Need]:
    rows = profile.train.micro_batch_size * (2 if profile.loss.labels == "gold" else 1)  # each item's gold solution too
    loaded, (codec, head) = _loaded(profile, student, BYTES[profile.student.dtype]), _signals(profile)
    loss = loaded.loss_bytes(head, profile.loss, rows * lengths.most, codec)
    batch = Batch(rows, lengths.longest_prompt, lengths.most)
    train = loaded.train(batch, profile.student.lora, profile.train, loss)
    return _place(profile, "distill", [*loaded.load(), train], head)


def _assess(profile: Profile, lengths: Lengths, student: Model) -> list[Need]:
    number, shape, size = BYTES[profile.scoring_dtype], student.shape, profile.assess.batch_size
    quantised, (codec, head) = profile.student.quantization is not None, _signals(profile)
    loaded = _loaded(profile, student, number, student.device if quantised else shape.weights * number)
    together = 1 if codec == "full" else TOGETHER  # a question's answer and gold solution are read behind one prompt
    batch = Batch(size, lengths.longest_prompt, lengths.most)
    read = Batch(min(size, together), lengths.longest_prompt, 2 * lengths.most, together)
    fit = loaded.loss_bytes(head, profile.loss, together * lengths.most, codec)
    # Merging is measured in float32 (models/served.py), the merged weights in host memory; never of 4-bit students.
    merge = Phase("merge", {"weights": shape.weights * 4}, {"loading": loaded.weights if number < 4 else 0})
    before = _loaded(profile, student, BYTES[profile.student.dtype]).load() if quantised else [merge]
    answers = loaded.generate(batch)
    if profile.assess.engine == "vllm" and not loaded.cpu:
        room, context = profile.hardware.gpu_memory_gib * GIB, int(batch.prompt + batch.response)
        answers = Phase("generate (vLLM)", memory.vllm_phases(VllmConfig(), student, size, context, room)[0][1].device)
    held_out = Phase("held-out fit", {"weights": loaded.weights} | fit)
    return _place(profile, "assess", [*before, answers, loaded.score(read, "hidden"), held_out], head)


def _signals(profile: Profile) -> tuple[str, float]:
    """Codec, and bytes of the teacher's head in the store (0 where none is kept)."""
    codec, _ = find_codec(profile)
    name = codec.name if codec else "text"  # the plan says elsewhere that there is none
    return name, head_bytes(profile) if name == "hidden" else 0


def _place(profile: Profile, stage: str, phases: list[Phase], head: float = 0) -> list[Need]:
    """One process: on the CPU everything is in its memory; else one GPU, and the host's share with `head` beside it."""
    room, own = profile.hardware.memory_gib * GIB, {"runtime": IMPORTS[stage]}
    if not profile.hardware.gpus_per_node:
        parts = [_sum({"runtime": memory.CPU_RUNTIME} | phase.device, phase.host, own) for phase in phases]
        return [Need(stage, p.name, "process", part, room, CPU_MARGIN) for p, part in zip(phases, parts, strict=True)]
    gpu, context = profile.hardware.gpu_memory_gib * GIB, {"runtime": memory.GPU_RUNTIME}
    needs = [Need(stage, phase.name, "GPU 0", context | phase.device, gpu, GPU_MARGIN) for phase in phases]
    most = max((phase.host for phase in phases), key=lambda parts: sum(parts.values()))
    parts = _sum(most, {"head": head}, {"runtime": 4 * IMPORTS[stage]})  # CUDA's libraries are resident too
    return [*needs, Need(stage, "all", "host memory", parts, room, GPU_MARGIN)]


def _sum(*parts: dict[str, float]) -> dict[str, float]:
    return {kind: sum(part.get(kind, 0) for part in parts) for kind in dict.fromkeys(k for part in parts for k in part)}
