"""Bringing an EXL2 model and its key-value cache onto the GPUs: format, versions, memory.

Written from the source of exllamav2 0.3.2.
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from primekd.config import TeacherConfig
from primekd.config.teacher import ExLlamaConfig
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import read_json
from primekd.models import model_folder, parse_reference
from primekd.teachers.packages import explain_import_failure, missing_cuda

OLDEST = (0, 1, 8)  # earlier versions lack Llama 3.1's rope scaling, and compute something else without a word
PAGE_TOKENS = 256  # the generator's caches and chunks are whole pages
CACHES = {
    "FP16": "ExLlamaV2Cache",
    "Q8": "ExLlamaV2Cache_Q8",
    "Q6": "ExLlamaV2Cache_Q6",
    "Q4": "ExLlamaV2Cache_Q4",
}
OUT_OF_MEMORY = ("out of memory", "Insufficient VRAM", "Insufficient space in device allocation")


def require_exl2(model: str) -> dict[str, Any]:
    """The `quantization_config` of an EXL2 folder: quant_method, version, bits, head_bits, calibration. Raises
    UserError if the model is not there, has another format, or says its rope in a way that ExLlamaV2 does not read."""
    reference, config = parse_reference(model), {}
    if reference.is_gguf or reference.scheme == "random":
        found = "a GGUF file" if reference.is_gguf else "a random test model"
    else:
        config = read_json(model_folder(model) / "config.json")
        method = (config.get("quantization_config") or {}).get("quant_method")
        found = f"quantised as {method}" if method else "not quantised"
    if found != "quantised as exl2":
        raise UserError(
            f"The engine exllamav2 needs an EXL2 folder, and {model} is {found}: convert it with "
            "`python -m exllamav2.conversion.convert_exl2`, or set another teacher.engine."
        )
    rope = config.get("rope_parameters") or {}
    scaled = rope.get("rope_type", "default") != "default"
    if rope and ("rope_theta" not in config or (scaled and not config.get("rope_scaling"))):
        raise UserError(
            f"{model}: its config.json keeps the rope in `rope_parameters` as transformers 5 writes it, which "
            "ExLlamaV2 passes over: write rope_theta, and rope_scaling if there is any, at the top level too."
        )
    return config["quantization_config"]


def import_exllamav2() -> ModuleType:
    """The package with its generator and attention modules. Raises UserError if they do not import, and says why."""
    if reason := missing_cuda():
        raise UserError(f"The engine exllamav2 runs on NVIDIA GPUs alone, and {reason}.")
    try:
        package = importlib.import_module("exllamav2")
        importlib.import_module("exllamav2.generator")
        importlib.import_module("exllamav2.attn")
    except Exception as error:  # the extension is compiled on import, which may raise anything
        raise UserError(explain_import_failure("exllamav2", error)) from error
    if tuple(int(part) for part in re.findall(r"\d+", package.__version__)[:3]) < OLDEST:
        raise UserError(
            f"exllamav2 {package.__version__} computes Llama 3.1's positions wrongly: install "
            f"{'.'.join(map(str, OLDEST))} or newer."
        )
    return package


@contextmanager
def gpu_memory(config: TeacherConfig) -> Iterator[None]:
    """Turns every way in which ExLlamaV2 says that memory ran out into one sentence."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        raise UserError(
            f"The GPUs' memory is too small for {config.model} with these settings: lower teacher.batch_size or "
            "teacher.context_tokens, take a smaller teacher.exllamav2.cache_type, or use more GPUs or fewer bits."
        ) from error


def load_exl2(package: ModuleType, config: TeacherConfig) -> tuple[Any, Any, int, bool]:
    """Loads weights and cache: over the GPUs one after the other, by a given split, or tensor-parallel.

    Returns both, the most tokens of one forward, and whether sequences share the cache (paged). Raises UserError for
    too little GPU memory, or a model that ExLlamaV2 cannot read or split.
    """
    settings = config.exllamav2 or ExLlamaConfig()
    try:
        # With the model's own maximum, rope tables and buffers would be made for up to 128k tokens.
        model_config = package.ExLlamaV2Config(str(model_folder(config.model)))
        model_config.max_seq_len = model_config.max_input_len = whole_pages(config.context_tokens)
        model_config.arch_compat_overrides(quiet=True)
        flash = package.attn.has_flash_attn and not model_config.no_flash_attn
        paged = package.attn.has_flash_attn_with_paged and flash
        # Of the ways to do without flash-attn only the plain product is causal: release 0.3.2 gives SDPA no mask
        # (`_attn_torch` asks for a block diagonal one, which is None), so every prompt token would see the future.
        model_config.no_sdpa = model_config.no_xformers = True
        if settings.tensor_parallel and not flash:
            raise UserError("teacher.exllamav2.tensor_parallel needs flash-attn: install it, or set it to false.")
        sequences = config.batch_size if paged else 1
        tokens = whole_pages(settings.cache_tokens or sequences * model_config.max_seq_len)
        model, kind = package.ExLlamaV2(model_config), getattr(package, CACHES[settings.cache_type])
        split = list(settings.gpu_split) if settings.gpu_split else None
        with gpu_memory(config):
            if settings.tensor_parallel:
                model.load_tp(gpu_split=split, expect_cache_tokens=tokens, expect_cache_base=kind)
                cache = package.ExLlamaV2Cache_TP(model, base=kind, max_seq_len=tokens)
            elif split:
                model.load(gpu_split=split)
                cache = kind(model, max_seq_len=tokens)
            else:
                cache = kind(model, max_seq_len=tokens, lazy=True)
                model.load_autosplit(cache)
    except (RuntimeError, AssertionError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"ExLlamaV2 cannot load {config.model} ({error}): fetch or convert it again.") from error
    return model, cache, model_config.max_input_len, paged


def whole_pages(tokens: int) -> int:
    """A number of tokens, rounded up to full pages."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS
