"""ERRANT's precision, recall and F0.5 of English corrections (errant.csv), where it is installed with a spaCy model.

Source: Bryant, Felice and Briscoe, "Automatic Annotation and Evaluation of Error Types for Grammatical Error
Correction", ACL 2017. Span-based correction, as `errant_compare` counts it by default.
"""

import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from primekd.assessment.logs import LogRow
from primekd.statistics.corrections import f_score
from primekd.tasks.grammar import language_of, plain

FILE = "errant.csv"
MODEL = "en_core_web_sm"  # the one that errant's own commands load; no package index carries it
UNKNOWN = "UNK"  # a detected error without a correction: not counted


@dataclass(frozen=True)
class ErrantRow:
    """A model's English corrections. `right`, `wrong`, `missing`: edits. `errant`, `spacy_model`: their versions."""

    model: str
    n: int
    right: int
    wrong: int
    missing: int
    precision: float
    recall: float
    f05: float
    errant: str
    spacy_model: str


def why_not() -> str:
    """What is missing for it, in a sentence; empty where nothing is."""
    if importlib.util.find_spec("errant") is None:
        return "ERRANT's measure of English was not taken: errant is not installed (pip install 'primekd[errant]')."
    import spacy

    if not spacy.util.is_package(MODEL):
        return f"ERRANT's measure of English was not taken: the spaCy model {MODEL} is not installed."
    return ""


def errant_rows(logs: Mapping[str, list[LogRow]]) -> list[ErrantRow]:
    """A row a model. Raises ImportError where `why_not` says something."""
    import errant

    annotator, version = errant.load("en"), importlib.metadata.version("errant")
    spacy_model = f"{MODEL} {annotator.nlp.meta.get('version', '')}".strip()
    return [row_of(model, log, annotator, version, spacy_model) for model, log in logs.items()]


def row_of(model: str, log: Iterable[LogRow], annotator, version: str, spacy_model: str) -> ErrantRow:
    """The English sentences of one log, with an annotator of errant's."""
    rows, counts = [row for row in log if language_of(row.id) == "en"], Counter()
    for row in rows:
        answer = "" if row.extracted == "-1" else row.extracted
        counts.update(count_edits(annotator, plain(row.question), answer, plain(row.gold)))
    sums = [counts[key] for key in ("right", "wrong", "missing")]
    return ErrantRow(model, len(rows), *sums, *f_score(sums), version, spacy_model)


def count_edits(annotator, source: str, answer: str, gold: str) -> dict[str, int]:
    """right, wrong and missing edits of one answer; edits at one span that are alike count each, as in errant."""
    parsed = annotator.parse(source, tokenise=True)
    made, wanted = (_edits(annotator, parsed, text) for text in (answer, gold))
    return {
        "right": sum(count for edit, count in wanted.items() if edit in made),
        "wrong": sum(count for edit, count in made.items() if edit not in wanted),
        "missing": sum(count for edit, count in wanted.items() if edit not in made),
    }


def _edits(annotator, source, target: str) -> Counter:
    """(start, end, words) -> how often."""
    if source.text.strip() == target:
        return Counter()
    found = annotator.annotate(source, annotator.parse(target, tokenise=True))
    return Counter((edit.o_start, edit.o_end, edit.c_str) for edit in found if edit.type != UNKNOWN)
