"""Which code makes a stage's result, and what becomes of a result that other code made: it is kept, and that is said.
The code stands in manifests as `code`: sha256 (of all of it), packages (those that compute, with versions) and modules
(name -> short hash, to say what changed). It is apart from `inputs`, which decide whether a stage has to run."""

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from primekd.foundation.code_identity import closure
from primekd.foundation.errors import UserError
from primekd.foundation.manifests import MANIFEST, is_current, read_manifest
from primekd.foundation.progress import Profile
from primekd.foundation.provenance import git_state, package_versions
from primekd.foundation.storage import hash_json, read_json, relative_name, set_aside, write_json, write_text

Record = dict[str, Any]  # a manifest, or what else has `code` and `environment`

# Stage -> the modules that it begins in. Its code ends where another stage's begins: that one's results are its inputs.
STAGES = {
    "train-teacher": ("primekd.training.prepare_teacher", "primekd.training.distill", "primekd.training.train_student"),
    "prepare-teacher": ("primekd.training.prepare_teacher",),
    "capture": ("primekd.capture.run",),
    "distill": ("primekd.training.distill", "primekd.training.tuning", "primekd.training.train_student"),
    "pretrain": ("primekd.training.pretrain", "primekd.training.distill", "primekd.training.train_student"),
    "answers": ("primekd.assessment.answers", "primekd.assessment.score"),
    "held-out": ("primekd.assessment.held_out", "primekd.assessment.score"),
    "forgetting": ("primekd.assessment.forgetting", "primekd.assessment.score"),
    "choices": ("primekd.assessment.likelihood", "primekd.assessment.as_trained"),
    "completions": ("primekd.assessment.completions", "primekd.assessment.as_trained"),
    "text-fit": ("primekd.assessment.text_fit", "primekd.assessment.as_trained"),
    "assess-text": ("primekd.studies.text_assessment", "primekd.studies.regrade"),
    "priming": ("primekd.studies.primed",),
    "inside": ("primekd.studies.inside",),
    "grading": ("primekd.studies.regrade",),
    "assess": ("primekd.studies.assess", "primekd.studies.regrade"),
    "export": ("primekd.running.export", "primekd.assessment.as_trained"),
    "tokenise": ("primekd.tasks.text",),
    "published-study": ("primekd.studies.published", "primekd.studies.regrade"),
}
ENGINES = ("llamacpp", "exllamav2", "vllm", "api")  # beside transformers; a stage uses one at most
# What is imported -> the packages whose versions may change numbers.
ALONE = ("accelerate", "exllamav2", "gguf", "numpy", "safetensors", "scipy", "statsmodels", "sympy", "torch", "vllm")
COMPUTES = {name: (name,) for name in ALONE} | {
    "transformers": ("transformers", "tokenizers", "safetensors"),
    "peft": ("peft", "accelerate"),
    "llama_cpp": ("llama-cpp-python",),
    "math_verify": ("math-verify",),
}


def stage_code(stage: str, profile: Profile | None = None) -> dict[str, Any]:
    """The code that one of STAGES would run today, of the tasks and engines that there are that of `profile` alone."""
    asked, task = {}, []
    if profile is not None:  # a training asks a live teacher; the task is imported by its name, which no closure sees
        asked = {"answers": profile.assess.engine} | dict.fromkeys(("capture", "distill"), profile.teacher.engine)
        task = [profile.data.task_module]
    unused = [name for name in ENGINES if name != asked.get(stage)]
    stop = {module for modules in STAGES.values() for module in modules} - set(STAGES[stage])
    stop |= {f"primekd.teachers.{name}{part}" for name in unused for part in ("", "_engine", "_loading")}
    found = closure([*STAGES[stage], *task], stop)
    wanted = {package for name in found.foreign for package in COMPUTES.get(name, ())}
    if profile is not None and (profile.student.quantization or profile.teacher.quantization):
        wanted.add("bitsandbytes")
    return {
        "sha256": found.sha256,
        "packages": {name: version for name, version in package_versions(sorted(wanted)).items() if version},
        "modules": {name: digest[:12] for name, digest in found.modules.items()},
    }


def brief(code: dict[str, Any] | None) -> dict[str, Any] | None:
    """Code without its modules, for records of which there are many."""
    return code and {key: code.get(key) for key in ("sha256", "packages")}


def maker_of(record: Record) -> dict[str, Any]:
    """The commit and the code that made what a manifest, or another such record, is of."""
    return {"git": (record.get("environment") or {}).get("git"), "code": brief(record.get("code"))}


def other_code(record: Record, code: dict[str, Any]) -> str:
    """How the code of a record differs from `code`, in words; empty where it does not."""
    was, commit = record.get("code"), short_commit((record.get("environment") or {}).get("git"))
    if was is None:
        return f"{commit}; which code was not recorded"
    said = []
    if was["sha256"] != code["sha256"]:
        said.append(f"changed since: {_changed(was.get('modules') or {}, code['modules'])}")
    before, today = was.get("packages") or {}, code["packages"]
    for name in sorted(before.keys() | today.keys()):
        if before.get(name) != today.get(name):
            said.append(f"{name} {before.get(name, 'none')} -> {today.get(name, 'none')}")
    return "; ".join([commit, *said]) if said else ""


