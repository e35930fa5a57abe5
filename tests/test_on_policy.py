"""MiniLLM's gradient as weights of rows, against the exact gradient and the paper's terms; agreement with TRL."""

from itertools import product

import pytest
import torch
from pydantic import ValidationError

from primekd.config import LossConfig
from primekd.config.student import OnPolicyConfig
from primekd.losses import chunked_loss, distillation_loss
from primekd.losses.on_policy import log_prob_of, minillm_weights
from primekd.models.logits import LogitTransform
from primekd.signals.rows import DenseRows, HiddenRows

WORDS, LENGTH = 3, 3
REVERSE = LossConfig(divergence="reverse_kl", alpha=0.0)


def tables(seed: int) -> list[torch.Tensor]:
    """The logits of a model of three tokens for the next one, by what was written so far: (1, 3), (3, 3), (9, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(WORDS**place, WORDS, generator=generator) for place in range(LENGTH)]


def row_of(text: tuple[int, ...]) -> int:
    return sum(token * WORDS ** (len(text) - 1 - place) for place, token in enumerate(text))


def logits_of(model: list[torch.Tensor], text: tuple[int, ...]) -> torch.Tensor:
    """(3, 3): row t predicts token t of a text."""
    return torch.stack([model[place][row_of(text[:place])] for place in range(LENGTH)])


def log_prob(model: list[torch.Tensor], text: tuple[int, ...]) -> torch.Tensor:
    """(3,): of each token."""
    return logits_of(model, text).log_softmax(-1)[torch.arange(LENGTH), torch.tensor(text)]


TEXTS = list(product(range(WORDS), repeat=LENGTH))


def test_the_expected_gradient_over_all_texts_is_that_of_the_reverse_kl_of_texts():
    """Sum, not mean, and no mixture: then MiniLLM's two terms are the whole gradient, and nothing of it is missing."""
    teacher, student = tables(0), [table.requires_grad_() for table in tables(1)]
    exact = sum(
        log_prob(student, text).sum().exp() * (log_prob(student, text) - log_prob(teacher, text)).sum()
        for text in TEXTS
    )
    expected = torch.autograd.grad(exact, student)
    found = [torch.zeros_like(table) for table in student]
    for text in TEXTS:
        log_q, log_p = log_prob(student, text).detach(), log_prob(teacher, text)
        weights = minillm_weights(log_q, log_p, log_q, [LENGTH], clip=0.2, length_normalised=False)
        value, _ = distillation_loss(
            logits_of(student, text), torch.tensor(text), DenseRows(logits_of(teacher, text)), REVERSE, 1, weights
        )
        parts = torch.autograd.grad(value, student, allow_unused=True)
        for total, part in zip(found, parts, strict=True):
            total += log_q.sum().exp() * (0 if part is None else part)
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-6)
    alone = [torch.zeros_like(table) for table in student]  # the divergence of each row, without what comes later
    for text in TEXTS:
        value, _ = distillation_loss(
            logits_of(student, text), torch.tensor(text), DenseRows(logits_of(teacher, text)), REVERSE, 1
        )
        for total, part in zip(alone, torch.autograd.grad(value, student, allow_unused=True), strict=True):
            total += log_prob(student, text).detach().sum().exp() * (0 if part is None else part)
    assert (alone[0] - expected[0]).norm() > 0.05 * expected[0].norm(), "the second term matters"


@pytest.mark.parametrize("length_normalised", [True, False])
def test_each_weight_is_the_papers_in_float64(length_normalised):
    lengths = [5, 1, 3]
    generator = torch.Generator().manual_seed(3)
    log_q, log_p, log_drawn = (-3 * torch.rand(9, generator=generator, dtype=torch.float64) for _ in range(3))
    found = minillm_weights(log_q, log_p, log_drawn, lengths, 0.2, length_normalised)
    expected, start = [], 0
    for length in lengths:
        for t in range(start, start + length):
            w = float((log_q[t] - log_drawn[t]).exp())
            rewards = [float(log_p[s] - log_q[s]) for s in range(t + 1, start + length)]
            later = sum(rewards) / (len(rewards) if length_normalised and rewards else 1)
            clipped = min(
                w * later, max(0.8, min(1.2, w)) * later
            )  # PPO's objective: without slope where it is clipped
            expected.append([w * later if clipped == w * later else 0.0, w])
        start += length
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    spent = torch.tensor([row[0] for row in expected]) == 0
    assert 3 < int(spent.sum()) < 9, "some are clipped, beside the three last tokens, and some are not"


def test_what_a_teacher_gives_to_the_tokens_is_the_same_from_states_and_from_logits():
    states, head, targets = torch.randn(4, 6), torch.randn(11, 6), torch.tensor([0, 10, 3, 3])
    transform = LogitTransform(0.5, 4.0)
    logits = transform.apply(states @ head.T)
    expected = logits.double().log_softmax(-1)[torch.arange(4), targets]
    for rows in (HiddenRows(states, head, transform), DenseRows(logits)):
        torch.testing.assert_close(log_prob_of(rows, targets).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"teacher_share": 0.2}, "belongs to the objective minillm"),
        ({"objective": "minillm", "temperature": 0.7}, "is 1 for the objective minillm"),
        ({"share": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        OnPolicyConfig(**given)


# TRL 1.16's own losses, at their own settings: a mean over tokens, no factor T^2.

BETAS = [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.3)]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence, beta", BETAS)
def test_value_and_gradient_agree_with_trl(divergence, beta, temperature):
    from trl.experimental.gkd.gkd_trainer import GKDTrainer as gkd  # its own trainer is a method without state
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    generator = torch.Generator().manual_seed(5)
    hidden, taught = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    head, teacher_head = (torch.randn(23, 8, generator=generator) for _ in range(2))
    labels = torch.tensor([[-100, -100, 4, 7, 1], [-100, 3, 3, 22, -100]])  # shifted already, as theirs are
    kept = labels != -100
    loss = LossConfig(divergence=divergence, temperature=temperature, alpha=0.0, beta=beta if 0 < beta < 1 else 0.5)

    def ours(states):
        rows = HiddenRows(taught[kept], teacher_head)
        return chunked_loss(states[kept], head, None, labels[kept], rows, loss, int(kept.sum()))[0] / temperature**2

    def of_gkd(states):
        return gkd.generalized_jsd_loss(states @ head.T, taught @ teacher_head.T, labels, beta, temperature)

    def of_distillation(states):
        return _chunked_divergence_loss(states, taught, head, teacher_head, kept.long(), beta, temperature=temperature)[
            0
        ]

    found = []
    for run in (ours, of_gkd, of_distillation):
        states = hidden.clone().requires_grad_()
        value = run(states)
        value.backward()
        found.append((value.detach(), states.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-6)
