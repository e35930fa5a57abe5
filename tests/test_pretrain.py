"""Students of text: a control from scratch, and arms that go on from its weights with the same text behind it."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import small_profile
from safetensors.torch import load_file

from primekd.config import Profile
from primekd.config.arm import CONTROL
from primekd.config.arms import get_arm
from primekd.foundation import read_json
from primekd.foundation.errors import UserError
from primekd.models import load_tokenizer, tokenizer_hash
from primekd.tasks.text import text_folder, tokenise
from primekd.tasks.text_shards import Blocks
from primekd.training import trainer as of_trainer
from primekd.training.examples import Collator, TextExamples, document_examples
from primekd.training.pretrain import part_of, text_examples, train_on_text

ARMS = ["micro-text", "micro-forward-KL", "micro-on-policy", "micro-minillm"]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
ADAMW = {"optimizer": "adamw", "learning_rate": 0.01, "epochs": 1, "batch_size": 2, "micro_batch_size": 1,
         "weight_decay": 0.1, "checkpoints_per_epoch": 4}  # fmt: skip
STORY = "Tom has {n} apples and a dog. The dog has {m} cats. Ann counts them all, and gives Tom {n} more. "


@pytest.fixture
def profile(output, lively, ci) -> Profile:
    texts = [STORY.format(n=n, m=n * n) * (1 + n % 3) for n in range(60)]
    for n, text in enumerate(texts):
        (output / f"story{n:02}.txt").write_text(text)
    profile = small_profile(
        output, arms=ARMS, teacher={"model": lively}, max_new_tokens=5, train=ADAMW,
        student={"model": None, "lora": None, "from_scratch": LLAMA, "tokenizer": ci.student.model, "dtype": "float32"},
        text={"source": "files", "files": str(output / "story*.txt"), "block_tokens": 32, "held_out_documents": 3,
              "train_tokens": 640},
        pretrain={"tokens": 384, "train": ADAMW}, loss={"alpha": 0.5, "temperature": 1.0},
        on_policy={"prompt_tokens": 4},
    )  # fmt: skip
    tokenizer = load_tokenizer(profile.student.speaker)
    tokenise(profile, tokenizer, tokenizer_hash(tokenizer))
    return profile


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def differ(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return any(not torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def read(monkeypatch):
    """The blocks that a training reads, by their numbers, in order."""
    seen: list[str] = []
    real = of_trainer.Collator.__call__

    def noting(self, given):
        batch = real(self, given)
        seen.extend(dict.fromkeys(item.split(".")[0] for item in batch["item_ids"] if "." in item))
        return batch

    monkeypatch.setattr(Collator, "__call__", noting)
    return seen


def test_arms_go_on_from_the_control_and_read_the_same_blocks_behind_its_own(profile, read, capsys):
    assert part_of(profile, None)[1:] == (0, 12) and part_of(profile, get_arm("micro-text"))[1:] == (12, 20)
    with pytest.raises(UserError, match="train the control first"):
        train_on_text(profile, "micro-text")
    control = train_on_text(profile, CONTROL)
    assert read == [str(n) for n in range(12)]
    manifest = read_json(control / "manifest.json")
    assert manifest["tokens_per_second"] > 0 and manifest["peak_source"]
    folders = {}
    for name in ("micro-text", "micro-forward-KL", "micro-on-policy"):
        read.clear()
        folders[name] = train_on_text(profile, name)
        assert list(dict.fromkeys(read)) == [str(n) for n in range(12, 20)], name
        assert differ(folders[name], control)
    assert differ(folders["micro-text"], folders["micro-forward-KL"])
    inputs = read_json(folders["micro-on-policy"] / "manifest.json")["inputs"]
    assert inputs["on_policy"]["share"] == 0.5 and inputs["loss"]["divergence"] == "reverse_kl"
    assert inputs["start"] == manifest["outputs"], "whose weights it started from"
    assert (folders["micro-on-policy"] / "rollouts.csv").is_file()
    train_on_text(profile, CONTROL)
    assert "its inputs are unchanged" in capsys.readouterr().out


def test_the_log_has_a_line_a_label_and_step(profile):
    folder = train_on_text(profile, CONTROL)
    lines = [line.split() for line in (folder.parent / "control.log.txt").read_text().splitlines()]
    assert {label for _, label, _ in lines} == {"train", "val"}
    losses = [float(value) for _, label, value in lines if label == "train"]
    assert len(losses) == 6 and losses[-1] < losses[0]
    train_on_text(profile, "micro-minillm")
    lines = [line.split() for line in (folder.parent / "micro-minillm.log.txt").read_text().splitlines()]
    of = {name: [float(value) for _, label, value in lines if label == name] for name in ("train", "loss", "kl", "val")}
    assert all(of.values()) and of["train"] != of["loss"]
    assert abs(of["train"][-1] - losses[-1]) < 1, "the cross-entropy of the given text, as the control's"


@pytest.mark.parametrize("name", [CONTROL, "micro-minillm"])
def test_a_stopped_training_goes_on_to_the_same_weights_and_log(profile, name, monkeypatch):
    if name != CONTROL:
        train_on_text(profile, CONTROL)
    whole = train_on_text(profile, name)
    expected, log = weights(whole), (whole.parent / f"{name}.log.txt").read_text()
    real, steps = of_trainer.ProgressCallback.on_step_end, []

    def stopping(self, *args, **kwargs):
        real(self, *args, **kwargs)
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(of_trainer.ProgressCallback, "on_step_end", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_on_text(profile, name, force=True)
    again = train_on_text(profile, name)
    assert read_json(again / "manifest.json")["resumed"]
    assert all(torch.equal(expected[key], value) for key, value in weights(again).items())
    assert (again.parent / f"{name}.log.txt").read_text() == log


def test_documents_of_a_block_are_examples_of_their_own_unless_they_see_each_other(profile):
    blocks = Blocks(text_folder(profile), 32, profile.seed)
    apart, running = (TextExamples(blocks, 0, len(blocks), apart) for apart in (True, False))
    assert len(apart) == len(running) == len(blocks) and apart.tokens == 32 * len(blocks)
    for n in range(len(blocks)):
        ids, lengths = blocks[n]
        [one] = running[n]
        assert one.sequence.input_ids == ids.tolist() and sum(one.sequence.response_mask) == 31
        assert [len(e.sequence.input_ids) for e in apart[n]] == [size for size in lengths if size > 1]
    assert any(len(apart[n]) > 1 for n in range(len(apart)))
    with pytest.raises(IndexError):
        apart[len(apart)]
    held = document_examples([ids for ids, _ in (blocks[0], blocks[1])], 8)
    assert [len(example.sequence.input_ids) for example in held] == [8, 8]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"pretrain": None}, "need the sections text and pretrain"),
        ({"train": {"epochs": 2}}, "text.epochs says how often"),
        ({"pretrain": {"tokens": 20}}, "leaves no block of 32 tokens to the control"),
        ({"pretrain": {"tokens": 640}}, "none of text.train_tokens 640 to the arms"),
    ],
)
def test_what_cannot_be_is_refused(profile, changes, said):
    update = {
        key: None if value is None else getattr(profile, key).model_copy(update=value) for key, value in changes.items()
    }
    with pytest.raises(UserError, match=said):
        train_on_text(profile.model_copy(update=update), "micro-text")


def test_too_little_text_for_the_arms_is_refused_before_the_control_is_trained(profile):
    more = profile.model_copy(update={"text": profile.text.model_copy(update={"train_tokens": 320_000})})
    shutil.rmtree(text_folder(profile))
    tokenizer = load_tokenizer(profile.student.speaker)
    tokenise(more, tokenizer, tokenizer_hash(tokenizer))  # the source ends long before
    with pytest.raises(UserError, match=r"read 10000 blocks of 32 tokens, and the text has \d+: lower pretrain"):
        train_on_text(more, CONTROL)
    assert not more.student_folder(CONTROL).exists() and not (more.runs / "checkpoints").exists()
    _, first, end = part_of(more, get_arm("micro-text"))
    with pytest.raises(UserError, match="read 10000 blocks"):
        text_examples(more.model_copy(update={"arms": ()}), first, end)


def test_arms_that_learn_from_no_text_are_no_students_of_text(profile):
    with pytest.raises(UserError, match="base-KD is no arm of text"):
        train_on_text(profile, "base-KD")
