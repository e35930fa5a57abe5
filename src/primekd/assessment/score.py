"""What an assessment needs models for: answers and held-out fit of each. Kept in runs/, one model after the other."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primekd.assessment.answers import Answer, answer_inputs, answers_folder, generate_answers
from primekd.assessment.forgetting import ForgettingRow, forgetting_folder, forgetting_rows, open_reference
from primekd.assessment.held_out import HeldOutRow, held_out_folder, held_out_rows
from primekd.assessment.serving import BESIDE, MERGED, choose_serving, serving_folder
from primekd.assessment.students import Student, find_students
from primekd.capture.jobs import held_out_job, open_signals
from primekd.capture.run import capture
from primekd.config import CONTROL, FEW_SHOT, Profile, arms_of, load_arms, split_seed
from primekd.foundation import AMOUNTS, MANIFEST, UserError, hash_json, read_manifest, summed
from primekd.foundation.memory import gpu_memory
from primekd.foundation.stage_code import maker_of, say_kept, stage_code
from primekd.models import load_tokenizer
from primekd.signals import SignalReader
from primekd.tasks import Item, as_text, load_answer_sets, load_items, refuse_overlap, with_examples, with_instruction

if TYPE_CHECKING:
    from primekd.teachers.transformers_engine import TransformersEngine

ANSWER_ONLY = "Answer with the number alone."
VLLM_SERVED = {"adapter": BESIDE}  # it adds an adapter's product to each layer's, in the student's precision


@dataclass(frozen=True)
class Scored:
    """What one model gave. `served`: how its adapter was put on for answers and held-out rows, None for the control.
    `beside`: its answers of every answer set; `forgetting`: its rows on neutral prompts, as far as the profile asks."""

    answers: list[Answer]
    held_out: list[HeldOutRow]
    served: dict[str, Any] | None = None
    beside: dict[str, list[Answer]] = field(default_factory=dict)
    forgetting: list[ForgettingRow] = field(default_factory=list)


@dataclass(frozen=True)
class Model:
    """A model that is scored: the student's base, and its adapter with the hashes of its files, if it has one."""

    name: str
    adapter: Path | None = None
    hashes: dict[str, str] | None = None
    few_shot: int | str = 0
    bare: bool = False  # it is asked without a chat template, as it was trained

    def limited(self, profile: Profile) -> Profile:
        """The profile, with the token limit that this model has in it."""
        return profile.model_copy(update={"max_new_tokens": 50}) if self.few_shot == "answer-only" else profile

    def asked(self, profile: Profile, items: list[Item]) -> list[Item]:
        """Items as this model is asked them: behind solved ones of the training items where it is shown any."""
        if self.bare:
            return as_text(items)
        if not self.few_shot:
            return items
        if self.few_shot == "answer-only":
            return [replace(item, question=f"{item.question} {ANSWER_ONLY}") for item in items]
        if self.few_shot == "instruction":
            return with_instruction(items, profile.teacher.instruction)
        return with_examples(items, load_items(profile, "train")[: self.few_shot])

    def open(self, profile: Profile, served: dict[str, Any] | None = None) -> "TransformersEngine":
        from primekd.models.logits import require_transform
        from primekd.teachers.transformers_engine import TransformersEngine

        student, dtype = profile.student, profile.scoring_dtype
        engine = TransformersEngine(
            student.model, dtype, profile.assess.batch_size, self.adapter, student.quantization,
            load_tokenizer(student), merged=served is not None and served["adapter"] == MERGED,
            weights=None if dtype == student.dtype else student.dtype,
        )  # fmt: skip
        require_transform(engine.transform, student.model)  # held-out fit is measured from hidden states
        return engine


