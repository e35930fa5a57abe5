"""A step on a student's own text against what its parts cost alone: plain sampling of as many tokens (for MiniLLM from
the mixture with the teacher), the teacher's scoring of them, and a step on them as given text, with no weight and no
measure of what was written. For the divergence (GKD) and MiniLLM.

All four run by turns in one process, on the models of a profile of the study micro with fresh weights.
"""

from collections.abc import Sequence
from contextlib import closing
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.scale import Scale
from benchmarks.timing import alternate, shown, spread
from primekd.assessment.as_trained import AsTrained
from primekd.config import LossConfig, Profile, load_profile
from primekd.config.student import OnPolicyConfig
from primekd.models import load_tokenizer
from primekd.models.students import new_student
from primekd.signals import Asked, LiveSource, SignalRows
from primekd.tasks.text import encode, end_of_text
from primekd.teachers import open_engine
from primekd.teachers.decoding import decode
from primekd.teachers.protocol import Sampling, TeacherEngine
from primekd.training.examples import block_example
from primekd.training.rollouts import MixedPosition, Rollouts
from primekd.training.trainer import DistillTrainer, build_trainer

STORY = "Fellow citizens, the year that has passed was a year of work and of peace, and the next one will need both. "
LOSS = LossConfig(divergence="reverse_kl", alpha=0.0)
OBJECTIVES = {"divergence": OnPolicyConfig(), "minillm": OnPolicyConfig(objective="minillm", teacher_share=0.2)}


class _Fixed:
    """A source that has the rows already."""

    def __init__(self, rows: SignalRows):
        self._rows = rows

    def rows_of(self, asked: Sequence[Asked]) -> SignalRows:
        return self._rows


def measure(scale: Scale, say=print) -> dict[str, Any]:
    """Of each objective seconds of the parts and of the whole step, and the whole over their sum."""
    settings = load_profile("micro-pocket")
    with closing(open_engine(settings)) as engine:
        found = {name: _objective(settings, engine, own, scale) for name, own in OBJECTIVES.items()}
    for name, one in found.items():
        say(f"on-policy step, {name}: {shown(one['ratio'])} x what its parts cost alone")
    return {"profile": settings.name, "responses": settings.train.micro_batch_size, "objectives": found}


def _objective(settings: Profile, engine: TeacherEngine, chosen: OnPolicyConfig, scale: Scale) -> dict[str, Any]:
    tokenizer = load_tokenizer(settings.student.speaker)
    source, end = LiveSource(engine, len(tokenizer)), end_of_text(tokenizer)
    ids = encode(tokenizer, [STORY * 40], end)[0].tolist()
    size, count = settings.text.block_tokens, settings.train.micro_batch_size
    blocks = [block_example(str(n), ids[n : n + size]) for n in range(count)]
    # No token ends a response: whoever writes, whole or alone, writes as many.
    own = Rollouts(chosen, settings.max_new_tokens, [], 0, teacher=lambda: engine)
    with TemporaryDirectory() as folder:
        trainer = _trainer(settings, tokenizer, blocks, source, own, folder)
        written = own.write(trainer.model, blocks, 0, 0)
        asked = [Asked(e.item_id, e.sequence.input_ids[: -len(r)], r)
                 for e, r in zip(written.examples, written.responses, strict=True)]  # fmt: skip
        given = _trainer(settings, tokenizer, written.examples, _Fixed(source.rows_of(asked)), None, folder)
        alone = AsTrained.inside(given.model, tokenizer, count)
        prompts, sampling = [a.before_ids for a in asked], Sampling(own.limit, 1.0, ends=frozenset({-1}))
        mixed = MixedPosition(given.model, engine, chosen.teacher_share).position()

        def sample():
            if chosen.teacher_share:
                return decode(mixed, prompts, sampling, sampling.ends, count, keep_states=False)
            return alone.generate(prompts, sampling)

        times = alternate({
            "whole": lambda: _step(trainer),
            "sampling": sample, "scoring": lambda: source.rows_of(asked), "student": lambda: _step(given),
        }, scale.training_rounds, scale.training_budget_s)  # fmt: skip
    parts = [sum(turn) for turn in zip(times["sampling"], times["scoring"], times["student"], strict=True)]
    ratio = spread([whole / alone for whole, alone in zip(times["whole"], parts, strict=True)])
    seconds = {name: spread(values) for name, values in times.items()}
    return {"written_tokens": sum(map(len, written.responses)), "seconds": seconds, "ratio": ratio}


def _trainer(settings, tokenizer, examples, source, rollouts: Rollouts | None, folder: str) -> DistillTrainer:
    train = settings.train.model_copy(update={"batch_size": len(examples), "micro_batch_size": len(examples)})
    trainer = build_trainer(
        new_student(settings.student, 0), tokenizer, examples, [], source, LOSS, train, folder, 0,
        dtype=settings.student.dtype, rollouts=rollouts,
    )  # fmt: skip
    trainer.create_optimizer_and_scheduler(1_000)
    return trainer


def _step(trainer: DistillTrainer) -> None:
    """One step of the optimiser, as the trainer takes it; the weights move as little as they may."""
    batches, tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    trainer.training_step(trainer.model, batches[0], tokens)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
