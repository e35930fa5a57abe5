"""Part `study`: the profile `ci` from capture to answers on the GPU, and the same on the CPU; two processes at once.

Both studies run at the same time, each in a process of its own, with the same code, items and seeds; without a GPU they
would be the same one, and it runs once. In float32 a
student that is trained on the GPU must be the one that is trained on the CPU, as far as sums in another order go.
"""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from check.findings import Report, Row
from check.machine import ROOT
from check.models import QUESTIONS, lively_folder, tokenizer_reference
from check.sizes import Sizes

LEARNED, STEP = 1e-3, 1e-4  # relative; sums in another order give 1e-6 of a step
CAPTURED = ("base-KD", "ai-KD")  # arms with a teacher
STATISTICS = ("scipy", "statsmodels", "pandas", "matplotlib", "jinja2", "rapidfuzz")
STAGES = """
import sys
from pathlib import Path
from primekd.assessment.score import score_some
from primekd.capture.jobs import held_out_job, training_job
from primekd.capture.run import capture
from primekd.config import load_profile
from primekd.training.distill import distill
profile = load_profile(sys.argv[1])
for arm in sys.argv[2:]:
    capture(training_job(profile, arm))
capture(held_out_job(profile))
for arm in [*sys.argv[2:], "base-fine-tune"]:
    distill(profile, arm)
score_some(profile, ["control", *sys.argv[2:], "base-fine-tune"])
"""


def run(sizes: Sizes, add: Callable[..., None], report: Report) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        profile, start = write_profile(folder, sizes.arms), time.monotonic()
        names = ("here", "cpu") if torch.cuda.is_available() else ("here",)
        studies = {name: start_study(profile, folder / name, sizes.arms, name == "cpu") for name in names}
        try:
            finish(studies["here"], "the study on the GPU")
            add(Row("seconds", "captures, students, answers and held-out fit of ci", time.monotonic() - start, "s"))
            if "cpu" in studies:
                finish(studies["cpu"], "the study on the CPU")
            else:
                shutil.copytree(folder / "here", folder / "cpu")
        finally:
            for study in studies.values():
                study.kill()
        add(*(row for arm in (*sizes.arms, "base-fine-tune") for row in students(folder, arm)))
        add(*(answers(folder, model) for model in ("control", *sizes.arms)))
        if sizes.several:
            add(two_processes(profile, folder))
            add(workers(profile, folder))
        add(logs(profile, folder))