def score_some(profile: Profile, names: Sequence[str], force: bool = False) -> None:
    """Answers and held-out fit of `control` or strategies; `assess` finds them on disk. Several processes may score
    different models at once. Raises UserError if there is no such model, it is not trained, or lacks the reference."""
    untrained = {model.name: model for model in untrained_models(profile)}
    known = [*untrained, *arms_of(profile)]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"There is no model {unknown[0]!r}: choose one of {', '.join(known)}.")
    models = []
    for name in names:
        models += [untrained[name]] if name in untrained else models_of(find_students(profile, name))
    job = held_out_job(profile)
    if not (job.folder / MANIFEST).is_file():
        raise UserError("The teacher's answers to the test items are missing: `primekd capture --held-out` first.")
    score_models(profile, _test_items(profile), models, open_signals(job), force)


def untrained_models(profile: Profile) -> list[Model]:
    """The control and, where the profile asks for it, the same model with examples."""
    few_shot = profile.assess.few_shot
    return [Model(CONTROL), *([Model(FEW_SHOT, few_shot=few_shot)] if few_shot else [])]


def models_of(students: Sequence[Student]) -> list[Model]:
    bare = {name for name, arm in load_arms().items() if "no-template" in arm.deviates}
    return [Model(s.name, s.folder / "adapter", s.weight_hashes, bare=split_seed(s.name)[0] in bare) for s in students]


def load_reference(profile: Profile) -> tuple[list[Item], SignalReader]:
    """The test items, and the unprimed teacher's answers to them, which are captured where they are not there yet."""
    items, job = _test_items(profile), held_out_job(profile)
    capture(job)
    return items, open_signals(job)


def _test_items(profile: Profile) -> list[Item]:
    items = load_items(profile, "test")
    refuse_overlap(items, "test", {split: load_items(profile, split) for split in ("train", "validation")})
    return items


def score_models(
    profile: Profile, items: list[Item], models: Sequence[Model], reader: SignalReader, force: bool = False
) -> dict[str, Scored]:
    """Answers and held-out rows by model, one loaded at a time; what is on disk with the same inputs is read."""
    asked = [(profile, items), *load_answer_sets(profile)]
    if profile.assess.engine == "vllm":
        _answer_with_vllm(asked, models, force)  # below, the answers are found on disk
    control, scored = None, {}
    if profile.assess.forgetting_items:
        control = open_reference(profile, lambda: Model(CONTROL).open(profile))
    for model in models:
        with gpu_memory("assess.batch_size"):
            scored[model.name] = _score_model(asked, model, reader, control, force)
    return scored


Asked = list[tuple[Profile, list[Item]]]  # the profile with its test items, then its answer sets with theirs


def _score_model(asked: Asked, model: Model, reader: SignalReader, control: SignalReader | None, force: bool) -> Scored:
    profile = asked[0][0]
    asked = [(model.limited(view), model.asked(profile, items)) for view, items in asked]
    items = asked[0][1]
    served = choose_serving(profile, model.name, items, model.adapter, model.hashes, force) if model.adapter else None
    with_vllm = profile.assess.engine == "vllm"
    answering = VLLM_SERVED if served and with_vllm else served
    opened = cache(lambda: model.open(profile, served))
    answers = {}
    for view, of_set in asked:
        own = answer_inputs(view, of_set, model.hashes, None if with_vllm else served)
        anew = force and not with_vllm  # which made them anew above
        answers[view.answer_set] = generate_answers(view, model.name, of_set, own, opened, anew, answering)
    inputs = answer_inputs(profile, items, model.hashes, served)
    measured = items[: profile.assess.held_out_items or None]
    rows = held_out_rows(profile, model.name, measured, inputs, reader, opened, force, served)
    control = None if model.few_shot else control
    forgetting = forgetting_rows(profile, model.name, inputs, control, opened, force) if control else []
    served = served and {"answers": answering, "held_out": served}
    return Scored(answers.pop(""), rows, served, answers, forgetting)


