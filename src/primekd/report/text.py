"""Students of text as they are shown: benchmarks and facts beside what cannot be right and what was published, curves,
habits of own text; and models that were asked beside a study's own (`primekd compare-models`)."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from primekd.assessment.completions import OTHERS, RANDOM
from primekd.assessment.costs import FILE as COSTS
from primekd.assessment.costs import CostRow
from primekd.assessment.likelihood import MEASURES
from primekd.assessment.similarity import EMBEDDER
from primekd.config import CONTROL, Profile, load_arms, split_seed
from primekd.foundation import MANIFEST, read_manifest, read_records
from primekd.report.cells import Name, Table, table_of
from primekd.report.costs import cost_table
from primekd.report.figures import DASHES, PALETTE, draw
from primekd.report.formats import between, p_value, percent, points, written
from primekd.report.results import model_of, read_optional
from primekd.report.shown import Shown, show_figure, show_table
from primekd.statistics.choices import PUBLISHED, BenchmarkContrastRow, BenchmarkRow
from primekd.statistics.facts import FactContrastRow, FactRow
from primekd.statistics.families import title_of
from primekd.studies.results import BENCHMARK_CONTRASTS, BENCHMARKS, FACT_CONTRASTS, FACTS
from primekd.tasks.choices import RAW
from primekd.tasks.text import text_folder
from primekd.training.habits import HabitRow

NOTE = (
    "The share of items whose right choice a model finds most likely: by the sum over its tokens (acc), a character "
    "(acc_norm), a token (acc_token_norm); Wilson intervals. Majority: always the most frequent label. Published rows "
    "are others' measurements on the whole benchmark, not on these items. hella_token is HellaSwag on texts that are "
    "not cleaned up, as GPT-2's published numbers have it (acc_token_norm); which measure OLMo's are was not said."
)
ALONE = (
    "Model minus reference on HellaSwag's items alone. p is adjusted over the planned contrasts of a family on every "
    "benchmark; the others' rows are in benchmark-contrasts.csv."
)
FEW = 100  # items of a benchmark; with fewer an interval is 19 points wide, or more
TOO_FEW = f"A benchmark of fewer than {FEW} items shows that the machinery runs: its accuracies mean nothing."
HABITS_NOTE = (
    "What a student wrote while it learned, mean over the first and the last tenth of its steps on own text: tokens a "
    "response, the share that ended by itself, the share of its 4-grams that stood in it before, and the entropy of "
    "its distributions in nats."
)
GREY = "#777777"
LOSSES = {"train": ("training", {"linestyle": DASHES[2], "linewidth": 1}),
          "val": ("validation", {"linestyle": DASHES[0], "marker": "."})}  # fmt: skip
HELLASWAG = {RAW: {"linestyle": DASHES[0], "marker": "o"}, "hella": {"linestyle": DASHES[2], "marker": "."}}
MEASURED = {RAW: "a token, raw text", "hella": "by assess.choose_by"}
BY_CHANCE, GPT2 = 0.25, 0.2955  # HellaSwag: four endings; GPT-2 124M as published, a mean a token on raw text

FLOORS = {OTHERS: "Right answers to other questions", RANDOM: "Words of the questions at random"}
# DistilLlama's own table (ROUGE-L: which of precision and recall, and against what, is not said), and its seconds.
PUBLISHED_FACTS = (("Llama-2-7B", 0.715, 0.7257, 0.0821, 18216), ("DistilLlama 80M", 0.02, 0.6623, 0.0115, 77),
             ("baby-llama-58m", 0.025, 0.6556, 0.0097, 57))  # fmt: skip
FACTS_NOTE = (
    "Right: an accepted keyword stands in the completion, as a whole word. Cosine: of the whole sentence with the "
    f"right one, embeddings of {EMBEDDER}; it hardly tells good from bad, so beside it stands what share it reaches of "
    "the way from right answers to other questions (0) to the right answer (100). ROUGE-L: of the completion against "
    "the keyword. Of several accepted keywords both are by the nearest. Perplexity of held-out documents and KL to the "
    "teacher, nats a token. Intervals: Wilson's, else bootstrap over sentences or documents. Published rows, and their "
    "seconds in all: other queries, other hardware, for orientation."
)
FACTS_TESTED = (
    "Model minus reference on the same sentences; p is adjusted over all of these tests of its family. Right answers, "
    "KL and the loss on documents are tested among the planned contrasts."
)
LIKENESS = {"cosine": "Cosine", "rouge_precision": "ROUGE-L precision", "rouge_recall": "ROUGE-L recall"}


def benchmark_table(folder: Path) -> Table:
    """A row a benchmark and model, published ones below. Empty without such a file."""
    columns = {"Benchmark": "benchmark", "Model": model_of, "Items": "n"}
    columns |= {f"{measure}, % [95 %]": between(measure, percent) for measure in MEASURES}
    columns |= {"Majority, %": written("majority", percent), "Chance, %": written("chance", percent)}
    found = read_optional(Path(folder) / BENCHMARKS, BenchmarkRow)
    table = table_of("Benchmarks", found, columns, left=2, notes=(NOTE, *few_items(folder)))
    shown = {row["benchmark"] for row in found}
    published = [
        [benchmark, f"{model} (published)", "", *(percent(share) * (m == measure) for m in MEASURES), "", ""]
        for benchmark, model, share, measure in PUBLISHED if benchmark in shown
    ]  # fmt: skip
    return replace(table, rows=table.rows + published)


def benchmark_contrast_table(folder: Path) -> Table:
    """The planned contrasts on HellaSwag, by both measures. Empty without such a file."""
    columns = {
        "Benchmark": "benchmark", "Model": written("model", title_of), "Against": written("reference", title_of),
        "Difference, points [95 %]": between("difference", points),
        "p": written("p", p_value), "p (Holm)": written("p_holm", p_value),
    }  # fmt: skip
    found = read_optional(Path(folder) / BENCHMARK_CONTRASTS, BenchmarkContrastRow)
    found = [row for row in found if row["benchmark"] in ("hellaswag", RAW)]
    return table_of("HellaSwag, planned contrasts", found, columns, left=3, notes=(ALONE,))


def few_items(folder: Path) -> list[str]:
    """That accuracies mean nothing, where a benchmark has too few items for that; else nothing."""
    found = read_optional(Path(folder) / BENCHMARKS, BenchmarkRow)
    return [TOO_FEW] if any(int(row["n"]) < FEW for row in found) else []


def fact_table(folder: Path) -> Table:
    """A row a model, then the floors, what was compared on this machine and what was published; no rows in other
    studies."""
    found, compared = read_optional(Path(folder) / FACTS, FactRow), Path(folder).parent / "compared" / "logs" / FACTS
    asked = [row for row in read_optional(compared, FactRow) if found and row["model"] not in FLOORS]
    found += [row | {"model": f"{row['model']} (compared)"} for row in asked]
    columns = {
        "Model": lambda row: FLOORS.get(row["model"]) or Name(title_of(row["model"]), row["model"]),
        "Right, % [95 %]": between("accuracy", percent), "Cosine [95 %]": between("cosine", _three),
        "Reached, %": written("reached", percent),
        **{f"{LIKENESS[key]} [95 %]": between(key, _three) for key in ("rouge_precision", "rouge_recall")},
        "Perplexity [95 %]": between("perplexity"), "KL [95 %]": between("kl"),
    }  # fmt: skip
    published = [
        [f"{name} (published; {seconds:,} s)", percent(right), _three(cosine), "", _three(rouge), "", "", ""]
        for name, right, cosine, rouge, seconds in PUBLISHED_FACTS
    ]
    table = table_of("Facts", found, columns, notes=(FACTS_NOTE,))
    return replace(table, rows=table.rows + published) if found else table


def fact_contrast_table(folder: Path) -> Table:
    """The planned contrasts in likeness to the right sentences; no rows in other studies."""
    columns = {
        "Model": written("model", title_of), "Against": written("reference", title_of),
        "Measure": written("measure", LIKENESS.get),
        "Difference [95 %]": between("difference", lambda value: f"{float(value):+.3f}"),
        "p": written("p", p_value), "p (Holm)": written("p_holm", p_value),
    }  # fmt: skip
    found = read_optional(Path(folder) / FACT_CONTRASTS, FactContrastRow)
    return table_of("Likeness to the right sentences", found, columns, left=3, notes=(FACTS_TESTED,))


def _three(value: str | float) -> str:
    return f"{float(value):.3f}"


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
    ways = (fact_table, fact_contrast_table, benchmark_table, benchmark_contrast_table, habit_table)
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
    """log10 of training and validation loss on text over the steps and, where they were looked at, right choices of
    HellaSwag. Arms that go on from the control stand behind it. None where there is no log of the control."""
    logs = {path.stem: read_text_log(path) for path in sorted(Path(folder, "text_logs").glob("*.txt"))}
    logs = {name: lines for name, lines in logs.items() if not split_seed(name)[1]}
    if not logs.get(CONTROL, {}).get("train"):
        return None
    names, end = [CONTROL, *(name for name in logs if name != CONTROL)], logs[CONTROL]["train"][-1][0]
    fresh = {CONTROL, *(name for name, arm in load_arms().items() if arm.start != CONTROL)}
    asked = [label for label in HELLASWAG if any(label in lines for lines in logs.values())]

    def fill(losses, choices=None):
        for place, name in enumerate(names):
            lines, start, color = logs[name], 0 if name in fresh else end, PALETTE[place % len(PALETTE)]
            if "kl" in lines and "loss" not in lines:  # of older code: the objective stands under `train`
                lines.pop("train", None)
            for label, (of, style) in LOSSES.items():
                if points := [(start + step, math.log10(value)) for step, value in lines.get(label, []) if value > 0]:
                    losses.plot(*zip(*points, strict=True), color=color, label=f"{title_of(name)}, {of}", **style)
            for label in asked:
                if points := [(start + step, value) for step, value in lines.get(label, [])]:
                    choices.plot(*zip(*points, strict=True), color=color, **HELLASWAG[label])
        losses.set(title="Loss on text", xlabel="Step", ylabel="log10 of nats a token")
        if choices:
            for label in asked:
                choices.plot([], [], color=GREY, label=f"HellaSwag: {MEASURED[label]}", **HELLASWAG[label])
            choices.axhline(BY_CHANCE, color=GREY, linestyle=DASHES[3], label="random (0.25)")
            published = f"GPT-2 124M, published (0.2955): {MEASURED[RAW]}"
            choices.axhline(GPT2, color=GREY, linestyle=DASHES[1], label=published)
            choices.set(title="HellaSwag, right choices", xlabel="Step", ylabel="Share")
        losses.figure.legend(loc="outside lower center", ncols=3)

    return draw("text", (10.4 if asked else 7.5, 4.6), 2 if asked else 1, fill)


def show_text(profile: Profile) -> Shown:
    """Curves and tables of this machine's logs."""
    said = "Loss on text, and HellaSwag where it was asked, over the steps"
    return sum(map(show_table, text_tables(profile.logs)), show_figure(text_curves(profile.logs), said))


def show_training(profile: Profile, name: str, seed: int) -> Shown:
    """The text log of one training so far, drawn; it may still run."""
    path = profile.student_folder(name, seed)
    lines = read_text_log(path.with_name(f"{path.name}.log.txt"))

    def fill(axes):
        for place, (label, curve) in enumerate(line for line in lines.items() if line[0] in ("train", "val", "kl")):
            axes.plot(*zip(*curve, strict=True), color=PALETTE[place], label=label, linewidth=1.6)
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


def compared_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What was measured: the rows of every table, by the table's name."""
    kinds = {FACTS: FactRow, BENCHMARKS: BenchmarkRow, COSTS: CostRow}
    found = {Path(name).stem: read_records(Path(folder) / name, kind, needed=False) for name, kind in kinds.items()}
    return {name: [asdict(row) for row in rows] for name, rows in found.items() if rows}


def show_compared(folder: Path) -> Shown:
    """Facts or benchmarks, and what a thousand answers cost, for a notebook or a terminal."""
    return sum(map(show_table, (*text_tables(folder), cost_table(folder))))
