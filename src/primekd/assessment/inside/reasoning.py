"""What stands in answers beyond the verdict: whether their arithmetic holds, words of a priming, kinds of tokens."""

import ast
import operator
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

SIGNS = str.maketrans("×·xX÷−–", "****/--", "$, \t")  # and what is left out
NUMBER = r"[-−–]?\$?\d++(?:,\d{3}(?!\d))*+(?:\.\d+)?+%?+"
OPERATOR, GAP = r"[-+*/×·xX÷−–]", r"[ \t]*"
OPEN, CLOSE = rf"(?:\({GAP})*+", rf"(?:{GAP}\))*+"
# Two or more numbers with signs between them, perhaps in brackets, then = and a number, in one line. Gold solutions
# write <<48/2=24>>24, whose second number is no part of it. Of a chain, 12 + 12 = 24 + 1 = 25, the last part is read.
# All is possessive: no number is taken in part, and a long sum without an end takes no time.
CALCULATION = re.compile(
    rf"(?<![\w.])(?<!\d,)({OPEN}{NUMBER}(?:{GAP}{OPERATOR}{GAP}{OPEN}{NUMBER}{CLOSE})++){GAP}={GAP}({NUMBER})"
    rf"(?!,\d|[ \t]+\d+/\d|{GAP}{OPERATOR}{GAP}{OPEN}[-−–$]?\d)"
)
# What LaTeX and words write for signs -> signs. The unit behind a number, \text{ boxes}, is left out, any other is a w.
FORMS = [(re.compile(pattern), plain) for pattern, plain in (
    (r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))", ","),
    (r"\\(?:(?:left|right|quad)\b|[][(),;:! ])", " "), (r"\\([$%])", r"\1"),
    (r"(?<=[\d%])\s*\\text\w*\{[^{}]*\}", ""), (r"\\text\w*\{[^{}]*\}", "w"), (r"\\boxed\{([^{}]*)\}", r"\1"),
    (r"\\times\b|\\cdot\b|\btimes\b|\bmultiplied by\b", "*"), (r"\\div\b|\bdivided by\b", "/"),
    (r"\bplus\b", "+"), (r"\bminus\b", "-"), (r"(?<=%) of\b", " *"), (r"\b(?:equals|is equal to)\b", "="),
)]  # fmt: skip
FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
DIGITS, OPERATORS, MARKS, QUESTION, STYLE = "digits", "operators", "marks", "words of the question", "other words"
TOKEN_CLASSES = (DIGITS, OPERATORS, QUESTION, STYLE, MARKS)
WORD = re.compile(r"[^\W\d_]+")
TAG = re.compile(r"</?\|?[\w-]+\|?>")  # a control token such as <|im_end|> or </s>, which is no word
LONG_WORD = 4  # letters; shorter ones say nothing
COMMON = 0.05  # of questions: a word that stands in more is no priming's own


def calculations(text: str) -> list[bool | None]:
    """Of all in a text, in order, with signs for what LaTeX or words write: whether each holds, rounded as its result
    is; None where it cannot be worked out."""
    for pattern, plain in FORMS:
        text = pattern.sub(plain, text)
    while FRACTION.search(text):
        text = FRACTION.sub(_quotient, text)
    return [None if _goes_on(text, m.start()) else _holds(m[1], m[2]) for m in CALCULATION.finditer(text)]


def _quotient(fraction: re.Match) -> str:
    parts = map(str.strip, fraction.groups())
    return f"({'/'.join(f'({part})' if re.search(OPERATOR, part[1:]) else part for part in parts)})"


def _goes_on(text: str, start: int) -> bool:
    """Whether a sign, a command or a number (2 1/2) stands in front, so that it began further left; marks of lists and
    bold are none."""
    before = text[text.rfind("\n", 0, start) + 1 : start].strip()
    return bool(re.search(r"\\[a-zA-Z]+$|.[-+*/×·÷−–^%]$|\d$", before)) and not before.endswith("**")


def _holds(left: str, right: str) -> bool | None:
    """Percent are hundredths. None where % stands on the right alone: 80 / 4 * 5 = 100% may be 100, or wrong."""
    try:
        plain = left.translate(SIGNS)
        plain = plain[max(0, plain.count("(") - plain.count(")")) :]  # of (2 + 3 = 5) the bracket is around all of it
        value = _value(ast.parse(re.sub(r"([\d.]+)%", r"(\1/100)", plain), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None
    shown = right.translate(SIGNS)
    said, decimals = Fraction(shown.rstrip("%")), len(shown.partition(".")[2].rstrip("%"))

    def near(found: Fraction) -> bool:
        return abs(found - said) * 2 <= Fraction(1, 10**decimals)

    if "%" not in right:
        return near(value)
    return near(100 * value) or (None if near(value) and "%" not in left else False)


def _value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError("no arithmetic")


def words(text: str) -> set[str]:
    """Its words, in small letters, that are LONG_WORD letters long at least."""
    return {word for word in WORD.findall(text.lower()) if len(word) >= LONG_WORD}


def own_words(priming: str, questions: Iterable[str], answers: Iterable[str]) -> set[str]:
    """The words of a priming that no unprimed answer has but one whose question has it, and that are not COMMON in
    questions. `questions`, `answers`: of the same items."""
    asked = [*map(words, questions)]
    said = [words(answer) - own for answer, own in zip(answers, asked, strict=False)]
    counts = Counter(word for own in asked for word in own)
    return {word for word in words(priming).difference(*said) if counts[word] <= max(1, COMMON * len(asked))}


def question_words(question: str) -> set[str]:
    """Its words in small letters, of three letters or more also with and without an s or es at their end."""
    found = set(WORD.findall(question.lower()))
    long = {form for word in found for form in (word, word.removesuffix("s"), word.removesuffix("es")) if len(form) > 2}
    return found | long | {form + end for form in long for end in ("s", "es")}


def token_classes(texts: Sequence[str], question: str) -> list[str]:
    """The kind of each token of an answer. A part of a word is of the kind of the whole word."""
    asked, ends = question_words(question), accumulate(map(len, texts), initial=0)
    of_letter = {n: w[0].lower() in asked for w in WORD.finditer("".join(texts)) for n in range(*w.span())}
    return [_token_class(text, [of_letter[n] for n in range(*at) if n in of_letter])
            for text, at in zip(texts, pairwise(ends), strict=True)]  # fmt: skip


def _token_class(text: str, letters: Sequence[bool]) -> str:
    bare = text.strip()
    if any(c.isdigit() for c in bare):
        return DIGITS
    if bare and all(c in "+-*/=×÷<>%$^" for c in bare):
        return OPERATORS
    return MARKS if not letters or TAG.fullmatch(bare) else QUESTION if any(letters) else STYLE
