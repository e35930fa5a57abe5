"""What computes alpha * CE + (1 - alpha) * T^2 * D on the same inputs: this project, TRL, plain PyTorch, the floor.

Each alternative is a function of a Case that runs forward and backward to the hidden states and returns the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.stored_signals import codec_at
from primekd.config import LossConfig
from primekd.losses import distillation_loss
from primekd.losses.chunked import chunk_rows
from primekd.losses.products import logits_of
from primekd.signals import HiddenRows, SignalRows, StoredItem, TopKRows, concatenate
from primekd.signals.rows import DenseRows, SampledRows

CROSS_ENTROPY, PRODUCTS = "cross-entropy alone", "head products alone"  # of another sum, and of none
FROZEN, WHOLE = "frozen head", "whole logits"
TRL_WHOLE, TRL_CHUNKED = "TRL, whole logits", "TRL, chunked"
LIGER, LIGER_TRITON = "Liger, chunked", "Liger, Triton"
TEMPERATURE, ALPHA = 2.0, 0.5
LOGIT_SD = 3.0  # of the random logits, about what a language model's head gives
ENCODED_AT_ONCE = 128  # rows; a case's inputs need little memory beyond themselves
FLOOR_ROWS = 128  # rows of logits at a time on a CPU, so that the floor's products run from its cache where they can


@dataclass(frozen=True)
class Case:
    """Inputs of one loss. hidden (N, D) needs a gradient; head (V, D) is frozen; targets (N,); N signal rows."""

    hidden: Tensor
    head: Tensor
    targets: Tensor
    rows: SignalRows
    loss: LossConfig

    def first(self, count: int) -> "Case":
        """The same for the first `count` tokens."""
        hidden = self.hidden.detach()[:count].clone().requires_grad_()
        return replace(self, hidden=hidden, targets=self.targets[:count], rows=self.rows.part(slice(0, count)))


def make_case(
    tokens: int, width: int, vocabulary: int, dtype: str = "float32", signal: str = "hidden",
    divergence: str = "forward_kl", temperature: float = TEMPERATURE, teacher_width: int | None = None, seed: int = 0,
) -> Case:  # fmt: skip
    """A random student and a teacher near it.

    Args:
        dtype: of hidden states and heads.
        signal: the codec whose rows the loss is given, encoded and decoded as a store does it.
        teacher_width: of the teacher's hidden states where it is not the student's; the teacher is then as random as
            the student.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    kind = getattr(torch, dtype)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    hidden, head = random(tokens, width), random(vocabulary, width).mul_(LOGIT_SD / width**0.5)
    if teacher_width in (None, width):
        teacher, teacher_head = (hidden + 0.3 * random(tokens, width)).to(kind), head.to(kind, copy=True)
    else:
        # In the end's precision at once: in float32 this head is the largest tensor of all.
        teacher = random(tokens, teacher_width).to(kind)
        teacher_head = torch.randn(vocabulary, teacher_width, generator=generator, device=device, dtype=kind)
        teacher_head.mul_(LOGIT_SD / teacher_width**0.5)
    loss = LossConfig(divergence=divergence, temperature=temperature, alpha=ALPHA)
    return Case(
        hidden.to(kind).requires_grad_(),
        head.to(kind),
        torch.randint(vocabulary, (tokens,), generator=generator, device=device),
        rows_of(signal, teacher, teacher_head, temperature).to(device),
        loss,
    )


def rows_of(signal: str, states: Tensor, head: Tensor, temperature: float) -> SignalRows:
    """Hidden states (N, D) and their head (V, D) as a codec's rows, encoded and decoded as a store does it."""
    if signal == "hidden":
        return HiddenRows(states, head)
    codec, parts = codec_at(signal, temperature), []
    for number, chunk in enumerate(states.split(ENCODED_AT_ONCE)):
        logits = logits_of(chunk, head)
        item = StoredItem(str(number), [0], logits.argmax(-1).tolist(), truncated=False)
        parts.append(codec.decode(codec.encode(logits, item), None, item))
    return concatenate(parts)


def run_chunked(case: Case) -> float:
    """This project's loss with a frozen head."""
    from primekd.losses.chunked import chunked_loss

    loss, _ = chunked_loss(case.hidden, case.head, None, case.targets, case.rows, case.loss, len(case.targets))
    return backward(case, loss)


def run_dense(case: Case) -> float:
    """The plain loss, from whole logits."""
    loss, _ = distillation_loss(logits(case), case.targets, case.rows, case.loss, len(case.targets))
    return backward(case, loss)


def run_cross_entropy(case: Case) -> float:
    """Cross-entropy alone, as a model with labels computes it: logits in the inputs' precision, then float32."""
    return backward(case, F.cross_entropy(F.linear(case.hidden, case.head).float(), case.targets))


