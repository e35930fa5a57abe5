"""What a question asks for, as words; and how much of that a statement of an answer speaks of."""

import re
from dataclasses import dataclass
from fractions import Fraction

from primekd.assessment.numbers import find_numbers

_WORD = re.compile(r"[a-z]+(?:'s)?")
_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?=\d)[^.!?\n]*)*[.!?\n]?")
_CONDITION = re.compile(r"\b(?:if|when|given|assuming|since|supposing|considering)\b[^,?]*,", re.IGNORECASE)
_UNIMPORTANT = """
    a an and are as at be been by can could did do does during each for from had has have he her hers him his
    how i if in into is it its itself just many me much my need of on or our per she should so than that the
    their them then there these they this those to up us use was we were what when where which who will with
    would you your calculate find determine number amount now also only both first get got make made take took
    go went say said tell
"""
_STOP = frozenset(_UNIMPORTANT.split())
# Words that tell what was asked for from the steps towards it.
_DECISIVE = """
    left remain total altogether combin sum difference more fewer less average mean percent percentage ratio
    save sav profit change old final cost spend spent earn pay paid long fast far hour minute day week month
    year second
"""


def stem(word: str) -> str:
    """A word without its commonest endings: enough for the same word to meet itself."""
    word = word.removesuffix("'s")
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word.removesuffix("e") if len(word) > 3 else word


def words(text: str) -> set[str]:
    """The stems of a text's words that carry meaning."""
    return {stem(w) for w in _WORD.findall(text.lower().replace("\u2019", "'")) if w not in _STOP}


@dataclass(frozen=True)
class Asked:
    """What is asked for: its words with their weights, and the numbers that its sentence names itself."""

    weights: dict[str, float]
    numbers: frozenset[Fraction]

    def match(self, statement: str, heading: str = "") -> float:
        """The weighted share of the words that a statement (its heading counts for less) speaks of; 0 to 1."""
        said, headed = words(statement), words(heading)
        got = sum(w * (1.0 if k in said else 0.8 if k in headed else 0.0) for k, w in self.weights.items())
        whole = sum(self.weights.values())
        return got / whole if whole else 0.0


def asked_for(question: str) -> Asked:
    """What the last question of a text asks for, conditions ("If Tom has 3, ...") left out."""
    sentences = [s.strip() for s in _SENTENCE.findall(question) if s.strip()]
    asking = [s for s in sentences if s.endswith("?")] or sentences[-1:]
    last = asking[-1] if asking else ""
    core = _CONDITION.sub(" ", last)
    stems = words(core) or words(last)
    decisive = {stem(w) for w in _DECISIVE.split()}
    return Asked({w: 2.0 if w in decisive else 1.0 for w in stems}, frozenset(n.value for n in find_numbers(last)))
