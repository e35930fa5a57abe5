"""Students from scratch: all weights, the head too, by the same trainer; resumed, saved, and read again as a model."""

import pytest
import torch
from conftest import POCKET, save_llama, small_profile
from safetensors.torch import load_file
from test_training import column, split
from transformers import AutoModelForCausalLM

from primekd.capture.jobs import training_job
from primekd.capture.run import capture
from primekd.config import Architecture, LossConfig, StudentConfig, TrainConfig
from primekd.foundation import read_json
from primekd.foundation.errors import UserError
from primekd.models import load_model, load_tokenizer, parse_reference
from primekd.models.students import new_student, save_student, scratch_model
from primekd.signals import LiveSource
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.checkpoints import newest_checkpoint
from primekd.training.distill import distill, student_inputs
from primekd.training.examples import IGNORED, Collator, block_example
from primekd.training.trainer import build_trainer

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = Architecture(model_type="llama", **SIZES)
STUDENT = StudentConfig(from_scratch=LLAMA, tokenizer=POCKET, dtype="float32")
ADAMW = TrainConfig(optimizer="adamw", learning_rate=0.03, epochs=80, batch_size=4, micro_batch_size=2)
LABELS = LossConfig()
TEXTS = ["Tom has 3 apples and a dog.", "Ann has none.", "The dog has 7 apples and a cat!", "Who has 10 cats? The cat."]


@pytest.fixture(scope="module")
def blocks(tokenizer):
    """Blocks of text of different length, every token of them a label."""
    return [block_example(str(n), tokenizer(text)["input_ids"]) for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizer) -> LiveSource:
    engine = TransformersEngine(save_llama(tmp_path_factory.mktemp("teacher"), tokenizer, seed=2), "float32")
    return LiveSource(engine, len(tokenizer))


@pytest.fixture
def new_trainer(tokenizer, tmp_path):
    def make(blocks, source=None, loss=LABELS, train=ADAMW, student=STUDENT, folder="checkpoints", seed=0):
        model = new_student(student, seed)
        return build_trainer(
            model, tokenizer, blocks, [], source, loss, train, tmp_path / folder, seed, dtype=student.dtype
        )

    return make


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


# What is learned.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_weights_learn_a_tiny_batch_by_heart(new_trainer, blocks, dtype):
    trainer = new_trainer(blocks, student=STUDENT.model_copy(update={"dtype": dtype}))
    before = weights_of(trainer)
    trainer.train()
    losses = column(trainer, "loss")
    assert losses[0] > 10 and losses[-1] < 0.3  # log of the vocabulary is 10.8
    assert all(not torch.equal(before[name], value) for name, value in weights_of(trainer).items())
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_a_live_teachers_distribution_is_learned(new_trainer, blocks, teacher, divergence):
    loss = LossConfig(divergence=divergence, alpha=0.0)
    trainer = new_trainer(blocks, teacher, loss)
    trainer.train()
    losses = column(trainer, "kd")
    assert losses[-1] < 0.5 * losses[0]


# The loss and its gradient.


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_loss_and_every_gradient_are_those_of_plain_float64(new_trainer, blocks, teacher, tokenizer, divergence, tied):
    loss = LossConfig(divergence=divergence, temperature=2.0, alpha=0.3, beta=0.2)
    student = STUDENT.model_copy(update={"from_scratch": LLAMA.model_copy(update={"tie_word_embeddings": tied})})
    trainer = new_trainer(blocks, teacher, loss, student=student)
    batch = Collator(tokenizer.pad_token_id)(blocks)
    value = trainer.compute_loss(trainer.model, batch)
    value.backward()

    model = scratch_model(student.from_scratch, tokenizer, seed=0).double()
    taught = AutoModelForCausalLM.from_pretrained(teacher._engine.reference.removeprefix("path:"), dtype=torch.float64)
    total, tokens = 0.0, sum(len(split(block)[1]) for block in blocks)
    for block in blocks:  # one unpadded sequence after the other, by the definitions
        ids = torch.tensor([block.sequence.input_ids])
        z = model(ids).logits[0, :-1]
        with torch.no_grad():
            t = taught(ids).logits[0, :-1, : len(tokenizer)]
        ce = torch.nn.functional.cross_entropy(z, ids[0, 1:], reduction="sum")
        log_p, log_q = (t / 2).log_softmax(-1), (z / 2).log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        log_m = (0.2 * p + 0.8 * q).log()
        kd = {
            "forward_kl": (p * (log_p - log_q)).sum(),
            "reverse_kl": (q * (log_q - log_p)).sum(),
            "jsd": 0.2 * (p * (log_p - log_m)).sum() + 0.8 * (q * (log_q - log_m)).sum(),
        }[divergence]
        total = total + (0.3 * ce + 0.7 * 2.0**2 * kd) / tokens
    total.backward()
    assert value.item() == pytest.approx(total.item(), rel=1e-5)
    expected = {name: p.grad for name, p in model.named_parameters()}
    found = {name.removeprefix("model."): p.grad for name, p in trainer.model.named_parameters()}
    assert found.keys() == expected.keys() and ("lm_head.weight" in found) != tied
    for name, gradient in found.items():
        error = (gradient.double() - expected[name]).norm() / expected[name].norm()
        assert error < 1e-4, name