def run_products(case: Case) -> float:
    """The floor: student logits, teacher logits and the gradient's product, and nothing between them."""
    total = torch.zeros((), device=case.hidden.device)
    states, gradient = case.hidden.detach(), torch.empty_like(case.hidden)
    # On a GPU as many as the loss takes: fewer would read the head again and again, and be no floor.
    rows = chunk_rows(len(case.head), "cuda") if states.is_cuda else FLOOR_ROWS
    size = (min(rows, len(states)), len(case.head))
    # Kept over all chunks: the pages of new ones would cost as much as the product.
    own, teachers = (torch.empty(size, dtype=states.dtype, device=states.device) for _ in range(2))
    for start in range(0, len(states), rows):
        part = slice(start, min(start + rows, len(states)))
        student = torch.mm(states[part], case.head.T, out=own[: part.stop - start])
        if isinstance(case.rows, HiddenRows):
            torch.mm(case.rows.hidden[part], case.rows.head.T, out=teachers[: part.stop - start])
        torch.mm(student, case.head, out=gradient[part])
        total += student[0, 0]
    case.hidden.grad = gradient
    return total.item()


OWN: dict[str, Callable[[Case], float]] = {
    CROSS_ENTROPY: run_cross_entropy,
    WHOLE: run_dense,
    FROZEN: run_chunked,
    PRODUCTS: run_products,
}


def alternative(name: str) -> Callable[[Case], float]:
    """What runs forward and backward by that name."""
    if name in OWN:
        return OWN[name]
    if name in (LIGER, LIGER_TRITON):
        from benchmarks import liger_losses

        return {LIGER: liger_losses.run_chunked, LIGER_TRITON: liger_losses.run_fused}[name]
    from benchmarks import rival_losses

    return {TRL_WHOLE: rival_losses.run_dense, TRL_CHUNKED: rival_losses.run_chunked}[name]


def prepare(name: str, **case) -> Callable[[], float]:
    """An alternative on inputs of its own; `case` as for `make_case`."""
    return partial(alternative(name), make_case(**case))


def has_trl() -> bool:
    """Whether TRL is installed; without it its alternatives are not run."""
    return find_spec("trl") is not None


def logits(case: Case) -> Tensor:
    """(N, V) float32, as training/objective.py takes them on the plain path."""
    return F.linear(case.hidden.float(), case.head.float())


def exact_gradient(case: Case) -> tuple[float, Tensor]:
    """The loss and its gradient for the hidden states in float64, from the definition alone."""
    hidden = case.hidden.detach().double().requires_grad_()
    student = F.linear(hidden, case.head.double())
    divergence = _exact_divergence(case.rows, student, case.loss).mean()
    kd = case.loss.temperature**2 * divergence
    loss = case.loss.alpha * F.cross_entropy(student, case.targets) + (1 - case.loss.alpha) * kd
    loss.backward()
    return loss.item(), hidden.grad


def _exact_divergence(rows: SignalRows, student: Tensor, loss: LossConfig) -> Tensor:
    log_q = (student / loss.temperature).log_softmax(-1)
    if isinstance(rows, SampledRows):
        return -(rows.weights.double() * log_q.gather(-1, rows.ids)).sum(-1) - rows.entropy.double()
    if isinstance(rows, TopKRows):
        log_p, tail = rows.log_probs.double(), rows.tail_mass.double()
        tail_q = 1 - log_q.gather(-1, rows.ids).exp().sum(-1)
        return (log_p.exp() * (log_p - log_q.gather(-1, rows.ids))).sum(-1) + tail * (tail / tail_q).log()
    whole = rows.logits.double() if isinstance(rows, DenseRows) else rows.hidden.double() @ rows.head.double().T
    log_p = (whole / loss.temperature).log_softmax(-1)
    if loss.divergence == "forward_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if loss.divergence == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if loss.divergence in ("skewed_forward_kl", "skewed_reverse_kl"):
        one, other = (log_p, log_q) if loss.divergence == "skewed_forward_kl" else (log_q, log_p)
        return (one.exp() * (one - (loss.beta * one.exp() + (1 - loss.beta) * other.exp()).log())).sum(-1)
    mixture = (loss.beta * log_p.exp() + (1 - loss.beta) * log_q.exp()).log()
    to_p, to_q = ((x.exp() * (x - mixture)).sum(-1) for x in (log_p, log_q))
    return loss.beta * to_p + (1 - loss.beta) * to_q


def backward(case: Case, loss: Tensor) -> float:
    """The loss as a number; its gradient is left in `case.hidden`."""
    case.hidden.grad = None
    loss.backward()
    return loss.item()
