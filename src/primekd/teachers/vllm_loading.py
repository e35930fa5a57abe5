"""Starting vLLM: what a model needs to be served, the options that it is started with, and why it cannot start.

Written from the source of vLLM 0.32.0."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from primekd.config import TeacherConfig, VllmConfig
from primekd.foundation import UserError, read_json
from primekd.foundation.memory import release_gpu_memory
from primekd.models import BYTES, model_folder, quantisation
from primekd.teachers.packages import explained

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the sizes that vLLM has adapter memory for
CPU_CACHE_BYTES = 2 << 30


def import_vllm():
    """The package, with its classes really imported. Raises UserError if it is missing, broken or too old."""
    # Its log names every folder that it reads, and executed notebooks keep what is printed.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report model and hardware to its makers
    with explained("vllm"):
        import vllm
        from vllm import LLM, SamplingParams  # noqa: F401  a broken build shows here, not at `import vllm`
    if not hasattr(SamplingParams, "flat_logprobs"):
        raise UserError(f"vLLM {vllm.__version__} is too old, it has no flat log-probs: install 0.32.0 or newer.")
    return vllm


def text_config(model: str) -> Any:
    """The configuration of a checkpoint's language model. Raises UserError if it cannot be read, or needs own code."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model_folder(model), local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The configuration of {model} cannot be read ({reason}): take another model.") from error
    return config.get_text_config()


def require_servable(config: TeacherConfig) -> None:
    """Before vLLM is started: raises UserError if format, context or numbers of GPUs do not fit the model."""
    settings, shape = config.vllm or VllmConfig(), text_config(config.model)
    method = quantisation(model_folder(config.model))
    if method in ("exl2", "exl3"):
        fix = "set teacher.engine to exllamav2, or name an unquantised, AWQ, GPTQ or FP8 model"
        raise UserError(f"{config.model} is quantised as {method.upper()}, which vLLM does not read: {fix}.")
    if config.context_tokens > shape.max_position_embeddings:
        fix = "lower teacher.context_tokens (or max_new_tokens, for students)"
        has = f"{config.model} has {shape.max_position_embeddings} positions"
        raise UserError(f"{has}, and {config.context_tokens} tokens are asked for: {fix}.")
    parts, heads = settings.tensor_parallel, shape.num_attention_heads
    shared = getattr(shape, "num_key_value_heads", None) or heads
    if heads % parts or (shared % parts and parts % shared):
        raise UserError(
            f"The {heads} attention heads ({shared} key-value heads) of {config.model} cannot be split into {parts} "
            "equal parts: set teacher.vllm.tensor_parallel to a divisor, and pipeline_parallel for more GPUs."
        )
    if (stages := settings.pipeline_parallel) > (layers := shape.num_hidden_layers):
        raise UserError(f"{config.model} has {layers} layers: lower teacher.vllm.pipeline_parallel ({stages}).")


def require_gpus(config: TeacherConfig) -> None:
    """Raises UserError if this machine has too few GPUs or too little of their memory; nodes (ray) are left to vLLM."""
    settings = config.vllm or VllmConfig()
    needed, here = settings.tensor_parallel * settings.pipeline_parallel, torch.cuda.device_count()
    if here == 0:
        raise UserError("vLLM's GPU build finds no GPU here: run `primekd doctor`, or set another teacher.engine.")
    if settings.backend == "ray":
        return
    if here < needed:
        raise UserError(
            f"teacher.vllm asks for {needed} GPUs (tensor_parallel {settings.tensor_parallel} x pipeline_parallel "
            f"{settings.pipeline_parallel}) and {here} are here: lower them, or set teacher.vllm.backend to ray."
        )
    release_gpu_memory()  # of what was loaded in this process before
    share = weight_bytes(config) / needed
    for number in range(needed):
        free, total = torch.cuda.mem_get_info(number)
        usable = total * settings.gpu_memory_utilization
        if free < usable:
            raise UserError(
                f"GPU {number} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, and "
                f"teacher.vllm.gpu_memory_utilization asks for {usable / 2**30:.1f}: end what else uses it or lower it."
            )
        if share > usable:
            raise UserError(
                f"The weights of {config.model} need {share / 2**30:.1f} GiB on each of {needed} GPUs, and "
                f"{usable / 2**30:.1f} are usable on GPU {number}: use more GPUs or a quantised model."
            )