def short_commit(git: dict[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return "commit unknown"
    return f"commit {git['commit'][:7]}" + (" with uncommitted changes" if git.get("dirty") else "")


def _changed(was: dict[str, str], today: dict[str, str], most: int = 4) -> str:
    names = [name for name, digest in today.items() if digest not in was.values()]
    names += [name for name, digest in was.items() if digest not in today.values() and name not in names]
    names = [name.removeprefix("primekd.") for name in names]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join(names[:most] + more) or "modules that were not recorded"


def say_kept(stage: str, record: Record, code: dict[str, Any], done: str = "") -> None:
    """Says that a result is kept although other code made it; else `done`, if that says anything."""
    if differs := other_code(record, code):
        print(f"{stage}: made by other code ({differs}): kept. `--force-stage` makes it anew.")
    elif record.get("mixed"):
        print(f"{stage}: parts of it were made by different code: kept. `--force-stage` makes it anew.")
    elif done:
        print(f"{stage}: nothing to do, {done}")


def stands(folder: Path, inputs: dict, code: dict, stage: str, done: str = "", since: float = 0.0) -> bool:
    """Whether a stage's result is kept: it is whole, its inputs are unchanged and nobody wants it anew (`since`: from
    `forced_since`). Says so; `done` is what is said where today's code made it, nothing if empty."""
    if is_older(folder / MANIFEST, since) or not is_current(folder, inputs):
        return False
    say_kept(stage, read_manifest(folder / MANIFEST), code, done)
    return True


def ask_anew(profile: Profile, stages: Iterable[str]) -> None:
    """Notes that all results of these stages are to be made anew. It holds until `forget_wishes`, so that a run that
    was killed and asked again goes on with those that are still missing."""
    for stage in stages:
        if (path := profile.runs / "forced" / stage).is_file():
            print(f"{stage}: what a run that broke off made anew is kept (else delete {relative_name(path)} first).")
        else:
            write_text(path, "")


def forget_wishes(profile: Profile, but: Collection[str] = ()) -> None:
    """Ends what `ask_anew` began, of all stages `but` some."""
    for path in (profile.runs / "forced").glob("*"):
        if path.name not in but:
            path.unlink()


def forced_since(profile: Profile, stage: str, force: bool = False) -> float:
    """The file system's time before which a stage's results are to be made anew: 0 for none, inf by `force`."""
    path = profile.runs / "forced" / stage
    return math.inf if force else path.stat().st_mtime if path.is_file() else 0.0


def is_older(path: Path, since: float) -> bool:
    """Whether a file is there and was last written before a time."""
    return path.exists() and path.stat().st_mtime < since


def set_aside_if_older(folder: Path, since: float) -> None:
    """Sets a result that is to be made anew aside, whether it was finished or not."""
    times = [path.stat().st_mtime for path in folder.iterdir()] if folder.is_dir() else []
    if times and max(times) < since:
        print(f"{relative_name(folder)} is to be made anew: set aside as {set_aside(folder).name}.")


def mixed(makers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Who made which parts, where code, packages or engines differ; nothing where they do not. `makers`: part -> its
    commit (git), code, and engine where there is one."""
    groups: dict[str, dict[str, Any]] = {}
    for name, maker in makers.items():
        key = hash_json([maker.get("code"), maker.get("engine")])
        groups.setdefault(key, maker | {"parts": []})["parts"].append(name)
    return list(groups.values()) if len(groups) > 1 else []


def say_mixed(stage: str, parts: Iterable[Record], code: dict[str, Any], engine: dict[str, Any] | None = None) -> None:
    """Says in one line that what is there of unfinished work was made by other code than what comes."""
    differ = [said for record in parts if (said := other_code(record, code) or _other_engine(record, engine))]
    if differ:
        kinds = " / ".join(dict.fromkeys(differ))
        print(
            f"{stage}: {len(differ)} parts of it are there, made by other code ({kinds}); the rest is made by today's, "
            "and its manifest says so. `--force-stage` makes all of it anew.",
            flush=True,
        )


def _other_engine(record: Record, engine: dict[str, Any] | None) -> str:
    was = record.get("engine")
    keys = [key for key in engine or {} if was and was.get(key) != engine[key]]
    return ", ".join(f"{key} {was.get(key)} -> {engine[key]}" for key in keys)


def note_session(path: Path, code: dict[str, Any], goes_on: bool) -> list[Record]:
    """Keeps, in a file beside the unfinished work, who works on something that is made in sessions; returns all who
    did, today's session last. `goes_on`: whether it starts from what an earlier one left."""
    try:
        sessions = [record for record in read_json(path) if isinstance(record, dict)] if goes_on else []
    except (UserError, TypeError):
        sessions = [{}]  # by code that was not recorded
    sessions.append({"environment": {"git": git_state()}, "code": code})
    write_json(path, sessions)
    return sessions
