"""What the check runs on: card, versions, and which code."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PACKED = ROOT / "tests" / "gpu" / "packed"
STAMP = PACKED / "packed.json"
CODE = ("src", "benchmarks", "tests/gpu", "configs")
PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers", "trl", "liger-kernel", "triton")


def code_hash() -> str:
    """sha256 over the files that the check runs, so that a machine without git knows whether they are a commit's."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*")):
            # Results of a check are written beside its code; they change nothing of it.
            if path.suffix in (".py", ".sh", ".yaml") and PACKED not in path.parents:
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git_commit() -> str | None:
    """The checkout's commit, marked where something is not in it; None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *CODE)
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def commit() -> str | None:
    """git's own word, or, on a machine without it, that of the pack, if the code is still what was packed."""
    if found := git_commit():
        return found
    if not STAMP.is_file():
        return None
    packed = json.loads(STAMP.read_text())
    return packed["commit"] if packed["code"] == code_hash() else f"{packed['commit']} with changes"


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts() -> dict[str, Any]:
    """The machine in words; nothing that names it."""
    import torch

    found: dict[str, Any] = {"card": "none: on the CPU", "commit": commit(), "python": platform.python_version()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found["card"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {card.multi_processor_count} processors"
        found["CUDA"] = torch.version.cuda
    return found | {name: version(name) for name in PACKAGES}
