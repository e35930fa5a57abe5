"""summary.csv and contrasts.csv of one logs folder, as lines that are ready to be shown."""

from dataclasses import dataclass, fields
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from primekd.assessment.summary import CONTROL, ContrastRow, SummaryRow, claims, read_table, title_of
from primekd.errors import UserError
from primekd.provenance import MANIFEST, read_json, relative_name
from primekd.report.formats import MISSING, interval, p_value, percent, significant
from primekd.strategies import load_strategies

# Stated in the paper for the student without distillation, which has no entry among the strategies.
PUBLISHED_CONTROL = 12.20


@dataclass(frozen=True)
class Results:
    """The rows of both files, as text; `summary` has one row a model, in the order of the study."""

    folder: Path
    summary: list[dict[str, str]]
    contrasts: list[dict[str, str]]

    def against(self, model: str, reference: str = CONTROL) -> dict[str, str] | None:
        """The contrast of `model` with `reference`; None where none was planned."""
        found = (r for r in self.contrasts if r["model"] == model and r["reference"] == reference)
        return next(found, None)


@dataclass(frozen=True)
class ResultLine:
    """One model's line of the results table, every number already written out."""

    title: str
    model: str
    n: str
    correct: str
    accuracy: str
    p: str
    truncated: str
    kl: str
    nll: str


@dataclass(frozen=True)
class ClaimLine:
    """What is published of a model beside what was measured here; – where there is nothing to show."""

    title: str
    model: str
    published: str
    measured: str
    n: str
    log: str


def read_results(folder: Path) -> Results:
    """Reads a logs folder.

    Raises:
        UserError: one of the files is missing, is empty or has other columns.
    """
    folder = Path(folder)
    tables = []
    for name, kind in (("summary.csv", SummaryRow), ("contrasts.csv", ContrastRow)):
        rows = read_table(folder / name)
        wanted = {f.name for f in fields(kind)}
        if any(wanted - row.keys() or None in row.values() for row in rows) or (kind is SummaryRow and not rows):
            raise UserError(f"{relative_name(folder / name)} has not the columns it should: run the assessment again.")
        tables.append(rows)
    return Results(folder, *tables)


def result_lines(results: Results) -> list[ResultLine]:
    """One line a model, in the order of summary.csv."""
    lines = []
    for row in results.summary:
        test = results.against(row["model"])
        lines.append(
            ResultLine(
                row["title"], row["model"], row["n"], row["correct"], interval(row, "accuracy", percent),
                p_value(test["p_holm"]) if test else MISSING, row["truncated"], interval(row, "kl"),
                interval(row, "nll_gold"),
            )
        )  # fmt: skip
    return lines


def contrast_line(row: dict[str, str], digits: int = 3) -> dict[str, str]:
    """One planned contrast, every number written out: paired differences, model minus reference."""
    points, nats = partial(percent, signed=True), partial(significant, digits=digits, signed=True)
    return {
        "model": title_of(row["model"]),
        "reference": title_of(row["reference"]),
        "only_model": row["only_model"],
        "only_reference": row["only_reference"],
        "p": p_value(row["p"]),
        "p_holm": p_value(row["p_holm"]),
        "accuracy": interval(row, "accuracy", points),
        "kl": interval(row, "kl", nats),
        "nll": interval(row, "nll_gold", nats),
    }


def findings(results: Results) -> list[str]:
    """What the numbers can and cannot show, in sentences."""
    return [*claims(results.contrasts), *_limits(results)]


def _limits(results: Results) -> list[str]:
    counts = sorted({int(row["n"]) for row in results.summary})
    items = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    widths = [Decimal(row["accuracy_high"]) - Decimal(row["accuracy_low"]) for row in results.summary]
    width = max(widths)
    return [
        f"With n = {items} items, the 95 % interval of an accuracy is up to {percent(width)} points wide (half-width "
        f"{percent(width / 2)}), so accuracy alone cannot rank the strategies. The p-values come from exact McNemar "
        "tests on the same items, Holm-adjusted within the comparisons with one reference; the intervals of KL and NLL "
        "differences are not adjusted for the number of comparisons.",
        "KL is measured from the unprimed teacher, token by token on the teacher's own answers to the test items: it "
        "says how close a student is to that teacher, not whether its answers are right. The unprimed teacher is the "
        "reference for every strategy, whatever prompt its signals were captured with.",
        "All intervals and p-values are over test items. They do not cover what another training seed would change.",
    ]


def claim_lines(results: Results) -> list[ClaimLine]:
    """The control, every strategy and every further seed: as published, and as measured here."""
    strategies = load_strategies()
    published = {CONTROL: PUBLISHED_CONTROL} | {name: s.published_accuracy for name, s in strategies.items()}
    titles = {CONTROL: "No distillation"} | {name: s.title for name, s in strategies.items()}
    rows = {row["model"]: row for row in results.summary}
    lines = []
    for model in [*published, *(m for m in rows if m not in published)]:
        row, stated = rows.get(model), published.get(model)
        lines.append(
            ClaimLine(
                title=row["title"] if row else titles[model],
                model=model,
                published=MISSING if stated is None else f"{stated:.2f}",
                measured=interval(row, "accuracy", percent) if row else MISSING,
                n=row["n"] if row else MISSING,
                log=relative_name(results.folder / f"{model}.csv") if row else MISSING,
            )
        )
    return lines


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a logs folder. Raises UserError if it is missing or is no JSON."""
    return read_json(Path(folder) / MANIFEST)


def claim_note(folder: Path) -> str:
    """What the two columns of the claim table are, and whether they may be compared."""
    config = read_manifest(folder).get("config", {})
    name = config.get("name", Path(folder).name)
    published = (
        "Published: as stated in the paper (Llama-3.1-405B-Instruct teaching Llama-3.1-8B-Instruct, GSM8K test set), "
        "not measured again."
    )
    if name == "paper":
        return f"{published} Measured here: profile paper, the same models and task; README.md lists the deviations."
    teacher, student = (config.get(part, {}).get("model", "unknown") for part in ("teacher", "student"))
    data = config.get("data", {}).get("source", "unknown")
    return (
        f"{published} Measured here: profile {name}, which has other models and another task or scale "
        f"({teacher} teaching {student}, items from {data}). The two columns are therefore not comparable: "
        "the right one neither confirms nor refutes the left one."
    )
