"""The objectives against a float64 reference written here, and at their limits."""

import numpy as np
import pytest
import torch
from conftest import stored

from primekd.config import LossConfig
from primekd.losses import distillation_loss
from primekd.signals import DenseRows, HiddenRows
from primekd.signals.codecs import TopKCodec

SKEWED = ["skewed_forward_kl", "skewed_reverse_kl"]
TEMPERATURES = [1.0, 2.0, 5.942267]
ROWS, VOCABULARY, K = 7, 41, 5
ITEM = stored("a", [])


def divergence(rows, student, loss: LossConfig) -> torch.Tensor:
    """The divergence of each row as the objective takes it, without the factor T^2: (N,), with a gradient."""
    alone, target = loss.model_copy(update={"alpha": 0.0}), torch.zeros(1, dtype=torch.long)
    each = [
        distillation_loss(student[n : n + 1], target, rows.part(torch.tensor([n])), alone, tokens=1)[0]
        for n in range(len(student))
    ]
    return torch.stack(each) / loss.temperature**2


def of_logits(name: str):
    def value(teacher, student, temperature: float = 1.0, beta: float = 0.5) -> torch.Tensor:
        return divergence(DenseRows(teacher), student, LossConfig(divergence=name, temperature=temperature, beta=beta))

    value.__name__ = name
    return value


forward_kl, reverse_kl, jsd = map(of_logits, ("forward_kl", "reverse_kl", "jsd"))


def forward_kl_topk(rows, student) -> torch.Tensor:
    return divergence(rows, student, LossConfig(temperature=rows.temperature))


