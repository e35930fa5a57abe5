"""Where an artefact came from: the commit, the packages and the machine, and the manifest that says so."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from primekd.foundation.manifests import MANIFEST
from primekd.foundation.storage import hash_file, hash_json, project_root, write_json


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout; both None where there is no git. Results that are written into tracked
    places (logs/, models/, benchmarks/results/, tables in README and docs/) do not make it dirty: the flag says whether
    the code and the configuration are those of the commit."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=project_root(), capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    places = ("--", ".", *(f":!{name}" for name in ("logs", "models", "README.md", "benchmarks/results", "docs")))
    # Not `git status`: it counts a notebook as changed whose size changed, whatever the filter makes of it.
    changed = git("diff", "--name-only", "HEAD", *places), git("ls-files", "--others", "--exclude-standard", *places)
    return {"commit": commit, "dirty": None if commit is None or None in changed else any(changed)}


def requirement_pins() -> dict[str, str]:
    """Package name -> version for every `name==version` line of what `make setup` installs; {} without those files. The
    pins of the engine llamacpp count where it is installed."""
    names = ["requirements.txt", "requirements-no-deps.txt"]
    names += ["requirements-llamacpp.txt"] if importlib.util.find_spec("llama_cpp") else []
    text = "\n".join(path.read_text() for name in names if (path := project_root() / name).is_file())
    return dict(re.findall(r"^([A-Za-z0-9_.\-]+)(?:\[[^\]]*\])?==([^\s;#]+)", text, re.M))


def package_versions(names: Iterable[str] | None = None) -> dict[str, str | None]:
    """Installed version of each package, None where it is absent; by default every pinned one."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in (requirement_pins() if names is None else names)}


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this machine; nothing that names the machine itself."""
    import psutil

    file = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", file.read_text() if file.is_file() else "", re.M)
    facts: dict[str, Any] = {
        "cpu": named[1] if named else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            facts["gpus"] = done.stdout.strip().splitlines()
    return facts


def environment() -> dict[str, Any]:
    """What every manifest says of the machine and the code that made an artefact."""
    return {"git": git_state(), "packages": package_versions(), "hardware": hardware()}


def write_manifest(
    folder: Path, kind: str, inputs: dict[str, Any], outputs: Iterable[Path], name: str = MANIFEST, **facts: Any
) -> None:
    """Writes a stage's manifest beside its outputs, which are files inside `folder`; it is written last, so its
    presence means a finished stage. `inputs`: everything that the outputs depend on; its hash decides whether the stage
    has to run again. `name`: of the manifest's file, where several stages have outputs in the folder. `facts`: what
    else is worth knowing; `environment` where it is not that of this process. Raises ValueError without outputs."""
    names = {Path(p).relative_to(folder).as_posix(): hash_file(p) for p in outputs}
    if not names:
        raise ValueError(f"a manifest of {kind} without outputs")
    manifest = {"kind": kind, "inputs": inputs, "inputs_sha256": hash_json(inputs), "outputs": names}
    facts = facts if "environment" in facts else facts | {"environment": environment()}
    write_json(Path(folder) / name, manifest | facts)
