"""The live source: a teacher that is asked while a student learns says what its store says, and is checked as it is."""

import pytest
import torch
from conftest import make_store, save_llama, stored
from test_training import LORA, capture_examples, history, split

from primekd.config import LossConfig, TrainConfig
from primekd.foundation.errors import UserError
from primekd.models.chat import build_prompt, encode_response, join
from primekd.models.logits import LogitTransform
from primekd.models.students import lora_model
from primekd.signals import Asked, DenseRows, HiddenRows, LiveSource
from primekd.signals.codecs import FullCodec, HiddenCodec
from primekd.signals.heads import rebuilding, rebuilding_problem
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.examples import IGNORED, Collator, Example, asked_of, block_example, gold_examples
from primekd.training.trainer import build_trainer

TRAIN = TrainConfig(optimizer="sgd", learning_rate=0.5, epochs=3, batch_size=4, micro_batch_size=2)
LOSS = LossConfig(temperature=2.0, alpha=0.3)
RTOL, ATOL = 1e-5, 1e-6  # of a loss from a teacher that is asked in other batches


@pytest.fixture(scope="module")
def examples(tokenizer, items) -> list[Example]:
    """The `ci` profile's training items with their solutions, of different lengths."""
    made = gold_examples(tokenizer, items)
    assert len({len(e.sequence.input_ids) for e in made}) > 4
    return made


@pytest.fixture(scope="module")
def primed(tokenizer, items) -> dict[str, list[int]]:
    """What the teacher reads before a response: the student's question under a priming text."""
    return {item.id: build_prompt(tokenizer, item.question, "Be brief.") for item in items}


@pytest.fixture(scope="module")
def engine(ci, tmp_path_factory, tokenizer) -> TransformersEngine:
    """Another random model than the student, whose distributions differ from token to token."""
    return TransformersEngine(save_llama(tmp_path_factory.mktemp("teacher"), tokenizer, seed=2), "float32")


@pytest.fixture(scope="module")
def store(tmp_path_factory, engine, examples, primed):
    """What `engine` says of the examples' responses behind its own prompts, captured."""
    responses = [split(e)[1] for e in examples]
    states = engine.score([primed[e.item_id] for e in examples], responses, "hidden")
    pairs = [
        (stored(e.item_id, response, primed[e.item_id]), rows)
        for e, response, rows in zip(examples, responses, states, strict=True)
    ]
    return make_store(tmp_path_factory.mktemp("s") / "base-KD", HiddenCodec(), [pairs[:5], pairs[5:]], engine.head())


@pytest.fixture
def train(ci, lively, tokenizer, examples, tmp_path):
    """Trains the `ci` profile's student, or another, on a source; returns every step's loss and its parts."""

    def run(source, model=ci.student.model, loss=LOSS, given=examples, lora=LORA):
        student = lora_model(model, "float32", lora, 0)
        trainer = build_trainer(student, tokenizer, given, [], source, loss, TRAIN, tmp_path / "checkpoints", 0)
        trainer.train()
        return torch.tensor(history(trainer)[:3])  # (3, steps)

    return run


class Shifted:
    """The teacher's rows one place too late."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def score(self, prompts, responses, want):
        return [rows.roll(1, 0) for rows in self._engine.score(prompts, responses, want)]


class Counted(Shifted):
    """Keeps what the teacher was asked."""

    def __init__(self, engine):
        super().__init__(engine)
        self.asked = []

    def score(self, prompts, responses, want):
        self.asked.append((prompts, responses))
        return self._engine.score(prompts, responses, want)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_live_teacher_trains_as_its_stored_hidden_states_do(
    train, lively, engine, store, primed, tokenizer, divergence
):
    loss = LOSS.model_copy(update={"divergence": divergence})
    from_store = train(store, lively, loss)
    assert from_store.shape == (3, 6) and from_store[2].min() > 0.01
    torch.testing.assert_close(
        train(LiveSource(engine, len(tokenizer), primed), lively, loss), from_store, rtol=1e-5, atol=1e-6
    )


def test_the_models_of_the_ci_profile_do_too(ci, train, examples, primed, tokenizer, tmp_path):
    engine = TransformersEngine(ci.teacher.model, ci.teacher.dtype)
    from_store = train(capture_examples(tmp_path / "s" / "base-KD", engine, examples))  # the student's own prompts
    torch.testing.assert_close(train(LiveSource(engine, len(tokenizer))), from_store, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("wrong", ["shifted", "unprimed"])
def test_a_teacher_that_is_shifted_or_reads_another_prompt_does_not(train, engine, store, primed, tokenizer, wrong):
    shifted = LiveSource(Shifted(engine), len(tokenizer), primed)
    shifted._checked = True  # else it is refused at once
    source = shifted if wrong == "shifted" else LiveSource(engine, len(tokenizer))
    model = engine.reference  # a student that begins as its teacher, so that every place says another thing
    from_store = train(store, model)
    torch.testing.assert_close(
        train(LiveSource(engine, len(tokenizer), primed), model), from_store, rtol=RTOL, atol=ATOL
    )
    difference = (train(source, model) - from_store).abs()
    assert difference[2].min() > 0.01  # in every step's divergence
    assert difference[1, 0] < ATOL  # while the labels are the same


def test_rows_one_place_late_are_refused_at_the_first_batch(train, lively, engine, primed, tokenizer):
    with pytest.raises(UserError, match="nats a token from the teacher's own logits"):
        train(LiveSource(Shifted(engine), len(tokenizer), primed), lively)


def test_all_logits_serve_where_there_are_no_hidden_states(
    train, lively, engine, store, primed, tokenizer, monkeypatch
):
    monkeypatch.setattr(engine, "offers", frozenset({"logits"}))
    source = LiveSource(engine, len(tokenizer), primed)
    assert source.codec == FullCodec()
    torch.testing.assert_close(train(source, lively), train(store, lively), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("offers", ["hidden", "logits"])
def test_a_head_with_an_adapter_learns_from_a_live_teacher_too(
    train, lively, engine, store, primed, tokenizer, offers, monkeypatch
):
    """Its loss keeps teacher rows for the backward pass, which an engine's inference tensors would refuse."""
    monkeypatch.setattr(engine, "offers", frozenset({offers}))
    lora = LORA.model_copy(update={"target_modules": ("q_proj", "lm_head")})
    found = train(LiveSource(engine, len(tokenizer), primed), lively, lora=lora)
    torch.testing.assert_close(found, train(store, lively, lora=lora), rtol=RTOL, atol=ATOL)


