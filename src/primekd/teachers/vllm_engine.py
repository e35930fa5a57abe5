"""vLLM: teacher on one GPU or many, and students with their LoRA adapters.

Responses and scores come from vLLM's own scheduler, in token ids alone. A score is vLLM's log-probabilities of a
prompt, where the prompt is prompt + response: vLLM shows the most probable tokens, and hidden states not at all."""

import io
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from primekd.config import Profile, TeacherConfig, VllmConfig
from primekd.foundation.errors import UserError
from primekd.foundation.memory import release_gpu_memory
from primekd.models import build_prompt, load_tokenizer, model_hash, turn_end
from primekd.tasks.protocol import Item
from primekd.teachers.protocol import Ids, Response, Rows, Sampling, TeacherEngine, TopLogprobs, Want, require_fit
from primekd.teachers.vllm_loading import head_dtype, import_vllm, require_gpus, require_servable, start_options


class VllmEngine(TeacherEngine):
    """A model served by vLLM; a GGUF file from its exact dequantised copy, as vLLM reads GGUF through a plug-in alone.
    `config` is the profile's teacher; for students, their model in a teacher's place. `top_k`: how many tokens a row of
    "top" shows. `adapters`: peft folders that `wearing` may name; a server with adapters generates only. Raises
    UserError if vLLM is missing, or model, GPUs and settings do not fit each other."""

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
        try:
            self.llm = self.package.LLM(**options)
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            # What goes wrong in vLLM's own processes reaches us as "see root cause above".
            raise UserError(
                f"vLLM cannot start {self.reference} ({first_line(error)}): if what it printed above speaks of memory, "
                "lower teacher.context_tokens or batch_size or use more GPUs; else take another model or engine."
            ) from error
        if not sum(self.llm.collective_rpc("cut_vocabulary", args=(self.vocab_size,))):
            raise UserError(f"vLLM's {config.model} has no head that can be cut: set another teacher.engine.")

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        release_gpu_memory()

    def identity(self) -> dict[str, Any]:
        return {
            "engine": self.name, "model": self.reference, "model_sha256": model_hash(self.reference),
            "dtype": self.config.dtype, "head_dtype": head_dtype(self.config),
            **self.settings.model_dump(include={"quantization", "tensor_parallel", "pipeline_parallel"}),
            "device": self.device, "vllm": self.package.__version__, "torch": torch.__version__,
        }  # fmt: skip

    def generate(self, prompts: Ids, sampling: Sampling, adapter: Path | None = None) -> list[Response]:
        """As the protocol has it; `adapter` is one of `adapters`, or None for the model itself."""
        for prompt in prompts:
            require_fit(len(prompt) + sampling.max_new_tokens, self.longest)
        ends = turn_end(self.tokenizer).stops
        settings = [self.package.SamplingParams(**s) for s in generation_settings(sampling, ends, len(prompts))]
        outputs = self._ask(prompts, settings, adapter, ended_bar(sampling.ended))
        responses = [list(output.outputs[0].token_ids) for output in outputs]
        return [Response(ids, truncated=ids[-1] not in ends) for ids in responses]

    def wearing(self, adapter: Path | None) -> SimpleNamespace:
        """The same server with an adapter put on: what answers are generated with."""
        return SimpleNamespace(generate=partial(self.generate, adapter=adapter))

    def score(self, prompts: Ids, responses: Ids, want: Want) -> Rows:
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
                require_fit(len(sequence), self.longest)
            for prompt, sequence, output in zip(prompts[start:], batch, self._ask(batch, settings), strict=False):
                top = response_rows(output, sequence, len(prompt), shown)
                rows.append(top if want == "top" else by_column(top))
        return rows

    def _ask(self, prompts: Ids, settings, adapter: Path | None = None, bar: Callable[..., Any] | bool = False) -> list:
        request = None
        if adapter is not None:  # vLLM adds its product to each layer's in `dtype`, as in training
            from vllm.lora.request import LoRARequest

            request = LoRARequest(adapter.parent.name, self.adapters.index(adapter) + 1, str(adapter))
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        try:
            outputs = self.llm.generate(asked, settings, use_tqdm=bar, lora_request=request)
        except Exception as error:  # its processes die in many ways
            raise UserError(f"vLLM stopped while it worked ({first_line(error)}): run again, it goes on.") from error
        for prompt, output in zip(prompts, outputs, strict=True):
            if list(output.prompt_token_ids) != prompt:
                raise UserError("vLLM answered another prompt than it was asked: this version cannot be used.")
        return outputs


