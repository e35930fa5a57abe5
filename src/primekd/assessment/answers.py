"""Answers of the control and the students: one generation path, the same prompt, decoding and limit for all."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from primekd.assessment.serving import BESIDE, model_inputs
from primekd.config import SAMPLES, Profile
from primekd.foundation import Meter, Progress, UserError, environment, git_state, maker_of, mixed, write_manifest
from primekd.foundation.energy import summed
from primekd.foundation.manifests import Code, Environment, Measured, Part, checked
from primekd.foundation.stage_code import forced_since, say_mixed, set_aside_if_older, stage_code, stands
from primekd.foundation.storage import hash_json, write_json
from primekd.models import build_prompt, decode_response, load_tokenizer, turn_end
from primekd.tasks.protocol import Item

if TYPE_CHECKING:
    from primekd.teachers import Sampling

BLOCK_BATCHES = 4  # answers are kept on disk after this many batches, so that a killed night loses little


@dataclass(frozen=True)
class Answer:
    """`ids` end with a token that ends a turn unless `truncated` (None where only the text is known)."""

    item_id: str
    ids: list[int]
    truncated: bool | None
    text: str


class AnswerRow(BaseModel):
    id: str
    ids: list[Annotated[int, Field(strict=True, ge=0)]]
    truncated: bool = Field(strict=True)


class Block(Part):
    """A file of answers, with the hash of what they depend on and of its rows, and who made them."""

    inputs_sha256: str
    rows_sha256: str
    rows: list[AnswerRow]
    environment: Environment | None = None
    code: Code | None = None


def answer_inputs(
    profile: Profile, items: list[Item], adapter: dict[str, str] | None, served: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All that a model's answers depend on. `adapter`: its files' hashes. `served`: as `choose_serving` says."""
    # Left out where it is transformers, so that answers from before there was a choice stay current.
    engine = {} if profile.assess.engine == "transformers" else {"engine": profile.assess.engine}
    quantised = {"quantization": profile.student.quantization} if profile.student.quantization else {}
    precision = {"assess_dtype": profile.assess.dtype} if profile.scoring_dtype != profile.student.dtype else {}
    beside = {"served": BESIDE} if served and served["adapter"] == BESIDE else {}  # left out where it is merged, too
    sampled = {"temperature": profile.assess.sampling_temperature, "seed": profile.seed}
    return engine | quantised | precision | beside | model_inputs(profile, items, adapter) | {
        "turn_end": turn_end(load_tokenizer(profile.student)).describe(),
        "max_new_tokens": profile.max_new_tokens,
        "decoding": sampled if profile.answer_set == SAMPLES else "greedy",
        "batch_size": profile.assess.batch_size,  # bfloat16 sums differ in the last bits between batch shapes
    }  # fmt: skip


def _sampling(profile: Profile, block: list[Item], ended: Callable[[], None]) -> "Sampling":
    """How a block is decoded. A sample's seed follows from its id, so that blocks, batches and models change nothing.
    All models' n-th samples of an item share their draws: what differs between them is less left to chance."""
    from primekd.teachers import Sampling

    if profile.answer_set != SAMPLES:
        return Sampling(profile.max_new_tokens, ended=ended)
    seeds = tuple(int(hash_json([profile.seed, item.id])[:8], 16) for item in block)
    return Sampling(profile.max_new_tokens, profile.assess.sampling_temperature, seeds[0], ended, seeds)


def answers_folder(profile: Profile, name: str) -> Path:
    """Where a model's answers are kept, those of each answer set in a folder of its own."""
    return profile.runs / "-".join(part for part in ("answers", profile.answer_set) if part) / name


def generate_answers(
    profile: Profile, name: str, items: list[Item], inputs: dict[str, Any], open_model, force: bool = False,
    served: dict[str, Any] | None = None,
) -> list[Answer]:  # fmt: skip
    """Answers to all items, in order; blocks on disk with the same inputs are kept, unless `force`. `open_model`:
    returns an engine, called only if something is missing. `served`: how it was served, for the manifest."""
    tokenizer = load_tokenizer(profile.student)
    folder, size = answers_folder(profile, name), profile.assess.batch_size * BLOCK_BATCHES
    starts = range(0, len(items), size)
    blocks = {folder / f"block-{n:05d}.json": items[start : start + size] for n, start in enumerate(starts)}
    code, since = stage_code("answers", profile), forced_since(profile, "assess", force)
    stage = f"{profile.answer_set or 'answer'} {name}"
    if not stands(folder, inputs, code, stage, since=since):
        set_aside_if_older(folder, since)
        from primekd.teachers.protocol import probed

        maker, digest = {"environment": {"git": git_state()}, "code": code}, hash_json(inputs)
        for leftover in set(folder.glob("block-*.json")) - set(blocks):  # of another number of items
            leftover.unlink()
        kept = {path: block for path in blocks if (block := _read_block(path, digest))}
        if len(kept) < len(blocks):
            say_mixed(stage, kept.values(), code)
        with Progress(profile, stage, len(items), "item") as progress:
            done = 0
            for path, block in blocks.items():
                if path not in kept:
                    prompts, engine = [build_prompt(tokenizer, item.messages) for item in block], probed(open_model())
                    with Meter(profile.country) as meter:  # what writing takes, not loading
                        responses = engine.generate(prompts, _sampling(profile, block, progress.advance))
                    pairs = zip(block, responses, strict=True)
                    rows = [{"id": item.id, "ids": r.ids, "truncated": r.truncated} for item, r in pairs]
                    write_json(_took(path), meter.facts)  # beside the block, so that equal answers have equal bytes
                    write_json(path, {"inputs_sha256": digest, "rows_sha256": hash_json(rows), "rows": rows} | maker)
                done += len(block)
                progress.advance(done - progress.state["done"])  # what was on disk already
        facts = {"served": served, "config": profile.resolved()} | _facts(blocks)
        write_manifest(folder, "answers", inputs, list(blocks), **facts)
    rows = [row for path in blocks for row in read_block(path)["rows"]]
    return [Answer(row["id"], row["ids"], row["truncated"], decode_response(tokenizer, row["ids"])) for row in rows]


def _facts(blocks: Iterable[Path]) -> dict[str, Any]:
    """What the manifest says of who made the answers: the first block's maker and, if there were several, all; and of
    what that took, in however many sessions."""
    records = {path.name: read_block(path) for path in blocks}
    tokens = sum(len(row["ids"]) for record in records.values() for row in record["rows"])
    fix = "Delete it: the time and energy of a block are lost, and nothing else."
    measured = summed([checked(_took(p), Measured, fix) if _took(p).is_file() else {} for p in blocks])
    first = next(iter(records.values()))
    several = mixed({name: maker_of(record) for name, record in records.items()})
    facts = {"environment": environment() | first["environment"], "code": first["code"], "tokens": tokens}
    return facts | measured | ({"mixed": several} if several else {})


def _took(block: Path) -> Path:
    """The file of what making a block took, which is no output: it differs from run to run."""
    return block.with_name(f".{block.name.replace('block', 'took')}")


def _read_block(path: Path, digest: str) -> dict[str, Any] | None:
    """A block that is on disk; None where it is absent, damaged, of other inputs, or altered."""
    try:
        block = read_block(path)
    except UserError:  # there is none, or a damaged one: it is made anew
        return None
    same = block["inputs_sha256"] == digest and block["rows_sha256"] == hash_json(block["rows"])
    return block if same and block.get("code") else None


def read_block(path: Path) -> dict[str, Any]:
    """A block of answers. Raises UserError if it is missing or damaged."""
    return checked(path, Block, "Delete it and run the assessment again.")
