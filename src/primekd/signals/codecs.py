"""Codecs: how a row of teacher signal becomes bytes, and what the bytes can still serve. All but `sampled` (a module of
its own) are lossless in what they keep; `describe()["error"]` says what is lost."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from primekd.config import LossConfig, SignalsConfig
from primekd.foundation.errors import UserError
from primekd.signals.rows import DenseRows, HiddenRows, SignalRows, TopKRows
from primekd.signals.sampled import SampledCodec
from primekd.signals.shards import StoredItem
from primekd.teachers.protocol import TopLogprobs, Want

NO_PLACE = -1e4  # log-probability of an unfilled place: its exponential is 0, and 0 times it is no nan


class Codec(Protocol):
    """Turns the engine's output for one item into named tensors, and back.

    A tensor has one row a response token, but for one by the name shards.PACKED: bytes, any number of them."""

    name: str
    needs: Want | None  # None: responses alone are kept

    def encode(self, states: Tensor | TopLogprobs, item: StoredItem) -> dict[str, Tensor]:
        """(T, D) hidden states, (T, V) logits or T rows of top log-probs of `item` -> the columns of its rows."""

    def decode(self, columns: dict[str, Tensor], head: Tensor | None, item: StoredItem) -> SignalRows | None:
        """Columns as `encode` made them of `item` -> rows that a loss can use; None where there are none."""

    def refusal(self, loss: LossConfig) -> str | None:
        """Why this codec cannot serve a loss, or None if it can."""
        return None

    def describe(self) -> dict[str, Any]:
        """Name, parameters, and the error that decoding has against the engine's own logits."""


@dataclass(frozen=True)
class FullCodec(Codec):
    """Every logit in float32: the reference, V * 4 bytes a token."""

    name = "full"
    needs: Want = "logits"

    def encode(self, states: Tensor, item: StoredItem) -> dict[str, Tensor]:
        return {"logits": states.float().contiguous()}

    def decode(self, columns: dict[str, Tensor], head: Tensor | None, item: StoredItem) -> DenseRows:
        return DenseRows(columns["logits"])

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "error": "none: the engine's float32 logits, bit for bit"}


@dataclass(frozen=True)
class HiddenCodec(Codec):
    """The final hidden state in the engine's own precision; the head is stored once beside the shards."""

    name = "hidden"
    needs: Want = "hidden"

    def encode(self, states: Tensor, item: StoredItem) -> dict[str, Tensor]:
        return {"hidden": states.contiguous()}

    def decode(self, columns: dict[str, Tensor], head: Tensor | None, item: StoredItem) -> HiddenRows:
        if head is None:
            raise ValueError("hidden rows need the teacher's head")
        return HiddenRows(columns["hidden"], head)

    def describe(self) -> dict[str, Any]:
        error = "hidden state bit for bit; hidden @ head.T against the engine's logits: see `reconstruction`"
        return {"name": self.name, "error": error}


