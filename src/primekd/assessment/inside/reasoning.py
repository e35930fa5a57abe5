"""What stands in answers beyond the verdict: whether their arithmetic holds, words of a priming, kinds of tokens."""

import ast
import operator
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fractions import Fraction

NUMBER = r"\$?\d[\d,]*(?:\.\d+)?%?"
SIGNS = {"×": "*", "·": "*", "x": "*", "X": "*", "÷": "/", "−": "-", "–": "-"}
# Two or more numbers with signs between them, perhaps in brackets, then = and a number. Gold solutions write
# <<48/2=24>>24, whose second number is no part of it.
CALCULATION = re.compile(
    rf"(?<![\w.])(\(?\s*{NUMBER}(?:\s*[-+*/×·xX÷−–]\s*\(?\s*{NUMBER}\s*\)?)+)\s*=\s*({NUMBER})(?!\s*[-+*/×·÷−–]\s*\d)"
)
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
DIGITS, OPERATORS, MARKS, QUESTION, STYLE = "digits", "operators", "marks", "words of the question", "other words"
TOKEN_CLASSES = (DIGITS, OPERATORS, QUESTION, STYLE, MARKS)
LONG_WORD = 4  # letters; shorter ones say nothing


@dataclass(frozen=True)
class Calculation:
    """A calculation that stands in a text, and whether it holds, rounded as its result is; None where it cannot be
    worked out."""

    text: str
    holds: bool | None


def calculations(text: str) -> list[Calculation]:
    """All of a text, in order."""
    return [Calculation(m[0].strip(), _holds(m[1], m[2])) for m in CALCULATION.finditer(text)]


def _holds(left: str, right: str) -> bool | None:
    try:
        value = _value(ast.parse(_plain(left).replace("%", ""), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None
    shown = _plain(right)
    said = Fraction(shown.rstrip("%"))
    decimals = len(shown.partition(".")[2].rstrip("%"))
    scales = (1, Fraction(1, 100)) if "%" in left + right else (1,)  # 20% of something, with or without its sign
    return any(
        abs(value * scale - said * other) * 2 <= Fraction(1, 10**decimals) for scale in scales for other in scales
    )


def _plain(text: str) -> str:
    for sign, plain in SIGNS.items():
        text = text.replace(sign, plain)
    return re.sub(r"[\s$,]", "", text)


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
    return {word for word in re.findall(r"[^\W\d_]+", text.lower()) if len(word) >= LONG_WORD}


def own_words(priming: str, known: Iterable[str]) -> set[str]:
    """The words of a priming that stand in none of the texts `known`."""
    return words(priming).difference(*map(words, known))


def token_class(text: str, question: Collection[str]) -> str:
    """The kind of a token; `question`: the words of its question, of which a token is often a part alone."""
    bare = text.strip()
    if any(c.isdigit() for c in bare):
        return DIGITS
    if bare and all(c in "+-*/=×÷<>%$^" for c in bare):
        return OPERATORS
    if not any(c.isalpha() for c in bare):
        return MARKS
    return QUESTION if any(bare.lower() in word for word in question) else STYLE
