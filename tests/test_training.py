"""The trainer: alignment of labels and teacher rows, the schedule, accumulation, checkpoints, and what is learned."""

import csv
import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_store, save_llama, small_profile, stored
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from primekd.config import LoraSettings, LossConfig, TrainConfig
from primekd.foundation import read_json
from primekd.foundation.errors import UserError
from primekd.losses import distillation_loss
from primekd.losses.products import logits_of
from primekd.models import load_model
from primekd.models.attention import attending, choose_attention
from primekd.models.chat import StudentSequence, build_prompt, encode_response, join
from primekd.models.students import lora_model, save_adapter
from primekd.signals.codecs import HiddenCodec
from primekd.teachers.protocol import Sampling
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.checkpoints import held, newest_checkpoint
from primekd.training.distill import distill
from primekd.training.examples import IGNORED, Collator, Example, gold_examples
from primekd.training.trainer import DistillTrainer, build_trainer, steps_in_all

LORA = LoraSettings(rank=2, alpha=4, target_modules=("q_proj", "v_proj", "down_proj"))
SGD = TrainConfig(optimizer="sgd", learning_rate=0.5, weight_decay=0.01, epochs=2, batch_size=4, micro_batch_size=4)
LOSS = LossConfig(temperature=2.0, alpha=0.3)
RESPONSES = [
    "7",
    "It is 7.",
    "Seven",
    "3 + 4 = 7\n#### 7",
    "He has seven apples.",
    "7!",
    "No",
    "Tom has 3 + 4 = 7 apples.",
]


@pytest.fixture(scope="session")
def examples(tokenizer) -> list[Example]:
    """Eight sequences whose prompts and responses differ in length; q10 and q2 are among their ids."""
    names = ["q10", "q2", "q1", "q3", "q11", "q4", "q0", "q5"]
    questions = [f"Tom has 3 apples{' and a dog' * n}. How many?" for n in (0, 3, 1, 0, 4, 2, 0, 1)]
    return [
        Example(name, join(build_prompt(tokenizer, question), encode_response(tokenizer, response)))
        for name, question, response in zip(names, questions, RESPONSES, strict=True)
    ]


def split(example: Example) -> tuple[list[int], list[int]]:
    """Prompt ids and response ids."""
    start = example.sequence.response_mask.index(True)
    return example.sequence.input_ids[:start], example.sequence.input_ids[start:]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, tokenizer) -> str:
    """Another random model than the student."""
    return save_llama(tmp_path_factory.mktemp("teacher"), tokenizer, seed=2)


@pytest.fixture(scope="session")
def signals(tmp_path_factory, teacher, examples):
    """The teacher's hidden states on the examples' responses."""
    return capture_examples(
        tmp_path_factory.mktemp("signals") / "base-KD", TransformersEngine(teacher, "float32"), examples
    )


def capture_examples(folder: Path, engine: TransformersEngine, examples: list[Example]):
    parts = [split(e) for e in examples]
    rows = engine.score([p for p, _ in parts], [r for _, r in parts], "hidden")
    pairs = [(stored(e.item_id, r), states) for e, (_, r), states in zip(examples, parts, rows, strict=True)]
    return make_store(folder, HiddenCodec(), [pairs[:3], pairs[3:]], head=engine.head())


@pytest.fixture
def new_trainer(lively, tokenizer, tmp_path):
    """Makes a trainer over a fresh adapter; everything but the examples has a default."""

    def make(examples, signals, train=SGD, loss=LOSS, lora=LORA, validation=(), seed=0, folder="checkpoints"):
        model = lora_model(lively, "float32", lora, seed)
        return build_trainer(
            model, tokenizer, list(examples), list(validation), signals, loss, train, tmp_path / folder, seed
        )

    return make