@dataclass(frozen=True)
class TopKCodec:
    """The k most probable tokens at one temperature with the mass of the rest: k * 8 + 8 bytes a token.

    Made from logits, or (`needs` "top", temperature 1) from the few log-probabilities that an engine shows; then the
    tail is what they leave of 1, and the log-normaliser is not known (nan)."""

    k: int
    temperature: float
    needs: Want = "logits"
    name = "topk"

    def encode(self, states: Tensor | TopLogprobs, item: StoredItem) -> dict[str, Tensor]:
        if isinstance(states, TopLogprobs):
            return self._encode_top(states)
        scaled = states.float() / self.temperature
        log_normaliser = scaled.logsumexp(-1)  # (T,)
        values, ids = scaled.topk(min(self.k, scaled.shape[-1]), dim=-1)  # (T, k)
        # Summed over the tail itself: 1 - sum(top) would lose small tails to rounding.
        tail = (scaled.scatter(-1, ids, -torch.inf).logsumexp(-1) - log_normaliser).exp()
        kept = {"ids": ids.to(torch.int32), "log_probs": values - log_normaliser[:, None]}
        return kept | {"tail_mass": tail, "log_normaliser": log_normaliser}

    def _encode_top(self, top: TopLogprobs) -> dict[str, Tensor]:
        ids, log_probs = top.ids[:, : self.k], top.log_probs[:, : self.k].float()
        missing = (0, self.k - ids.shape[1])  # every row of a store has one width
        ids = torch.nn.functional.pad(ids, missing, value=-1)
        log_probs = torch.nn.functional.pad(log_probs, missing, value=-torch.inf)
        filled = ids >= 0
        tail = 1 - log_probs.double().exp().sum(-1)
        return {
            # An unfilled place repeats the row's first token with no mass, so that the tail is counted once. A row
            # without any token (an API hides the end of turn) is all tail, and has no divergence from anything.
            "ids": torch.where(filled, ids, ids[:, :1].clamp(min=0)).to(torch.int32),
            "log_probs": torch.where(filled, log_probs, NO_PLACE),
            "tail_mass": tail.clamp(0, 1).float(),
            "log_normaliser": torch.full((len(ids),), torch.nan),
        }

    def decode(self, columns: dict[str, Tensor], head: Tensor | None, item: StoredItem) -> TopKRows:
        return TopKRows(**columns | {"ids": columns["ids"].long()}, temperature=self.temperature)

    def refusal(self, loss: LossConfig) -> str | None:
        if loss.divergence != "forward_kl":
            return (
                f"the codec topk keeps {self.k} tokens a row, and {loss.divergence} needs the teacher's probability of "
                "every token that the student may favour: use the codec hidden or full"
            )
        if loss.temperature != self.temperature:
            return (
                f"the codec topk was captured at temperature {self.temperature:g} and its tail cannot be rescaled to "
                f"{loss.temperature!r}: set signals.topk_temperature to it and capture again, or use hidden or full"
            )
        return None

    def describe(self) -> dict[str, Any]:
        shown = {} if self.needs == "logits" else {"from": "the engine's top log-probs; the tail is 1 minus their sum"}
        error = (
            "the kept log-probabilities are exact to float32; all other tokens are one bucket, so a forward "
            "KL computed from it is a lower bound of the full one"
        )
        return shown | {"name": self.name, "k": self.k, "temperature": self.temperature, "error": error}


@dataclass(frozen=True)
class TextCodec:
    """Responses without any signal, for training on pseudo-labels (Kim and Rush 2016, arXiv 1606.07947)."""

    name = "text"
    needs: Want | None = None

    def encode(self, states: None, item: StoredItem) -> dict[str, Tensor]:
        return {}

    def decode(self, columns: dict[str, Tensor], head: Tensor | None, item: StoredItem) -> None:
        return None

    def refusal(self, loss: LossConfig) -> str | None:
        if loss.alpha == 1:
            return None
        return (
            "only the teacher's text was kept, which has no distribution to learn from: set loss.alpha to 1 to train "
            "on the text as pseudo-labels, or capture from an engine that gives log-probs"
        )

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "error": "nothing of the teacher's distribution is kept, only what it wrote"}


WITHOUT_SETTINGS: dict[str, Codec] = {codec.name: codec for codec in (FullCodec(), HiddenCodec(), TextCodec())}


def make_codec(config: SignalsConfig, offers: frozenset[str]) -> Codec:
    """The codec that a profile asks for. Raises UserError if the engine does not offer what it needs."""
    name = config.codec
    if name == "auto":
        name = "hidden" if "hidden" in offers else "topk" if offers else "text"
    from_top = "logits" not in offers and "top" in offers
    topk = TopKCodec(config.top_k, config.topk_temperature, "top" if from_top else "logits")
    sampled = SampledCodec(config.sampled_points, config.sampled_temperature)
    codec = (WITHOUT_SETTINGS | {"topk": topk, "sampled": sampled})[name]
    if name == "topk" and from_top and config.topk_temperature != 1:
        raise UserError(
            "This engine shows log-probs at temperature 1 only, and a tail cannot be rescaled: set "
            "signals.topk_temperature and loss.temperature to 1, or use an engine that offers hidden states or logits."
        )
    if codec.needs is not None and codec.needs not in offers:
        raise UserError(f"The codec {name!r} needs {codec.needs}, which this engine does not offer: set signals.codec.")
    return codec


def codec_of(description: dict[str, Any]) -> Codec:
    """The codec that a store's spec describes."""
    if description["name"] == "topk":
        return TopKCodec(description["k"], description["temperature"], "top" if "from" in description else "logits")
    if description["name"] == "sampled":
        return SampledCodec(description["points"], description["temperature"])
    return WITHOUT_SETTINGS[description["name"]]


def require_served(codec: Codec, loss: LossConfig) -> None:
    """Raises UserError, with the reason, if a codec cannot serve a loss."""
    if reason := codec.refusal(loss):
        raise UserError(f"These signals cannot serve this loss: {reason}.")
