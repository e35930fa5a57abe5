"""The pocket model in the formats that GPU engines read, made on the spot, and the prompts that all are asked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import POCKET

from primekd.config import load_profile
from primekd.models import load_tokenizer, model_folder
from primekd.models.chat import build_prompt
from primekd.tasks.load import load_items
from primekd.teachers.packages import PACKAGES, explain_import_failure, is_installed, missing_cuda

EXL2_BITS = 6.0  # as in the published study
QUESTIONS = 16


def why_not(engine: str) -> str | None:
    """Why an engine cannot be tested on a GPU here, or None if it can; a broken build is no reason to skip."""
    if reason := missing_cuda():
        return reason
    if not is_installed(engine):
        return f"{engine} is not installed: {PACKAGES[engine].fix}"
    if engine == "llamacpp":
        import llama_cpp

        if not llama_cpp.llama_supports_gpu_offload():
            return "llama-cpp-python was built without CUDA: CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall …"
    return None


def require(engine: str) -> None:
    """Skips the test, with the reason, where an engine cannot run; fails where it is installed and does not import."""
    if reason := why_not(engine):
        pytest.skip(reason)
    try:
        __import__(PACKAGES[engine].module)
    except Exception as error:  # what is installed should work: this is a finding
        pytest.fail(explain_import_failure(engine, error))


def prompts() -> list[list[int]]:
    """Test questions of the pocket profile, unprimed, as token ids."""
    tokenizer = load_tokenizer(POCKET)
    items = load_items(load_profile("pocket"), "test")[:QUESTIONS]
    return [build_prompt(tokenizer, item.question) for item in items]


def exl2_folder(folder: Path) -> str:
    """Converts the pocket model with exllamav2's own converter; returns the model reference.

    Its rope is written where ExLlamaV2 looks for it: transformers 5 keeps it under another key.
    """
    source, target = folder / "source", folder / "exl2"
    source.mkdir()
    for file in model_folder(POCKET).iterdir():
        os.symlink(file, source / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    if rope.get("rope_type", "default") != "default":
        config.setdefault("rope_scaling", {k: v for k, v in rope.items() if k != "rope_theta"})
    (source / "config.json").unlink()
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "exllamav2.conversion.convert_exl2", "-i", source, "-o", folder / "work"]
    command += ["-cf", target, "-b", EXL2_BITS, "-hb", 6, "-l", 512, "-ml", 512]
    (folder / "work").mkdir()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode or not (target / "config.json").is_file():
        pytest.fail(f"exllamav2's converter stopped with code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    shutil.rmtree(folder / "work")
    return f"path:{target}"


def used_gib() -> float:
    """Memory in use on the first GPU, by every process: engines that run in a process of their own count too."""
    free, total = torch.cuda.mem_get_info(0)
    return (total - free) / 2**30
