"""vLLM: teacher on one GPU or many, and students with their LoRA adapters.

Responses and scores come from vLLM's own scheduler, in token ids alone. A score is vLLM's log-probabilities of a
prompt, where the prompt is prompt + response: vLLM shows the most probable tokens, and hidden states not at all.
"""

import io
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from primekd.config import TeacherConfig
from primekd.config.teacher import VllmConfig
from primekd.foundation.errors import UserError
from primekd.foundation.memory import release_gpu_memory
from primekd.models import load_tokenizer, model_hash
from primekd.models.template import turn_end
from primekd.teachers.protocol import Response, Sampling, TopLogprobs, Want, generate_then_score
from primekd.teachers.vllm_loading import head_dtype, import_vllm, require_gpus, require_servable, start_options


class VllmEngine:
    """A model served by vLLM.

    A GGUF file is served from its exact dequantised copy, as the transformers engine does: vLLM itself reads GGUF
    through a plug-in alone.

    Args:
        config: the profile's teacher; for students, their model in a teacher's place.
        top_k: K, how many tokens a row of "top" shows.
        adapters: peft folders that `wearing` may name; a server with adapters generates only.

    Raises:
        UserError: vLLM is missing, or model, GPUs and settings do not fit each other.
    """

    name, transform = "vllm", None

    def __init__(self, config: TeacherConfig, top_k: int, adapters: Sequence[Path] = ()):
        self.config, self.settings, self.reference = config, config.vllm or VllmConfig(), config.model
        self.adapters = list(adapters)
        # With adapter memory vLLM wraps the head too, in what takes one row a sequence: scoring would end in an error.
        self.offers = frozenset() if adapters else config.offers
        self.tokenizer = load_tokenizer(config)
        self.vocab_size = len(self.tokenizer)
        self.top_k = min(top_k, self.vocab_size)
        require_servable(config)
        self.package = import_vllm()
        from vllm.platforms import current_platform

        self.device = current_platform.device_type
        if not current_platform.is_cpu():
            require_gpus(config)
        shown = self.vocab_size if self.settings.full_logprobs else self.top_k
        options = start_options(config, shown, self.adapters, current_platform.is_cpu())
        self.longest = options["max_model_len"] - 1
        self.llm = self._start(options)
        if not sum(self.llm.collective_rpc("cut_vocabulary", args=(self.vocab_size,))):
            raise UserError(f"vLLM's {config.model} has no head that can be cut: set another teacher.engine.")

    def _start(self, options: dict[str, Any]):
        try:
            return self.package.LLM(**options)
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            # What goes wrong in vLLM's own processes reaches us as "see root cause above".
            raise UserError(
                f"vLLM cannot start {self.reference} ({first_line(error)}): if what it printed above speaks of memory, "
                "lower teacher.context_tokens or batch_size or use more GPUs; else take another model or engine."
            ) from error

    def close(self) -> None:
        """Ends vLLM's processes and frees the GPUs."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        release_gpu_memory()

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "model": self.reference,
            "model_sha256": model_hash(self.reference),
            "dtype": self.config.dtype,
            "head_dtype": head_dtype(self.config),
            "quantization": self.settings.quantization,
            "tensor_parallel": self.settings.tensor_parallel,
            "pipeline_parallel": self.settings.pipeline_parallel,
            "device": self.device,
            "vllm": self.package.__version__,
            "torch": torch.__version__,
        }

    def generate(self, prompts: list[list[int]], sampling: Sampling, adapter: Path | None = None) -> list[Response]:
        """As the protocol has it; `adapter` is one of `adapters`, or None for the model itself."""
        for prompt in prompts:
            self._fits(len(prompt) + sampling.max_new_tokens)
        ends = turn_end(self.tokenizer).stops
        settings = [self.package.SamplingParams(**s) for s in generation_settings(sampling, ends, len(prompts))]
        outputs = self._ask(prompts, settings, adapter, ended_bar(sampling.ended))
        responses = [list(output.outputs[0].token_ids) for output in outputs]
        return [Response(ids, truncated=ids[-1] not in ends) for ids in responses]

    def wearing(self, adapter: Path | None) -> SimpleNamespace:
        """The same server with an adapter put on: what answers are generated with."""
        return SimpleNamespace(generate=partial(self.generate, adapter=adapter))

    def score(
        self, prompts: list[list[int]], responses: list[list[int]], want: Want
    ) -> list[Tensor] | list[TopLogprobs]:
        """As the protocol has it. "logits" are log-probabilities of every token, which a softmax leaves as they are."""
        if want not in self.offers:
            raise ValueError(f"vLLM offers {sorted(self.offers)}, not {want}")
        shown = self.top_k if want == "top" else self.vocab_size
        settings = self.package.SamplingParams(**scoring_settings(shown))
        # Whole distributions arrive as lists of numbers, gigabytes for a batch of them.
        size = self.config.batch_size if want == "top" else 1
        sequences, rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)], []
        for start in range(0, len(sequences), size):
            batch = sequences[start : start + size]
            for sequence in batch:
                self._fits(len(sequence))
            for prompt, sequence, output in zip(prompts[start:], batch, self._ask(batch, settings), strict=False):
                top = response_rows(output, sequence, len(prompt), shown)
                rows.append(top if want == "top" else by_column(top))
        return rows

    def _ask(
        self, prompts: list[list[int]], settings, adapter: Path | None = None, bar: Callable[..., Any] | bool = False
    ) -> list:
        try:
            outputs = self.llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts],
                settings,
                use_tqdm=bar,
                lora_request=self._request(adapter),
            )
        except Exception as error:  # its processes die in many ways
            raise UserError(f"vLLM stopped while it worked ({first_line(error)}): run again, it goes on.") from error
        for prompt, output in zip(prompts, outputs, strict=True):
            if list(output.prompt_token_ids) != prompt:
                raise UserError("vLLM answered another prompt than it was asked: this version cannot be used.")
        return outputs

    def _request(self, adapter: Path | None):
        """vLLM adds an adapter's product to each layer's in `dtype`, as in training."""
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(adapter.parent.name, self.adapters.index(adapter) + 1, str(adapter))

    def _fits(self, length: int) -> None:
        if length > self.longest:
            raise UserError(
                f"A sequence of {length} tokens does not fit: raise teacher.context_tokens in the profile, as far as "
                "the model's positions reach."
            )

    generate_scored = generate_then_score

    def own_logits(self, prompts: list[list[int]], responses: list[list[int]]) -> list[Tensor]:
        return self.score(prompts, responses, "logits")

    def head(self) -> Tensor:
        raise UserError("vLLM shows neither hidden states nor the head: set signals.codec to topk, full or text.")


def ended_bar(ended: Callable[[], None]) -> Callable[..., Any]:
    """What vLLM takes for a bar (`use_tqdm`): it shows nothing, and calls `ended` for each response that has ended."""
    from tqdm import tqdm

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            for _ in range(int(n or 0)):
                ended()
            return super().update(n)

    def bar(requests=None, **options):
        # Its first bar runs through the requests while they are added; the second one counts those that have ended.
        return Bar(total=options.get("total"), file=io.StringIO()) if requests is None else requests

    return bar


def generation_settings(sampling: Sampling, ends: Collection[int], count: int) -> list[dict[str, Any]]:
    """Arguments of `vllm.SamplingParams`, one a prompt: the raw distribution, ended by `ends` alone.

    What vLLM itself takes for an end is shut out by `ignore_eos`, so that all engines end alike. Each prompt has a seed
    of its own, or equal prompts would give equal responses. Raises UserError for a temperature that vLLM refuses, or
    would change in silence.
    """
    if sampling.temperature != 0 and not 0.01 <= sampling.temperature <= 2:
        raise UserError(
            f"vLLM samples at temperatures from 0.01 to 2, not {sampling.temperature:g}: change "
            "teacher.sampling_temperature."
        )
    common = {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,
        "detokenize": False,
    }
    if sampling.temperature == 0:
        return [common] * count
    seeds = sampling.seeds or np.random.SeedSequence(sampling.seed).generate_state(count)
    return [common | {"seed": int(s)} for s in seeds]


def scoring_settings(shown: int) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` that return the `shown` likeliest tokens of every place of a prompt.

    One token has to be generated, and is thrown away. Prompts that are scored read no prefix cache, by vLLM's own rule.
    """
    return {
        "temperature": 0.0,
        "max_tokens": 1,
        "ignore_eos": True,
        "detokenize": False,
        "prompt_logprobs": shown,
        "flat_logprobs": True,
    }