def random_logits(seed: int, rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.fixture
def teacher() -> torch.Tensor:
    return random_logits(1)


@pytest.fixture
def student() -> torch.Tensor:
    return random_logits(2)


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randint(VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(3))


# The reference: numpy, float64, written from the definitions.


def softmax64(logits, temperature: float) -> np.ndarray:
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def kl64(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0).sum(-1)


def forward64(teacher, student, temperature):
    return kl64(softmax64(teacher, temperature), softmax64(student, temperature))


def reverse64(teacher, student, temperature):
    return kl64(softmax64(student, temperature), softmax64(teacher, temperature))


def jsd64(teacher, student, temperature, beta):
    p, q = softmax64(teacher, temperature), softmax64(student, temperature)
    m = beta * p + (1 - beta) * q
    return beta * kl64(p, m) + (1 - beta) * kl64(q, m)


def topk64(teacher, student, temperature, k):
    """KL over the k likeliest tokens and one bucket for all others."""
    p, q = softmax64(teacher, temperature), softmax64(student, temperature)
    order = np.argsort(-p, axis=-1)
    p, q = np.take_along_axis(p, order, -1), np.take_along_axis(q, order, -1)
    buckets = [np.concatenate([x[:, :k], x[:, k:].sum(-1, keepdims=True)], -1) for x in (p, q)]
    return kl64(*buckets)


def cross_entropy64(student, targets):
    return -np.log(softmax64(student, 1.0)[np.arange(len(targets)), np.asarray(targets)])


DIVERGENCES = {"forward_kl": (forward_kl, forward64), "reverse_kl": (reverse_kl, reverse64)}


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_kl_divergences_equal_the_float64_reference(name, temperature, teacher, student):
    ours, reference = DIVERGENCES[name]
    np.testing.assert_allclose(ours(teacher, student, temperature), reference(teacher, student, temperature), rtol=2e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_jsd_equals_the_float64_reference(temperature, beta, teacher, student):
    np.testing.assert_allclose(
        jsd(teacher, student, temperature, beta), jsd64(teacher, student, temperature, beta), rtol=2e-5, atol=1e-7
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_topk_kl_equals_the_float64_reference_with_its_tail(temperature, teacher, student):
    codec = TopKCodec(K, temperature)
    rows = codec.decode(codec.encode(teacher, ITEM), None, ITEM)
    np.testing.assert_allclose(
        forward_kl_topk(rows, student), topk64(teacher, student, temperature, K), rtol=2e-5, atol=1e-6
    )


def test_the_two_directions_of_the_kl_differ(teacher, student):
    assert not torch.allclose(forward_kl(teacher, student), reverse_kl(teacher, student), rtol=0.01)


def test_cross_entropy_equals_the_float64_reference(student, targets):
    loss, _ = distillation_loss(student, targets, None, LossConfig(), tokens=1)
    assert float(loss) == pytest.approx(cross_entropy64(student, targets).sum(), rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_the_whole_objective_equals_the_float64_reference(name, temperature, teacher, student, targets):
    loss = LossConfig(divergence=name, temperature=temperature, alpha=0.609335, beta=0.3)
    value, parts = distillation_loss(student, targets, DenseRows(teacher), loss, tokens=ROWS)

    if name == "jsd":
        expected_kd = jsd64(teacher, student, temperature, 0.3)
    else:
        expected_kd = DIVERGENCES[name][1](teacher, student, temperature)
    expected_kd = temperature**2 * expected_kd.mean()
    expected_ce = cross_entropy64(student, targets).mean()
    assert float(parts["kd"]) == pytest.approx(expected_kd, rel=2e-5)
    assert float(parts["ce"]) == pytest.approx(expected_ce, rel=1e-5)
    assert float(value) == pytest.approx(0.609335 * expected_ce + (1 - 0.609335) * expected_kd, rel=2e-5)


def test_the_whole_objective_with_topk_rows_equals_the_float64_reference(teacher, student, targets):
    codec = TopKCodec(K, 2.0)
    loss = LossConfig(temperature=2.0, alpha=0.25)
    rows = codec.decode(codec.encode(teacher, ITEM), None, ITEM)
    value, _ = distillation_loss(student, targets, rows, loss, tokens=ROWS)
    expected = 0.25 * cross_entropy64(student, targets).mean() + 0.75 * 4 * topk64(teacher, student, 2.0, K).mean()
    assert float(value) == pytest.approx(expected, rel=2e-5)


def test_the_factor_t_squared_keeps_the_gradient_of_small_logits_independent_of_temperature():
    # For logits small against T the gradient of T^2 * KL is (student - teacher) / V, whatever T (Hinton et al. 2015).
    teacher, targets = random_logits(1) * 1e-3, torch.zeros(ROWS, dtype=torch.long)
    student = (random_logits(2) * 1e-3).requires_grad_()
    teacher = teacher - teacher.mean(-1, keepdim=True)
    loss = LossConfig(temperature=50.0, alpha=0.0)
    value, _ = distillation_loss(student, targets, DenseRows(teacher), loss, tokens=1)
    value.backward()
    centred = (student - student.mean(-1, keepdim=True)).detach()
    torch.testing.assert_close(student.grad, (centred - teacher) / VOCABULARY, rtol=0.02, atol=2e-6)


def test_without_a_teacher_the_loss_is_the_cross_entropy_whatever_alpha(student, targets):
    value, parts = distillation_loss(student, targets, None, LossConfig(alpha=0.1), tokens=ROWS)
    assert float(value) == pytest.approx(cross_entropy64(student, targets).mean(), rel=1e-5)
    assert float(parts["kd"]) == 0


# Student = teacher.


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("function", [forward_kl, reverse_kl, jsd], ids=lambda f: f.__name__)
def test_a_student_that_equals_its_teacher_has_no_divergence(function, temperature, teacher):
    assert function(teacher, teacher.clone(), temperature).abs().max() < 1e-6


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.9])
def test_the_jsd_of_equal_distributions_is_zero_for_every_beta(beta, teacher):
    assert jsd(teacher, teacher.clone(), 2.0, beta).abs().max() < 1e-6


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("function", [forward_kl, reverse_kl, jsd], ids=lambda f: f.__name__)
def test_a_student_that_equals_its_teacher_has_no_gradient(function, temperature, teacher):
    student = teacher.clone().requires_grad_()
    function(teacher, student, temperature).sum().backward()
    assert student.grad.abs().max() < 1e-6


def test_topk_rows_of_an_equal_student_have_no_divergence_and_no_gradient(teacher):
    codec = TopKCodec(K, 2.0)
    student = teacher.clone().requires_grad_()
    value = forward_kl_topk(codec.decode(codec.encode(teacher, ITEM), None, ITEM), student)
    value.sum().backward()
    assert value.abs().max() < 1e-6 and student.grad.abs().max() < 1e-6


def test_hidden_rows_of_an_equal_student_have_no_divergence():
    hidden, head = torch.randn(ROWS, 8), torch.randn(VOCABULARY, 8)
    rows = HiddenRows(hidden, head)
    assert divergence(rows, hidden @ head.T, LossConfig()).abs().max() < 1e-6


# Gradients.


def reference_gradient(name, teacher, student, targets, loss, k=None):
    """Gradient of the objective by float64 autograd, from definitions with plain softmaxes and logs."""
    teacher, student = teacher.double(), student.double().requires_grad_()
    p, q = (teacher / loss.temperature).softmax(-1), (student / loss.temperature).softmax(-1)
    if name == "reverse_kl":
        value = (q * (q / p).log()).sum()
    elif name == "jsd":
        m = loss.beta * p + (1 - loss.beta) * q
        value = loss.beta * (p * (p / m).log()).sum() + (1 - loss.beta) * (q * (q / m).log()).sum()
    elif name.startswith("skewed"):
        one, other = (p, q) if name == "skewed_forward_kl" else (q, p)
        value = (one * (one / (loss.beta * one + (1 - loss.beta) * other)).log()).sum()
    elif name == "topk":
        ids = p.topk(k).indices
        kept_p, kept_q = p.gather(-1, ids), q.gather(-1, ids)
        tail_p, tail_q = 1 - kept_p.sum(-1), 1 - kept_q.sum(-1)
        value = (kept_p * (kept_p / kept_q).log()).sum() + (tail_p * (tail_p / tail_q).log()).sum()
    else:
        value = (p * (p / q).log()).sum()
    own = -student.log_softmax(-1).gather(-1, targets[:, None]).sum()
    (loss.alpha * own + (1 - loss.alpha) * loss.temperature**2 * value).backward()
    return student.grad


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "topk", *SKEWED])
def test_gradients_equal_float64_autograd_of_the_definitions(name, temperature, teacher, student, targets):
    kind = "forward_kl" if name == "topk" else name
    loss = LossConfig(divergence=kind, temperature=temperature, alpha=0.3, beta=0.3)
    codec = TopKCodec(K, temperature)
    rows = codec.decode(codec.encode(teacher, ITEM), None, ITEM) if name == "topk" else DenseRows(teacher)
    ours = student.clone().requires_grad_()
    distillation_loss(ours, targets, rows, loss, tokens=1)[0].backward()
    expected = reference_gradient(name, teacher, student, targets, loss, K)
    torch.testing.assert_close(ours.grad.double(), expected, rtol=2e-4, atol=2e-5)


