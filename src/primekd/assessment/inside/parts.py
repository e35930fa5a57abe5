"""What needs a model: attention, confidence, attribution, a folder a part under runs/<profile>/inside/, made once."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from primekd.assessment.answers import AnswerRow, answers_folder, read_block
from primekd.assessment.inside import FOLDER, MAPS, attention, attribution, confidence
from primekd.assessment.inside.attention import open_side_by_side
from primekd.assessment.inside.attribution import StepRow
from primekd.assessment.inside.confidence import SureRow, value_places
from primekd.assessment.logs import LogRow, read_logs
from primekd.assessment.score import Model, models_of
from primekd.assessment.serving import choose_serving, model_inputs
from primekd.assessment.students import find_students
from primekd.config import CONTROL, Profile, arms_of, split_seed
from primekd.foundation import MANIFEST, Meter, Progress, UserError, read_manifest, write_manifest, write_table
from primekd.foundation.memory import gpu_memory, release_gpu_memory
from primekd.foundation.stage_code import forced_since, set_aside_if_older, stage_code, stands
from primekd.foundation.storage import hash_json, relative_name, write_atomically
from primekd.models import build_prompt, decode_response, encode_response, load_tokenizer
from primekd.tasks import Item, hash_items, load_items

INDUCTIONS = "induction.safetensors"
BLOCK = 10  # prompts whose numbers are kept together, so that a stop loses little


@dataclass(frozen=True)
class Subject:
    """A profile whose students are looked into. Raises UserError if it has no logs."""

    profile: Profile
    force: bool = False

    @cached_property
    def items(self) -> list[Item]:
        return load_items(self.profile, "test")[: self.profile.inside.items]

    @cached_property
    def logs(self) -> dict[str, list[LogRow]]:
        if not (self.profile.logs / MANIFEST).is_file():
            fix = f"run `primekd run --profile {self.profile.name}` first"
            raise UserError(f"{relative_name(self.profile.logs)} has no logs: {fix}.")
        return read_logs(self.profile)

    @cached_property
    def models(self) -> list[Model]:
        """The control, then the students that are asked for and stand in the logs."""
        logged = self.logs
        wanted, known = self.profile.inside.arms, arms_of(self.profile)
        if unknown := [name for name in wanted or () if name not in known]:
            raise UserError(f"{self.profile.name}: inside.arms names {unknown[0]}, which it does not run: take it out.")
        students = [s for s in find_students(self.profile) if wanted is None or split_seed(s.name)[0] in wanted]
        return [Model(CONTROL), *models_of([s for s in students if s.name in logged])]

    @cached_property
    def names(self) -> list[str]:
        return [model.name for model in self.models[1:]]

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.profile.student)

    def verdicts(self, model: str) -> list[LogRow]:
        """Of the items that are looked at."""
        rows = {row.id: row for row in self.logs[model]}
        return [rows[item.id] for item in self.items]

    def part(
        self, name: str, inputs: dict[str, Any], total: int, unit: str, make: "Callable[[Path, Progress], list[Path]]"
    ) -> Path:
        """runs/<profile>/inside/<name>/, made unless it stands. `make`: (folder, progress) -> the files it wrote."""
        profile, folder = self.profile, self.profile.runs / FOLDER / name
        code, since = stage_code("inside", profile), forced_since(profile, "inside", self.force)
        if stands(folder, inputs, code, f"{FOLDER} {name}", since=since):
            return folder
        set_aside_if_older(folder, since)
        watched = Meter(profile.country), Progress(profile, f"{FOLDER} {name}", total, unit)
        with watched[0] as meter, watched[1] as progress, gpu_memory("inside.items"):
            outputs = make(folder, progress)
        write_manifest(folder, FOLDER, inputs, outputs, code=code, config=profile.resolved(), **meter.facts)
        release_gpu_memory()
        return folder


# Attention: all models in one pass a prompt, so that maps of the same head can be compared while both are there.


def read_attention(subject: Subject, pairs: Sequence[tuple[str, str]] = ()) -> Path:
    """Blocks of numbers as `attention_values` reads them; induction.safetensors, maps.safetensors."""
    profile, items = subject.profile, subject.items
    inputs = model_inputs(profile, items, None) | {
        "students": {model.name: model.hashes for model in subject.models[1:]},
        "dtype": profile.scoring_dtype, "map_tokens": profile.inside.map_tokens, "seed": profile.seed,
        "pairs": [list(pair) for pair in pairs],
    }  # fmt: skip
    students = {model.name: model.adapter for model in subject.models[1:]}

    marks = {"inputs_sha256": hash_json(inputs), "code_sha256": stage_code("inside", profile)["sha256"]}

    def make(folder: Path, progress: Progress) -> list[Path]:
        base = profile.student
        adapters = open_side_by_side(base.model, profile.scoring_dtype, students, base.quantization)
        own = subject.tokenizer  # what all models read: the prompt and the gold solution, which is no model's own text
        texts = [[*build_prompt(own, i.messages), *encode_response(own, i.solution)] for i in items]
        outputs = []
        for first in range(0, len(texts), BLOCK):
            path, block = folder / f"block-{first // BLOCK:05d}.safetensors", texts[first : first + BLOCK]
            if not _is_block(path, marks):
                values = [attention.read_heads(adapters, subject.names, ids) for ids in block]
                found = {"values": torch.stack(values)}
                if pairs:
                    found["pairs"] = torch.stack([attention.measure_pairs(adapters, pairs, ids) for ids in block])
                _save(path, found, marks)
            outputs.append(path)
            progress.advance(len(block))
        special = set(subject.tokenizer.all_special_ids)
        vocabulary = [i for i in range(len(subject.tokenizer)) if i not in special]
        found = attention.measure_induction(adapters, subject.names, vocabulary, profile.seed)
        maps = attention.crop_maps(adapters, subject.names, texts[0], profile.inside.map_tokens)
        ids = torch.tensor(texts[0][: profile.inside.map_tokens])
        _save(folder / MAPS, {"maps": maps, "ids": ids}, marks | {"names": json.dumps([CONTROL, *subject.names])})
        _save(folder / INDUCTIONS, {"values": found.contiguous()}, marks)
        return [*outputs, folder / MAPS, folder / INDUCTIONS]

    return subject.part("attention", inputs, len(items), "prompt", make)


def _save(path: Path, tensors: dict[str, torch.Tensor], marks: dict[str, str]) -> None:
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata=marks)


def _is_block(path: Path, marks: dict[str, str]) -> bool:
    """Whether a block that a stopped call left is of the same inputs and of today's code."""
    try:
        with safe_open(path, framework="pt") as handle:
            return marks.items() <= (handle.metadata() or {}).items()
    except (OSError, SafetensorError):
        return False


