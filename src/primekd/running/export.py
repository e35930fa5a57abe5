"""A trained student for others: one folder that transformers, llama.cpp and Ollama read, with what vouches for it."""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from primekd.assessment.as_trained import AsTrained
from primekd.assessment.students import Student, read_student, weight_hashes
from primekd.config import Profile, get_arm, reads_text
from primekd.foundation import Meter, UserError, is_current, relative_name, write_manifest, write_text
from primekd.foundation.stage_code import stage_code
from primekd.models import gguf_files, load_model, load_tokenizer, template_hash, tokenizer_hash
from primekd.models.chat import build_prompt, text_prompt
from primekd.models.modelfile import modelfile, portable
from primekd.models.served import cast_weights, own_logits, plain_generation, require_same_base
from primekd.models.students import written
from primekd.models.whole import answers_of, check_merge, distance, load_whole, read_as_text
from primekd.running.model_card import accuracy_of, model_card
from primekd.tasks.load import load_items

CHECKED, TOKENS = 4, 48  # test items whose answers' logits are compared, and tokens of each at most
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "F16": 2, "Q8_0": 1.07, "Q4_K_M": 0.8}  # a weight, about


def trained_student(profile: Profile, arm: str, seed: int | None = None) -> Student:
    """A trained student of a profile. Raises UserError if there is none, a file of it was altered, or it is not of the
    base, the settings, the tokenizer and the chat template that the profile names."""
    of_text = bool(profile.student.from_scratch) and reads_text(arm)  # the control too, which is no arm
    folder = profile.student_folder(arm if of_text else get_arm(arm).name, seed)
    student = read_student(profile, arm, folder)
    if not profile.student.from_scratch and (folder / "adapter").is_dir():
        require_same_base(folder / "adapter", profile.student.model)
    tokenizer, was = load_tokenizer(profile.student), dict(student.manifest["inputs"])
    was["student"] = {key: value for key, value in (was.get("student") or {}).items() if key != "model_sha256"}
    wanted = {"student": profile.student.model_dump(mode="json", exclude_none=True)}
    wanted |= {"tokenizer_sha256": tokenizer_hash(tokenizer)}
    wanted |= {} if of_text else {"template_sha256": template_hash(tokenizer)}  # text is read without one
    if differ := [key.removesuffix("_sha256") for key in wanted if was.get(key) != wanted[key]]:
        says = f"{' and '.join(differ)} than {profile.name} says"
        raise UserError(f"{relative_name(folder)} has another {says}: train the student again.")
    return student


def export(
    profile: Profile, arm: str, seed: int | None = None, to: Path | None = None, gguf: Sequence[str] = (),
    dtype: str = "bfloat16",
) -> Path:  # fmt: skip
    """Writes a student's folder, whole or not at all; returns it: `to`, or runs/<profile>/exports/<arm>. In it:
    safetensors in `dtype`, configuration, tokenizer, card, manifest; with `gguf`, files of those types and a Modelfile.
    Raises UserError if there is no such student, it cannot be written so, merging changed what it says, the folder is
    there and is no export of the same, or the disk is full."""
    gguf_files.require_types(gguf)
    student = trained_student(profile, arm, seed)
    target = Path(to).resolve() if to else profile.runs / "exports" / student.name
    inputs = {
        "export": {"dtype": dtype, "gguf": sorted({*gguf}), "accuracy": accuracy_of(profile, student)},
        "trained": {"inputs_sha256": student.manifest["inputs_sha256"], "weights": weight_hashes(student.manifest)},
    }
    if target.exists():
        if is_current(target, inputs):
            print(f"export: nothing to do, {relative_name(target)} is an export of this student.")
            return target
        what = "is there, and is no export of this student in these types"
        raise UserError(f"{relative_name(target)} {what}: name another folder with --to, or delete it.")
    written(target, lambda folder: _fill(folder, profile, student, inputs, gguf, dtype))
    return target


def _fill(folder: Path, profile: Profile, student: Student, inputs: dict, gguf: Sequence[str], dtype: str) -> None:
    code = stage_code("export", profile)
    with Meter(profile.country) as meter:
        model, tokenizer = load_whole(profile.student, student.folder), portable(load_tokenizer(profile.student))
        if profile.student.from_scratch and reads_text(student.manifest["inputs"]["strategy"]):
            read_as_text(tokenizer)
        if gguf:
            gguf_files.require_architecture(model)
        _require_room(folder, model.num_parameters(), [dtype, "F16", *gguf] if gguf else [dtype])
        prompts = prompts_of(profile, tokenizer, CHECKED)
        responses = answers_of(model, tokenizer, prompts, min(TOKENS, profile.max_new_tokens))
        logits = own_logits(model, prompts, responses, len(tokenizer))
        if profile.student.from_scratch:
            engine = AsTrained.load(student.folder / "model", profile.student.dtype, 1)
            asked = [row.float() for row in engine.score(prompts, responses, "logits")]
            merge, scored = None, distance(asked, logits)
        else:
            merge, scored = check_merge(profile.student, student.folder, logits, prompts, responses)
        names = {kind: f"{student.name}-{kind}.gguf" for kind in gguf_files.FILE_TYPES if kind in gguf}
        kept = _write_gguf(folder, model, tokenizer, names, prompts, student.name) if names else {}
        model.config._name_or_path, model.generation_config = "", plain_generation(model, tokenizer)
        for part in (cast_weights(model, dtype), tokenizer):
            part.save_pretrained(folder)
        saved = own_logits(load_model(f"path:{folder}", "float32"), prompts, responses, len(tokenizer))
    facts = {
        "merge": merge and asdict(merge),
        "as_scored": asdict(scored) | {"dtype": profile.student.dtype},
        "rounding": asdict(distance(logits, saved)) | {"dtype": dtype},
        "gguf": kept,
        "chats": tokenizer.chat_template is not None,
    } | meter.facts
    if names:
        write_text(folder / "Modelfile", modelfile(tokenizer, [*names.values()][-1]))
    write_text(folder / "README.md", model_card(profile, student, inputs["export"], facts, names))
    files = sorted(p for p in folder.iterdir() if p.is_file())
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    write_manifest(folder, "export", inputs, files, code=code, **facts)


def _require_room(folder: Path, weights: int, types: Sequence[str]) -> None:
    needed, free = weights * sum(BYTES[kind] for kind in types), shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"{math.ceil(needed / 1e6)} MB, and {free // 10**6} MB are free"
        raise UserError(f"The export takes about {sizes}: free some space, or name a folder on another disk with --to.")


def prompts_of(profile: Profile, tokenizer: Any, count: int) -> list[list[int]]:
    """So many test items as a student is asked them: as messages if its tokenizer has a chat template, else as text."""
    items = load_items(profile, "test")[:count]
    if tokenizer.chat_template:
        return [list(build_prompt(tokenizer, item.messages)) for item in items]
    return [list(text_prompt(tokenizer, item.question)) for item in items]


def _write_gguf(folder: Path, model: Any, tokenizer: Any, names: dict, prompts: list, name: str) -> dict[str, Any]:
    """The GGUF files; what each keeps its weights as."""
    source = folder / names.get("F16", ".F16.gguf")
    gguf_files.write_f16(model, tokenizer, source, name)
    texts = [tokenizer.decode(ids) for ids in prompts]
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    gguf_files.refuse_other_tokens(source, texts, tokens)
    for kind in names.keys() - {"F16"}:
        gguf_files.quantise(source, folder / names[kind], kind)
    found = {kind: gguf_files.types_of(folder / file, kind) for kind, file in names.items()}
    if "F16" not in names:
        source.unlink()
    return found
