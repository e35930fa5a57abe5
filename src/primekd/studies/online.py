"""Online: what a small student from scratch knows of the world, learned from text with a teacher that is asked at every
step, and what its answers cost.

    tokenise -> control (text alone), arms (text and teacher, from the same fresh weights) -> documents, facts -> report

Source: DistilLlama, 80M parameters from Llama-2-7B on OpenWebText and WikiText, whose loss sums the divergence over the
positions of a sequence."""

import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from primekd.assessment.answers import Answer
from primekd.assessment.completions import CompletionRow, complete, floors, rows_of
from primekd.assessment.held_out import HeldOutRow
from primekd.config import CONTROL, Profile, arms_of, load_arms
from primekd.foundation import INTERVAL, Meter, UserError, table_text
from primekd.statistics.facts import FactContrastRow, FactRow, fact_contrasts, fact_rows
from primekd.statistics.families import Pair, Planned
from primekd.studies import micro, priming
from primekd.studies.priming import START
from primekd.studies.results import FACT_CONTRASTS, FACTS, compute_tables
from primekd.studies.study import Logs, Study
from primekd.studies.text_assessment import BENCHMARKS, Probe
from primekd.studies.text_assessment import assess as assess_text
from primekd.studies.text_assessment import compare as compare_text
from primekd.tasks import Item

# That the machine is looked at with nothing to do. It ends between two of the Meter's readings: one that is still under
# way when the last is taken has its stretch counted twice.
IDLE_SECONDS = 0.7 * INTERVAL
# Rough seconds on two cores, measured with `online-pocket`: only their ratios matter, the clock does the rest.
TEXT_TOKEN, TAUGHT_TOKEN, QUERY = 2e-4, 6e-4, 0.2

train, tokenise = micro.train, micro.tokenise


def _answers(profile: Profile, items: Sequence[Item], rows: list[CompletionRow]) -> list[Answer]:
    return [Answer(row.id, [0] * row.tokens, row.truncated, row.response) for row in rows]


def _idle(profile: Profile) -> dict[str, Any]:
    with Meter(profile.country) as meter:
        time.sleep(IDLE_SECONDS)
    return meter.facts


PROBE = Probe(
    "completions", CompletionRow,
    lambda profile, engine, items, advance: complete(engine, items, profile.max_new_tokens, advance),
    _answers, FACTS, FactRow, fact_rows, rows_of, lambda profile: {"max_new_tokens": profile.max_new_tokens},
    beside=lambda profile, items: floors(items, profile.max_new_tokens // 2, profile.seed), idle=_idle,
)  # fmt: skip


def refuse(profile: Profile) -> None:
    micro.refuse_text(profile, "facts")
    places = 1 if profile.text.documents_apart else profile.text.block_tokens - 1  # that each sequence is scored at
    for name, arm in arms_of(profile).items():
        if arm.start == CONTROL:
            raise UserError(f"{profile.name}: {name} goes on from the control, and the study online starts anew.")
        if (scale := arm.loss_of(profile).divergence_scale) not in (1, places):
            said = f"{name} sums over {scale:g} places, and a block of {profile.text.block_tokens} tokens has"
            raise UserError(f"{profile.name}: {said} one fewer than tokens, if text.documents_apart is false: mend it.")


def planned(names: Collection[str], named: Collection[Pair] = ()) -> Planned:
    """As priming's, without stored rows: their student is the live teacher's to the bit, so that nothing but a seed
    could make a difference to that one, and every other contrast has been had."""
    arms, found = load_arms(), priming.planned(names, named).items()
    return {p: family for p, family in found if p in named or not any(n in arms and arms[n].stored for n in p)}


def assess(profile: Profile, force: bool = False) -> Path:
    return assess_text(profile, micro.students(profile), PROBE, force)


def tables(profile: Profile, logs: Logs, held_out: list[HeldOutRow]) -> dict[str, str]:
    pairs = planned(logs, profile.planned.main)
    facts = fact_rows(profile.logs, logs, held_out, profile.assess.bootstrap_samples)
    contrasts = fact_contrasts(profile.logs, logs, pairs)
    own = {FACTS: table_text(FactRow, facts), FACT_CONTRASTS: table_text(FactContrastRow, contrasts)}
    return compute_tables(profile, logs, held_out, pairs) | own


def compare(profile: Profile, references: Sequence[str]) -> Path:
    """Any models on the facts, or on the benchmarks of the study micro; as `text_assessment.compare`."""
    probes = {"facts": PROBE, "choices": BENCHMARKS}
    if profile.data.task not in probes:
        raise UserError(f"{profile.name} asks {profile.data.task}: choose a profile of {' or '.join(probes)}.")
    return compare_text(profile, references, probes[profile.data.task])


def costs(profile: Profile, capture_workers: int = 1, scoring_jobs: int = 1) -> dict[str, float]:
    read, models = profile.pretrain.tokens, 2 + len(arms_of(profile)) * len(micro.seeds_of(profile))
    return {
        "text": START,
        "pretrain": START + TEXT_TOKEN * read,
        "distill": START + TAUGHT_TOKEN * read,
        "assess": START + QUERY * profile.data.test_items * models / 10,
        "report": START / 3,
    }


def lost(profile: Profile) -> list[Path]:
    return micro.lost(profile, "distil-llama", "train", "train")


STUDY = Study(
    question="What does a teacher that is asked at every step teach a small student, in facts, time and emissions?",
    expected={"online-pocket": "no student knows a fact: each repeats one token."},
    rules="online.smk",
    labels={"text": "tokenise", "pretrain": "train the control", "report": "write the report"},
    forced={"distill": ("pretrain", "distill"), "assess": ("assess",)},
    costs=costs,
    lost=lost,
    assess=assess,
    tables=tables,
    sections=("results", "text", "costs", "training", "provenance", "items"),
    title="Online distillation of a small Llama",
    refuse=refuse,
    made=partial(micro.made, answers="completions"),
)
