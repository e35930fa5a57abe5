"""The chunked loss against float64 written from the definitions, with gradients by autograd of whole logits."""

import pytest
import torch
from conftest import stored

from benchmarks.plain_losses import distillation_loss
from primekd.config import LossConfig
from primekd.losses import chunked, products
from primekd.losses.chunked import chunked_loss, row_losses
from primekd.losses.products import gradient_of, logits_of
from primekd.models.logits import PLAIN, LogitTransform
from primekd.signals.codecs import TopKCodec
from primekd.signals.rows import DenseRows, HiddenRows, SampledRows

ROWS, WIDTH, VOCABULARY = 11, 16, 53
TOKENS = 29.0
ITEM = stored("a", [])
KINDS = ["none", "hidden", "full", "topk", "sampled"]
# Of the student's logits and the teacher's: some are in the cap's bend, and some in its flat part.
TRANSFORMS = [(LogitTransform(0.25), LogitTransform(3.0)), (LogitTransform(1.0, 9.0), PLAIN)]
TRANSFORMS += [(LogitTransform(2.0, 5.0), LogitTransform(0.5, 7.0))]
LOSSES = [("forward_kl", 1.0), ("forward_kl", 2.0), ("forward_kl", 5.942267), ("reverse_kl", 2.0), ("jsd", 1.5)]
LOSSES += [("skewed_forward_kl", 1.0), ("skewed_reverse_kl", 2.0)]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def three_rows_a_chunk(monkeypatch):
    """Four chunks, the last of them smaller."""
    monkeypatch.setitem(chunked.CHUNK_ELEMENTS, "cpu", 3 * VOCABULARY)


@pytest.fixture
def hidden() -> torch.Tensor:
    return (3 * normal(0, ROWS, WIDTH)).requires_grad_()


@pytest.fixture
def head() -> torch.Tensor:
    return normal(1, VOCABULARY, WIDTH)


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randint(VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(2))


def teacher_rows(kind: str, temperature: float, transform: LogitTransform = PLAIN):
    states, teacher_head = 3 * normal(3, ROWS, WIDTH - 4), normal(4, VOCABULARY, WIDTH - 4)
    logits = states @ teacher_head.T
    if kind == "hidden":
        return HiddenRows(states, teacher_head, transform)
    if kind == "full":
        return DenseRows(logits)
    if kind == "topk":
        codec = TopKCodec(5, temperature)
        return codec.decode(codec.encode(logits, ITEM), None, ITEM)
    if kind == "sampled":  # any weights will do here: what they are is the codec's matter
        weights = normal(5, ROWS, 6).abs() * (normal(6, ROWS, 6) > 0)
        ids = torch.stack(
            [torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(r))[:6] for r in range(ROWS)]
        )
        return SampledRows(ids, weights, normal(7, ROWS).abs(), temperature)
    return None


def divergence64(teacher, z: torch.Tensor, loss: LossConfig) -> torch.Tensor:
    """z (N, V) float64 -> (N,), from the definitions."""
    log_q = (z / loss.temperature).log_softmax(-1)
    if isinstance(teacher, SampledRows):
        return -(teacher.weights.double() * log_q.gather(1, teacher.ids)).sum(-1) - teacher.entropy.double()
    if not isinstance(teacher, DenseRows | HiddenRows):
        p, others = teacher.log_probs.double().exp(), torch.ones_like(z).scatter(1, teacher.ids, 0.0)
        tail_q = (log_q.exp() * others).sum(-1)
        tail = teacher.tail_mass.double() * (teacher.tail_mass.double() / tail_q).log()
        return (p * (p.log() - log_q.gather(1, teacher.ids))).sum(-1) + tail
    if isinstance(teacher, DenseRows):
        whole = teacher.logits.double()
    else:
        whole = transformed64(teacher.transform, teacher.hidden.double() @ teacher.head.double().T)
    log_p = (whole / loss.temperature).log_softmax(-1)
    if loss.divergence == "forward_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if loss.divergence == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if loss.divergence == "skewed_forward_kl":
        return (log_p.exp() * (log_p - (loss.beta * log_p.exp() + (1 - loss.beta) * log_q.exp()).log())).sum(-1)
    if loss.divergence == "skewed_reverse_kl":
        return (log_q.exp() * (log_q - (loss.beta * log_q.exp() + (1 - loss.beta) * log_p.exp()).log())).sum(-1)
    log_m = (loss.beta * log_p.exp() + (1 - loss.beta) * log_q.exp()).log()
    to_p, to_q = (log_p.exp() * (log_p - log_m)).sum(-1), (log_q.exp() * (log_q - log_m)).sum(-1)
    return loss.beta * to_p + (1 - loss.beta) * to_q


