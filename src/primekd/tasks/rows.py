"""Rows of a data set, from a JSONL file or from the hub, on their way to items: what tasks with such rows share."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from primekd.foundation import UserError, clean, hide, project_root, relative_name
from primekd.tasks.protocol import Item
from primekd.tasks.splits import refuse_duplicates, side_of, take

if TYPE_CHECKING:
    from primekd.config import DataConfig

# The fields of a row, where it stands (a sentence begins with that) and the id of an item that has none of its own
# -> the item; None for a row that is left out, which `load_rows` counts aloud. What cannot be read is a UserError.
RowReader = Callable[[dict, str, str], Item | None]


def items_of_data(data: "DataConfig", split: str, count: int, item_of: RowReader) -> list[Item]:
    """`count` items of a split. Raises UserError as `read_jsonl` and `take`, or if the hub is not to be reached."""
    return take(rows_of_data(data, side_of(split), item_of), data, split, count)


def rows_of_data(data: "DataConfig", side: str, item_of: RowReader) -> list[Item]:
    """All items of a side. Raises UserError as `items_of_data`."""
    if on_hub(data, side):
        return load_hub(*data.hub_side(side), side, item_of)
    return read_jsonl(project_root() / getattr(data, f"{side}_file"), side, item_of)


def on_hub(data: "DataConfig", side: str) -> bool:
    """Whether a side's rows are the hub's: no file stands in for them."""
    name = getattr(data, f"{side}_file")
    return data.source == "hub" and not (name and (project_root() / name).is_file())


def read_jsonl(path: Path, prefix: str, item_of: RowReader) -> list[Item]:
    """Items of a JSONL file; those without an id are called `<prefix>-<line, from 0 on>`. Raises UserError, which names
    file and line, if the file is absent, a line is no JSON object, `item_of` refuses one, or an id occurs twice."""
    path = path.resolve()
    name = relative_name(path)
    if not path.is_file():
        raise UserError(
            f"{path} is not there: check data.train_file and data.test_file in the profile (YAML wants quotes around "
            "a path with # or : in it)."
        )
    rows = ((where, f"{prefix}-{number - 1}", row) for where, number, row in json_lines(path))
    return _items_of_rows(name, rows, item_of)


def json_lines(path: Path) -> Iterator[tuple[str, int, object]]:
    """(where it stands, its number from 1 on, what it says) of every line that is not blank. Raises UserError if one is
    no JSON, or the file no UTF-8."""
    name = relative_name(path)
    try:  # split on newlines alone: str.splitlines would also break at separators inside a question
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    for number, line in ((number, line) for number, line in enumerate(lines, start=1) if line.strip()):
        where = f"{name} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, or brackets without end, too
            raise UserError(f"{where} is not valid JSON ({getattr(error, 'msg', error)}). Mend the line.") from error
        yield where, number, value


def load_hub(name: str, config: str | None, revision: str | None, side: str, item_of: RowReader) -> list[Item]:
    """One side of the hub's data set. Raises UserError if it is not to be had, or `item_of` refuses a row."""
    from datasets import load_dataset
    from huggingface_hub import get_token

    hide(get_token() or "")
    try:
        rows = load_dataset(name, config, split=side, revision=revision)
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had
        raise UserError(
            f"The dataset {name!r} ({config}, {side}) could not be loaded from the hub ({type(error).__name__}: "
            f"{clean(error)}). Go online, name the set with the training items in data.train_dataset, or set "
            "data.source: jsonl with train_file and test_file in the profile."
        ) from error
    places = ((f"{name} {side} row {i}", f"{side}-{i}", dict(row)) for i, row in enumerate(rows))
    return _items_of_rows(name, places, item_of)


def _items_of_rows(name: str, rows: Iterable[tuple[str, str, object]], item_of: RowReader) -> list[Item]:
    """Items of a data set called `name`: (where it stands, id where it has none, fields) a row."""
    found = []
    for where, default_id, fields in rows:
        if not isinstance(fields, dict):
            raise UserError(f"{where} is no JSON object with fields such as question and answer.")
        if item := item_of(fields, where, default_id):
            refuse_half_pairs(f"{item.id}{item.question}{item.solution}", where)
        found.append(item)
    items = [item for item in found if item is not None]
    if not items:
        raise UserError(f"{name} holds no items.")
    if len(items) < len(found):
        without = f"{len(found) - len(items)} of {len(found)} rows have no gold answer to judge by"
        print(f"{name}: {without}: left out.", file=sys.stderr)
    refuse_duplicates(items, name)
    return items


def refuse_half_pairs(text: str, where: str) -> None:
    """Raises UserError, which begins with `where`, if a text is no valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the text holds half of a surrogate pair. Save it as valid UTF-8.") from error


def text_of(value: object) -> str:
    """A field as text, trimmed; '' where it is null or neither text nor a number."""
    if isinstance(value, float) and math.isfinite(value):  # 18.0 and 1e22 written out
        value = format(Decimal(repr(value)), "f").removesuffix(".0")
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def require_fields(fields: dict[str, str], where: str) -> None:
    """Raises UserError if one of these fields is empty."""
    if missing := [name for name, text in fields.items() if not text]:
        *others, last = fields
        needed = f"{', '.join(others)} and {last}"
        raise UserError(f"{where}: the field '{missing[0]}' is missing or empty. Every item needs {needed}.")
