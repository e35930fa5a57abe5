"""What the logs were made from here: students, answers, notebooks, signals, teacher, against their manifests."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primekd.assessment.inside import FOLDER as INSIDE
from primekd.assessment.score import measured_anew
from primekd.capture.jobs import store_folder
from primekd.config import ANSWER_SETS, Profile, get_arm, is_name
from primekd.foundation import UserError, hash_json, project_root, relative_name
from primekd.foundation.manifests import MANIFEST, altered_outputs, read_manifest
from primekd.signals import SignalReader, read_store, shards_hash

# No outputs: the manifest itself, the page, which is made anew to check it, and the comparison with published logs.
BESIDE = (MANIFEST, "report.html", "reproduction.json")


@dataclass(frozen=True)
class Check:
    """One thing verified. `problems` is empty where everything matched; else `fix` says what to do about them."""

    what: str
    problems: list[str]
    fix: str = ""


def checked(what: str, check: Callable[[Any], Check], argument: Any) -> Check:
    """A check, or that it found something that cannot be read; the rest is checked all the same."""
    try:
        return check(argument)
    except (UserError, OSError) as error:
        return Check(what, [str(error)])


def check_run(profile: Profile) -> list[Check]:
    """What this machine's logs were made from: students, answers, notebooks, signals, teacher."""
    checks = []
    results = ("students", "answers", *(f"answers-{name}" for name in ANSWER_SETS), "held-out", "forgetting", "served")
    results += (INSIDE, f"{INSIDE}/confidence", f"{INSIDE}/attribution")
    for pattern in (*(f"{kind}/*/{MANIFEST}" for kind in results), f"priming/{MANIFEST}", f"notebooks/*/*.{MANIFEST}"):
        checks += [checked(relative_name(path), check_outputs, path) for path in _live(profile, pattern)]
    checks += [check_signals(path.parent) for path in _live(profile, f"signals/*/{MANIFEST}")]
    checks.append(checked("lineage", check_lineage, profile))
    if profile.prepare:
        for folder in (profile.prepare.adapter, str(Path(profile.prepare.output).parent)):
            if (project_root() / folder / MANIFEST).is_file():
                checks.append(checked(folder, check_outputs, project_root() / folder / MANIFEST))
    return checks


def _live(profile: Profile, pattern: str) -> list[Path]:
    """Manifests of a run, without those of results that were set aside."""
    return [path for path in sorted(profile.runs.glob(pattern)) if ".old-" not in path.parent.name]


def check_outputs(path: Path) -> Check:
    """A stage's outputs against the hashes in its manifest, its inputs against their hash, and what it leaves out."""
    manifest = read_manifest(path)
    problems = [f"{name} is missing or has other bytes" for name in altered_outputs(path, manifest)]
    if hash_json(manifest["inputs"]) != manifest["inputs_sha256"]:
        problems.append("the inputs in the manifest were edited")
    if path.name == MANIFEST:  # else the folder is not one stage's alone
        unnamed = _unnamed(path.parent, {*manifest["outputs"], *BESIDE})
        problems += [f"{name} is named by no manifest" for name in unnamed]
    name = relative_name(path.parent) if path.name == MANIFEST else relative_name(path).removesuffix(f".{MANIFEST}")
    return Check(name, problems)


def _unnamed(folder: Path, named: Collection[str]) -> list[str]:
    """Files of a folder that nothing vouches for; hidden ones are left-overs of a process that was killed."""
    found = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    if (folder / INSIDE / MANIFEST).is_file():  # made later than the logs beside it, and checked by itself
        found = [p for p in found if p.parts[0] != INSIDE]
    return [p.as_posix() for p in found if p.as_posix() not in named and not any(n.startswith(".") for n in p.parts)]


def check_signals(folder: Path) -> Check:
    """A signal store: every shard, every row hash, the head, shards that it does not name, whose responses."""
    try:
        reader = SignalReader(folder)
        reader.head  # noqa: B018 - loading it checks its hash
    except UserError as error:
        return Check(relative_name(folder), [str(error)])
    shards = [path.name for path in sorted(folder.glob("shard-*.safetensors"))]
    unnamed = [f"{name} is named by no manifest" for name in shards if name not in reader.manifest["shards"]]
    return Check(relative_name(folder), unnamed + _other_text(folder, reader.spec.get("text") or {}))


def _other_text(folder: Path, text: dict[str, Any]) -> list[str]:
    """Of a crossed arm's store: whether its responses are still those of the store that they were taken from."""
    name = text.get("store")
    there = name and is_name(name) and (folder.parent / name / MANIFEST).is_file()
    if not there or shards_hash(folder.parent / name) == text.get("shards_sha256"):
        return []
    return [f"its responses are not those that lie in {relative_name(folder.parent / name)}: capture it again"]


def check_lineage(profile: Profile) -> Check:
    """Whether the students on this machine, trained on what lies here, and their answers are those of the logs."""
    logs = read_manifest(profile.logs / MANIFEST)
    other = measured_anew(profile, logs)
    problems = [f"{name}: other answers or held-out fit lie here: assess again" for name in other]
    for name, facts in logs.get("models", {}).items():
        path = profile.runs / "students" / name / MANIFEST
        if not path.is_file():
            continue
        student = read_manifest(path)
        if student["outputs"] != facts["outputs"]:
            problems.append(f"{name}: the student on this machine is not the one in the logs")
        problems += [
            f"{name}: {kind}/{name} is missing on this machine"
            for kind in ("answers", "held-out")
            if not (profile.runs / kind / name / MANIFEST).is_file()
        ]
        if _trained_elsewhere(profile, student):
            problems.append(f"{name} was trained on other shards than lie on this machine")
    return Check("lineage", problems)


def _trained_elsewhere(profile: Profile, student: dict[str, Any]) -> bool:
    inputs = student["inputs"]
    trained = inputs.get("signals")
    if not trained or not trained["shards"] or not inputs.get("strategy"):  # a live teacher leaves none
        return False
    folder = store_folder(profile, get_arm(inputs["strategy"]), inputs.get("seed"))
    here = read_store(folder)["shards"] if (folder / MANIFEST).is_file() else None
    return here is not None and {name: entry["sha256"] for name, entry in here.items()} != trained["shards"]
