"""Answers of the control and the students: one generation path, the same prompt, decoding and limit for all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from primekd.chat import build_prompt, decode_response
from primekd.config import Profile
from primekd.errors import UserError
from primekd.items import Item, hash_items
from primekd.metering import Meter
from primekd.models import load_tokenizer, model_hash, template_hash, tokenizer_hash
from primekd.progress import Progress
from primekd.provenance import hash_json, is_current, relative_name, write_json, write_manifest

BLOCK_BATCHES = 4  # answers are kept on disk after this many batches, so that a killed night loses little


@dataclass(frozen=True)
class Answer:
    """One answer. `ids` end with the end-of-turn token unless `truncated`; `text` has no control tokens.

    `truncated` is None where only the text of an answer is known.
    """

    item_id: str
    ids: list[int]
    truncated: bool | None
    text: str


class AnswerRow(BaseModel):
    """An answer as a block keeps it."""

    id: str
    ids: list[Annotated[int, Field(strict=True, ge=0)]]
    truncated: bool = Field(strict=True)


class Block(BaseModel):
    """A file of answers, with the hash of what they depend on and of its rows."""

    inputs_sha256: str
    rows_sha256: str
    rows: list[AnswerRow]


def answer_inputs(profile: Profile, items: list[Item], adapter: dict[str, str] | None) -> dict[str, Any]:
    """Everything that a model's answers depend on. `adapter`: its files' hashes, None for the control."""
    tokenizer = load_tokenizer(profile.student.model)
    # Left out where it is transformers, so that answers from before there was a choice stay current.
    engine = {} if profile.assess.engine == "transformers" else {"engine": profile.assess.engine}
    quantised = {"quantization": profile.student.quantization} if profile.student.quantization else {}
    chosen = engine | quantised
    return chosen | {
        "model": profile.student.model,
        "model_sha256": model_hash(profile.student.model),
        "dtype": profile.student.dtype,
        "adapter": adapter,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "template_sha256": template_hash(tokenizer),
        "items_sha256": hash_items(items),
        "max_new_tokens": profile.max_new_tokens,
        "decoding": "greedy",
        "batch_size": profile.assess.batch_size,  # bfloat16 sums differ in the last bits between batch shapes
    }


def answers_folder(profile: Profile, name: str) -> Path:
    """Where a model's answers are kept."""
    return profile.runs / "answers" / name


def generate_answers(
    profile: Profile, name: str, items: list[Item], inputs: dict[str, Any], open_model
) -> list[Answer]:
    """Answers to all items, in order; blocks that are on disk with the same inputs are not generated again.

    Args:
        open_model: called without arguments, and only if something is missing; returns an engine with `generate`.
    """
    tokenizer = load_tokenizer(profile.student.model)
    folder, size = answers_folder(profile, name), profile.assess.batch_size * BLOCK_BATCHES
    blocks = {
        folder / f"block-{start // size:05d}.json": items[start : start + size] for start in range(0, len(items), size)
    }
    if not is_current(folder, inputs):
        with Meter() as meter, Progress(profile, f"answer {name}", len(items), "item") as progress:
            for path, block in blocks.items():
                _write_block(path, profile, block, hash_json(inputs), open_model)
                progress.advance(len(block))
        write_manifest(folder, "answers", inputs, list(blocks), **meter.facts)
    rows = [row for path in blocks for row in read_block(path).rows]
    return [Answer(row.id, row.ids, row.truncated, decode_response(tokenizer, row.ids)) for row in rows]


def _write_block(path: Path, profile: Profile, block: list[Item], digest: str, open_model) -> None:
    """Generates the answers to a block of items, unless they are on disk."""
    from primekd.teachers import Sampling

    if _is_block(path, digest):
        return
    tokenizer = load_tokenizer(profile.student.model)
    prompts = [build_prompt(tokenizer, item.question) for item in block]
    responses = open_model().generate(prompts, Sampling(profile.max_new_tokens))
    rows = [{"id": item.id, "ids": r.ids, "truncated": r.truncated} for item, r in zip(block, responses, strict=True)]
    write_json(path, {"inputs_sha256": digest, "rows_sha256": hash_json(rows), "rows": rows})


def _is_block(path: Path, digest: str) -> bool:
    try:
        block = read_block(path)
    except UserError:  # there is none, or a damaged one: it is made anew
        return False
    rows = [row.model_dump() for row in block.rows]
    return block.inputs_sha256 == digest and block.rows_sha256 == hash_json(rows)


def read_block(path: Path) -> Block:
    """A block of answers. Raises UserError if it is missing or damaged."""
    try:
        return Block.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{relative_name(path)} is no block of answers: delete it and run the assessment.") from error
