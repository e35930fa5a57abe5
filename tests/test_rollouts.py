"""A student that writes its own text while it learns: what it writes, what it learns from it, and stops in between."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import POCKET, save_llama

from primekd.config import Architecture, LossConfig, StudentConfig, TrainConfig
from primekd.config.student import OnPolicyConfig
from primekd.foundation.errors import UserError
from primekd.losses.on_policy import minillm_weights
from primekd.losses.slopes import log_mixture
from primekd.models.chat import join
from primekd.models.students import new_student
from primekd.signals import DenseRows, LiveSource
from primekd.teachers.protocol import Sampling
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training import rollouts as of_rollouts
from primekd.training.checkpoints import newest_checkpoint
from primekd.training.examples import Collator, Example, block_example
from primekd.training.habits import habits
from primekd.training.objective import StudentObjective
from primekd.training.rollouts import Rollouts, prompt_of
from primekd.training.trainer import build_trainer

LLAMA = Architecture(
    model_type="llama", hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    initializer_range=0.4,
)  # fmt: skip
STUDENT = StudentConfig(from_scratch=LLAMA, tokenizer=POCKET, dtype="float32")
TEXTS = ["Tom has 3 apples and a dog.", "Ann has none.", "The dog has 7 apples and a cat!", "Who has 10 cats? The cat."]
LIMIT = 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory, tokenizer) -> TransformersEngine:
    return TransformersEngine(save_llama(tmp_path_factory.mktemp("teacher"), tokenizer, seed=2), "float32")


@pytest.fixture(scope="module")
def blocks(tokenizer) -> list[Example]:
    return [block_example(str(n), tokenizer(text)["input_ids"]) for n, text in enumerate(TEXTS)]


@pytest.fixture
def student(tokenizer) -> StudentObjective:
    return StudentObjective(new_student(STUDENT, 1), LossConfig(), len(tokenizer))


def rollouts(tokenizer, teacher=None, with_text=False, **settings) -> Rollouts:
    own = OnPolicyConfig(prompt_tokens=3, **settings)
    return Rollouts(
        own, LIMIT, [tokenizer.eos_token_id], seed=4, with_text=with_text, teacher=teacher and (lambda: teacher)
    )


def log_probs(model, ids: list[int], vocabulary: int) -> torch.Tensor:
    """(S, V) float64 of a plain pass over a text."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :, :vocabulary].double().log_softmax(-1)


# What is written.


def test_it_writes_what_the_same_model_writes_as_an_engine(student, blocks, tokenizer, tmp_path):
    student.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    written = rollouts(tokenizer).write(student, blocks, step=7, first=2)
    prompts = [block.sequence.input_ids[:3] for block in blocks]
    seeds = tuple(int(np.random.SeedSequence([4, 7, 2 + n]).generate_state(1)[0]) for n in range(len(blocks)))
    expected = TransformersEngine(f"path:{tmp_path}", "float32").generate(prompts, Sampling(LIMIT, 1.0, seeds=seeds))
    for example, prompt, response in zip(written.examples, prompts, expected, strict=True):
        assert example.sequence == join(prompt, response.ids)
    assert written.ended == [not response.truncated for response in expected]
    assert student.training, "it goes on learning"
    other = rollouts(tokenizer).write(student, blocks, step=8, first=2)
    assert other.responses != written.responses, "another step, other draws"
    assert rollouts(tokenizer).write(student, blocks[1:], 7, 3).responses == written.responses[1:], "whatever its batch"


