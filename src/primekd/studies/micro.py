"""Micro: does reverse KL into a tiny student from scratch help, beyond the text that it reads meanwhile?

    tokenise the text -> pretrain the control -> go on with every arm -> documents and benchmarks -> logs -> report

Every arm starts from the control's weights and reads the same tokens: without the teacher, with its forward or reverse
KL, and with the student's own text (GKD, arXiv 2306.13649; MiniLLM, arXiv 2306.08543)."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from primekd.assessment.answers import answers_folder
from primekd.assessment.held_out import HeldOutRow, held_out_folder
from primekd.assessment.score import Made
from primekd.assessment.students import Student, read_student
from primekd.config import CONTROL, CORPUS, TEACHER, Profile, arms_of, split_seed
from primekd.foundation import MANIFEST, UserError, relative_name, table_text
from primekd.studies import priming
from primekd.studies.priming import START, planned
from primekd.studies.study import Logs, Study, lost_copies, trained
from primekd.tasks.text import text_folder
from primekd.training.pretrain import differs, part_of, train_on_text

# Rough seconds on two cores, measured with `micro-pocket`: only their ratios matter, the clock does the rest.
PRETRAIN_TOKEN, TAUGHT_TOKEN, DOCUMENT = 2e-4, 2e-3, 0.5


def seeds_of(profile: Profile) -> list[int]:
    """The profile's own seed and every further one that an arm is trained under; each has a control of its own."""
    return [profile.seed, *sorted({seed for seeds in profile.seeds.values() for seed in seeds})]


def train(profile: Profile, name: str, seed: int | None = None, force: bool = False) -> Path:
    """Pretrains the control, or goes on with an arm, whose folder is returned. Raises UserError as `train_on_text`."""
    from primekd.assessment.watch_choices import ChoicesCallback

    watch = partial(ChoicesCallback, profile) if profile.pretrain and profile.pretrain.choices else None
    return train_on_text(profile, name, seed, force, watch)


def tokenise(profile: Profile) -> Path:
    """The profile's text as shards of tokens; returns their folder. Raises UserError as `tasks.text.tokenise`."""
    from primekd.models import load_tokenizer, tokenizer_hash
    from primekd.tasks.text import tokenise

    tokenizer = load_tokenizer(profile.student.speaker)
    return tokenise(profile, tokenizer, tokenizer_hash(tokenizer))


def students(profile: Profile) -> list[Student]:
    """The controls and every arm's students, in that order. Raises UserError if one is not trained, was altered, or was
    trained under another profile than today's."""
    found = [(name, read_student(profile, name, folder)) for name, folder in student_folders(profile)]
    for name, student in found:
        seed = int(split_seed(student.name)[1] or profile.seed)
        if changed := differs(profile, name, seed, student.manifest["inputs"]):
            where = relative_name(student.folder)
            raise UserError(f"{where} differs from the profile ({', '.join(changed)}): train it again.")
    return [student for _, student in found]


def student_folders(profile: Profile) -> Iterator[tuple[str, Path]]:
    """The control's folders and every arm's, one a seed."""
    for name in (CONTROL, *arms_of(profile)):
        for seed in seeds_of(profile) if name == CONTROL else (profile.seed, *profile.seeds.get(name, ())):
            yield name, profile.student_folder(name, seed)


def refuse_text(profile: Profile, task: str) -> None:
    """Raises UserError for what students of text cannot do without; `task`: what the study asks models."""
    for arm in (None, *arms_of(profile).values()):
        part_of(profile, arm)
    said = f"{profile.name}: the study {profile.study}"
    if not profile.student.from_scratch:
        raise UserError(f"{said} trains its students from scratch: set student.from_scratch.")
    if profile.data.task != task:
        raise UserError(f"{said} asks models the task {task}: set data.task to it.")
    if task != "choices" and profile.pretrain and profile.pretrain.choices:
        raise UserError(f"{said} asks no choices: take pretrain.choices out.")
    if profile.teacher.engine != "transformers":
        raise UserError(f"{profile.name}: the teacher is asked while students learn: set teacher.engine: transformers.")
    context = profile.student.from_scratch.max_position_embeddings
    for own in filter(None, (arm.on_policy_of(profile) for arm in arms_of(profile).values())):
        longest = own.prompt_tokens + own.max_new_tokens
        if longest - 1 > context:
            wrote = f"has students write up to {longest} tokens, more than their context of {context} holds"
            raise UserError(f"{said} {wrote}: lower on_policy.max_new_tokens or on_policy.prompt_tokens.")
    if other := [name for name, arm in arms_of(profile).items() if arm.text != CORPUS]:
        raise UserError(f"{profile.name}: {other[0]} learns from no text of the profile: take it out of arms.")


