"""What a server shows of a token (an id, bytes or text) -> the tokenizer's id, where there is exactly one."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from primekd.models import load_tokenizer

ID_PREFIX = "token_id:"  # vLLM with return_tokens_as_token_ids


@dataclass(frozen=True)
class Shown:
    """One token as a server shows it. `raw` bytes are exact; `text` alone is not where a token is half a character.
    `number` is the server's own id of it: llama.cpp's server shows control tokens as nothing else."""

    text: str
    log_prob: float
    raw: bytes | None = None
    number: int | None = None


class TokenMap:
    """Ids of one tokenizer by what its tokens look like. Byte-level BPE, and SentencePiece with byte fallback."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
        byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
        table = {character: byte for byte, character in bytes_to_unicode().items()}
        self._control = frozenset(tokenizer.all_special_ids)
        self.bytes: list[bytes] = [b""] * len(tokenizer)
        for token, token_id in tokenizer.get_vocab().items():
            if token_id in added:
                self.bytes[token_id] = added[token_id].encode()
            elif byte_level:
                self.bytes[token_id] = bytes(table[character] for character in token)
            elif len(token) == 6 and token.startswith("<0x"):
                self.bytes[token_id] = bytes([int(token[3:5], 16)])
            else:
                self.bytes[token_id] = token.replace("▁", " ").encode()
        self._by_bytes = _unique(self.bytes)
        # Only texts that one token alone shows: half characters vanish, or become U+FFFD, in a server's text.
        texts = _unique([self.text(i) for i in range(len(self.bytes))])
        self._by_text = {text: i for text, i in texts.items() if text and "\ufffd" not in text}

    def text(self, token_id: int) -> str:
        """A token's text as a server shows it that drops broken characters."""
        return self.bytes[token_id].decode("utf-8", "ignore")

    def id_of(self, shown: Shown) -> int | None:
        """The id of a shown token; None where it is no token of ours, or could be several."""
        if shown.text.startswith(ID_PREFIX):
            number = shown.text.removeprefix(ID_PREFIX)
            return int(number) if number.isdecimal() and int(number) < len(self.bytes) else None
        if shown.number in self._control and not (shown.text or shown.raw):
            return shown.number
        if shown.raw is not None:
            return self._by_bytes.get(shown.raw)
        return self._by_text.get(shown.text)

    def response_ids(self, tokens: Sequence[Shown], text: str) -> list[int] | None:
        """The ids of a whole response from its shown tokens and its text; None where they cannot be told for certain. A
        token that could be several is the one whose text is shown in full, if the whole gives `text`; else the only way
        to cut `text` tells, or our own encoding of it, if that agrees with the server's tokens one by one."""
        ids = [self.id_of(token) for token in tokens]
        if None in ids:
            exact = [self._by_bytes.get(token.text.encode()) for token in tokens]
            ids = [known if known is not None else whole for known, whole in zip(ids, exact, strict=True)]
        if None not in ids and b"".join(self.bytes[i] for i in ids).decode("utf-8", "ignore") == text:
            return ids
        if len(ways := self._ways(tokens, text.encode())) == 1:
            return ways[0]
        encoded = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        agreed = len(encoded) == len(tokens) and all(
            self.text(i) == token.text.replace("\ufffd", "") for i, token in zip(encoded, tokens, strict=True)
        )
        return list(encoded) if agreed else None

    def _ways(self, tokens: Sequence[Shown], data: bytes) -> list[list[int]]:
        """Ids by cutting the text's bytes, where parts of characters are shown as nothing: all ways, or two of many."""
        ways: list[tuple[int, list[int]]] = [(0, [])]  # how many bytes are told, and the ids of these tokens
        for token in tokens:
            shown, known = token.text.replace("\ufffd", ""), self.id_of(token)
            longer = []
            for place, ids in ways:
                if known is not None:
                    part = self.bytes[known]
                    longer += [(place + len(part), [*ids, known])] if data.startswith(part, place) else []
                    continue
                for end in range(place + 1, min(len(data), place + len(shown.encode()) + 3 * 2) + 1):
                    found = self._by_bytes.get(data[place:end])
                    if found is not None and self.text(found) == shown:
                        longer.append((end, [*ids, found]))
            same_place = itertools.groupby(sorted(longer), key=lambda way: way[0])
            ways = [way for _, some in same_place for way in itertools.islice(some, 2)]  # two are as good as many
        return [ids for place, ids in ways if place == len(data)]


@lru_cache(maxsize=2)  # it takes a second to make
def token_map(model: str) -> TokenMap:
    return TokenMap(load_tokenizer(model))


def _unique(looks: Sequence) -> dict:
    counts = Counter(looks)
    return {look: token_id for token_id, look in enumerate(looks) if counts[look] == 1}