def attention_values(folder: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """((prompts, 1 + students, layers, heads, METRICS + BETWEEN), (prompts, pairs, layers, heads, BETWEEN) or None
    without pairs, (texts, 1 + students, layers, heads, 1))."""
    named = [name for name in read_manifest(folder / MANIFEST)["outputs"] if name.startswith("block-")]  # no older ones
    blocks = [load_file(folder / name) for name in sorted(named)]
    values, pairs = ([block[key].numpy() for block in blocks if key in block] for key in ("values", "pairs"))
    found = load_file(folder / INDUCTIONS)["values"].numpy()
    return np.concatenate(values), np.concatenate(pairs) if pairs else None, found


# Confidence and attribution: a model at a time, as it was served in the assessment.


def _answers(subject: Subject, name: str) -> list[AnswerRow]:
    """A model's answers as its assessment kept them. Raises UserError if they are gone, or not those of the logs."""
    folder = answers_folder(subject.profile, name)
    blocks = [read_block(folder / file) for file in read_manifest(folder / MANIFEST)["outputs"]]
    found = {row["id"]: AnswerRow(**row) for block in blocks for row in block["rows"]}
    for verdict in subject.verdicts(name):
        if decode_response(subject.tokenizer, found[verdict.id].ids) != verdict.response:
            raise UserError(f"{name}'s answer to {verdict.id} is not that of the logs: run `primekd assess` again.")
    return [found[item.id] for item in subject.items]


def _opened(subject: Subject, model: Model):
    profile = subject.profile
    items = model.asked(profile, subject.items)
    served = choose_serving(profile, model.name, items, model.adapter, model.hashes) if model.adapter else None
    return model.open(profile, served)


def _answer_inputs(subject: Subject, model: Model) -> dict[str, Any]:
    profile = subject.profile
    answered = read_manifest(answers_folder(profile, model.name) / MANIFEST)
    if answered["inputs"]["adapter"] != model.hashes:
        raise UserError(f"{model.name} is not the student that was assessed: run `primekd assess` again.")
    verdicts = [[row.id, row.correct, row.span] for row in subject.verdicts(model.name)]
    return {"answers": answered["outputs"], "items": hash_items(subject.items), "verdicts": verdicts}


def read_confidence(subject: Subject, model: Model) -> Path:
    def make(folder: Path, progress: Progress) -> list[Path]:
        own, verdicts = _answers(subject, model.name), subject.verdicts(model.name)
        asked = model.asked(subject.profile, subject.items)
        prompts = [build_prompt(subject.tokenizer, item.messages) for item in asked]
        with contextlib.closing(_opened(subject, model)) as engine:
            rows = confidence.sure_rows(
                model.name, engine, prompts, own, verdicts, subject.tokenizer, advance=progress.advance
            )
        return [write_table(folder / confidence.FILE, SureRow, rows)]

    inputs = _answer_inputs(subject, model)
    return subject.part(f"confidence/{model.name}", inputs, len(subject.items), "answer", make)


def read_attribution(subject: Subject, model: Model) -> Path:
    settings = subject.profile.inside

    def make(folder: Path, progress: Progress) -> list[Path]:
        own, rows, done = _answers(subject, model.name), [], 0
        with contextlib.closing(_opened(subject, model)) as engine:
            asked = model.asked(subject.profile, subject.items)
            for item, answer, verdict in zip(asked, own, subject.verdicts(model.name), strict=True):
                prompt = build_prompt(subject.tokenizer, item.messages)
                value = value_places(subject.tokenizer, answer.ids, verdict)
                found = attribution.step_rows(
                    model.name, item.id, engine, subject.tokenizer, prompt, answer.ids, value, settings.orders,
                    subject.profile.seed,
                )  # fmt: skip
                rows, done = rows + found, done + bool(found)
                progress.advance(bool(found))
                if done == settings.attributed_items:
                    break
        return [write_table(folder / attribution.FILE, StepRow, rows)]

    inputs = _answer_inputs(subject, model) | {"orders": settings.orders, "most": settings.attributed_items}
    inputs["seed"] = subject.profile.seed
    return subject.part(f"attribution/{model.name}", inputs, settings.attributed_items, "answer", make)
