"""A plan: what a profile's run needs, put together, and as text for people."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from primekd.capture.primings import can_speak, require_placeable
from primekd.config import Profile
from primekd.models.shapes import GIB, Model, student_model, teacher_model
from primekd.planning import advice
from primekd.planning.disk import CodecCost, Storage, codec_costs, storage
from primekd.planning.stages import CPU_MARGIN, GPU_MARGIN, Need, machine_name, memory_needs, on_machine
from primekd.planning.tokens import Lengths, Stage, find_lengths, stages
from primekd.training.movement import movement_warning

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
    findings: list[advice.Finding]

    @property
    def works(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For a machine to read: as the fields, with totals and verdicts."""
        needs = [asdict(n) | {"total": n.total, "asked": n.asked, "fits": n.fits} for n in self.needs]
        return asdict(self) | {"needs": needs, "works": self.works}


def make_plan(profile: Profile) -> Plan:
    """Plans a profile's run. Raises UserError if a model's shape, its bits or the lengths of prompts are not known, or
    the teacher's chat template has no place for a priming text; says what to write where."""
    if can_speak(profile):
        require_placeable(profile)
    known, profile = "this machine" if profile.hardware is None else "stated in the profile", on_machine(profile)
    teacher, student, lengths = teacher_model(profile), student_model(profile), find_lengths(profile)
    parts, needs, machine = stages(profile, lengths), memory_needs(profile, lengths), profile.hardware
    costs = codec_costs(profile, lengths, parts[:2])
    disk = storage(profile, teacher, student, costs)
    errors = [*advice.memory_errors(profile, lengths, needs), *advice.setting_errors(profile, lengths)]
    findings = [advice.Finding("error", text) for text in errors]
    findings += [*advice.codec_findings(profile, costs), *advice.disk_findings(profile, disk, costs)]
    if small := movement_warning(profile, student.shape):
        findings.append(advice.Finding("warning", small))
    memory = f"{machine.memory_gib:.0f} GiB of memory a node"
    margin = f"{CPU_MARGIN:.0%}, above the largest shortfall against measured runs (docs/plan.md)."
    if machine.gpus_per_node:
        memory = f"{machine.gpu_memory_gib:.1f} GiB a GPU, {memory}"
        margin = f"{GPU_MARGIN:.0%} of all but weights and cache (checked on a CPU, docs/plan.md; not on a GPU)."
    return Plan(
        profile=profile.name,
        description=profile.description,
        machine_text=f"{machine_name(machine)}, {memory} ({known})",
        margin_text=f"Margin: {margin}",
        models={"Teacher": _model_text(profile, teacher), "Student": _model_text(profile, student)},
        lengths=lengths,
        needs=needs,
        codecs=costs,
        storage=disk,
        disk_bytes=machine.disk_gib * GIB if machine.disk_gib else None,
        stages=parts,
        findings=sorted(findings, key=lambda finding: list(MARKS).index(finding.level)),
    )


def _model_text(profile: Profile, model: Model | None) -> str:
    if model is None:
        return f"{profile.teacher.api.model} behind {profile.teacher.api.base_url}"
    shape = ", ".join(f"{name} {value}" for name, value in asdict(model.shape).items() if name != "tied")
    return f"{model.reference}, {model.shape.weights / 1e9:.4g}e9 weights, {model.format}; {shape}"


def plan_text(plan: Plan) -> str:
    """All tables of a plan and what it found."""
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
    title = f"Memory at its peak, GiB. {batch} {plan.margin_text}"
    other = "  other: heads in float32, rows of a shard, files being read, imports, CUDA's context and kernels."
    return [title, *_table(rows, left=(0, 1, 2)), other]


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