def test_a_process_has_one_gpu_however_many_there_are(new_trainer, examples, signals, monkeypatch):
    """Trainer would split each step among all that it sees, and the loss is averaged over the tokens of the step."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda arguments: 4))
    assert new_trainer(examples, signals).args._n_gpu == 1


def adapter_of(trainer: DistillTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def column(trainer: DistillTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def history(trainer: DistillTrainer) -> list[list[float]]:
    """Every logged loss and its parts, step by step."""
    return [column(trainer, name) for name in ("loss", "ce", "kd", "eval_loss")]


def plain_logits(reference: str, example: Example, vocabulary: int) -> np.ndarray:
    """Logits that predict each response token, by a plain forward of one unpadded sequence, without this project."""
    model = AutoModelForCausalLM.from_pretrained(reference.removeprefix("path:"), dtype=torch.float64)
    prompt, response = split(example)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].numpy()
    return np.stack([logits[len(prompt) + t - 1, :vocabulary] for t in range(len(response))])


def log_softmax64(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# Alignment.


def test_the_trainers_loss_equals_a_float64_reference_from_plain_forwards(
    new_trainer, examples, signals, lively, teacher, tokenizer
):
    """Catches labels not shifted or shifted twice, padding in the mean, padded columns in a softmax, T^2 left out."""
    ce = kd = tokens = 0.0
    for example in examples[:4]:
        student, taught = (plain_logits(m, example, len(tokenizer)) for m in (lively, teacher))
        _, response = split(example)
        ce -= log_softmax64(student)[np.arange(len(response)), response].sum()
        p, q = log_softmax64(taught / 2.0), log_softmax64(student / 2.0)
        kd += (np.exp(p) * (p - q)).sum()
        tokens += len(response)
    expected = 0.3 * ce / tokens + 0.7 * 2.0**2 * kd / tokens

    trainer = new_trainer(examples, signals)
    batch = Collator(tokenizer.pad_token_id)(examples[:4])
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_a_single_marked_token_gets_the_only_gradient_row_one_place_before_it(new_trainer, lively, tokenizer, output):
    marked = 6
    ids = [11, 22, 33, 44, 55, 66, 77, 88, 99]
    example = Example("a", StudentSequence(ids, [place == marked for place in range(len(ids))]))
    pair = (stored("a", [ids[marked]]), torch.randn(1, 16))
    signals = make_store(output / "s" / "base-KD", HiddenCodec(), [[pair]], head=torch.randn(len(tokenizer), 16))

    trainer = new_trainer([example], signals)
    seen = []

    def keep(module, arguments, result):
        result.last_hidden_state.retain_grad()
        seen.append(result.last_hidden_state)

    trainer.model.model.get_base_model().get_decoder().register_forward_hook(keep)
    longer = Example("b", StudentSequence([*ids, 1, 2, 3], [True] * 12))
    padded = Collator(tokenizer.pad_token_id)([example, longer])
    batch = {key: value[:1] for key, value in padded.items()}  # the first sequence alone, with its padding
    assert batch["input_ids"].shape == (1, 12)
    trainer.compute_loss(trainer.model, batch).backward()
    rows = seen[0].grad[0].abs().sum(-1).nonzero().flatten().tolist()  # (S, D) -> places with any gradient
    assert rows == [marked - 1]


def test_response_states_gives_hidden_rows_and_targets_item_by_item(new_trainer, examples, tokenizer):
    trainer = new_trainer(examples, None)
    batch = Collator(tokenizer.pad_token_id)(examples[:3])
    hidden, targets = trainer.model.eval().response_states(batch["input_ids"], batch["attention_mask"], batch["labels"])
    assert targets.tolist() == [t for e in examples[:3] for t in split(e)[1]]
    assert len(hidden) == len(targets)
    logits = logits_of(hidden.detach(), *trainer.model.head())
    assert logits.shape == (len(targets), len(tokenizer)) and logits.dtype == torch.float32


def test_padding_does_not_change_a_loss(new_trainer, examples, signals, tokenizer):
    trainer = new_trainer(examples, signals)
    collate = Collator(tokenizer.pad_token_id)
    together = trainer.compute_loss(trainer.model, collate(examples), num_items_in_batch=1).item()
    alone = sum(trainer.compute_loss(trainer.model, collate([e]), num_items_in_batch=1).item() for e in examples)
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.fixture
def coded_signals(output, examples):
    """A store whose every row says which item it is of: the hidden state is the item's place."""
    pairs = [
        (stored(e.item_id, split(e)[1]), torch.full((len(split(e)[1]), 16), float(n))) for n, e in enumerate(examples)
    ]
    return make_store(output / "s" / "base-KD", HiddenCodec(), [pairs[:3], pairs[3:]], head=torch.zeros(9, 16))


def test_teacher_rows_are_looked_up_by_item_id_and_not_by_place(new_trainer, examples, coded_signals, tokenizer):
    trainer = new_trainer(examples, coded_signals)
    order = [5, 0, 7, 1]
    batch = Collator(tokenizer.pad_token_id)([examples[n] for n in order])
    rows = trainer._teacher_rows(batch["item_ids"], batch["input_ids"], batch["labels"])
    expected = [float(n) for n in order for _ in split(examples[n])[1]]
    assert rows.hidden[:, 0].tolist() == expected


