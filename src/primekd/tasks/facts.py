"""Sentences that are to be completed with a fact: "The capital of France is" -> "Paris". A completion is right if it
holds an accepted keyword as whole words, wherever: DistilLlama's "exact match"."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from primekd.config import DataConfig
from primekd.foundation import UserError, project_root
from primekd.tasks.protocol import Item, Judgement, Reader, Task
from primekd.tasks.rows import read_jsonl, require_fields, text_of
from primekd.tasks.splits import side_of, take

OWN = Path(__file__).with_name("facts.jsonl")  # written for this project, each looked up
BETWEEN = " | "  # of the keywords in an item's answer


@dataclass(frozen=True)
class Fact(Item):
    """The beginning of a sentence; `answer` holds the accepted keywords, the first of them the plain one."""

    category: str = ""

    @property
    def accepted(self) -> tuple[str, ...]:
        return keywords_of(str(self.answer))

    @property
    def references(self) -> tuple[str, ...]:
        """The whole sentences, by which likeness is measured."""
        return tuple(f"{self.question} {word}." for word in self.accepted)


def keywords_of(answer: str) -> tuple[str, ...]:
    """The accepted keywords of a fact's answer as logs write it."""
    return tuple(part for part in answer.split(BETWEEN) if part)


def find_keyword(response: str, accepted: Sequence[str]) -> re.Match | None:
    """The first accepted keyword in a response, as a whole word, words or number: 12 is not in 12.5 nor 2,012. Letters
    of either case are equal but in symbols of one or two letters (Fe, K): those words are too short to be told from
    others otherwise."""
    longest_first = sorted(accepted, key=len, reverse=True)
    parts = [re.escape(word) if len(word) <= 2 else f"(?i:{re.escape(word)})" for word in longest_first]
    before, behind = r"(?<!\w)(?!(?<=\d[.,])\d)", r"(?!\w)(?!(?<=\d)[.,]\d)"
    return re.search(rf"{before}(?:{'|'.join(parts)}){behind}", response)


class Facts(Task):
    """Queries with accepted keywords; an item's id begins with its category."""

    end_matters = False  # plain text goes on for ever; a keyword is there or not among so many tokens

    def items(self, data: DataConfig, split: str, count: int, seed: int) -> list[Item]:
        """The project's own 200, or those of `test_file`, in their order; there is no other side than the test's."""
        if side_of(split) != "test":
            return []
        path = OWN if data.source == "own" else (project_root() / data.test_file).resolve()
        return take(read_jsonl(path, "test", item_of_row), data, split, count)

    def judge(self, item: Item, response: str, read: Reader) -> Judgement:
        """Its value is the keyword that was found, as it was written."""
        found = find_keyword(response, keywords_of(str(item.answer)))
        if not found:
            return Judgement(None, "no-keyword" if response.strip() else "empty", None, False)
        return Judgement(found[0], "keyword", found.span(), True)


def item_of_row(row: dict, where: str, default_id: str) -> Fact:
    """One row: `query` and `accepted`, a list of keywords; an `id` and a `category` if it has them. Raises UserError if
    the query is empty, there is no keyword, or one is blank; the sentence begins with `where`."""
    require_fields({"query": text_of(row.get("query"))}, where)
    accepted = row.get("accepted")
    words = [word for word in accepted if isinstance(word, str) and word.strip()] if isinstance(accepted, list) else []
    if not words or len(words) < len(accepted) or any(BETWEEN.strip() in word for word in words):
        raise UserError(f"{where}: 'accepted' must list the keywords that make an answer right, such as [\"Paris\"].")
    words = [unicodedata.normalize("NFC", word.strip()) for word in words]
    name, query = text_of(row.get("id")) or default_id, text_of(row.get("query"))
    return Fact(name, query, f"{query} {words[0]}.", BETWEEN.join(words), text_of(row.get("category")))


TASK = Facts()
