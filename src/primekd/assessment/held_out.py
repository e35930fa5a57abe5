"""Held-out fit of every student: KL to the teacher and negative log-likelihood of the gold solution, item by item.

Accuracy on a hundred items cannot rank strategies; these have a value a token, so the same items say much more. The
teacher's reference is its unprimed answer to each test item, teacher-forced after the student's plain prompt.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.chat import build_prompt, encode_response
from primekd.config import LossConfig, Profile
from primekd.errors import UserError
from primekd.items import Item
from primekd.metering import Meter
from primekd.models import load_tokenizer
from primekd.progress import Progress
from primekd.provenance import is_current, relative_name, write_manifest, write_text
from primekd.signals import concatenate

if TYPE_CHECKING:
    from torch import Tensor

    from primekd.signals import SignalReader, SignalRows
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
TOGETHER = 16  # items read and compared at a time: of few rows a head product takes as long as reading the head


def held_out_folder(profile: Profile, name: str) -> Path:
    """Where a model's held-out rows are kept."""
    return profile.runs / "held-out" / name


def held_out_rows(
    profile: Profile, name: str, items: Sequence[Item], inputs: dict[str, Any], reader: "SignalReader",
    open_model: "Callable[[], TransformersEngine]",
) -> list[HeldOutRow]:  # fmt: skip
    """Held-out rows of one model, from disk if they were measured with the same inputs.

    Args:
        inputs: what the model's answers depend on (`answer_inputs`).
        open_model: called only if something is missing.
    """
    folder = held_out_folder(profile, name)
    shards = {name: shard["sha256"] for name, shard in reader.manifest["shards"].items()}
    own = {"answers": inputs, "reference": shards}
    path = folder / "held-out.csv"
    if not is_current(folder, own):
        with Meter() as meter, Progress(profile, f"held-out fit {name}", len(items), "item") as progress:
            write_rows(path, measure(profile, name, open_model(), items, reader, progress.advance))
        write_manifest(folder, "held-out", own, [path], **meter.facts)
    return read_rows(path)


def measure(
    profile: Profile, name: str, engine: "TransformersEngine", items: Sequence[Item], reader: "SignalReader",
    advance: Callable[[int], None] = lambda count: None,
) -> list[HeldOutRow]:  # fmt: skip
    """Scores one model on every item; `reader` holds the unprimed teacher's signals on the same items.

    Args:
        advance: told how many more items are measured.
    """
    rows = []
    tokenizer = load_tokenizer(profile.student.model)
    together = 1 if reader.codec.name == "full" else TOGETHER  # those rows are as wide as the vocabulary
    for start in range(0, len(items), together):
        block = items[start : start + together]
        prompts = [build_prompt(tokenizer, item.question) for item in block]
        taught = [reader.item(item.id).response_ids for item in block]
        gold = [encode_response(tokenizer, item.solution) for item in block]
        pairs = list(zip(taught, gold, strict=True))
        states = engine.score_each(prompts, [list(pair) for pair in pairs], "hidden")
        head = engine.head()
        signals = [reader.rows(item.id, response) for item, response in zip(block, taught, strict=True)]
        known = signals[0] is not None
        fits = _losses([of_item[0] for of_item in states], head, taught, concatenate(signals) if known else None)
        # Where the teacher wrote the gold solution, its cross-entropy is there already.
        others = [place for place, (response, solution) in enumerate(pairs) if response != solution]
        by_gold = _losses([states[place][1] for place in others], head, [gold[place] for place in others], None)
        nll = {place: ce for place, (ce, _) in enumerate(fits)} | {
            place: ce for place, (ce, _) in zip(others, by_gold, strict=True)
        }
        for place, (item, (_, kd)) in enumerate(zip(block, fits, strict=True)):
            lengths = len(taught[place]), len(gold[place])
            rows.append(HeldOutRow(name, item.id, lengths[0], kd if known else None, lengths[1], nll[place]))
        advance(len(block))
    return rows


def _losses(
    states: Sequence["Tensor"], head: "Tensor", responses: Sequence[list[int]], teacher: "SignalRows | None"
) -> list[tuple[float, float]]:
    """Hidden states (T, D) of some responses -> cross-entropy and forward KL of each, sums over its tokens in nats."""
    import torch

    from primekd.losses import row_losses

    if not responses:
        return []
    lengths = [len(response) for response in responses]
    targets = torch.tensor([token for response in responses for token in response], device=head.device)
    teacher = None if teacher is None else teacher.to(head.device)
    # At temperature 1, unless a top-k store was captured for another one.
    loss = LossConfig(divergence="forward_kl", temperature=getattr(teacher, "temperature", 1.0))
    by_row = row_losses(torch.cat(list(states)).to(head.device), head, None, targets, teacher, loss)
    ce, kd = ([float(part.sum()) for part in values.double().split(lengths)] for values in by_row)
    return list(zip(ce, kd, strict=True))


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
