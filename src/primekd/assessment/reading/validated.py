"""Run-on-aware rules: read an answer from its start and stop where the answer to this question ends.

Most logged answers go on after they are finished: they repeat themselves, make up options or take up another question
until their limit. In this order:

1. declared    the first "the answer is ...", \\boxed{}, "#### ..." or "... is the answer"
2. corrected   a later declaration that openly corrects it, before another question begins
3. leading     a bare value with which the answer starts, if no worked solution behind it declares another
4. concluded   the value in which an answer ends that ended by itself, before another question
5. none        no value for this question; a person may have to look

What a cut answer does not declare is left out: guesses at unannounced results were right half the time
(docs/extraction.md)."""

import re
from fractions import Fraction

from primekd.assessment.reading.concluded import concluded
from primekd.assessment.reading.declared import Declaration, declarations, moved
from primekd.assessment.reading.ending import is_cut
from primekd.assessment.reading.numbers import Extraction, Number, find_numbers, nothing, reading

RULES = ("declared", "corrected", "leading", "concluded", "none")
LONGEST = 20_000  # characters; what was asked is answered by then
EARLY = 50  # characters; a declaration before that, ahead of any work, is an opening value like a bare number

_CORRECTS = re.compile(
    r"\b(?:wait|mistake|incorrect|wrong|not correct|cannot be correct|error|closest|nearest|"
    r"should (?:be|have been)|re-?\s?(?:calculat|check|evaluat|consider|comput|exam|assess)\w*|redo|instead|"
    r"apologi[sz]e|sorry|actually|not (?:in|among|listed|one of|an option|there|here|present|available|"
    r"a (?:choice|whole))|round(?:ed|ing)?)\b",
    re.IGNORECASE,
)
_ANOTHER_QUESTION = re.compile(
    r"(?:^|\n)\W*(?:question|problem|exercise|example|quiz|q)\s*(?:[:#.]|\d)|\?\s|\?$|#\s*(?:problem|question)\b|"
    r"(?:^|\n)#\d",
    re.IGNORECASE,
)
_RESTATED = re.compile(r"\s*(?:(?:question|problem|q)\s*[:.]\s*)?(?:[^\n]*\?[ \t]*\n)?", re.IGNORECASE)
_WORK = re.compile(
    r"(?:^|\n|(?<=[.\s]))\W{0,4}step\s*\d+|let's (?:begin|start|first|denote|calculate|find)", re.IGNORECASE
)
# Of a value that starts an answer: what may stand before and behind it.
_BARE_START = re.compile(r"^[\s?]*(?:#+\s|\*+)?\s*")
_UNIT = r"(?:\s*(?:%|°[CF]?|[A-Za-z/²³\u2019']++)){0,4}?"  # possessive, so that a long word is read once
_VALUE_ENDS = re.compile(
    rf"{_UNIT}[$*)\\]*\s*(?:[.;!](?=\s|$|0)|\s{{2,}}|$)|[$)]\s|\s+\$?[A-Z][\w']+ |\s+\$"
)  # a unit and the end of a sentence, of a line or of a formula; or another sentence without one
_GOES_ON = re.compile(  # a sum, or a sentence in which the number is a part
    r"[$)\s]*[-+*/=\u00d7x\u00f7\\]\s*[\d$(c]|[^.\n]*\b(?:less|more|fewer) than\b|\W{0,3}of\s|[a-z]*\.jpg|%? of "
)
_RUN_OF_VALUES = re.compile(r"(?:[$\s(]*[\d,]+(?:\.\d+)?[\s$.,)]*)+")
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"[ \u00a0]+({'|'.join(SCALES)})\b(?!-)", re.IGNORECASE)
# "How many million people", "in thousands of dollars": there the value is meant without the word.
_ASKS_SCALED = re.compile(rf"\b(?:how many|how much|in)\s+(?:more\s+)?(?:{'|'.join(SCALES)})s?\b", re.IGNORECASE)
MOST_VALUES = 3  # in a run of bare numbers; more say nothing for any of them


def by_validated_rules(text: str, question: str | None, truncated: bool | None) -> Extraction:
    """Reads one answer. `question`: "the answer is 50 miles in 7 hours" is 50 where that names the 7 hours.
    `truncated`: whether the answer ran into the limit of new tokens; if nobody knows, it ended if it ends like one."""
    truncated = True if len(text) > LONGEST else truncated
    text, cut = text[:LONGEST], bool(truncated)
    said = declarations(text, _numbers_asked(question or ""), cut)
    opening, rule = _opening(text, said, cut)
    if not _ASKS_SCALED.search(question or ""):
        said = [_scaled(text, one) for one in said]
        opening = opening and _scaled(text, opening)
    if opening is None:
        return _settle(text, said[0], said, "declared") if said else _conclude(text, truncated, question or "")
    rest = text[opening.end :]
    work = _WORK.search(rest)
    if not work or _ANOTHER_QUESTION.search(rest[: work.start()]):
        return _settle(text, opening, said, rule)
    later = [d for d in said if d.start > opening.end + work.start()]
    if later:
        return _settle(text, later[0], later, "declared")
    if rule == "leading" and _is_stub(text, opening.number):
        return nothing(ambiguous=True)
    return reading(opening.number, rule, ambiguous=True)


