"""Generating the answers of an assessment: in batches that rows leave, against one by one with the same engine.

Rates are of tokens: one by one only some of the items are answered, which may be shorter or longer than the others.
"""

from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import alternate, shown, spread
from primekd.config import Profile, load_profile
from primekd.foundation import project_root
from primekd.models import load_tokenizer
from primekd.models.chat import build_prompt
from primekd.tasks.load import load_items
from primekd.teachers import Response, Sampling
from primekd.teachers.transformers_engine import TransformersEngine

ADAPTER = Path("models") / "teachers" / "pocket-adapter" / "adapter"  # of the students' base model
NEW_TOKENS = 96  # the base model's answers run to the limit: the profile's would take minutes
SINGLE_SHARE = 10  # one by one takes so long that it answers a tenth of the items


def measure(
    items: int = 32, profile: str = "pocket-plain", rounds: int = 2, budget_s: float = 25, say=print
) -> dict[str, Any]:
    """Tokens a second of the students' base model and of the same one with an adapter merged into it.

    Args:
        items: answered one by one is a tenth of them.

    Returns:
        Of each model the rates with spread, their ratio, and how many answers are equal; the latter of the last model
        in float32 too.
    """
    chosen = load_profile(profile)
    adapter = project_root() / ADAPTER
    models = {"base model": None} | ({"with an adapter": adapter} if profile == "pocket-plain" else {})
    tokenizer = load_tokenizer(chosen.student.model)
    prompts = [build_prompt(tokenizer, item.messages) for item in load_items(chosen, "test")[:items]]
    single = prompts[: max(2, items // SINGLE_SHARE)]
    found = {}
    for name, path in models.items():
        # The base model's answers run to the limit, so it takes long; one round of it has to do.
        last = name == [*models][-1]
        found[name] = _measure_model(chosen, path, prompts, single, rounds if last else 1, budget_s)
        say(f"{name}: in batches {shown(found[name]['ratio'])} x as many tokens a second as one by one")
    return {
        "profile": profile,
        "batch_size": chosen.assess.batch_size,
        "threads": torch.get_num_threads(),
        "models": found,
        "float32": {name: _equal_in_float32(chosen, path, single) for name, path in [*models.items()][-1:]},
    }


def _measure_model(
    profile: Profile, adapter: Path | None, prompts: list[list[int]], single: list[list[int]], rounds: int,
    budget_s: float,
) -> dict[str, Any]:  # fmt: skip
    engine = _engine(profile, adapter, profile.student.dtype)
    sampling = Sampling(min(NEW_TOKENS, profile.max_new_tokens))
    said: dict[str, list[Response]] = {}

    def one_by_one() -> None:
        said["one by one"] = [engine.generate([prompt], sampling)[0] for prompt in single]

    def in_batches() -> None:
        said["in batches"] = engine.generate(prompts, sampling)

    warm_up = [lambda: engine.generate(prompts[:2], Sampling(2))]
    times = alternate({"one by one": one_by_one, "in batches": in_batches}, rounds, budget_s, warm_up=warm_up)
    count = {"one by one": len(single), "in batches": len(prompts)}
    tokens = {name: sum(len(r.ids) for r in responses) for name, responses in said.items()}
    rates = {name: [tokens[name] / seconds for seconds in values] for name, values in times.items()}
    return {
        "items": count,
        "tokens_per_second": {name: spread(values) for name, values in rates.items()},
        "ratio": spread([b / a for a, b in zip(rates["one by one"], rates["in batches"], strict=True)]),
        "tokens": tokens,
        "truncated": sum(r.truncated for r in said["in batches"]),
        **compare_answers(engine, single, said["one by one"], said["in batches"]),
    }


def compare_answers(
    engine: TransformersEngine, prompts: list[list[int]], one_by_one: list[Response], batched: list[Response]
) -> dict[str, Any]:
    """How many answers are equal, and where they part how far apart the two tokens are, in nats.

    A difference of sums in the last bits can only decide between tokens that are nearly equally likely.
    """
    gaps = []
    for prompt, a, b in zip(prompts, one_by_one, batched, strict=False):
        if a.ids != b.ids:
            at = next((i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), None)
            if at is not None:
                (logits,) = engine.score([prompt], [a.ids[: at + 1]], "logits")
                gaps.append(abs(float(logits[at, a.ids[at]] - logits[at, b.ids[at]])))
    equal = sum(a.ids == b.ids for a, b in zip(one_by_one, batched, strict=False))
    return {"compared": len(prompts), "equal": equal, "gaps_nats": sorted(gaps)}


def _equal_in_float32(profile: Profile, adapter: Path | None, prompts: list[list[int]]) -> dict[str, Any]:
    engine, sampling = _engine(profile, adapter, "float32"), Sampling(min(NEW_TOKENS, profile.max_new_tokens) // 2)
    alone = [engine.generate([prompt], sampling)[0] for prompt in prompts]
    return compare_answers(engine, prompts, alone, engine.generate(prompts, sampling))


def _engine(profile: Profile, adapter: Path | None, dtype: str) -> TransformersEngine:
    student = profile.student
    return TransformersEngine(student.model, dtype, profile.assess.batch_size, adapter, merged=adapter is not None)
