"""UA-GEC: Ukrainian texts with the errors of people who wrote them, and their corrections; the package `ua-gec`.

Source: Syvokon and Nahorna, "UA-GEC: Grammatical Error Correction and Fluency Corpus for the Ukrainian Language",
arXiv 2103.16997 (CC-BY-4.0).
"""

import importlib.util
from pathlib import Path

from primekd.foundation.errors import UserError


def read_ua_gec(side: str) -> list[tuple[str, str, str]]:
    """(id, sentence, the first annotator's correction) of the part `gec-only`; an id begins with its document. Raises
    UserError if the package is not installed, or a document has not as many corrected sentences as sentences."""
    spec = importlib.util.find_spec("ua_gec")  # nothing of it is run
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
