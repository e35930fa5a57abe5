"""M2 files, as the field of grammatical error correction exchanges them: sentences and the edits that correct them.

Source: Dahlmeier and Ng, "Better Evaluation for Grammatical Error Correction", NAACL 2012.
"""

import re
from pathlib import Path

from primekd.foundation.errors import UserError
from primekd.foundation.provenance import relative_name

UNCHANGED = ("noop", "UNK", "Um")  # types of no error, and of one without a correction (ERRANT's word, and NUCLE's)


def read_m2(path: Path) -> list[tuple[str, str]]:
    """(sentence, the same with the first annotator's edits) of every block; words are joined by single spaces.

    A block is `S` with the words, `A` with an edit of them a line, and a blank line. Raises UserError if the file is
    absent, or a line is neither, or an edit lies outside its sentence.
    """
    name = relative_name(path)
    if not path.is_file():
        raise UserError(f"{name} is not there: check data.train_file and data.test_file in the profile.")
    pairs = []
    for block in re.split(r"\n[ \t]*\n", path.read_text(encoding="utf-8-sig").strip()):
        first, *edits = block.strip().split("\n")
        if not first.startswith("S "):
            raise UserError(f"{name}: a sentence begins with 'S ', not with {first[:30]!r}. Mend the file.")
        words = first[2:].split()
        gold = _edited(words, edits, f"{name}: {first[:60]!r}")
        pairs.append((" ".join(words), " ".join(gold)))
    return pairs


def _edited(words: list[str], lines: list[str], where: str) -> list[str]:
    """The words after the first annotator's edits, made from the last one on, so that places stay right."""
    edits = []
    for line in lines:
        fields = line.removeprefix("A ").split("|||")
        span = re.fullmatch(r"(-?\d+) (-?\d+)", fields[0])
        if not line.startswith("A ") or len(fields) != 6 or not span:
            raise UserError(f"{where}: {line[:60]!r} is no edit. Mend the file.")
        start, end = map(int, span.groups())
        if fields[1] in UNCHANGED or fields[5] != "0":
            continue
        if not 0 <= start <= end <= len(words):
            raise UserError(f"{where}: the edit {line[:60]!r} lies outside the sentence. Mend the file.")
        new = fields[2].split("||")[0].strip()  # the first of several that are as good
        edits.append((start, end, new.split() if new != "-NONE-" else []))
    for start, end, new in reversed(sorted(edits, key=lambda edit: edit[:2])):
        words = [*words[:start], *new, *words[end:]]
    return words
