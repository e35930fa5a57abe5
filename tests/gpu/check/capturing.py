"""Part `capture`: what signals cost while a model generates, in a second pass, and on disk."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.stored_signals import as_needed, codec_at, write_store
from benchmarks.timing import alternate, spread
from check.findings import Report, Row
from check.models import prompts_of, random_folder
from check.sizes import Sizes
from check.steps import TEMPERATURE
from primekd.signals import StoredItem
from primekd.teachers import Sampling
from primekd.teachers.transformers_engine import TransformersEngine

Ids = list[list[int]]
WITH_ROWS, SECOND = "generating with hidden rows", "scoring in a second pass, hidden rows"
KEPT = 0.9  # of the plain rate, hoped with signals
ROUNDS = 2
STORED = 4  # responses a store: a whole row of logits is large


def run(sizes: Sizes, add: Callable[..., None], report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = TransformersEngine(
            random_folder(Path(folder), sizes.captured), "bfloat16", batch_size=sizes.capture_prompts
        )
        asked = prompts_of(engine.tokenizer, sizes.capture_prompts)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        add(Row("decodes", "the project's own decode loop runs", float(engine.decodes), least=1))
        sampling = Sampling(sizes.capture_tokens)
        responses = [response.ids for response in engine.generate(asked, sampling)]
        stores(engine, asked[:STORED], responses[:STORED], Path(folder), add)
        rates(engine, asked, responses, sampling, add)


def rates(engine: TransformersEngine, asked: Ids, responses: Ids, sampling: Sampling, add: Callable[..., None]) -> None:
    """Tokens a second, all ways in turn."""
    tokens = sum(map(len, responses))
    calls = {
        "generating": lambda: engine.generate(asked, sampling),
        WITH_ROWS: lambda: engine.generate_scored(asked, sampling, "hidden"),
        SECOND: lambda: engine.score(asked, responses, "hidden"),
        "transformers' own generate": lambda: engine._generate_with_library(asked, sampling),
    }
    # Each is warm but for the library, which gets a few tokens to warm up with.
    times = alternate(calls, ROUNDS, warm_up=[lambda: engine._generate_with_library(asked, Sampling(4)), calls[SECOND]])
    plain = times["generating"]
    for name, seconds in times.items():
        note = f"{tokens} tokens, {len(asked)} side by side, Llama-1B's shape, {engine.vocab_size} words"
        add(Row(name, name, tokens / spread(seconds)["median"], "tokens/s", note=note))
    kept = spread([a / b for a, b in zip(plain, times[WITH_ROWS], strict=True)])["median"]
    second = spread([b / a for a, b in zip(plain, times[SECOND], strict=True)])["median"]
    add(
        Row("kept", "rate with hidden rows, of the plain rate", kept, least=KEPT, hope=True),
        Row("second", "a second pass, of the time of generating", second),
    )


def stores(engine: TransformersEngine, asked, responses, folder: Path, add: Callable[..., None]) -> None:
    """Bytes a token on disk, and the rate at which each codec is encoded, written and synced."""
    items = [StoredItem(str(n), a, r, truncated=False) for n, (a, r) in enumerate(zip(asked, responses, strict=True))]
    states, head = engine.score(asked, responses, "hidden"), engine.head().detach().cpu()
    tokens = sum(map(len, responses))
    for name in ("hidden", "topk", "sampled", "full"):
        codec = codec_at(name, TEMPERATURE)
        rows = as_needed(codec, states, head)
        start = time.monotonic()
        write_store(folder / "stores" / name, codec, items, rows, head)
        taken = time.monotonic() - start
        size = sum(path.stat().st_size for path in (folder / "stores" / name).glob("shard-*.safetensors"))
        note = f"{tokens / taken:.0f} tokens/s encoded and written" + (", the head with it" if name == "hidden" else "")
        add(Row(f"bytes/{name}", f"bytes a token on disk, {name}", size / tokens, "bytes", note=note))
    if torch.cuda.is_available():
        add(Row("memory", "peak memory of generating and scoring", torch.cuda.max_memory_allocated() / 2**30, "GiB"))
