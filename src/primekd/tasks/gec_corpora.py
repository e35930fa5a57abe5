"""Corpora of grammatical error correction as they are published: M2 files, and the package `ua-gec`.

Sources: Dahlmeier and Ng, "Better Evaluation for Grammatical Error Correction", NAACL 2012 (M2: sentences and the edits
that correct them); Syvokon and Nahorna, "UA-GEC: Grammatical Error Correction and Fluency Corpus for the Ukrainian
Language", arXiv 2103.16997 (CC-BY-4.0)."""

import re
from importlib.util import find_spec
from pathlib import Path

from primekd.foundation import UserError, relative_name

UNCHANGED = ("noop", "UNK", "Um")  # types of no error, and of one without a correction (ERRANT's word, and NUCLE's)


def read_m2(path: Path) -> list[tuple[str, str]]:
    """(sentence, the same with the first annotator's edits) of every block; words are joined by single spaces.

    A block is `S` with the words, `A` with an edit of them a line, and a blank line. Raises UserError if the file is
    absent, or a line is neither, or an edit lies outside its sentence."""
    name = relative_name(path)
    if not path.is_file():
        raise UserError(f"{name} is not there: check data.train_file and data.test_file in the profile.")
    pairs = []
    for block in re.split(r"\n[ \t]*\n", path.read_text(encoding="utf-8-sig").strip()):
        first, *edits = block.strip().split("\n")
        if not first.startswith("S "):
            raise UserError(f"{name}: a sentence begins with 'S ', not with {first[:30]!r}. Mend the file.")
        words = first[2:].split()
        pairs.append((" ".join(words), " ".join(_edited(words, edits, f"{name}: {first[:60]!r}"))))
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


def read_ua_gec(side: str) -> list[tuple[str, str, str]]:
    """(id, sentence, the first annotator's correction) of the part `gec-only`; an id begins with its document. Raises
    UserError if the package is not installed, or a document has not as many corrected sentences as sentences."""
    spec = find_spec("ua_gec")  # nothing of it is run
    if spec is None:
        raise UserError("The source ua-gec is a package: pip install ua-gec==2.1.3.")
    folder = Path(spec.origin).parent / "data" / "gec-only" / side
    found = []
    for corrected in sorted((folder / "target-sentences").glob("*.a1.txt")):
        document = corrected.name.split(".")[0]
        sides = [folder / "source-sentences" / f"{document}.src.txt", corrected]
        asked, golds = (path.read_text(encoding="utf-8").split("\n") for path in sides)
        if len(asked) != len(golds):
            raise UserError(f"ua-gec: the document {document} has {len(asked)} sentences and {len(golds)} gold ones.")
        for number, pair in enumerate(zip(asked, golds, strict=True)):
            wrong, gold = (" ".join(text.split()) for text in pair)
            if wrong and gold:
                found.append((f"{document}-{number}", wrong, gold))
    return found
