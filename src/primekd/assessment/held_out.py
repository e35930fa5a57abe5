"""Held-out fit: KL to the teacher and negative log-likelihood of the gold solution, item by item, which say more than a
verdict does. The reference is the unprimed teacher's answer to each test item, behind the student's plain prompt."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from primekd.assessment.fit import losses_of
from primekd.assessment.tokens import FILE, TokenFit, write_fits
from primekd.config import Profile
from primekd.foundation import Meter, Name, Progress, as_count, read_records, write_manifest, write_records
from primekd.foundation.stage_code import forced_since, set_aside_if_older, stage_code, stands
from primekd.models import build_prompt, encode_response, load_tokenizer
from primekd.signals import TOP, SignalReader, concatenate
from primekd.tasks.protocol import Item

if TYPE_CHECKING:
    from primekd.teachers.transformers_engine import TransformersEngine

Tokens = Annotated[int, BeforeValidator(as_count), Field(gt=0)]
Nats = Annotated[float, Field(ge=-0.01)]  # a sum of float32 may end a little below 0


@dataclass(frozen=True)
class HeldOutRow:
    """Sums in nats over the tokens of the teacher's answer and of the gold solution. `kl` is None where the teacher's
    text alone was kept; of a sample of its distribution it is an estimate, which may be below 0."""

    model: Name
    id: Name
    teacher_tokens: Tokens
    kl: Annotated[float, Field(allow_inf_nan=False)] | None
    gold_tokens: Tokens
    nll_gold: Nats


TOGETHER = 16  # items read and compared at a time: of few rows a head product takes as long as reading the head


def held_out_folder(profile: Profile, name: str) -> Path:
    return profile.runs / "held-out" / name


def held_out_rows(
    profile: Profile, name: str, items: Sequence[Item], inputs: dict[str, Any], reader: SignalReader,
    open_model: "Callable[[], TransformersEngine]", force: bool = False, served: dict[str, Any] | None = None,
) -> list[HeldOutRow]:  # fmt: skip
    """Held-out rows of one model. `inputs`: what its answers depend on; others as in `generate_answers`."""
    folder, stage = held_out_folder(profile, name), f"held-out fit {name}"
    path, code, since = folder / "held-out.csv", stage_code("held-out", profile), forced_since(profile, "assess", force)
    own = {"answers": inputs, "reference": {name: shard["sha256"] for name, shard in reader.manifest["shards"].items()}}
    if profile.assess.held_out_items:
        own["items"] = len(items)
    if not stands(folder, own, code, stage, since=since):
        set_aside_if_older(folder, since)
        with Meter(profile.country) as meter, Progress(profile, stage, len(items), "item") as progress:
            rows, tokens = measure(profile, name, open_model(), items, reader, progress.advance)
            write_records(path, HeldOutRow, rows)
            outputs = [path]
            if tokens:
                write_fits(folder / FILE, tokens)
                outputs.append(folder / FILE)
        facts = {"served": served, "config": profile.resolved()} | meter.facts
        write_manifest(folder, "held-out", own, outputs, code=code, **facts)
    return read_records(path, HeldOutRow)


def measure(
    profile: Profile, name: str, engine: "TransformersEngine", items: Sequence[Item], reader: SignalReader,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[HeldOutRow], list[TokenFit]]:  # fmt: skip
    """A row an item and, where more than text was kept, its tokens. `reader` holds the unprimed teacher's signals."""
    tokenizer = load_tokenizer(profile.student)
    prompts = [build_prompt(tokenizer, item.messages) for item in items]
    taught = [reader.item(item.id).response_ids for item in items]
    gold = [encode_response(tokenizer, item.solution) for item in items]
    # Neighbours in length are read together, so that little of what is read is padding; the longest first, so that too
    # large a batch fails at once. What both responses begin with is read once.
    apart = [len(g) - len(os.path.commonprefix([g, t])) for g, t in zip(gold, taught, strict=True)]
    order = sorted(range(len(items)), key=lambda i: -(len(prompts[i]) + len(taught[i]) + apart[i]))
    together = 1 if reader.codec.name == "full" else TOGETHER  # those rows are as wide as the vocabulary
    rows: dict[int, HeldOutRow] = {}
    tokens: dict[int, TokenFit] = {}
    for start in range(0, len(order), together):
        block = order[start : start + together]
        states = engine.score_each([prompts[i] for i in block], [[taught[i], gold[i]] for i in block], "hidden")
        signals = [reader.rows(items[i].id, taught[i]) for i in block]
        known = signals[0] is not None
        of_taught, of_gold = ([of_item[which] for of_item in states] for which in (0, 1))
        rows_of_all, top = (concatenate(signals), TOP) if known else (None, 0)
        fits = losses_of(engine, of_taught, [taught[i] for i in block], rows_of_all, top)
        # Where the teacher wrote the gold solution, its cross-entropy is there already.
        others = [place for place, i in enumerate(block) if taught[i] != gold[i]]
        by_gold = losses_of(engine, [of_gold[place] for place in others], [gold[block[p]] for p in others], None)
        nll = {place: ce for place, (ce, _) in enumerate(fits)}
        nll |= {place: ce for place, (ce, _) in zip(others, by_gold, strict=True)}
        for place, (i, (_, fit)) in enumerate(zip(block, fits, strict=True)):
            kl = float(fit.kl.double().sum()) if known else None
            rows[i] = HeldOutRow(name, items[i].id, len(taught[i]), kl, len(gold[i]), nll[place])
            if known:
                tokens[i] = fit
        advance(len(block))
    return [rows[i] for i in range(len(items))], [tokens[i] for i in sorted(tokens)]
