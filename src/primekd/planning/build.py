"""A plan: what a profile's run needs, put together."""

from dataclasses import asdict, dataclass
from typing import Any

from primekd.capture.primings import can_speak, require_placeable
from primekd.config import Profile
from primekd.planning.advice import (
    Finding,
    codec_findings,
    disk_findings,
    memory_findings,
    placement_notes,
    setting_findings,
    spending_findings,
)
from primekd.planning.disk import CodecCost, Storage, codec_costs, storage
from primekd.planning.machine import GIB, Machine, find_machine
from primekd.planning.movement import movement_findings
from primekd.planning.rates import Duration, durations
from primekd.planning.stages import CPU_MARGIN, GPU_MARGIN, Need, gpus_used, memory_needs
from primekd.planning.tokens import Lengths, Stage, find_lengths, stages
from primekd.planning.weights import Model, student_model, teacher_model


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
    durations: list[Duration]
    findings: list[Finding]

    @property
    def works(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For a machine to read: as the fields, with totals and verdicts."""
        values = asdict(self) | {"works": self.works}
        for row, need in zip(values["needs"], self.needs, strict=True):
            row |= {"total": need.total, "asked": need.asked, "fits": need.fits}
        return values


def make_plan(profile: Profile) -> Plan:
    """Plans a profile's run; nothing is downloaded and no model is loaded.

    Raises:
        UserError: a model's shape, its bits or the lengths of prompts are not known, or the teacher's chat template has
            no place for a priming text; says what to write where.
    """
    if can_speak(profile):
        require_placeable(profile)
    machine, teacher, student = find_machine(profile), teacher_model(profile), student_model(profile)
    lengths = find_lengths(profile)
    parts = stages(profile, lengths)
    needs = memory_needs(profile, machine, lengths)
    costs = codec_costs(profile, teacher.shape if teacher else None, lengths, parts[:2])
    disk = storage(profile, teacher, student, costs)
    used = {stage: gpus_used(needs, stage) for stage in ("capture", "distill", "assess")}
    findings = [
        *memory_findings(profile, machine, lengths, needs),
        *setting_findings(profile, machine, lengths),
        *codec_findings(profile, costs),
        *disk_findings(profile, machine, disk, costs),
        *spending_findings(profile, parts[:2]),
        *movement_findings(profile, student.shape),
        *placement_notes(profile, machine, needs),
    ]
    return Plan(
        profile=profile.name,
        description=profile.description,
        machine_text=_machine_text(machine),
        margin_text=_margin_text(machine),
        models={"Teacher": _model_text(profile, teacher), "Student": _model_text(profile, student)},
        lengths=lengths,
        needs=needs,
        codecs=costs,
        storage=disk,
        disk_bytes=machine.disk_bytes,
        stages=parts,
        durations=durations(profile, machine, parts, used | {"held-out": used["capture"]}),
        findings=sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level)),
    )


def _machine_text(machine: Machine) -> str:
    known = "stated in the profile" if machine.stated else "this machine"
    gpus = f", {machine.gpu_bytes / GIB:.1f} GiB a GPU" if machine.gpus else ""
    return f"{machine.name}{gpus}, {machine.memory_bytes / GIB:.0f} GiB of memory a node ({known})"


def _margin_text(machine: Machine) -> str:
    if machine.gpus:
        return f"Margin: {GPU_MARGIN:.0%} of all but weights and cache (checked on a CPU, docs/plan.md; not on a GPU)."
    return f"Margin: {CPU_MARGIN:.0%}, above the largest shortfall against measured runs (docs/plan.md)."


def _model_text(profile: Profile, model: Model | None) -> str:
    if model is None:
        return f"{profile.teacher.api.model} behind {profile.teacher.api.base_url}"
    shape = model.shape
    return (
        f"{model.reference}, {shape.weights / 1e9:.4g}e9 weights, {model.format}; {shape.layers} layers, hidden "
        f"{shape.hidden}, {shape.heads} heads, {shape.kv_heads} key-value heads of {shape.head_dim}, vocabulary "
        f"{shape.vocab}"
    )