def test_tied_embeddings_get_the_gradient_of_both_uses(new_trainer, blocks, tokenizer):
    """Of a token that is read and never predicted from the head's side alone, and of one that is never read."""
    trainer = new_trainer(blocks)
    trainer.compute_loss(trainer.model, Collator(tokenizer.pad_token_id)(blocks)).backward()
    tied = trainer.model.model.get_input_embeddings().weight
    assert tied is trainer.model.model.get_output_embeddings().weight
    read = {i for block in blocks for i in block.sequence.input_ids[:-1]}
    unread = next(i for i in range(len(tokenizer)) if i not in read)
    untied = STUDENT.model_copy(update={"from_scratch": LLAMA.model_copy(update={"tie_word_embeddings": False})})
    apart = new_trainer(blocks, student=untied)
    model = apart.model.model
    with torch.no_grad():  # the same model with two copies of the weight
        for name, p in trainer.model.model.named_parameters():
            model.get_parameter(name).copy_(p)
        model.get_output_embeddings().weight.copy_(tied)
    apart.compute_loss(apart.model, Collator(tokenizer.pad_token_id)(blocks)).backward()
    of_input, of_output = model.get_input_embeddings().weight.grad, model.get_output_embeddings().weight.grad
    assert of_input[unread].abs().max() == 0 < of_output[unread].abs().max()
    assert of_input.norm() > 0.01 * of_output.norm()
    torch.testing.assert_close(tied.grad, of_input + of_output, rtol=1e-4, atol=1e-7)


def test_the_first_token_of_a_block_is_no_label(blocks, tokenizer):
    batch = Collator(tokenizer.pad_token_id)(blocks)
    kept = batch["labels"] != IGNORED
    assert not kept[:, 0].any()
    assert kept.sum(1).tolist() == [len(block.sequence.input_ids) - 1 for block in blocks]


# Checkpoints and files.


class Stop(Exception):
    """As a kill between two steps."""


def test_a_stopped_training_resumes_to_the_same_weights(new_trainer, blocks, teacher, tmp_path, monkeypatch):
    train = ADAMW.model_copy(update={"epochs": 6, "checkpoints_per_epoch": 1, "batch_size": 2, "micro_batch_size": 1})
    loss = LossConfig(divergence="reverse_kl", alpha=0.3)
    whole = new_trainer(blocks, teacher, loss, train, folder="whole")
    whole.train()

    stopped = new_trainer(blocks, teacher, loss, train, folder="stopped")
    step = type(stopped).training_step

    def until(trainer, *arguments, **named):
        if trainer.state.global_step == 5:
            raise Stop
        return step(trainer, *arguments, **named)

    monkeypatch.setattr(type(stopped), "training_step", until)
    with pytest.raises(Stop):
        stopped.train()
    monkeypatch.setattr(type(stopped), "training_step", step)
    newest = newest_checkpoint(tmp_path / "stopped")
    assert newest is not None and not list(newest.glob("*.p*t*"))  # nothing pickled
    resumed = new_trainer(blocks, teacher, loss, train, folder="stopped", seed=0)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.add_(1.0)  # only the checkpoint can say what the weights were
    resumed.train(resume_from_checkpoint=str(newest))
    assert column(resumed, "loss") == column(whole, "loss")
    for name, value in weights_of(resumed).items():
        assert torch.equal(value, weights_of(whole)[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_student_is_read_as_a_model_like_any_other(new_trainer, blocks, tokenizer, tmp_path, tied):
    student = STUDENT.model_copy(update={"from_scratch": LLAMA.model_copy(update={"tie_word_embeddings": tied})})
    trainer = new_trainer(blocks, train=ADAMW.model_copy(update={"epochs": 2}), student=student)
    trainer.train()
    model = trainer.model.model.eval()
    files = save_student(model, tmp_path / "student", student, trainer.trained_weights())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in files}
    assert {p.parent for p in files} == {tmp_path / "student" / "model"}
    reference = f"path:{tmp_path / 'student' / 'model'}"
    again, ids = load_model(reference, "float32"), torch.tensor([blocks[0].sequence.input_ids])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)
    read = load_tokenizer(reference)
    assert read.get_vocab() == tokenizer.get_vocab() and read.get_chat_template() == tokenizer.get_chat_template()
    assert len(load_file(files[0].parent / "model.safetensors")) == len(list(model.parameters()))
    engine = TransformersEngine(reference, "float32")  # and it can answer, or teach
    assert "hidden" in engine.offers


