"""The files of benchmarks/results/: one JSON a part, with what made it."""

from pathlib import Path
from typing import Any

import torch

from primekd.foundation import git_state, hardware, now, package_versions, read_json, write_json

WHOLE = "whole.json"  # how long the last run of all parts took
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "llama_cpp_python", "trl")


def write_part(folder: Path, part: str, quick: bool, seconds: float, found: dict[str, Any]) -> None:
    """Writes <part>.json: when, on what, how long, and what was found. Nothing in it names the machine."""
    facts = {
        "part": part,
        "quick": quick,
        "end": now(),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "hardware": hardware(),
        "packages": package_versions(PACKAGES),
        "git": git_state(),
    }
    write_json(folder / f"{part}.json", facts | {"found": found})


def read_part(folder: Path, part: str) -> dict[str, Any] | None:
    """What <part>.json found; None where the part was not run."""
    path = folder / f"{part}.json"
    return read_json(path)["found"] if path.is_file() else None