def test_teacher_rows_follow_their_items_through_every_shuffled_epoch(new_trainer, examples, signals, coded_signals):
    trainer = new_trainer(examples, signals, SGD.model_copy(update={"batch_size": 4, "micro_batch_size": 2}))
    trained: list[list[str]] = []
    look_up = trainer._teacher_rows

    def recorded(item_ids, input_ids, labels):
        trainer.signals = coded_signals
        coded = look_up(item_ids, input_ids, labels)
        trainer.signals = signals
        place = {e.item_id: float(n) for n, e in enumerate(examples)}
        lengths = (labels != IGNORED).sum(-1).tolist()
        wanted = [place[i] for i, length in zip(item_ids, lengths, strict=True) for _ in range(length)]
        assert coded.hidden[:, 0].tolist() == wanted
        trained.append(item_ids)
        return look_up(item_ids, input_ids, labels)

    trainer._teacher_rows = recorded
    trainer.train()
    order = [i for batch in trained for i in batch]
    first, second, given = order[:8], order[8:], [e.item_id for e in examples]
    assert sorted(first) == sorted(second) == sorted(given)  # every item once an epoch
    assert first != given and first != second  # and it was shuffled, else this test would show nothing


def test_a_batch_whose_response_is_not_the_captured_one_is_refused(new_trainer, examples, signals, tokenizer):
    trainer = new_trainer(examples, signals)
    batch = Collator(tokenizer.pad_token_id)(examples[:1])
    batch["labels"][batch["labels"] == tokenizer.eos_token_id] = 17
    with pytest.raises(UserError, match="q10.*another response"):
        trainer.compute_loss(trainer.model, batch)


# Schedule and optimiser.


class RecordRates(TrainerCallback):
    """The learning rate of every step that is taken."""

    def __init__(self):
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(("warmup", "start"), [({}, 0), ({"warmup_ratio": 0.25}, 4), ({"warmup_steps": 3}, 3)])
def test_the_cosine_falls_from_its_peak_to_zero_over_all_epochs(warmup, start, new_trainer, examples):
    train = SGD.model_copy(update={"epochs": 4, "batch_size": 2, "micro_batch_size": 2} | warmup)
    trainer, record = new_trainer(examples, None, train), RecordRates()
    trainer.add_callback(record)
    trainer.train()
    steps = 16
    assert steps_in_all(train, len(examples)) == trainer.state.global_step == steps
    expected = [0.5 * n / start for n in range(start)]
    expected += [0.25 * (1 + np.cos(np.pi * (n - start) / (steps - start))) for n in range(start, steps)]
    np.testing.assert_allclose(record.rates, expected, atol=1e-9)
    after = record.rates[start:]
    assert max(record.rates) == after[0] == 0.5
    assert all(later < earlier for earlier, later in zip(after, after[1:], strict=False))
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


def test_sgd_has_momentum_and_weight_decay_as_the_profile_says(new_trainer, examples):
    settings = {"learning_rate": 5e-6, "momentum": 0.9, "weight_decay": 0.01}
    optimizer = new_trainer(examples, None, SGD.model_copy(update=settings)).create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert {"lr": 5e-6, "momentum": 0.9, "weight_decay": 0.01}.items() <= optimizer.param_groups[0].items()


def test_sgd_keeps_moving_on_its_momentum_when_the_gradient_is_zero(new_trainer, examples):
    trainer = new_trainer(examples, None, SGD.model_copy(update={"learning_rate": 1.0, "weight_decay": 0.0}))
    optimizer = trainer.create_optimizer()
    parameter = optimizer.param_groups[0]["params"][0]
    start = parameter.detach().clone()
    for gradient in (1.0, 0.0, 0.0):
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    torch.testing.assert_close(start - parameter.detach(), torch.full_like(start, 1 + 0.9 + 0.81))


def test_adamw_is_the_other_choice_and_only_the_adapter_is_trained(new_trainer, examples):
    trainer = new_trainer(examples, None, SGD.model_copy(update={"optimizer": "adamw"}))
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = [name for name, p in trainer.model.named_parameters() if id(p) in trained]
    assert names and all("lora_" in name for name in names)


# Micro-batches.