def transformed64(transform: LogitTransform, products: torch.Tensor) -> torch.Tensor:
    z = transform.scale * products
    return z if transform.soft_cap is None else transform.soft_cap * torch.tanh(z / transform.soft_cap)


def loss64(hidden, head, bias, targets, teacher, loss: LossConfig, transform: LogitTransform = PLAIN, weights=None):
    """Value, parts and gradient for the hidden states, all in float64 on whole logits."""
    states = hidden.detach().double().requires_grad_()
    z = transformed64(transform, states @ head.double().T + (0 if bias is None else bias.double()))
    by_row = torch.nn.functional.cross_entropy(z, targets, reduction="none") / TOKENS
    ce, kd = by_row.sum(), torch.zeros((), dtype=torch.float64)
    value = ce if weights is None else (weights[:, 0].double() * by_row).sum()
    if teacher is not None:
        by_row = loss.temperature**2 * divergence64(teacher, z, loss) / TOKENS
        kd = by_row.sum()
        value = loss.alpha * ce + (1 - loss.alpha) * kd if weights is None else value + (weights[:, 1] * by_row).sum()
    [gradient] = torch.autograd.grad(value, states)
    return value, ce, kd, gradient


def cases():
    for kind in KINDS:
        for divergence, temperature in LOSSES:
            if divergence == "forward_kl" or kind in ("hidden", "full"):
                yield pytest.param(kind, divergence, temperature, id=f"{kind}-{divergence}-{temperature:g}")


@pytest.mark.parametrize(("kind", "divergence", "temperature"), cases())
@pytest.mark.parametrize("biased", [False, True])
def test_loss_and_gradient_are_those_of_float64(hidden, head, targets, kind, divergence, temperature, biased):
    loss = LossConfig(divergence=divergence, temperature=temperature, alpha=0.3, beta=0.2)
    bias = normal(8, VOCABULARY) if biased else None
    teacher = teacher_rows(kind, temperature)
    value, parts = chunked_loss(hidden, head, bias, targets, teacher, loss, TOKENS)
    value.backward()
    value64, ce64, kd64, gradient64 = loss64(hidden, head, bias, targets, teacher, loss)
    for found, expected in ((value, value64), (parts["ce"], ce64), (parts["kd"], kd64)):
        torch.testing.assert_close(found.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6)
    error = (hidden.grad.double() - gradient64).norm() / gradient64.norm()
    assert error < 1e-5


