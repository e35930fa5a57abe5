"""The item browser's data: questions and answers, all of it untrusted text, as JSON that is safe inside a page."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

from markupsafe import Markup

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.assessment.reading import EXTRACTORS
from primekd.assessment.tokens import Token, TokenLog, read_tokens
from primekd.config import NO_STUDENTS, Profile
from primekd.foundation import UserError, read_records, relative_name
from primekd.report.extraction import Readings
from primekd.report.formats import tenths
from primekd.report.results import Results

# Inside <script> only these could end the element or start a comment; in JSON strings \uXXXX means the same character.
# U+2028 and U+2029 are line ends to older JavaScript engines.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
U16 = 2**16 - 1


def refuse_other_items(folder: Path, logs: dict[str, list[LogRow]]) -> None:
    """Raises UserError if a log has other items than the first one: answers are shown side by side."""
    asked = {name: [(row.id, row.question) for row in log] for name, log in logs.items()}
    for name, items in asked.items():
        if items != next(iter(asked.values())):
            path = relative_name(folder / f"{name}.csv")
            raise UserError(f"{path} has other items than the other logs: run the assessment again.")


def browser_data(profile: Profile, results: Results, logs: dict[str, list[LogRow]], readings: Readings) -> dict:
    """What the page's script needs: a command's words for these logs, models, extractors, and items with one answer a
    model in the same order. Raises UserError if extractors.csv has no row for an answer. An answer's `text` is [before,
    marked, after], or [all] where no number was found, cut here because spans count code points and JavaScript UTF-16
    units. `read`: the extractors' values in their order, left out where all gave `found`. `kl` is in nats a token of
    the teacher's answer."""
    titles, path = results.titles, results.folder / "held-out.csv"
    # In nats a token, four digits, so that the page stays small.
    kl = {(r.model, r.id): {"kl": float(f"{r.kl / r.teacher_tokens:.4g}")}
          for r in (read_records(path, HeldOutRow) if path.is_file() else []) if r.kl is not None}  # fmt: skip
    models = [{"name": n, "title": titles[n], "student": n not in NO_STUDENTS} for n in logs]
    items = []
    for rows in zip(*logs.values(), strict=True):
        answers = [_answer(r, _read(readings, n, r)) | kl.get((n, r.id), {}) for n, r in zip(logs, rows, strict=True)]
        items.append({"id": rows[0].id, "question": rows[0].question, "gold": rows[0].gold, "answers": answers})
    extractors = list(EXTRACTORS) if readings else []
    tokens = token_data(read_tokens(results.folder))
    return {"words": words_of(profile), "models": models, "extractors": extractors, "items": items, "tokens": tokens}


def words_of(profile: Profile) -> list[str]:
    """The options by which a verb finds these logs and no others."""
    return ["--profile", profile.name, *["--published"] * (profile.logs == profile.published)]


def _read(readings: Readings, model: str, row: LogRow) -> list[str]:
    """The values of the extractors for one answer; empty where they are not known."""
    if not readings:
        return []
    found = readings.get(model, {}).get(row.id)
    if found is None:
        raise UserError(f"extractors.csv has no row for {model} on item {row.id}: run the assessment again.")
    return [found[name] for name in EXTRACTORS]


def _answer(row: LogRow, read: list[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {"text": cut(row.response, row.span), "tokens": row.response_tokens, "cut": row.truncated,
                             "found": row.extracted, "rule": row.rule, "right": row.correct}  # fmt: skip
    if len({row.extracted, *read}) > 1:
        facts["read"] = read
    if row.adjudicated:
        facts |= {"byHand": row.adjudicated, "rightByHand": row.correct_adjudicated}
    return facts


def cut(text: str, span: str) -> list[str]:
    """[before, marked, after] by a span `start:end` in code points; [text] where the span is no part of the text."""
    start, _, end = span.partition(":")
    if not (start.isdecimal() and end.isdecimal() and int(start) < int(end) <= len(text)):
        return [text]
    return [text[: int(start)], text[int(start) : int(end)], text[int(end) :]]


def script_json(value: Any) -> Markup:
    """JSON to stand in <script type="application/json">; nothing in it can leave the element."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_UNSAFE))


def token_data(log: TokenLog | None) -> dict[str, Any] | None:
    """{"models", "texts", "items": id -> base64}; None where there are no tokens, or too many different ones. An item
    is a row of bytes in base64, little-endian, and so for each token of the teacher's answer: its text (u16), the
    teacher's entropy in millinats (u16), the probability that it gave the token (u16; 65535: not known), and its
    distribution; then for each model KL in millinats (u16) and its distribution. A distribution is a count (u8) and so
    many pairs of text (u16) and probability (u16). Texts are places in one list. Probabilities are in tenths of a
    percent, as they are shown wherever tokens are; what would be shown as 0.0 % is left out."""
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
