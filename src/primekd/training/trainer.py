"""The one trainer of the project: a LoRA student, with or without teacher signals."""

import math
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments, get_cosine_schedule_with_warmup

from primekd.config import LossConfig, TrainConfig
from primekd.losses import cross_entropy_sum, distillation_loss
from primekd.progress import Progress
from primekd.signals import SignalReader, SignalRows, concatenate
from primekd.training.checkpoints import SafeCheckpoints
from primekd.training.examples import IGNORED, Collator, Example


class ResponseStates(nn.Module):
    """The student up to the last hidden state, at the positions that predict response tokens.

    A module of its own, so that wrappers for several devices see one forward call. Prompt and padding rows are
    dropped before the head product, which is the largest one of a small model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = base.config
        # Kept out of the module's children: they are already part of `model`.
        self._parts = (base.get_decoder(), base.get_output_embeddings())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) each -> hidden (N, D) at position t - 1 of every label at t, and targets (N,), row by row."""
        hidden = self._parts[0](input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, S, D)
        targets = labels[:, 1:]
        kept = targets != IGNORED  # (B, S - 1)
        return hidden[:, :-1][kept], targets[kept]

    def logits(self, hidden: Tensor, vocab_size: int) -> Tensor:
        """(N, D) -> (N, V) float32, padded columns cut.

        The product is taken in float32, as the teacher's is: a bfloat16 one rounds logits of 16 and more to eighths,
        and two equal models would then differ.
        """
        output = self._parts[1]
        bias = None if output.bias is None else output.bias[:vocab_size].float()
        return F.linear(hidden.float(), output.weight[:vocab_size].float(), bias)


class DistillTrainer(SafeCheckpoints):
    """Trainer with the distillation objective.

    Args:
        signals: the store to look teacher rows up in, by item id; None for fine-tuning on the labels alone.
        loss: the objective; its alpha does not matter without signals.
        vocab_size: V, the tokenizer's size.
    """

    def __init__(self, *, signals: SignalReader | None, loss: LossConfig, train: TrainConfig, vocab_size: int, **rest):
        super().__init__(**rest)
        self.signals, self.loss, self.settings, self.vocab_size = signals, loss, train, vocab_size
        # Our loss is already a mean over the response tokens of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = True
        self._parts: dict[str, float] = defaultdict(float)

    def create_optimizer(self, model=None):
        """SGD with momentum or AdamW over the trainable parameters."""
        if self.optimizer is None:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            s = self.settings
            if s.optimizer == "sgd":
                self.optimizer = torch.optim.SGD(
                    parameters, lr=s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay
                )
            else:
                self.optimizer = torch.optim.AdamW(parameters, lr=s.learning_rate, weight_decay=s.weight_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Half a cosine from the peak to zero over all epochs; it never climbs again."""
        if self.lr_scheduler is None:
            warmup = math.ceil(self.settings.warmup_ratio * num_training_steps)
            self.lr_scheduler = get_cosine_schedule_with_warmup(optimizer or self.optimizer, warmup, num_training_steps)
        return self.lr_scheduler

    def _teacher_rows(self, item_ids: list[str], labels: Tensor) -> SignalRows | None:
        if self.signals is None:
            return None
        # The response is handed over too: the store refuses it if it is not the one that was captured.
        parts = [
            self.signals.rows(item_id, row[row != IGNORED].tolist())
            for item_id, row in zip(item_ids, labels.cpu(), strict=True)
        ]
        if parts[0] is None:  # pseudo-labels: the teacher's text was checked, and there is nothing else of it
            return None
        return concatenate(parts).to(labels.device)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        item_ids, labels = inputs["item_ids"], inputs["labels"]
        hidden, targets = model(inputs["input_ids"], inputs["attention_mask"], labels)
        logits = self.accelerator.unwrap_model(model).logits(hidden, self.vocab_size)
        tokens = num_items_in_batch if num_items_in_batch is not None else max(len(targets), 1)
        loss, parts = distillation_loss(logits, targets, self._teacher_rows(item_ids, labels), self.loss, tokens)
        for name, value in parts.items():
            self._parts[name] += float(value)
        loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, tokens are global
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | dict(self._parts)  # every step is logged, so these are one step's
            self._parts.clear()
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Cross-entropy a response token over the validation set, a mean over tokens, not over batches."""
        model = self.model.eval()
        total = tokens = 0.0
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = [batch[key].to(self.args.device) for key in ("input_ids", "attention_mask", "labels")]
            with self.accelerator.autocast():
                hidden, targets = model(*inputs)
            total += float(cross_entropy_sum(model.logits(hidden, self.vocab_size), targets))
            tokens += len(targets)
        model.train()
        metrics = {f"{metric_key_prefix}_loss": total / max(tokens, 1)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class ProgressCallback(TrainerCallback):
    """Carries the trainer's steps to the stage's progress."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def on_train_begin(self, args, state, control, **kwargs):
        self.progress.advance(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.advance()


def steps_in_all(train: TrainConfig, examples: int) -> int:
    """Optimiser steps over all epochs."""
    return train.epochs * math.ceil(examples / train.batch_size)


def build_trainer(
    model: nn.Module,
    tokenizer,
    examples: list[Example],
    validation: list[Example],
    signals: SignalReader | None,
    loss: LossConfig,
    train: TrainConfig,
    checkpoints: Path,
    seed: int,
    progress: Progress | None = None,
) -> DistillTrainer:
    """A trainer for a peft model; `.train(resume_from_checkpoint=…)` runs it."""
    per_epoch = math.ceil(len(examples) / train.batch_size)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.micro_batch_size,
        per_device_eval_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.batch_size // train.micro_batch_size,
        max_grad_norm=train.max_grad_norm,
        # Adapters stay in float32; their products run in the frozen base's precision, a third faster on a CPU.
        bf16=next(p for p in model.parameters() if not p.requires_grad).dtype == torch.bfloat16,
        seed=seed,
        data_seed=seed,
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="steps" if validation else "no",
        eval_steps=max(1, per_epoch // train.evaluations_per_epoch),
        save_strategy="steps",
        save_steps=max(1, per_epoch // train.checkpoints_per_epoch),
        save_total_limit=2,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),  # without it bf16 is refused on a machine that has no GPU
        report_to="none",
    )
    trainer = DistillTrainer(
        signals=signals,
        loss=loss,
        train=train,
        vocab_size=len(tokenizer),
        model=ResponseStates(model),
        args=arguments,
        train_dataset=examples,
        eval_dataset=validation or None,
        data_collator=Collator(tokenizer.pad_token_id),
        callbacks=[ProgressCallback(progress)] if progress else None,
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # one line a step is for the loss curve's file, not for the screen
    return trainer
