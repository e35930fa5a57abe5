"""What this machine can run: Python, packages against the pins, processor and GPUs, disk, engines, models."""

import importlib
import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass

from primekd.capture.primings import can_speak, require_placeable
from primekd.config import Profile, load_profile, profile_names
from primekd.foundation import UserError, hardware, output_root, package_versions, requirement_pins
from primekd.models import is_present, load_tokenizer, turn_end
from primekd.report.shown import Shown, show_sentences
from primekd.teachers.api.own_server import NEEDED
from primekd.teachers.packages import PACKAGES, WITHOUT_FLASH_ATTN, explain_import_failure, is_installed, missing_cuda

OLDEST_PYTHON = (3, 11)
NEEDED_GIB = 5  # for the pocket profile: dequantised models, signals, adapters


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `level`: ok, warning (something will not work), error (nothing will)."""

    topic: str
    level: str
    text: str


def check_packages() -> list[Finding]:
    pins, installed = requirement_pins(), package_versions()
    if not pins:
        return [Finding("packages", "warning", "requirements.txt is missing: nothing to compare with")]
    # A build tag such as +cpu is no drift.
    drifted = [name for name, pin in pins.items() if (installed[name] or "").split("+")[0] != pin.split("+")[0]]
    fix = "{0} is {1}, the pin is {2}: pip install {0}=={2}".format
    found = [Finding("package", "warning", fix(n, installed[n] or "not installed", pins[n])) for n in drifted]
    return found or [Finding("packages", "ok", f"all {len(pins)} are the pinned versions")]


def check_machine() -> list[Finding]:
    facts, root = hardware(), next(p for p in (output_root(), *output_root().parents) if p.exists())
    gpus, memory, free = facts.get("gpus"), facts["memory_gib"], shutil.disk_usage(root).free / 2**30
    level = {True: "ok", False: "warning"}
    return [
        Finding("processor", "ok", f"{facts['cpu']}, {facts['cores']} cores"),
        Finding("memory", level[memory >= 7], f"{memory} GiB (pocket needs about 7)"),
        Finding("GPU", "ok", "; ".join(gpus) if gpus else "none: the profiles ci and pocket run without one"),
        Finding("disk", level[free >= NEEDED_GIB], f"{free:.0f} GiB free (pocket needs about {NEEDED_GIB})"),
    ]


def check_engine(engine: str) -> Finding:
    """Whether an engine's package imports, and what to do if not. One compiled on import may take minutes at first."""
    package = PACKAGES[engine]
    if package.optional and not is_installed(engine):
        return Finding("engine", "ok", f"{engine}: optional, not installed ({package.fix})")
    if package.cuda and (reason := missing_cuda()):
        return Finding("engine", "warning", f"{engine} is installed and cannot run: {reason}")
    try:
        first, *_ = [importlib.import_module(module) for module in (package.module, *package.more)]
    except Exception as error:  # a broken build may raise anything when it is imported
        return Finding("engine", "warning", explain_import_failure(engine, error))
    slow = engine == "exllamav2" and importlib.util.find_spec("flash_attn") is None
    lacking = f", {WITHOUT_FLASH_ATTN}" if slow else ""
    return Finding("engine", "ok", f"{engine} {getattr(first, '__version__', '')}{lacking}")


def check_profile_engines(profile: Profile) -> list[Finding]:
    """Whether the engine that a profile names, and the package behind a 4-bit student, can run here."""
    findings = []
    own_server = profile.teacher.api is not None and profile.teacher.api.own_server
    more = ["bitsandbytes"] * bool(profile.student.quantization) + ["llamacpp"] * own_server
    for engine in [profile.teacher.engine, *more]:
        package, level, said = PACKAGES[engine], "warning", "is here"
        lacking = own_server and engine == "llamacpp" and not all(map(importlib.util.find_spec, NEEDED))
        if lacking or not is_installed(engine):
            said = f"is not installed{', or its server is not' * lacking}: {package.fix}"
        elif package.cuda and (reason := missing_cuda()):
            said = f"cannot run here: {reason}"
        else:
            level = "ok"
        findings.append(Finding(profile.name, level, f"engine {engine} {said}"))
    return findings


def show_profile(profile: Profile) -> Shown:
    """`check_profile` for a notebook."""
    return show_sentences([f"{finding.level}: {finding.text}" for finding in check_profile(profile)])


def check_profile(profile: Profile) -> list[Finding]:
    """Whether a profile's engine and models are here."""
    findings = check_profile_engines(profile)
    student = profile.student  # from scratch it has a tokenizer alone, and perhaps a model whose layers it begins with
    models = [("teacher", profile.teacher.model, profile.teacher.engine != "api")]
    models.append(("student", student.model or student.tokenizer, student.model is not None))
    models += [("layers of the student", student.layers_of, True)] if student.layers_of else []
    for role, reference, weights in models:
        try:
            here = is_present(reference, weights=weights)
        except UserError as error:
            findings.append(Finding(profile.name, "warning", str(error)))
            continue
        fix = "inference/get_models.ipynb"
        if role == "teacher" and profile.prepare:
            fix = f"primekd prepare-teacher --profile {profile.name}"
        text = f"{role} {reference} is {'here' if here else f'missing: run {fix}'}"
        findings.append(Finding(profile.name, "ok" if here else "warning", text))
    return findings + check_templates(profile)


def check_templates(profile: Profile) -> list[Finding]:
    """Whether the teacher's chat template, where it is here, takes the priming texts, and how it ends a response."""
    try:
        if not can_speak(profile):
            return []
        require_placeable(profile)
        tokenizer = load_tokenizer(profile.teacher)
        end = turn_end(tokenizer)
    except UserError as error:
        return [Finding(profile.name, "warning", str(error))]
    name = tokenizer.convert_ids_to_tokens(end.token)
    if end.written:
        return [Finding(profile.name, "ok", f"the teacher's answers end with {name}")]
    text = f"the teacher's chat template writes no control token behind an answer: {name}, its end of text, does"
    return [Finding(profile.name, "warning", text)]


def examine(profile: str | None = None) -> list[Finding]:
    """All findings; models of one profile, or of every profile that can be read."""
    python = Finding("Python", "ok", platform.python_version())
    if sys.version_info < OLDEST_PYTHON:
        needed = f"primekd needs {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        python = Finding("Python", "error", f"{python.text}: {needed}")
    findings = [python, *check_packages(), *check_machine(), *map(check_engine, PACKAGES)]
    for name in [profile] if profile else profile_names():
        try:
            findings += check_profile(load_profile(name))
        except UserError as error:
            findings.append(Finding("profile", "error" if profile else "warning", str(error)))
    return findings