@pytest.mark.parametrize(("transform", "of_teacher"), TRANSFORMS, ids=["scale", "cap", "both"])
@pytest.mark.parametrize(("kind", "divergence", "temperature"), cases())
def test_behind_a_scale_or_a_soft_cap_too(hidden, head, targets, kind, divergence, temperature, transform, of_teacher):
    """Whole logits by `plain`, and rows without gradients, are held against the same float64 values."""
    loss = LossConfig(divergence=divergence, temperature=temperature, alpha=0.3, beta=0.2)
    teacher, bias = teacher_rows(kind, temperature, of_teacher), normal(8, VOCABULARY)
    value64, ce64, kd64, gradient64 = loss64(hidden, head, bias, targets, teacher, loss, transform)
    whole = transform.apply(hidden @ head.T + bias)
    for value, parts in (
        chunked_loss(hidden, head, bias, targets, teacher, loss, TOKENS, transform),
        distillation_loss(whole, targets, teacher, loss, TOKENS),
    ):
        for found, expected in ((value, value64), (parts["ce"], ce64), (parts["kd"], kd64)):
            torch.testing.assert_close(found.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6)
        [gradient] = torch.autograd.grad(value, hidden)
        assert (gradient.double() - gradient64).norm() / gradient64.norm() < 1e-5
    ce, kd, *_ = row_losses(hidden, head, bias, targets, teacher, loss, transform)
    torch.testing.assert_close(ce.double().sum() / TOKENS, ce64.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        temperature**2 * kd.double().sum() / TOKENS, kd64.detach().double(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("kind", "divergence", "temperature"), cases())
def test_row_losses_are_the_rows_of_the_sums(hidden, head, targets, kind, divergence, temperature):
    loss = LossConfig(divergence=divergence, temperature=temperature, alpha=0.3, beta=0.2)
    teacher = teacher_rows(kind, temperature)
    ce, kd, *_ = row_losses(hidden, head, None, targets, teacher, loss)
    z = hidden.detach().double() @ head.double().T
    expected = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    torch.testing.assert_close(ce.double(), expected, rtol=1e-5, atol=1e-5)
    expected = torch.zeros(ROWS) if teacher is None else divergence64(teacher, z, loss)
    torch.testing.assert_close(kd.double(), expected.double(), rtol=1e-5, atol=1e-5)
    assert not (ce.requires_grad or kd.requires_grad)
    if divergence == "forward_kl":
        *_, ids, probs = row_losses(hidden, head, None, targets, teacher, loss, top=3)
        best = z.detach().softmax(-1).topk(3)  # as the student has them, whatever temperature the loss has
        assert torch.equal(ids, best.indices)
        torch.testing.assert_close(probs.double(), best.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_states_have_exact_logits_and_a_gradient_to_bfloat16(hidden, head, targets, kind):
    loss = LossConfig(temperature=2.0, alpha=0.3)
    states, head = hidden.detach().bfloat16().requires_grad_(), head.bfloat16()
    teacher = teacher_rows(kind, 2.0)
    if kind == "hidden":
        teacher = HiddenRows(teacher.hidden.bfloat16(), teacher.head.bfloat16())
    value, _ = chunked_loss(states, head, None, targets, teacher, loss, TOKENS)
    value.backward()
    value64, _, _, gradient64 = loss64(states, head, None, targets, teacher, loss)
    torch.testing.assert_close(value.detach().double(), value64.detach(), rtol=1e-5, atol=1e-6)
    assert states.grad.dtype == torch.bfloat16
    assert (states.grad.double() - gradient64).norm() / gradient64.norm() < 0.01


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_teachers_float32_rows_are_rounded_for_a_bfloat16_student_alone(
    hidden, head, targets, precision, monkeypatch
):
    """To bfloat16's noise: 1/256 a factor. A student in float32 has them as they are."""
    asked, factors = [], products.bfloat16_factors
    monkeypatch.setattr(products, "bfloat16_factors", lambda: asked.append(True) or factors())
    states, head = hidden.detach().to(precision).requires_grad_(), head.to(precision)
    teacher, loss = teacher_rows("hidden", 1.0), LossConfig(alpha=0.3)
    value, _ = chunked_loss(states, head, None, targets, teacher, loss, TOKENS)
    value.backward()
    value64, _, _, gradient64 = loss64(states, head, None, targets, teacher, loss)
    assert bool(asked) == (precision == torch.bfloat16)
    assert value.item() == pytest.approx(value64.item(), rel=0.01 if asked else 1e-5)
    assert (states.grad.double() - gradient64).norm() / gradient64.norm() < (0.02 if asked else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [LossConfig(alpha=0.3), LossConfig(alpha=0.3, temperature=2.0)], ids=["T1", "T2"])
def test_it_is_the_plain_loss(hidden, head, targets, kind, loss):
    teacher = teacher_rows(kind, loss.temperature)
    value, parts = chunked_loss(hidden, head, None, targets, teacher, loss, TOKENS)
    plain, plain_parts = distillation_loss(hidden @ head.T, targets, teacher, loss, TOKENS)
    torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts, plain_parts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "divergence", "temperature"), cases())
