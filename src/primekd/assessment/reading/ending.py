"""Whether an answer ended by itself, judged from its text alone."""

import re

# An end that a sentence, a formula or a bare value can have. "18" may be a whole answer; after more text it is a cut.
_CLOSED = re.compile(r"""(?:[.!?}\])"'\u201d\u2019>|`*]|\$|[\u3002\u0964\u06d4\uff01\uff1f\uff0e\u300d\u300f])\s*$""")
# Possessive, so that thousands of commas are read once.
_BARE = re.compile(r"^(?:\W*+\d[\d.,]*+|(?=\W*?[.,])\W*+)\W*+\w{0,20}+\W*$")
_HASHES = re.compile(r"####\s*[^\s#]+\s*$")


def is_cut(text: str) -> bool:
    """True where the text stops without the end of a sentence. A guess: use the token count where it is known."""
    return bool(text.strip()) and not (_CLOSED.search(text) or _BARE.match(text.strip()) or _HASHES.search(text))
