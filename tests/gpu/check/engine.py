"""Part `engine`: the transformers engine on the GPU against its own float32 on the CPU, on the same prompts and tokens.

The model has random weights, large enough that its answers differ from token to token, and padded columns that would
win every softmax that they were let into.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from check.findings import Report, Row
from check.models import lively_folder, prompts_of
from check.sizes import Sizes
from primekd.teachers import Sampling
from primekd.teachers.transformers_engine import TransformersEngine

PROMPTS, NEW_TOKENS = 12, 24
# Of the states: the norm of the difference over the norm. `same`: the share of tokens that must be the most probable
# ones of the engine's own rows, and of the reference's.
BOUNDS = {"float32": {"error": 1e-4, "kl": 1e-6, "same": 0.99}, "bfloat16": {"error": 8e-2, "kl": 2e-2, "same": 0.8}}


def run(sizes: Sizes, add: Callable[..., None], report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reference = lively_folder(Path(folder))
        exact = TransformersEngine(reference, "float32", batch_size=4)
        exact.model.to("cpu")
        asked = prompts_of(exact.tokenizer, PROMPTS)
        responses = [r.ids for r in exact.generate(asked, Sampling(NEW_TOKENS))]
        expected = exact.score(asked, responses, "hidden")
        expected_logits = exact.score(asked, responses, "logits")
        for dtype in BOUNDS:
            engine = TransformersEngine(reference, dtype, batch_size=4)
            add(*compare(dtype, engine, asked, responses, expected, expected_logits))


def compare(
    dtype: str, engine: TransformersEngine, asked, responses, expected: list[Tensor], expected_logits: list[Tensor]
) -> list[Row]:
    """Scores of given responses; what is collected while generating; tokens against the engine's own scores."""
    bounds, device = BOUNDS[dtype], engine.model.device.type
    scored = engine.score(asked, responses, "hidden")
    logits = engine.score(asked, responses, "logits")
    generated, collected = engine.generate_scored(asked, Sampling(NEW_TOKENS), "hidden")
    ids = [response.ids for response in generated]
    again = engine.score(asked, ids, "hidden")
    firsts = [rows.argmax(-1) for rows in engine.score(asked, ids, "logits")]
    same = torch.cat([a == torch.tensor(b) for a, b in zip(firsts, ids, strict=True)]).double().mean()
    top = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(logits, expected_logits, strict=True)])
    kl = torch.cat([divergence(a, b) for a, b in zip(expected_logits, logits, strict=True)])
    what, share, most = f"{dtype} on {device}", bounds["same"], bounds["error"]
    within = all(0 <= token < engine.vocab_size for response in ids for token in response)
    found = [
        ("states", "hidden states' error", error(scored, expected), {"most": most}),
        ("kl", "KL of float32's rows to its own, nats", kl.mean().item(), {"most": bounds["kl"]}),
        ("first", "rows with float32's first token", top.double().mean().item(), {"least": share}),
        (
            "collected",
            "states collected while generating, error to scored ones",
            error(collected, again),
            {"most": most},
        ),
        ("own", "generated tokens that its own scores put first", same.item(), {"least": share}),
        ("tokens", "ids are the tokenizer's", float(within), {"least": 1}),
        # Where it is not, the library generates, and what is collected is scored in a second pass.
        ("decodes", "the project's own decode loop is right for the model", float(engine.decodes), {"least": 1}),
        ("branches", "several responses behind one prompt are read right", float(engine.branches), {"least": 1}),
    ]
    return [Row(f"{dtype}/{key}", f"{text}, {what}", value, **bound) for key, text, value, bound in found]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference over the norm, over all rows."""
    a, b = torch.cat(found).double(), torch.cat(expected).double()
    return ((a - b).norm() / b.norm()).item()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of rows of logits, (T, V) each -> (T,)."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
