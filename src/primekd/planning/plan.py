"""A plan: what a profile's run needs, as text too; what will not fit, with the one change that would make it fit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from primekd.capture.primings import can_speak, require_placeable
from primekd.config import ExLlamaConfig, Profile, TrainConfig, VllmConfig
from primekd.foundation.errors import UserError
from primekd.models.shapes import GIB, Model, Shape, student_model, teacher_model
from primekd.planning.amounts import CodecCost, Lengths, Stage, Storage, codec_costs, find_lengths, stages, storage
from primekd.planning.memory import EXL2_CACHE
from primekd.planning.stages import CPU_MARGIN, GPU_MARGIN, Need, machine_name, memory_needs, on_machine

BATCHES = {"capture": "teacher.batch_size", "distill": "train.micro_batch_size", "assess": "assess.batch_size"}
ADAM_STEP = 3.2  # largest change of one weight in units of the rate: (1 - 0.9) / sqrt(1 - 0.999)
SMALL = 0.01  # of a layer's output


@dataclass(frozen=True)
class Finding:
    """`level`: error (the run would stop), warning (it would end, and be worth little), note (worth knowing)."""

    level: str
    text: str


def largest_movement(train: TrainConfig, items: int, weights: int) -> float:
    """A bound on the norm of what all steps add to the adapter of `weights` numbers; infinite for SGD without clipping,
    and for AdamW without any. A cosine has half its peak on average; SGD moves by rate times clipped gradient, 1 / (1 -
    momentum) times; AdamW moves every weight by about its rate."""
    rates = 0.5 * max(train.rates) * train.epochs * math.ceil(items / train.batch_size)
    if train.optimizer == "adamw":
        return rates * ADAM_STEP * math.sqrt(weights) if weights else math.inf
    return rates * train.max_grad_norm / (1 - train.momentum) if train.max_grad_norm else math.inf


def movement_warning(profile: Profile, shape: Shape) -> str | None:
    """Said where the largest possible update leaves every layer's output as it was, but for a hundredth. LoRA's B
    starts at zero and its A with variance 1 / (3 D), so an input of norm sqrt(D) changes a layer's output by at most
    alpha / rank * |B| * sqrt(rank / 3), itself of norm about sqrt(D)."""
    lora = profile.student.lora
    bound = largest_movement(profile.train, profile.data.train_items, shape.lora_weights(lora))
    share = lora.alpha / lora.rank * bound * math.sqrt(lora.rank / 3 / shape.hidden)
    if share >= SMALL:
        return None
    return (
        f"Training moves all LoRA weights together by {bound:.2g} at most (norm), and so a layer's output by about "
        f"{share:.1g} of itself: students will be the control. Raise train.learning_rate or the number of steps "
        "(smaller train.batch_size, more epochs), or switch clipping off (train.max_grad_norm: 0)."
    )


def memory_errors(profile: Profile, lengths: Lengths, needs: list[Need]) -> Iterator[str]:
    """One sentence for each stage that does not fit, with the smallest change that makes it fit."""
    for stage in dict.fromkeys(need.stage for need in needs if not need.fits):
        worst = max((need for need in needs if need.stage == stage), key=lambda need: need.asked / need.capacity)
        what = "GPUs" if worst.place.startswith("GPU") else "a machine"
        alone = what == "GPUs" and stage == "capture" and profile.teacher.engine in ("transformers", "llamacpp")
        spread = "the engine exllamav2 or vllm, which spread a teacher over GPUs, or " if alone else ""
        larger = f"No setting of the profile is enough: use {spread}{what} of {math.ceil(worst.asked / GIB)} GiB."
        remedy = find_remedy(profile, lengths, stage) or larger
        size, has = worst.asked / GIB, worst.capacity / GIB
        takes = f"{worst.phase} takes {size:.1f} GiB with its margin on {worst.place}, which has {has:.1f}"
        yield f"{stage} does not fit: {takes}. {remedy}"


def find_remedy(profile: Profile, lengths: Lengths, stage: str) -> str | None:
    """The first single change of a profile or its machine after which all of a stage fits, as a sentence."""
    for sentence, path, value in _changes(profile, stage):
        try:
            needs = memory_needs(_changed(profile, path, value), lengths)
        except UserError:
            continue
        if all(need.fits for need in needs if need.stage == stage):
            return sentence or f"Set {path} to {value}."
    return None


def _changed(part: Any, path: str, value: Any) -> Any:
    """A copy of a profile, or of a section of one, with another value at a dotted path."""
    name, _, rest = path.partition(".")
    return part.model_copy(update={name: _changed(getattr(part, name), rest, value) if rest else value})


def _changes(profile: Profile, stage: str) -> Iterator[tuple[str, str, Any]]:
    """(sentence, empty for "Set PATH to VALUE."; path of a setting; its new value), the smallest change first."""
    size, engine = attrgetter(BATCHES[stage])(profile), profile.teacher.engine
    yield from (("", BATCHES[stage], size >> shift) for shift in range(1, size.bit_length()))
    if stage == "distill" and profile.student.quantization is None:
        yield "", "student.quantization", "nf4"
    if stage == "capture" and engine == "exllamav2":
        own, kinds = profile.teacher.exllamav2 or ExLlamaConfig(), list(EXL2_CACHE)
        for kind in kinds[kinds.index(own.cache_type) + 1 :]:
            changed = own.model_copy(update={"cache_type": kind})
            yield f"Set teacher.exllamav2.cache_type to {kind}.", "teacher.exllamav2", changed
        yield "Leave teacher.exllamav2.gpu_split out.", "teacher.exllamav2", own.model_copy(update={"gpu_split": None})
        for more in range(profile.hardware.gpus_per_node + 1, 17):
            yield f"Use {more} such GPUs in one node.", "hardware.gpus_per_node", more
    if stage == "capture" and engine == "vllm":
        own = profile.teacher.vllm or VllmConfig()
        for stages in range(own.pipeline_parallel + 1, 9):
            text = f"Set teacher.vllm.pipeline_parallel to {stages} ({stages * own.tensor_parallel} GPUs in all)."
            yield text, "teacher.vllm", own.model_copy(update={"pipeline_parallel": stages})


def setting_errors(profile: Profile, lengths: Lengths) -> Iterator[str]:
    """Settings that do not go together: too few GPUs, contexts that are too short."""
    teacher, machine = profile.teacher, profile.hardware
    gpus, longest = machine.nodes * machine.gpus_per_node, lengths.longest_prompt + lengths.most
    if teacher.engine in ("exllamav2", "llamacpp", "vllm") and longest > teacher.context_tokens:
        yield f"The longest prompt and response have {longest} tokens: set teacher.context_tokens to that or more."
    if teacher.engine == "vllm":
        own = teacher.vllm or VllmConfig()
        used = own.tensor_parallel * own.pipeline_parallel
        if used > gpus:
            yield f"teacher.vllm asks for {used} GPUs and there are {gpus}: use more nodes, or split it less."
        elif used > machine.gpus_per_node and own.backend != "ray":
            yield "A teacher over several nodes needs teacher.vllm.backend: ray."
    if 0 < gpus < profile.launch.processes:
        yield f"launch.processes is {profile.launch.processes} and there are {gpus} GPUs: lower it."


def codec_findings(profile: Profile, costs: list[CodecCost]) -> list[Finding]:
    """The smallest codec that serves the loss at its temperature, and whether the chosen one does."""
    loss = profile.loss
    aim = f"{loss.divergence} at temperature {loss.temperature:g}, alpha {loss.alpha:g}"
    best = next((cost for cost in costs if cost.refusal is None), None)
    chosen = next((cost for cost in costs if cost.chosen), None)
    reason = chosen.refusal if chosen else "the engine does not offer what signals.codec asks for"
    if best is None:
        return [Finding("error", f"No codec of this engine serves {aim}: {reason.rstrip('.')}.")]
    note = Finding("note", f"The smallest codec that serves {aim} is {best.name} ({best.total / GIB:.2f} GiB in all).")
    text = f"The codec does not serve {aim}: {(reason or '').rstrip('.')}. Set signals.codec to {best.name}."
    return [note, Finding("error", text)] if reason else [note]


def disk_findings(profile: Profile, parts: list[Storage], costs: list[CodecCost]) -> list[Finding]:
    """Whether the disk holds everything, at the expected lengths and at the token limit."""
    total, free = sum(part.bytes for part in parts), (profile.hardware.disk_gib or math.inf) * GIB
    others = total - sum(cost.total for cost in costs if cost.chosen)
    most = others + sum(cost.most for cost in costs if cost.chosen)
    saved = [cost.name for cost in costs if cost.refusal is None and others + cost.total <= free]
    remedy = f"Set signals.codec to {saved[-1]}." if saved else f"Free {(total - free) / GIB:.0f} GiB more."
    small = f"The disk is too small: {total / GIB:.1f} GiB are needed and {free / GIB:.1f} are free. {remedy}"
    longest = f"Were every response at the limit, the disk would not do: {most / GIB:.0f} of {free / GIB:.0f} GiB."
    return [Finding("error", small)] if total > free else [Finding("note", longest)] if most > free else []


KINDS = ("weights", "KV cache", "activations", "logits", "optimiser")  # everything else is one column
MARKS = {"error": "WILL NOT WORK", "warning": "WARNING", "note": "note"}


@dataclass(frozen=True)
class Plan:
    """Everything that is printed. All sizes in bytes."""

    profile: str
    description: str
    machine_text: str
    margin_text: str
    models: dict[str, str]
    lengths: Lengths
    needs: list[Need]
    codecs: list[CodecCost]
    storage: list[Storage]
    disk_bytes: float | None
    stages: list[Stage]
    findings: list[Finding]

    @property
    def works(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For a machine to read: as the fields, with totals and verdicts."""
        needs = [asdict(n) | {"total": n.total, "asked": n.asked, "fits": n.fits} for n in self.needs]
        return asdict(self) | {"needs": needs, "works": self.works}


