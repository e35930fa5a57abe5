"""Pseudo-labels: a teacher of which nothing but its text is to be had, behind an API, and students that learn from it.

    prepare the teacher -> label (the API) -> distill -> answers and held-out fit -> logs -> report

A large model corrects sentences, and a small one is trained on its corrections, on a GPU with QLoRA (arXiv 2305.14314).
No arm but `base-fine-tune`, which is the ceiling, is trained on gold sentences: they judge."""

from pathlib import Path

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.students import require_control
from primekd.config import Profile, arms_of, refuse_gold, unprimed
from primekd.foundation import MANIFEST, UserError, table_text
from primekd.statistics.corrections import FILE, LanguageRow, language_rows
from primekd.studies import priming
from primekd.studies.priming import START, models, results_of
from primekd.studies.study import Logs, Study, lost_copies

# Rough seconds on two cores, measured with `labels-pocket`: only their ratios matter, the clock does the rest.
LABEL = 0.5  # one answer of the server
TRAIN_ITEM = 0.25
TEST_ITEM = 0.3


def tables(profile: Profile, logs: Logs, held_out: list[HeldOutRow]) -> dict[str, str]:
    return priming.tables(profile, logs, held_out) | {FILE: table_text(LanguageRow, language_rows(logs))}


def refuse(profile: Profile) -> None:
    """As Study.refuse says: whatever could bring a gold sentence into a student that learns from the teacher."""
    require_control(profile)
    for name, arm in arms_of(profile).items():
        refuse_gold(profile, arm)
        if arm.teacher and arm.cell[0] != unprimed().name:
            raise UserError(f"{profile.name}: {name} has another text than the teacher's labels: take it out of arms.")
    if profile.assess.few_shot not in (0, "instruction"):
        raise UserError(f"{profile.name}: assess.few_shot would show gold sentences: set it to instruction or 0.")


def costs(profile: Profile, capture_workers: int = 1, scoring_jobs: int = 1) -> dict[str, float]:
    data, shares = profile.data, [arm.share for arm in arms_of(profile).values()]
    trained = TRAIN_ITEM * data.train_items * profile.train.epochs * sum(shares) / max(1, len(shares))
    return {
        "data": START,
        "teacher": START,
        "label": START + LABEL * data.train_items,
        "distill": START + trained,
        "reference": START + LABEL * data.test_items,
        "score": START + TEST_ITEM * data.test_items * len(models(profile)) / scoring_jobs,
        "assess": START,
        "report": START / 3,
    }


def lost(profile: Profile) -> list[Path]:
    folder, name = profile.runs / "notebooks" / "api-KD", unprimed().name
    stores = [profile.signals_folder(name, seed) for seed in (None, *priming.further_seeds(profile, name))]
    labelled = [("capture", store / MANIFEST, [folder / "label.ipynb"]) for store in stores]
    return lost_copies(profile, [*results_of(profile), *labelled], folder / "assess.ipynb")


STUDY = Study(
    question="What does a small student learn from a teacher of which nothing but its text is to be had?",
    expected={"labels-pocket": "the student of the teacher's labels corrects more sentences than its base does."},
    rules="labels.smk",
    labels={
        "data": "the sentences",
        "teacher": "prepare the teacher",
        "label": "capture base-KD",
        "reference": "capture held-out",
        "report": "write the report",
    },
    forced={
        "prepare-teacher": ("teacher",),
        "capture": ("label", "reference"),
        "distill": ("distill",),
        "assess": ("score", "assess"),
    },
    costs=costs,
    lost=lost,
    assess=priming.assess,
    tables=tables,
    sections=("results", "corrections", "training", "costs", "provenance", "items"),
    title="Pseudo-labels",
    refuse=refuse,
)
