"""Completions of facts as they are shown: beside what cannot be right, and what was published."""

from dataclasses import replace
from pathlib import Path

from primekd.assessment.completions import OTHERS, RANDOM
from primekd.assessment.similarity import EMBEDDER
from primekd.report.cells import Name, Table, table_of
from primekd.report.formats import between, p_value, percent, written
from primekd.report.results import read_optional
from primekd.statistics.facts import FactContrastRow, FactRow
from primekd.statistics.families import title_of
from primekd.studies.results import FACT_CONTRASTS, FACTS

FLOORS = {OTHERS: "Right answers to other questions", RANDOM: "Words of the questions at random"}
# DistilLlama's own table (ROUGE-L: which of precision and recall, and against what, is not said).
PUBLISHED = (("Llama-2-7B", 0.715, 0.7257, 0.0821), ("DistilLlama 80M", 0.02, 0.6623, 0.0115),
             ("baby-llama-58m", 0.025, 0.6556, 0.0097))  # fmt: skip
NOTE = (
    "Right: an accepted keyword stands in the completion, as a whole word. Cosine: of the whole sentence with the "
    f"right one, embeddings of {EMBEDDER}; it hardly tells good from bad, so beside it stands what share it reaches of "
    "the way from right answers to other questions (0) to the right answer (100). ROUGE-L: of the completion against "
    "the keyword. Perplexity of held-out documents and KL to the teacher, nats a token. Intervals: Wilson's, else "
    "bootstrap over sentences or documents. Published rows: other queries, other hardware, for orientation."
)
TESTED = (
    "Model minus reference on the same sentences; p is adjusted over all of these tests of its family. Right answers, "
    "KL and the loss on documents are tested among the planned contrasts."
)
MEASURES = {"cosine": "Cosine", "rouge_precision": "ROUGE-L precision", "rouge_recall": "ROUGE-L recall"}


def fact_table(folder: Path) -> Table:
    """A row a model, then the floors, then what was published; no rows in other studies."""
    found = read_optional(Path(folder) / FACTS, FactRow)
    columns = {
        "Model": lambda row: FLOORS.get(row["model"]) or Name(title_of(row["model"]), row["model"]),
        "Right, % [95 %]": between("accuracy", percent), "Cosine [95 %]": between("cosine", _three),
        "Reached, %": written("reached", percent),
        **{f"{MEASURES[key]} [95 %]": between(key, _three) for key in ("rouge_precision", "rouge_recall")},
        "Perplexity [95 %]": between("perplexity"), "KL [95 %]": between("kl"),
    }  # fmt: skip
    published = [
        [f"{name} (published)", percent(right), _three(cosine), "", _three(rouge), "", "", ""]
        for name, right, cosine, rouge in PUBLISHED
    ]
    table = table_of("Facts", found, columns, notes=(NOTE,))
    return replace(table, rows=table.rows + published) if found else table


def fact_contrast_table(folder: Path) -> Table:
    """The planned contrasts in likeness to the right sentences; no rows in other studies."""
    columns = {
        "Model": written("model", title_of), "Against": written("reference", title_of),
        "Measure": written("measure", MEASURES.get), "Difference [95 %]": between("difference", _signed),
        "p": written("p", p_value), "p (Holm)": written("p_holm", p_value),
    }  # fmt: skip
    found = read_optional(Path(folder) / FACT_CONTRASTS, FactContrastRow)
    return table_of("Likeness to the right sentences", found, columns, left=3, notes=(TESTED,))


def _three(value: str | float) -> str:
    return f"{float(value):.3f}"


def _signed(value: str) -> str:
    return f"{float(value):+.3f}"
