"""What the answers of each model cost on the machine that made them: seconds, energy, emissions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from primekd.assessment.answers import answers_folder
from primekd.assessment.logs import LogRow
from primekd.config import TEACHER, Profile
from primekd.foundation import MANIFEST, Count, Name, read_manifest, summed, write_table

FILE = "costs.csv"
IDLE = "idle"  # the machine with nothing to do, for as long as it was looked at
Amount = Annotated[float | None, Field(ge=0)]


@dataclass(frozen=True)
class CostRow:
    """A model's answers to the test items: how many, their tokens, and what was used meanwhile by the whole machine,
    other work on it included; None where it is not known. `method`: what the energy was read from."""

    model: Name
    answers: Count
    tokens: Count
    seconds: Amount
    energy_wh: Amount
    co2e_g: Amount
    method: str


def write_costs(
    profile: Profile, logs: Mapping[str, Sequence[LogRow]], sessions: Iterable[dict[str, Any]] = (),
    idle: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Writes costs.csv beside a profile's logs. `sessions`: those of the capture that has the teacher's answers, where
    it was not asked as the others are. `idle`: a Meter's facts of the idle machine."""
    rows = []
    for name, log in logs.items():
        path = answers_folder(profile, name) / MANIFEST
        records = [read_manifest(path)] if path.is_file() else list(sessions) if name == TEACHER else []
        rows.append(_row(name, len(log), sum(row.response_tokens for row in log), records))
    rows += [_row(IDLE, 0, 0, [idle])] if idle else []
    return write_table(profile.logs / FILE, CostRow, rows)


def _row(name: str, answers: int, tokens: int, records: Sequence[dict[str, Any]]) -> CostRow:
    found = summed(records)
    energy, co2e = (None if found[key] is None else 1e3 * found[key] for key in ("energy_kwh", "co2e_kg"))
    return CostRow(name, answers, tokens, found["seconds"], energy, co2e, found["energy_method"] or "")