def test_micro_batches_change_neither_the_loss_curve_nor_the_adapter(new_trainer, examples, signals):
    """Lengths differ from item to item, so a mean of micro-batch means would show here."""
    trainers = []
    for micro in (4, 2, 1):
        trainer = new_trainer(examples, signals, SGD.model_copy(update={"micro_batch_size": micro}), folder=f"m{micro}")
        before = adapter_of(trainer)
        trainer.train()
        trainers.append(trainer)
    whole, *parts = trainers
    moved = max((after - before[name]).abs().max() for name, after in adapter_of(whole).items())
    assert moved > 0.01
    for trainer in parts:
        for name in ("loss", "ce", "kd", "grad_norm", "learning_rate"):
            np.testing.assert_allclose(column(trainer, name), column(whole, name), rtol=2e-3, err_msg=name)
        for name, after in adapter_of(trainer).items():
            torch.testing.assert_close(after, adapter_of(whole)[name], rtol=1e-3, atol=1e-4)


def test_the_logged_loss_is_the_objective_of_its_parts(new_trainer, examples, signals):
    trainer = new_trainer(examples, signals, SGD.model_copy(update={"micro_batch_size": 2}))
    trainer.train()
    ce, kd = np.array(column(trainer, "ce")), np.array(column(trainer, "kd"))
    assert len(ce) == 4 and (kd > 0).all()
    np.testing.assert_allclose(column(trainer, "loss"), 0.3 * ce + 0.7 * kd, rtol=1e-4)


