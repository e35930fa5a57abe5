"""Capture with transformers against the same engine's plain generation, and against what is usually written instead."""

from typing import Any

import torch

from benchmarks.timing import alternate, shown, spread
from benchmarks.whole_capture import STRATEGY, capture_growth, capture_into_nowhere
from primekd.config import Profile, load_profile
from primekd.config.arms import get_arm
from primekd.models import load_model, load_tokenizer
from primekd.models.chat import build_prompt
from primekd.models.served import plain_generation
from primekd.tasks.load import load_items
from primekd.tasks.protocol import Item
from primekd.teachers import Sampling
from primekd.teachers.transformers_engine import TransformersEngine

LIBRARY, GENERATE, CAPTURE = "transformers' generate with output_logits", "plain generation", "capture"
GROWTH = (1, 2, 4, 8)


def measure(
    items: int = 32,
    profile: str = "pocket-plain",
    rounds: int = 3,
    growth_items: int = 4,
    budget_s: float = 110,
    say=print,
) -> dict[str, Any]:
    """Tokens a second of all three on the same prompts; time and memory at 1, 2, 4 and 8 times `growth_items` items.

    Args:
        items: twice as many are asked; the library is given the first shard of them.

    Returns:
        rates: of each alternative tokens a second with spread; ratio: capture to plain generation, round by round;
        seconds; rounds; tokens; equal: answers that the library gives too, of those compared; rows: how far collected
        rows are from `score`'s;
        growth: items -> {"seconds", "peak_bytes"} of one run each in a process of its own, above the loaded engine.
    """
    chosen = load_profile(profile)
    engine = TransformersEngine(chosen.teacher.model, chosen.teacher.dtype, chosen.teacher.batch_size)
    questions = load_items(chosen, "train", 2 * items)
    size = chosen.signals.items_per_shard
    blocks = [_prompts(chosen, questions[start : start + size]) for start in range(0, len(questions), size)]
    sampling = Sampling(chosen.max_new_tokens)
    library = load_model(chosen.teacher.model, chosen.teacher.dtype)
    said: dict[str, list[list[int]]] = {}

    def ask_library() -> None:
        said[LIBRARY] = generate_with_logits(library, engine, blocks[0], sampling)  # half of them: it is slow

    def ask_engine() -> None:
        said[GENERATE] = [r.ids for block in blocks for r in engine.generate(block, sampling)]

    def capture() -> None:
        capture_into_nowhere(engine, chosen, questions)

    warm_up = [  # imports take seconds
        lambda: engine.generate(blocks[0], Sampling(8)),
        lambda: capture_into_nowhere(engine, chosen, questions[:2]),
    ]
    runs = {LIBRARY: ask_library, GENERATE: ask_engine, CAPTURE: capture}
    # The library is the slow one, and no bar asks for it.
    times = alternate(runs, rounds, budget_s, say, warm_up, fewer={LIBRARY: 1})
    counts = {name: sum(map(len, ids)) for name, ids in said.items()}
    counts[CAPTURE] = tokens = counts[GENERATE]
    rates = {name: [counts[name] / value for value in values] for name, values in times.items()}
    ratio = spread([a / b for a, b in zip(times[GENERATE], times[CAPTURE], strict=True)])
    to_library = spread([a / b for a, b in zip(rates[CAPTURE], rates[LIBRARY], strict=False)])
    rows = compare_rows(engine, blocks[0][: items // 2], sampling)
    say(f"capture's rate against {GENERATE}: {shown(ratio)} x; against {LIBRARY}: {shown(to_library)} x")
    return {
        "profile": profile,
        "items": len(questions),
        "tokens": tokens,
        "threads": torch.get_num_threads(),
        "seconds": {name: spread(values) for name, values in times.items()},
        "rates": {name: spread(values) for name, values in rates.items()},
        "rounds": {name: len(values) for name, values in times.items()},
        "ratio": ratio,
        "to_library": to_library,
        "equal": sum(a == b for a, b in zip(said[LIBRARY], said[GENERATE], strict=False)),
        "compared": len(said[LIBRARY]),
        "rows": rows,
        "growth": {n * growth_items: capture_growth(profile, n * growth_items, "transformers", say) for n in GROWTH},
    }


def _prompts(profile: Profile, items: list[Item]) -> list[list[int]]:
    tokenizer = load_tokenizer(profile.teacher.model)
    return [build_prompt(tokenizer, item.messages, get_arm(STRATEGY).priming) for item in items]


def generate_with_logits(model, engine: TransformersEngine, prompts: list[list[int]], sampling: Sampling):
    """A padded batch through the library, every step's logits of the whole vocabulary kept; the responses' ids."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), engine.tokenizer.pad_token_id)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
    mask = torch.stack([torch.arange(longest) >= longest - len(prompt) for prompt in prompts]).long()
    config = plain_generation(model, engine.tokenizer, max_new_tokens=sampling.max_new_tokens)
    config.output_logits, config.return_dict_in_generate = True, True
    output = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
    )
    torch.stack(output.logits, dim=1)  # (B, T, V), to be kept
    return [engine._cut(row[longest:].tolist(), sampling).ids for row in output.sequences]


def compare_rows(engine: TransformersEngine, prompts: list[list[int]], sampling: Sampling) -> dict[str, float]:
    """KL(score || collected while generating), nats a token."""
    responses, collected = engine.generate_scored(prompts, sampling, "logits")
    scored = engine.score(prompts, [r.ids for r in responses], "logits")
    divergences = []
    for own, other in zip(collected, scored, strict=True):
        p, q = other.double().log_softmax(-1), own.double().log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1))
    every = torch.cat(divergences)
    return {"mean_kl_nats": float(every.mean()), "max_kl_nats": float(every.max()), "tokens": len(every)}
