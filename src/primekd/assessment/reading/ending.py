"""Where a response begins to answer, behind its reasoning, and whether it ended by itself; from its text alone."""

import re

# An end that a sentence, a formula or a bare value can have. "18" may be a whole answer; after more text it is a cut.
_CLOSED = re.compile(r"""(?:[.!?}\])"'\u201d\u2019>|`*]|\$|[\u3002\u0964\u06d4\uff01\uff1f\uff0e\u300d\u300f])\s*$""")
# Possessive, so that thousands of commas are read once.
_BARE = re.compile(r"^(?:\W*+\d[\d.,]*+|(?=\W*?[.,])\W*+)\W*+\w{0,20}+\W*$")
_HASHES = re.compile(r"####\s*[^\s#]+\s*$")
# Blocks in which a model reasons before it answers: <think>…</think> and its relatives.
_NAME = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|reason|reflection|scratchpad|analysis)"
_REASONING = re.compile(
    rf"<{_NAME}(?:\s[^<>\n]{{0,80}})?>|\[{_NAME}\]|\u25c1{_NAME}\u25b7|<\|begin_of_thought\|>|<\|channel\|>analysis(?:<\|message\|>)?",
    re.IGNORECASE,
)
_REASONED = re.compile(
    rf"</{_NAME}\s*>|\[/{_NAME}\]|\u25c1/{_NAME}\u25b7|<\|end_of_thought\|>|<\|channel\|>final(?:<\|message\|>)?",
    re.IGNORECASE,
)


def answer_part(text: str) -> tuple[int, int, bool]:
    """The part [start, end) of a response that answers, behind its last block of reasoning (which may have lost its
    opening mark to the prompt), and whether a block behind that is left open: what stands in there is no answer."""
    start = max((match.end() for match in _REASONED.finditer(text)), default=0)
    opened = _REASONING.search(text, start)
    return start, opened.start() if opened else len(text), bool(opened)


def is_cut(text: str) -> bool:
    """True where the text stops without the end of a sentence. A guess: use the token count where it is known."""
    return bool(text.strip()) and not (_CLOSED.search(text) or _BARE.match(text.strip()) or _HASHES.search(text))