def test_tokens_are_drawn_from_the_mixture_and_their_probabilities_are_those_of_plain_passes(
    student, blocks, engine, tokenizer
):
    mixed = rollouts(tokenizer, engine, objective="minillm", teacher_share=0.3)
    written, size = mixed.write(student, blocks, step=0, first=0), len(tokenizer)
    found = {name: getattr(written, name).double().split([len(r) for r in written.responses])
             for name in ("entropy", "log_q", "log_drawn")}  # fmt: skip
    for n, example in enumerate(written.examples):
        ids, response = example.sequence.input_ids, written.responses[n]
        rows = slice(len(ids) - len(response) - 1, len(ids) - 1)
        log_q, log_p = (log_probs(model, ids, size)[rows] for model in (student.model, engine.model))
        drawn = (0.3 * log_p.exp() + 0.7 * log_q.exp()).log()
        for name, values in (("log_q", log_q), ("log_drawn", drawn)):
            expected = values[torch.arange(len(response)), torch.tensor(response)]
            torch.testing.assert_close(found[name][n], expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found["entropy"][n], -(log_q.exp() * log_q).sum(-1), rtol=1e-3, atol=1e-3)
        draws = np.random.default_rng(np.random.SeedSequence([4, 0, n]).generate_state(1)[0]).random(LIMIT)
        for row, token, draw in zip(drawn.exp().cumsum(-1), response, draws, strict=False):
            assert row[token - 1] - 1e-4 <= draw <= row[token] + 1e-4, "the token that its draw falls on"
    # What MiniLLM weighs rows by is of these three, the student's own, the teacher's, and what was drawn from.
    ids = torch.tensor([token for response in written.responses for token in response])
    passes = [log_probs(engine.model, example.sequence.input_ids, size) for example in written.examples]
    taught = torch.cat([p[-len(r) - 1 : -1] for p, r in zip(passes, written.responses, strict=True)])
    lengths, s = [len(r) for r in written.responses], mixed.settings
    log_p = taught[torch.arange(len(ids)), ids].float()
    expected = minillm_weights(written.log_q, log_p, written.log_drawn, lengths, s.clip, s.length_normalised)
    weights = mixed.weights(written, DenseRows(taught.float()))
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-3)
    unweighted = minillm_weights(written.log_q, log_p, written.log_q, lengths, s.clip, s.length_normalised)
    assert (weights - unweighted).abs().max() > 0.01 and rollouts(tokenizer).weights(written, DenseRows(taught)) is None
    alone = log_mixture(torch.zeros(1, 1), torch.zeros(1, 1), 0.3)
    assert alone.item() == 0


def test_a_prompt_is_an_items_own_or_the_beginning_of_a_block(blocks):
    item = Example("a", join([5, 6, 7, 8, 9], [1, 2]))
    assert prompt_of(item, 3, {7}) == [5, 6, 7, 8, 9]
    assert prompt_of(Example("b", join([5, 6, 7, 8], [])), 3, {7}) == [5, 6, 7, 8], "nothing was given to learn from"
    assert prompt_of(blocks[0], 3, {0}) == blocks[0].sequence.input_ids[:3]


@pytest.mark.parametrize("piece, prompt", [([7, 0], [7]), ([7, 8, 0, 9, 5], [7, 8]), ([0, 8, 9], [0, 8, 9])])
def test_nothing_is_written_behind_the_end_of_a_document(piece, prompt):
    """No label follows an end of text where documents are apart: a student was never taught what stands there."""
    assert prompt_of(block_example("a", piece), 4, {0}) == prompt


def test_warm_up_and_share_say_which_steps_are_its_own(tokenizer):
    due = [rollouts(tokenizer, share=0.5, warmup_steps=20).due(step) for step in range(420)]
    assert not any(due[:20]) and 150 < sum(due[20:]) < 250
    assert all(rollouts(tokenizer).due(step) for step in range(20))
    assert due == [rollouts(tokenizer, share=0.5, warmup_steps=20).due(step) for step in range(420)]


