"""What a study is to the rest: runner, report, plan and verify take one of these and know no study by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import LogRow
from primekd.assessment.score import Made, measured_anew
from primekd.config import Profile, arms_of, is_name
from primekd.foundation import MANIFEST, UserError, read_manifest
from primekd.foundation.stage_code import forced_since, is_older

Logs = dict[str, list[LogRow]]
Result = tuple[str, Path, list[Path]]  # a stage, the file that shows its result, executed copies that go with it


@dataclass(frozen=True)
class Study:
    question: str  # what it answers, in a sentence
    expected: Mapping[str, str]  # profile -> the result that it is known to give, so that silent breakage is seen
    rules: str  # its file in workflow/, included by the Snakefile
    labels: Mapping[str, str]  # what its rules are called, and their progress, where that is not the rule's own name
    forced: Mapping[str, tuple[str, ...]]  # what `--force-stage` names -> the rules that make it
    # (profile, workers a capture, scoring jobs) -> rule -> expected cost of a job; only ratios matter.
    costs: Callable[[Profile, int, int], dict[str, float]]
    lost: Callable[[Profile], list[Path]]  # executed copies whose results are gone or wanted anew, and those behind
    assess: Callable[[Profile, bool], Path]  # (profile, whether to make all anew) -> the folder of its logs
    # (profile, logs, held-out rows) -> file name -> text of every table that follows from the logs.
    tables: Callable[[Profile, Logs, list[HeldOutRow]], dict[str, str]]
    sections: tuple[str, ...]  # of the report, in order; templates of primekd.report
    title: str = "Distillation"  # the report's heading
    # Every result of a whole run, there or not; None where it is that of LoRA students beside a captured teacher.
    made: Callable[[Profile], Iterable[Made]] | None = None
    # What `primekd run --only` may stop behind in a profile: names of ONLY in its rules.
    parts: Callable[[Profile], tuple[str, ...]] = lambda profile: ()
    refuse: Callable[[Profile], None] = lambda profile: None  # UserError if it cannot run it, before anything is spent


def find_study(profile: Profile) -> Study:
    """The recipe that a profile names: `STUDY` of a module of this package. Raises UserError if there is none."""
    name = f"primekd.studies.{profile.study}"
    module = import_module(name) if is_name(profile.study) and "." not in profile.study and find_spec(name) else None
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        modules = sorted(Path(__file__).parent.glob("*.py"))  # by their text: none of them is imported
        known = ", ".join(p.stem for p in modules if "\nSTUDY = Study(" in p.read_text(encoding="utf-8"))
        raise UserError(f"{profile.name}: there is no study {profile.study!r}: set study to one of {known}.")
    return study


def lost_copies(profile: Profile, results: Iterable[Result], assessed: Path) -> list[Path]:
    """The copies of those results that are gone or wanted anew, each with the assessment's and the report's; these also
    where the logs are of other students or answers than lie here."""
    done, logs = profile.runs / "notebooks", profile.logs / MANIFEST
    behind = [assessed, done / "report.done"]
    results = [*results, ("assess", logs, [])]
    found = [copy for stage, file, own in results if is_lost(profile, stage, file) for copy in (*own, *behind)]
    found += _outdated(profile, logs, behind) if logs.is_file() else []
    return found if (profile.logs / "report.html").is_file() else [*found, behind[-1]]


def _outdated(profile: Profile, logs: Path, behind: list[Path]) -> list[Path]:
    """`behind`, and what was scored with the students concerned, where logs are of other students or answers."""
    try:
        record = read_manifest(logs)
    except UserError:
        return behind
    other = [name for name, facts in record.get("models", {}).items() if _trained_anew(profile, name, facts)]
    scored = [copy for name in other for copy in scored_with(profile.runs / "notebooks", name)]
    return [*scored, *behind] if other or measured_anew(profile, record) else []


def _trained_anew(profile: Profile, name: str, facts: dict[str, Any]) -> bool:
    """Whether another student of this name lies here than the one of the logs."""
    path = profile.runs / "students" / name / MANIFEST
    return path.is_file() and read_manifest(path)["outputs"] != facts["outputs"]


def is_lost(profile: Profile, stage: str, result: Path) -> bool:
    """Whether the file that shows a stage's result is gone or wanted anew."""
    return not result.is_file() or is_older(result, forced_since(profile, stage))


def trained(profile: Profile, notebook: str = "distill") -> Iterator[Result]:
    """The students of all arms and seeds, each with what was scored with it. `notebook`: what trains them."""
    done = profile.runs / "notebooks"
    for name in arms_of(profile):
        for seed in (None, *profile.seeds.get(name, ())):
            folder = profile.student_folder(name, seed)
            copies = {done / own / f"{notebook}.ipynb": None for own in (folder.name, name)}  # its own, or all seeds'
            yield "distill", folder / MANIFEST, [*copies, *scored_with(done, name)]


def scored_with(done: Path, model: str) -> list[Path]:
    """The stamps of all jobs that scored this model, alone or with others."""
    return [path for path in (done / "scored").glob("*.done") if model in path.stem.split("+")]
