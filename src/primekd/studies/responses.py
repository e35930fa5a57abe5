"""What the teacher wrote for the training items, arm by arm (responses.csv): a priming may make it shorter, wordier or
more often right, and students learn that. Of labels (labels.csv): how many were none, and what they cost."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from primekd.assessment.answers import Answer
from primekd.assessment.logs import grade_answers
from primekd.assessment.students import Student
from primekd.capture.jobs import open_signals, training_job
from primekd.config import Profile, get_arm, split_seed, unprimed
from primekd.foundation import Estimated, UserError, read_json, table_row
from primekd.models import decode_response, load_tokenizer
from primekd.signals import SignalReader
from primekd.statistics.corrections import LABELS, LabelRow
from primekd.statistics.inference import accuracy
from primekd.tasks import Item, load_items, task_of

RESPONSES = "responses.csv"


@table_row
class ResponseRow:
    """The teacher's responses to the training items under one arm's prompt (`model`). `correct`: by the automatic
    verdict. `tokens`: of a response, the mean. `same_share`: of the positions of this and the unprimed response those
    with the same token; `same_whole`: equal responses; both empty for the unprimed arm, and where its store is gone."""

    model: str
    n: int
    correct: int
    accuracy: Estimated
    tokens: float
    truncated: int
    same_share: float | None
    same_whole: int | None


def stored_answers(profile: Profile, items: Iterable[Item], reader: SignalReader) -> list[Answer]:
    tokenizer = load_tokenizer(profile.teacher)
    stored = [reader.item(item.id) for item in items]
    return [Answer(s.item_id, s.response_ids, s.truncated, decode_response(tokenizer, s.response_ids)) for s in stored]


def response_rows(profile: Profile, students: Sequence[Student]) -> list[ResponseRow]:
    """A row for every store that students learned from and the unprimed one, as far as they can be read."""
    readers: dict[Path, SignalReader] = {}
    for student in students:
        inputs = student.manifest["inputs"]
        if get_arm(inputs["strategy"]).store:
            job = training_job(profile, inputs["strategy"], inputs["seed"])
            try:
                if job.folder not in readers:  # greedy decoding has one for all seeds
                    readers[job.folder] = open_signals(job)
            except UserError as error:
                print(f"{RESPONSES} says nothing of {job.folder.name}: {error}")
    return [_row(profile, reader, readers.get(_unprimed(folder))) for folder, reader in readers.items()]


def _unprimed(folder: Path) -> Path:
    """The store of the arm without a priming, under the same seed where the teacher draws its responses."""
    strategy, _ = split_seed(folder.name)
    return folder.with_name(f"{unprimed().name}{folder.name.removeprefix(strategy)}")


def _row(profile: Profile, reader: SignalReader, unprimed: SignalReader | None) -> ResponseRow:
    items = load_items(profile, "train")
    answers = stored_answers(profile, items, reader)
    verdicts = [row.correct for row in grade_answers(items, answers, profile.assess.extractor, task_of(profile.data))]
    ids = [answer.ids for answer in answers]
    alike = None, None
    if unprimed not in (None, reader):
        alike = agreement(ids, [unprimed.item(item.id).response_ids for item in items])
    return ResponseRow(
        reader.folder.name, len(items), sum(verdicts), *accuracy(verdicts),
        sum(map(len, ids)) / len(ids), sum(answer.truncated for answer in answers), *alike,
    )  # fmt: skip


def agreement(first: Iterable[list[int]], second: Iterable[list[int]]) -> tuple[float, int]:
    """(share of the positions of the longer response at which both have the same token, responses that are equal)."""
    pairs = list(zip(first, second, strict=True))
    same = sum(a == b for pair in pairs for a, b in zip(*pair, strict=False))
    return same / sum(max(map(len, pair)) for pair in pairs), sum(a == b for a, b in pairs)


def label_rows(profile: Profile, students: Iterable[Student]) -> list[LabelRow]:
    """A row for each student of a teacher's text; how many labels were right is not known where its store is gone."""
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
    inputs, task = student.manifest["inputs"], task_of(profile.data)
    try:
        reader = open_signals(training_job(profile, inputs["strategy"], inputs["seed"]))
    except UserError as error:
        print(f"{LABELS} says less of {student.name}: {error}")
        return None
    answers = stored_answers(profile, items, reader)
    return sum(task.judge(i, a.text, lambda *_: None).correct for i, a in zip(items, answers, strict=True))


def _costs(profile: Profile, store: dict[str, Any]) -> tuple[float | None, ...]:
    seconds = sum(session["seconds"] for session in store.get("sessions", [])) / store["items"] * 1000
    spent = read_json(profile.ledger) if profile.ledger.is_file() else {}
    if not spent.get("answers"):
        return None, None, seconds, None
    tokens = (spent[name] / spent["answers"] for name in ("input_tokens", "output_tokens"))
    return *tokens, seconds, (spent["spent_usd"] + spent["unsettled_usd"]) / spent["answers"] * 1000