def write_profile(folder: Path, arms: tuple[str, ...]) -> Path:
    """`ci`, with the items in a file of their own: its own generator may not be installed."""
    values = yaml.safe_load((ROOT / "configs" / "ci.yaml").read_text(encoding="utf-8"))
    model = f"random:{tokenizer_reference()}"
    for split, first, count in (("train", 0, 12), ("test", 100, 8)):  # no item is in both files
        questions = [f"{QUESTIONS[n % 4]} And what is {n + first} + {n}?" for n in range(count)]
        rows = [{"question": q, "answer": f"It is so.\n#### {2 * n + first}"} for n, q in enumerate(questions)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values["data"] = {"source": "jsonl", "train_items": 8, "validation_items": 4, "test_items": 8}
    values["data"] |= {f"{split}_file": str(folder / f"{split}.jsonl") for split in ("train", "test")}
    values["student"]["model"], values["arms"] = model, [*arms, "base-fine-tune"]
    # Another model than the student, so that there is something to learn; each item is a shard, for two to share.
    values["teacher"]["model"] = lively_folder(folder / "teacher")
    values["signals"]["items_per_shard"] = 1
    path = folder / "gpu-check.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def environment(output: Path, on_cpu: bool = False) -> dict[str, str]:
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    return os.environ | hidden | {"PRIMEKD_OUTPUT": str(output), "PRIMEKD_ROOT": str(ROOT), "HF_HUB_OFFLINE": "1"}


def start_study(profile: Path, output: Path, arms: tuple[str, ...], on_cpu: bool) -> subprocess.Popen:
    return begin([sys.executable, "-c", STAGES, str(profile), *arms], environment(output, on_cpu))


def begin(command: list[str], env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, what: str) -> None:
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{what} failed: {said[-400:]}")


def students(folder: Path, arm: str) -> list[Row]:
    """One student of both studies: its losses step by step, and its adapter."""
    curves, adapters = [], []
    for name in ("here", "cpu"):
        student = folder / name / "runs" / "gpu-check" / "students" / arm
        with open(student / "loss_curve.csv") as file:
            curves.append([row for row in csv.DictReader(file) if row["loss"]])
        weights = load_file(student / "adapter" / "adapter_model.safetensors")
        # B begins at zero, so all of it was learned; A is mostly the random numbers that it began with.
        adapters.append(torch.cat([weights[n].double().flatten() for n in sorted(weights) if "lora_B" in n]))
    apart = ((adapters[0] - adapters[1]).norm() / adapters[1].norm()).item()
    rows = [Row(f"{arm}/adapter", f"{arm}: LoRA's B, relative difference to the CPU's", apart, most=LEARNED)]
    for term in ("ce", "kd") if arm in CAPTURED else ("ce",):
        worst = max(abs(float(a[term]) / float(b[term]) - 1) for a, b in zip(*curves, strict=True))
        rows.append(Row(f"{arm}/{term}", f"{arm}: a step's {term}, largest difference to the CPU's", worst, most=STEP))
    return rows


def answers(folder: Path, model: str) -> Row:
    """The share of answers that are the CPU's token for token."""
    texts = []
    for name in ("here", "cpu"):
        blocks = sorted((folder / name / "runs" / "gpu-check" / "answers" / model).glob("block-*.json"))
        texts.append([row["ids"] for block in blocks for row in json.loads(block.read_text())["rows"]])
    same = [a == b for a, b in zip(*texts, strict=True)]
    return Row(f"{model}/answers", f"{model}: answers that are the CPU's", sum(same) / len(same), least=0.75)


def workers(profile: Path, folder: Path) -> Row:
    """Two captures of one store at once on one GPU share the work; the responses must be those of one alone."""
    command = [sys.executable, "-m", "primekd.cli", "capture", "ai-KD", "--profile", str(profile)]
    both = [begin(command, environment(folder / "two")) for _ in range(2)]
    for process in both:
        finish(process, "one of two captures at once")
    one, two = (responses(folder / name) for name in ("here", "two"))
    same = sum(one[item] == two.get(item) for item in one) / len(one)
    sessions = len(json.loads((folder / "two/runs/gpu-check/signals/ai-KD/manifest.json").read_text())["sessions"])
    note = f"{sessions} of the two made some"
    return Row("workers", "two captures at once: responses that are one capture's", same, least=1, note=note)


def responses(output: Path) -> dict[str, list[int]]:
    from primekd.signals import SignalReader

    reader = SignalReader(output / "runs" / "gpu-check" / "signals" / "ai-KD")
    return {item: reader.item(item).response_ids for item in reader.item_ids}


def two_processes(profile: Path, folder: Path) -> Row:
    """A training on two processes: refused in one sentence where there is one GPU, else the one process' adapter."""
    command = [sys.executable, "-m", "primekd.cli", "distill", "base-fine-tune", "--profile", str(profile)]
    process = begin([*command, "--processes", "2"], environment(folder / "pair"))
    said, _ = process.communicate()
    what, last = "a student on two processes: refused, or right", said.strip().splitlines()[-1:]
    if process.returncode:
        refused = process.returncode == 1 and any("lower --processes" in text for text in last)
        return Row("processes", what, float(refused), least=1, note=" ".join(last)[-200:])
    one, two = (
        load_file(folder / name / "runs/gpu-check/students/base-fine-tune/adapter/adapter_model.safetensors")
        for name in ("here", "pair")
    )
    apart = max(((one[name] - two[name]).norm() / one[name].norm().clamp(min=1e-12)).item() for name in one)
    return Row("processes", what, float(apart < 1e-2), least=1, note=f"right: the adapter differs by {apart:.1e}")


def logs(profile: Path, folder: Path) -> Row:
    """The last stage, statistics and report, for which the machine may lack libraries."""
    what = "per-item logs and the report"
    if missing := [name for name in STATISTICS if importlib.util.find_spec(name) is None]:
        return Row("logs", what, None, note=f"{', '.join(missing)} not installed")
    rest = "import sys; from primekd.config import load_profile; from primekd.studies.assess import assess; "
    rest += "from primekd.capture import jobs; from primekd.capture.run import capture; "
    rest += "from primekd.training.distill import distill; "
    rest += "from primekd.config.arms import arms_of; from primekd.report.html import write_report; "
    rest += "p = load_profile(sys.argv[1]); own = arms_of(p); "
    rest += "[capture(jobs.training_job(p, s)) for s in own if own[s].teacher]; [distill(p, s) for s in own]; "
    rest += "assess(p); write_report(p)"
    finish(begin([sys.executable, "-c", rest, str(profile)], environment(folder / "here")), what)
    written = (folder / "here" / "runs" / "gpu-check" / "logs" / "report.html").is_file()
    return Row("logs", what, float(written), least=1)
