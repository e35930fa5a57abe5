"""Answers of the control and the students: one generation path, the same prompt, decoding and limit for all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primekd.assessment.serving import BESIDE
from primekd.chat import build_prompt, decode_response
from primekd.config import Profile
from primekd.items import Item, hash_items
from primekd.metering import Meter
from primekd.models import load_tokenizer, model_hash, template_hash, tokenizer_hash
from primekd.progress import Progress
from primekd.provenance import hash_json, is_current, read_json, write_json, write_manifest

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


def answer_inputs(
    profile: Profile, items: list[Item], adapter: dict[str, str] | None, served: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that a model's answers depend on.

    Args:
        adapter: its files' hashes, None for the control.
        served: as `choose_serving` says where transformers runs the model.
    """
    tokenizer = load_tokenizer(profile.student.model)
    # Left out where it is transformers, so that answers from before there was a choice stay current.
    engine = {} if profile.assess.engine == "transformers" else {"engine": profile.assess.engine}
    quantised = {"quantization": profile.student.quantization} if profile.student.quantization else {}
    precision = {"assess_dtype": profile.assess.dtype} if profile.scoring_dtype != profile.student.dtype else {}
    beside = {"served": BESIDE} if served and served["adapter"] == BESIDE else {}  # left out where it is merged, too
    chosen = engine | quantised | precision | beside
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
    profile: Profile, name: str, items: list[Item], inputs: dict[str, Any], open_model,
    served: dict[str, Any] | None = None,
) -> list[Answer]:  # fmt: skip
    """Answers to all items, in order; blocks that are on disk with the same inputs are not generated again.

    Args:
        open_model: called without arguments, and only if something is missing; returns an engine with `generate`.
        served: how the model was served, for the manifest.
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
        write_manifest(folder, "answers", inputs, list(blocks), served=served, **meter.facts)
    rows = [row for path in blocks for row in read_json(path)["rows"]]
    return [Answer(row["id"], row["ids"], row["truncated"], decode_response(tokenizer, row["ids"])) for row in rows]


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
    if not path.is_file():
        return False
    block = read_json(path)
    return block.get("inputs_sha256") == digest and block.get("rows_sha256") == hash_json(block.get("rows"))
