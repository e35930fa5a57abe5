"""The one trainer of the project: LoRA or all weights, with stored, live or no signals, on one process or several."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from primekd.config import LossConfig, TrainConfig
from primekd.foundation.progress import Progress
from primekd.models.attention import choose_attention
from primekd.models.loading import refuse_too_long
from primekd.signals import SignalRows, SignalSource
from primekd.training.checkpoints import SafeCheckpoints, require_finite_step
from primekd.training.examples import IGNORED, Collator, Example, ProcessLoader, asked_of, longest_sequence
from primekd.training.habits import habits
from primekd.training.objective import StudentObjective, may_pack
from primekd.training.processes import process_count
from primekd.training.rollouts import Rollouts
from primekd.training.speed import Speed


class DistillTrainer(SafeCheckpoints):
    """Trainer of a StudentObjective. `signals`: None for the labels alone; `rollouts`: what the student writes."""

    def __init__(
        self, *, signals: SignalSource | None, train: TrainConfig, rollouts: Rollouts | None = None,
        speed: Speed | None = None, **rest,
    ):  # fmt: skip
        super().__init__(**rest)
        self.signals, self.settings, self.rollouts, self.speed = signals, train, rollouts, speed
        self._habits: dict[str, float] = {}
        self._read: list[str] = []  # ids of the step's items, or numbers of its blocks
        on_disk = hasattr(self.train_dataset, "lengths")  # text, which stays in its order and has no gold solutions
        self.with_gold = not on_disk and any(example.gold for example in self.train_dataset)
        self._order_seed = None if on_disk or not train.shuffle else self.args.seed
        # Our loss is already a mean over the response tokens of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = True
        self._parts: dict[str, Tensor | float] = defaultdict(float)

    def create_optimizer(self, model=None):
        """SGD with momentum or AdamW over the trainable parameters; weight decay is for matrices alone."""
        if self.optimizer is None:
            parameters, s = [p for p in self.model.parameters() if p.requires_grad], self.settings
            matrices, others = ([p for p in parameters if (p.ndim > 1) == wide] for wide in (True, False))
            groups = [{"params": matrices}, *([{"params": others, "weight_decay": 0.0}] if others else [])]
            own = {"lr": s.learning_rate, "weight_decay": s.weight_decay}
            if s.optimizer == "sgd":
                self.optimizer = torch.optim.SGD(groups, momentum=s.momentum, **own)
            else:
                self.optimizer = torch.optim.AdamW(groups, **own)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """A cosine to zero at the end, or the fault `climbing`: its half period is one epoch, and it goes on."""
        if self.settings.schedule == "cosine" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        period = max(1, num_training_steps // self.settings.epochs)
        warm = self.args.get_warmup_steps(num_training_steps)  # both warm up alike
        cosine = lambda step: 0.5 * (1 + math.cos(math.pi * step / period))  # noqa: E731
        factor = lambda step: cosine(step) * (step / warm if step < warm else 1)  # noqa: E731
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def _teacher_rows(self, item_ids: list[str], input_ids: Tensor, labels: Tensor) -> SignalRows | None:
        # The response is handed over too: the store refuses it if it is not the one that was captured.
        rows = self.signals and self.signals.rows_of(asked_of(item_ids, input_ids, labels))
        return None if rows is None else rows.to(labels.device)

    def get_train_dataloader(self) -> ProcessLoader:
        """This process's micro-batches, shuffled anew each epoch; of text on disk in its order."""
        return ProcessLoader(self.train_dataset, self.settings, self.args, self._order_seed, self.data_collator)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device) -> tuple[list, Tensor]:
        """The micro-batches of a step; of what the student writes itself where that is due."""
        if self.rollouts:  # given text has no gold solution beside it
            self.with_gold, self._habits = False, {}
        if self.speed:
            self.speed.begin()
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._read = [item for batch in batches for item in batch["item_ids"] if item]  # a filler has no name
        if self.rollouts and batches and self.rollouts.due(self.state.global_step):
            batches = self._written(batches)
            tokens = self._get_num_items_in_batch(batches, device)
        if self.speed:
            self.speed.add(sum(int(batch["attention_mask"].sum()) for batch in batches))
        return batches, tokens

    def _written(self, batches: list) -> list:
        step, student = self.state.global_step, self.accelerator.unwrap_model(self.model)
        own, first = [], 0
        for batch in batches:
            own.append(self.rollouts.write(student, batch["examples"], step, first))
            first += len(batch["examples"])
        self.with_gold = any(example.gold for written in own for example in written.examples)
        texts, ended = [r for written in own for r in written.responses], [e for w in own for e in w.ended]
        self._habits = habits(texts, ended, torch.cat([written.entropy for written in own]).tolist())
        return [self.data_collator(written.examples) | {"written": written} for written in own]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Response tokens of the global batch, over which means are taken; with gold solutions (2,), theirs second."""
        if not self.with_gold:
            return super()._get_num_items_in_batch(batch_samples, device).clamp(min=1)
        counts = torch.zeros(2, device=device)
        for batch in batch_samples:
            kept = (batch["labels"][:, 1:] != IGNORED).sum(1)  # (B,)
            rows = len(batch["item_ids"])
            counts += torch.stack([kept[:rows].sum(), kept[rows:].sum()]).to(device)
        return self.accelerator.reduce(counts, "sum").clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        item_ids, labels, tokens = inputs["item_ids"], inputs["labels"], num_items_in_batch
        if tokens is None:
            tokens = self._get_num_items_in_batch([inputs], labels.device)
        teacher = self._teacher_rows(item_ids, inputs["input_ids"], labels)
        gold = len(labels) - len(item_ids)
        if self.with_gold and not gold:  # of several processes, one that has fillers alone
            tokens = tokens[0]
        written = inputs.get("written")
        weights = self.rollouts.weights(written, teacher) if written else None
        loss, parts = model(inputs["input_ids"], inputs["attention_mask"], labels, teacher, tokens, gold, weights)
        for name, value in parts.items():  # kept as tensors: a number would wait for the GPU at every micro-batch
            self._parts[name] = self._parts[name] + value
        loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, tokens are global
        return (loss, None) if return_outputs else loss

    def _over_processes(self, *values: float) -> list[float]:
        """Sums over all processes, in float64."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        return self.accelerator.reduce(sums, "sum").tolist()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # every step is logged, so the parts are one step's
            ce, kd = self._over_processes(float(self._parts["ce"]), float(self._parts["kd"]))
            logs = logs | {"ce": ce, "kd": kd} | self._habits
            self._parts.clear()
        require_finite_step(logs, self.state.global_step, self._read)
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, ignore_keys=None) -> dict[str, float]:
        """Cross-entropy a response token over the validation set, a mean over tokens, not over batches."""
        model = self.model.eval()
        total = tokens = 0.0
        for batch in ProcessLoader(self.eval_dataset, self.settings, self.args, None, self.data_collator):
            inputs = [batch[key].to(self.args.device) for key in ("input_ids", "attention_mask", "labels")]
            total += float(model(*inputs)[0])
            tokens += int((inputs[2] != IGNORED).sum())
        model.train()
        total, tokens = self._over_processes(total, tokens)
        metrics = {"eval_loss": total / max(tokens, 1)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def final_loss(self) -> float:
        """The validation loss of the weights as they are, measured now if the last step did not end with it."""
        step = self.state.global_step
        last = [e["eval_loss"] for e in self.state.log_history if e["step"] == step and "eval_loss" in e]
        return last[-1] if last else self.evaluate()["eval_loss"]


class ProgressCallback(TrainerCallback):
    def __init__(self, progress: Progress, speed: Speed | None = None):
        self.progress, self.speed = progress, speed

    def on_train_begin(self, args, state, control, **kwargs):
        self.progress.advance(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self.speed:
            self.progress.say(str(self.speed))
        self.progress.advance()


def steps_in_all(train: TrainConfig, examples: int) -> int:
    """Optimiser steps over all epochs."""
    return train.epochs * math.ceil(examples / train.batch_size)


def build_trainer(
    model: nn.Module, tokenizer, examples: list[Example], validation: list[Example], signals: SignalSource | None,
    loss: LossConfig, train: TrainConfig, checkpoints: Path, seed: int, progress: Progress | None = None,
    dtype: str | None = None, rollouts: Rollouts | None = None, speed: Speed | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> DistillTrainer:  # fmt: skip
    """A trainer for a peft model, or a model all of whose weights are trained, on every process that was launched:
    `train.batch_size` sequences make a step, over all processes together. `.train(resume_from_checkpoint=…)` runs it.
    `dtype` is what the student computes in; None for what its weights are in."""
    per_epoch = math.ceil(len(examples) / train.batch_size)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    longest = max(longest_sequence(examples), longest_sequence(validation))
    refuse_too_long(base, {"The longest example": longest}, "prompt and response have", "lower max_new_tokens")
    longest += rollouts.limit if rollouts else 0  # which refuse what does not fit by themselves
    choose_attention(base, longest)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.batch_size // (train.micro_batch_size * process_count()),
        max_grad_norm=train.max_grad_norm,
        lr_scheduler_type="cosine",  # half of one over all epochs, to zero: it never climbs again
        warmup_steps=train.warmup_steps or train.warmup_ratio,  # below 1, a share of the steps
        ddp_find_unused_parameters=False,  # every trained weight is used in every pass
        seed=seed,
        logging_steps=1,
        eval_strategy="steps" if validation else "no",
        eval_steps=max(1, per_epoch // train.evaluations_per_epoch),
        save_steps=max(1, per_epoch // train.checkpoints_per_epoch),
        save_total_limit=2,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        logging_nan_inf_filter=False,  # it would log a diverged step as a loss of 0
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # a process has one: Trainer would split each step among all it sees
    trainer = DistillTrainer(
        signals=signals, train=train, args=arguments, train_dataset=examples, eval_dataset=validation or None,
        model=StudentObjective(model, loss, len(tokenizer), may_pack(base, longest), dtype), rollouts=rollouts,
        data_collator=Collator(tokenizer.pad_token_id, keeps=rollouts is not None), speed=speed,
        callbacks=[*([speed] if speed else []), *([ProgressCallback(progress, speed)] if progress else []), *callbacks],
    )  # fmt: skip
    if trainer.args.process_index:  # the first process keeps the seed's own numbers; no other may repeat its dropout
        torch.manual_seed(seed + trainer.args.process_index)
    trainer.remove_callback(PrinterCallback)  # one line a step is for the loss curve's file, not for the screen
    return trainer