def make_plan(profile: Profile) -> Plan:
    """Plans a profile's run. Raises UserError if a model's shape, its bits or the lengths of prompts are not known, the
    teacher's chat template has no place for a priming text, or the student is made from scratch; says what to do."""
    if profile.student.from_scratch:
        other = "Of a student from scratch `primekd run` says how fast it learns and how much time is left."
        raise UserError(f"{profile.name}: plans know students that learn an adapter from stored signals alone. {other}")
    if can_speak(profile):
        require_placeable(profile)
    known, profile = "this machine" if profile.hardware is None else "stated in the profile", on_machine(profile)
    teacher, student, lengths = teacher_model(profile), student_model(profile), find_lengths(profile)
    parts, needs, machine = stages(profile, lengths), memory_needs(profile, lengths), profile.hardware
    costs = codec_costs(profile, lengths, parts[:2])
    disk = storage(profile, teacher, student, costs)
    errors = [*memory_errors(profile, lengths, needs), *setting_errors(profile, lengths)]
    findings = [Finding("error", text) for text in errors]
    findings += [*codec_findings(profile, costs), *disk_findings(profile, disk, costs)]
    if small := movement_warning(profile, student.shape):
        findings.append(Finding("warning", small))
    memory = f"{machine.memory_gib:.0f} GiB of memory a node"
    margin = f"{CPU_MARGIN:.0%}, above the largest shortfall against measured runs (docs/plan.md)."
    if machine.gpus_per_node:
        memory = f"{machine.gpu_memory_gib:.1f} GiB a GPU, {memory}"
        margin = f"{GPU_MARGIN:.0%} of all but weights and cache (checked on a CPU, docs/plan.md; not on a GPU)."
    return Plan(
        profile=profile.name, description=profile.description, lengths=lengths, needs=needs, codecs=costs, storage=disk,
        machine_text=f"{machine_name(machine)}, {memory} ({known})", margin_text=f"Margin: {margin}", stages=parts,
        models={"Teacher": _model_text(profile, teacher), "Student": _model_text(profile, student)},
        disk_bytes=machine.disk_gib * GIB if machine.disk_gib else None,
        findings=sorted(findings, key=lambda finding: list(MARKS).index(finding.level)),
    )  # fmt: skip


