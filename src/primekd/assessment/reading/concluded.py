"""The value in which an answer ends that announces none: "... She makes $29.00." """

import re
from collections.abc import Iterator

from primekd.assessment.reading.numbers import Number, find_numbers

CLOSING_SENTENCES = 2  # without a number, behind the one that gives the value: "I hope this helps!"
MOST_WORDS = 4  # behind a value at the end of a text that nothing closes: units, "in all"
LONGEST_OPEN = 400  # characters of such a text; longer ones nearly always ran into a limit
RUN = 20  # characters at the end of a text that stand in it three times: it repeats itself
MOST_NUMBERS = 6  # in the last characters of a text; more are counting

_BREAK = re.compile(r"(?<=[.!?\u0964\u06d4])(?<!\b[A-Z][a-z]\.)(?<!approx\.)[ \t]+|\n+|(?<=\u3002)")  # not in "Rs. 500"
_STEP = r"(?:step|part|phase|stage|section)\s*(?:no\.?|number|#)?\s*"
_MARK = re.compile(r"[^\w\n]*\Z")
_STEP_MARK = re.compile(rf".*\b{_STEP}\Z", re.IGNORECASE)
_AFTER_MARK = re.compile(r"[*_]*[.):\]][*_)]*[ \t]+[^\s*_]")
_HEADING = re.compile(
    rf"\s*#+\s*(?:{_STEP})?[0-9]{{1,2}}[.):\s*][^=\n]*$|\s*\*\*(?:{_STEP})?[0-9]{{1,2}}[.):\s][^=*\n]+\*\*\W*$"
    rf"|\W*{_STEP}[0-9]{{1,2}}\W*$|\W*[A-H][.)]\s",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"[=\u2248\u2192\u21d2\u27f9]")
_COLON = re.compile(r":(?!\d)")
_TIME_OF_DAY = re.compile(r"\d:\d\d")
# A number behind one of these tells more about the value: "18 dollars for 3 books", "in 5 days".
_ASIDE = re.compile(
    r"\b(?:for|in|after|every|each|within|over|during|than|from|among|between|at|per|when|if|with|out of|"
    r"of (?:the|these|those|his|her|their)|the (?:first|last|other)|all)\s+"
    r"(?:(?:the|these|those|all|his|her|their|another|a|about)\s+)?\$?\Z",
    re.IGNORECASE,
)
_SUM = r"(?<!\*)\*(?!\*)|[+/\u00d7\u00f7\u22c5^]|(?<=\s)[-\u2212\u2013xX](?=\s)|\\(?:times|cdot|div)"
_BEFORE_OPERAND = re.compile(rf"(?:{_SUM})[\s$(]*\Z")
_AFTER_OPERAND = re.compile(
    r"[\s$)]{0,3}(?:[+\u00d7\u00f7\u22c5]|[*/](?=\s?[\d$(])|[-\u2212x]\s*[\d$(]|\\(?:times|cdot|div))"
)
# What has "answer" in it was looked at by the rules on declarations, and gave no value.
_NO_CONCLUSION = re.compile(
    r"\banswer(?!ed\b|ing\b)|boxed|\b(?:not|never|wrong|incorrect|cannot|unknown)\b|n't\b"
    r"|\b(?:less|more|fewer) than\W*\d",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"\b(?:so|thus|therefore|hence|then|total|altogether|left|remain\w*|leav\w+|makes?|making|means|which|that is|"
    r"needs?|pays?|earns?|costs?|gets?|becomes?)\b",
    re.IGNORECASE,
)
_UNFINISHED = re.compile(r"\s[-+*/=\u00d7\u00f7\u2212]\s*\Z")
_DANGLING = re.compile(
    r"(?:\b(?:and|or|for|of|the|a|an|to|in|per|with|from|by|at|on|so|then|which|that|is|are|was|were|because|but|as|"
    r"minus|plus|times|his|her|their|its|he|she|they|we|more|less|than|divided|multiplied)|[-+*/=,:;(\\\u00d7\u00f7])\Z",
    re.IGNORECASE,
)


def concluded(text: str, known_to_have_ended: bool, closed: bool) -> tuple[Number | None, bool]:
    """The last value of the last statement that has one, and whether there is doubt about it. `closed`: the text ends
    as a sentence, a formula or a bare value does. If not, and nobody knows that it ended, little may stand behind the
    value."""
    if _UNFINISHED.search(text) or _runs_on(text):
        return None, False
    for behind, (start, end) in enumerate(_statements_from_the_end(text)):
        statement = text[start:end]
        if _HEADING.match(statement) or _NO_CONCLUSION.search(statement):
            return None, False
        numbers = [n for n in find_numbers(text, start, end) if not _is_mark(text, start, n)]
        if numbers:
            break
        if behind == CLOSING_SENTENCES:
            return None, False
    else:
        return None, False
    number, doubt = _choose(text, start, end, numbers)
    if number is None or known_to_have_ended or closed:
        return number, doubt
    tail = text[number.end :].strip()
    if len(text) > LONGEST_OPEN or len(re.findall(r"\w+", tail)) > MOST_WORDS or _DANGLING.search(tail):
        return None, False
    return number, True


def _runs_on(text: str) -> bool:
    """Whether the end of a text repeats itself or counts."""
    text = text.strip()
    last = text[-3 * RUN :]
    counting = len(re.findall(r"\d+", last)) > MOST_NUMBERS and not re.search(r"[=:+*/]|[^\W\d]{2,}", last)
    return counting or len(text) > 3 * RUN and text.count(text[-RUN:]) > 2


def _statements_from_the_end(text: str) -> Iterator[tuple[int, int]]:
    """Places of sentences and lines, the last one first, without empty ones."""
    places, start = [], 0
    for match in _BREAK.finditer(text):
        places.append((start, match.start()))
        start = match.end()
    for begin, end in reversed([*places, (start, len(text))]):
        if re.search(r"\w", text[begin:end]):
            yield begin, end


def _is_mark(text: str, start: int, number: Number) -> bool:
    """Whether a number counts a step or an item of a list: "Step 2", "2. Multiply"."""
    line = text.rfind("\n", 0, number.start) + 1
    before = text[max(line, number.start - 40) : number.start]
    alone = start == number.start and re.match(r"\.[ \t]+\S", text[number.end :])
    if _STEP_MARK.match(before) or alone:
        return True
    small = number.value.denominator == 1 and 0 <= number.value <= 20
    if not small or not _MARK.match(before) or not _AFTER_MARK.match(text, number.end):
        return False
    return number.value == 1 or bool(re.search(rf"(?:^|\n)\W*{int(number.value) - 1}\W*[.):]", text[:start]))


def _choose(text: str, start: int, end: int, numbers: list[Number]) -> tuple[Number | None, bool]:
    """The value of a statement: behind its last equals sign or colon, and no aside."""
    if _TIME_OF_DAY.search(text, start, end):
        return None, False
    stated = False
    for sign in (_EQUALS, _COLON):
        places = [match.end() for match in sign.finditer(text, start, end)]
        if places and (after := [n for n in numbers if n.start >= places[-1]]):
            numbers, stated = after, True
            break
    main = [n for n in numbers if not _ASIDE.search(text[max(start, n.start - 40) : n.start])] or numbers
    number, several = main[-1], len({n.value for n in main}) > 1
    if several and not stated and not _CONCLUDES.search(text, start, end):
        return None, False
    before = text[max(start, number.start - 12) : number.start]
    if _BEFORE_OPERAND.search(before) or _AFTER_OPERAND.match(text, number.end, end):
        return None, False
    return number, several and not stated
