"""Token by token: where each model departs from the teacher, on the teacher's own answers to the test items.
`runs/<profile>/held-out/<model>/tokens.safetensors` has all test items under one model; `tokens.safetensors` among the
logs has the teacher and every model, of the first items that have MOST tokens together, with the tokens' texts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from primekd.assessment.logs import TOKENS as FILE
from primekd.foundation import UserError, canonical_json, relative_name, write_atomically
from primekd.signals import Certainty, SignalRows, certainty_of

MOST = 30_000  # tokens of a model that go into the logs, about 0.6 MB
SPACES = {"\n": "⏎", "\t": "⇥"}


@dataclass(frozen=True)
class TokenFit:
    """One model on the T tokens of one text. `kl`: (T,) KL(teacher || model) in nats, or what else `fit.losses_of` was
    asked for. `top_ids`, `top_probs`: (T, K) the model's most probable tokens, and their probabilities."""

    kl: Tensor
    top_ids: Tensor
    top_probs: Tensor


def write_fits(path: Path, fits: Sequence[TokenFit]) -> None:
    """Writes one model's tokens, all items end to end."""
    columns = {name: torch.cat([getattr(fit, name) for fit in fits]) for name in ("kl", "top_ids", "top_probs")}
    _save(path, {"kl": columns["kl"].float(), **_top(columns["top_ids"], columns["top_probs"])}, {})


def _top(ids: Tensor, probs: Tensor) -> dict[str, Tensor]:
    return {"top_ids": ids.to(torch.int32).contiguous(), "top_probs": probs.half().contiguous()}


def _save(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata={"primekd": canonical_json(facts)})


def write_tokens(
    path: Path, answers: Mapping[str, Sequence[int]], certainty: Mapping[str, Certainty], models: Mapping[str, Path],
    tokenizer,
) -> Path | None:  # fmt: skip
    """Writes the logs' file; None, and no file, where no rows of the teacher were kept. `answers`: item -> the
    teacher's response ids, in the order of the files of `models`. `certainty`: of the first of these items."""
    path.unlink(missing_ok=True)
    if not certainty:
        return None
    lengths = {item: len(ids) for item, ids in answers.items()}
    kept = sum(lengths[item] for item in certainty)
    ids = torch.tensor([token for item in certainty for token in answers[item]], dtype=torch.int32)
    found = {name: torch.cat([getattr(c, name) for c in certainty.values()]) for name in Certainty.__dataclass_fields__}
    tensors = {"ids": ids, "lengths": torch.tensor([lengths[item] for item in certainty], dtype=torch.int32)}
    tensors |= {"teacher.entropy": found["entropy"].float(), "teacher.written": found["written"].half()}
    own = _top(found["top_ids"], found["top_probs"])
    tensors |= {f"teacher.{name}": column for name, column in own.items()}
    for model, file in models.items():
        if file.is_file():  # results of older code have none
            tensors |= {f"{model}.{name}": column[:kept].clone() for name, column in load_file(file).items()}
    used = torch.cat([column.flatten() for name, column in tensors.items() if name.endswith("ids")]).unique().tolist()
    texts = {str(token): text_of(tokenizer, token) for token in used if token >= 0}
    _save(path, tensors, {"items": list(certainty), "texts": texts})
    return path


def text_of(tokenizer, token: int) -> str:
    """A token as a person reads it; of a part of a character the mark of Unicode for that."""
    return tokenizer.decode([token], skip_special_tokens=False)


@dataclass(frozen=True)
class Token:
    """One token of the teacher's answer: its text, the teacher's (text, probability), the most probable first,
    `entropy` in nats and `written`, the token's probability if known; by model `kl`, KL(teacher || model) in nats, and
    `top`."""

    text: str
    entropy: float
    written: float | None
    teacher: list[tuple[str, float]]
    kl: dict[str, float]
    top: dict[str, list[tuple[str, float]]]


def tokens_of(tokenizer, ids: Sequence[int], teacher: SignalRows, models: Mapping[str, SignalRows]) -> list[Token]:
    """Tokens of any text from T rows of the teacher; with models whole distributions of all are needed."""
    fits = {}
    for name, rows in models.items():
        log_p = teacher.to_logits().double().log_softmax(-1)
        log_q, own = rows.to_logits().double().log_softmax(-1), certainty_of(rows, ids)
        fits[name] = TokenFit((log_p.exp() * (log_p - log_q)).sum(-1), own.top_ids, own.top_probs)
    return _tokens(ids, certainty_of(teacher, ids), fits, partial(text_of, tokenizer))


def _tokens(
    ids: Sequence[int], own: Certainty, fits: Mapping[str, TokenFit], text: Callable[[int], str]
) -> list[Token]:
    """`own`: the teacher's; `fits`: of each model; `text`: a token as a person reads it."""

    def best(found: Certainty | TokenFit, n: int) -> list[tuple[str, float]]:
        pairs = zip(found.top_ids[n].tolist(), found.top_probs[n].tolist(), strict=True)
        return [(text(i), p) for i, p in pairs if i >= 0]

    return [
        Token(
            text(token), float(own.entropy[n]), None if own.written[n].isnan() else float(own.written[n]), best(own, n),
            {name: float(fit.kl[n]) for name, fit in fits.items()}, {name: best(fit, n) for name, fit in fits.items()},
        )
        for n, token in enumerate(ids)
    ]  # fmt: skip


class TokenLog:
    """tokens.safetensors of a logs folder. Raises UserError if it is damaged."""

    def __init__(self, path: Path):
        try:
            with safe_open(path, framework="pt") as handle:
                facts = json.loads(handle.metadata()["primekd"])
                self.tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
            self.items, self.texts = list(facts["items"]), {int(k): str(v) for k, v in facts["texts"].items()}
            self.lengths = self.tensors["lengths"].tolist()
            fits = all(len(column) == sum(self.lengths) for n, column in self.tensors.items() if n != "lengths")
            if not fits or len(self.items) != len(self.lengths) or "teacher.top_ids" not in self.tensors:
                raise ValueError("its parts do not fit each other")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{relative_name(path)} cannot be read ({error}): run the assessment again.") from error
        self.models = [name.removesuffix(".kl") for name in self.tensors if name.endswith(".kl")]

    def tokens(self, item: str, models: Sequence[str] | None = None) -> list[Token]:
        """The teacher's answer to an item; empty where its tokens were not kept."""
        if item not in self.items:
            return []
        place = self.items.index(item)
        start = sum(self.lengths[:place])
        rows = slice(start, start + self.lengths[place])

        def cut(of: str, kind: type) -> Any:
            return kind(*(self.tensors[f"{of}.{name}"][rows] for name in kind.__dataclass_fields__))

        fits = {model: cut(model, TokenFit) for model in models or self.models if model in self.models}
        return _tokens(self.tensors["ids"][rows].tolist(), cut("teacher", Certainty), fits, self.texts.__getitem__)

    def sums(self, model: str) -> dict[str, float]:
        """Item -> the sum of a model's KL over its tokens, in nats."""
        parts = self.tensors[f"{model}.kl"].double().split(self.lengths)
        return {item: float(part.sum()) for item, part in zip(self.items, parts, strict=True)}


def read_tokens(logs: Path) -> TokenLog | None:
    """The tokens of a logs folder; None where there are none. Raises UserError if the file is damaged."""
    path = Path(logs) / FILE
    return TokenLog(path) if path.is_file() else None


def visible(text: str) -> str:
    """A token's text in which line ends and tabs are seen; a space stays one."""
    return "".join(SPACES.get(c, c) for c in text) or "∅"
