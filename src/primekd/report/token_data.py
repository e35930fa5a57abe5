"""The tokens of a logs folder as the report's page holds them: few bytes, opened item by item.

An item is a row of bytes in base64, little-endian, and so for each token of the teacher's answer: its text (u16), the
teacher's entropy in millinats (u16), the probability that it gave the token (u16; 65535: not known), and its
distribution; then for each model KL in millinats (u16) and its distribution. A distribution is a count (u8) and so many
pairs of text (u16) and probability (u16). Texts are places in one list. Probabilities are in tenths of a percent, as
they are shown wherever tokens are; what would be shown as 0.0 % is left out.
"""

import base64
import struct
from functools import cache
from typing import Any

from primekd.assessment.tokens import Token, TokenLog
from primekd.report.formats import percent

U16 = 2**16 - 1


def token_data(log: TokenLog | None) -> dict[str, Any] | None:
    """{"models", "texts", "items": id -> base64}; None where there are no tokens, or too many different ones."""
    if log is None or len(log.texts) > U16:
        return None
    places = {text: place for place, text in enumerate(sorted(set(log.texts.values())))}
    items = {item: b"".join(_token(t, log.models, places) for t in log.tokens(item)) for item in log.items}
    encoded = {item: base64.b64encode(content).decode() for item, content in items.items()}
    return {"models": log.models, "texts": list(places), "items": encoded}


def _token(token: Token, models: list[str], places: dict[str, int]) -> bytes:
    written = U16 if token.written is None else tenths(token.written)
    parts = [struct.pack("<HHH", places[token.text], _milli(token.entropy), written), _best(token.teacher, places)]
    for model in models:
        parts += [struct.pack("<H", _milli(token.kl[model])), _best(token.top[model], places)]
    return b"".join(parts)


def _milli(nats: float) -> int:
    return min(U16, max(0, round(nats * 1000)))


def _best(best: list[tuple[str, float]], places: dict[str, int]) -> bytes:
    kept = [(places[text], shown) for text, p in best if (shown := tenths(p))]
    return bytes([len(kept)]) + b"".join(struct.pack("<HH", *pair) for pair in kept)


@cache  # of probabilities in half precision there are few
def tenths(share: float) -> int:
    """A share in tenths of a percent, rounded as all that is shown in percent."""
    return int(percent(share).replace(".", ""))