def weight_bytes(config: TeacherConfig) -> float:
    """Bytes of the weights as they will be served: plain ones are converted to `dtype`, quantised ones stay."""
    folder = model_folder(config.model)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if is_quantised(config):
        return stored
    kept = read_json(folder / "config.json")
    return stored * BYTES[config.dtype] / BYTES.get(kept.get("dtype") or kept.get("torch_dtype") or "", 2)


def start_options(config: TeacherConfig, max_logprobs: int, adapters: Sequence[Path], cpu: bool) -> dict[str, Any]:
    """The arguments of `vllm.LLM`; nothing is left to a default that could change what is generated or scored."""
    settings, shape, folder = config.vllm or VllmConfig(), text_config(config.model), model_folder(config.model)
    # A sequence is scored as a prompt, and vLLM wants room for one token after every prompt.
    length = min(config.context_tokens + 1, shape.max_position_embeddings)
    options = {
        "model": str(folder),
        "trust_remote_code": False,
        "skip_tokenizer_init": True,  # prompts and responses are token ids, so that nothing is tokenised anew
        "dtype": config.dtype,
        "max_model_len": length,
        "max_num_seqs": config.batch_size,
        "seed": 0,
        "generation_config": "vllm",  # not the checkpoint's, which may carry penalties, top-k or a temperature
        "logprobs_mode": "raw_logprobs",
        "max_logprobs": max_logprobs,
        "enable_prefix_caching": False,  # a response must not depend on what was asked before it
        "load_format": "auto" if settings.quantization == "bitsandbytes" else "safetensors",
        "tensor_parallel_size": settings.tensor_parallel,
        "pipeline_parallel_size": settings.pipeline_parallel,
        "distributed_executor_backend": settings.backend,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "quantization": settings.quantization,
        "worker_extension_cls": "primekd.teachers.vllm_loading.VocabularyCut",
    }
    if head_dtype(config) == "float32":
        options["hf_overrides"] = {"head_dtype": "float32"}
    if adapters:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(adapters)}
    if cpu:
        # The share of memory means the whole machine's there, which others use too; and what runs on a CPU is short.
        width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
        token = 2 * shape.num_hidden_layers * heads * width * BYTES[config.dtype]
        sequence = token * (length + 128)  # the cache's blocks hold 128 tokens
        wanted = max(sequence, min(sequence * config.batch_size, CPU_CACHE_BYTES))
        options |= {"enforce_eager": True, "kv_cache_memory_bytes": wanted}
    return options


def head_dtype(config: TeacherConfig) -> str:
    """The precision of the logits: float32, as in the transformers engine, where vLLM can do it.

    bfloat16 logits are rounded to steps of 1/16 above 8. vLLM refuses a float32 head where the head is quantised."""
    return config.dtype if is_quantised(config) else "float32"


def is_quantised(config: TeacherConfig) -> bool:
    """Whether the weights are quantised, or vLLM is to quantise them."""
    return bool(quantisation(model_folder(config.model)) or (config.vllm and config.vllm.quantization))


def lora_rank(adapters: Sequence[Path]) -> int:
    """The adapter memory that the largest adapter needs. Raises UserError if its rank is beyond what vLLM has."""
    settings = [read_json(adapter / "adapter_config.json") for adapter in adapters]
    largest = max(max(s["r"], *(s.get("rank_pattern") or {}).values(), 0) for s in settings)
    if largest > LORA_RANKS[-1]:
        raise UserError(f"vLLM serves adapters up to rank {LORA_RANKS[-1]}, not {largest}: set assess.engine.")
    return next(rank for rank in LORA_RANKS if rank >= largest)


class VocabularyCut:
    """What vLLM adds to its own worker processes (`worker_extension_cls`), to be called by name and without pickle.
    vLLM cuts the columns that it pads itself, not those of a checkpoint that has more columns than its tokenizer has
    tokens: they would be drawn, and would take their share of every softmax."""

    def cut_vocabulary(self, size: int) -> int:
        """Cuts the logits behind column `size`, before sampling and softmax; returns how many heads were found here.

        Pipeline stages other than the last one have no head."""
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        found = [module for module in self.get_model().modules() if isinstance(module, LogitsProcessor)]
        for module in found:
            module.org_vocab_size = size
            module.vocab_size = size  # where an adapter wraps the layer, this is what it cuts at
        return len(found)