def response_rows(output, sequence: list[int], prompt_length: int, shown: int) -> TopLogprobs:
    """The rows of a response, `shown` tokens each, out of vLLM's flat log-probs of prompt + response.

    Entry i is what predicts token i, so response token t is entry prompt_length + t. Each entry begins with the token
    that stands there, likely or not, followed by the `shown` likeliest ones, best first: the former is dropped. Raises
    UserError if there are other entries than were asked for.
    """
    flat, rows = output.prompt_logprobs, len(sequence) - prompt_length
    problem = UserError("vLLM returned other log-probs than it was asked for: this version cannot be used.")
    if flat is None or len(flat) != len(sequence):
        raise problem
    start, end = flat.start_indices[prompt_length], flat.end_indices[-1]
    if end - start != rows * (shown + 1):
        raise problem
    ids = torch.tensor(flat.token_ids[start:end]).reshape(rows, shown + 1)
    log_probs = torch.tensor(flat.logprobs[start:end], dtype=torch.float32).reshape(rows, shown + 1)
    if ids[:, 0].tolist() != sequence[prompt_length:]:
        raise problem
    return TopLogprobs(ids[:, 1:].contiguous(), log_probs[:, 1:].contiguous())


def by_column(rows: TopLogprobs) -> Tensor:
    """(T, V) out of rows that show every token. Raises UserError if a row does not show each once."""
    known = rows.ids < rows.ids.shape[1]
    if not (known.all() and torch.zeros_like(known).scatter_(1, rows.ids, True).all()):
        raise UserError(
            "vLLM's log-probs of a whole vocabulary do not name every token once: set teacher.vllm.full_logprobs to "
            "false."
        )
    return torch.full_like(rows.log_probs, -torch.inf).scatter_(1, rows.ids, rows.log_probs)


def first_line(error: Exception) -> str:
    """The message that an error begins with, for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