def students_config(profile: Profile, items: Sequence[Item]) -> TeacherConfig:
    """The students' base in a teacher's place, with room for the longest question. Raises UserError for 4-bit ones."""
    student = profile.student
    if student.quantization is not None:
        trained = f"these were trained on a base in {student.quantization}: set assess.engine to transformers"
        raise UserError(f"assess.engine vllm serves students in {student.dtype}, and {trained}.")
    tokenizer = load_tokenizer(student)
    longest = max(len(build_prompt(tokenizer, item.messages)) for item in items)
    return TeacherConfig(
        engine="vllm", model=student.model, dtype=student.dtype, vllm=profile.assess.vllm,
        template_of=student.template_of, template_arguments=student.template_arguments,
        batch_size=profile.assess.batch_size, context_tokens=longest + profile.max_new_tokens,
    )  # fmt: skip


def open_students(profile: Profile, items: Sequence[Item], adapters: Sequence[Path]) -> VllmEngine:
    """Starts vLLM on the students' base model, as assess.vllm says, with room for these adapters
    (`VllmEngine.wearing`). Raises UserError as `VllmEngine`, or for 4-bit students."""
    return VllmEngine(students_config(profile, items), top_k=1, adapters=adapters)


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
    of its own, or equal ones would get equal responses. Raises UserError for a temperature that vLLM would not take."""
    heat = sampling.temperature
    if heat != 0 and not 0.01 <= heat <= 2:
        raise UserError(f"vLLM samples at temperatures from 0.01 to 2, not {heat}: mend teacher.sampling_temperature.")
    common = {
        "n": 1, "temperature": heat, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": sorted(ends), "ignore_eos": True, "detokenize": False,
    }  # fmt: skip
    if heat == 0:
        return [common] * count
    seeds = sampling.seeds or np.random.SeedSequence(sampling.seed).generate_state(count)
    return [common | {"seed": int(s)} for s in seeds]


def scoring_settings(shown: int) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` that return the `shown` likeliest tokens of every place of a prompt. One token
    has to be generated, and is thrown away. Prompts that are scored read no prefix cache, by vLLM's own rule."""
    return {
        "temperature": 0.0, "max_tokens": 1, "ignore_eos": True, "detokenize": False, "prompt_logprobs": shown,
        "flat_logprobs": True,
    }  # fmt: skip


def response_rows(output, sequence: list[int], prompt_length: int, shown: int) -> TopLogprobs:
    """The rows of a response, `shown` tokens each, out of vLLM's flat log-probs of prompt + response.

    Entry i is what predicts token i, so response token t is entry prompt_length + t. Each entry begins with the token
    that stands there, which is dropped, and the `shown` likeliest, best first. Raises UserError for other entries."""
    flat, shape = output.prompt_logprobs, (len(sequence) - prompt_length, shown + 1)
    if flat is not None and len(flat) == len(sequence):
        start, end = flat.start_indices[prompt_length], flat.end_indices[-1]
        if end - start == shape[0] * shape[1]:
            ids = torch.tensor(flat.token_ids[start:end]).reshape(shape)
            log_probs = torch.tensor(flat.logprobs[start:end], dtype=torch.float32).reshape(shape)
            if ids[:, 0].tolist() == sequence[prompt_length:]:
                return TopLogprobs(ids[:, 1:].contiguous(), log_probs[:, 1:].contiguous())
    raise UserError("vLLM returned other log-probs than it was asked for: this version cannot be used.")


def by_column(rows: TopLogprobs) -> Tensor:
    """(T, V) out of rows that show every token. Raises UserError if a row does not show each once."""
    known = rows.ids < rows.ids.shape[1]
    if not (known.all() and torch.zeros_like(known).scatter_(1, rows.ids, True).all()):
        raise UserError("vLLM's log-probs do not name every token once: set teacher.vllm.full_logprobs to false.")
    return torch.full_like(rows.log_probs, -torch.inf).scatter_(1, rows.ids, rows.log_probs)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
