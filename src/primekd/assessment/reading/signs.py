"""What stands before the digits of a number: sign, currency, or what makes it an exponent or an index. All texts here
are plain (numbers.find_numbers): of the dashes only "-", the typographic minus and the long one exist."""

import re

REACH = 32  # characters before the digits that are looked at

MINUS = "[-\u2212]"
_LONG_DASH = "\u2014"
_CODE = r"(?<![A-Za-z])(?:R[sS]|INR|USD|EUR|GBP|JPY|CNY|RMB|AUD|CAD|CHF|PHP|Php|MXN|NGN|KES|BRL|RM|Tk|KSh|Bs|Fr|kr)\.?"
_SYMBOL = r"(?:(?<![A-Za-z])(?:US|AU?|CA?|NZ|HK|NT|MX|R|S))?\\?[$\u00a2-\u00a5\u0e3f\u20a0-\u20cf]"
_MONEY = rf"(?:{_SYMBOL}|{_CODE}|\\(?:text|mathrm)\{{\s?(?:{_SYMBOL}|{_CODE})\s?\}})"
_GAP = r"(?:[ \u00a0\u202f\u2009~]|\\[,;:! ]|\{\}){0,2}"
_BEFORE = re.compile(
    rf"(?:(?P<sign>{MINUS}|\\text\{{{MINUS}\}}|{_LONG_DASH}|(?<![A-Za-z])(?i:minus|negative)(?= ))(?P<gap>{_GAP}))?"
    rf"(?:(?P<money>{_MONEY}){_GAP}(?:(?P<inner>{MINUS})(?P<inner_gap>{_GAP}))?)?\Z"
)
# "m^2", "s^{-1}", "x_{12}", "m**2", "m<sup>2", "m s-1"; but `_18_` and `**18**` are emphasis.
_EXPONENT = re.compile(
    rf"(?:\^\s?|[A-Za-z)}}\]]_|(?<![A-Za-z])[A-Za-z]{{1,3}}\*\*)(?:[{{(]\s?)?(?:{MINUS}|\+)?\s?\Z"
    r"|(?<![A-Za-z])(?:m|s|h|g|kg|cm|km|mm|mol|min|L|K)-\Z|<su[bp]>\Z"
)
_TIMES = re.compile(r"[0-9)}\]$%]\s*[xX]\Z")
_WORD = re.compile(r"(\\?)([A-Za-z\u00c0-\u024f\u0370-\u04ff]+)\Z")
_RUN_TOGETHER = re.compile(r"(?:is|are|was|were|be|equals|has|have|gets|total|answer|ans|of|and|only)\Z", re.IGNORECASE)
# Before a minus: something that it can be subtracted from, or the other end of a range; in scripts without spaces words
# such as "is" may stand right before it.
_IS = "".join(
    rf"(?<!{word})" for word in ["は", "が", "を", "で", "是", "为", "為", "爲", "于", "於", "은", "는", "คือ", "เป็น"]
)
_OPERAND = re.compile(rf"(?:[^\W_]{_IS}|[-\u2212\u2014).%}}\]\u00b0'\"\u2032\u2033\u00b2\u00b3]|[0-9)}}\]]\$)\Z")
_SUBTRACTED, _EQUALS = re.compile(r"[0-9)}\]%]\s{1,3}\Z"), re.compile(r"[^\n=]{0,20}=")  # 30 -12 = 18
# Before a minus that a space follows: there it is a sign. "Minus" in words is one in fewer places.
_CUE_WORD = r"\b(?:is|are|was|were|be|equals|to|of|exactly|about|approximately)"
_CUE = re.compile(
    rf"(?:(?:^|[=:,(\[{{<>+*/\u00d7\u00f7\u2248\u2192]|{_CUE_WORD})[\s$*(]*|(?:^|\s)(?:\$|\*\*)\(?)\Z", re.IGNORECASE
)
_WORD_CUE = re.compile(rf"(?:^|[=:({{\[]|{_CUE_WORD})[\s$*(]*\Z", re.IGNORECASE)
_ALONE = re.compile(r"[\s.$*%]*\Z")


def is_index(plain: str, start: int) -> bool:
    """Whether digits are an exponent, an index or part of a word: m^2, x_1, ft2, CO2; but not in Rs500 or 6x3."""
    before = plain[max(0, start - REACH) : start]
    if _EXPONENT.search(before):
        return True
    if not plain[start].isdigit() or not (word := _WORD.search(before)):
        return False
    spelled = word[1] or _TIMES.search(before) or _RUN_TOGETHER.match(word[2])
    return not spelled and not _BEFORE.search(before)["money"]


def sign_before(plain: str, start: int, end: int, floor: int) -> tuple[int, bool]:
    """Where a number begins (its currency and sign included), whose digits are [start, end), and whether it is
    negative. `floor`: where the number before it ends; nothing up to there belongs to this one."""
    begin = max(floor, start - REACH)
    found = _BEFORE.search(plain, begin, start)
    negative, at = False, start
    if found["money"]:
        at = found.start("money")
        if plain[at] == "$" and at > 0 and plain[at - 1] in "0123456789)}]":  # "$3$-5": it ends "$3"
            return start, False
        negative = bool(found["inner"])
    if found["sign"] and _is_sign(plain, found.start("sign"), found["sign"], bool(found["gap"]), end):
        negative, at = not negative, found.start("sign")
    return at, negative


def _is_sign(plain: str, at: int, sign: str, spaced: bool, end: int) -> bool:
    """Whether a minus is a sign: no operator, no end of a range, no mark of a list, no dash between words."""
    before = plain[max(0, at - REACH) : at]
    if sign.lower() == "negative":
        return True
    if sign.lower() == "minus":
        return bool(_WORD_CUE.search(before))
    if not spaced and sign != _LONG_DASH:
        return not _OPERAND.search(before) and not (_SUBTRACTED.search(before) and _EQUALS.match(plain, end))
    if not before.rstrip(" ") or before.rstrip(" ").endswith("\n"):  # "- 5 apples" is the mark of a list
        return sign == "\u2212" or (not before.strip() and bool(_ALONE.match(plain, end)))
    return bool(_CUE.search(before))