def test_habits_of_a_student_that_collapses():
    loop = habits([[5] * 12], [False], [0.5] * 12)
    repeated = pytest.approx(8 / 9)
    assert loop == {"responses": 1, "written_tokens": 12, "ended": 0, "repeated": repeated, "entropy": 0.5}
    silent = habits([[0], [0]], [True, True], [1.0, 2.0])
    assert silent == {"responses": 2, "written_tokens": 1, "ended": 1, "repeated": 0, "entropy": 1.5}
    both = habits([[1, 2, 3, 4, 5, 6], [7] * 6], [True, False], [0.0] * 12)
    assert both["written_tokens"] == 6 and both["repeated"] == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    "own", [{"objective": "minillm", "teacher_share": 0.4}, {"temperature": 0.3}], ids=["mixed", "cold"]
)
def test_the_entropy_is_the_students_own_whatever_its_tokens_were_drawn_from(
    new_trainer, tokenizer, engine, blocks, own
):
    """Neither that of a mixture with the teacher or of a sharper distribution, nor a cross-entropy with either."""
    trainer = new_trainer(rollouts(tokenizer, engine, **own), REVERSE, epochs=1)
    student, [batch, other] = trainer.model, list(trainer.get_train_dataloader())
    entropies, drawn = [], []
    for n, part in enumerate((batch, other)):
        for text in rollouts(tokenizer, engine, **own).write(student, part["examples"], 0, 2 * n).examples:
            ids = text.sequence.input_ids
            log_q = log_probs(student.model, ids, len(tokenizer))[2:-1]  # behind a prompt of three tokens
            entropies += (-(log_q.exp() * log_q).sum(-1)).tolist()
            drawn += (-log_q[torch.arange(len(ids) - 3), torch.tensor(ids[3:])]).tolist()
    trainer.train()
    assert history(trainer, "entropy")[0] == pytest.approx(np.mean(entropies), rel=1e-3)
    assert history(trainer, "entropy")[0] != pytest.approx(np.mean(drawn), rel=0.02)


def test_a_prompt_and_what_is_written_behind_it_have_to_fit_the_context(student, blocks, tokenizer):
    student.config.max_position_embeddings = 3 + LIMIT - 1  # of the last token nothing is predicted
    rollouts(tokenizer).write(student, blocks[:1], 0, 0)
    student.config.max_position_embeddings -= 1
    with pytest.raises(
        UserError, match=r"0: the prompt and max_new_tokens make 9 tokens, more than the model's context of 7"
    ):
        rollouts(tokenizer).write(student, blocks[:1], 0, 0)


# What is learned.


@pytest.fixture
def new_trainer(tokenizer, tmp_path, engine, blocks):
    def make(own: Rollouts | None, loss: LossConfig, epochs=30, folder="checkpoints", examples=blocks, rate=0.02):
        train = TrainConfig(optimizer="adamw", learning_rate=rate, epochs=epochs, batch_size=4, micro_batch_size=2)
        return build_trainer(
            new_student(STUDENT, 1), tokenizer, examples, [], LiveSource(engine, len(tokenizer)), loss, train,
            tmp_path / folder, 0, dtype="float32", rollouts=own,
        )  # fmt: skip

    return make


