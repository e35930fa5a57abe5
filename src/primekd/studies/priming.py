"""Response priming: does the way the teacher is prompted change how much a student learns from it?

    prepare the teacher -> capture (an arm's prompt) -> distill -> answers and held-out fit -> logs -> report

Source: "Enhancing Knowledge Distillation for LLMs with Response-Priming Prompting"."""

from collections.abc import Collection, Iterator
from pathlib import Path

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.inside import inside_folder
from primekd.assessment.score import made_of
from primekd.assessment.students import require_control
from primekd.capture.judged import judged_folder
from primekd.config import CONTROL, PRIMED, UNTRAINED, Profile, arms_of, load_arms, unprimed
from primekd.foundation import MANIFEST, UserError, project_root
from primekd.statistics.families import Pair, Planned, plan_of
from primekd.studies.study import Logs, Result, Study, is_lost, lost_copies, scored_with, trained
from primekd.tasks.load import NEUTRAL, load_answer_sets, load_items, task_of

# Rough seconds on two cores, measured with `pocket`: only their ratios matter, the clock does the rest.
START = 15  # starting a kernel, loading a model
CAPTURE_ITEM = 0.3  # generating and scoring
TRAIN_ITEM = 0.5  # one pass of training
TEST_ITEM = 0.5  # answering and held-out fit, of one model
INSIDE_ITEM = 0.25  # reading a prompt and its answer, of one model


def models(profile: Profile) -> list[str]:
    """What is scored, the slow ones last: the control, arms without a teacher, arms with one."""
    arms = arms_of(profile)
    untrained = UNTRAINED if profile.assess.few_shot else (CONTROL,)
    return [*untrained, *sorted(arms, key=lambda name: arms[name].teacher)]


def further_seeds(profile: Profile, store: str) -> list[int]:
    """Where the teacher samples, students of another seed learn from other answers: of a store those captured beside
    the first."""
    arms = arms_of(profile).items() if profile.teacher.sampling_temperature else ()
    return sorted({seed for n, arm in arms if store in (arm.store, arm.text) for seed in profile.seeds.get(n, ())})


def planned(names: Collection[str], named: Collection[Pair] = ()) -> Planned:
    """By the roles of the arms, those of a profile's own and those that it does not run, and by what it names."""
    return plan_of(names, load_arms(), named)


def tables(profile: Profile, logs: Logs, held_out: list[HeldOutRow]) -> dict[str, str]:
    from primekd.studies.results import compute_tables

    return compute_tables(profile, logs, held_out, planned(logs, profile.planned.main))


def refuse(profile: Profile) -> None:
    """As Study.refuse says: a student without a base, an arm, a contrast or an answer set that cannot be had."""
    require_control(profile)
    arms, base = arms_of(profile), unprimed().name
    if base not in arms and any(arm.role in PRIMED for arm in arms.values()):
        raise UserError(f"{profile.name}: primed teachers are compared with {base}'s: list that arm too.")
    if profile.teacher.api and profile.teacher.api.withheld_is_empty and not task_of(profile.data).filters:
        raise UserError(f"{profile.name}: students would learn withheld answers: take withheld_is_empty out.")
    load_answer_sets(profile)
    load_items(profile, NEUTRAL)


def assess(profile: Profile, force: bool = False) -> Path:
    from primekd.studies.assess import assess

    return assess(profile, force)


def parts(profile: Profile) -> tuple[str, ...]:
    """As Study.parts says; the published protocol's deviations where any arm has some."""
    deviating = any(arm.deviates for arm in arms_of(profile).values())
    return ("teacher", "inside", "ablation") if deviating else ("teacher", "inside")