def test_every_row_may_have_weights_of_its_own(hidden, head, targets, kind, divergence, temperature):
    """Negative ones too, as of a reward; alpha then says nothing, and the parts stay what they were."""
    loss, teacher = (
        LossConfig(divergence=divergence, temperature=temperature, alpha=0.3),
        teacher_rows(kind, temperature),
    )
    weights = normal(9, ROWS, 2)
    value64, ce64, kd64, gradient64 = loss64(hidden, head, None, targets, teacher, loss, weights=weights)
    for value, parts in (
        chunked_loss(hidden, head, None, targets, teacher, loss, TOKENS, weights=weights),
        chunked_loss(hidden @ head.T, None, None, targets, teacher, loss, TOKENS, weights=weights),
        distillation_loss(hidden @ head.T, targets, teacher, loss, TOKENS, weights),
    ):
        for found, expected in ((value, value64), (parts["ce"], ce64), (parts["kd"], kd64)):
            torch.testing.assert_close(found.detach().double(), expected.detach().double(), rtol=1e-5, atol=1e-5)
        [gradient] = torch.autograd.grad(value, hidden)
        assert (gradient.double() - gradient64).norm() / gradient64.norm() < 1e-5


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "skewed_forward_kl", "skewed_reverse_kl"])
def test_of_an_equal_teacher_nothing_is_learnt(hidden, head, targets, divergence):
    teacher = HiddenRows(hidden.detach(), head)
    loss = LossConfig(divergence=divergence, temperature=2.0, alpha=0.0)
    value, _ = chunked_loss(hidden, head, None, targets, teacher, loss, TOKENS)
    value.backward()
    assert abs(value.item()) < 1e-5
    assert hidden.grad.abs().max() < 1e-5


def test_the_gradient_is_scaled_by_what_is_done_with_the_loss(hidden, head, targets):
    loss, teacher = LossConfig(alpha=0.3), teacher_rows("hidden", 1.0)
    (3 * chunked_loss(hidden, head, None, targets, teacher, loss, TOKENS)[0]).backward()
    gradient64 = loss64(hidden, head, None, targets, teacher, loss)[3]
    assert (hidden.grad.double() - 3 * gradient64).norm() / gradient64.norm() < 1e-4


