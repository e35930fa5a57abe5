"""Forgetting: how far a student moved from its base on neutral prompts. The control's answers and rows are kept; every
student is teacher-forced on them: KL(student || control) over the vocabulary at temperature 1, and the text's loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.assessment.fit import losses_of
from primekd.assessment.held_out import TOGETHER, Nats, Tokens
from primekd.capture.jobs import Job, open_signals
from primekd.capture.run import capture
from primekd.config import PlannedContrasts, Profile, SignalsConfig, TeacherConfig, unprimed
from primekd.foundation import Meter, Name, Progress, read_records, write_manifest, write_table
from primekd.foundation.stage_code import forced_since, set_aside_if_older, stage_code, stands
from primekd.models import build_prompt, load_tokenizer
from primekd.signals import SignalReader, concatenate
from primekd.tasks import NEUTRAL, Item, load_items

if TYPE_CHECKING:
    from primekd.teachers.transformers_engine import TransformersEngine

FILE = "forgetting.csv"
LIMIT = 64  # new tokens of the control's answers
ITEMS_PER_SHARD = 64


@dataclass(frozen=True)
class ForgettingRow:
    """Sums in nats over the control's answer to a neutral prompt: KL(model || control), negative log-likelihood."""

    model: Name
    id: Name
    tokens: Tokens
    kl: Nats
    nll: Nats


def as_teacher(profile: Profile) -> Profile:
    """The profile with its control in the teacher's place, which answers in a few words."""
    student, same = profile.student, ("model", "sha256", "template_of", "template_arguments")
    taught = {"engine": "transformers", "dtype": profile.scoring_dtype, "batch_size": profile.assess.batch_size}
    teacher = TeacherConfig(**taught, **{name: getattr(student, name) for name in same})
    signals = SignalsConfig(codec="hidden", items_per_shard=ITEMS_PER_SHARD)
    # No priming has to find a place in its template, and no other arm is known.
    alone = {"arms": (unprimed().name,), "seeds": {}, "planned": PlannedContrasts()}
    return profile.model_copy(update={"teacher": teacher, "signals": signals, "max_new_tokens": LIMIT} | alone)


def open_reference(profile: Profile, open_control: Callable[[], "TransformersEngine"]) -> SignalReader:
    """The control's answers to the neutral prompts and its rows. `open_control`: called if something is missing."""
    # What its numbers depend on beside what every teacher's do.
    weights = {"weights": profile.student.dtype, "quantization": profile.student.quantization}
    job = Job(
        as_teacher(profile), unprimed(), NEUTRAL, profile.signals_folder(NEUTRAL), profile.seed,
        opens=open_control, more=weights,
    )  # fmt: skip
    capture(job)
    return open_signals(job)


def forgetting_folder(profile: Profile, name: str) -> Path:
    return profile.runs / "forgetting" / name


def forgetting_rows(
    profile: Profile, name: str, inputs: dict[str, Any], reader: SignalReader,
    open_model: Callable[[], "TransformersEngine"], force: bool = False,
) -> list[ForgettingRow]:  # fmt: skip
    """As `held_out_rows`; `reader` is from `open_reference`."""
    folder, stage, code = forgetting_folder(profile, name), f"forgetting {name}", stage_code("forgetting", profile)
    own = {"answers": inputs, "reference": {name: shard["sha256"] for name, shard in reader.manifest["shards"].items()}}
    since = forced_since(profile, "assess", force)
    if not stands(folder, own, code, stage, since=since):
        set_aside_if_older(folder, since)
        items = load_items(profile, NEUTRAL)
        with Meter(profile.country) as meter, Progress(profile, stage, len(items), "item") as progress:
            rows = measure(profile, name, open_model(), items, reader, progress.advance)
            path = write_table(folder / FILE, ForgettingRow, rows)
        write_manifest(folder, "forgetting", own, [path], code=code, config=profile.resolved(), **meter.facts)
    return read_records(folder / FILE, ForgettingRow)


def measure(
    profile: Profile, name: str, engine: "TransformersEngine", items: Sequence[Item], reader: SignalReader,
    advance: Callable[[int], None] = lambda count: None,
) -> list[ForgettingRow]:  # fmt: skip
    """A row an item, in order. `reader` holds the control's signals on these items; `advance` is told of progress."""
    tokenizer, rows = load_tokenizer(profile.student), []
    for start in range(0, len(items), TOGETHER):
        block = items[start : start + TOGETHER]
        texts = [reader.item(item.id).response_ids for item in block]
        states = engine.score([build_prompt(tokenizer, item.messages) for item in block], texts, "hidden")  # (T, D)
        control = concatenate([reader.rows(i.id, text) for i, text in zip(block, texts, strict=True)])
        fits = losses_of(engine, states, texts, control, divergence="reverse_kl")
        rows += [
            ForgettingRow(name, item.id, len(fit.kl), float(fit.kl.double().sum()), nll)
            for item, (nll, fit) in zip(block, fits, strict=True)
        ]
        advance(len(block))
    return rows
