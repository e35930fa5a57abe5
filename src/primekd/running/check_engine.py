"""One engine against the transformers reference, on a profile's questions: the table in docs/engines.md."""

import dataclasses
import time
from typing import Any

from torch import Tensor

from primekd.capture.primings import priming_of
from primekd.config import Profile, get_arm
from primekd.foundation import Meter, UserError, environment, now, output_root, write_json
from primekd.models import build_prompt, find_shape, load_tokenizer, model_hash, require_same_tokenizer
from primekd.signals import HiddenRows, make_codec
from primekd.tasks.load import load_items
from primekd.teachers import Response, Sampling, TeacherEngine, TopLogprobs, open_engine
from primekd.teachers.agreement import compare
from primekd.teachers.protocol import generate_then_score


def check_engine(profile: Profile, items: int, strategy: str, reference: str | None = None) -> dict[str, Any]:
    """Lets the profile's engine answer `items` test questions, primed as `strategy` says, and holds the rows that its
    codec keeps (hidden states times the head, logits, or top log-probs) against those of `reference`, a model that
    transformers loads in float32 (None: the teacher's own file). Returns what is written to logs/engines/. Raises
    UserError if the engine cannot run here or gives text alone, or the reference is another model."""
    from primekd.teachers.transformers_engine import TransformersEngine

    if profile.teacher.sampling_temperature != 0:
        raise UserError("Engines are compared on greedy answers: set teacher.sampling_temperature to 0.")
    model = reference or profile.teacher.model
    refuse_another_model(profile, model)
    chosen, tokenizer = get_arm(strategy), load_tokenizer(profile.teacher)
    questions = load_items(profile, "test")[:items]
    prompts = [build_prompt(tokenizer, item.messages, priming_of(chosen, profile.teacher)) for item in questions]
    sampling = Sampling(profile.max_new_tokens)
    start = now()
    with Meter() as meter:
        engine = open_engine(profile)
        try:
            responses, rows, seconds = answer(profile, engine, prompts, sampling)
            identity = engine.identity()
        finally:
            engine.close()  # the reference needs the memory
        plain = TransformersEngine(model, "float32", profile.teacher.batch_size, tokenizer=tokenizer)
        agreement = compare(plain.score(prompts, [r.ids for r in responses], "logits"), rows)
        expected = plain.generate(prompts, sampling)
    tokens = sum(len(r.ids) for r in responses)
    result = {
        "engine": engine.name, "profile": profile.name, "strategy": strategy, "items": len(questions),
        "codec": make_codec(profile.signals, engine.offers).describe()["name"],
        "agreement": dataclasses.asdict(agreement),
        "equal_answers": sum(a.ids == b.ids for a, b in zip(responses, expected, strict=True)),
        "generated_tokens": tokens, "generated_tokens_per_second": round(tokens / seconds, 1),
        "batch_size": profile.teacher.batch_size, "identity": identity,
        "reference": {"engine": plain.name, "model": model, "dtype": "float32", "model_sha256": model_hash(model)},
        "start": start, "end": now(), **meter.facts, "environment": environment(),
    }  # fmt: skip
    write_json(output_root() / "logs" / "engines" / f"{engine.name}-{profile.name}.json", result)
    return result


def refuse_another_model(profile: Profile, reference: str) -> None:
    """Raises UserError if the reference is not the teacher's model: another tokenizer, depth or width."""
    require_same_tokenizer(profile.teacher, profile.teacher.model_copy(update={"model": reference}))
    if profile.teacher.engine == "api":
        return  # what is behind it is not known
    own, other = (find_shape(profile, model) for model in (profile.teacher.model, reference))
    if (own.layers, own.hidden) != (other.layers, other.hidden):
        shapes = f"{other.layers} layers of width {other.hidden} and the teacher {own.layers} of {own.hidden}"
        raise UserError(f"{reference} has {shapes}: name the model that the teacher's file was made from.")


def answer(
    profile: Profile, engine: TeacherEngine, prompts: list[list[int]], sampling: Sampling
) -> tuple[list[Response], list[Tensor] | list[TopLogprobs], float]:
    """Responses, the rows of them that capture would keep, as logits (T, V) where it keeps them all, and the seconds
    that generating took: with the rows where they are collected meanwhile, without a second pass."""
    want = make_codec(profile.signals, engine.offers).needs
    if want is None:
        raise UserError(f"The engine {engine.name} gives text without log-probs: there is nothing to compare.")
    began, rows = time.monotonic(), None
    if type(engine).generate_scored is generate_then_score:
        responses = engine.generate(prompts, sampling)
    else:
        responses, rows = engine.generate_scored(prompts, sampling, want)
    seconds = time.monotonic() - began
    rows = engine.score(prompts, [response.ids for response in responses], want) if rows is None else rows
    if want == "hidden":
        head = engine.head().float().cpu()
        rows = [HiddenRows(hidden.cpu(), head, engine.transform).to_logits() for hidden in rows]
    return responses, rows, seconds


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