def history(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


REVERSE = LossConfig(divergence="reverse_kl", alpha=0.0)


@pytest.mark.parametrize("objective", ["divergence", "minillm"])
def test_its_own_text_becomes_the_teachers(new_trainer, tokenizer, engine, objective):
    share = {"teacher_share": 0.2} if objective == "minillm" else {}
    own = rollouts(tokenizer, engine if share else None, objective=objective, **share)
    trainer = new_trainer(own, REVERSE)
    trainer.train()
    kd = history(trainer, "kd")
    assert np.mean(kd[-5:]) < (0.85 if share else 0.6) * np.mean(kd[:5])  # rewards of drawn texts are noisy
    assert {"written_tokens", "ended", "repeated", "entropy"} <= trainer.state.log_history[0].keys()
    assert all(1 <= tokens <= LIMIT for tokens in history(trainer, "written_tokens"))


def test_a_step_on_written_text_is_one_on_the_same_text_when_it_is_given(new_trainer, tokenizer, blocks):
    """Nothing flows through the sampling, nothing of the given text is left, and the mean is over written tokens."""
    trainer = new_trainer(rollouts(tokenizer), REVERSE, epochs=1)
    own = rollouts(tokenizer).write(trainer.model, blocks, 0, 0)
    given = new_trainer(None, REVERSE, epochs=1, folder="given", examples=own.examples)
    order = [batch["item_ids"] for batch in trainer.get_train_dataloader()]
    places = {block.item_id: place for place, block in enumerate(blocks)}
    drawn = rollouts(tokenizer)
    seen = [places[item] for batch in order for item in batch]
    text = drawn.write(trainer.model, [blocks[place] for place in seen], 0, 0).examples
    given.train_dataset = sorted(text, key=lambda example: places[example.item_id])
    trainer.train()
    given.train()
    for (name, a), (_, b) in zip(trainer.model.named_parameters(), given.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    assert history(trainer, "kd")[0] == pytest.approx(history(given, "kd")[0], rel=1e-4)


def test_beside_its_own_text_the_given_one_is_learned_for_the_cross_entropy(new_trainer, tokenizer, blocks):
    loss = LossConfig(divergence="reverse_kl", alpha=0.3)
    trainer = new_trainer(rollouts(tokenizer, with_text=True), loss, epochs=1)
    (batch, other), tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, torch.device("cpu"))
    written = [len(r) for b in (batch, other) for r in b["written"].responses]
    assert tokens.tolist() == [sum(written), sum(len(block.sequence.input_ids) - 1 for block in blocks)]
    assert len(batch["labels"]) == 2 * len(batch["item_ids"])
    trainer.train()
    assert history(trainer, "ce")[0] != pytest.approx(history(trainer, "entropy")[0], rel=0.05)


def test_the_tokens_that_count_for_the_speed_are_those_that_are_trained_on(new_trainer, tokenizer, blocks):
    own, counted = rollouts(tokenizer, with_text=True), []
    trainer = new_trainer(own, LossConfig(divergence="reverse_kl", alpha=0.3), epochs=1)
    trainer.speed = SimpleNamespace(begin=lambda: counted.append("begin"), add=counted.append)
    batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, torch.device("cpu"))
    written = [3 + len(r) for batch in batches for r in batch["written"].responses]
    assert counted == ["begin", sum(written) + sum(len(block.sequence.input_ids) for block in blocks)]


def test_a_stopped_training_writes_and_learns_the_same(new_trainer, tokenizer, engine):
    def make(folder):
        return new_trainer(rollouts(tokenizer, share=0.6, warmup_steps=1), REVERSE, epochs=6, folder=folder)

    whole, stopped = make("whole"), make("stopped")
    whole.train()
    stopped.add_callback(stop_at(3))
    stopped.train()
    resumed = make("stopped")
    checkpoint = newest_checkpoint(Path(resumed.args.output_dir))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert history(whole, "loss") == history(resumed, "loss")
    assert history(whole, "written_tokens") == history(resumed, "written_tokens")


def stop_at(step: int):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_save = state.global_step == step

    return Stop()


def test_a_student_that_writes_nothing_but_the_end_of_text_still_has_a_loss(new_trainer, tokenizer):
    trainer = new_trainer(rollouts(tokenizer), REVERSE, epochs=2)
    end = tokenizer.eos_token_id
    trainer.model.as_it_is = lambda: lambda hidden: torch.nn.functional.one_hot(
        torch.full((len(hidden),), end), len(tokenizer)
    ).float() * 100  # fmt: skip
    trainer.train()
    assert history(trainer, "written_tokens") == [1.0, 1.0] and history(trainer, "ended") == [1.0, 1.0]
    assert all(np.isfinite(history(trainer, "loss")))


def test_several_processes_and_odd_caches_are_refused(student, blocks, tokenizer, monkeypatch):
    monkeypatch.setattr(of_rollouts, "has_plain_cache", lambda config: False)
    with pytest.raises(UserError, match="cannot write while it learns"):
        rollouts(tokenizer).write(student, blocks, 0, 0)
    monkeypatch.setattr(of_rollouts, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"set launch\.processes to 1"):
        rollouts(tokenizer)


def test_the_examples_go_through_the_collator_only_where_they_are_asked_for(blocks):
    assert "examples" not in Collator(0)(blocks) and Collator(0, keeps=True)(blocks)["examples"] == blocks
