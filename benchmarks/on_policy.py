"""A step on the student's own text against what its parts cost alone: sampling, teacher's scoring, student's step.

All four run by turns in one process, on the models of a profile of the study micro with fresh weights.
"""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.timing import alternate, shown, spread
from primekd.config import LossConfig, load_profile
from primekd.config.on_policy import OnPolicyConfig
from primekd.models import load_tokenizer
from primekd.models.students import new_student
from primekd.signals import Asked, LiveSource, SignalRows
from primekd.tasks.text import encode, end_of_text
from primekd.teachers import open_engine
from primekd.training.examples import block_example
from primekd.training.rollouts import Rollouts
from primekd.training.trainer import DistillTrainer, build_trainer

STORY = "Fellow citizens, the year that has passed was a year of work and of peace, and the next one will need both. "
LOSS = LossConfig(divergence="reverse_kl", alpha=0.0)


class _Fixed:
    """A source that has the rows already."""

    def __init__(self, source: LiveSource, rows: SignalRows):
        self.codec, self.manifest, self._rows = source.codec, source.manifest, rows

    def rows_of(self, asked: Sequence[Asked]) -> SignalRows:
        return self._rows


def measure(profile: str = "micro-pocket", rounds: int = 5, budget_s: float = 60, say=print) -> dict[str, Any]:
    """Seconds of the parts and of the whole step, and the whole over their sum."""
    settings = load_profile(profile)
    tokenizer, engine = load_tokenizer(settings.student.speaker), open_engine(settings)
    source, end = LiveSource(engine, len(tokenizer)), end_of_text(tokenizer)
    ids = encode(tokenizer, [STORY * 40], end)[0].tolist()
    size, count = settings.text.block_tokens, settings.train.micro_batch_size
    blocks = [block_example(str(n), ids[n : n + size]) for n in range(count)]
    own = Rollouts(OnPolicyConfig(), settings.max_new_tokens, [end], 0)
    with TemporaryDirectory() as folder:
        trainer = _trainer(settings, tokenizer, blocks, source, own, folder)
        written = own.write(trainer.model, blocks, 0, 0)
        asked = [Asked(e.item_id, e.sequence.input_ids[: -len(r)], r)
                 for e, r in zip(written.examples, written.responses, strict=True)]  # fmt: skip
        given = _trainer(settings, tokenizer, written.examples, _Fixed(source, source.rows_of(asked)), None, folder)
        times = alternate({
            "whole": lambda: _step(trainer), "sampling": lambda: own.write(trainer.model, blocks, 0, 0),
            "scoring": lambda: source.rows_of(asked), "student": lambda: _step(given),
        }, rounds, budget_s)  # fmt: skip
    engine.close()
    parts = [sum(turn) for turn in zip(times["sampling"], times["scoring"], times["student"], strict=True)]
    ratio = spread([whole / alone for whole, alone in zip(times["whole"], parts, strict=True)])
    say(f"on-policy step: {shown(ratio)} x what its parts cost alone")
    tokens = sum(map(len, written.responses))
    return {"profile": profile, "responses": count, "written_tokens": tokens,
            "seconds": {name: spread(values) for name, values in times.items()}, "ratio": ratio}  # fmt: skip


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
