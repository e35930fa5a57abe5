"""One engine against the transformers reference, on a profile's questions: the table in docs/engines.md."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from primekd.capture.primings import priming_of
from primekd.config import Profile, get_arm
from primekd.foundation import Meter, UserError, environment, output_root, write_json
from primekd.models import build_prompt, find_shape, load_tokenizer, model_hash, require_same_tokenizer
from primekd.signals import HiddenRows, make_codec
from primekd.tasks.load import load_items
from primekd.teachers import Response, Sampling, TeacherEngine, TopLogprobs, open_engine


@dataclass(frozen=True)
class Agreement:
    """Over all response tokens that the engine gave a signal for. KL(reference || engine) a token; of an engine that
    shows only its top K, over those K and one bucket for all others, which is a lower bound."""

    tokens: int
    without_signal: int  # response tokens that have none (an API shows none for the end of turn)
    top1_agreement: float  # share of tokens for which both put the same token first
    mean_kl_nats: float
    max_kl_nats: float
    compared: str  # "every token" of the vocabulary, or "top K and the rest"


def compare(reference: list[Tensor], rows: list[Tensor] | list[TopLogprobs]) -> Agreement:
    """The reference's logits, (T, V) an item, against an engine's logits or top log-probs of the same tokens. Raises
    UserError if the vocabularies differ in size, or no row has a signal."""
    # One item at a time: (T, V) in float64 is large.
    parts = [
        _compare_top(a, b) if isinstance(b, TopLogprobs) else _compare_all(a, b)
        for a, b in zip(reference, rows, strict=True)
    ]
    same, divergence = (torch.cat(column) for column in zip(*parts, strict=True))
    if not len(same):
        raise UserError("The engine gave no signal for any of these tokens.")
    compared = "top K and the rest" if isinstance(rows[0], TopLogprobs) else "every token"
    without_signal, equal = sum(map(len, reference)) - len(same), float(same.double().mean())
    return Agreement(len(same), without_signal, equal, float(divergence.mean()), float(divergence.max()), compared)


def _compare_all(reference: Tensor, engine: Tensor) -> tuple[Tensor, Tensor]:
    """(T, V) logits of both -> same top-1 (T,), KL (T,)."""
    if reference.shape != engine.shape:
        raise UserError(f"The models have {reference.shape[1]} and {engine.shape[1]} tokens: compare one model.")
    log_p, log_q = reference.double().log_softmax(-1), engine.to(reference.device).double().log_softmax(-1)
    return log_p.argmax(-1) == log_q.argmax(-1), (log_p.exp() * (log_p - log_q)).sum(-1)


def _compare_top(reference: Tensor, engine: TopLogprobs) -> tuple[Tensor, Tensor]:
    """(T, V) logits and T rows of top log-probs -> same top-1, KL over the shown tokens and the rest."""
    shown = engine.ids[:, 0] >= 0  # rows without any token have no signal
    ids, log_q = engine.ids[shown].to(reference.device), engine.log_probs[shown].to(reference.device).double()
    log_p = reference[shown].double().log_softmax(-1)
    filled = ids >= 0
    kept = log_p.gather(-1, ids.clamp(min=0))  # (T, K)
    parts = torch.where(filled, kept.exp() * (kept - log_q.masked_fill(~filled, 0)), 0.0).sum(-1)
    rest_p = (1 - torch.where(filled, kept.exp(), 0.0).sum(-1)).clamp(min=torch.finfo(torch.float64).tiny)
    rest_q = (1 - torch.where(filled, log_q.exp(), 0.0).sum(-1)).clamp(min=1e-9)  # float32 log-probs: no finer
    return log_p.argmax(-1) == ids[:, 0], parts + rest_p * (rest_p.log() - rest_q.log())


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
        "agreement": asdict(agreement),
        "equal_answers": sum(a.ids == b.ids for a, b in zip(responses, expected, strict=True)),
        "generated_tokens": tokens, "generated_tokens_per_second": round(tokens / seconds, 1),
        "batch_size": profile.teacher.batch_size, "identity": identity,
        "reference": {"engine": plain.name, "model": model, "dtype": "float32", "model_sha256": model_hash(model)},
        **meter.facts, "environment": environment(),
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
    if type(engine).generate_scored is TeacherEngine.generate_scored:
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
