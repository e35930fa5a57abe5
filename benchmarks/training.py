"""One optimiser step of a LoRA student: from each kind of signal, on labels alone, and with TRL's trainers."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import peak_bytes
from benchmarks.objectives import has_trl
from benchmarks.scale import Scale
from benchmarks.stored_signals import examples_of, write_stores
from benchmarks.timing import alternate, shown, summary
from primekd.config import Profile, load_profile
from primekd.models import load_model, load_tokenizer
from primekd.models.students import lora_model
from primekd.signals import SignalReader
from primekd.training.examples import IGNORED, Collator, ProcessBatches
from primekd.training.trainer import build_trainer

CODECS = ("hidden", "topk", "sampled")
BATCHES = 4  # which follow each other in turn, the same ones in the same order for every alternative
PLAIN, OWN = "cross-entropy, transformers", "cross-entropy, this trainer"
TRL = ("TRL GKDTrainer", "TRL DistillationTrainer")
TRL_ROUNDS = 1  # after a warm-up: they are slow; the others take part in all


def measure(scale: Scale, say=print) -> dict[str, Any]:
    """Seconds of a step on the same batches in the same order, and peak memory on the widest of them.

    Returns:
        sequences, tokens, response_tokens and padded positions a step; peak_batch: which one memory is measured on;
        alternatives: {name: {"seconds", "ratio", "peak_mib"}}, ratios to transformers' own cross-entropy step of the
        same round; to_own: ratios to this trainer's; refused: rivals that failed, and how.
    """
    names = [PLAIN, OWN, *(f"{codec} signals" for codec in CODECS), *(TRL if has_trl() else ())]
    with tempfile.TemporaryDirectory() as temporary:
        write_stores(Path(temporary), scale.profile, CODECS, scale.sequences * BATCHES)
        facts = _batch_facts(scale)
        settings = {"profile_name": scale.profile, "sequences": scale.sequences, "stores": temporary}
        calls, refused = {}, {}
        for name in names:
            try:
                calls[name] = prepare(name, **settings)
                calls[name]()  # its warm-up
            except Exception as error:  # of a rival's: this project's own must not fail
                if name not in TRL:
                    raise
                refused[name] = f"{type(error).__name__}: {error}"
                calls.pop(name, None)
        fewer = dict.fromkeys(TRL, TRL_ROUNDS)
        times = alternate(calls, scale.training_rounds, scale.training_budget_s, say, warm_up=(), fewer=fewer)
        found = summary(times, PLAIN)
        own = {name: values["ratio"] for name, values in summary(times, OWN).items()}
        kept = list(calls)
        calls.clear()
        settings["first"] = facts["peak_batch"]["number"]
        for name in kept:
            found[name]["peak_mib"] = peak_bytes("benchmarks.training:prepare", name, **settings) / 2**20
            say(f"{name}: {shown(found[name]['ratio'])} x, {found[name]['peak_mib']:.0f} MiB")
    return facts | {"alternatives": found, "to_own": own, "refused": refused}


def prepare(name: str, profile_name: str, sequences: int, stores: str, first: int = 0) -> Callable[[], None]:
    """A function that makes one step each time it is called, with a model of its own.

    Args:
        stores: the folder with a store of each codec.
        first: the number of the batch that is taken first.
    """
    profile = _sized(profile_name, sequences)
    if name == PLAIN:
        return _plain(profile, first)
    if name in TRL:
        from benchmarks import rival_trainers

        make = {TRL[0]: rival_trainers.gkd_step, TRL[1]: rival_trainers.distillation_step}[name]
        batches = collated(profile)
        return make(profile, batches[first:] + batches[:first], plain_student(profile)[0])
    codec = name.removesuffix(" signals")
    return _own(profile, None if name == OWN else SignalReader(Path(stores) / codec), first)


def _sized(profile_name: str, sequences: int) -> Profile:
    profile = load_profile(profile_name)
    sizes = {"batch_size": sequences, "micro_batch_size": sequences}
    return profile.model_copy(update={"train": profile.train.model_copy(update=sizes)})


def _own(profile: Profile, signals: SignalReader | None, first: int) -> Callable[[], None]:
    """This project's trainer: collating, reading signals, forward, backward, clipping and the optimiser."""
    student = lora_model(profile.student.model, profile.student.dtype, profile.student.lora, profile.seed)
    trainer = build_trainer(
        student, load_tokenizer(profile.student.model), _examples(profile), [], signals, profile.loss, profile.train,
        Path(tempfile.gettempdir()) / "no-checkpoints", profile.seed,
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    model = trainer.model.train()
    batches = _again(trainer.get_train_dataloader, first)  # a new loader begins at the first epoch's order again

    def step() -> None:
        batch = next(batches)
        trainer.training_step(model, batch, (batch["labels"] != IGNORED).sum())
        _update(optimizer, profile)

    return step


def _plain(profile: Profile, first: int) -> Callable[[], None]:
    """What a user of transformers and peft writes: the model's own loss, autocast as `Trainer(bf16=True)` does it."""
    model, optimizer = plain_student(profile)
    batches = _again(partial(collated, profile), first)

    def step() -> None:
        batch = next(batches)
        inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask", "labels")}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=profile.student.dtype == "bfloat16"):
            loss = model(**inputs).loss
        loss.backward()
        _update(optimizer, profile)

    return step


def plain_student(profile: Profile) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A peft model with the profile's adapter, as peft makes it, and its optimiser."""
    from peft import LoraConfig, get_peft_model

    lora = profile.student.lora
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    model = get_peft_model(load_model(profile.student.model, profile.student.dtype), config).train()
    return model, adamw(model, profile)


def adamw(model: torch.nn.Module, profile: Profile) -> torch.optim.Optimizer:
    """The optimiser that this project's trainer makes too."""
    parameters, train = [p for p in model.parameters() if p.requires_grad], profile.train
    return torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)


def collated(profile: Profile) -> list[dict[str, Any]]:
    """The batches of this project's first epoch, in its order: permuted, and of about one length each."""
    collator = Collator(load_tokenizer(profile.student.model).pad_token_id)
    examples, train = _examples(profile), profile.train
    lengths = [len(example.sequence.input_ids) for example in examples]
    order = ProcessBatches(lengths, train.micro_batch_size, 0, 1, train.batch_size, train.length_window, profile.seed)
    return [collator([examples[index] for index in batch]) for batch in order]


def _examples(profile: Profile):
    return examples_of(profile, profile.train.batch_size * BATCHES)


def _again(make: Callable[[], Any], first: int) -> Iterator[dict[str, Any]]:
    """What `make` makes, again and again, from number `first` on."""
    return itertools.islice(itertools.chain.from_iterable(make() for _ in itertools.count()), first, None)


def _update(optimizer: torch.optim.Optimizer, profile: Profile) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, profile.train.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def _batch_facts(scale: Scale) -> dict[str, Any]:
    profile = _sized(scale.profile, scale.sequences)
    batches = collated(profile)
    positions = [batch["input_ids"].numel() for batch in batches]
    widest = positions.index(max(positions))
    return {
        "sequences": scale.sequences,
        "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches) / BATCHES,
        "response_tokens": sum(int((batch["labels"] != IGNORED).sum()) for batch in batches) / BATCHES,
        "padded": sum(positions) / BATCHES,
        "peak_batch": {"number": widest, "width": batches[widest]["input_ids"].shape[1]},
        "model": profile.student.model,
        "dtype": profile.student.dtype,
    }
