"""A FAKE of the package exllamav2, for machines without CUDA: `install(monkeypatch)` puts it in place.

Signatures, defaults and the order of events are those of release 0.3.2's source (config.py, model.py, cache.py,
generator/dynamic.py, generator/sampler.py); the arithmetic is a toy's. Nothing here shows that the real kernels work.
"""

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import torch

WIDTH, VOCABULARY = 8, 100  # of the toy model; its head has 128 columns, padded to a multiple of 32
EOS = 2


class ExLlamaV2Config:
    def __init__(self, model_dir: str | None = None):
        self.model_dir = model_dir
        self.max_seq_len, self.max_input_len, self.max_batch_size = 131072, 2048, 1
        self.no_flash_attn = self.no_sdpa = self.no_xformers = False
        self.vocab_size, self.final_logit_softcapping = VOCABULARY + 20, None

    def arch_compat_overrides(self, quiet: bool = False, warn_only: bool = False): ...


class Norm:
    """The final norm: a factor, so that a state before it is plainly another."""

    def forward(self, hidden_states, **kwargs):
        return hidden_states * 3

    def device(self) -> str:
        return "cpu"


class Head:
    """A quantised head: there is no weight to read, only one to reconstruct, (in, out)."""

    padding = 8

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self._weight = torch.randn(WIDTH, VOCABULARY + 28, generator=generator).half()
        self._weight[:, VOCABULARY] = 30.0  # a column beyond the tokenizer's that would win, were it let in
        self._weight[:, VOCABULARY + 1] = -30.0

    def get_weight_tensor_dq(self):
        return self._weight


class ExLlamaV2:
    loads: list[tuple] = []  # how each model was loaded
    fails: Exception | None = None  # what loading or a forward raises

    def __init__(self, config: ExLlamaV2Config, lazy_load=False, archparams=None):
        self.config, self.tp_context, self.cached_tokens = config, None, 0
        self.modules, self.head_layer_idx = ["embedding", "block", Norm(), Head()], 3

    def load(self, gpu_split=None, lazy=False, stats=False, callback=None, callback_gen=None, progress=False):
        self._load("load", gpu_split)

    def load_tp(
        self,
        gpu_split=None,
        callback=None,
        callback_gen=None,
        progress=False,
        expect_cache_tokens=0,
        expect_cache_base=None,
    ):
        self.tp_context = object()
        self._load("load_tp", gpu_split, expect_cache_tokens, expect_cache_base)

    def load_autosplit(
        self, cache, reserve_vram=None, last_id_only=False, callback=None, callback_gen=None, progress=False
    ):
        assert cache.lazy and not last_id_only
        self._load("load_autosplit", cache.max_seq_len)

    def _load(self, *how):
        if ExLlamaV2.fails:
            raise ExLlamaV2.fails
        ExLlamaV2.loads.append(how)

    def forward(
        self,
        input_ids,
        cache=None,
        input_mask=None,
        preprocess_only=False,
        last_id_only=False,
        loras=None,
        return_last_state=False,
        position_offsets=None,
        abort_event=None,
        cpu_logits=False,
        **kwargs,
    ):
        assert cache is None, "scoring through the generator's cache corrupts its page table"
        batch, length = input_ids.shape
        assert length <= self.config.max_input_len * self.config.max_batch_size // batch, (
            "Maximum input length exceeded in model.forward"
        )
        if ExLlamaV2.fails:
            raise ExLlamaV2.fails
        # Causal: a state is made of the tokens up to it.
        table = torch.randn(VOCABULARY + 20, WIDTH, generator=torch.Generator().manual_seed(1))
        states = torch.cumsum(torch.tanh(table[input_ids]), 1).div(4).half()
        logits = self.logits(states)
        logits = logits[:, -1:] if last_id_only else logits
        return (logits, states) if return_last_state else logits

    def logits(self, states):
        """fp16 (B, S, columns): norm, head, soft cap, and the multiple-of-32 padding as the model fills it."""
        logits = self.modules[2].forward(states) @ self.modules[3].get_weight_tensor_dq()
        if cap := self.config.final_logit_softcapping:
            logits = torch.tanh(logits / cap) * cap
        logits[..., -Head.padding :] = -65504.0
        return logits


class ExLlamaV2Cache:
    def __init__(
        self,
        model,
        batch_size=1,
        max_seq_len=-1,
        copy_from=None,
        lazy=False,
        num_key_value_heads=None,
        fixed_device=None,
    ):
        self.model, self.batch_size, self.max_seq_len, self.lazy = model, batch_size, max_seq_len, lazy


