"""How a student is served, decided by a measurement before it is scored: adapter merged into the weights, or beside."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from primekd.config import Profile
from primekd.foundation import Meter, read_json, write_json, write_manifest
from primekd.foundation.stage_code import forced_since, stage_code, stands
from primekd.models import build_prompt, encode_response, load_tokenizer, template_hash, tokenizer_hash, weights_hash
from primekd.tasks import Item, hash_items

MERGED, BESIDE = "merged", "beside"
MEASURED_ITEMS = 3


def serving_folder(profile: Profile, name: str) -> Path:
    """Where the measurement of one student is kept, so that a run that goes on does not choose anew."""
    return profile.runs / "served" / name


def choose_serving(
    profile: Profile, name: str, items: Sequence[Item], adapter: Path, hashes: dict[str, str], force: bool = False
) -> dict[str, Any]:
    """`adapter`: merged where that is lost in the noise of the precision (`MergeError.is_lost`), or beside, and what
    was measured on a few gold solutions. 4-bit students are never merged, in float32 all are. `hashes`: of the adapter.
    """
    if profile.student.quantization:
        return {"adapter": BESIDE}
    if profile.scoring_dtype == "float32":
        return {"adapter": MERGED}
    folder, few = serving_folder(profile, name), items[:MEASURED_ITEMS]
    inputs, path = model_inputs(profile, few, hashes), folder / "served.json"
    code, since = stage_code("answers", profile), forced_since(profile, "assess", force)
    if not stands(folder, inputs, code, f"serve {name}", since=since):
        with Meter(profile.country) as meter:
            write_json(path, _measure(profile, few, adapter))
        write_manifest(folder, "served", inputs, [path], code=code, config=profile.resolved(), **meter.facts)
    return read_json(path)


def model_inputs(profile: Profile, items: Sequence[Item], adapter: dict[str, str] | None) -> dict[str, Any]:
    """A student, what it reads with, and what it is asked. `adapter`: its files' hashes, None for the control."""
    tokenizer = load_tokenizer(profile.student)
    return {
        "model": profile.student.model,
        "model_sha256": weights_hash(profile.student),
        "dtype": profile.student.dtype,
        "adapter": adapter,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "template_sha256": template_hash(tokenizer),
        "items_sha256": hash_items(list(items)),
    }


def _measure(profile: Profile, items: Sequence[Item], adapter: Path) -> dict[str, Any]:
    from primekd.models.served import measure_merge

    student, tokenizer = profile.student, load_tokenizer(profile.student)
    prompts = [build_prompt(tokenizer, item.messages) for item in items]
    gold = [encode_response(tokenizer, item.solution) for item in items]
    error = measure_merge(student.model, student.dtype, adapter, prompts, gold, len(tokenizer))
    return {"adapter": MERGED if error.is_lost else BESIDE} | asdict(error)
