"""A student and its objective in one module: whatever touches a parameter happens inside one forward call."""

import inspect
from collections.abc import Callable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from primekd.config import LossConfig
from primekd.losses import chunked_loss, distillation_loss
from primekd.models.attention import PACKED, attending
from primekd.models.logits import find_transform, require_transform
from primekd.signals import SignalRows
from primekd.teachers.cache import has_plain_cache, narrowest_window
from primekd.teachers.decoding import SHORTEST_PREFIX
from primekd.training.examples import IGNORED
from primekd.training.processes import process_count


class StudentObjective(nn.Module):
    """The student up to its loss, as one forward call: sharded parameters (DDP, FSDP) are whole only while it runs.
    Prompt and padding rows are dropped before the head product, which is the largest one of a small model. `model`: a
    peft model over a frozen base, or one all of whose weights are trained. Trained weights stay in float32; over a
    bfloat16 base their products run in bfloat16 (autocast), a third faster on a CPU. `vocab_size`: V, the tokenizer's
    size; the head's further columns are padding. `pack`: read rows one behind the other, without padding and what all
    begin with once; see may_pack. `dtype`: what products run in; None for what the base's weights are in. Raises
    UserError if what the architecture does to its logits behind the head (`transform`) is neither a scale nor a soft
    cap, so that no loss here would be of the model's own logits."""

    def __init__(
        self, model: nn.Module, loss: LossConfig, vocab_size: int, pack: bool = False,
        dtype: str | None = None,
    ):  # fmt: skip
        super().__init__()
        self.model, self.loss, self.vocab_size = model, loss, vocab_size
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = base.config
        self._no_split_modules = sorted(base._no_split_modules or ())  # FSDP shards layer by layer
        # Kept out of the module's children: they are already part of `model`.
        self._parts = (base.get_decoder(), base.get_output_embeddings())
        own = base.get_input_embeddings().weight.dtype
        self._bfloat16 = (own if dtype is None else getattr(torch, dtype)) == torch.bfloat16
        self.rounds = self._bfloat16 and own == torch.float32  # hidden states, as a model in bfloat16 does
        with self._precision(base.get_input_embeddings().weight):
            self.transform = require_transform(find_transform(base, vocab_size), type(base).__name__)
        self.pack = pack and self._packs_alike()

    def response_states(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) each -> hidden (N, D) at position t - 1 of every label at t, and targets (N,), row by row."""
        targets = labels[:, 1:]
        kept = targets != IGNORED  # (B, S - 1)
        if input_ids.shape[1] > 1:  # nothing is predicted from the last token
            input_ids, attention_mask = input_ids[:, :-1], attention_mask[:, :-1]
        with self._precision(input_ids):
            if self.pack and kept.shape[1] and (attention_mask.diff(dim=1) <= 0).all() and attention_mask[:, 0].all():
                hidden = self._packed(input_ids, attention_mask.bool(), kept)  # all padding stands behind
            else:
                found = self._parts[0](input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
                hidden = found.last_hidden_state[:, : kept.shape[1]][kept]  # (B, S - 1, D) -> (N, D)
        return hidden.bfloat16() if self.rounds else hidden, targets[kept]

    def _packed(self, input_ids: Tensor, real: Tensor, kept: Tensor) -> Tensor:
        """Ids, and whether one is no padding and its state is wanted, (B, S) each -> the wanted states (N, D)."""
        first = prefix_length(input_ids, real, kept)
        behind = real[:, first:]
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        ids, positions = (torch.cat([x[0, :first], x[:, first:][behind]])[None] for x in (input_ids, places))
        decoder = self._parts[0]
        with attending(decoder, PACKED):
            hidden = decoder(
                input_ids=ids, position_ids=positions, use_cache=False, shared=first, lengths=behind.sum(1).tolist()
            ).last_hidden_state[0, first:]  # (sum of lengths, D)
        return hidden[kept[:, first:][behind]]

    @torch.no_grad()
    def _packs_alike(self) -> bool:
        """Whether the architecture passes on what packed attention needs, and does no more: asked with two rows."""
        ids = torch.arange(2, 22, device=self.model.device).repeat(2, 1) % self.vocab_size  # (2, 20)
        ids[1, 12:] = 3
        labels, mask = ids.clone(), torch.ones_like(ids)
        labels[:, :14], labels[0, 18:], mask[0, 18:] = IGNORED, IGNORED, 0
        states = []
        try:
            for self.pack in (False, True):
                states.append(self.response_states(ids, mask, labels)[0].float())
        except (TypeError, NotImplementedError):
            return False
        return bool((states[1] - states[0]).norm() <= (0.2 if self._bfloat16 else 1e-3) * states[0].norm())

    def _precision(self, inputs: Tensor) -> torch.autocast:
        return torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._bfloat16)

    def head(self) -> tuple[Tensor, Tensor | None]:
        """The output head (V, D), in the precision of products, and its bias (V,) or None, padded columns cut."""
        output = self._parts[1]
        weight = output.weight.bfloat16() if self._bfloat16 else output.weight
        return weight[: self.vocab_size], None if output.bias is None else output.bias[: self.vocab_size]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, teacher: SignalRows | None = None,
        tokens: Tensor | float = 1.0, gold: int = 0, weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """(B, S) each, signal rows of all their response tokens in order -> the loss and its parts, over `tokens`.
        `gold`: so many of the last rows are gold solutions, for the cross-entropy; `tokens` is then (2,), of responses
        and gold solutions in the global batch. `weights`: (N, 2), in place of alpha and 1 - alpha."""
        hidden, targets = self.response_states(input_ids, attention_mask, labels)
        if not gold:
            return self._loss_of(hidden, targets, teacher, self.loss, tokens, weights)
        first = int((labels[:-gold, 1:] != IGNORED).sum())  # response tokens stand before gold ones
        divergence_alone = self.loss.model_copy(update={"alpha": 0.0})
        kd, of_kd = self._loss_of(hidden[:first], targets[:first], teacher, divergence_alone, tokens[0], weights)
        ce, of_ce = self._loss_of(hidden[first:], targets[first:], None, self.loss, tokens[1])
        return self.loss.alpha * ce + (1 - self.loss.alpha) * kd, {"ce": of_ce["ce"], "kd": of_kd["kd"]}

    @property
    def device(self) -> torch.device:
        return self.model.device

    def states(self, **inputs) -> Tensor:
        """Hidden states (B, S, D) of all positions, as the loss has them."""
        with self._precision(inputs["input_ids"]):
            hidden = self._parts[0](**inputs).last_hidden_state
        return hidden.bfloat16() if self.rounds else hidden

    def last_states(self, **inputs) -> Tensor:
        """What `decode` asks for, while the student learns: those of the last position, (B, D)."""
        return self.states(**inputs, use_cache=True)[:, -1].clone()

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (N, D) -> the student's logits (N, V), padded columns cut."""
        return self.as_it_is()(hidden)

    def as_it_is(self) -> Callable[[Tensor], Tensor]:
        """`logits` for as long as no weight changes: the head is rounded once, not for every token."""
        output, rounded = self._parts[1], None
        if not isinstance(output, BaseTunerLayer):
            rounded = self.head()

        def logits(hidden: Tensor) -> Tensor:
            with self._precision(hidden):
                if rounded is None:
                    return self.transform.apply(output(hidden)[:, : self.vocab_size])
                return self.transform.apply(nn.functional.linear(hidden.to(rounded[0].dtype), *rounded))

        return logits

    def _loss_of(
        self, hidden: Tensor, targets: Tensor, teacher: SignalRows | None, loss: LossConfig, tokens: Tensor | float,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """From hidden states; from logits where the head has an adapter."""
        output = self._parts[1]
        if isinstance(output, BaseTunerLayer):
            return distillation_loss(self.logits(hidden), targets, teacher, loss, tokens, weights)
        return chunked_loss(hidden, *self.head(), targets, teacher, loss, tokens, self.transform, weights)


# On a CPU the rows of a micro-batch are read as one, one behind the other: there is no padding, and attention takes
# each row for itself. What all begin with, the chat template's own words, stands once in front: a causal model's states
# there do not depend on what follows, and stay in the autograd graph, so loss and gradients are those of whole rows.


def may_pack(model: nn.Module, longest: int) -> bool:
    """Whether packed rows give the same as padded ones in less time, up to `longest` tokens. Not on a GPU, where every
    row's attention is launched by itself, nor with several processes, dropout (which rows would share), recomputed
    activations, or layers that do not look at all tokens."""
    accepted = inspect.signature(model.get_decoder().forward).parameters
    settings = model.config.get_text_config(decoder=True).to_dict()
    return (
        model.device.type == "cpu"
        and process_count() == 1
        and not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        and not any(value for name, value in settings.items() if "drop" in name)  # attention has its own
        and not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        and "position_ids" in accepted
        and model.config._attn_implementation in ("sdpa", "eager")
        and has_plain_cache(model.config)
        and longest <= narrowest_window(model.config)
    )


def prefix_length(input_ids: Tensor, attention_mask: Tensor, used: Tensor) -> int:
    """How many tokens (B, S) all rows begin with whose states nobody uses (`used`), if that is worth it, else 0."""
    if len(input_ids) < 2 or not used.any():
        return 0
    same = (input_ids == input_ids[:1]).all(0) & attention_mask.bool().all(0) & ~used.any(0)  # (S,)
    length = int(same.long().cumprod(0).sum())
    return length if length >= SHORTEST_PREFIX else 0
