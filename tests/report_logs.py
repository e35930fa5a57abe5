"""A whole logs folder for the tests of the report: eight models, hostile texts, and every file that a page reads."""

import csv
import io
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import torch

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow, write_log
from primekd.assessment.reading import EXTRACTORS
from primekd.assessment.tokens import TokenFit, write_fits, write_tokens
from primekd.config.arms import load_arms
from primekd.foundation import hash_file, hash_json, write_json, write_text
from primekd.foundation.tables import write_records
from primekd.signals.certainty import Certainty
from primekd.statistics.contrasts import SeedRow, contrast
from primekd.statistics.families import plan_of
from primekd.statistics.summary import AccuracyRow, summarise
from primekd.statistics.validation import AuditRow, ValidationRow
from primekd.studies.published import DisagreementRow, ExtractorContrastRow, StatedRow

MODELS = ("control", "base-KD", "teacher-KD", "ai-KD", "reverseKL-KD", "base-fine-tune", "ai-KD-seed1", "teacher")
HOSTILE = (
    "</script><script>window.owned=1</script> 18",
    "<img src=x onerror=window.owned=1> 18",
    "{{7*7}} {% raw %} 18",
    "😀👩‍👩‍👧 the answer is 18, no, 19",
    'commas, "quotes"\nand\r\nlines\u2028with\u2029odd ends & <!-- 18 -->',
    "\u202e\u2066<b onclick=window.owned=1>18</b>\u200b \u0645",
)
DECIDED = {("ai-KD", 1): "18", ("ai-KD", 4): "-1", ("base-KD", 5): "19"}
NOTHING_FOUND = 4  # the place of the answer that no number was read from


def make_checkout(folder: Path, monkeypatch) -> Path:
    """A folder with this repository's configuration and no logs, as the checkout of one test."""
    shutil.copytree(Path(__file__).parents[1] / "configs", folder / "configs")
    monkeypatch.setenv("PRIMEKD_ROOT", str(folder))
    monkeypatch.delenv("PRIMEKD_OUTPUT", raising=False)
    return folder


def write_study(profile, texts=HOSTILE, decided: dict[tuple[str, int], str] | None = None, name="item-{}"):
    """Writes logs/<profile>/ and returns the profile.

    Args:
        texts: one answer an item; the number in it is 18, the gold answer. Every third one is called right.
        decided: (model, place of the item) -> the value that a person decided on.
        name: an item's id, with {} for its place.
    """
    decided = decided or {}
    logs, held_out = {}, []
    for shift, model in enumerate(MODELS):
        logs[model] = [
            _row(name.format(place), place, text, (place + shift) % 3 == 0, decided.get((model, place), ""))
            for place, text in enumerate(texts)
        ]
        if model != "teacher":
            held_out += [HeldOutRow(model, r.id, 10, 0.5 + shift * i, 20, 30.0 + i) for i, r in enumerate(logs[model])]
        write_log(profile.logs / f"{model}.csv", logs[model])
        if model not in ("control", "teacher"):
            steps = "".join(f"{s},0.5,0.1,{2 / s},1,1,1,{3 / s if s % 2 == 0 else ''}\n" for s in range(1, 9))
            curve = profile.logs / "loss_curves" / f"{model}.csv"
            write_text(curve, "step,epoch,learning_rate,loss,ce,kd,grad_norm,eval_loss\n" + steps)
    write_records(profile.logs / "held-out.csv", HeldOutRow, held_out)
    for name, rows in (
        ("summary", summarise(logs, held_out, 50)),
        ("contrasts", contrast(logs, held_out, plan_of(logs, load_arms()))),
    ):
        cells = [[f"{v:.6g}" if isinstance(v, float) else v for v in asdict(row).values()] for row in rows]
        write_csv(profile.logs / f"{name}.csv", ",".join(asdict(rows[0])), cells)
    _write_extractors(profile.logs, logs)
    write_csv(profile.logs / "seeds.csv", SeedRow)
    write_csv(profile.logs / "audit.csv", AuditRow)
    write_manifest(profile)
    return profile


def _row(item_id: str, place: int, text: str, right: bool, decided: str) -> LogRow:
    start = text.index("18")
    rule, span = ("none", "") if place == NOTHING_FOUND else ("last-number", f"{start}:{start + 2}")
    found = "-1" if rule == "none" else "18"
    question = f"Question {place}: {text}"
    return LogRow(item_id, question, "18", text, 12 + place, place == 2, found, rule, span, right, decided)


def _write_extractors(folder: Path, logs: dict[str, list[LogRow]]) -> None:
    """All extractors read what the published rules read, but in item 3 of the models called KD: 17 by `validated`, and
    nothing by `strict-match`."""
    lines, shares = [], []
    for model, log in logs.items():
        read = [{name: row.extracted for name in EXTRACTORS} for row in log]
        if model.endswith("KD"):
            read[3] |= {"validated": "17", "strict-match": "-1"}
        lines += [[model, row.id, row.gold, *values.values()] for row, values in zip(log, read, strict=True)]
        for name in EXTRACTORS:
            correct = sum(values[name] == row.gold for values, row in zip(read, log, strict=True))
            found = sum(values[name] != "-1" for values in read)
            share = correct / len(log)
            counted = [share, max(0, share - 0.1), min(1, share + 0.1)]
            shares.append([model, name, len(log), found, correct, *counted, correct, *counted])
    write_csv(folder / "extractors.csv", ",".join(["model", "id", "gold", *EXTRACTORS]), lines)
    write_csv(folder / "accuracies.csv", AccuracyRow, shares)


