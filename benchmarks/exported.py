"""How often a student's GGUF files answer as its merged model does, under greedy decoding.

    python -m benchmarks.exported ai-KD --profile pocket --out exported.json

The student is exported anew into a temporary folder: float32 safetensors, which transformers reads, and the GGUF files
of the same weights, which llama.cpp reads. Two answers agree where all of their tokens do. Where they part, `gap` is by
how much the merged model prefers its own token to the file's, nats: of a tie, rounding alone decides.
"""

import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.tables import markdown_table
from primekd.config import Profile, load_profile
from primekd.foundation import environment, write_json
from primekd.models import load_tokenizer
from primekd.models.gguf_files import FILE_TYPES
from primekd.report.formats import percent
from primekd.running.export import export, prompts_of
from primekd.teachers import Response, Sampling


def measure(profile: Profile, arm: str, seed: int | None, items: int) -> dict[str, Any]:
    """Per type of file: answers that agree, tokens in front of the first difference, bytes, seconds."""
    from primekd.teachers.llamacpp_engine import LlamaCppEngine
    from primekd.teachers.transformers_engine import TransformersEngine

    sampling = Sampling(profile.max_new_tokens)
    with tempfile.TemporaryDirectory() as temporary:
        folder = export(profile, arm, seed, Path(temporary) / "exported", list(FILE_TYPES), "float32")
        tokenizer = load_tokenizer(f"path:{folder}")
        prompts = prompts_of(profile, tokenizer, items)
        longest = max(map(len, prompts)) + profile.max_new_tokens
        merged = TransformersEngine(f"path:{folder}", "float32", 4)
        wanted, seconds = _timed(merged, prompts, sampling)
        found: dict[str, Any] = {"merged, transformers": _agreement(wanted, wanted) | {"seconds": seconds}}
        for kind in FILE_TYPES:
            [file] = folder.glob(f"*-{kind}.gguf")
            made, seconds = _timed(LlamaCppEngine(f"path:{file}", longest, 4, tokenizer), prompts, sampling)
            size = file.stat().st_size
            parted = {"gaps": gaps(merged, prompts, wanted, made), "seconds": seconds, "bytes": size}
            found[f"{kind}, llama.cpp"] = _agreement(wanted, made) | parted
            gc.collect()
    return {"profile": profile.name, "arm": arm, "seed": seed, "models": found, "environment": environment()}


def _timed(engine: Any, prompts: list[list[int]], sampling: Sampling) -> tuple[list[Response], float]:
    start = time.monotonic()
    return engine.generate(prompts, sampling), round(time.monotonic() - start, 2)


def _agreement(wanted: list[Response], made: list[Response]) -> dict[str, Any]:
    same = [_same(one.ids, other.ids) for one, other in zip(wanted, made, strict=True)]
    return {
        "answers": len(wanted),
        "agree": sum(one.ids == other.ids for one, other in zip(wanted, made, strict=True)),
        "tokens": sum(len(one.ids) for one in wanted),
        "same_tokens": sum(same),
    }


def gaps(merged: Any, prompts: list[list[int]], wanted: list[Response], made: list[Response]) -> list[float]:
    """Nats between the tokens at the first difference of each pair of answers that differ, under the merged model."""
    found = []
    for prompt, one, other in zip(prompts, wanted, made, strict=True):
        place = _same(one.ids, other.ids)
        if place < min(len(one.ids), len(other.ids)):
            [logits] = merged.score([prompt], [one.ids[: place + 1]], "logits")  # (place + 1, V)
            found.append(round(float(logits[-1, one.ids[place]] - logits[-1, other.ids[place]]), 4))
    return found


def _same(one: list[int], other: list[int]) -> int:
    """Tokens in front of the first difference."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def table(found: dict[str, Any]) -> str:
    """What `measure` found, in Markdown."""
    rows = []
    for name, one in found["models"].items():
        parted = sorted(one.get("gaps", []))
        median = f"{statistics.median(parted):.3g}" if parted else "–"
        same = percent(one["same_tokens"] / one["tokens"])
        rows.append([name, f"{one['agree']} of {one['answers']}", same, median])
    head = ["Model", "Answers that agree", "Tokens before a difference, %", "Gap there, nats (median)"]
    return markdown_table(head, rows)


def main(
    arm: str,
    profile: Annotated[str, typer.Option(help="A profile whose student of the arm is trained.")] = "pocket",
    seed: Annotated[int | None, typer.Option(help="The student's; the profile's own if left out.")] = None,
    items: Annotated[int, typer.Option(min=1, help="How many test items are asked.")] = 20,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the numbers.")] = None,
) -> None:
    """Exports a student, asks its merged model and its GGUF files the same, prints how often they agree."""
    found = measure(load_profile(profile), arm, seed, items)
    print(table(found))
    if out:
        write_json(out, found)


if __name__ == "__main__":
    typer.run(main)
