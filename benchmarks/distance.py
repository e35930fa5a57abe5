"""How far from its floor each stage is: what was measured, divided by the least time that the machine's rates allow."""

from pathlib import Path
from typing import Any

from benchmarks.losses import frozen_name
from benchmarks.results import read_part
from benchmarks.tables import markdown_table
from primekd.report.formats import MISSING, markdown, significant

Row = tuple[str, float, float | None]  # stage, seconds at least, seconds measured


def distances(folder: Path) -> list[Row]:
    """One row a stage at pocket's size; the seconds measured are None where its part was not run.

    The floors of the table "floors" are for the profile's mean lengths, which the benchmarks' own items have nearly.

    Raises:
        KeyError: the floors have not been measured.
    """
    floors = read_part(folder, "floors") or {}
    machine = floors["machine"]
    least = {entry["stage"]: entry["seconds"] for entry in floors["pocket-plain"]}
    rows: list[Row] = []
    losses = read_part(folder, "losses") or {"width": 0, "sections": {}}
    for name, section in losses["sections"].items():
        if section["divergence"] == "forward_kl":
            # Student's logits, teacher's logits and the gradient for the hidden states: 2 V D operations each.
            operations = 6 * section["vocabulary"] * section["width"] * section["tokens"]
            seconds = section["alternatives"][frozen_name("hidden")]["seconds"]["median"]
            stage = f"loss of {section['tokens']} tokens from hidden rows, {name}"
            rows.append((stage, operations / machine[f"{section['dtype']}_per_s"], seconds))
    training = read_part(folder, "training")
    rows.append(_training(training, least["training step from hidden states"]))
    capture = read_part(folder, "capture_transformers")
    rate = capture and capture["rates"]["plain generation"]["median"]
    rows.append(("generating a token with transformers, its prompt not counted", least["generate"], rate and 1 / rate))
    assessment = read_part(folder, "assessment")
    if assessment is not None:
        rows.append(_assessment(assessment, least["assess"]))
    return rows


def _training(found: dict[str, Any] | None, least: float) -> Row:
    if found is None:
        return "training step from hidden signals", least, None
    seconds = found["alternatives"]["hidden signals"]["seconds"]["median"]
    return f"training step of {found['sequences']} sequences from hidden signals", least * found["sequences"], seconds


def _assessment(found: dict[str, Any], least: float) -> Row:
    # The last model is the one with an adapter; the base model's answers are longer than those that the floor is for.
    name, model = [*found["models"].items()][-1]
    items = model["items"]["in batches"]
    seconds = model["tokens"]["in batches"] / model["tokens_per_second"]["in batches"]["median"]
    return f"answering {items} test items, {name}", least * items, seconds


def table(folder: Path) -> str:
    """The rows as Markdown, with a sentence where the floors are missing."""
    try:
        rows = distances(folder)
    except KeyError:
        return "Not run: there is no floors.json."
    cells = [[markdown(stage), significant(least, 3), *_measured(least, seconds)] for stage, least, seconds in rows]
    return markdown_table(["Stage", "Seconds at least", "Measured", "Times the floor"], cells)


def _measured(least: float, seconds: float | None) -> list[str]:
    return [MISSING] * 2 if seconds is None else [significant(seconds, 3), significant(seconds / least, 3)]
