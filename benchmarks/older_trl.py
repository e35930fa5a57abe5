"""MiniLLM's two terms against those of a TRL that still has them (1.16 has no such trainer any more), on random logits.

    pip install --no-deps --target OLDER trl==1.12.0
    PYTHONPATH=OLDER python -m benchmarks.older_trl --out benchmarks/results/older_trl.json

Both are also held against the gradient that they stand for: the reverse KL of whole texts, KL(q(y) || p(y)), in a model
so small that all texts can be written out.
"""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.tables import markdown_table
from primekd.config import LossConfig
from primekd.foundation import environment, write_json
from primekd.foundation.errors import UserError
from primekd.losses import distillation_loss
from primekd.losses.on_policy import minillm_weights
from primekd.signals.rows import DenseRows

REVERSE = LossConfig(divergence="reverse_kl", alpha=0.0)
TOKENS, VOCABULARY = 40, 97  # of the random logits
WORDS, LENGTH = 3, 3  # of the model whose texts are written out
CLIP = 0.2


def older_trainer() -> tuple[Any, str]:
    """TRL's MiniLLM trainer and TRL's version; raises UserError where the installed one has none."""
    try:
        import trl
        from trl.experimental.minillm.minillm_trainer import MiniLLMTrainer
    except ImportError as error:
        raise UserError(f"no TRL with a MiniLLM trainer: see the top of benchmarks/older_trl.py ({error})") from None
    return MiniLLMTrainer, trl.__version__


def measure() -> dict[str, Any]:
    """Differences of the single terms, and how far each whole gradient is from the exact one, as shares of it."""
    trainer, version = older_trainer()
    return {
        "trl": version,
        "single_step": single_step(trainer),
        "long_term": {name: long_term(trainer, normalised) for name, normalised in (("mean", True), ("sum", False))},
        "gradient": whole_gradient(trainer),
        "environment": environment(),
    }


def single_step(trainer: Any) -> dict[str, float]:
    """Largest difference of the divergence of each row, and of its gradient, both a mean over tokens."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(TOKENS, VOCABULARY, generator=generator) for _ in range(2))
    found = []
    for run in (
        lambda own: distillation_loss(own, torch.zeros(TOKENS, dtype=int), DenseRows(teacher), REVERSE, TOKENS)[0],
        lambda own: trainer._single_step_decomposition_loss(
            None, own.log_softmax(-1)[None], teacher.log_softmax(-1)[None], torch.ones(1, TOKENS, dtype=bool)
        ),
    ):
        own = student.clone().requires_grad_()
        value = run(own)
        value.backward()
        found.append((value.detach(), own.grad))
    (ours, slope), (theirs, their_slope) = found
    return {
        "value": float(ours),
        "difference": float((ours - theirs).abs()),
        "gradient_difference": float((slope - their_slope).norm() / slope.norm()),
    }


def advantages(trainer: Any, log_q: Tensor, log_p: Tensor, gamma: float, normalised: bool) -> Tensor:
    """TRL's weights (T,) of the cross-entropy of one response's tokens."""
    settings = SimpleNamespace(gamma=gamma, length_normalization=normalised)
    return trainer._compute_advantage(settings, log_q[None], log_p[None])[0]


def long_term(trainer: Any, normalised: bool) -> dict[str, float]:
    """Largest difference of the weights of one response: TRL's as they are, and TRL's of the next token.

    The paper's weight of token t is the reward of what comes behind it, TRL's that of token t too.
    """
    generator = torch.Generator().manual_seed(1)
    log_q, log_p = (-3 * torch.rand(TOKENS, generator=generator) for _ in range(2))
    ours = minillm_weights(log_q, log_p, log_q, [TOKENS], CLIP, normalised)[:, 0]
    theirs = advantages(trainer, log_q, log_p, 1.0, normalised)
    behind = torch.cat([theirs[1:], torch.zeros(1)])
    return {"as_it_is": float((ours - theirs).abs().max()), "of_the_next": float((ours - behind).abs().max())}


def whole_gradient(trainer: Any) -> dict[str, float]:
    """Of each way to take both terms, the share of the exact gradient by which its mean over all texts is off."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = (
        [torch.randn(WORDS**place, WORDS, generator=generator, dtype=torch.float64) for place in range(LENGTH)]
        for _ in range(2)
    )
    ways = {
        "primekd": lambda q, p: minillm_weights(q, p, q, [LENGTH], CLIP, length_normalised=False)[:, 0].double(),
        "trl, gamma 1": lambda q, p: advantages(trainer, q, p, 1.0, False),
        "trl, gamma 0, its default": lambda q, p: advantages(trainer, q, p, 0.0, True),
    }
    exact = _gradient(student, lambda: sum(_text_kl(student, teacher, text) for text in _texts()))
    found = {}
    for name, weights in ways.items():
        mean = _gradient(student, lambda: sum(_surrogate(student, teacher, text, weights) for text in _texts()))  # noqa: B023
        found[name] = float((mean - exact).norm() / exact.norm())
    return found


def _texts() -> list[tuple[int, ...]]:
    return list(product(range(WORDS), repeat=LENGTH))


def _rows(model: list[Tensor], text: tuple[int, ...]) -> Tensor:
    """(T, V) log-probabilities: row t predicts token t behind those before it."""
    places = [sum(token * WORDS ** (t - 1 - n) for n, token in enumerate(text[:t])) for t in range(LENGTH)]
    return torch.stack([model[t][place] for t, place in enumerate(places)]).log_softmax(-1)


def _of_text(rows: Tensor, text: tuple[int, ...]) -> Tensor:
    return rows[torch.arange(LENGTH), torch.tensor(text)]


def _text_kl(student: list[Tensor], teacher: list[Tensor], text: tuple[int, ...]) -> Tensor:
    log_q, log_p = (_of_text(_rows(model, text), text).sum() for model in (student, teacher))
    return log_q.exp() * (log_q - log_p)


def _surrogate(student: list[Tensor], teacher: list[Tensor], text: tuple[int, ...], weights: Any) -> Tensor:
    """A text's two terms, times how likely it is; its gradient, summed over texts, is the expectation."""
    own, taught = _rows(student, text), _rows(teacher, text)
    log_q, log_p = _of_text(own, text), _of_text(taught, text)
    divergence = (own.exp() * (own - taught)).sum()
    later = (weights(log_q.detach(), log_p.detach()) * log_q).sum()
    return log_q.detach().sum().exp() * (divergence - later)


def _gradient(model: list[Tensor], loss: Any) -> Tensor:
    for table in model:
        table.requires_grad_()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss(), model)])


def main(out: Annotated[Path | None, typer.Option(help="A JSON file for the numbers.")] = None) -> None:
    """Compares, prints a table."""
    found = measure()
    rows = [["The divergence of each row, value", found["single_step"]["difference"]],
            ["The same, gradient", found["single_step"]["gradient_difference"]]]  # fmt: skip
    for name, one in found["long_term"].items():
        rows.append([f"Weights of what comes later ({name}), TRL's of the same token", one["as_it_is"]])
        rows.append([f"Weights of what comes later ({name}), TRL's of the next token", one["of_the_next"]])
    rows += [[f"Both terms against the exact gradient: {name}", off] for name, off in found["gradient"].items()]
    print(markdown_table([f"Against TRL {found['trl']}", "Difference"], [[name, f"{off:.2g}"] for name, off in rows]))
    if out:
        write_json(out, found)


if __name__ == "__main__":
    typer.run(main)
