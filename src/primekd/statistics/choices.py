"""What rows of choices add up to: three accuracies a benchmark, beside what needs no model."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from primekd.assessment.likelihood import MEASURES, ChoiceRow, read_choices
from primekd.statistics.inference import accuracy


@dataclass(frozen=True)
class BenchmarkRow:
    """A benchmark under one model; accuracies are shares with Wilson's 95 % interval.

    acc: the most likely choice; acc_norm: the most likely a character; acc_token_norm: a token (assessment.likelihood).
    majority: the share of these items' most frequent label; chance: that of a guess.
    """

    benchmark: str
    n: int
    acc: float
    acc_low: float
    acc_high: float
    acc_norm: float
    acc_norm_low: float
    acc_norm_high: float
    acc_token_norm: float
    acc_token_norm_low: float
    acc_token_norm_high: float
    majority: float
    chance: float
    model: str = ""


@dataclass(frozen=True)
class PublishedChoice:
    """An accuracy as others published it; nothing of it was measured here.

    GPT-2's are build-nanogpt's acc_norm, a mean a token on texts without clean-up; OLMo's measure is not said.
    """

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
    """A row for each model and benchmark, from choices/<model>.csv beside a profile's logs. Raises UserError if one
    cannot be read."""
    read = {model: read_choices(folder / "choices" / f"{model}.csv") for model in models}
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
