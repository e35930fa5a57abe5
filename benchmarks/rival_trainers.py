"""Steps of TRL's distillation trainers on the same sequences. Both ask the teacher anew in each step."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from benchmarks.training import adamw
from primekd.config import Profile
from primekd.models import load_model, load_tokenizer
from primekd.training.examples import IGNORED


def gkd_step(profile: Profile, batches: list[dict[str, Any]], student: torch.nn.Module) -> Callable[[], None]:
    """GKDTrainer off-policy: its forward KL at temperature 1 (its loss is never told another) on given responses."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    trainer = GKDTrainer(
        model=student,
        teacher_model=_teacher(profile),
        args=GKDConfig(**_settings(profile), lmbda=0.0, beta=0.0),
        train_dataset=_prompts(profile),
        processing_class=load_tokenizer(profile.student.model),
    )
    return _steps(trainer, profile, [_tensors(batch, ("input_ids", "attention_mask", "labels")) for batch in batches])


def distillation_step(profile: Profile, batches: list[dict[str, Any]], student: torch.nn.Module) -> Callable[[], None]:
    """DistillationTrainer's loss on given responses: its chunked forward KL, without the generation before it."""
    from trl import DistillationConfig, DistillationTrainer

    trainer = DistillationTrainer(
        model=student,
        teacher_model=_teacher(profile),
        args=DistillationConfig(**_settings(profile), beta=0.0),
        train_dataset=_prompts(profile),
        processing_class=load_tokenizer(profile.student.model),
    )
    # Its own preparation would generate new responses; what it makes of them is handed over instead.
    device = trainer.args.device
    trainer._prepare_inputs = lambda inputs: {name: tensor.to(device) for name, tensor in inputs.items()}
    return _steps(trainer, profile, [_split(batch) for batch in batches])


def _steps(trainer, profile: Profile, inputs: list[dict[str, Tensor]]) -> Callable[[], None]:
    optimizer = adamw(trainer.model, profile)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # which `train` would set
    count = 0

    def step() -> None:
        nonlocal count
        batch = dict(inputs[count % len(inputs)])
        count += 1
        trainer.training_step(trainer.model, batch, batch.pop("tokens"))
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], profile.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _settings(profile: Profile) -> dict[str, Any]:
    return {
        "output_dir": tempfile.gettempdir(),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": profile.student.dtype == "bfloat16",
        "per_device_train_batch_size": profile.train.micro_batch_size,
        "gradient_checkpointing": False,  # TRL's default, which trades time for memory
        "report_to": "none",
        "disable_tqdm": True,
    }


def _teacher(profile: Profile) -> torch.nn.Module:
    return load_model(profile.teacher.model, profile.teacher.dtype)


def _prompts(profile: Profile) -> Dataset:
    """The trainers ask for a data set; the steps are given their batches directly."""
    messages = [{"role": "user", "content": "?"}]
    return Dataset.from_list([{"prompt": messages, "messages": messages}] * profile.train.micro_batch_size)


def _tensors(batch: dict[str, Any], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: batch[name] for name in names} | {"tokens": (batch["labels"] != IGNORED).sum()}


def _split(batch: dict[str, Any]) -> dict[str, Tensor]:
    """Prompts padded on the left and responses on the right, as DistillationTrainer has them."""
    prompts, responses = [], []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True):
        response = labels != IGNORED
        prompts.append(ids[mask & ~response])
        responses.append(ids[response])
    named = {}
    for name, rows, left in (("prompt", prompts, True), ("completion", responses, False)):
        width = max(map(len, rows))
        ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
        for place, row in enumerate(rows):
            part = slice(width - len(row), width) if left else slice(0, len(row))
            ids[place, part], mask[place, part] = row, 1
        named |= {f"{name}_ids": ids, f"{name}_mask": mask}
    return named | {"tokens": sum(map(len, responses)), "num_items_in_batch": torch.tensor(sum(map(len, responses)))}
