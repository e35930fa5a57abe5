"""The sections `teacher` (with one part for each engine) and `signals`."""

import os
import re
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from primekd.config.section import Positive, Section, Speaker

# Fields of a request that the engine sets itself, or that make one request cost more than is booked for it.
REFUSED_FIELDS = {
    "model", "models", "messages", "prompt", "suffix", "input", "stream", "stream_options", "logprobs", "top_logprobs",
    "prompt_logprobs", "echo", "temperature", "seed", "stop", "stop_token_ids", "n", "best_of", "num_return_sequences",
    "use_beam_search", "beam_width", "n_predict", "num_predict", "min_tokens", "ignore_eos", "tools", "tool_choice",
    "functions", "function_call", "web_search_options", "plugins", "service_tier", "prediction", "modalities", "audio",
    "extra_body",
}  # fmt: skip
# `token` names a secret, but `skip_special_tokens`, `allowed_token_ids` and `thinking_token_budget` do not.
SECRET_NAME = re.compile(r"key|secret|auth|passw|credential|bearer|cookie|(api|access)_?token|token(?!s|_?id|_budget)")


class ExLlamaConfig(Section):
    """ExLlamaV2. Without `gpu_split` (GiB for each GPU) the model fills one GPU after the other (`load_autosplit`).

    `cache_tokens` is the KV cache that all sequences in flight share; left out, it holds a whole batch."""

    cache_type: Literal["FP16", "Q8", "Q6", "Q4"] = "FP16"
    cache_tokens: Positive | None = None
    gpu_split: tuple[float, ...] | None = None
    tensor_parallel: bool = False


class VllmConfig(Section):
    """vLLM. GPUs used: tensor_parallel * pipeline_parallel. `backend` ray reaches over several nodes, mp stays on one.

    `full_logprobs` returns every token's log-probability instead of the top ones: exact, slow and large."""

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
    puts a BOS of its own before every text. `limit_field` is the server's name for the limit of an answer's tokens; it
    is always sent, as the cap rests on it. `request` holds further fields of every request, as the server names them:
    penalties and cut-offs that the server has on by default are switched off there. It can neither replace what the
    engine sets (`top_p: null` leaves that one out) nor multiply the cost, and holds no secrets.

    `requests_per_minute` is the pace of one process: divide a provider's limit by the workers that capture at once.

    `own_server` starts llama-cpp-python's server on this machine for as long as a capture lasts, with `teacher.model`,
    a GGUF file, and a key of its own; `base_url` and `key_variable` are not read. `stop_at_line_end` asks for the first
    line of an answer alone. `withheld_is_empty`: an answer that the provider's filter withholds (`content_filter`), or
    with a control token in it, counts as an empty one, which a task of labels drops and counts; else it ends the
    capture."""

    model: str
    own_server: bool = False
    stop_at_line_end: bool = False
    withheld_is_empty: bool = False
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    prompt: Literal["messages", "ids", "text", "text-without-bos"] = "messages"
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
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

    @field_validator("request")
    @classmethod
    def further_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if re.match("max_?", name.lower()) or name.lower() in REFUSED_FIELDS:
                fix = "take it out (the name of the length limit is chosen with limit_field)"
                raise ValueError(f"{name} is set by the engine or changes what a request may cost: {fix}")
            if name.lower() == "top_p" and value[name] is not None:
                raise ValueError("top_p is set by the engine: take it out, or write null to leave it out of requests")
        return value

    @model_validator(mode="after")
    def without_secrets(self) -> "ApiConfig":
        """Checked here, not by the engine: manifests are begun before the teacher is opened."""
        key = os.environ.get(self.key_variable, "").strip()
        entries = list(_entries(self.request))
        texts = [self.model, self.base_url, *(text for entry in entries for text in entry if isinstance(text, str))]
        if key and any(key in text.split() for text in texts):  # "Bearer <key>" too
            raise ValueError(f"holds the value of {self.key_variable}: take it out, the engine sends it by itself")
        for name, _ in entries:
            if name.lower() == "tokens" or SECRET_NAME.search(name.lower().replace("-", "_")):
                fix = "take it out, and put the key into the environment variable of key_variable"
                raise ValueError(f"request.{name} looks like a secret, and profiles are copied into manifests: {fix}")
        return self


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Everything in a nested value with its name, which is empty in a list; what is deeper comes first."""
    parts = [("", part) for part in value] if isinstance(value, list) else []
    if isinstance(value, dict):
        parts = [(str(name), part) for name, part in value.items()]
    for _, part in parts:
        yield from _entries(part)
    yield from parts


