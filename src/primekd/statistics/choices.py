"""What rows of choices add up to: three accuracies a benchmark, beside what needs no model."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from primekd.assessment.likelihood import MEASURES, ChoiceRow
from primekd.foundation.tables import Estimated, read_records, table_row
from primekd.statistics.inference import accuracy


@table_row
class BenchmarkRow:
    """Shares with Wilson's 95 % interval: the most likely choice (`acc`), a character (`acc_norm`), a token.
    `majority`: of these items' most frequent label; `chance`: of a guess."""

    benchmark: str
    n: int
    acc: Estimated
    acc_norm: Estimated
    acc_token_norm: Estimated
    majority: float
    chance: float
    model: str = ""


@dataclass(frozen=True)
class PublishedChoice:
    """As others published it: GPT-2's is a mean a token, without clean-up; OLMo's measure is not said."""

    benchmark: str
    model: str
    accuracy: float


PUBLISHED = (
    PublishedChoice("hellaswag", "OLMo-7B", 0.7338),
    PublishedChoice("hellaswag", "OLMo-1B", 0.6071),
    PublishedChoice("hellaswag", "GPT-2 1.5B", 0.4893),
    PublishedChoice("hellaswag", "GPT-2 124M", 0.2955),
)


def benchmark_rows(folder: Path, models: Iterable[str]) -> list[BenchmarkRow]:
    """A row a model and benchmark, from choices/<model>.csv beside the logs. Raises UserError if one cannot be read."""
    read = {model: read_records(folder / "choices" / f"{model}.csv", ChoiceRow) for model in models}
    return [row for model, rows in read.items() for row in summarise_choices(rows, model)]


def summarise_choices(rows: Sequence[ChoiceRow], model: str = "") -> list[BenchmarkRow]:
    """A row a benchmark, in the order in which they come first."""
    found = []
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        own = [row for row in rows if row.benchmark == benchmark]
        shares = [part for measure in MEASURES for part in accuracy([row.right(measure) for row in own])]
        majority = Counter(row.label for row in own).most_common(1)[0][1] / len(own)
        chance = sum(1 / len(row.tokens) for row in own) / len(own)
        found.append(BenchmarkRow(benchmark, len(own), *shares, majority, chance, model))
    return found