def _scaled(text: str, said: Declaration) -> Declaration:
    """A value with the word behind it that multiplies it: 1.5 million."""
    word = _SCALE.match(text, said.end)
    if not word:
        return said
    number = Number(said.number.value * SCALES[word[1].lower()], said.number.start, word.end())
    return Declaration(said.start, number)


def _conclude(text: str, truncated: bool | None, question: str) -> Extraction:
    """The value in which an answer ends; none where it was cut or went on to another question."""
    own = _RESTATED.match(text).end()  # a question that it repeats first is its own
    if truncated or _ANOTHER_QUESTION.search(text, own):
        return nothing()
    number, doubt = concluded(text, truncated is False, not is_cut(text))
    if number and not _ASKS_SCALED.search(question):
        number = _scaled(text, Declaration(number.start, number)).number
    return reading(number, "concluded", ambiguous=doubt) if number else nothing()


def _numbers_asked(question: str) -> frozenset[Fraction]:
    """The numbers that a question's last sentence names."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", question.strip()) if s]
    return frozenset(n.value for n in find_numbers(sentences[-1])) if sentences else frozenset()


def _opening(text: str, said: list[Declaration], cut: bool) -> tuple[Declaration | None, str]:
    """A value that is given ahead of any work, and the rule that reads it."""
    if (number := leading(text)) and not (cut and number.end >= len(text)):
        return Declaration(number.start, number), "leading"
    if said and said[0].start < EARLY and "=" not in text[: said[0].start] and not _WORK.search(text[: said[0].start]):
        return said[0], "declared"
    return None, ""


def _is_stub(text: str, number: Number) -> bool:
    """Whether a value is a lone digit on a line ahead of steps: as often the mark of a step as an answer."""
    written = text[number.start : number.end].lstrip("-")
    return len(written) == 1 and bool(re.match(r"\.?\s*\n", text[number.end :]))


def _settle(text: str, first: Declaration, said: list[Declaration], rule: str) -> Extraction:
    """The first declared value, or the last of those that openly correct it before another question begins."""
    number, value, end, corrected = first.number, first.number.value, first.end, False
    for later in said:
        if later.start < end:
            continue
        between = text[end : later.start]
        if _ANOTHER_QUESTION.search(between):
            break
        if later.number.value == value:
            end = later.end
        elif _CORRECTS.search(between):
            number, value, end, corrected = later.number, later.number.value, later.end, True
        else:
            break
    return reading(number, "corrected" if corrected else rule)


def leading(text: str) -> Number | None:
    """The value that an answer starts with; None for marks of a list, sums, sentences and counting."""
    at = _BARE_START.match(text).end()
    line = text[at:].split("\n", 1)[0]
    numbers = [moved(n, -at) for n in find_numbers(text, at, at + len(line))]
    if not numbers or not re.fullmatch(r"[\s$*(\\]*", line[: numbers[0].start]):
        return None
    number = numbers[0]
    after = line[number.end :]
    if _GOES_ON.match(after) or _marks_a_list(number, after, text[at:]):
        return None
    run = _RUN_OF_VALUES.match(line)
    if run and len({n.value for n in find_numbers(run[0])}) > MOST_VALUES:
        return None
    repeated = len(numbers) > 1 and numbers[1].value == number.value
    if repeated and not re.search(r"\w", line[number.end : numbers[1].start]):
        counting = number.value <= 9 and len(numbers) > 18 and "." not in after[:3]  # "2 2 2 2 2 2 2 ..."
        return None if counting else moved(number, at)
    return moved(number, at) if _VALUE_ENDS.match(after) else None


def _marks_a_list(number: Number, after: str, text: str) -> bool:
    """Whether the number is the mark of a list or of an exercise: "1. Tom has", "2) 40 3) 50", "2. What is ...?"."""
    if number.value.denominator != 1 or not 0 <= number.value <= 9 or not re.match(r"[.):]\s", after):
        return False
    following = re.search(rf"(?:^|\s){number.value + 1}[.):]\s", text)
    return bool(following) or number.value == 1 or bool(re.match(r"[.):]\s[^\s$\d][^.!]*\?", after))