class TeacherConfig(Speaker):
    """The teacher and the engine that serves it. `sampling_temperature` 0 is greedy decoding.

    `priming_placement`: a priming text is the `system` message, or stands in front of the question (`user`), with a
    blank line between: for templates without a system role. A strategy's own `placement` goes before it.
    `priming_mode`: as the system message it replaces the model's default one, or stands behind it (`add`).

    `instruction` is what it reads, there too, under every arm that has no priming: for a task that needs examples.

    `model` is what the engine loads; with the engine api only its tokenizer is used, and `api.model` is the name that
    the server knows. `dtype` belongs to transformers and vllm, `quantization` (4 bits, by bitsandbytes) to transformers
    alone. `made_from` is the hub's model that a local `model` is converted from by hand."""

    engine: Literal["transformers", "llamacpp", "exllamav2", "vllm", "api"]
    priming_placement: Literal["system", "user"] = "system"
    priming_mode: Literal["replace", "add"] = "replace"
    instruction: str | None = None
    made_from: str | None = Field(None, pattern="^hub:.+")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantization: Literal["nf4"] | None = None
    batch_size: Positive = 32
    sampling_temperature: float = Field(0.0, ge=0, le=100)
    context_tokens: Positive = 2048
    exllamav2: ExLlamaConfig | None = None
    vllm: VllmConfig | None = None
    api: ApiConfig | None = None

    @field_validator("sampling_temperature")
    @classmethod
    def greedy_or_warm(cls, value: float) -> float:
        if 0 < value < 0.01:  # logits divided by it may be infinite
            raise ValueError("must be 0, which is greedy decoding, or at least 0.01")
        return value

    @model_validator(mode="after")
    def complete(self) -> "TeacherConfig":
        if self.quantization and self.engine != "transformers":
            raise ValueError(f"quantization is for the engine transformers: {self.engine} loads what model is")
        if self.engine == "api" and self.api is None:
            raise ValueError("engine api needs a part `api` with model, prices and max_spend_usd")
        if self.engine == "api" and self.api.own_server and not self.model.partition("@")[0].endswith(".gguf"):
            raise ValueError("api.own_server serves a GGUF file: name one as teacher.model")
        if self.engine == "api" and self.api.prompt == "messages" and (self.template_arguments or self.template_of):
            raise ValueError(
                "with api.prompt messages the server renders the conversation: set api.prompt to text, or leave out "
                "template_of and template_arguments and tell the server (vLLM: api.request.chat_template_kwargs)"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that a response or a signal depends on: not where a model is put, nor what the prompt says."""
        parts = {
            "exllamav2": {"cache_type"},
            "vllm": {"quantization", "full_logprobs"},
            "api": {"model", "base_url", "logprobs", "prompt", "request", "stop_at_line_end"},
        }
        left_out = {"made_from", "sha256", "priming_placement", "priming_mode", "instruction"}
        left_out |= set() if self.template_arguments else {"template_arguments"}
        values = self.model_dump(mode="json", exclude_none=True, exclude=left_out)
        for name in set(parts) & set(values):
            values[name] = {key: value for key, value in values[name].items() if key in parts[name]}
        if self.engine == "api":
            values["api"] |= {"base_url": "own"} if self.api.own_server else {}
            if not self.api.stop_at_line_end:  # as it was before there was such
                del values["api"]["stop_at_line_end"]
        return {key: value for key, value in values.items() if key not in parts or key == self.engine}

    @property
    def local(self) -> bool:
        """Whether its weights lie here; of others nothing is known."""
        return self.engine != "api" or self.api.own_server

    @property
    def offers(self) -> frozenset[str]:
        """What the engine can score, as far as it is known before the teacher is loaded."""
        if self.engine == "api":
            return frozenset({"top"} if self.api.logprobs else ())
        if self.engine == "vllm":
            return frozenset({"top", "logits"} if self.vllm and self.vllm.full_logprobs else {"top"})
        return frozenset({"hidden", "logits"})


class SignalsConfig(Section):
    """How teacher signals are kept. `auto` is `hidden` where the engine offers it, else `topk`, else `text`;
    a model whose hidden states turn out to be no logits (a head with a bias) is refused, and needs `topk` by name.

    `top_k` and `topk_temperature` belong to the codec `topk`: it keeps the distribution at that temperature, and can
    serve no other. So does `sampled` with a random sample of it: each row's tokens above a probability of
    1 / `sampled_points`, and of the others a few by chance. `text` keeps responses alone, to train on pseudo-labels."""

    codec: Literal["auto", "full", "hidden", "topk", "sampled", "text"] = "auto"
    top_k: Positive = 64
    topk_temperature: float = Field(1.0, ge=0.01, le=100)
    sampled_points: int = Field(64, ge=1, le=65536)
    sampled_temperature: float = Field(1.0, ge=0.01, le=100)
    items_per_shard: Positive = 32
