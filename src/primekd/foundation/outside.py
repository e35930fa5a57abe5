"""One cleaner for all that came from outside (servers, hubs, files of others) before it is printed or written."""

import html
import json
import re
import unicodedata
from urllib.parse import quote, quote_plus

PIECE = 8  # characters of a secret that give it away; a server may show it cut short
_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b.?")
_BEARER = re.compile(r"(?i)\b(Bearer|Basic)(?:\s|%20|\+)+(?:(?=[^\s\"',;<>]*[0-9])|(?=\S{16}))[^\s\"',;<>]+")
_secrets: set[str] = set()


def hide(secret: str) -> None:
    """From now on `clean` takes this secret out of every text of this process."""
    if len(secret.strip()) > 2:  # `x` is what some write for a server that wants none
        _secrets.add(secret.strip())


def holds_secret(text: str) -> bool:
    """Whether a text holds a whole secret that is too long to be a word by chance."""
    return any(form in text for secret in _secrets if len(secret) >= 2 * PIECE for form in _forms(secret))


def clean(text: object, most: int = 200) -> str:
    """A foreign text as one line of at most `most` characters: no secret, no control sequence, no invisible character.
    Secrets go wherever they stand, written for a URL or for JSON too, in part, and behind the word Bearer."""
    shown = "".join(map(_visible, _SEQUENCE.sub("", str(text)[: 100 * most])))
    for secret in sorted(_secrets, key=len, reverse=True):
        for form in _forms(secret):
            shown = shown.replace(form, "[key]")
        shown = _without_pieces(shown, secret)
    line = " ".join(_BEARER.sub(r"\1 [key]", shown).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _visible(character: str) -> str:
    kind = unicodedata.category(character)
    return "" if kind in ("Cf", "Cs") else " " if kind in ("Cc", "Zl", "Zp") else character


def _forms(secret: str) -> set[str]:
    """A secret as it may be written: plain, in a URL, in JSON, in HTML."""
    urls = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    lower = {re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), url) for url in urls}
    return {secret, *urls, *lower, json.dumps(secret)[1:-1], html.escape(secret)}


def _without_pieces(text: str, secret: str) -> str:
    """A text without any PIECE characters in a row that a longer secret has in a row too."""
    pieces = {secret[i : i + PIECE] for i in range(len(secret) - PIECE + 1)} if len(secret) > PIECE else set()
    told = {place for i in range(len(text)) if text[i : i + PIECE] in pieces for place in range(i, i + PIECE)}
    stretches = re.finditer("x+", "".join("x" if place in told else "." for place in range(len(text))))
    for found in reversed(list(stretches)):
        text = f"{text[: found.start()]}[key]{text[found.end() :]}"
    return text
