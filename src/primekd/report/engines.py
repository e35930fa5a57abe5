"""The table of teacher engines: what each one reads and gives, and where it was really run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primekd.provenance import read_json
from primekd.report.cells import Cell, Files, Table
from primekd.report.formats import percent, significant

NOT_RUN = "not run"


@dataclass(frozen=True)
class Engine:
    """What an engine is, whether or not it was run. `package`: whose version its check names."""

    name: str
    models: str
    codecs: str
    batching: str
    packages: tuple[str, ...]


ENGINES = (
    Engine("transformers", "safetensors folder, GGUF (dequantised)", "hidden, full, topk", "padded batches",
           ("transformers", "torch")),
    Engine("llamacpp", "GGUF", "hidden, full, topk", "one sequence at a time", ("llama_cpp_python",)),
    Engine("exllamav2", "EXL2 folder", "hidden, full, topk", "paged jobs (with flash-attn)", ("exllamav2",)),
    Engine("vllm", "safetensors folder, its quantised formats", "topk at T = 1; full with full_logprobs",
           "continuous", ("vllm",)),
    Engine("api", "whatever the server has", "topk at T = 1; text", "concurrent requests", ("server", "openai")),
)  # fmt: skip


def engine_table(logs_folder: Path) -> Table:
    """One row an engine, from logs/engines/<engine>.json where it was checked.

    Raises:
        UserError: a check's file is no JSON.
    """
    head = ["Engine", "Model format", "Codecs", "Batches", "Checked on", "Versions",
            "Same first token, %", "KL, nats a token", "Equal answers", "Log"]  # fmt: skip
    return Table("Teacher engines", head, [_row(engine, logs_folder) for engine in ENGINES], left=6)


def _row(engine: Engine, logs_folder: Path) -> list[Cell]:
    known: list[Cell] = [engine.name, engine.models, engine.codecs, engine.batching]
    path = logs_folder / f"{engine.name}.json"
    if not path.is_file():
        return [*known, NOT_RUN, "–", "–", "–", "–", Files(())]
    check = read_json(path)
    found = check["agreement"]
    bound = "" if found["compared"] == "every token" else "≥ "
    return [
        *known,
        _machine(check),
        _versions(engine, check),
        percent(found["top1_agreement"]),
        f"{bound}{significant(found['mean_kl_nats'], 2)}",
        f"{check['equal_answers']} of {check['items']}",
        Files((f"logs/engines/{engine.name}.json",)),
    ]


def _machine(check: dict[str, Any]) -> str:
    facts = check["environment"]["hardware"]
    return f"{check['profile']}, {'; '.join(facts['gpus']) if facts.get('gpus') else facts['cpu']}"


def _versions(engine: Engine, check: dict[str, Any]) -> str:
    known = check["environment"]["packages"] | check["identity"]
    return ", ".join(f"{name} {known[name]}" for name in engine.packages if known.get(name))