# Batches.


@pytest.mark.parametrize("sizes", [[7], [1, 6], [3, 2, 2], [1] * 7])
def test_splitting_a_batch_into_micro_batches_changes_neither_loss_nor_gradient(sizes, teacher, student, targets):
    loss = LossConfig(temperature=2.0, alpha=0.4)
    whole = student.clone().requires_grad_()
    expected, _ = distillation_loss(whole, targets, DenseRows(teacher), loss, tokens=ROWS)
    expected.backward()

    parts = student.clone().requires_grad_()
    total = 0.0
    for rows in torch.arange(ROWS).split(sizes):
        value, _ = distillation_loss(parts[rows], targets[rows], DenseRows(teacher[rows]), loss, tokens=ROWS)
        value.backward()
        total += value.item()
    assert total == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(parts.grad, whole.grad)


def test_the_mean_is_over_response_tokens_and_not_over_the_vocabulary(teacher, student, targets):
    loss = LossConfig(alpha=0.0)
    once, _ = distillation_loss(student, targets, DenseRows(teacher), loss, tokens=ROWS)
    twice = [torch.cat([x, x]) for x in (student, targets, teacher)]
    doubled, _ = distillation_loss(twice[0], twice[1], DenseRows(twice[2]), loss, tokens=2 * ROWS)
    assert float(doubled) == pytest.approx(float(once), rel=1e-6)
    assert float(once) == pytest.approx(forward64(teacher, student, 1.0).sum() / ROWS, rel=1e-5)


