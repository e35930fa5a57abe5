"""Blocks in which a model reasons before it answers: <think>…</think> and its relatives."""

import re

_NAME = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|reason|reflection|scratchpad|analysis)"
_OPEN = re.compile(
    rf"<{_NAME}(?:\s[^<>\n]{{0,80}})?>|\[{_NAME}\]|\u25c1{_NAME}\u25b7|<\|begin_of_thought\|>|<\|channel\|>analysis(?:<\|message\|>)?",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"</{_NAME}\s*>|\[/{_NAME}\]|\u25c1/{_NAME}\u25b7|<\|end_of_thought\|>|<\|channel\|>final(?:<\|message\|>)?",
    re.IGNORECASE,
)


def answer_part(text: str) -> tuple[int, int, bool]:
    """The part [start, end) of a response that answers, and whether a block of reasoning behind it is left open.

    It is what follows the last block; a block may have lost its opening mark to the prompt. One that is never closed
    was cut, and what stands in it is no answer.
    """
    start = max((match.end() for match in _CLOSE.finditer(text)), default=0)
    opened = _OPEN.search(text, start)
    return start, opened.start() if opened else len(text), bool(opened)
