"""What a teacher's labels were, of those that each student was trained on: how many were none, and what they cost."""

from collections.abc import Iterable, Sequence
from typing import Any

from primekd.assessment.students import Student
from primekd.capture.jobs import open_signals, training_job
from primekd.config import Profile
from primekd.config.arm import split_seed
from primekd.config.arms import get_arm
from primekd.foundation.provenance import read_json
from primekd.models import load_tokenizer
from primekd.models.chat import decode_response
from primekd.statistics.labels import LabelRow
from primekd.tasks.load import load_items, task_of


def label_rows(profile: Profile, students: Iterable[Student]) -> list[LabelRow]:
    """A row for each student that was trained on a teacher's text. Raises UserError if a store is not there."""
    rows = []
    for student in students:
        arm = get_arm(split_seed(student.name)[0])
        if not arm.teacher:
            continue
        dropped = student.manifest.get("dropped", {})
        unfit = dropped.get("unfit", {})
        items = load_items(profile, "train")[: round(arm.share * profile.data.train_items)]
        reader = open_signals(training_job(profile, arm.name, student.manifest["inputs"]["seed"]))
        said = "; ".join(f"{reason}: {count}" for reason, count in sorted(unfit.items()))
        asked, left = len(items), profile.data.train_items - dropped.get("items", 0)
        rows.append(
            LabelRow(student.name, asked, sum(unfit.values()), said, left, _right(profile, items, reader),
                     *_costs(profile, reader.manifest))
        )  # fmt: skip
    return rows


def _right(profile: Profile, items: Sequence, reader) -> int:
    """Labels that are judged right."""
    tokenizer, task = load_tokenizer(profile.teacher), task_of(profile.data)
    said = {item.id: decode_response(tokenizer, reader.item(item.id).response_ids) for item in items}
    return sum(task.judge(item, said[item.id], lambda *_: None).correct for item in items)


def _costs(profile: Profile, manifest: dict[str, Any]) -> tuple[float | None, ...]:
    seconds = sum(session["seconds"] for session in manifest.get("sessions", [])) / manifest["items"] * 1000
    spent = read_json(profile.ledger) if profile.ledger.is_file() else {}
    if not spent.get("answers"):
        return None, None, seconds, None
    answers = spent["answers"]
    return (
        spent["input_tokens"] / answers,
        spent["output_tokens"] / answers,
        seconds,
        spent["spent_usd"] / answers * 1000,
    )