def test_validation_loss_is_a_mean_over_tokens_whatever_the_batch(new_trainer, examples, lively, tokenizer):
    total = tokens = 0.0
    for example in examples[:3]:
        logits, (_, response) = plain_logits(lively, example, len(tokenizer)), split(example)
        total -= log_softmax64(logits)[np.arange(len(response)), response].sum()
        tokens += len(response)
    for micro in (1, 2, 4):
        train = SGD.model_copy(update={"micro_batch_size": micro})
        trainer = new_trainer(examples, None, train, validation=examples[:3], folder=f"m{micro}")
        assert trainer.evaluate()["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


# Checkpoints.


class Killed(Exception):
    pass


class KillBeforeStep(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


DROPOUT = LORA.model_copy(update={"dropout": 0.3})
EIGHT_STEPS = {"batch_size": 2, "micro_batch_size": 1, "checkpoints_per_epoch": 2}  # four an epoch; saved at 2, 4, 6, 8


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, lively, tokenizer, examples, signals):
    """Adapter files and history of one whole training, by optimiser."""

    def run(optimizer: str):
        folder = tmp_path_factory.mktemp(f"whole-{optimizer}")
        train = SGD.model_copy(update=EIGHT_STEPS | {"optimizer": optimizer, "learning_rate": 0.05})
        model = lora_model(lively, "float32", DROPOUT, 0)
        trainer = build_trainer(
            model, tokenizer, examples, examples[:2], signals, LOSS, train, folder / "checkpoints", 0
        )
        trainer.train()
        save_adapter(model, folder, lively)
        return train, (folder / "adapter" / "adapter_model.safetensors").read_bytes(), history(trainer)

    return {optimizer: run(optimizer) for optimizer in ("sgd", "adamw")}


@pytest.mark.parametrize("optimizer, killed_before, resumed_at", [("sgd", 3, 2), ("sgd", 5, 4), ("adamw", 7, 6)])
def test_a_killed_training_goes_on_to_the_same_adapter_bytes(
    optimizer, killed_before, resumed_at, uninterrupted, new_trainer, examples, signals, lively, tmp_path
):
    """Dropout is on, so the random state must come back too; the kills lie in both epochs and between them."""
    train, adapter, losses = uninterrupted[optimizer]
    trainer = new_trainer(examples, signals, train, lora=DROPOUT, validation=examples[:2])
    trainer.add_callback(KillBeforeStep(killed_before))
    with pytest.raises(Killed):
        trainer.train()

    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest.name == f"checkpoint-{resumed_at}"
    torch.manual_seed(99)  # a new process has another random state
    np.random.seed(99)
    trainer = new_trainer(examples, signals, train, lora=DROPOUT, validation=examples[:2])
    trainer.train(resume_from_checkpoint=str(newest))
    save_adapter(trainer.model.model, tmp_path, lively)
    assert history(trainer) == losses  # the whole history, what came before the kill included
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == adapter


def test_without_dropout_state_the_bytes_would_differ(uninterrupted, new_trainer, examples, signals, lively, tmp_path):
    """The test above can fail: another random state gives another adapter."""
    train, adapter, _ = uninterrupted["sgd"]
    trainer = new_trainer(examples, signals, train, lora=DROPOUT, seed=1)
    trainer.train()
    save_adapter(trainer.model.model, tmp_path, lively)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() != adapter


def test_checkpoints_hold_safetensors_and_json_and_no_pickle(new_trainer, examples, signals, tmp_path):
    new_trainer(examples, signals, SGD.model_copy(update=EIGHT_STEPS | {"optimizer": "adamw"})).train()
    folders = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert folders == ["checkpoint-6", "checkpoint-8"]  # the last two, no temporary one
    for name in folders:
        suffixes = {path.suffix for path in (tmp_path / "checkpoints" / name).rglob("*") if path.is_file()}
        assert suffixes == {".safetensors", ".json"}


def test_the_newest_checkpoint_is_found_by_number_and_half_written_ones_are_not(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") is None
    for name in ("checkpoint-2", "checkpoint-10", ".checkpoint-12.tmp", "checkpoint-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text('{"files": {}}')
    (tmp_path / "checkpoint-11").mkdir()  # has no state at all
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"


def test_a_full_disk_during_a_checkpoint_is_one_sentence_and_the_older_one_stays(
    new_trainer, examples, signals, tmp_path, monkeypatch, output
):
    from primekd.training import checkpoints

    real = checkpoints.save_file

    def save_file(tensors, path, *rest, **options):
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(tensors, path, *rest, **options)

    monkeypatch.setattr(checkpoints, "save_file", save_file)
    with pytest.raises(UserError, match="disk is full.*checkpoint-4.*run the same command again"):
        new_trainer(examples, signals, SGD.model_copy(update=EIGHT_STEPS)).train()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]


def test_a_checkpoint_of_another_adapter_is_refused(new_trainer, examples, signals, tmp_path):
    new_trainer(examples, signals, SGD.model_copy(update=EIGHT_STEPS)).train()
    other = new_trainer(examples, signals, SGD, lora=LORA.model_copy(update={"target_modules": ("o_proj",)}))
    with pytest.raises(ValueError, match="another student"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-8"))


# What is learned.


def test_the_adapter_loads_with_peft_alone_and_answers_as_the_trained_student(
    new_trainer, examples, signals, lively, tmp_path
):
    from peft import PeftModel

    trainer = new_trainer(examples, signals)
    trainer.train()
    student = trainer.model.model.eval()
    save_adapter(student, tmp_path, lively)
    named = read_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"]
    assert named == lively.removeprefix("path:")

    base = AutoModelForCausalLM.from_pretrained(lively.removeprefix("path:"))
    ids = torch.tensor([examples[0].sequence.input_ids])
    with torch.no_grad():
        untrained = base(ids).logits
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
        torch.testing.assert_close(loaded, student(ids).logits)
    assert (loaded - untrained).abs().max() > 0.1


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_distillation_brings_the_student_closer_to_its_teacher(
    divergence, new_trainer, examples, lively, tokenizer, output
):
    """The teacher is the student's base with its weights perturbed, so that it can be approached."""
    examples = examples[:4]
    engine = TransformersEngine(lively, "float32")
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for layer in engine.decoder.layers:
            layer.mlp.down_proj.weight += 0.3 * torch.randn_like(layer.mlp.down_proj.weight)
    signals = capture_examples(output / "s" / "base-KD", engine, examples)

    def kl(trainer) -> float:
        trainer.model.eval()
        total = tokens = 0.0
        for example in examples:
            batch = Collator(tokenizer.pad_token_id)([example])
            with torch.no_grad():
                hidden, _ = trainer.model.response_states(batch["input_ids"], batch["attention_mask"], batch["labels"])
                q = log_softmax64(logits_of(hidden.detach(), *trainer.model.head()).double().numpy())
            p = log_softmax64(signals.rows(example.item_id, split(example)[1]).to_logits().double().numpy())
            total, tokens = total + (np.exp(p) * (p - q)).sum(), tokens + len(p)
        return total / tokens

    train = TrainConfig(optimizer="adamw", learning_rate=0.05, epochs=8, batch_size=4, micro_batch_size=4)
    lora = LoraSettings(rank=4, alpha=8)
    loss = LossConfig(divergence=divergence, temperature=1.0, alpha=0.0)
    trainer = new_trainer(examples, signals, train, loss, lora)
    before = kl(trainer)
    trainer.train()
    assert kl(trainer) < 0.5 * before
    assert column(trainer, "kd")[-1] < column(trainer, "kd")[0]


# The whole stage.


@pytest.fixture
def profile(output):
    return small_profile(output, data={"train_items": 4, "validation_items": 2, "test_items": 2})


def test_fine_tuning_writes_a_student_with_its_manifest_and_a_second_run_does_nothing(profile, tokenizer, capsys):
    folder = distill(profile, "base-fine-tune")
    manifest = read_json(folder / "manifest.json")
    assert set(manifest["outputs"]) == {
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "loss_curve.csv",
    }  # fmt: skip
    assert manifest["inputs"]["strategy"] == "base-fine-tune" and "signals" not in manifest["inputs"]
    assert manifest["steps"] == 2 and manifest["resumed"] is False
    with open(folder / "loss_curve.csv", newline="") as handle:
        curve = list(csv.DictReader(handle))
    assert [row["step"] for row in curve] == ["1", "2"]
    assert all(float(row["loss"]) > 0 and float(row["eval_loss"]) > 0 for row in curve)
    assert not (profile.runs / "checkpoints").exists() or not list((profile.runs / "checkpoints").iterdir())

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    capsys.readouterr()
    assert distill(profile, "base-fine-tune") == folder
    assert "nothing to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_student_of_another_configuration_is_set_aside_and_an_altered_one_is_not_reused(profile, output):
    folder = distill(profile, "base-fine-tune")
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    changed = small_profile(output, data=profile.data.model_dump(mode="json"), train={"learning_rate": 0.2})
    distill(changed, "base-fine-tune")
    aside = folder.with_name("base-fine-tune.old-1")
    assert (aside / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() != adapter

    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"altered")
    distill(changed, "base-fine-tune")
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() != b"altered"


def test_a_training_that_other_code_goes_on_with_says_so(profile, edited, capsys, monkeypatch):
    from primekd.models import students
    from primekd.training import checkpoints

    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(students, "save_student", kill)
        with pytest.raises(Killed):
            distill(profile, "base-fine-tune")
    assert checkpoints.newest_checkpoint(next((profile.runs / "checkpoints").iterdir()))
    edited("training/trainer")
    capsys.readouterr()
    folder = distill(profile, "base-fine-tune")
    said = capsys.readouterr().out
    assert "distill base-fine-tune: 1 parts of it are there, made by other code" in said
    assert "changed since: training.trainer" in said
    assert [m["parts"] for m in read_json(folder / "manifest.json")["mixed"]] == [["session 1"], ["session 2"]]
    distill(profile, "base-fine-tune")
    assert "parts of it were made by different code: kept" in capsys.readouterr().out
    distill(profile, "base-fine-tune", force=True)
    assert "to be made anew: set aside as base-fine-tune.old-1" in capsys.readouterr().out
    assert "mixed" not in read_json(folder / "manifest.json")


def test_another_seed_gives_another_student_beside_the_first(profile):
    first, second = distill(profile, "base-fine-tune"), distill(profile, "base-fine-tune", seed=1)
    assert second.name == "base-fine-tune-seed1" and first.name == "base-fine-tune"
    adapters = [(f / "adapter" / "adapter_model.safetensors").read_bytes() for f in (first, second)]
    assert adapters[0] != adapters[1]


def test_distilling_before_the_capture_names_the_command_that_is_missing(profile):
    with pytest.raises(UserError, match="signals/base-KD.*primekd capture"):
        distill(profile, "base-KD")


def test_gold_labels_of_the_stage_hold_no_calculator_marks(tokenizer, items):
    for example in gold_examples(tokenizer, items):
        assert "<<" not in tokenizer.decode(split(example)[1])


def test_the_base_model_is_not_changed_by_training(new_trainer, examples, signals, lively):
    trainer = new_trainer(examples, signals)
    trainer.train()
    fresh = load_model(lively, "float32").state_dict()
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    trained = trainer.model.model.get_base_model().state_dict()
    names = {name.replace(".base_layer", ""): name for name in trained if "lora_" not in name}
    assert names.keys() == fresh.keys()
    assert all(torch.equal(trained[names[name]], fresh[name]) for name in fresh)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(new_trainer, examples, signals, tmp_path, capsys):
    train = SGD.model_copy(update=EIGHT_STEPS)
    trainer = new_trainer(examples, signals, train)
    trainer.add_callback(KillBeforeStep(5))
    with pytest.raises(Killed):
        trainer.train()
    folder = tmp_path / "checkpoints"
    newest = newest_checkpoint(folder)
    assert newest.name == "checkpoint-4"
    data = (newest / "adapter.safetensors").read_bytes()
    (newest / "adapter.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert newest_checkpoint(folder).name == "checkpoint-2"
    assert "checkpoint-4 is damaged" in capsys.readouterr().out


# A head that is trained, and attention.


def test_a_head_with_an_adapter_is_trained_on_whole_logits(new_trainer, examples, signals, tokenizer):
    lora = LoraSettings(rank=2, alpha=4, target_modules=("q_proj", "lm_head"))
    trainer = new_trainer(examples, signals, lora=lora)
    with torch.no_grad():  # B begins as zeros: the adapter would not show
        for name, parameter in trainer.model.named_parameters():
            if "lm_head" in name and "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    batch = Collator(tokenizer.pad_token_id)(examples[:3])
    inputs = [batch[key] for key in ("input_ids", "attention_mask", "labels")]
    teacher = trainer._teacher_rows(batch["item_ids"], batch["input_ids"], batch["labels"])
    value, _ = trainer.model.eval()(*inputs, teacher, 7.0)
    whole = trainer.model.model(input_ids=inputs[0], attention_mask=inputs[1]).logits[:, :-1, : len(tokenizer)]
    targets = inputs[2][:, 1:]
    kept = targets != IGNORED
    expected, _ = distillation_loss(whole[kept], targets[kept], teacher, LOSS, 7.0)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    value.backward()
    gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad and "lm_head" in n}
    assert gradients and all(g is not None and g.abs().max() > 0 for g in gradients.values())


@pytest.mark.parametrize(
    "tokens, dtype, chosen", [(9, "bfloat16", "eager"), (300, "bfloat16", "sdpa"), (9, "float32", "sdpa")]
)
def test_plain_attention_is_for_short_sequences_in_bfloat16(lively, tokens, dtype, chosen):
    model = lora_model(lively, dtype, LORA, 0).get_base_model()
    with attending(model, tokens=tokens):
        assert model.config._attn_implementation == chosen
    assert model.config._attn_implementation == "sdpa"
    choose_attention(model, tokens)
    assert model.config._attn_implementation == chosen


# Gold solutions beside the teacher's responses.


def test_cross_entropy_on_gold_and_divergence_on_the_response_each_over_their_own_tokens(
    new_trainer, examples, signals, lively, teacher, tokenizer
):
    """Against float64 from plain forwards; catches one count for both, and rows of one term taken for the other's."""
    paired = [Example(e.item_id, e.sequence, g.sequence) for e, g in zip(examples, examples[3:6], strict=False)]
    ce = kd = response_tokens = gold_tokens = 0.0
    for example in paired:
        response, gold = split(example)[1], split(Example("", example.gold))[1]
        student = plain_logits(lively, Example("", example.gold), len(tokenizer))
        ce -= log_softmax64(student)[np.arange(len(gold)), gold].sum()
        student, taught = (plain_logits(m, example, len(tokenizer)) for m in (lively, teacher))
        p, q = log_softmax64(taught / 2.0), log_softmax64(student / 2.0)
        kd += (np.exp(p) * (p - q)).sum()
        response_tokens, gold_tokens = response_tokens + len(response), gold_tokens + len(gold)
    assert response_tokens != gold_tokens

    trainer = new_trainer(paired, signals)
    loss = trainer.compute_loss(trainer.model, Collator(tokenizer.pad_token_id)(paired))
    expected = 0.3 * ce / gold_tokens + 0.7 * 2.0**2 * kd / response_tokens
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_micro_batches_change_nothing_with_gold_solutions_either(new_trainer, examples, signals):
    paired = [Example(e.item_id, e.sequence, g.sequence) for e, g in zip(examples, examples[::-1], strict=True)]
    whole, parts = (
        new_trainer(paired, signals, train=SGD.model_copy(update={"micro_batch_size": size}), folder=str(size))
        for size in (4, 1)
    )
    for trainer in (whole, parts):
        trainer.train()
    for one, other in zip(history(whole), history(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    for name, value in adapter_of(whole).items():
        torch.testing.assert_close(adapter_of(parts)[name], value, rtol=1e-4, atol=1e-6)


# Trainings that diverge.


class Spoil(TrainerCallback):
    """Makes a trained weight infinite before a step."""

    def __init__(self, step: int, moment: str):
        self.step = step
        setattr(self, moment, self.spoil)

    def spoil(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(torch.inf)


def test_a_step_that_is_not_finite_stops_the_training_and_the_last_good_checkpoint_stays(
    new_trainer, examples, signals, tmp_path
):
    train = SGD.model_copy(update={"checkpoints_per_epoch": 2})  # after every step
    trainer = new_trainer(examples, signals, train=train)
    trainer.add_callback(Spoil(2, "on_step_begin"))
    with pytest.raises(UserError, match=r"diverged at step 3.*last good checkpoint stays") as raised:
        trainer.train()
    assert f"step 3, which read {trainer._read[0]} to {trainer._read[-1]} (loss nan" in str(raised.value)
    assert set(trainer._read) <= {example.item_id for example in examples} and len(trainer._read) == SGD.batch_size
    assert newest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-2"
    assert 0.0 not in column(trainer, "loss")


def test_weights_that_are_not_finite_after_a_good_step_are_not_kept(new_trainer, examples, signals, tmp_path):
    train = SGD.model_copy(update={"checkpoints_per_epoch": 2})
    trainer = new_trainer(examples, signals, train=train)
    trainer.add_callback(Spoil(3, "on_step_end"))
    with pytest.raises(UserError, match=r"diverged by step 3 \(1 of \d+ weight matrices"):
        trainer.train()
    assert newest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-2"


def test_a_student_that_diverged_is_not_written(profile, monkeypatch):
    """Without clipping or a checkpoint in between, the last step's weights are looked at all the same."""
    real = DistillTrainer.trained_weights

    def spoilt(trainer):
        next(iter(trainer._trainable().values())).data.fill_(torch.nan)
        return real(trainer)

    monkeypatch.setattr(DistillTrainer, "trained_weights", spoilt)
    with pytest.raises(UserError, match="diverged"):
        distill(profile, "base-fine-tune")
    assert not (profile.student_folder("base-fine-tune") / "manifest.json").exists()


def test_clipping_can_be_off(new_trainer, examples, signals):
    clipped, free = (
        new_trainer(examples, signals, train=SGD.model_copy(update={"max_grad_norm": limit}), folder=str(limit))
        for limit in (0.01, 0.0)
    )
    for trainer in (clipped, free):
        trainer.train()
    assert min(column(free, "grad_norm")) > 0.01
    move = [sum(float(w.norm()) for n, w in adapter_of(t).items() if "lora_B" in n) for t in (clipped, free)]
    assert move[1] > 2 * move[0]


def test_the_path_of_a_step_names_six_places_that_are_there():
    """Six at most, as a reader is promised; a store or a live teacher is one of them."""
    import re

    import primekd
    from primekd import training

    steps = [re.findall(r"`(\w+/\w+\.py)`", step) for step in re.findall(r"^\d\. .*", training.__doc__, re.MULTILINE)]
    assert 1 <= len(steps) <= 6 and all(steps)
    assert all((Path(primekd.__file__).parent / name).is_file() for step in steps for name in step)


def test_two_trainings_of_one_student_do_not_write_the_same_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints" / "ai-KD-0"
    with held(folder), pytest.raises(UserError, match="is being written by another training"), held(folder):
        pass
    with held(folder):
        pass
    assert not list(folder.parent.iterdir())


def test_what_is_longer_than_a_models_context_is_refused(lively, tokenizer, examples, signals, tmp_path):
    """Positions beyond those of its training would be captured, learned and scored without a word."""
    model = lora_model(lively, "float32", LORA, 0)
    model.config.max_position_embeddings = 3
    with pytest.raises(UserError, match="The longest example: prompt and response have .* context of 3 holds"):
        build_trainer(model, tokenizer, list(examples), [], signals, LOSS, SGD, tmp_path, 0)
    engine, prompt = TransformersEngine(lively, "float32"), [[5, 6, 7]]
    engine.generate(prompt, Sampling(3))  # what it can do is found out with longer texts
    engine.model.config.max_position_embeddings = 5
    assert engine.generate(prompt, Sampling(3)) and engine.score(prompt, [[8, 9, 10]], "logits")
    for ask in (lambda: engine.generate(prompt, Sampling(4)), lambda: engine.score(prompt, [[8] * 4], "logits")):
        with pytest.raises(UserError, match="7 tokens, more than the model's context of 5 holds: lower max_new_tokens"):
            ask()
