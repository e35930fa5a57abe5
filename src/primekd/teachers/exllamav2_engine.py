"""ExLlamaV2 on an EXL2 model, the engine of the published study, on one machine's GPUs.

Written from the source of exllamav2 0.3.2; not yet run on a GPU. Responses come from the dynamic generator's jobs, in
token ids alone: the package's own `encode` would leave out BOS and read chat tags as text. Signals come from plain
forwards without a cache, never from the generator, whose "pre-sampling" logits its sampler alters in place and whose
`top_k_probs` are probabilities after penalties and truncation."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from primekd.config import ExLlamaConfig, TeacherConfig
from primekd.foundation import UserError, package_versions, read_json
from primekd.foundation.memory import release_gpu_memory
from primekd.models import load_tokenizer, model_folder, model_hash, parse_reference, turn_end
from primekd.models.logits import PROBE, LogitTransform, best_transform, config_numbers
from primekd.teachers.packages import explained, missing_cuda
from primekd.teachers.protocol import Ids, Response, Sampling, TeacherEngine, Want, longest_first, require_fit

PROBE_ERROR = 0.03  # of the logits' norm, which half precision explains; what is finer, `reconstruction` finds
GENERATOR_QUEUE = 8  # tokens a sequence that the generator reserves room for (its default `max_q_size`)
PAGE_TOKENS = 256  # the generator's caches and chunks are whole pages
OUT_OF_MEMORY = ("out of memory", "Insufficient VRAM", "Insufficient space in device allocation")


class ExLlamaV2Engine(TeacherEngine):
    """An EXL2 model served by ExLlamaV2.

    Without flash-attn there is no paged cache: responses are then generated one after the other. Scoring runs in
    batches of up to `batch_size` sequences with `context_tokens` tokens in all, and no cache, so the cache type touches
    nothing that is scored. Tensor-parallel models offer logits alone: their head lies in parts on several GPUs."""

    name = "exllamav2"

    def __init__(self, config: TeacherConfig):
        self.config, self.reference = config, config.model
        self.quantization = require_exl2(config.model)
        self.package = import_exllamav2()
        self.tokenizer = load_tokenizer(config)
        self.vocab_size = len(self.tokenizer)
        self.model, cache, self.input_tokens, self.paged = load_exl2(self.package, config)
        if not self.paged:
            print("ExLlamaV2 has no flash-attn 2.5.7 or newer here: responses are generated one at a time, slowly.")
        self.generator = self.package.generator.ExLlamaV2DynamicGenerator(
            model=self.model, cache=cache, tokenizer=self.package.ExLlamaV2Tokenizer(self.model.config),
            max_batch_size=min(config.batch_size, self.input_tokens // GENERATOR_QUEUE) if self.paged else 1,
            paged=self.paged,
        )  # fmt: skip
        # Added to the logits, so that no column beyond the tokenizer's is drawn: the sampler itself cuts at the largest
        # id in tokenizer.json, which need not be transformers' size.
        columns = self.generator.padded_vocab_size
        beyond = torch.arange(columns) >= self.vocab_size
        self._bias = torch.zeros(columns).masked_fill(beyond, -torch.inf) if columns > self.vocab_size else None
        self.transform = self._find_transform()
        self.offers = frozenset({"hidden", "logits"} if self.transform else {"logits"})

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name, "model": self.reference, "model_sha256": model_hash(self.reference),
            "bits_per_weight": self.quantization.get("bits"), "head_bits": self.quantization.get("head_bits"),
            "cache_type": (self.config.exllamav2 or ExLlamaConfig()).cache_type, "exllamav2": self.package.__version__,
            "flash_attn": package_versions(["flash-attn"])["flash-attn"] or "none", "torch": torch.__version__,
        }  # fmt: skip

    def _settings(self, sampling: Sampling):
        """Settings that sample from the raw model: the package's defaults carry penalties and truncation.

        Above temperature 0 its sampler draws from 0.9998 of the mass: the largest ids are cut, against rounding."""
        greedy = sampling.temperature == 0
        off = {"token_frequency_penalty", "token_presence_penalty", "top_p", "top_a", "min_p", "tfs", "typical"}
        return self.package.generator.ExLlamaV2Sampler.Settings(
            token_repetition_penalty=1.0,
            temperature=1.0 if greedy else sampling.temperature,
            top_k=1 if greedy else 0,
            token_bias=self._bias,
            **dict.fromkeys(off, 0.0),
        )

    def generate(self, prompts: Ids, sampling: Sampling) -> list[Response]:
        for prompt in prompts:
            require_fit(len(prompt) + sampling.max_new_tokens, self.config.context_tokens)
        # Cached prefixes of earlier calls would make a response depend on what was asked before it.
        self.generator.reset_page_table()
        ends = turn_end(self.tokenizer).stops
        seeds = np.random.SeedSequence(sampling.seed).generate_state(len(prompts))
        for index, (prompt, seed) in enumerate(zip(prompts, seeds.tolist(), strict=True)):
            job = self.package.generator.ExLlamaV2DynamicJob(
                input_ids=torch.tensor([prompt]), max_new_tokens=sampling.max_new_tokens, seed=seed, identifier=index,
                gen_settings=self._settings(sampling), stop_conditions=sorted(ends),
            )  # fmt: skip
            self.generator.enqueue(job)
        ids: Ids = [[] for _ in prompts]
        with gpu_memory(self.config):
            while self.generator.num_remaining_jobs():
                for result in self.generator.iterate():
                    own = ids[result["identifier"]]
                    # Tokens of the last step, the end of turn among them, lie under `held`.
                    for part in (result, result.get("held", {})):
                        own += part["token_ids"][0].tolist() if "token_ids" in part else []
                    if result["eos"] and len(own) != result["new_tokens"]:
                        said = f"exllamav2 {self.package.__version__} gave {len(own)} tokens of {result['new_tokens']}"
                        raise UserError(f"{said}: install exllamav2 0.3.2.")
                    if result["eos"]:
                        sampling.ended()
        return [Response(found, truncated=found[-1] not in ends) for found in ids]

    def _forward(self, sequences: Ids) -> tuple[Tensor, Tensor]:
        """Logits (B, S, columns) and the states before the final norm (B, S, D); right of a sequence is padding."""
        ids = pad_sequence([torch.tensor(sequence) for sequence in sequences], True)  # causal: padding is never seen
        with gpu_memory(self.config):
            return self.model.forward(ids, cache=None, last_id_only=False, return_last_state=True)

    def _final(self, states: Tensor) -> Tensor:
        """`return_last_state` gives what enters the final norm, not what enters the head."""
        norm = self.model.modules[self.model.head_layer_idx - 1]
        return norm.forward(states.to(norm.device()))

    @torch.inference_mode()
    def score(self, prompts: Ids, responses: Ids, want: Want) -> list[Tensor]:
        if want not in self.offers:
            raise ValueError(f"{self.reference}: no {want} from this engine")
        # The last response token predicts nothing that is kept, so it is not run.
        sequences = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
        for sequence in sequences:
            require_fit(len(sequence), self.config.context_tokens)
        rows: list[Tensor | None] = [None] * len(prompts)
        for batch in longest_first([len(s) for s in sequences], self.config.batch_size, self.input_tokens):
            logits, states = self._forward([sequences[i] for i in batch])
            for row, i in enumerate(batch):
                first = len(prompts[i]) - 1
                places = slice(first, first + len(responses[i]))
                if want == "hidden":
                    rows[i] = self._final(states[row : row + 1, places].contiguous())[0].cpu()
                else:
                    rows[i] = logits[row, places, : self.vocab_size].float().cpu()
        return rows

    def head(self) -> Tensor:
        return self._weight

    @cached_property
    def _weight(self) -> Tensor:
        with gpu_memory(self.config):
            # (D, columns) in half precision; a head of 6 or 8 bits is dequantised.
            weight = self.model.modules[self.model.head_layer_idx].get_weight_tensor_dq()
        return weight.T[: self.vocab_size].cpu().contiguous()

    def close(self) -> None:
        self.__dict__.pop("_weight", None)  # it may never have been asked for
        del self.generator, self.model
        release_gpu_memory()

    @torch.inference_mode()
    def _find_transform(self) -> LogitTransform | None:
        """What makes the logits of norm(state) @ head.T; None where nothing known does, or the head is split."""
        if self.model.tp_context is not None:
            return None
        logits, states = self._forward([[self.tokenizer.eos_token_id, *PROBE]])
        own = logits[0, :, : self.vocab_size].cpu()
        products = self._final(states)[0].float().cpu() @ self.head().float().T
        return best_transform(products, own, config_numbers(self.model.config), PROBE_ERROR)


# Bringing a model and its key-value cache onto the GPUs: format, versions, memory.


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
        fix = "convert it with `python -m exllamav2.conversion.convert_exl2`, or set another teacher.engine"
        raise UserError(f"The engine exllamav2 needs an EXL2 folder, and {model} is {found}: {fix}.")
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
    threads = torch.get_num_threads()
    with explained("exllamav2"):
        package = importlib.import_module("exllamav2")
        importlib.import_module("exllamav2.generator")
        importlib.import_module("exllamav2.attn")
    torch.set_num_threads(threads)  # its import leaves one, for the whole process
    # Earlier versions lack Llama 3.1's rope scaling, and compute something else without a word.
    if tuple(int(part) for part in re.findall(r"\d+", package.__version__)[:3]) < (0, 1, 8):
        raise UserError(f"exllamav2 {package.__version__} has wrong positions of Llama 3.1: install 0.1.8 or newer.")
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
    too little GPU memory, or a model that ExLlamaV2 cannot read or split."""
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
        suffix = "" if settings.cache_type == "FP16" else f"_{settings.cache_type}"
        model, kind = package.ExLlamaV2(model_config), getattr(package, f"ExLlamaV2Cache{suffix}")
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
