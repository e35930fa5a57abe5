"""Answers beyond their verdicts: arithmetic that holds, words of a priming, kinds of tokens that are not learned."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from primekd.assessment.inside.reasoning import TOKEN_CLASSES, calculations, own_words, token_classes, words
from primekd.assessment.logs import LogRow
from primekd.assessment.tokens import TokenLog
from primekd.config.arm import CONTROL, TEACHER, split_seed
from primekd.foundation.tables import Estimated, MaybeEstimated, table_row
from primekd.statistics.calibration import drawn_weights, ends_of
from primekd.statistics.inference import UNKNOWN, Estimate, compare_verdicts
from primekd.tasks.clusters import cluster_of

ARITHMETIC, WORDS, CLASSES = "arithmetic.csv", "words.csv", "classes.csv"
Side = tuple[Sequence[float], Sequence[float]] | None  # of items: what is summed, and over what; None: not there


@table_row
class ArithmeticRow:
    """The calculations in a model's answers that can be worked out, and how many hold (bootstrap over answers, or what
    these share); `difference`: that share less the control's. `with_error`: answers in which one does not;
    `first_error`: where the first one stands among the answer's, from 0 to 1, the mean. `right_all_hold`: right answers
    among those whose calculations all hold."""

    model: str
    answers: int
    calculations: int
    hold: int
    share: MaybeEstimated
    difference: MaybeEstimated
    with_error: int
    first_error: float | None
    all_hold: int
    right_all_hold: int


@dataclass(frozen=True)
class WordRow:
    """Answers of a student that hold one of its teacher's `priming_words`, which `own_words` finds, and which their own
    question does not hold; how many of the control's and the reference's do, and the paired p against that, None
    without any word. `most`: the most frequent words."""

    model: str
    priming_words: int
    answers: int
    with_word: int
    control_with_word: int
    reference: str
    reference_with_word: int
    p: float | None
    most: str


@table_row
class ClassRow:
    """Tokens of one kind in so many of the teacher's own answers: KL(teacher || model) in nats a token, the same less
    the control's, and its share of all."""

    model: str
    kind: str
    answers: int
    tokens: int
    share_of_tokens: float
    kl: Estimated
    difference: MaybeEstimated
    share_of_kl: float


def arithmetic_rows(logs: Mapping[str, Sequence[LogRow]]) -> list[ArithmeticRow]:
    """A row a model; all logs have the same items."""
    found = {model: [[holds for holds in calculations(row.response) if holds is not None] for row in rows]
             for model, rows in logs.items()}  # fmt: skip
    sides = {model: ([sum(own) for own in answers], [len(own) for own in answers]) for model, answers in found.items()}
    return [_arithmetic(model, rows, found[model], sides[model], sides.get(CONTROL)) for model, rows in logs.items()]


def share_of(ids: Sequence[str], *sides: Side) -> Estimate | tuple[None, ...]:
    """Sum of totals over sum of counts, of two sides the first less the second, bootstrap over what items with any
    count share; UNKNOWN of fewer than two, and where there is no such side."""
    some = np.any([np.asarray(side[1]) > 0 for side in sides if side], 0)
    if None in sides or some.sum() < 2:
        return UNKNOWN
    weights = drawn_weights([cluster_of(item) for item, has in zip(ids, some, strict=True) if has])
    with np.errstate(invalid="ignore", divide="ignore"):
        first, *less = (np.divide(*(weights @ np.asarray(column, float)[some] for column in side)) for side in sides)
    return ends_of(first - sum(less))


def _arithmetic(model: str, rows: Sequence[LogRow], found: list[list[bool]], side: Side, base: Side) -> ArithmeticRow:
    ids, (held, counts) = [row.id for row in rows], side
    wrong = [own.index(False) / len(own) for own in found if not all(own)]
    whole = [row.correct for row, own in zip(rows, found, strict=True) if own and all(own)]
    first = float(np.mean(wrong)) if wrong else None
    return ArithmeticRow(
        model, len(rows), sum(counts), sum(held), *share_of(ids, side), *share_of(ids, side, base), len(wrong),
        first, len(whole), sum(whole),
    )  # fmt: skip


def word_rows(logs: Mapping[str, Sequence[LogRow]], primings: Mapping[str, str], reference: str) -> list[WordRow]:
    """A row for each student of a primed arm. `primings`: arm -> the text that its teacher read."""
    rows, questions = [], [row.question for row in next(iter(logs.values()), ())]
    unprimed = [row.response for row in logs.get(TEACHER, ())]
    for model, log in logs.items():
        arm = split_seed(model)[0]
        if arm not in primings or not {CONTROL, reference} <= logs.keys():
            continue
        wanted = own_words(primings[arm], questions, unprimed)
        said = {name: [words(row.response) & wanted - words(row.question) for row in logs[name]]
                for name in (model, CONTROL, reference)}  # fmt: skip
        counts = Counter(word for found in said[model] for word in found)
        both = ({"": np.array([*map(bool, said[name])], float)} for name in (model, reference))
        test = compare_verdicts(*both, [cluster_of(row.id) for row in log])
        with_word = {name: sum(map(bool, found)) for name, found in said.items()}
        ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:5]  # a set's order changes by run
        most = ", ".join(f"{word} ({count})" for word, count in ordered)
        rows.append(
            WordRow(model, len(wanted), len(log), with_word[model], with_word[CONTROL], reference,
                    with_word[reference], test.p if wanted else None, most)
        )  # fmt: skip
    return rows


def class_rows(log: TokenLog, questions: Mapping[str, str], models: Iterable[str]) -> list[ClassRow]:
    """A row for each kind of token and model that the log has; `questions`: item -> its question."""
    texts = iter([log.texts[token] for token in log.tensors["ids"].tolist()])
    found = [token_classes(list(islice(texts, n)), questions[item])
             for item, n in zip(log.items, log.lengths, strict=True)]  # fmt: skip
    places = np.array([TOKEN_CLASSES.index(kind) for own in found for kind in own])
    answers = np.repeat(np.arange(len(found)), log.lengths)
    rows, kls = [], {m: log.tensors[f"{m}.kl"].double().numpy() for m in models if m in log.models}
    for number, kind in enumerate(TOKEN_CLASSES):
        inside = places == number
        counts = np.bincount(answers[inside], None, len(found))
        sides = {model: (np.bincount(answers[inside], kl[inside], len(found)), counts) for model, kl in kls.items()}
        size = len(found), int(inside.sum()), float(inside.mean())
        for model, side in sides.items():
            if (share := share_of(log.items, side)) != UNKNOWN:
                ends = *share, *share_of(log.items, side, sides.get(CONTROL))
                rows.append(ClassRow(model, kind, *size, *ends, float(side[0].sum() / kls[model].sum())))
    return rows
