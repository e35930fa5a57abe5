"""Clean sentences of the project's own in several languages, and errors that are put into them.

Both are artificial: sentences are put together from the words in `sentences/<language>.json`, and errors are drawn from
the kinds that learners make. What a model does here says how well it undoes these errors, and little of human ones.
"""

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
    """What one file of `sentences/` says.

    Attributes:
        patterns: sentences with places for the parts; `{Time}` begins with a capital.
        subjects: (words, 0 for singular or 1 for plural).
        verbs: present singular and plural, past singular and plural, and the objects that go with it.
        times, reasons: those of the present, then those of the past.
        articles, prepositions: each with those that are wrong in its place; '' where leaving it out is wrong.
    """

    patterns: list[str]
    subjects: list[tuple[str, int]]
    verbs: list[tuple[str, str, str, str, list[str]]]
    places: list[str]
    times: tuple[list[str], list[str]]
    reasons: tuple[list[str], list[str]]
    articles: dict[str, list[str]]
    prepositions: dict[str, list[str]]

    def other_form(self, of: Callable[[int], int]) -> dict[str, str]:
        """Every verb form -> its form at another place of the four, where the two differ."""
        pairs = ((verb[place], verb[of(place)]) for verb in self.verbs for place in range(4))
        return {here: other for here, other in pairs if here != other}


@cache
def language(code: str) -> Language:
    """Raises UserError if there are no sentences in it."""
    folder = files("primekd.tasks") / "sentences"
    known = sorted(path.name.removesuffix(".json") for path in folder.iterdir() if path.name.endswith(".json"))
    if code not in known:
        raise UserError(
            f"There are no sentences in the language {code!r}: take data.languages from {', '.join(known)}."
        )
    return Language(**json.loads((folder / f"{code}.json").read_text(encoding="utf-8")))


def clean_sentence(code: str, random: Random) -> str:
    """One correct sentence."""
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


def _article(text: str, words: Language, random: Random) -> str | None:
    return _swap(text, words.articles, random)


def _preposition(text: str, words: Language, random: Random) -> str | None:
    return _swap(text, words.prepositions, random)


def _agreement(text: str, words: Language, random: Random) -> str | None:
    """Singular for plural, or the other way round."""
    return _swap(text, {form: [other] for form, other in words.other_form(lambda place: place ^ 1).items()}, random)


def _tense(text: str, words: Language, random: Random) -> str | None:
    """Present for past beside a time of the past, or the other way round."""
    return _swap(text, {form: [other] for form, other in words.other_form(lambda place: place ^ 2).items()}, random)


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


def _punctuation(text: str, words: Language, random: Random) -> str | None:
    return _without(text, ".,", random)


def _apostrophe(text: str, words: Language, random: Random) -> str | None:
    return _without(text, "'", random)


def _accent(text: str, words: Language, random: Random) -> str | None:
    """One letter loses what stands above or below it."""
    places = [i for i, letter in enumerate(text) if len(unicodedata.normalize("NFD", letter)) > 1]
    if not places:
        return None
    at = random.choice(places)
    return text[:at] + unicodedata.normalize("NFD", text[at])[0] + text[at + 1 :]


def _capital_lost(text: str, words: Language, random: Random) -> str | None:
    """A word that begins with a capital letter loses it."""
    at = random.choice([m.start() for m in re.finditer(r"(?<!\w)[^\W\d_]", text) if m[0].isupper()] or [-1])
    return None if at < 0 else text[:at] + text[at].lower() + text[at + 1 :]


KINDS: dict[str, Callable[[str, Language, Random], str | None]] = {
    "article": _article, "agreement": _agreement, "tense": _tense, "preposition": _preposition, "spelling": _spelling,
    "punctuation": _punctuation, "apostrophe": _apostrophe, "accent": _accent, "capital": _capital_lost,
}  # fmt: skip


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


def _without(text: str, marks: str, random: Random) -> str | None:
    places = [i for i, letter in enumerate(text) if letter in marks]
    if not places:
        return None
    at = random.choice(places)
    return text[:at] + text[at + 1 :]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
