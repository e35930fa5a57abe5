"""The arms of a study: data in configs/strategies.yaml, read here and nowhere else.

An arm is one student's treatment: which prompt its text came from, which prompt its signals came from, which loss."""

from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from primekd.config.arm import CONTROL, CORPUS, GOLD, OF_ONE_STORE, OWN, WORDS, Arm, Role, split_seed
from primekd.config.profile import Profile, explain_validation_error
from primekd.config.section import is_name
from primekd.foundation import UserError, parse_yaml, project_root, relative_name

# Folders, logs and tables of their own, beside those of arms.
RESERVED = (
    "accuracies", "audit", "benchmarks", "choices", "contrasts", "control", "control-few-shot", "copy", "costs",
    "benchmark-contrasts", "effects", "errant", "extractors", "fact-contrasts", "facts", "forgetting", "held-out",
    "labels", "languages",
    "priming", "priming-arms", "priming-positions", "responses", "seeds", "subsets", "summary", "teacher", "tuning",
)  # fmt: skip


def _is_taken(name: str) -> bool:
    return name in RESERVED or name.startswith("held-out-") or ".old-" in name or bool(split_seed(name)[1])


def arms_file() -> Path:
    return project_root() / "configs" / "strategies.yaml"


def load_arms() -> dict[str, Arm]:
    """All arms in the order of the file, keyed by name. Raises UserError if the file is no valid YAML, or an entry has
    an unknown or missing key, or names an arm that cannot be what it is named for."""
    path = arms_file()
    try:
        arms = _parse(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{relative_name(path)} cannot be read: {error}") from error
    return {name: _with_text(arm) for name, arm in arms.items()}


@lru_cache(maxsize=4)  # every stage asks for its arms many times, and parsing takes a quarter of a second
def _parse(text: str, path: Path) -> dict[str, Arm]:
    """The arms of a file's text, without the texts of their priming files."""
    try:
        rows = parse_yaml(text)
        if odd := [name for name in map(str, rows) if not is_name(name) or _is_taken(name)]:
            raise UserError(
                f"{relative_name(path)}: {odd[0]!r} cannot name a strategy: take letters, digits, dots, dashes and "
                f"underscores, a letter or digit first, no -seed and number at the end, and none of "
                f"{', '.join(RESERVED)}."
            )
        arms = {name: Arm(name=name, **row) for name, row in rows.items()}
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise UserError(f"{relative_name(path)} cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError(explain_validation_error(error, path)) from error
    for arm in arms.values():
        _refuse_references(arm, arms)
    return arms


def default_arms() -> dict[str, Arm]:
    """Those that run where a profile lists none: the published study's own."""
    return {name: arm for name, arm in load_arms().items() if not arm.extra}


def arms_of(profile: Profile) -> dict[str, Arm]:
    """The arms that a profile runs, in the order of the file. Raises UserError if it lists one that is not there or
    lacks one that another needs, an arm's loss does not go with its own, or it names seeds or contrasts of others."""
    known = load_arms()
    for name in profile.arms or ():
        get_arm(name)
    wanted = default_arms() if profile.arms is None else profile.arms
    chosen = {name: arm for name, arm in known.items() if name in wanted}
    for name, arm in chosen.items():
        arm.loss_of(profile)
        arm.on_policy_of(profile)
        if missing := [other for other in (arm.text, arm.signals) if other not in (*WORDS, *chosen)]:
            raise UserError(f"{profile.name}: the arm {name} takes text or signals from {missing[0]}: list that too.")
        if arm.keep_right and profile.teacher.sampling_temperature and profile.seeds.get(name):
            raise UserError(
                f"{profile.name}: {name} keeps right answers, which are judged under one seed, and a teacher that "
                "samples writes others under each: take it out of seeds, or set teacher.sampling_temperature to 0."
            )
    for name, seeds in profile.seeds.items():
        if name not in chosen or len({profile.seed, *seeds}) <= len(seeds):
            fix = f"one of {', '.join(chosen)}, with seeds that differ from each other and from {profile.seed}"
            raise UserError(f"{profile.name}: seeds names {name!r}: it must be {fix}.")
    for name in (name for pair in profile.planned.main for name in pair):
        if name not in (CONTROL, *chosen):
            fix = f"choose from {', '.join((CONTROL, *chosen))}, or list it in arms"
            raise UserError(f"{profile.name}: planned.main names {name!r}, which this profile does not run: {fix}.")
    return chosen


def get_arm(name: str) -> Arm:
    """One arm by its name. Raises UserError if there is none of that name."""
    known = load_arms()
    if name not in known:
        raise UserError(f"No strategy is called {name!r} in configs/strategies.yaml: choose from {', '.join(known)}.")
    return known[name]


def reads_text(name: str) -> bool:
    """Whether what is trained under this name from scratch learns from blocks of text. UserError as `get_arm`."""
    return name == CONTROL or get_arm(name).text == CORPUS


def how_to_train(name: str, profile: Profile) -> str:
    """What makes a student. Raises UserError as `get_arm`."""
    if not profile.student.from_scratch or not reads_text(name):
        return f"run {get_arm(name).folder}/distill.ipynb or `primekd distill {name}`"
    arm = next(iter(arms_of(profile).values())) if name == CONTROL else get_arm(name)
    return f"run the notebook of {arm.folder}/ that trains it"


def of_role(role: Role, arms: dict[str, Arm] | None = None) -> list[str]:
    """The names of the arms with a role, of all arms if none are given."""
    return [name for name, arm in (load_arms() if arms is None else arms).items() if arm.role == role]


def unprimed() -> Arm:
    """The arm whose teacher has no priming text: the reference of held-out fit. Raises UserError without a baseline."""
    if not (found := of_role("baseline")):
        raise UserError("configs/strategies.yaml has no arm with the role baseline, which others are compared with.")
    return get_arm(found[0])


def refuse_gold(profile: Profile, arm: Arm) -> None:
    """Raises UserError if gold could reach a student that learns from a teacher: trained on, or chosen by it. An arm
    that deviates has its items with gold, and its labels unfiltered, as the released code has."""
    reasons = {
        f"{arm.name} would learn from gold sentences: set loss.labels to response": arm.loss_of(profile).labels == GOLD,
        f"{arm.name} chooses labels by gold sentences: take it out of arms": arm.keep_right,
        f"{arm.name} reads gold sentences, or labels that are unfit: take it out of arms": bool(arm.deviates),
        "several learning rates are chosen from by gold sentences: name one": len(profile.train.rates) > 1,
    }
    if arm.teacher and (said := [reason for reason, holds in reasons.items() if holds]):
        raise UserError(f"{profile.name}: {said[0]}.")


def _refuse_references(arm: Arm, arms: dict[str, Arm]) -> None:
    """Text and signals are taken from arms that have their own, so that no arm stands for another that stands for…"""
    place = f"{relative_name(arms_file())}: {arm.name}"
    for key in ("text", "signals", "variant_of"):
        other = getattr(arm, key)
        if other in WORDS or other is None:
            continue
        if other not in arms or other == arm.name:
            raise UserError(f"{place}: {key} names {other!r}, which is no other arm: choose from {', '.join(arms)}.")
        if key != "variant_of" and not arms[other].text == arms[other].signals == OWN:
            raise UserError(f"{place}: {key} names {other}, which has no {key} of its own: name the arm that has.")
    if arm.role in OF_ONE_STORE and arm.cell != arms[arm.variant_of].cell:
        roles = ", ".join(OF_ONE_STORE)
        raise UserError(f"{place}: {roles}: each has text and signals of the arm that it is variant_of.")


def _with_text(arm: Arm) -> Arm:
    """The arm with the text of its priming file, without the white space around it."""
    if arm.priming_file is None:
        return arm
    place = f"{relative_name(arms_file())}: {arm.name}"
    file = project_root() / arm.priming_file
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: priming_file {arm.priming_file} is no readable UTF-8 text: mend it.") from error
    if not text:
        raise UserError(f"{place}: priming_file {arm.priming_file} is empty: write the priming text into it.")
    return arm.model_copy(update={"priming": text})