def test_a_micro_batch_is_one_call_of_the_engine_with_its_own_prompts(train, engine, primed, examples, tokenizer):
    counted = Counted(engine)
    train(LiveSource(counted, len(tokenizer), primed))
    assert [len(prompts) for prompts, _ in counted.asked] == [2] * (3 * len(examples) // 2)
    prompts_of = {tuple(split(e)[1]): primed[e.item_id] for e in examples}
    for prompts, responses in counted.asked:
        assert prompts == [prompts_of[tuple(response)] for response in responses]
        assert all(response[-1] == tokenizer.eos_token_id for response in responses)  # the end of turn has its row


def test_what_follows_the_teachers_head_is_followed(engine, examples, tokenizer, monkeypatch):
    monkeypatch.setattr(engine, "transform", LogitTransform(2.0))
    source = LiveSource(engine, len(tokenizer))
    source._checked = True
    [asked] = [Asked(examples[0].item_id, *split(examples[0]))]
    rows = source.rows_of([asked])
    assert isinstance(rows, HiddenRows) and rows.transform == LogitTransform(2.0)


# Blocks of text.


def test_a_block_of_text_has_a_row_for_every_token_but_the_first(engine, tokenizer, monkeypatch):
    monkeypatch.setattr(engine, "offers", frozenset({"logits"}))
    ids = tokenizer("Tom has 3 apples and a dog, and so has Ann.")["input_ids"]
    batch = Collator(tokenizer.pad_token_id)([block_example("a", ids), block_example("b", ids[:5])])
    asked = asked_of(batch["item_ids"], batch["input_ids"], batch["labels"])
    assert asked == [Asked("a", ids[:1], ids[1:]), Asked("b", ids[:1], ids[1:5])]
    rows = LiveSource(engine, len(tokenizer)).rows_of(asked)
    with torch.no_grad():
        whole = engine.model(torch.tensor([ids])).logits[0, :, : len(tokenizer)]  # (S, V), row t predicts token t + 1
    assert isinstance(rows, DenseRows)
    torch.testing.assert_close(rows.logits, torch.cat([whole[:-1], whole[:4]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("labels", [[5, 6, 7], [IGNORED, 6, IGNORED, 8]], ids=["first token", "hole"])
def test_labels_that_no_row_could_be_told_apart_for_are_refused(labels):
    with pytest.raises(ValueError, match="no response behind a prompt"):
        asked_of(["a"], torch.tensor([[5, 6, 7, 8][: len(labels)]]), torch.tensor([labels]))


# What a live source refuses.


def test_what_the_teacher_was_not_made_for_is_refused(engine, primed, tokenizer, monkeypatch):
    source = LiveSource(engine, len(tokenizer), primed)
    [name, *_] = primed
    for asked, said in (
        (Asked("Question 99", [1], [2]), "no prompt for item 'Question 99'"),
        (Asked(name, [1], [len(tokenizer)]), "not in the teacher's vocabulary"),
        (Asked(name, [1], [-1]), "not in the teacher's vocabulary"),
    ):
        with pytest.raises(UserError, match=said):
            source.rows_of([asked])
    with pytest.raises(UserError, match="Nothing stands before the first token of 'a'"):
        LiveSource(engine, len(tokenizer)).rows_of([Asked("a", [], [2])])
    with pytest.raises(UserError, match=f"has {len(tokenizer)} tokens and the student 7"):
        LiveSource(engine, 7)
    monkeypatch.setattr(engine, "offers", frozenset())
    with pytest.raises(UserError, match="offers no logits"):
        LiveSource(engine, len(tokenizer))


def test_a_response_of_another_capture_is_refused_by_the_store_alone(store, engine, examples, tokenizer):
    response = encode_response(tokenizer, "No.")
    example = Example(examples[0].item_id, join(split(examples[0])[0], response))
    asked = [Asked(example.item_id, *split(example))]
    with pytest.raises(UserError, match="captured for another response"):
        store.rows_of(asked)
    assert len(LiveSource(engine, len(tokenizer)).rows_of(asked)) == len(response)


def test_what_rounding_does_is_allowed_and_a_change_behind_the_head_is_not():
    own = 20 * torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    rounded = own.bfloat16().float()
    measured = rebuilding(rounded, own)
    assert measured["rounding_kl_nats"] > 0 and rebuilding_problem(measured) is None
    assert rebuilding_problem({"mean_kl_nats": 2.2e-3}) and not rebuilding_problem(
        {"mean_kl_nats": 2.2e-3, "rounding_kl_nats": 3.3e-4}
    )
    capped = rebuilding(30 * (rounded / 30).tanh().bfloat16().float(), own)
    assert "does something else behind the head" in rebuilding_problem(capped)
    assert "rounding_kl_nats" not in rebuilding(own, own)  # float32 says what it is
