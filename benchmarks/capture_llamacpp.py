"""Capture with llama.cpp: one sequence at a time, several at a time, and several with their signals written."""

import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import torch

from benchmarks.timing import alternate, shown, spread
from benchmarks.whole_capture import STRATEGY, capture_growth
from primekd.config import load_profile
from primekd.config.arms import get_arm
from primekd.models import load_tokenizer, parse_reference, require_local
from primekd.models.chat import build_prompt
from primekd.signals import StoredItem, make_codec
from primekd.signals.shards import save_shard
from primekd.tasks.load import load_items
from primekd.teachers import Response, Sampling
from primekd.teachers.llamacpp_engine import LlamaCppEngine

PROFILE = "pocket-plain"  # a GGUF model is needed, which the profile `ci` has not
OWN_LOOP = "llama-cpp-python's own loop"


def measure(items: int, rounds: int = 3, growth_items: int = 4, budget_s: float = 130, say=print) -> dict[str, Any]:
    """Tokens a second of the same questions, in alternating rounds.

    "single stream" is the engine with one sequence and one prompt a call, so that no prefix is shared; "parallel" asks
    all prompts side by side; "capture" is parallel with hidden states collected, encoded and written. `OWN_LOOP` is
    `Llama.generate`, greedy, with as many threads.

    Returns:
        alternatives: {name: {"tokens_per_second", "ratio" to the single stream, each with median, low and high}};
        capture_share: capture's rate as a share of the plain parallel one, round by round; equal_answers: how many of
        the single stream's answers the parallel run repeats; growth: items, `growth_items` and 8 times as many ->
        {"seconds", "peak_bytes"} of one run each in a process of its own, above the loaded engine;
        shared_prefix_tokens, prompt_tokens, threads, items.
    """
    profile = load_profile(PROFILE)
    tokenizer, strategy = load_tokenizer(profile.teacher.model), get_arm(STRATEGY)
    questions = load_items(profile, "train", items)
    prompts = [build_prompt(tokenizer, item.messages, strategy.priming) for item in questions]
    sampling, codec = Sampling(profile.max_new_tokens), make_codec(profile.signals, LlamaCppEngine.offers)
    one, many = (LlamaCppEngine(profile.teacher.model, profile.teacher.context_tokens, n) for n in (1, len(prompts)))
    public = llama_cpp.Llama(
        str(require_local(parse_reference(profile.teacher.model))),
        n_ctx=profile.teacher.context_tokens,
        n_threads=torch.get_num_threads(),
        n_threads_batch=torch.get_num_threads(),
        n_gpu_layers=-1,
        verbose=False,
    )
    answers: dict[str, list[Response]] = {}
    few = prompts[: (len(prompts) + 1) // 2]  # what takes one prompt after the other is given half of them

    def own_loop() -> None:
        answers[OWN_LOOP] = [_own_answer(public, prompt, sampling, tokenizer.eos_token_id) for prompt in few]

    def single() -> None:
        answers["single stream"] = [one.generate([prompt], sampling)[0] for prompt in few]

    def parallel() -> None:
        answers["parallel"] = many.generate(prompts, sampling)

    with tempfile.TemporaryDirectory() as folder:

        def capture() -> None:
            responses, rows = many.generate_scored(prompts, sampling, codec.needs)
            answers["capture"] = responses
            stored = [
                StoredItem(question.id, prompt, response.ids, response.truncated)
                for question, prompt, response in zip(questions, prompts, responses, strict=True)
            ]
            columns = [codec.encode(states, item) for item, states in zip(stored, rows, strict=True)]
            save_shard(Path(folder) / "shard.safetensors", stored, columns, "")

        runs = {"single stream": single, "parallel": parallel, "capture": capture, OWN_LOOP: own_loop}
        warm_up = [lambda: many.generate(prompts[:2], Sampling(2))]
        # The slow ones, whose spread no bar needs, take part in few rounds; capture and parallel in all.
        times = alternate(runs, rounds, budget_s, say, warm_up, fewer={"single stream": 2, OWN_LOOP: 1})
    shared = many.shared_prefix(prompts)
    for loaded in (one, many, public):
        loaded.close()
    rates = {name: [_tokens(answers[name]) / s for s in seconds] for name, seconds in times.items()}
    ratios = {
        name: spread([a / b for a, b in zip(values, rates["single stream"], strict=False)])
        for name, values in rates.items()
    }
    share = spread([a / b for a, b in zip(rates["capture"], rates["parallel"], strict=True)])
    say("; ".join(f"{name}: {shown(ratio)} x the single stream" for name, ratio in ratios.items()))
    say(f"capture's rate against plain parallel generation: {shown(share)} x")
    return {
        "items": len(prompts),
        "threads": torch.get_num_threads(),
        "prompt_tokens": sum(map(len, prompts)),
        "shared_prefix_tokens": shared,
        "response_tokens": _tokens(answers["parallel"]),
        "alternatives": {
            name: {
                "tokens_per_second": spread(values),
                "ratio": ratios[name],
                "rounds": len(values),
            }
            for name, values in rates.items()
        },
        "capture_share": share,
        "growth": {n * growth_items: capture_growth(PROFILE, n * growth_items, "llamacpp", say) for n in (1, 8)},
        "equal_answers": sum(a == b for a, b in zip(answers["single stream"], answers["parallel"], strict=False)),
    }


def _own_answer(public: llama_cpp.Llama, prompt: list[int], sampling: Sampling, end: int) -> Response:
    ids: list[int] = []
    public.reset()  # else a prefix that the prompt shares with the one before would not be read again
    for token in public.generate(prompt, temp=0.0, repeat_penalty=1.0):
        ids.append(token)
        if token == end or len(ids) == sampling.max_new_tokens:
            break
    return Response(ids, truncated=ids[-1] != end)


def _tokens(responses: list[Response]) -> int:
    return sum(len(response.ids) for response in responses)
