"""What each stage needs of each GPU, or of the process on a CPU: the phases of memory.py laid over a machine."""

from dataclasses import dataclass

from primekd.assessment.held_out import TOGETHER
from primekd.config import Profile
from primekd.config.teacher import VllmConfig
from primekd.foundation.errors import UserError
from primekd.planning.codec import find_codec
from primekd.planning.engines import exl2_host, exl2_phases, llamacpp_phases, vllm_host, vllm_phases
from primekd.planning.machine import Machine
from primekd.planning.memory import (
    CPU_RUNTIME,
    GPU_RUNTIME,
    Batch,
    Phase,
    generate_phase,
    head_check_phase,
    loss_bytes,
    score_phase,
    train_phase,
)
from primekd.planning.tokens import Lengths
from primekd.planning.weights import BYTES, Model, dequantised_copy, student_model, teacher_model

# Resident before a model is loaded (measured, logs/plan/): Python with torch and transformers; peft and the trainer.
IMPORTS = {"capture": 0.42e9, "distill": 0.61e9, "assess": 0.61e9}
CPU_MARGIN = 0.12  # above the largest shortfall against the measured runs of logs/plan/
GPU_MARGIN = 0.15  # of what is neither weights nor cache, which lie there to the byte; not measured on a GPU


@dataclass(frozen=True)
class Need:
    """Peak memory of one phase in one place, in bytes by kind. `capacity`: what the place has.

    `margin`: the share that is added; on a GPU to what is neither weights nor cache.
    """

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
        """With the margin."""
        on_gpu = self.place.startswith("GPU")
        exact = self.parts.get("weights", 0) + self.parts.get("KV cache", 0) if on_gpu else 0
        return self.total + self.margin * (self.total - exact)

    @property
    def fits(self) -> bool:
        return self.asked <= self.capacity


def memory_needs(profile: Profile, machine: Machine, lengths: Lengths) -> list[Need]:
    """Every phase of capture, training and assessment.

    Raises:
        UserError: a model's shape is not known, or an engine cannot split it as asked.
    """
    teacher, student = teacher_model(profile), student_model(profile)
    return [
        *_capture(profile, machine, lengths, teacher),
        *_distill(profile, machine, lengths, teacher, student),
        *_assess(profile, machine, lengths, teacher, student),
    ]


def gpus_used(needs: list[Need], stage: str) -> int:
    """On how many GPUs something of a stage lies."""
    return len({need.place for need in needs if need.stage == stage and need.place.startswith("GPU")})


def _capture(profile: Profile, machine: Machine, lengths: Lengths, model: Model | None) -> list[Need]:
    if model is None:  # behind an API
        return []
    teacher, cpu = profile.teacher, machine.gpus == 0
    items = profile.signals.items_per_shard
    batch = Batch(min(teacher.batch_size, items), lengths.longest_prompt, lengths.most)
    codec, _ = find_codec(profile)
    needs = codec.needs if codec else None
    if teacher.engine in ("exllamav2", "vllm"):
        if cpu:
            raise UserError(
                f"The engine {teacher.engine} is planned for GPUs, and this plan is for {machine.name}: state the GPUs "
                "under hardware in the profile, or set teacher.engine to transformers or llamacpp."
            )
        return _split_capture(profile, machine, lengths, model, needs)
    if teacher.engine == "llamacpp":
        phases = llamacpp_phases(teacher, model, batch, needs, items, cpu)
        return _place("capture", phases, machine)
    number = BYTES[teacher.dtype]
    phases = [
        *_load_phases(model, number, cpu),
        generate_phase(model.shape, number, model.device, batch, cpu),
        *([score_phase(model.shape, number, model.device, batch, needs, items, cpu)] if needs else []),
        *([head_check_phase(model.shape, number, model.device, batch, items, cpu)] if needs == "hidden" else []),
    ]
    return _place("capture", phases, machine)


def _split_capture(profile: Profile, machine: Machine, lengths: Lengths, model: Model, needs: str | None) -> list[Need]:
    teacher, items = profile.teacher, profile.signals.items_per_shard
    if teacher.engine == "exllamav2":
        placed = exl2_phases(teacher, model, machine.gpus_per_node, machine.gpu_bytes)
        host = exl2_host(model, lengths.most, items, needs)
    else:
        settings = teacher.vllm or VllmConfig()
        placed = vllm_phases(settings, model, teacher.batch_size, teacher.context_tokens, machine.gpu_bytes)
        host = vllm_host(model, lengths.longest_prompt + lengths.most, lengths.most, items, needs)
    found = [Need("capture", p.name, place, p.device, machine.gpu_bytes, GPU_MARGIN) for place, p in placed]
    return [*found, Need("capture", "all", "host memory", host, machine.memory_bytes, GPU_MARGIN)]


