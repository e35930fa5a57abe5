"""Students of text as they are shown: benchmarks beside chance and published models, curves, habits of own text."""

import math
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from primekd.assessment.likelihood import MEASURES
from primekd.config import Profile
from primekd.config.arm import CONTROL, split_seed
from primekd.foundation.provenance import MANIFEST, read_manifest
from primekd.foundation.tables import read_records
from primekd.report.cells import Name, Table, table_of
from primekd.report.facts import fact_contrast_table, fact_table
from primekd.report.figures import DASHES, PALETTE, draw
from primekd.report.formats import between, percent, written
from primekd.report.results import model_of, read_optional
from primekd.report.shown import Shown, show_figure, show_table
from primekd.statistics.choices import PUBLISHED, BenchmarkRow
from primekd.statistics.families import title_of
from primekd.studies.results import BENCHMARKS
from primekd.tasks.text import text_folder
from primekd.training.habits import HabitRow

NOTE = (
    "The share of items whose right choice a model finds most likely: by the sum over its tokens (acc), a character "
    "(acc_norm), a token (acc_token_norm); Wilson intervals. Majority: always the most frequent label. Published rows "
    "are others' measurements on the whole benchmark, not on these items."
)
HABITS_NOTE = (
    "What a student wrote while it learned, mean over the first and the last tenth of its steps on own text: tokens a "
    "response, the share that ended by itself, the share of its 4-grams that stood in it before, entropy in nats."
)
RANDOM, GPT2 = 0.25, 0.2955  # HellaSwag: four endings; GPT-2 124M as published


def benchmark_table(folder: Path) -> Table:
    """A row a benchmark and model, published ones below. Empty without such a file."""
    columns = {"Benchmark": "benchmark", "Model": model_of, "Items": "n"}
    columns |= {f"{measure}, % [95 %]": between(measure, percent) for measure in MEASURES}
    columns |= {"Majority, %": written("majority", percent), "Chance, %": written("chance", percent)}
    found = read_optional(Path(folder) / BENCHMARKS, BenchmarkRow)
    table, shown = table_of("Benchmarks", found, columns, left=2, notes=(NOTE,)), {row["benchmark"] for row in found}
    published = [[p.benchmark, f"{p.model} (published)", "", "", percent(p.accuracy), "", "", ""]
                 for p in PUBLISHED if p.benchmark in shown]  # fmt: skip
    return replace(table, rows=table.rows + published)


def habit_table(folder: Path) -> Table:
    """How what students wrote read at the beginning of their training and at its end."""
    head = ["Model", "Steps", "Tokens, first → last", "Ended, %", "Repeated, %", "Entropy"]
    rows = []
    for path in sorted(Path(folder, "rollouts").glob("*.csv")):
        steps = read_records(path, HabitRow)
        part = max(1, len(steps) // 10)
        cells = [
            f"{show(_mean(steps[:part], key))} → {show(_mean(steps[-part:], key))}"
            for key, show in (("written_tokens", "{:.1f}".format), ("ended", percent), ("repeated", percent),
                              ("entropy", "{:.2f}".format))
        ]  # fmt: skip
        rows.append([Name(title_of(path.stem), path.stem), str(len(steps)), *cells])
    return Table("What students wrote", head, rows, notes=(HABITS_NOTE,))


def _mean(rows: list[HabitRow], key: str) -> float:
    return sum(getattr(row, key) for row in rows) / len(rows)


def text_tables(folder: Path) -> list[Table]:
    """The tables of the report's section; empty in other studies."""
    ways = (fact_table, fact_contrast_table, benchmark_table, habit_table)
    return [table for table in (way(folder) for way in ways) if table.rows]


Lines = dict[str, list[tuple[int, float]]]


def read_text_log(path: Path) -> Lines:
    """Label -> (step, value) of a log of lines `step label value`. Lines that are not such are passed over."""
    found: Lines = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        parts = line.split()
        try:
            found.setdefault(parts[1], []).append((int(parts[0]), float(parts[2])))
        except (IndexError, ValueError):  # the line that is being written
            continue
    return found


def text_curves(folder: Path) -> str | None:
    """log10 of training and validation loss, and right choices of HellaSwag, over the steps from the control's first
    on: arms go on where it ended. None where there are no logs."""
    logs = {path.stem: read_text_log(path) for path in sorted(Path(folder, "text_logs").glob("*.txt"))}
    logs = {name: lines for name, lines in logs.items() if not split_seed(name)[1] and lines.get("train")}
    if CONTROL not in logs:
        return None
    names = [CONTROL, *(name for name in logs if name != CONTROL)]
    end = logs[CONTROL]["train"][-1][0]

    def fill(losses, choices):
        for place, name in enumerate(names):
            start = 0 if name == CONTROL else end
            line: dict[str, Any] = {"color": PALETTE[place % len(PALETTE)]}
            for label, dash in (("train", DASHES[2]), ("val", DASHES[0])):
                points = [(start + step, math.log10(value)) for step, value in logs[name].get(label, []) if value > 0]
                if points and (label == "val" or name == CONTROL):
                    title = f"{title_of(name)}, {'validation' if label == 'val' else 'training'}"
                    losses.plot(*zip(*points, strict=True), linestyle=dash, marker=".", label=title, **line)
            if points := [(start + step, value) for step, value in logs[name].get("hella", [])]:
                choices.plot(*zip(*points, strict=True), marker="o", **line)
        losses.set(title="Loss on text", xlabel="Step", ylabel="log10 of nats a token")
        choices.axhline(RANDOM, color="#777777", linestyle=":", label="random (0.25)")
        choices.axhline(GPT2, color="#777777", linestyle="--", label="GPT-2 124M, published (0.2955)")
        choices.set(title="HellaSwag, right choices", xlabel="Step", ylabel="Share")
        losses.figure.legend(loc="outside lower center", ncols=3)

    return draw("text", (10.4, 4.6), 2, fill)


def show_text(profile: Profile) -> Shown:
    """Curves and tables of this machine's logs."""
    drawn = text_curves(profile.logs)
    parts = [show_figure(drawn, "Loss on text and HellaSwag over the steps")] if drawn else []
    return reduce(add, parts + [show_table(table, " ".join(table.notes)) for table in text_tables(profile.logs)])


def show_training(profile: Profile, name: str, seed: int) -> Shown:
    """The text log of one training so far, drawn; it may still run."""
    path = profile.student_folder(name, seed)
    lines = read_text_log(path.with_name(f"{path.name}.log.txt"))

    def fill(axes):
        for place, (label, points) in enumerate(line for line in lines.items() if line[0] in ("train", "val", "kl")):
            axes.plot(*zip(*points, strict=True), color=PALETTE[place], label=label, linewidth=1.6)
        axes.set(title=f"{title_of(path.name)} on {profile.name}", xlabel="Step", ylabel="Nats a token")
        axes.legend()

    return show_figure(draw(f"text {path.name}", (7.5, 3.8), 1, fill), "Losses over the steps")


def show_shards(profile: Profile) -> Shown:
    """What was tokenised: shards, documents and tokens, and what was left out. Raises UserError if it is not there."""
    manifest = read_manifest(text_folder(profile) / MANIFEST)
    held, left = manifest["held_out"], manifest["left_out"]
    rows = [
        ["to train on", str(manifest["documents"]), str(manifest["tokens"])],
        ["held out", str(held["documents"]), str(held["tokens"])],
        *([f"left out: {reason.replace('_', ' ')}", str(count), ""] for reason, count in left.items()),
    ]
    return show_table(Table("Text", ["Part", "Documents", "Tokens"], rows))
