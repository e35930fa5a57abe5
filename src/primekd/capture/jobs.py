"""What is captured: one store a job, and everything that its bytes depend on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primekd.capture.primings import priming_of
from primekd.config import CORPUS, NONE, OWN, Arm, Profile, TeacherConfig, get_arm, is_name, unprimed
from primekd.foundation import UserError, hash_file, hash_json, project_root
from primekd.models import TEXT, build_prompt, load_tokenizer, template_hash, tokenizer_hash, turn_end, weights_hash
from primekd.signals import SignalReader, make_codec, shards_hash
from primekd.tasks import Item, as_text, hash_items, load_items
from primekd.teachers.protocol import TeacherEngine

PLACEHOLDER = "{question}"
HELD_OUT = "held-out"  # the unprimed teacher on the test items: the reference for every student's held-out KL


@dataclass(frozen=True)
class Job:
    """One store to be captured: the `arm`'s own, of the first `count` items of a split or all of them. `opens` loads
    what stands in the teacher's place, if not the teacher; `more` is what its rows depend on besides. `lent`: others go
    on with what `opens` gives, so it stays open."""

    profile: Profile
    arm: Arm
    split: str
    folder: Path
    seed: int
    count: int | None = None
    opens: Callable[[], TeacherEngine] | None = None
    more: dict[str, Any] = field(default_factory=dict)
    lent: bool = False

    def items(self) -> list[Item]:
        return load_items(self.profile, self.split)[: self.count]

    def responses_file(self) -> Path:
        """The file that the responses stand in, where the arm names one. Raises UserError if it is not there."""
        path = project_root() / self.arm.responses
        if not path.is_file():
            raise UserError(f"{self.arm.name}: its file of responses {self.arm.responses} is not there: mend the path.")
        return path

    @property
    def stage(self) -> str:
        return f"capture {self.folder.name}"

    @property
    def scored_under(self) -> Arm:
        """The arm under whose prompt the responses are scored; they may have been written under another."""
        return self.arm if self.arm.signals in (OWN, NONE) else get_arm(self.arm.signals)

    @property
    def written_by(self) -> "Job | None":
        """The capture that the responses are taken from; None where they are written here, or stand in a file."""
        if self.arm.text == OWN:
            return None
        if self.split == "test":
            return test_job(self.profile, self.arm.text)
        return training_job(self.profile, self.arm.text, self.seed)


def training_job(profile: Profile, strategy: str, seed: int | None = None) -> Job:
    """The capture that an arm's students are trained on. Raises UserError if there is none."""
    arm = get_arm(strategy)
    if (store := arm.store) is None:
        why = "it is trained on gold solutions"
        if arm.text == CORPUS:
            why = "it is trained on text (`primekd pretrain`)"
        elif arm.by_place or arm.live:
            why = "its student writes its own text" if arm.live else "its teacher's rows are made when it is trained"
        raise UserError(f"{strategy}: {why}, so there is nothing to capture.")
    seed = profile.seed if seed is None else seed
    drawn = profile.teacher.sampling_temperature > 0  # else students of every seed learn from one capture
    return Job(profile, get_arm(store), "train", profile.signals_folder(store, seed if drawn else None), seed)


def store_folder(profile: Profile, arm: Arm, seed: int | None) -> Path:
    """Where the rows lie that an arm's student of a seed learns from; UserError as `training_job`."""
    if arm.by_place:  # of whole texts: a folder a seed, as students of two seeds may be trained at once
        return profile.signals_folder(arm.name, seed)
    return profile.signals_folder(arm.name) if arm.stored else training_job(profile, arm.name, seed).folder


def held_out_job(profile: Profile) -> Job:
    """The unprimed teacher on the test items: its answers (teacher.csv) and the signals for held-out KL."""
    return Job(profile, unprimed(), "test", profile.runs / "signals" / HELD_OUT, profile.seed)


def test_job(profile: Profile, strategy: str) -> Job:
    """The teacher on test items under an arm's prompt: all of them without a priming, else `assess.teacher_items`."""
    if strategy == unprimed().name:
        return held_out_job(profile)
    folder = profile.runs / "signals" / f"{HELD_OUT}-{strategy}"
    return Job(profile, get_arm(strategy), "test", folder, profile.seed, profile.assess.teacher_items)


