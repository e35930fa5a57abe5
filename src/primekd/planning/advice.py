"""What a plan finds: what will not fit and the one change that would make it fit, and what is worth knowing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from primekd.config import Profile
from primekd.config.teacher import ExLlamaConfig, VllmConfig
from primekd.foundation.errors import UserError
from primekd.planning.disk import CodecCost, Storage, smallest_serving
from primekd.planning.engines import EXL2_CACHE
from primekd.planning.machine import GIB, Machine
from primekd.planning.stages import Need, gpus_used, memory_needs
from primekd.planning.tokens import Lengths, Stage


@dataclass(frozen=True)
class Finding:
    """`level`: error (the run would stop), warning (it would end, and be worth little), note (worth knowing)."""

    level: str
    text: str


def memory_findings(profile: Profile, machine: Machine, lengths: Lengths, needs: list[Need]) -> list[Finding]:
    """One error for each stage that does not fit, with the smallest change that makes it fit."""
    findings = []
    for stage in dict.fromkeys(need.stage for need in needs):
        short = [need for need in needs if need.stage == stage and not need.fits]
        if not short:
            continue
        worst = max(short, key=lambda need: need.asked / need.capacity)
        asked, has = worst.asked / GIB, worst.capacity / GIB
        remedy = find_remedy(profile, machine, lengths, stage) or _larger(worst, stage, profile)
        findings.append(
            Finding(
                "error",
                f"{stage} does not fit: {worst.phase} takes {asked:.1f} GiB with its margin on {worst.place}, which "
                f"has {has:.1f}. {remedy}",
            )
        )
    return findings


def _larger(worst: Need, stage: str, profile: Profile) -> str:
    size = math.ceil(worst.asked / GIB)
    if worst.place in ("process", "host memory"):
        return f"No setting of the profile is enough: use a machine with {size} GiB of memory."
    if stage == "capture" and profile.teacher.engine in ("transformers", "llamacpp"):
        return (
            "No setting of the profile is enough: use the engine exllamav2 or vllm, which spread a teacher over GPUs, "
            f"or a GPU of {size} GiB."
        )
    return f"No setting of the profile is enough: use GPUs of {size} GiB, or more of them."


def find_remedy(profile: Profile, machine: Machine, lengths: Lengths, stage: str) -> str | None:
    """The first single change of a profile or machine after which all of a stage fits, as a sentence."""
    for sentence, changed, place in _changes(profile, machine, stage):
        try:
            needs = [need for need in memory_needs(changed, place, lengths) if need.stage == stage]
        except UserError:
            continue
        if all(need.fits for need in needs):
            return sentence
    return None


def _changes(profile: Profile, machine: Machine, stage: str) -> Iterator[tuple[str, Profile, Machine]]:
    def with_section(section: str, **values) -> Profile:
        return profile.model_copy(update={section: getattr(profile, section).model_copy(update=values)})

    batches = {
        "capture": ("teacher", "batch_size"),
        "distill": ("train", "micro_batch_size"),
        "assess": ("assess", "batch_size"),
    }
    section, key = batches[stage]
    size = getattr(getattr(profile, section), key)
    for smaller in (size >> shift for shift in range(1, size.bit_length())):
        yield f"Set {section}.{key} to {smaller}.", with_section(section, **{key: smaller}), machine
    if stage == "distill" and profile.student.quantization is None:
        yield "Set student.quantization to nf4.", with_section("student", quantization="nf4"), machine
    if stage != "capture":
        return
    teacher = profile.teacher
    if teacher.engine == "exllamav2":
        settings = teacher.exllamav2 or ExLlamaConfig()
        for kind in list(EXL2_CACHE)[list(EXL2_CACHE).index(settings.cache_type) + 1 :]:
            changed = settings.model_copy(update={"cache_type": kind})
            yield f"Set teacher.exllamav2.cache_type to {kind}.", with_section("teacher", exllamav2=changed), machine
        if settings.gpu_split:
            changed = settings.model_copy(update={"gpu_split": None})
            yield "Leave teacher.exllamav2.gpu_split out.", with_section("teacher", exllamav2=changed), machine
        for more in range(machine.gpus_per_node + 1, 17):
            yield f"Use {more} such GPUs in one node.", profile, replace(machine, gpus_per_node=more)
    if teacher.engine == "vllm":
        settings = teacher.vllm or VllmConfig()
        for stages in range(settings.pipeline_parallel + 1, 9):
            gpus = stages * settings.tensor_parallel
            changed = settings.model_copy(update={"pipeline_parallel": stages})
            sentence = f"Set teacher.vllm.pipeline_parallel to {stages} ({gpus} GPUs in all)."
            yield sentence, with_section("teacher", vllm=changed), machine


def setting_findings(profile: Profile, machine: Machine, lengths: Lengths) -> list[Finding]:
    """Settings that do not go together: too few GPUs, contexts that are too short."""
    teacher, findings = profile.teacher, []
    longest = lengths.longest_prompt + lengths.most
    if teacher.engine in ("exllamav2", "llamacpp", "vllm") and longest > teacher.context_tokens:
        text = f"The longest prompt and response have {longest} tokens: set teacher.context_tokens to that or more."
        findings.append(Finding("error", text))
    if teacher.engine == "vllm" and machine.gpus:
        settings = teacher.vllm or VllmConfig()
        used = settings.tensor_parallel * settings.pipeline_parallel
        if used > machine.gpus:
            text = f"teacher.vllm asks for {used} GPUs and there are {machine.gpus}: use more nodes, or split it less."
            findings.append(Finding("error", text))
        elif used > machine.gpus_per_node and settings.backend != "ray":
            findings.append(Finding("error", "A teacher over several nodes needs teacher.vllm.backend: ray."))
    if machine.gpus and profile.launch.processes > machine.gpus:
        text = f"launch.processes is {profile.launch.processes} and there are {machine.gpus} GPUs: lower it."
        findings.append(Finding("error", text))
    return findings


def codec_findings(profile: Profile, costs: list[CodecCost]) -> list[Finding]:
    """The smallest codec that serves the loss, and whether the chosen one does."""
    loss = profile.loss
    aim = f"{loss.divergence} at temperature {loss.temperature:g}, alpha {loss.alpha:g}"
    best, chosen = smallest_serving(costs), next((cost for cost in costs if cost.chosen), None)
    if best is None:
        reason = chosen.refusal if chosen else "the engine does not offer what signals.codec asks for"
        return [Finding("error", f"No codec of this engine serves {aim}: {reason.rstrip('.')}.")]
    findings = []
    if chosen is None or chosen.refusal:
        reason = chosen.refusal if chosen else "the engine does not offer what signals.codec asks for"
        findings.append(
            Finding("error", f"The codec does not serve {aim}: {reason.rstrip('.')}. Set signals.codec to {best.name}.")
        )
    text = f"The smallest codec that serves {aim} is {best.name} ({best.total / GIB:.2f} GiB in all)."
    if best.name == "topk":
        text += " Its tail is one bucket, so its KL is a lower bound of the full one."
    if best.name == "sampled":
        text += " It is a random sample: no bias, and a noise that falls with signals.sampled_points."
    findings.append(Finding("note", text))
    top = next((cost for cost in costs if cost.name == "topk"), None)
    if (
        top
        and top.refusal
        and best.name != "text"
        and loss.divergence == "forward_kl"
        and "logits" in profile.teacher.offers
    ):
        text = (
            f"topk with signals.topk_temperature {loss.temperature!r} would do ({top.total / GIB:.2f} GiB), but "
            "it knows the other tokens as one bucket only, and the higher the temperature the more mass they have."
        )
        findings.append(Finding("note", text))
    return findings


def disk_findings(profile: Profile, machine: Machine, parts: list[Storage], costs: list[CodecCost]) -> list[Finding]:
    """Whether the disk holds everything, at the expected lengths and at the token limit."""
    if machine.disk_bytes is None:
        return []
    total, free = sum(part.bytes for part in parts), machine.disk_bytes
    chosen = next((cost for cost in costs if cost.chosen), None)
    most = total + (chosen.most - chosen.total if chosen else 0)
    if total <= free:
        if most <= free:
            return []
        text = (
            f"Were every response at the token limit, the disk would not do: {most / GIB:.0f} GiB of {free / GIB:.0f}."
        )
        return [Finding("note", text)]
    saved = [c for c in costs if c.refusal is None and chosen and total - chosen.total + c.total <= free]
    remedy = f"Set signals.codec to {saved[-1].name}." if saved else f"Free {(total - free) / GIB:.0f} GiB more."
    text = f"The disk is too small: {total / GIB:.1f} GiB are needed and {free / GIB:.1f} are free. {remedy}"
    return [Finding("error", text)]


def spending_findings(profile: Profile, captures: list[Stage]) -> list[Finding]:
    """What an API will charge, against the profile's cap."""
    api = profile.teacher.api
    if profile.teacher.engine != "api" or api is None:
        return []
    prompts = sum(stage.prompt_tokens for stage in captures) * api.usd_per_million_input / 1e6
    usd, most = (
        prompts + tokens * api.usd_per_million_output / 1e6
        for tokens in (sum(s.response_tokens for s in captures), sum(s.most for s in captures))
    )
    text = f"The API will charge about {usd:.2f} USD, at most {most:.2f}; api.max_spend_usd is {api.max_spend_usd:g}"
    if usd > api.max_spend_usd:
        return [Finding("error", f"{text}: raise it, or ask for fewer items.")]
    return [Finding("note", f"{text}.")]


def placement_notes(profile: Profile, machine: Machine, needs: list[Need]) -> list[Finding]:
    """What an owner of GPUs would want to know before paying for them."""
    notes, teacher = [], profile.teacher
    settings = teacher.exllamav2 or ExLlamaConfig()
    used = gpus_used(needs, "capture")
    if teacher.engine == "exllamav2" and machine.gpus and not settings.tensor_parallel and not settings.gpu_split:
        if 0 < used <= machine.gpus // 2:
            text = (
                f"The teacher fills {used} of {machine.gpus} GPUs: {machine.gpus // used} workers, each with "
                f"CUDA_VISIBLE_DEVICES set to {used} GPUs of its own, can capture at once and divide the hours."
            )
            notes.append(Finding("note", text))
        elif used > 1:
            notes.append(Finding("note", "Split by layers, the teacher's GPUs compute one after the other."))
    heads = {n.phase: n.parts.get("head", 0) for n in needs if n.stage == "distill"}
    if (head := max(heads.values(), default=0)) > 4 * GIB:
        text = (
            f"The codec hidden brings the teacher's head to the student's GPU for every micro-batch: {head / GIB:.1f} "
            "GiB there with its float32 copy and the student's own."
        )
        notes.append(Finding("note", text))
    return notes