def _model_text(profile: Profile, model: Model | None) -> str:
    if model is None:
        return f"{profile.teacher.api.model} behind {profile.teacher.api.base_url}"
    shape = ", ".join(f"{name} {value}" for name, value in asdict(model.shape).items() if name != "tied")
    return f"{model.reference}, {model.shape.weights / 1e9:.4g}e9 weights, {model.format}; {shape}"


def plan_text(plan: Plan) -> str:
    parts = [f"Plan for {plan.profile}: {plan.description}", f"Machine: {plan.machine_text}"]
    parts += [f"{role}: {text}" for role, text in plan.models.items()]
    found = [f"{MARKS[f.level]}: {f.text}" for f in plan.findings] or ["Everything fits."]
    return "\n".join([*parts, "", *_memory(plan), "", *_disk(plan), "", *_time(plan), "", *found])


def _table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Aligned columns; those in `left` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    styles = [f"{'<' if i in left else '>'}{width}" for i, width in enumerate(widths)]
    return ["  " + "  ".join(map(format, row, styles)).rstrip() for row in rows]


def _gib(value: float) -> str:
    size = value / GIB
    digits = f",.{0 if size >= 1000 else 1 if size >= 10 else 2}f" if size >= 0.1 else ".1g"
    return "–" if not value else format(size, digits) if size >= 1e-4 else "<0.0001"


