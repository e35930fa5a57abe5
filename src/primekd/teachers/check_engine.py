"""One engine against the transformers reference, on a profile's own questions: what the README's engine table says."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from primekd.chat import build_prompt
from primekd.config import Profile
from primekd.errors import UserError
from primekd.items import load_items
from primekd.metering import Meter
from primekd.models import load_tokenizer, model_hash
from primekd.provenance import environment, now, output_root, write_json
from primekd.strategies import get_strategy
from primekd.teachers import Sampling, open_engine
from primekd.teachers.agreement import agree


def checks_folder() -> Path:
    """logs/engines/, one JSON file an engine."""
    return output_root() / "logs" / "engines"


def check_engine(profile: Profile, items: int, strategy: str, reference: str | None = None) -> dict[str, Any]:
    """Lets the profile's engine answer questions, and scores its answers with both engines.

    Args:
        items: how many test questions are asked.
        strategy: whose priming text the teacher sees.
        reference: model reference for transformers in float32; the teacher's own file if left out.

    Returns:
        What is written to logs/engines/<engine>.json: agreement, share of equal greedy answers, tokens a second,
        the engine's identity and versions.

    Raises:
        UserError: the engine cannot run here, or the reference is another model.
    """
    from primekd.teachers.transformers_engine import TransformersEngine

    if profile.teacher.sampling_temperature != 0:
        raise UserError("Engines are compared on greedy answers: set teacher.sampling_temperature to 0.")
    model = reference or profile.teacher.model
    chosen, tokenizer = get_strategy(strategy), load_tokenizer(profile.teacher.model)
    questions = load_items(profile, "test")[:items]
    prompts = [build_prompt(tokenizer, item.question, chosen.priming) for item in questions]
    sampling = Sampling(profile.max_new_tokens)
    start = now()
    with Meter() as meter:
        engine = open_engine(profile)
        began = time.monotonic()
        responses = engine.generate(prompts, sampling)
        seconds = time.monotonic() - began
        plain = TransformersEngine(model, "float32", profile.teacher.batch_size)
        agreement = agree(plain, engine, prompts, [r.ids for r in responses])
        expected = plain.generate(prompts, sampling)
    tokens = sum(len(r.ids) for r in responses)
    result = {
        "engine": engine.name,
        "profile": profile.name,
        "strategy": strategy,
        "items": len(questions),
        "offers": sorted(engine.offers),
        "agreement": dataclasses.asdict(agreement),
        "equal_answers": sum(a.ids == b.ids for a, b in zip(responses, expected, strict=True)),
        "generated_tokens": tokens,
        "generated_tokens_per_second": round(tokens / seconds, 1),
        "batch_size": profile.teacher.batch_size,
        "identity": engine.identity(),
        "reference": {"engine": plain.name, "model": model, "dtype": "float32", "model_sha256": model_hash(model)},
        "start": start,
        "end": now(),
        **meter.facts,
        "environment": environment(),
    }
    write_json(checks_folder() / f"{engine.name}.json", result)
    return result


def say_check(result: dict[str, Any]) -> str:
    """The result in three lines."""
    found = result["agreement"]
    return (
        f"{result['engine']} on {result['items']} questions of {result['profile']} ({found['tokens']} tokens), against "
        "transformers in float32:\n"
        f"  same first token {found['top1_agreement']:.2%}; KL {found['mean_kl_nats']:.2e} nats a token, at most "
        f"{found['max_kl_nats']:.2e} (over {found['compared']}); {result['equal_answers']} of {result['items']} greedy "
        "answers are equal\n"
        f"  {result['generated_tokens_per_second']} tokens a second generated"
    )
