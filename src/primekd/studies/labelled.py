"""What a teacher's labels were, of those that each student was trained on: how many were none, and what they cost."""

from collections.abc import Iterable, Sequence
from typing import Any

from primekd.assessment.students import Student
from primekd.capture.jobs import open_signals, training_job
from primekd.config import Profile
from primekd.config.arm import split_seed
from primekd.config.arms import get_arm
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import read_json
from primekd.models import load_tokenizer
from primekd.models.chat import decode_response
from primekd.statistics.corrections import LABELS, LabelRow
from primekd.tasks.load import load_items, task_of
from primekd.tasks.protocol import Item


def label_rows(profile: Profile, students: Iterable[Student]) -> list[LabelRow]:
    """A row for each student that was trained on a teacher's text. Where its store is gone, it is not known how many
    labels were right (signals take room, and nobody needs them after the training)."""
    rows = []
    for student in students:
        arm = get_arm(split_seed(student.name)[0])
        if not arm.teacher:
            continue
        dropped = student.manifest.get("dropped", {})
        unfit = dropped.get("unfit", {})
        items = load_items(profile, "train")[: round(arm.share * profile.data.train_items)]
        said = "; ".join(f"{reason}: {count}" for reason, count in sorted(unfit.items()))
        asked, left = len(items), profile.data.train_items - dropped.get("items", 0)
        rows.append(
            LabelRow(student.name, asked, sum(unfit.values()), said, left, _right(profile, items, student),
                     *_costs(profile, student.manifest["signals"]))
        )  # fmt: skip
    return rows


def _right(profile: Profile, items: Sequence[Item], student: Student) -> int | None:
    """Labels that are judged right; None where they are gone."""
    inputs = student.manifest["inputs"]
    try:
        reader = open_signals(training_job(profile, inputs["strategy"], inputs["seed"]))
    except UserError as error:
        print(f"{LABELS} says less of {student.name}: {error}")
        return None
    tokenizer, task = load_tokenizer(profile.teacher), task_of(profile.data)
    said = {item.id: decode_response(tokenizer, reader.item(item.id).response_ids) for item in items}
    return sum(task.judge(item, said[item.id], lambda *_: None).correct for item in items)


def _costs(profile: Profile, store: dict[str, Any]) -> tuple[float | None, ...]:
    seconds = sum(session["seconds"] for session in store.get("sessions", [])) / store["items"] * 1000
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
