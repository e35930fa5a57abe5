"""What notebooks show: from which logs, of which item, and a sentence where something is not there."""

from types import SimpleNamespace

import pytest
from conftest import small_profile
from report_logs import make_checkout, write_some_tokens, write_study

from primekd.capture.jobs import training_job
from primekd.capture.run import capture
from primekd.config import load_profile
from primekd.foundation import read_json, write_json
from primekd.foundation.errors import UserError
from primekd.report import display
from primekd.report.browser import words_of
from primekd.report.playground import playground
from primekd.running.show import show


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A fresh clone: published logs with tokens, and none of this machine's."""
    make_checkout(tmp_path, monkeypatch)
    profile = write_study(load_profile("pocket")).of_published()
    profile.published.parent.mkdir(parents=True)
    profile.of_machine().logs.rename(profile.published)
    write_some_tokens(profile.published, "item-0")
    return profile


def test_tokens_are_those_of_the_published_logs_where_there_are_no_own_ones(published):
    own = published.of_machine()
    said = repr(display.tokens(own, None, ["control", "ai-KD"]))
    assert said.startswith("item-0 (published, logs/pocket: here are no own logs yet):\nQuestion 0: ")
    assert "KL to the teacher 2.00 nats over 6 tokens" in said and "Teacher, unprimed: 6 tokens, entropy 0.250" in said
    assert repr(display.tokens(published, "item-0", "ai-KD")).startswith("item-0:\n"), "a word is a list of one"
    write_study(own)
    with pytest.raises(UserError, match="runs/pocket/logs keeps no tokens"):
        display.tokens(own, None, ["ai-KD"])


def test_the_default_item_is_one_that_the_teacher_solves_and_the_model_does_not():
    log = SimpleNamespace(sums=lambda model: {"a": 9.0, "b": 3.0, "c": 4.0, "d": 1.0})
    verdicts = {"teacher": "0111", "m": "0100", "n": "1111"}
    rows = {
        name: [SimpleNamespace(id=item, correct=sign == "1") for item, sign in zip("abcd", signs, strict=True)]
        for name, signs in verdicts.items()
    }
    assert display._telling_item(log, rows, "m") == "c"
    assert display._telling_item(log, rows, "n") == "a", "there is none: of all items"


@pytest.mark.parametrize("call, said", [
    (lambda p: display.tokens(p, None, []), "No model is named: choose from ai-KD, control"),
    (lambda p: display.tokens(p, None, "nope"), "No tokens are kept of 'nope': choose from ai-KD, control"),
    (lambda p: display.tokens(p, "item-9", "ai-KD"), "No tokens are kept of the item 'item-9': choose one like item-0"),
    (lambda p: display.settings(p, "trian"), "A profile has no section 'trian': choose from .*train"),
    (lambda p: display.loss(p, "ai-KD", 7), r"ai-KD-seed7/loss_curve.csv is missing: run ai-KD/distill.* the seed 7\."),
    (lambda p: playground(p, "1 + 1 = ?", ["nope"]), "No strategy is called 'nope'"),
    (lambda p: show(p, ""), "Name a test item, such as item-0"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(published, call, said):
    with pytest.raises(UserError, match=said):
        call(published)


def test_what_is_not_captured_is_named_and_the_rest_is_shown(output, lively):
    profile = small_profile(output, teacher={"model": lively}, data={"train_items": 3, "validation_items": 2})
    primed = training_job(profile, "ai-KD")
    capture(primed)
    moved = "Probability that the priming moved"
    certain = repr(display.certainty(primed))
    assert moved in certain and "not known: base-KD is not captured yet" in certain
    both = repr(display.primings(profile, None, ["base-KD", "ai-KD"]))
    assert "Ground truth-KD: " in both and "- base-KD: " in both and "has no signals: run `primekd capture`" in both
    with pytest.raises(UserError, match="There is no training item 'x'"):
        display.primings(profile, "x", ["ai-KD"])
    capture(training_job(profile, "base-KD"))
    certain = repr(display.certainty(primed))
    assert " % over " in certain and "not known" not in certain
    assert moved not in repr(display.certainty(training_job(profile, "base-KD"))), "nothing primed it"
    manifest = read_json(profile.signals_folder("base-KD") / "manifest.json")
    write_json(profile.signals_folder("base-KD") / "manifest.json", manifest | {"complete": False})
    assert "not known: " in (certain := repr(display.certainty(primed))) and "is not complete" in certain


def test_a_student_is_shown_with_what_it_was_trained_with(published):
    manifest = read_json(published.logs / "manifest.json")
    own = {"train": {"learning_rate": 0.5, "epochs": 3}, "loss": {"divergence": "jsd", "alpha": 0.25}}
    manifest["models"]["ai-KD"]["inputs"] |= own
    manifest["models"]["ai-KD"]["inputs"]["student"]["lora"] = {"rank": 5}
    write_json(published.logs / "manifest.json", manifest)
    parts = {part.title: dict(part.rows) for part in show(published, "item-0", "ai-KD")}
    assert parts["Trained with"] == {
        "LoRA": "rank 5", "Training": "learning rate 0.5, epochs 3", "Loss": "divergence jsd, alpha 0.25",
    }  # fmt: skip
    assert "Trained with" not in [part.title for part in show(published, "item-0", "teacher")]


def test_a_command_of_the_published_logs_says_so(published):
    assert words_of(published) == ["--profile", "pocket", "--published"]
    assert words_of(published.of_machine()) == ["--profile", "pocket"]
    assert show(published, "item-0")[-1].rows[0][1] == "primekd show item-0 --model NAME --profile pocket --published"
