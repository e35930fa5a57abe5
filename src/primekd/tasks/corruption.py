"""Clean sentences of the project's own in several languages, and errors that are put into them.

Both are artificial: sentences are put together from the words in `sentences/<language>.json`, and errors are drawn from
the kinds that learners make. What a model does here says how well it undoes these errors, and little of human ones."""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random

from primekd.foundation.errors import UserError

NO_ERROR = 0.15  # share of sentences that stay correct: who corrects those too, over-corrects
TWO_ERRORS = 0.4
LETTERS = 5  # a word has so many before it is misspelt


@dataclass(frozen=True)
class Language:
    """What one file of `sentences/` says."""

    patterns: list[str]  # with places for the parts; `{Time}` begins with a capital
    subjects: list[tuple[str, int]]  # words, 0 for singular or 1 for plural
    verbs: list[tuple[str, str, str, str, list[str]]]  # present singular, plural, past singular, plural; objects
    places: list[str]
    times: tuple[list[str], list[str]]  # of the present, of the past
    reasons: tuple[list[str], list[str]]
    articles: dict[str, list[str]]  # each with those that are wrong in its place; '' where leaving it out is wrong
    prepositions: dict[str, list[str]]

    def other_form(self, places: int) -> dict[str, list[str]]:
        """Every verb form -> its form of the other number (1) or of the other tense (2), where the two differ."""
        pairs = ((verb[place], verb[place ^ places]) for verb in self.verbs for place in range(4))
        return {here: [other] for here, other in pairs if here != other}


@cache
def language(code: str) -> Language:
    """Raises UserError if there are no sentences in it."""
    folder = files("primekd.tasks") / "sentences"
    known = sorted(path.name.removesuffix(".json") for path in folder.iterdir() if path.name.endswith(".json"))
    if code not in known:
        raise UserError(f"There are no sentences in language {code!r}: take data.languages from {', '.join(known)}.")
    return Language(**json.loads((folder / f"{code}.json").read_text(encoding="utf-8")))


def clean_sentence(code: str, random: Random) -> str:
    words = language(code)
    past = random.randrange(2)
    subject, plural = random.choice(words.subjects)
    *forms, objects = random.choice(words.verbs)
    time = random.choice(words.times[past])
    text = random.choice(words.patterns).format(
        subject=subject, verb=forms[2 * past + plural], object=random.choice(objects),
        place=random.choice(words.places), time=time, Time=_capital(time), reason=random.choice(words.reasons[past]),
    )  # fmt: skip
    return _capital(text)


def corrupt(sentence: str, code: str, random: Random) -> tuple[str, tuple[str, ...]]:
    """The sentence with no, one or two errors of different kinds, and the kinds."""
    count = 0 if random.random() < NO_ERROR else 2 if random.random() < TWO_ERRORS else 1
    kinds = list(KINDS)
    random.shuffle(kinds)
    text, made = sentence, []
    for kind in kinds:
        wrong = KINDS[kind](text, language(code), random) if len(made) < count else None
        if wrong and wrong not in (text, sentence):
            text = wrong
            made.append(kind)
    return text, tuple(made)


def _spelling(text: str, words: Language, random: Random) -> str | None:
    """Two letters inside a word change places, or one of them is left out or doubled."""
    found = [m for m in re.finditer(r"[^\W\d_]+", text) if len(m[0]) >= LETTERS]
    if not found:
        return None
    word = random.choice(found)
    at = word.start() + random.randrange(1, len(word[0]) - 2)
    first, second = text[at : at + 2]
    wrong = random.choice([second + first, first, first + first + second])
    return text[:at] + wrong + text[at + 2 :]


def _accent(text: str, words: Language, random: Random) -> str | None:
    """One letter loses what stands above or below it."""
    return _change(text, r"[^\x00-\x7f]", lambda letter: unicodedata.normalize("NFD", letter)[0], random)


def _swap(text: str, others: dict[str, Sequence[str]], random: Random) -> str | None:
    """One of the words that others are known for in place of itself; a capital letter stays one."""
    longest_first = sorted(others, key=len, reverse=True)
    found = list(re.finditer(rf"(?<![\w'])(?:{'|'.join(map(re.escape, longest_first))})(?![\w'])", text, re.I))
    found = [match for match in found if match[0].lower() in others]
    if not found:
        return None
    match = random.choice(found)
    wrong = random.choice(list(others[match[0].lower()]))
    before, behind = text[: match.start()], text[match.end() :]
    if not wrong:
        behind = behind.lstrip(" ")
        return before + (_capital(behind) if not before else behind)
    return before + (_capital(wrong) if match[0][0].isupper() else wrong) + behind


def _change(text: str, letters: str, new: Callable[[str], str], random: Random) -> str | None:
    """One of the letters that a pattern finds and `new` changes, changed."""
    places = [found.start() for found in re.finditer(letters, text) if new(found[0]) != found[0]]
    if not places:
        return None
    at = random.choice(places)
    return text[:at] + new(text[at]) + text[at + 1 :]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


KINDS: dict[str, Callable[[str, Language, Random], str | None]] = {
    "article": lambda text, words, random: _swap(text, words.articles, random),
    "agreement": lambda text, words, random: _swap(text, words.other_form(1), random),
    "tense": lambda text, words, random: _swap(text, words.other_form(2), random),  # beside a time that stays
    "preposition": lambda text, words, random: _swap(text, words.prepositions, random),
    "spelling": _spelling,
    "punctuation": lambda text, words, random: _change(text, "[.,]", lambda mark: "", random),
    "apostrophe": lambda text, words, random: _change(text, "'", lambda mark: "", random),
    "accent": _accent,
    "capital": lambda text, words, random: _change(text, r"(?<!\w)[^\W\d_]", str.lower, random),
}