def test_chunks_change_nothing(hidden, head, targets, monkeypatch):
    loss, teacher, found = LossConfig(alpha=0.3), teacher_rows("hidden", 1.0), []
    for rows in (1, 4, ROWS, 1000):
        monkeypatch.setitem(chunked.CHUNK_ELEMENTS, "cpu", rows * VOCABULARY)
        value, _ = chunked_loss(hidden, head, None, targets, teacher, loss, torch.tensor(TOKENS))
        found.append((value.detach(), *torch.autograd.grad(value, hidden)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_no_rows_give_a_zero_that_can_be_differentiated(head, targets):
    nothing = torch.empty(0, WIDTH, requires_grad=True)
    value, parts = chunked_loss(nothing, head, None, targets[:0], None, LossConfig(), 1.0)
    value.backward()
    assert (value.item(), parts["ce"].item(), nothing.grad.shape) == (0.0, 0.0, (0, WIDTH))


def test_without_gradients_the_value_is_the_same(hidden, head, targets):
    loss, teacher = LossConfig(alpha=0.3), teacher_rows("full", 1.0)
    kept = teacher.logits.clone()
    with torch.no_grad():
        alone, _ = chunked_loss(hidden, head, None, targets, teacher, loss, TOKENS)
    assert torch.equal(alone, chunked_loss(hidden, head, None, targets, teacher, loss, TOKENS)[0].detach())
    assert torch.equal(teacher.logits, kept)  # what the store gave is not written over


def test_logits_that_no_float_can_exponentiate_stay_finite(head, targets):
    hidden = (300 * normal(0, ROWS, WIDTH)).requires_grad_()
    for kind in KINDS:
        teacher = teacher_rows(kind, 1.0)
        value, _ = chunked_loss(hidden, head, None, targets, teacher, LossConfig(alpha=0.3), TOKENS)
        [gradient] = torch.autograd.grad(value, hidden)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_a_top_k_row_with_unfilled_places_or_without_any_token(hidden, head, targets):
    rows = teacher_rows("topk", 1.0)
    rows.log_probs[0, 1:], rows.ids[0, 1:] = -1e4, int(rows.ids[0, 0])  # as the codec fills up
    rows.tail_mass[0] = 1 - rows.log_probs[0, 0].exp()
    rows.log_probs[1], rows.ids[1], rows.tail_mass[1] = -1e4, 0, 1.0
    loss = LossConfig(alpha=0.3)
    value, _ = chunked_loss(hidden, head, None, targets, rows, loss, TOKENS)
    [gradient] = torch.autograd.grad(value, hidden)
    plain, _ = distillation_loss(hidden @ head.T, targets, rows, loss, TOKENS)
    torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, hidden)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("transform", [PLAIN, LogitTransform(2.0, 5.0)], ids=["plain", "scale and cap"])
@pytest.mark.parametrize(("kind", "divergence", "temperature"), cases())
def test_a_trained_heads_gradient_is_that_of_float64(hidden, head, targets, kind, divergence, temperature, transform):
    loss = LossConfig(divergence=divergence, temperature=temperature, alpha=0.3, beta=0.2)
    teacher, bias = teacher_rows(kind, temperature), normal(8, VOCABULARY).requires_grad_()
    value, _ = chunked_loss(hidden, head.requires_grad_(), bias, targets, teacher, loss, TOKENS, transform)
    (2 * value).backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, head, bias)]
    z = transformed64(transform, exact[0] @ exact[1].T + exact[2])
    value64 = torch.nn.functional.cross_entropy(z, targets, reduction="sum") / TOKENS
    if teacher is not None:
        value64 = 0.3 * value64 + 0.7 * temperature**2 * divergence64(teacher, z, loss).sum() / TOKENS
    for found, expected in zip((hidden, head, bias), torch.autograd.grad(2 * value64, exact), strict=True):
        assert (found.grad.double() - expected).norm() / expected.norm() < 1e-5


def test_a_trained_head_alone_in_bfloat16_has_a_gradient_to_bfloat16(hidden, head, targets):
    states, head = hidden.detach().bfloat16(), head.bfloat16().requires_grad_()
    chunked_loss(states, head, None, targets, None, LossConfig(), TOKENS)[0].backward()
    exact = head.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(states.double() @ exact.T, targets, reduction="sum").div(TOKENS).backward()
    assert head.grad.dtype == torch.bfloat16
    assert (head.grad.double() - exact.grad).norm() / exact.grad.norm() < 0.01


@pytest.mark.parametrize("kind", ["topk", "sampled"])
@pytest.mark.parametrize("loss", [LossConfig(divergence="reverse_kl"), LossConfig(temperature=2.0)])
def test_sparse_rows_are_refused_for_what_they_cannot_serve(hidden, head, targets, kind, loss):
    with pytest.raises(ValueError, match="at their own temperature only"):
        chunked_loss(hidden, head, None, targets, teacher_rows(kind, 1.0), loss, TOKENS)


def test_products_of_half_precision_are_not_rounded(monkeypatch):
    states, head = (10 * normal(0, 5, 64)).bfloat16(), normal(1, 300, 64).bfloat16()
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setitem(products.BLOCK_ELEMENTS, "cpu", 64 * 70)  # several blocks, the last one smaller
    exact = states.double() @ head.double().T
    found = logits_of(states, head)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-4 < ((states @ head.T).double() - exact).abs().max()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    # States of other types than the head's are not taken for exact.
    finer = states.float() * (1 + 2**-12)
    assert (logits_of(finer, head) - finer.double() @ head.double().T).abs().max() < 1e-4
    slopes = normal(2, 5, 300)
    gradient = torch.empty(5, 64)
    gradient_of(slopes, head, gradient, None)
    torch.testing.assert_close(gradient, slopes @ head.float())