# Extremes.


def extreme_logits(seed: int) -> torch.Tensor:
    """Only +1e4 and -1e4."""
    return (torch.randint(0, 2, (ROWS, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1) * 1e4


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "topk", *SKEWED])
def test_logits_of_ten_thousand_stay_finite_and_so_do_their_gradients(name, temperature, targets):
    teacher, student = extreme_logits(4), extreme_logits(5).requires_grad_()
    kind = "forward_kl" if name == "topk" else name
    codec = TopKCodec(K, temperature)
    rows = codec.decode(codec.encode(teacher, ITEM), None, ITEM) if name == "topk" else DenseRows(teacher)
    value, _ = distillation_loss(
        student, targets, rows, LossConfig(divergence=kind, temperature=temperature), tokens=ROWS
    )
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()
    assert value > 0 and student.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "topk", *SKEWED])
def test_opposite_certainties_stay_finite(name):
    """All mass of the teacher on token 0, all of the student's on token 1."""
    teacher, student = torch.full((1, VOCABULARY), -1e4), torch.full((1, VOCABULARY), -1e4)
    teacher[0, 0] = student[0, 1] = 1e4
    student.requires_grad_()
    kind = "forward_kl" if name == "topk" else name
    codec = TopKCodec(K, 1.0)
    rows = codec.decode(codec.encode(teacher, ITEM), None, ITEM) if name == "topk" else DenseRows(teacher)
    value = divergence(rows, student, LossConfig(divergence=kind)).sum()
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()
    if name == "jsd" or name in SKEWED:  # of disjoint certainties the skewed KLs are -log(beta)
        assert value.item() == pytest.approx(np.log(2), rel=1e-5)
    else:
        assert value.item() == pytest.approx(2e4, rel=1e-4)


# Top-k.


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_topk_with_every_token_is_the_full_kl_with_a_finite_gradient(temperature, teacher, student):
    codec = TopKCodec(VOCABULARY, temperature)
    rows = codec.decode(codec.encode(teacher, ITEM), None, ITEM)
    sparse, dense = student.clone().requires_grad_(), student.clone().requires_grad_()
    value = forward_kl_topk(rows, sparse)
    value.sum().backward()
    forward_kl(teacher, dense, temperature).sum().backward()
    np.testing.assert_allclose(value.detach(), forward64(teacher, student, temperature), rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(sparse.grad, dense.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 10, 30])
def test_topk_kl_is_a_lower_bound_of_the_full_kl(k, teacher, student):
    codec = TopKCodec(k, 1.0)
    value = forward_kl_topk(codec.decode(codec.encode(teacher, ITEM), None, ITEM), student).numpy()
    full = forward64(teacher, student, 1.0)
    assert (value <= full + 1e-5).all()
    assert (value < full - 1e-4).any()


def test_topk_is_not_renormalised_so_mass_in_the_students_tail_costs():
    """A student that agrees on the proportions of the kept tokens and puts half of its mass elsewhere."""
    teacher = torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log()
    student = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    codec = TopKCodec(2, 1.0)
    value = float(forward_kl_topk(codec.decode(codec.encode(teacher, ITEM), None, ITEM), student))
    assert value == pytest.approx(0.6 * np.log(1.5) + 0.3 * np.log(1.5) + 0.1 * np.log(0.1 / 0.4), rel=1e-5)
    assert value > 0.1


def test_topk_rows_refuse_a_loss_that_they_cannot_serve(teacher, student):
    codec = TopKCodec(K, 2.0)
    rows = codec.decode(codec.encode(teacher, ITEM), None, ITEM)
    for loss in (LossConfig(temperature=1.0), LossConfig(temperature=2.0, divergence="reverse_kl")):
        with pytest.raises(ValueError, match="sparse rows serve the forward KL at their own temperature"):
            divergence(rows, student, loss)
