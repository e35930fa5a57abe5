"""What an architecture does to its logits behind the output head: a scale, a soft cap, both, or nothing.

    z = soft_cap * tanh(scale * y / soft_cap),  y = hidden @ head.T + bias

Cohere and Falcon-H1 multiply, Granite divides, MiniCPM divides the hidden states, Gemma 2 caps. A configuration names
the numbers; what is done with them is found by asking the model, so that one that does something else is noticed."""

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from primekd.foundation.errors import UserError

# Names of numbers that may be a scale or a soft cap. None is taken at its word, so it does no harm to catch too many.
NUMBER = re.compile(r"(logit|lm_head|output_mult|soft_?cap)")
PROBE = (4, 5, 6, 7)  # token ids; of each one's logits the largest is brought near one of these sizes:
SIZES = (1.0, 8.0, 64.0, 512.0)
# That precision explains, relative to the logits' norm. A soft cap rounds three times to bfloat16's 8 bits.
FLOAT32_ERROR, BFLOAT16_ERROR = 1e-3, 0.015


@dataclass(frozen=True)
class LogitTransform:
    """z = soft_cap * tanh(scale * y / soft_cap) of the head's product y; scale * y without a soft cap."""

    scale: float = 1.0
    soft_cap: float | None = None

    def apply(self, products: Tensor) -> Tensor:
        """Logits of any shape in new memory; the very same tensor where there is nothing to do."""
        if self.soft_cap is None:
            return products if self.scale == 1 else products * self.scale
        return torch.tanh(products * (self.scale / self.soft_cap)) * self.soft_cap

    def apply_(self, products: Tensor) -> Tensor:
        """As `apply`, written over its argument."""
        if self.soft_cap is not None:
            return products.mul_(self.scale / self.soft_cap).tanh_().mul_(self.soft_cap)
        return products if self.scale == 1 else products.mul_(self.scale)

    def bend(self, logits: Tensor, out: Tensor) -> Tensor:
        """dz/dy / scale = 1 - (z / soft_cap)^2 of the logits z under a soft cap, written to `out`."""
        return torch.mul(logits, logits, out=out).div_(-(self.soft_cap**2)).add_(1.0)


PLAIN = LogitTransform()


def best_transform(products: Tensor, own: Tensor, numbers: Sequence[float], largest: float) -> LogitTransform | None:
    """What turns products into the model's own logits, (T, V) both, or None. `numbers`: of the model's configuration,
    a scale, a divisor or a soft cap; `largest`: the error that precision explains, relative to a row's norm."""
    products, own = products.float(), own.float()
    above = [x for x in numbers if x > 0]
    scales, caps = [1.0, *above, *(1 / x for x in above)], [None, *above]
    found = [LogitTransform(*both) for both in dict.fromkeys(itertools.product(scales, caps))]
    errors = [_error(transform.apply(products), own) for transform in found]
    best = min(range(len(found)), key=errors.__getitem__)  # the plainest one of equals
    return found[best] if errors[best] <= largest else None


def _error(logits: Tensor, own: Tensor) -> float:
    """The worst row's error, by its norm or, so that single columns count, by half of its largest entry."""
    difference, tiny = logits - own, torch.finfo(torch.float32).tiny
    by_norm = difference.norm(dim=-1) / own.norm(dim=-1).clamp(min=tiny)
    by_entry = difference.abs().amax(-1) / own.abs().amax(-1).clamp(min=tiny) / 2
    return float(torch.maximum(by_norm, by_entry).amax().nan_to_num(torch.inf))


def config_numbers(config: Any) -> list[float]:
    """The numbers of a configuration that may be a scale or a soft cap of the logits."""
    values = {name: getattr(config, name, None) for name in dir(config) if NUMBER.search(name)}
    return [float(x) for x in values.values() if isinstance(x, int | float) and not isinstance(x, bool)]


@torch.no_grad()
def find_transform(model: nn.Module, vocab_size: int) -> LogitTransform | None:
    """What a causal model of transformers does behind its head; None where it is no scale and no soft cap.

    Found from the logits of a few tokens, in their first V = `vocab_size` columns; further ones are padding. What comes
    out of the head is enlarged, token by token more, so that a cap shows that is far above them."""
    head = model.get_output_embeddings()
    ids = torch.tensor([PROBE], device=model.device)
    factors: list[Tensor] = []

    def enlarge(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        largest = output[0, :, :vocab_size].abs().amax(-1).float().clamp(min=1e-6)
        # Powers of 2 round nothing.
        factors.append((largest.new_tensor(SIZES) / largest).log2().round().exp2()[:, None])
        return output * factors[0].to(output.dtype)

    with evaluating(model):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        products = head(hidden.to(head.weight.dtype))[:, :vocab_size].float()  # with its adapter, if it has one
        hook = head.register_forward_hook(enlarge)
        try:
            own = model(input_ids=ids, use_cache=False).logits[0, :, :vocab_size]  # (4, V)
        finally:
            hook.remove()
    if factors:
        products = products * factors[0].to(products.device)
    numbers = config_numbers(model.config.get_text_config(decoder=True))
    largest = FLOAT32_ERROR if head.weight.dtype == torch.float32 else BFLOAT16_ERROR
    return best_transform(products, own.to(products.device), numbers, largest)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, which would also use up random numbers."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def require_transform(transform: LogitTransform | None, name: str) -> LogitTransform:
    """Raises UserError where a student's logits cannot be made of its hidden states. `name`: the model's."""
    if transform is None:
        raise UserError(
            f"{name} cannot be a student: behind its output head it changes the logits in another way than by a scale "
            "or a soft cap, which no loss here follows; choose another student.model."
        )
    return transform


def refuse_unknown_architecture(text: str) -> None:
    """Raises UserError if a model cannot be a student, as far as its architecture says so without any weights.

    So a capture that such a student could not learn from is not begun. A model that is not here is not looked at."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_outputs import BaseModelOutputWithPast

    from primekd.models.folders import is_present, model_folder

    if not is_present(text):
        return
    folder = model_folder(text)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        width = model.get_output_embeddings().weight.shape[1]
        # The decoder says something without looking; what follows it is the architecture's own.
        states = BaseModelOutputWithPast(last_hidden_state=torch.linspace(-1, 1, len(PROBE) * width).view(1, -1, width))
        model.get_decoder().forward = lambda *_, **__: states
        generator = torch.Generator().manual_seed(0)
        head = nn.Linear(width, 64, bias=False)
        head.weight.data = torch.randn(64, width, generator=generator) / width**0.5
        model.set_output_embeddings(head)
        transform = find_transform(model, 64)
    except Exception:  # noqa: BLE001 - it needs more than that: loading it will tell
        return
    require_transform(transform, text)