class ExLlamaV2Cache_Q8(ExLlamaV2Cache): ...


class ExLlamaV2Cache_Q6(ExLlamaV2Cache): ...


class ExLlamaV2Cache_Q4(ExLlamaV2Cache): ...


class ExLlamaV2Cache_TP:
    def __init__(self, model, base=ExLlamaV2Cache, batch_size=1, max_seq_len=-1):
        assert model.tp_context is not None, "Cannot create TP cache unless model is loaded with load_tp()"
        self.base, self.batch_size, self.max_seq_len = base, batch_size, max_seq_len


class ExLlamaV2Tokenizer:
    def __init__(self, config, lazy_init=True, force_json=False, force_spm=False): ...

    def encode(self, *args, **kwargs):
        raise AssertionError("encode adds no BOS and reads chat tags as text")

    def get_vocab_size(self) -> int:
        return VOCABULARY + 20  # tokenizer.json's largest id, which may exceed transformers' size


class ExLlamaV2Sampler:
    @dataclass
    class Settings:
        token_repetition_penalty: float = 1.025
        token_repetition_range: int = -1
        token_repetition_decay: int = 0
        token_frequency_penalty: float = 0.0
        token_presence_penalty: float = 0.0
        temperature: float = 0.8
        smoothing_factor: float = 0.0
        min_temp: float = 0
        max_temp: float = 0.0
        temp_exponent: float = 1.0
        top_k: int = 50
        top_p: float = 0.8
        top_a: float = 0.0
        min_p: float = 0
        tfs: float = 0
        typical: float = 0
        skew: float = 0
        temperature_last: bool = False
        mirostat: bool = False
        token_bias: torch.Tensor | None = None
        cfg_scale: float | None = None
        dry_multiplier: float = 0.0
        xtc_probability: float = 0.0

    @staticmethod
    def sample(logits, settings, sequence_ids, random, tokenizer) -> int:
        """`logits` (1, 1, columns) float32 are altered in place, as the real ones are."""
        if settings.token_repetition_penalty != 1.0:
            seen = sequence_ids[0].unique()
            values = logits[0, 0, seen]
            penalty = settings.token_repetition_penalty
            logits[0, 0, seen] = torch.where(values > 0, values / penalty, values * penalty)
        if settings.token_bias is not None:
            assert settings.token_bias.numel() == logits.numel(), "a and b are incompatible sizes"
            logits += settings.token_bias
        logits[:, :, tokenizer.get_vocab_size() :] = -torch.inf
        probabilities = (logits[0, 0].double() / settings.temperature).softmax(-1)
        if settings.top_k > 0:
            kept = probabilities.topk(settings.top_k)
            probabilities = torch.zeros_like(probabilities).scatter(0, kept.indices, kept.values)
        if 0 < settings.top_p < 1:
            order = probabilities.argsort(descending=True)
            outside = order[probabilities[order].cumsum(0) - probabilities[order] >= settings.top_p]
            probabilities[outside] = 0
        cumulative = (probabilities / probabilities.sum()).cumsum(0)
        return int((cumulative < random * 0.9998).sum())


class ExLlamaV2DynamicJob:
    def __init__(
        self,
        input_ids,
        max_new_tokens,
        min_new_tokens=0,
        max_skips=4,
        gen_settings=None,
        seed=None,
        stop_conditions=None,
        decode_special_tokens=False,
        return_top_tokens=0,
        return_logits=False,
        return_probs=False,
        filters=None,
        filter_prefer_eos=False,
        token_healing=False,
        identifier=None,
        banned_strings=None,
        embeddings=None,
        **kwargs,
    ):
        import random

        assert not kwargs and input_ids.shape[0] == 1 and input_ids.device.type == "cpu"
        self.ids, self.max_new_tokens, self.new_tokens, self.held = input_ids, max_new_tokens, 0, []
        self.settings = gen_settings if gen_settings is not None else ExLlamaV2Sampler.Settings()
        self.random = random.Random(seed) if seed is not None else random.Random()
        self.stop, self.identifier = set(stop_conditions or ()), identifier

    def receive(self, token: int) -> dict:
        """One result, with the keys that `emit` gives it: a stop token ends the job and stays in `held`."""
        self.new_tokens += 1
        self.ids = torch.cat((self.ids, torch.tensor([[token]])), 1)
        self.held.append(token)
        result = {"job": self, "stage": "streaming", "eos": False, "identifier": self.identifier}
        stopped, full = token in self.stop, self.new_tokens >= self.max_new_tokens
        # As with half a character, odd tokens are held back once and come with the next ones.
        if (full or not token % 2) and not stopped:
            result["token_ids"] = torch.tensor([self.held])
            self.held = []
        if stopped or full:
            result |= {"eos": True, "eos_reason": "stop_token" if stopped else "max_new_tokens"}
            result["new_tokens"] = self.new_tokens
            if self.held:
                result["held"] = {"token_ids": torch.tensor([self.held])}
        return result


