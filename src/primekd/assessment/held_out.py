"""Held-out fit of every student: KL to the teacher and negative log-likelihood of the gold solution, item by item.

Accuracy on a hundred items cannot rank strategies; these have a value a token, so the same items say much more. The
teacher's reference is its unprimed answer to each test item, teacher-forced after the student's plain prompt.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from primekd.chat import build_prompt, encode_response
from primekd.config import LossConfig, Profile
from primekd.errors import UserError
from primekd.items import Item
from primekd.models import load_tokenizer
from primekd.provenance import relative_name, write_text

if TYPE_CHECKING:
    from primekd.signals import SignalReader
    from primekd.teachers.transformers_engine import TransformersEngine


@dataclass(frozen=True)
class HeldOutRow:
    """One item under one model. Sums in nats over the tokens of the teacher's answer and of the gold solution.

    `kl` is None where the teacher's text alone was kept: there is no distribution to measure from.
    """

    model: str
    id: str
    teacher_tokens: int
    kl: float | None
    gold_tokens: int
    nll_gold: float


COLUMNS = tuple(f.name for f in fields(HeldOutRow))


def measure(
    profile: Profile, name: str, engine: "TransformersEngine", items: Sequence[Item], reader: "SignalReader"
) -> list[HeldOutRow]:
    """Scores one model on every item; `reader` holds the unprimed teacher's signals on the same items."""
    import torch

    from primekd.losses import frozen_head_loss

    tokenizer = load_tokenizer(profile.student.model)
    # At temperature 1, unless a top-k store was captured for another one.
    loss = LossConfig(divergence="forward_kl", temperature=getattr(reader.codec, "temperature", 1.0))
    rows = []
    size = profile.assess.batch_size
    for start in range(0, len(items), size):
        block = items[start : start + size]
        prompts = [build_prompt(tokenizer, item.question) for item in block]
        taught = [reader.item(item.id).response_ids for item in block]
        gold = [encode_response(tokenizer, item.solution) for item in block]
        states = engine.score(prompts + prompts, taught + gold, "hidden")
        head = engine.head()
        for i, item in enumerate(block):
            signals = reader.rows(item.id, taught[i])
            kl = None
            if signals is not None:
                targets = torch.tensor(taught[i], device=head.device)
                student = states[i].to(head.device)  # (T, D)
                _, parts = frozen_head_loss(student, head, None, targets, signals.to(head.device), loss, 1.0)
                kl = float(parts["kd"]) / loss.temperature**2
            targets = torch.tensor(gold[i], device=head.device)
            _, parts = frozen_head_loss(states[len(block) + i].to(head.device), head, None, targets, None, loss, 1.0)
            rows.append(HeldOutRow(name, item.id, len(taught[i]), kl, len(gold[i]), float(parts["ce"])))
    return rows


def write_rows(path: Path, rows: Sequence[HeldOutRow]) -> None:
    """Writes held-out.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(row) for row in rows)
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[HeldOutRow]:
    """Reads held-out.csv. Raises UserError if it is absent or no such file."""
    if not path.is_file():
        raise UserError(f"{relative_name(path)} is missing: run the assessment first.")
    with open(path, encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{relative_name(path)} is no held-out log: run the assessment again.")
        return [
            HeldOutRow(
                r["model"],
                r["id"],
                int(r["teacher_tokens"]),
                float(r["kl"]) if r["kl"] else None,
                int(r["gold_tokens"]),
                float(r["nll_gold"]),
            )
            for r in reader
        ]
