"""Completions of facts as they are shown: beside what cannot be right, and what was published."""

from pathlib import Path

from primekd.assessment.completions import OTHERS, RANDOM
from primekd.assessment.similarity import EMBEDDER
from primekd.report.cells import Cell, Name, Table
from primekd.report.formats import MISSING, interval, percent, significant
from primekd.report.results import read_optional
from primekd.statistics.facts import FactRow
from primekd.statistics.families import title_of
from primekd.studies.results import FACTS

FLOORS = {OTHERS: "Right answers to other questions", RANDOM: "Words of the questions at random"}
# DistilLlama's own table (ROUGE-L: which of precision and recall, and against what, is not said).
PUBLISHED = (("Llama-2-7B", 0.715, 0.7257, 0.0821), ("DistilLlama 80M", 0.02, 0.6623, 0.0115),
             ("baby-llama-58m", 0.025, 0.6556, 0.0097))  # fmt: skip
NOTE = (
    "Right: an accepted keyword stands in the completion, as a whole word. Cosine: of the whole sentence with the "
    f"right one, embeddings of {EMBEDDER}; it hardly tells good from bad, so beside it stands what share it reaches of "
    "the way from right answers to other questions (0) to the right answer (100). ROUGE-L: of the completion against "
    "the keyword. Perplexity of held-out documents and KL to the teacher, nats a token. Published rows: other queries, "
    "other hardware, for orientation."
)


def fact_table(folder: Path) -> Table:
    """A row a model, then the floors, then what was published; no rows in other studies."""
    head = [
        "Model",
        "Right, % [95 %]",
        "Cosine [95 %]",
        "Reached, %",
        "ROUGE-L precision",
        "recall",
        "Perplexity",
        "KL",
    ]
    return table_of(read_optional(Path(folder) / FACTS, FactRow), head)


def table_of(found: list[dict[str, str]], head: list[str]) -> Table:
    rows: list[list[Cell]] = [
        [FLOORS.get(row["model"]) or Name(title_of(row["model"]), row["model"]), interval(row, "accuracy", percent),
         interval(row, "cosine", _three), percent(row["reached"]), _three(row["rouge_precision"]),
         _three(row["rouge_recall"]), *(significant(row[key]) if row[key] else MISSING for key in ("perplexity", "kl"))]
        for row in found
    ]  # fmt: skip
    if rows:
        rows += [
            [f"{name} (published)", percent(right), _three(cosine), "", "", _three(rouge), "", ""]
            for name, right, cosine, rouge in PUBLISHED
        ]
    return Table("Facts", head, rows, notes=(NOTE,))


def _three(value: str | float) -> str:
    return f"{float(value):.3f}"