def test_seeds_draw_the_weights(tokenizer):
    first, same, other = (scratch_model(LLAMA, tokenizer, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize("strategy", ["base-KD", "base-fine-tune"])
def test_a_stage_trains_a_student_from_scratch(strategy, output):
    student = {"model": None, "lora": None, "from_scratch": LLAMA.model_dump(exclude_none=True), "tokenizer": POCKET}
    profile = small_profile(output, student=student)
    assert profile.student.lora is None
    if strategy == "base-KD":
        capture(training_job(profile, strategy))
    folder = distill(profile, strategy)
    manifest = read_json(folder / "manifest.json")
    assert manifest["kind"] == "model" and {"model/model.safetensors", "loss_curve.csv"} <= manifest["outputs"].keys()
    assert manifest["inputs"]["student"]["from_scratch"]["hidden_size"] == 16
    assert load_model(f"path:{folder / 'model'}", "float32").num_parameters() > 10_000
    time = (folder / "manifest.json").stat().st_mtime_ns
    distill(profile, strategy)
    assert (folder / "manifest.json").stat().st_mtime_ns == time  # its inputs are unchanged


# Configuration.


def test_a_student_is_of_one_kind():
    architecture = LLAMA.model_dump()
    lora = {"rank": 2, "alpha": 4}
    for values, said in (
        ({"from_scratch": architecture}, "needs tokenizer"),
        ({"model": POCKET}, "needs lora"),
        ({"lora": lora}, "needs model"),
        ({"model": POCKET, "lora": lora, "tokenizer": POCKET}, "tokenizer is not for LoRA"),
        ({"from_scratch": architecture, "tokenizer": POCKET, "lora": lora}, "lora is not for a student from scratch"),
        ({"from_scratch": architecture, "tokenizer": POCKET, "quantization": "nf4"}, "quantization is not for"),
        ({"from_scratch": architecture | {"hidden": 3}, "tokenizer": POCKET}, "Extra inputs are not permitted"),
        ({"from_scratch": architecture | {"hidden_size": 0}, "tokenizer": POCKET}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=said):
            StudentConfig(**values)


def test_what_is_for_pretrained_students_says_so():
    with pytest.raises(UserError, match="student.from_scratch has none"):
        parse_reference(STUDENT.model)


def test_a_profile_of_a_pretrained_student_says_nothing_of_the_other_kind(ci):
    assert not {"from_scratch", "tokenizer"} & ci.resolved()["student"].keys()
    inputs = student_inputs(ci, "base-fine-tune", 0, None)["student"]
    assert inputs.keys() == {"model", "template_arguments", "dtype", "lora", "model_sha256"}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "lama"}, "lama"),
        ({"model_type": "t5"}, "t5"),
        ({"num_attention_heads": 3}, "mend the profile"),
        ({"model_type": "gpt2", "head_dim": 8}, "it has no head_dim"),
    ],
)
def test_an_architecture_that_cannot_be_made_is_refused(tokenizer, changes, said):
    given = LLAMA.model_dump(exclude_none=True, exclude={"intermediate_size"}) | changes
    with pytest.raises(UserError, match=said):
        scratch_model(Architecture(**given), tokenizer, 0)