def write_csv(path: Path, columns: str | type, rows=()) -> None:
    """`columns`: their names, or the dataclass of a row."""
    text = io.StringIO()
    head = columns.split(",") if isinstance(columns, str) else [f.name for f in fields(columns)]
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())


def write_manifest(profile) -> None:
    """logs/<profile>/manifest.json with the hashes of what lies there now."""
    outputs = {p.relative_to(profile.logs).as_posix(): hash_file(p) for p in sorted(profile.logs.rglob("*.csv"))}
    student = {
        "strategy": "ai-KD",
        "inputs": {"seed": 0, "student": {"model_sha256": "c" * 64},
                   "signals": {"spec_sha256": "5" * 64, "shards": {"shard-00000.safetensors": "8" * 64}}},
        "outputs": {"adapter/adapter_model.safetensors": "a" * 64},
        "end": "2026-01-02T03:04:05+00:00", "seconds": 61.0, "energy_kwh": 0.001, "steps": 8, "response_tokens": 96,
        "git": {"commit": "d" * 40, "dirty": True}, "manifest_sha256": "e" * 64,
        "signals": {"spec": {"priming": "<b>Check twice.</b>"}, "items": 8, "tokens": 9, "bytes": 2**20,
                    "sessions": [{"seconds": 2.5, "energy_kwh": None}]},
    }  # fmt: skip
    manifest = {
        "kind": "assessment", "inputs": {}, "inputs_sha256": hash_json({}), "outputs": outputs,
        "start": "2026-01-02T03:00:00+00:00",
        "end": "2026-01-02T03:10:00+00:00", "config": profile.resolved(), "seconds": 4.5, "energy_kwh": 0.002,
        "models": {"ai-KD": student}, "teacher": {"spec_sha256": "7" * 64, "items": 6, "tokens": 60},
        "environment": {"git": {"commit": "f" * 40, "dirty": False}, "hardware": {"cpu": "A <cpu>", "cores": 2}},
    }  # fmt: skip
    write_json(profile.logs / "manifest.json", manifest)


def write_published(checkout: Path) -> Path:
    """logs/published/ of the published study, small."""
    folder = checkout / "logs" / "published"
    stated = [
        ["control", "No distillation", 1319, "12.20", 161, 1319], ["base-KD", "base-KD", 1319, "30.62", 404, 1319],
        ["ai-KD", "Ground truth-KD", 1319, "48.14", "", ""],
        ["base-fine-tune", "Fine-tuning", 1319, "25.01", 303, 1319],
        ["reverseKL-KD", "Confidence-KD", 1319, "34.04", 499, 1319],
    ]  # fmt: skip
    write_csv(folder / "stated.csv", StatedRow, stated)
    logs = ("control", "base-KD", "base-fine-tune", "reverseKL-KD")
    accuracies = [
        [model, name, 1319, 1300, *[300, 0.3 + 0.05 * place + 0.03 * turn, 0.2, 0.6] * 2]
        for place, model in enumerate(logs)
        for turn, name in enumerate(EXTRACTORS)
    ]
    write_csv(folder / "accuracies.csv", AccuracyRow, accuracies)
    contrasts = [
        [name, model, reference, 90, 40, 0.0001 * 10**turn, 0.0004 * 10**turn, 0.05 - 0.02 * turn, 0.01, 0.08, 0.032]
        for turn, name in enumerate(EXTRACTORS)
        for model, reference in (("base-KD", "control"), ("reverseKL-KD", "base-KD"))
    ]
    write_csv(folder / "contrasts.csv", ExtractorContrastRow, contrasts)
    disagreements = [["control", 156, 5, 5, 1153, 1319], ["base-KD", 384, 20, 33, 882, 1319]]
    write_csv(folder / "disagreements.csv", DisagreementRow, disagreements)
    validation = [
        [which, name, stratum, 100, 75, 74, 0.986, 0.93, 0.998, 0.97, 0.92, 0.99, 0.9512, 0.9, 0.99]
        for which in ("development", "validation")
        for name in EXTRACTORS
        for stratum in ("all", "ended", "truncated", "log base-KD", "rule last-number")
    ]
    write_csv(folder / "validation.csv", ValidationRow, validation)
    return folder


TOKENS = ["It", " is", "\n", "<img src=x onerror=window.owned=1>", " 18", "<|end|>"]


class Words:
    """Stands for a tokenizer: token n is the n-th text."""

    def decode(self, ids, skip_special_tokens=False):
        return TOKENS[ids[0]]


def write_some_tokens(folder, item):
    """Six tokens of one item under two models; ai-KD is 2 nats away at the last but one and nowhere else."""
    ids, count = list(range(6)), len(TOKENS)
    best = torch.tensor([[n, (n + 1) % count, (n + 2) % count] for n in ids])
    teacher = torch.tensor([[0.8994, 0.1002, 0.0004]] * 6)
    sure = Certainty(torch.full((6,), 0.25), torch.full((6,), 0.8994), best, teacher)
    models = {}
    for name, far in (("control", 1.0), ("ai-KD", 2.0)):
        kl = torch.zeros(6)
        kl[4] = far
        models[name] = folder / f"{name}.safetensors"
        write_fits(models[name], [TokenFit(kl, best[:, :2].flip(1), torch.tensor([[0.7498, 0.2502]] * 6))])
    write_tokens(folder / "tokens.safetensors", {item: ids}, {item: sure}, models, Words())
