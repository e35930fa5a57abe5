"""The table of teacher engines: what each one reads and gives, and where it was really run."""

from dataclasses import dataclass
from pathlib import Path

from primekd.foundation.errors import UserError
from primekd.foundation.provenance import read_json, relative_name
from primekd.report.cells import Cell, Files, Table
from primekd.report.formats import percent, significant

NOT_RUN = "not run"
NOTE = (
    "From `primekd check-engine`: the engine answers questions of the profile, and its answers are scored by it and by "
    "transformers in float32. KL(transformers || engine); ≥: over the top K tokens and one bucket for the rest, a "
    "lower bound."
)


@dataclass(frozen=True)
class Engine:
    """What an engine is, whether or not it was run. `package`: whose version its check names."""

    name: str
    models: str
    codecs: str
    batching: str
    packages: tuple[str, ...]


ENGINES = (
    Engine("transformers", "safetensors folder, GGUF (dequantised)", "hidden, full, topk, sampled",
           "batches that rows leave and join", ("transformers", "torch")),
    Engine("llamacpp", "GGUF", "hidden, full, topk, sampled", "parallel sequences", ("llama_cpp_python",)),
    Engine("exllamav2", "EXL2 folder", "hidden, full, topk, sampled", "paged jobs with flash-attn, else one at a time",
           ("exllamav2",)),
    Engine("vllm", "safetensors folder, quantised or not; GGUF (dequantised)",
           "topk at T = 1; full, sampled with full_logprobs", "continuous", ("vllm",)),
    Engine("api", "whatever the server has", "topk at T = 1", "concurrent requests", ("httpx",)),
)  # fmt: skip


def engine_table(logs_folder: Path) -> Table:
    """A row a check of logs/engines/, and one for each engine without a check. Raises UserError if one is no JSON."""
    head = ["Engine", "Model format", "Codecs", "Batches", "Checked on", "Versions", "Signals",
            "Same first token, %", "KL, nats a token", "Equal answers", "Check", "Whole study"]  # fmt: skip
    rows = []
    for engine in ENGINES:
        known: list[Cell] = [engine.name, engine.models, engine.codecs, engine.batching]
        files = sorted(logs_folder.glob(f"{engine.name}-*.json"))
        rows += [[*known, *_check(engine, path)] for path in files] or [
            [*known, NOT_RUN, *["–"] * 5, Files(()), Files(())]
        ]
    return Table("Teacher engines", head, rows, left=7, notes=(NOTE,))


def _check(engine: Engine, path: Path) -> list[Cell]:
    check = read_json(path)
    try:
        found, profile, facts = check["agreement"], check["profile"], check["environment"]["hardware"]
        versions = check["environment"]["packages"] | check["identity"]
        bound = "" if found["compared"] == "every token" else "≥ "
        study = f"{profile}/report.html"  # where a whole study with that engine was run
        return [
            f"{profile}, {'; '.join(facts['gpus']) if facts.get('gpus') else facts['cpu']}",
            ", ".join(f"{name} {versions[name]}" for name in engine.packages if versions.get(name)),
            check["codec"],
            percent(found["top1_agreement"]),
            f"{bound}{significant(found['mean_kl_nats'], 2)}",
            f"{check['equal_answers']} of {check['items']}",
            Files((f"logs/engines/{path.name}",)),
            Files((f"logs/{study}",) if (path.parent.parent / study).is_file() else ()),
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{relative_name(path)} is no check of an engine: run `primekd check-engine` again.") from error
