"""How well models fit text that nobody trained on: of each held-out document the KL to the teacher, and the loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from primekd.assessment.fit import losses_of
from primekd.assessment.held_out import HeldOutRow
from primekd.config import TEACHER
from primekd.signals import Asked, DenseRows, SignalSource

if TYPE_CHECKING:
    import numpy as np

    from primekd.teachers.transformers_engine import TransformersEngine


def pieces_of(document: "np.ndarray", block_tokens: int, most: int) -> list[list[int]]:
    """A document's first `most` tokens, in pieces of at most a block; a piece of one token predicts nothing."""
    ids = document[:most].tolist()
    pieces = [ids[start : start + block_tokens] for start in range(0, len(ids), block_tokens)]
    return [piece for piece in pieces if len(piece) > 1]


def measure_documents(
    engines: "Mapping[str, TransformersEngine]", documents: "Sequence[np.ndarray]", block_tokens: int, most: int,
    teacher: SignalSource, advance: Callable[[int], None] = lambda count: None,
) -> dict[str, list[HeldOutRow]]:  # fmt: skip
    """Model -> a row for every document, of which `most` tokens are read, in pieces, by the teacher once for all
    models; TEACHER is one of them. `nll_gold` is of the text itself, so both counts of tokens are equal. `advance` is
    told of each document."""
    rows: dict[str, list[HeldOutRow]] = {name: [] for name in (*engines, TEACHER)}
    # An engine hands its states over in host memory.
    device = next((engine.head().device for engine in engines.values()), "cpu")
    for number, document in enumerate(documents):
        pieces = pieces_of(document, block_tokens, most)
        name, prompts, responses = f"document-{number}", [p[:1] for p in pieces], [p[1:] for p in pieces]
        asked = [Asked(name, prompt, own) for prompt, own in zip(prompts, responses, strict=True)]
        # Once for all models: a product as wide as the teacher.
        taught = DenseRows(teacher.rows_of(asked).to(device).to_logits())
        tokens, gold = sum(map(len, responses)), torch.tensor(sum(responses, []), device=device)
        own = torch.nn.functional.cross_entropy(taught.logits, gold, reduction="none").double().sum()
        rows[TEACHER].append(HeldOutRow(TEACHER, name, tokens, 0.0, tokens, float(own)))
        for model, engine in engines.items():
            fits = losses_of(engine, engine.score(prompts, responses, "hidden"), responses, taught)
            kl = sum(float(fit.kl.double().sum()) for _, fit in fits)
            rows[model].append(HeldOutRow(model, name, tokens, kl, tokens, sum(ce for ce, _ in fits)))
        advance(1)
    return rows
