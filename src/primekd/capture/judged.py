"""What each captured response was: right or wrong, how long, how sure, how far its priming moved the teacher. Written
by `studies.primed`, and read here by whoever is to train on right answers alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from primekd.config import Profile
from primekd.foundation import MANIFEST, Count, Flag, Name, UserError, altered_outputs, read_manifest, read_records
from primekd.foundation.storage import relative_name

JUDGED, ARMS, POSITIONS = "priming.csv", "priming-arms.csv", "priming-positions.csv"
OF_PRIMING = (JUDGED, ARMS, POSITIONS)


@dataclass(frozen=True)
class JudgedRow:
    """A teacher's response to an item of a split under an arm's prompt. Sums in nats over its tokens. `same`: of all
    positions of this and the unprimed response, the share with the same token. `entropy`, `unsure` (tokens written with
    p below 0.9) and `kl` = KL(primed || unprimed), position by position on these very tokens, are empty where they were
    not measured, and `kl` of the unprimed teacher itself."""

    split: Name
    arm: Name
    id: Name
    correct: Flag
    tokens: Count
    truncated: Flag
    same: Annotated[float, Field(ge=0, le=1)]
    entropy: float | None
    unsure: int | None
    kl: float | None


@dataclass(frozen=True)
class PositionRow:
    """Response tokens `start` to `end` (not included; empty: all others) of an arm: means in nats a token."""

    split: Name
    arm: Name
    start: Count
    end: int | None
    tokens: Count
    entropy: float
    kl: float


def judged_folder(profile: Profile) -> Path:
    return profile.runs / "priming"


def right_answers(profile: Profile, arm: str, item_ids: Iterable[str], store: Path, shards: str) -> set[str]:
    """The training items that were answered right under an arm's prompt. Raises UserError if no row says so of one, or
    other responses were judged than those of the folder `store` with the hash `shards`, such as another seed's."""
    folder, wanted = judged_folder(profile), set(item_ids)
    path, command = folder / JUDGED, f"`primekd run --only teacher --profile {profile.name}`"
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{relative_name(path)} is not there, which says which answers are right: run {command} first.")
    made = read_manifest(folder / MANIFEST)
    if made["inputs"]["stores"].get(store.name) != shards or altered_outputs(folder / MANIFEST, made):
        fix = f"delete {relative_name(folder)}, then run {command}"
        raise UserError(f"{relative_name(path)} is not of the responses in {relative_name(store)}: {fix}.")
    rows = {row.id: row.correct for row in read_records(path, JudgedRow) if row.split == "train" and row.arm == arm}
    if missing := wanted - rows.keys():
        raise UserError(f"{relative_name(path)} has no row of {arm} and {min(missing)}: run it anew.")
    return {item for item in wanted if rows[item]}