def _load_phases(model: Model, number: int, cpu: bool) -> list[Phase]:
    """Reading weights that are converted: on a CPU the file's pages are the process's until that is done.

    Weights that are not converted stay in the file until a pass touches them, so that loading is never their peak.
    """
    # A GGUF file's dequantised copy is float32; published checkpoints are bfloat16.
    source = 4 if dequantised_copy(model.reference, model.shape) else 2
    if not cpu or source == number:
        return []
    return [Phase("load", {"weights": model.device, "loading": source * model.shape.weights})]


def _distill(profile: Profile, machine: Machine, lengths: Lengths, teacher: Model | None, student: Model) -> list[Need]:
    number, cpu = BYTES[profile.student.dtype], machine.gpus == 0
    rows = profile.train.micro_batch_size * (2 if profile.loss.labels == "gold" else 1)  # each item's gold solution too
    batch = Batch(rows, lengths.longest_prompt, lengths.most)
    codec, head = _signals(profile, teacher)
    loss = loss_bytes(student.shape, number, head, profile.loss, batch.sequences * batch.response, codec, cpu)
    phases = [
        *_load_phases(student, number, cpu),
        train_phase(student.shape, number, student.device, batch, profile.student.lora, profile.train, loss, cpu),
    ]
    return _place("distill", phases, machine, {"head": head} if codec == "hidden" else {})


def _assess(profile: Profile, machine: Machine, lengths: Lengths, teacher: Model | None, student: Model) -> list[Need]:
    number, cpu, shape = BYTES[profile.scoring_dtype], machine.gpus == 0, student.shape
    size = profile.assess.batch_size
    batch = Batch(size, lengths.longest_prompt, lengths.most)
    # Merging is measured in float32 (models/served.py), the merged weights in host memory; never of 4-bit students.
    quantised = profile.student.quantization is not None
    plain = student.device if quantised else shape.weights * number
    codec, head = _signals(profile, teacher)
    # Of a question the teacher's answer and the gold solution are read behind one prompt.
    together = 1 if codec == "full" else TOGETHER
    read = Batch(min(size, together), lengths.longest_prompt, 2 * lengths.most)
    fit = loss_bytes(shape, number, head, profile.loss, together * lengths.most, codec, cpu)
    merge = Phase("merge", {"weights": shape.weights * 4}, {"loading": plain if number < 4 else 0})
    phases = [
        *(_load_phases(student, number, cpu) if quantised else [merge]),
        generate_phase(shape, number, plain, batch, cpu),
        score_phase(shape, number, plain, read, "hidden", together, cpu),
        Phase("held-out fit", {"weights": plain} | fit),
    ]
    if profile.assess.engine == "vllm" and not cpu:
        served = vllm_phases(VllmConfig(), student, size, int(batch.prompt + batch.response), machine.gpu_bytes)
        answers = Phase("generate (vLLM)", served[0][1].device)
        phases = [answers if phase.name == "generate" else phase for phase in phases]
    return _place("assess", phases, machine, {"head": head} if codec == "hidden" else {})


def _signals(profile: Profile, teacher: Model | None) -> tuple[str, float]:
    """Codec, and bytes of the teacher's head in the store (0 where none is kept)."""
    codec, _ = find_codec(profile)
    name = codec.name if codec else "text"  # the plan says elsewhere that there is none
    if name != "hidden" or teacher is None:
        return name, 0
    number = {"exllamav2": 2, "llamacpp": 4}.get(profile.teacher.engine, BYTES[profile.teacher.dtype])
    return name, teacher.shape.vocab * teacher.shape.hidden * number


def _place(stage: str, phases: list[Phase], machine: Machine, host: dict[str, float] | None = None) -> list[Need]:
    """One process: on the CPU everything is in its memory; else one GPU, and the host's share beside it."""
    if machine.gpus == 0:
        return [
            Need(stage, p.name, "process", _sum(p.merged(), _cpu_runtime(stage, p)), machine.memory_bytes, CPU_MARGIN)
            for p in phases
        ]
    needs = [
        Need(stage, p.name, "GPU 0", _sum(p.device, {} if "runtime" in p.device else {"runtime": GPU_RUNTIME}),
             machine.gpu_bytes, GPU_MARGIN)
        for p in phases
    ]  # fmt: skip
    most = max((p.host for p in phases), key=lambda parts: sum(parts.values()))
    parts = _sum(most, host or {}, {"runtime": 4 * IMPORTS[stage]})  # CUDA's libraries are resident too
    return [*needs, Need(stage, "all", "host memory", parts, machine.memory_bytes, GPU_MARGIN)]


def _cpu_runtime(stage: str, phase: Phase) -> dict[str, float]:
    return {"runtime": IMPORTS[stage] + (0 if "runtime" in phase.device else CPU_RUNTIME)}


def _sum(*parts: dict[str, float]) -> dict[str, float]:
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    return {kind: sum(part.get(kind, 0) for part in parts) for kind in kinds}