def assess(profile: Profile, force: bool = False) -> Path:
    from primekd.studies.text_assessment import assess

    return assess(profile, students(profile), force=force)


def tables(profile: Profile, logs: Logs, held_out: list[HeldOutRow]) -> dict[str, str]:
    from primekd.statistics import choices
    from primekd.studies.results import BENCHMARK_CONTRASTS, BENCHMARKS

    chosen, pairs = choices.read_choices(profile.logs, logs), planned(logs, profile.planned.main)
    contrasts = choices.benchmark_contrasts(chosen, pairs, profile.assess.choose_by)
    own = {BENCHMARKS: table_text(choices.BenchmarkRow, choices.benchmark_rows(chosen))}
    own |= {BENCHMARK_CONTRASTS: table_text(choices.BenchmarkContrastRow, contrasts)}
    return priming.tables(profile, logs, held_out) | own


def costs(profile: Profile, capture_workers: int = 1, scoring_jobs: int = 1) -> dict[str, float]:
    read = profile.text.train_tokens - profile.pretrain.tokens
    documents = profile.text.held_out_documents * len(arms_of(profile)) * len(seeds_of(profile))
    return {
        "text": START,
        "pretrain": START + PRETRAIN_TOKEN * profile.pretrain.tokens,
        "distill": START + TAUGHT_TOKEN * read,
        "assess": START + DOCUMENT * documents,
        "report": START / 3,
    }


def made(profile: Profile, answers: str = "choices") -> Iterator[Made]:
    """As Study.made says. `answers`: the stage that asks the models (stage_code.STAGES)."""
    for _, student in student_folders(profile):
        yield "pretrain", profile, student
        yield "text-fit", profile, held_out_folder(profile, student.name)
        yield answers, profile, answers_folder(profile, student.name)
    yield "text-fit", profile, held_out_folder(profile, TEACHER)
    yield answers, profile, answers_folder(profile, TEACHER)
    yield "assess-text", profile, profile.logs


def lost(
    profile: Profile, folder: str = "micro-KD", pretrain: str = "pretrain", distill: str = "distill"
) -> list[Path]:
    """As Study.lost says. `folder`: of the notebooks; `pretrain`, `distill`: those that train control and arm."""
    done = profile.runs / "notebooks"
    results = [*trained(profile, distill)]
    for control in (profile.student_folder(CONTROL, seed) for seed in seeds_of(profile)):
        results.append(("distill", control / MANIFEST, [done / control.name / f"{pretrain}.ipynb"]))
    if not (text := text_folder(profile) / MANIFEST).is_file():
        results.append(("tokenise", text, [done / folder / "get_text.ipynb"]))
    return lost_copies(profile, results, done / folder / "assess.ipynb")


STUDY = Study(
    question="Does reverse KL help a tiny student from scratch, beyond the text that it reads meanwhile?",
    expected={"micro-pocket": "no difference is claimed, and every student answers the benchmarks at chance."},
    rules="micro.smk",
    labels={"text": "tokenise", "report": "write the report"},
    forced={"distill": ("pretrain", "distill"), "assess": ("assess",)},
    costs=costs,
    lost=lost,
    assess=assess,
    tables=tables,
    sections=("results", "text", "training", "costs", "provenance", "items"),
    title="Reverse KL into a tiny student",
    refuse=lambda profile: refuse_text(profile, "choices"),
    made=made,
)
