"""What a plan finds: what will not fit and the one change that would make it fit, and what is worth knowing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from primekd.config import Profile
from primekd.config.teacher import ExLlamaConfig, VllmConfig
from primekd.foundation.errors import UserError
from primekd.models.shapes import GIB
from primekd.planning.disk import CodecCost, Storage
from primekd.planning.memory import EXL2_CACHE
from primekd.planning.stages import Need, memory_needs
from primekd.planning.tokens import Lengths

BATCHES = {"capture": "teacher.batch_size", "distill": "train.micro_batch_size", "assess": "assess.batch_size"}


@dataclass(frozen=True)
class Finding:
    """`level`: error (the run would stop), warning (it would end, and be worth little), note (worth knowing)."""

    level: str
    text: str


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