def costs(profile: Profile, capture_workers: int = 1, scoring_jobs: int = 1) -> dict[str, float]:
    """Models are shared out among the scoring jobs; where only some are scored again, the others count too."""
    data = profile.data
    captured = CAPTURE_ITEM * data.train_items
    scored = TEST_ITEM * profile.asked_items * len(models(profile))
    return {
        "teacher": START,
        "capture_part": START + captured / capture_workers,
        "capture": START + (captured if capture_workers == 1 else 0),
        "distill": START + TRAIN_ITEM * data.train_items * profile.train.epochs * len(profile.train.rates),
        "reference": START + CAPTURE_ITEM * data.test_items,
        "primed": START + CAPTURE_ITEM * 2 * profile.assess.teacher_items * len(arms_of(profile)),
        "score": START + scored / scoring_jobs,
        "assess": START + (scored if profile.assess.engine == "vllm" else 0),
        "attention": START + INSIDE_ITEM * profile.inside.items * len(models(profile)),
        "confidence": START + INSIDE_ITEM * profile.inside.items * len(models(profile)),
        "inside": START,
        "ablation": START,
        "report": START / 3,
    }


def lost(profile: Profile) -> list[Path]:
    done = profile.runs / "notebooks"
    measured = done / "assessment" / "teacher.ipynb"
    results = [*results_of(profile), ("assess", judged_folder(profile) / MANIFEST, [measured])]
    results.append(("capture", profile.signals_folder("held-out") / MANIFEST, [measured]))
    for name, arm in arms_of(profile).items():
        if arm.store == name:
            own = [done / name / "inference_gsm8k.ipynb", *(done / name).glob("captured-*.done")]
            own += [done / name / "distill.ipynb", *scored_with(done, name)]
            seeds = None, *further_seeds(profile, name)
            results += [("capture", profile.signals_folder(name, seed) / MANIFEST, own) for seed in seeds]
    found = lost_copies(profile, results, done / "assessment" / "assess.ipynb")
    found += [done / "assessment" / "ablation.ipynb"] if done / "assessment" / "assess.ipynb" in found else []
    if is_lost(profile, "inside", inside_folder(profile) / MANIFEST):  # nothing waits for it
        found += [done / "analysis" / "attention.ipynb", done / "analysis" / "confidence.ipynb", done / "inside.done"]
    return found


def results_of(profile: Profile) -> Iterator[Result]:
    """What every study makes whose students answer test items beside a teacher."""
    done = profile.runs / "notebooks"
    if profile.prepare:
        yield "prepare-teacher", project_root() / profile.prepare.output, [done / "teacher.done"]
    scored = (done / "scored").glob("*.done")
    yield "capture", profile.signals_folder("held-out") / MANIFEST, [done / "reference.done", *scored]
    yield from trained(profile)
    for name in models(profile):
        for *_, folder in made_of(profile, name).values():
            yield "assess", folder / MANIFEST, scored_with(done, name)


STUDY = Study(
    question="Does the way a quantised teacher is prompted change what a small student learns from its logits?",
    expected={
        "laptop": "no student of a primed teacher is claimed to get more or fewer questions right than the unprimed "
        "teacher's or the placebo's; gold solutions are likelier under each; `shuffled-KD` is far worse.",
        "pocket": "the effect that was planted is found: the student of bare answers (`ai-KD`) gets fewer questions "
        "right than the unprimed teacher's.",
        "pocket-plain": "nothing was planted, and no accuracy is claimed to differ from the unprimed arm's.",
    },
    rules="priming.smk",
    labels={
        "teacher": "prepare the teacher", "reference": "capture held-out", "primed": "what priming did to the teacher",
        "inside": "inside the students", "ablation": "the published protocol", "report": "write the report",
    },
    parts=parts,
    forced={  # all arms of a stage, and the held-out capture, are one
        "prepare-teacher": ("teacher",),
        "capture": ("capture", "reference", "primed"),
        "distill": ("distill",),
        "assess": ("primed", "score", "assess"),
        "inside": ("attention", "confidence", "inside"),
    },
    costs=costs,
    lost=lost,
    assess=assess,
    tables=tables,
    sections=(
        "claims", "results", "primed", "beyond", "deviations", "inside", "extraction", "training", "costs",
        "provenance", "items",
    ),
    title="Response priming and distillation",
    refuse=refuse,
)  # fmt: skip
