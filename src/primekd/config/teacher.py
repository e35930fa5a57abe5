"""The sections `teacher` (with one part for each engine) and `signals`."""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from primekd.config.section import Positive, Section


class ExLlamaConfig(Section):
    """ExLlamaV2. Without `gpu_split` (GiB for each GPU) the model fills one GPU after the other (`load_autosplit`).

    `cache_tokens` is the KV cache that all sequences in flight share; left out, it holds a whole batch.
    """

    cache_type: Literal["FP16", "Q8", "Q6", "Q4"] = "FP16"
    cache_tokens: Positive | None = None
    gpu_split: tuple[float, ...] | None = None
    tensor_parallel: bool = False


class VllmConfig(Section):
    """vLLM. GPUs used: tensor_parallel * pipeline_parallel. `backend` ray reaches over several nodes, mp stays on one.

    `full_logprobs` returns every token's log-probability instead of the top ones: exact, slow and large.
    """

    tensor_parallel: Positive = 1
    pipeline_parallel: Positive = 1
    backend: Literal["mp", "ray"] | None = None
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    quantization: str | None = None
    full_logprobs: bool = False


class ApiConfig(Section):
    """An OpenAI-compatible endpoint. The key is read from the environment variable `key_variable`, and kept nowhere.

    No request is sent that could bring the profile's spending above `max_spend_usd`; write 0 for all three amounts
    where the server is your own. `logprobs: false` is for servers that give none: their text alone is kept.

    `prompt` is what is sent: `messages` to /chat/completions, where the server's own template renders them; or, to
    /completions, the prompt as our template renders it, as `ids`, as `text`, or as `text-without-bos` for a server that
    puts a BOS of its own before every text. `request` holds further fields of every request, as the server names them
    (null leaves one of ours out): penalties and cut-offs that the server has on by default are switched off there.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    prompt: Literal["messages", "ids", "text", "text-without-bos"] = "messages"
    request: dict[str, Any] = {}
    logprobs: bool = True
    usd_per_million_input: float = Field(ge=0)
    usd_per_million_output: float = Field(ge=0)
    max_spend_usd: float = Field(ge=0)
    requests_per_minute: Positive | None = None
    concurrency: Positive = 4
    retries: int = Field(6, ge=0)
    timeout_seconds: float = Field(120.0, gt=0)

    @field_validator("base_url")
    @classmethod
    def address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("not an address such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:  # profiles are copied into manifests
            raise ValueError("holds a password: put the key into the environment variable of key_variable")
        return value.rstrip("/")


class TeacherConfig(Section):
    """The teacher and the engine that serves it. `sampling_temperature` 0 is greedy decoding.

    `model` is what the engine loads; with the engine api only its tokenizer is used, and `api.model` is the name that
    the server knows. `dtype` belongs to transformers and vllm.
    """

    engine: Literal["transformers", "llamacpp", "exllamav2", "vllm", "api"]
    model: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_size: Positive = 32
    sampling_temperature: float = Field(0.0, ge=0)
    context_tokens: Positive = 2048
    exllamav2: ExLlamaConfig | None = None
    vllm: VllmConfig | None = None
    api: ApiConfig | None = None

    @model_validator(mode="after")
    def complete(self) -> "TeacherConfig":
        if self.engine == "api" and self.api is None:
            raise ValueError("engine api needs a part `api` with model, prices and max_spend_usd")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that a response or a signal depends on; where a model is put and what it costs are none."""
        parts = {
            "exllamav2": {"cache_type"},
            "vllm": {"quantization", "full_logprobs"},
            "api": {"model", "base_url", "logprobs", "prompt", "request"},
        }
        values = self.model_dump(mode="json", exclude_none=True)
        for name, kept in parts.items():
            if name in values:
                values[name] = {key: value for key, value in values[name].items() if key in kept}
        return {key: value for key, value in values.items() if key not in parts or key == self.engine}

    @property
    def offers(self) -> frozenset[str]:
        """What the engine can score, as far as it is known before the teacher is loaded."""
        if self.engine == "api":
            return frozenset({"top"} if self.api.logprobs else ())
        if self.engine == "vllm":
            return frozenset({"top", "logits"} if self.vllm and self.vllm.full_logprobs else {"top"})
        return frozenset({"hidden", "logits"})


class SignalsConfig(Section):
    """How teacher signals are kept. `auto` is `hidden` where the engine offers it, else `topk`, else `text`.

    `top_k` and `topk_temperature` belong to the codec `topk`: it keeps the distribution at that
    temperature, and can serve no other. `text` keeps responses alone, for training on pseudo-labels.
    """

    codec: Literal["auto", "full", "hidden", "topk", "text"] = "auto"
    top_k: Positive = 64
    topk_temperature: float = Field(1.0, gt=0)
    items_per_shard: Positive = 32