def _memory(plan: Plan) -> list[str]:
    rows = [["stage", "phase", "where", *KINDS, "other", "total", "+ margin", "there is", ""]]
    for _, group in groupby(plan.needs, key=lambda need: (need.stage, need.phase, need.parts)):
        need, *others = group  # neighbouring GPUs with equal contents are one row
        place = f"{need.place}-{others[-1].place.removeprefix('GPU ')}" if others else need.place
        kinds = [need.parts.get(kind, 0) for kind in KINDS]
        other = sum(size for kind, size in need.parts.items() if kind not in KINDS)
        sizes = map(_gib, (*kinds, other, need.total, need.asked, need.capacity))
        rows.append([need.stage, need.phase, place, *sizes, "fits" if need.fits else "TOO LARGE"])
    batch = f"For prompts of {plan.lengths.longest_prompt} tokens and responses of {plan.lengths.most}, the longest."
    other = "  other: heads in float32, rows of a shard, files being read, imports, CUDA's context and kernels."
    return [f"Memory at its peak, GiB. {batch} {plan.margin_text}", *_table(rows, left=(0, 1, 2)), other]


def _disk(plan: Plan) -> list[str]:
    rows = [["codec", "bytes a token", "a strategy", "in all", "at the limit", "serves the loss"]]
    for cost in plan.codecs:
        name = f"{cost.name}{' (this profile)' if cost.chosen else ''}"
        sizes = map(_gib, (cost.strategy, cost.total, cost.most))
        rows.append([name, f"{cost.token:,.0f}", *sizes, "no" if cost.refusal else "yes"])
    there = f"{_gib(plan.disk_bytes)} free" if plan.disk_bytes else "free space not stated"
    parts = [[part.what, _gib(part.bytes), part.note] for part in plan.storage]
    parts.append(["all", _gib(sum(part.bytes for part in plan.storage)), there])
    return ["Disk, GiB", *_table(rows), "", *_table([["on disk", "GiB", ""], *parts], left=(0, 2))]


def _time(plan: Plan) -> list[str]:
    rows, lengths = [["stage", "times", "items", "tokens", "at most", "tokens/s", "hours", "rate"]], plan.lengths
    for s in plan.stages:
        counts = [str(s.runs), str(s.items), f"{s.response_tokens:,.0f}", f"{s.most:,.0f}"]
        speed = [f"{s.tokens_per_second:,.1f}", f"{s.hours:.2f}"] if s.hours else ["–", "–"]
        rows.append([s.name, *counts, *speed, s.rate_source.split(":")[0]])
    timed = [s for s in plan.stages if s.hours]
    name = "all" if len(timed) == len(plan.stages) else "all that is known"
    rows.append([name, *[""] * 5, f"{sum(s.hours for s in timed):.2f}" if timed else "–", ""])
    return [
        f"Tokens and time. Responses: {lengths.response:.0f} tokens ({lengths.response_source}). "
        f"Prompts: {lengths.prompt:.0f} ({lengths.prompt_source}).",
        *_table(rows),
        "  Hours are those of all runs of a stage one after the other.",
        *dict.fromkeys(f"  {s.rate_source}" for s in timed),
    ]