def _answer_with_vllm(asked: Asked, models: Sequence[Model], force: bool) -> None:
    """Writes the answers of all models from one loaded base model, which is gone before held-out fit needs the GPU."""
    from primekd.teachers.vllm_engine import open_students

    profile = asked[0][0]
    everything = [item for model in models for _, items in asked for item in model.asked(profile, items)]
    engine = cache(lambda: open_students(profile, everything, [m.adapter for m in models if m.adapter]))
    try:
        for model, (view, items) in itertools.product(models, asked):
            view, items = model.limited(view), model.asked(profile, items)
            inputs = answer_inputs(view, items, model.hashes)
            served = VLLM_SERVED if model.adapter else None
            worn = lambda model=model: engine().wearing(model.adapter)  # noqa: E731
            generate_answers(view, model.name, items, inputs, worn, force, served)
    finally:
        if engine.cache_info().currsize:  # nothing is loaded where all answers are on disk
            engine().close()


Made = tuple[str, Profile, Path]  # a stage (stage_code.STAGES), the view of the profile that its code is of, a folder


def made_of(profile: Profile, name: str) -> dict[str, Made]:
    """All that a whole assessment makes of a model, by what it is."""
    found = {"answers": ("answers", profile, answers_folder(profile, name))}
    found |= {view.answer_set: ("answers", view, answers_folder(view, name)) for view in profile.answer_sets()}
    found |= {"held_out": ("held-out", profile, held_out_folder(profile, name))}
    wanted = profile.assess.forgetting_items and name != FEW_SHOT  # its weights are the control's
    return found | ({"forgetting": ("forgetting", profile, forgetting_folder(profile, name))} if wanted else {})


def _made(profile: Profile, name: str) -> dict[str, dict[str, Any]]:
    """The manifests of what was made of a model, as far as there are any."""
    folders = {what: folder for what, (*_, folder) in made_of(profile, name).items()}
    return {what: read_manifest(f / MANIFEST) for what, f in folders.items() if (f / MANIFEST).is_file()}


def scored_hashes(profile: Profile, names: Sequence[str]) -> dict[str, str]:
    """A hash for each model of its answers, its held-out rows and who made them."""
    return {
        name: hash_json({what: [m["outputs"], maker_of(m)] for what, m in _made(profile, name).items()})
        for name in names
    }


def measured_anew(profile: Profile, logs: dict[str, Any]) -> list[str]:
    """Models of which other answers or held-out rows lie here than those that logs, with this manifest, are of."""
    scored = logs["inputs"].get("scored") or {}
    return [name for name in scored if _made(profile, name) and scored_hashes(profile, [name])[name] != scored[name]]


def makers(profile: Profile, name: str) -> dict[str, Any]:
    """Who made what of a model: {"answers": {"git", "code"}, "held_out": {"git", "code"}, ...}."""
    return {
        what: maker_of(m) | ({"mixed": m["mixed"]} if m.get("mixed") else {})
        for what, m in _made(profile, name).items()
    }


def say_scored(profile: Profile, names: Sequence[str]) -> None:
    """Says which answers and held-out rows other code made."""
    titles = {"answers": "answer", "held_out": "held-out fit"}
    for name in names:
        stages = made_of(profile, name)
        for what, manifest in _made(profile, name).items():
            stage, view, _ = stages[what]
            say_kept(f"{titles.get(what, what)} {name}", manifest, stage_code(stage, view))


def scoring_costs(profile: Profile, names: Sequence[str]) -> dict[str, Any]:
    """Seconds, energy and emissions of making these models' answers and held-out rows, by whichever process: of jobs
    side by side each counts its own time, and the energy of the whole machine. None where it is not known of all."""
    folders = [folder for name in names for *_, folder in made_of(profile, name).values()]
    folders += [f for name in names if ((f := serving_folder(profile, name)) / MANIFEST).is_file()]
    found = summed([read_manifest(folder / MANIFEST) for folder in folders])
    return {key: found[key] for key in AMOUNTS}
