"""What rows of choices add up to: three accuracies a benchmark, beside what needs no model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from primekd.assessment.likelihood import MEASURES, ChoiceRow, deciding
from primekd.foundation.tables import Estimated, read_records, table_row
from primekd.statistics.contrasts import by_seed, compared, sides
from primekd.statistics.families import Planned
from primekd.statistics.inference import accuracy, compare_verdicts, holm_in_families
from primekd.tasks.choices import RAW


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


# (benchmark, model, accuracy, measure) as others published it; OLMo's measure was not said: the harness's is taken.
PUBLISHED = (
    ("hellaswag", "OLMo-7B", 0.7338, "acc_norm"),
    ("hellaswag", "OLMo-1B", 0.6071, "acc_norm"),
    (RAW, "GPT-2 1.5B", 0.4893, "acc_token_norm"),
    (RAW, "GPT-2 124M", 0.2955, "acc_token_norm"),
)


Chosen = Mapping[str, Sequence[ChoiceRow]]


def read_choices(folder: Path, models: Iterable[str]) -> Chosen:
    """Model -> choices/<model>.csv beside the logs. Raises UserError if one cannot be read."""
    return {model: read_records(folder / "choices" / f"{model}.csv", ChoiceRow) for model in models}


def benchmark_rows(chosen: Chosen) -> list[BenchmarkRow]:
    """A row a model and benchmark."""
    return [row for model, rows in chosen.items() for row in summarise_choices(rows, model)]


@table_row
class BenchmarkContrastRow:
    """A planned contrast on one benchmark alone, by the measure that decides there: model minus reference, as of
    `Comparison`. p_holm: adjusted over all of these tests of its family; contrasts.csv has families of its own."""

    benchmark: str
    model: str
    reference: str
    difference: Estimated
    p: float
    p_holm: float


def benchmark_contrasts(chosen: Chosen, planned: Planned, choose_by: str) -> list[BenchmarkContrastRow]:
    """The planned contrasts on every benchmark, also on HellaSwag as GPT-2's published numbers measure it."""
    found = {}
    for benchmark in dict.fromkeys(row.benchmark for rows in chosen.values() for row in rows):
        measure = deciding(benchmark, choose_by)
        own = {model: [row for row in rows if row.benchmark == benchmark] for model, rows in chosen.items()}
        verdicts = compared(by_seed({m: np.array([r.right(measure) for r in rows], float) for m, rows in own.items()}))
        groups = [row.id for row in next(iter(own.values()))]
        for pair in planned:
            found[pair, benchmark] = compare_verdicts(*sides(verdicts, *pair), groups)
    adjusted = holm_in_families({test: c.p for test, c in found.items()}, planned)
    return [BenchmarkContrastRow(t[1], *t[0], *c.effect.estimate, c.p, adjusted[t]) for t, c in found.items()]


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
