"""Grammatical error correction: a sentence with errors is asked, the corrected sentence is the answer.

Gold sentences are there to judge by. A teacher and the students that learn from it see none of the training side.

Source of the hub's set: juancavallotti/multilingual-gec (Apache-2.0)."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from random import Random

from py3langid.langid import MODEL_FILE, LanguageIdentifier
from rapidfuzz.distance import Levenshtein

from primekd.config import DataConfig
from primekd.foundation import UserError, project_root
from primekd.tasks.corruption import clean_sentence, corrupt
from primekd.tasks.gec_corpora import read_m2, read_ua_gec
from primekd.tasks.protocol import Item, Judgement, Message, Reader, Task
from primekd.tasks.rows import require_fields, rows_of_data, text_of
from primekd.tasks.splits import BUCKETS, bucket_of, side_of, take

PREFIX = "fix grammar: "  # what the hub's set writes before every sentence
ASKED = "Correct the errors in this sentence. Answer with the corrected sentence alone."
LABEL = re.compile(r"(?:corrected|correct|correction|corrected sentence|answer|output)\s*:\s*", re.I)
QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'", "`": "`"}
TAG = re.compile(
    r"<\|[^<>|]*\|>|</?s>|<(?:unk|pad|bos|eos)>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<[|\uff5c][^<>]*[|\uff5c]>"
)
LONGER, MORE = 1.5, 20  # an answer may be so many times as long as the sentence, and so many letters longer
MARKS = re.compile(r'[:()\[\]*→"“”„«»]')  # of which an answer that talks about the sentence has more than that
ALIKE = 0.5  # similarity of an answer to what was asked, at least
SURE = 0.7  # probability of a language from which on it counts as known
TRIES = 300  # draws without a new sentence, after which a language holds no more


class Correction(Item):
    """An item whose question is the sentence alone; what to do with it is said before it."""

    @property
    def messages(self) -> list[Message]:
        return [{"role": "user", "content": f"{ASKED}\n\n{self.question}"}]


class Grammar(Task):
    """Sentences with errors, in several languages; an item's id begins with its language."""

    gold_only_judges = True

    def items(self, data: DataConfig, split: str, count: int, seed: int) -> list[Item]:
        """Of the source that the profile names; the project's own sentences are drawn from `seed`."""
        if data.source == "sentences":
            return generate(data.languages, split, count, seed)
        return take(corpus(data, side_of(split)), data, split, count)

    def judge(self, item: Item, response: str, read: Reader) -> Judgement:
        """Right is the gold sentence after `clean_answer`, letter by letter; `similarity`: of both, by letters."""
        start, end, rule = clean_answer(response, item.question)
        if start == end:
            return Judgement(None, "empty", None, False, {"similarity": 0.0})
        answer = plain(response[start:end])
        gold = plain(str(item.answer))
        return Judgement(answer, rule, (start, end), answer == gold, {"similarity": similarity(answer, gold)})

    def unfit(self, question: str, response: str, truncated: bool) -> str:
        """The reasons: cut off, empty, chatty (more than the sentence, as students learn all of a response: a label,
        quotes, a further line, MARKS that the sentence has not), too long, another language, and another sentence (it
        has too few of the letters in common: an answer to what the sentence says)."""
        start, end, _ = clean_answer(response, question)
        answer, asked = plain(response[start:end]), plain(question)
        more = Counter(MARKS.findall(answer)) - Counter(MARKS.findall(asked))
        reasons = {
            "cut off": truncated,
            "empty": not answer,
            "chatty": response.strip() != response[start:end] or bool(more),
            "too long": len(answer) > LONGER * len(asked) + MORE,
            "another language": bool(answer) and speaks_otherwise(asked, answer),
            "another sentence": similarity(answer, asked) < ALIKE,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def cluster(self, item_id: str) -> str:
        """Of UA-GEC the document: its sentences have one writer."""
        document = re.fullmatch(r"(uk-(?:train|test)-[0-9]{4})-[0-9]+", item_id)
        return document[1] if document else item_id

    def parse(self, text: str) -> str:
        return plain(super().parse(text))


def corpus(data: DataConfig, side: str) -> list[Item]:
    """The usable sentences of one side of a corpus, in order: in the languages that the profile names, each once,
    without a chat template's tags, and on the training side none that stands on the test side, with errors or without
    (one clean sentence may have been given other errors there); the rest is counted."""
    items = _read(data, side)
    others = _read(data, "test") if side == "train" else ()
    tested = {text for item in others for text in (plain(item.question), str(item.answer))}
    taken, kept, left = set[str](), [], Counter[str]()
    for item in items:
        sentence = plain(item.question)
        reasons = {
            "in another language": language_of(item.id) not in data.languages,
            "with a tag of a chat template": TAG.search(item.question + item.solution),
            "twice": sentence in taken,
            "on the test side": not tested.isdisjoint((sentence, str(item.answer))),
        }
        if reason := next((reason for reason, holds in reasons.items() if holds), ""):
            left[reason] += 1
        else:
            kept.append(item)
            taken.add(sentence)
    if left:
        said = ", ".join(f"{count} {reason}" for reason, count in left.items())
        print(f"{data.source}, {side}: {left.total()} of {len(items)} sentences left out: {said}.", file=sys.stderr)
    return kept


@cache
def _read(data: DataConfig, side: str) -> tuple[Item, ...]:
    if data.source == "m2":
        pairs = read_m2(project_root() / getattr(data, f"{side}_file"))
        rows = [(f"{data.languages[0]}-{side}-{n}", *pair) for n, pair in enumerate(pairs)]
    elif data.source == "ua-gec":
        rows = [(f"uk-{side}-{name}", *pair) for name, *pair in read_ua_gec(side)]
    else:
        return tuple(rows_of_data(data, side, item_of_row))
    return tuple(Correction(name, wrong, gold, plain(gold)) for name, wrong, gold in rows)


def plain(text: str) -> str:
    """As sentences are compared: composed letters, single spaces, straight apostrophes."""
    return " ".join(unicodedata.normalize("NFC", text).replace("’", "'").split())


def clean_answer(response: str, sentence: str) -> tuple[int, int, str]:
    """Where in a response the corrected sentence stands: (start, end, rule); start == end where there is none.

    The first line that is not empty; a label before it (`Corrected:`) or quotes count only if the sentence has them."""
    start = len(response) - len(response.lstrip())
    end = start + len(response[start:].split("\n")[0].rstrip())
    rule = "whole" if not response[end:].strip() else "first-line"
    label = LABEL.match(response, start, end)
    if label and not LABEL.match(sentence):
        start, rule = label.end(), "labelled"
    closing = QUOTES.get(response[start : start + 1])
    quoted = closing and end - start > 1 and response[end - 1] == closing
    if quoted and not sentence.startswith(response[start]):
        start, end, rule = start + 1, end - 1, "quoted"
    return start, end, rule


def similarity(one: str, other: str) -> float:
    """1 minus Levenshtein's distance by characters, as a share of the longer text; 1 where both are empty."""
    return Levenshtein.normalized_similarity(one, other)


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def speaks_otherwise(one: str, other: str) -> bool:
    """Whether two texts are in different languages, as far as both are known for certain (py3langid)."""
    (first, p), (second, q) = map(_identifier().classify, (one, other))
    return first != second and min(p, q) > SURE


def language_of(item_id: str) -> str:
    """The language that an item's id begins with."""
    return item_id.split("-")[0]


def generate(languages: Sequence[str], split: str, count: int, seed: int) -> list[Item]:
    """`count` items in turn of the languages, of different sentences. UserError if one is unknown, or holds too few."""
    found: dict[str, Item] = {}
    draws = {code: _drawn(code, split, seed) for code in languages}
    while len(found) < count:
        code = languages[len(found) % len(languages)]
        item = next((item for item in islice(draws[code], TRIES) if str(item.answer) not in found), None)
        if item is None:
            wanted = f"{count} items of the split {split!r}: ask for fewer in data, or name more languages"
            raise UserError(f"The language {code} holds too few sentences for {wanted}.")
        found[str(item.answer)] = item
    return list(found.values())


def _drawn(code: str, split: str, seed: int) -> Iterator[Item]:
    """Sentences of one split, without end; which split a sentence is in follows from its clean text alone."""
    random, number = Random(f"{code}/{split}/{seed}"), 0
    while True:
        gold = clean_sentence(code, random)
        wrong, _ = corrupt(gold, code, random)
        if bucket_of(gold) in BUCKETS[split]:
            yield Correction(f"{code}-{split}-{number}", wrong, gold, plain(gold))
            number += 1


def item_of_row(row: dict, where: str, default_id: str) -> Item:
    """One row of the hub's set, or of a file like it: `modified`, `sentence` and `lang`; an `id` if it has one. Raises
    UserError, which begins with `where`, if one of them is missing or empty."""
    fields = {name: text_of(row.get(name)) for name in ("modified", "sentence", "lang")}
    require_fields(fields, where)
    if not re.fullmatch(r"[a-z]{2,3}", code := fields["lang"]):
        raise UserError(f"{where}: the language {code!r} is no code of two or three letters, such as en.")
    wrong = " ".join(fields["modified"].removeprefix(PREFIX.strip()).split())
    gold = " ".join(fields["sentence"].split())
    return Correction(f"{code}-{text_of(row.get('id')) or default_id}", wrong, gold, plain(gold))


TASK = Grammar()