def unprimed_job(profile: Profile, strategy: str, split: str) -> Job:
    """What the teacher wrote under an arm's prompt, scored without its priming."""
    base = unprimed().name
    name = f"{strategy}-under-{base}"
    arm = Arm(name=name, title=name, role="crossed", variant_of=strategy, text=strategy, signals=base)
    folder = f"{HELD_OUT}-{name}" if split == "test" else name
    count = profile.assess.rescored_items or profile.assess.teacher_items
    return Job(profile, arm, split, profile.runs / "signals" / folder, profile.seed, count)


def scoring_job(profile: Profile, strategy: str, file: str) -> Job:
    """The responses of a file to the training items, scored under the prompt that an arm's signals come from, in a
    store of their own. Raises UserError if the file's name cannot name a store."""
    scored = training_job(profile, strategy).scored_under.name
    name = f"{scored}-of-{Path(file).stem}"
    if not is_name(name):
        raise UserError(f"{file}: its name becomes a store's: rename it, with letters, digits, dots and dashes.")
    arm = Arm(name=name, title=name, role="crossed", variant_of=scored, signals=scored, responses=file)
    return Job(profile, arm, "train", profile.runs / "signals" / name, profile.seed)


def build_spec(job: Job, items: list[Item]) -> dict[str, Any]:
    """Everything that the store's bytes depend on, known without loading the teacher. Raises UserError if the teacher's
    chat template takes no system message, and the priming text is to be one."""
    profile, teacher = job.profile, job.profile.teacher
    return ({"text": _text_of(job)} if job.arm.crossed else {}) | {
        **job.more,
        "strategy": job.arm.name,
        **reads(job.scored_under, teacher),
        "split": job.split,
        "items_sha256": hash_items(items),
        **identity_of(teacher),
        "max_new_tokens": profile.max_new_tokens,
        "seed": job.seed if teacher.sampling_temperature > 0 else None,  # greedy decoding has no seed
        "turn_end": turn_end(load_tokenizer(teacher)).describe(),
        "codec": make_codec(profile.signals, teacher.offers).describe(),
        "items_per_shard": profile.signals.items_per_shard,
    }


def identity_of(teacher: TeacherConfig) -> dict[str, Any]:
    """Which teacher it is, by hashes of weights, tokenizer and chat template."""
    tokenizer = load_tokenizer(teacher)
    weights = weights_hash(teacher) if teacher.local else None  # of those behind an API nothing can be said
    hashes = {"tokenizer_sha256": tokenizer_hash(tokenizer), "template_sha256": template_hash(tokenizer)}
    return {"teacher": teacher.identity() | {"model_sha256": weights}} | hashes


def reads(arm: Arm, teacher: TeacherConfig) -> dict[str, Any]:
    """What the teacher reads under an arm's prompt, with every word that is not the question's."""
    priming = priming_of(arm, teacher)
    asked = [{"role": TEXT, "content": PLACEHOLDER}] if "no-template" in arm.deviates else PLACEHOLDER
    placed = {f"priming_{key}": getattr(priming, key) if priming else None for key in ("placement", "mode")}
    return placed | {"priming": arm.priming, "prompt": build_prompt(load_tokenizer(teacher), asked, priming).text}


def _text_of(job: Job) -> dict[str, Any]:
    """What a crossed arm's responses depend on beyond its signals. UserError if their store or file is not whole."""
    if job.arm.responses:
        file = job.responses_file()
        return {"file": file.name, "file_sha256": hash_file(file)}
    if (source := job.written_by) is None:
        return reads(job.arm, job.profile.teacher)
    store = {"store": source.folder.name, "spec_sha256": hash_json(build_spec(source, source.items()))}
    return reads(source.arm, job.profile.teacher) | store | {"shards_sha256": shards_hash(source.folder)}


def prompts_of(arm: Arm, teacher: TeacherConfig, items: list[Item]) -> list[list[int]]:
    """What the teacher reads of items under an arm's priming."""
    tokenizer, priming = load_tokenizer(teacher), priming_of(arm, teacher)
    items = as_text(items) if "no-template" in arm.deviates else items
    return [build_prompt(tokenizer, item.messages, priming) for item in items]


def open_signals(job: Job) -> SignalReader:
    """Opens a captured store. Raises UserError if it is not whole, or not what the profile would capture today."""
    return SignalReader(job.folder, **build_spec(job, job.items()))