class ExLlamaV2DynamicGenerator:
    made: "list[ExLlamaV2DynamicGenerator]" = []

    def __init__(
        self,
        model,
        cache,
        tokenizer,
        max_batch_size=None,
        max_seq_len=None,
        max_chunk_size=None,
        max_q_size=8,
        draft_model=None,
        draft_cache=None,
        num_draft_tokens=4,
        use_ngram_draft=False,
        max_ngram=4,
        max_sampling_threads=16,
        min_sampling_threads=3,
        paged=True,
        filter_background_eval=True,
        **kwargs,
    ):
        if paged:
            assert attn.has_flash_attn_with_paged, "Paged attention required Flash Attention 2.5.7 or later"
            assert model.config.max_input_len % 256 == 0
        assert cache.batch_size == 1 and cache.max_seq_len % 256 == 0
        assert max_q_size * max_batch_size <= model.config.max_batch_size * model.config.max_input_len
        self.model, self.cache, self.tokenizer, self.paged = model, cache, tokenizer, paged
        self.max_batch_size = max_batch_size
        self.padded_vocab_size = (model.config.vocab_size + 31) // 32 * 32
        self.jobs, self.stale, self.most_at_once = [], False, 0
        ExLlamaV2DynamicGenerator.made.append(self)

    def reset_page_table(self):
        self.stale = False

    def enqueue(self, job):
        assert not self.stale or self.jobs, "pages of an earlier call are still in the table"
        assert job.ids.shape[1] + job.max_new_tokens <= self.cache.max_seq_len
        self.jobs.append(job)

    def num_remaining_jobs(self) -> int:
        return len(self.jobs)

    def iterate(self) -> list[dict]:
        """A step of every active job; without paged attention there is one at a time."""
        active = self.jobs[: self.max_batch_size if self.paged else 1]
        self.most_at_once = max(self.most_at_once, len(active))
        results = [{"job": job, "stage": "prefill", "eos": False, "identifier": job.identifier} for job in active]
        for job in active:
            states = self.model.forward(job.ids, return_last_state=True)[1]
            logits = self.model.logits(states)[:, -1:].float()  # fp32 on the CPU, each step
            token = ExLlamaV2Sampler.sample(logits, job.settings, job.ids, job.random.random(), self.tokenizer)
            results.append(job.receive(token))
        self.jobs = [job for job in self.jobs if not any(r["eos"] for r in results if r["job"] is job)]
        self.stale = True
        return results


attn = SimpleNamespace(has_flash_attn=True, has_flash_attn_with_paged=True)


def install(monkeypatch, version: str = "0.3.2", flash: bool = True) -> None:
    """Puts the fake in place of the package, and a GPU where there is none, until the test ends."""
    package = ModuleType("exllamav2")
    for item in (
        ExLlamaV2,
        ExLlamaV2Cache,
        ExLlamaV2Cache_Q8,
        ExLlamaV2Cache_Q6,
        ExLlamaV2Cache_Q4,
        ExLlamaV2Cache_TP,
        ExLlamaV2Config,
        ExLlamaV2Tokenizer,
    ):
        setattr(package, item.__name__, item)
    generator, attention = ModuleType("exllamav2.generator"), ModuleType("exllamav2.attn")
    for item in (ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler):
        setattr(generator, item.__name__, item)
    attention.has_flash_attn = attention.has_flash_attn_with_paged = flash
    package.__version__, package.generator, package.attn, package.__path__ = version, generator, attention, []
    for name, module in {"": package, ".generator": generator, ".attn": attention}.items():
        monkeypatch.setitem(sys.modules, f"exllamav2{name}", module)
    monkeypatch.setattr(attn, "has_flash_attn", flash)
    monkeypatch.setattr(attn, "has_flash_attn_with_paged", flash)
    monkeypatch.setattr(ExLlamaV2, "loads", [])
    monkeypatch.setattr(ExLlamaV2, "fails", None)
    monkeypatch.setattr(ExLlamaV2DynamicGenerator, "made", [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
