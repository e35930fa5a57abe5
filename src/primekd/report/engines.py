"""The table of teacher engines: what each one reads and gives, and where it was really run."""

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


# Engine, model format, codecs, batches -> the packages whose versions a check names.
ENGINES = {
    ("transformers", "safetensors folder, GGUF (dequantised)", "hidden, full, topk, sampled",
     "batches that rows leave and join"): ("transformers", "torch"),
    ("llamacpp", "GGUF", "hidden, full, topk, sampled", "parallel sequences"): ("llama_cpp_python",),
    ("exllamav2", "EXL2 folder", "hidden, full, topk, sampled", "paged jobs with flash-attn, else one at a time"):
        ("exllamav2",),
    ("vllm", "safetensors folder, quantised or not; GGUF (dequantised)",
     "topk at T = 1; full, sampled with full_logprobs", "continuous"): ("vllm",),
    ("api", "whatever the server has", "topk at T = 1", "concurrent requests"): ("httpx",),
}  # fmt: skip


def engine_table(logs_folder: Path) -> Table:
    """A row a check of logs/engines/, and one for each engine without a check. Raises UserError if one is no JSON."""
    head = ["Engine", "Model format", "Codecs", "Batches", "Checked on", "Versions", "Signals",
            "Same first token, %", "KL, nats a token", "Equal answers", "Check", "Whole study"]  # fmt: skip
    rows = []
    for own, named in ENGINES.items():
        files = sorted(logs_folder.glob(f"{own[0]}-*.json"))
        rows += [[*own, *_check(path, named)] for path in files] or [[*own, NOT_RUN, *["–"] * 5, Files(()), Files(())]]
    return Table("Teacher engines", head, rows, left=7, notes=(NOTE,))


def _check(path: Path, packages: tuple[str, ...]) -> list[Cell]:
    check = read_json(path)
    try:
        found, profile, facts = check["agreement"], check["profile"], check["environment"]["hardware"]
        versions = check["environment"]["packages"] | check["identity"]
        return [
            f"{profile}, {'; '.join(facts['gpus']) if facts.get('gpus') else facts['cpu']}",
            ", ".join(f"{name} {versions[name]}" for name in packages if versions.get(name)),
            check["codec"],
            percent(found["top1_agreement"]),
            f"{'' if found['compared'] == 'every token' else '≥ '}{significant(found['mean_kl_nats'], 2)}",
            f"{check['equal_answers']} of {check['items']}",
            Files((f"logs/engines/{path.name}",)),
            # Where a whole study with that engine was run.
            Files((f"logs/{profile}/report.html",) if (path.parents[1] / profile / "report.html").is_file() else ()),
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{relative_name(path)} is no check of an engine: run `primekd check-engine` again.") from error
