"""What came from outside: no secret, no control sequence and no endless text reaches the screen or a file."""

import json
from urllib.parse import quote

import pytest

from primekd.foundation import outside
from primekd.foundation.outside import clean, hide, holds_secret

SECRET = "sk-proj-Zk93+/hq=&<81aLmQ0"


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setattr(outside, "_secrets", set())
    hide(SECRET)


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"Incorrect key: {SECRET}.",
        f"?key={quote(SECRET, safe='')}&x",
        f"?key={quote(SECRET, safe='').lower().replace('zk93', 'Zk93').replace('almq0', 'aLmQ0')}",
        json.dumps({"authorization": f"Bearer {SECRET}"}),
        SECRET[:15] + "...",
        "..." + SECRET[-12:],
        f"{SECRET[:6]}\x1b[1m{SECRET[6:]}",
        f"{SECRET[:6]}\u200b{SECRET[6:]}",
        "x" * 190 + SECRET,
    ],
)
def test_a_key_goes_wherever_it_stands_and_however_it_is_written(text):
    shown = clean(text)
    assert "[key]" in shown or shown.endswith("…")
    assert not any(SECRET[i : i + 8] in shown for i in range(len(SECRET) - 7)) and "81aLmQ0" not in shown


def test_another_key_goes_behind_the_word_bearer():
    assert clean("Authorization: Bearer abc123def is wrong") == "Authorization: Bearer [key] is wrong"
    assert clean("Bearer authentication is wanted") == "Bearer authentication is wanted"


def test_nothing_drives_the_terminal():
    text = "a\x1b[31mred\x1b[0m \x1b]0;title\x07b\x9b2Jc\r\nd\te\x00f \u202eg\u2066h\ud800"
    assert clean(text) == "ared bc d e f gh"


def test_the_length_is_bounded_and_common_texts_stay():
    assert clean("ä – 🙂 é") == "ä – 🙂 é" and clean(None) == "None"
    assert len(clean("word " * 10**6)) == 200 and clean("abcdef", 4) == "abc…"


def test_a_word_that_serves_as_a_key_makes_no_answer_a_secret():
    hide("EMPTY")
    assert clean("the key EMPTY") == "the key [key]"
    assert not holds_secret("the box is EMPTY") and holds_secret(f"x{SECRET}y")
