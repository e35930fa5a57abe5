"""Rows are read as one, what all begin with once: loss, gradients and training are those of padded rows, or it is left
alone."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from primekd.config import LoraSettings, LossConfig, TrainConfig
from primekd.models import attention
from primekd.models.chat import StudentSequence, build_prompt, encode_response, join
from primekd.models.students import lora_model
from primekd.training.examples import IGNORED, Collator, Example, longest_sequence
from primekd.training.objective import SHORTEST_PREFIX, may_pack, prefix_length
from primekd.training.trainer import build_trainer

LORA = LoraSettings(rank=4, alpha=8, target_modules="all-linear")
TRAIN = TrainConfig(optimizer="sgd", learning_rate=0.5, epochs=2, batch_size=4, micro_batch_size=4)


@pytest.fixture(scope="module")
def examples(tokenizer) -> list[Example]:
    """Four sequences of four lengths; the chat template's own words are what they share."""
    pairs = [("Tom has 3 apples?", "7"), ("Who?", "It is Ann, who has seven."), ("3 + 4 = ?", "#### 7"), ("So?", "No.")]
    return [
        Example(f"q{n}", join(build_prompt(tokenizer, question), encode_response(tokenizer, response)))
        for n, (question, response) in enumerate(pairs)
    ]


@pytest.fixture
def build(lively, tokenizer, tmp_path):
    """Makes a trainer on labels alone, over a fresh adapter that already does something."""

    def make(examples, model=None, dtype="float32", lora=LORA, train=TRAIN, **rest):
        student = lora_model(lively, dtype, lora, 0) if model is None else model
        with torch.no_grad():  # B begins as zeros, so that A would have no gradient
            for name, parameter in student.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        return build_trainer(
            student, tokenizer, examples, rest.pop("validation", []), None, LossConfig(), train, tmp_path / "c", 0
        )

    return make


def passes(trainer, examples, tokenizer) -> tuple[float, dict[str, torch.Tensor], list[tuple[int, int]]]:
    """Loss and gradients of one micro-batch, and (rows, tokens) of every pass through the decoder."""
    shapes = []

    def note(module, arguments, keywords):
        shapes.append(tuple(keywords["input_ids"].shape))

    decoder = trainer.model.model.get_base_model().get_decoder()
    hook = decoder.register_forward_pre_hook(note, with_kwargs=True)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, Collator(tokenizer.pad_token_id)(examples))
    loss.backward()
    hook.remove()
    return loss.item(), {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}, shapes


def common(examples: list[Example]) -> int:
    """How many tokens all sequences begin with."""
    columns = zip(*(e.sequence.input_ids for e in examples), strict=False)
    return next(place for place, column in enumerate(columns) if len(set(column)) > 1)


def packed_tokens(examples: list[Example]) -> int:
    """What all begin with once, and of each row what follows, but for the last column."""
    prefix, lengths = common(examples) if len(examples) > 1 else 0, [len(e.sequence.input_ids) for e in examples]
    return prefix + sum(min(length, max(lengths) - 1) - prefix for length in lengths)


def assert_same_as_whole_rows(trainer, examples, tokenizer, rtol=1e-5, atol=1e-6):
    shared_loss, shared, shapes = passes(trainer, examples, tokenizer)
    longest = max(len(e.sequence.input_ids) for e in examples)
    assert shapes == [(1, packed_tokens(examples))]
    trainer.model.pack = False
    whole_loss, whole, shapes = passes(trainer, examples, tokenizer)
    assert shapes == [(len(examples), longest - 1)]
    assert shared_loss == pytest.approx(whole_loss, rel=rtol)
    assert all(gradient.abs().max() > 0 for gradient in whole.values())
    for name, gradient in whole.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(shared[name], gradient, rtol=rtol, atol=atol * scale, msg=lambda m, n=name: n + m)


def assert_left_alone(trainer, examples, tokenizer):
    longest = max(len(e.sequence.input_ids) for e in examples)
    assert passes(trainer, examples, tokenizer)[2] == [(len(examples), longest - 1)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_every_gradient_are_those_of_whole_rows(attention, build, examples, tokenizer):
    trainer = build(examples)
    assert common(examples) >= SHORTEST_PREFIX
    base = trainer.model.model.get_base_model()
    assert base.config.num_key_value_heads < base.config.num_attention_heads
    base.set_attn_implementation(attention)
    assert_same_as_whole_rows(trainer, examples, tokenizer, atol=1e-5)


def test_validation_reads_it_once_too_and_gives_the_same_loss(build, examples):
    trainer = build(examples, validation=examples)
    shared = trainer.evaluate()["eval_loss"]
    trainer.model.pack = False
    assert shared == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)


def test_a_whole_training_has_the_same_loss_curve(build, examples):
    curves = []
    for shared in (True, False):
        trainer = build(examples, validation=examples, train=TRAIN.model_copy(update={"epochs": 3}))
        assert trainer.model.pack
        trainer.model.pack = shared
        trainer.train()
        curves.append([e.get("loss", e.get("eval_loss")) for e in trainer.state.log_history if "train_loss" not in e])
    assert len(set(curves[0])) >= 3
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)  # the trainer rounds what it logs


# Where the rows part.


def batch_of(rows: list[tuple[int, int, int]], pad: int = 0) -> dict[str, torch.Tensor]:
    """Rows of (shared tokens, own prompt tokens, response tokens), collated."""
    examples = []
    for number, (shared, own, response) in enumerate(rows):
        ids = [*range(100, 100 + shared), *[10 + number] * own, *[50] * response]
        examples.append(Example("", StudentSequence(ids, [False] * (shared + own) + [True] * response)))
    return Collator(pad)(examples)


@pytest.mark.parametrize(
    "rows, length",
    [
        ([(20, 3, 2), (20, 1, 6)], 20),
        ([(20, 0, 2), (20, 0, 6)], 19),  # one token of the prompt is left: the first label is predicted from it
        ([(20, 5, 2), (12, 0, 6)], 11),
        ([(SHORTEST_PREFIX - 1, 9, 1)] * 2, 0),  # too short: see the rows' own tokens
        ([(20, 3, 2)], 0),
        ([(20, 3, 2), (20, 1, 6), (0, 20, 3)], 0),  # the last one begins otherwise
        ([(20, 3, 0), (20, 3, 0)], 0),  # nothing to learn
    ],
)
def test_the_prefix_ends_before_the_first_state_that_is_used(rows, length):
    batch = batch_of(rows)
    used = batch["labels"][:, 1:] != IGNORED
    assert prefix_length(batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1], used) == length


def test_padding_on_the_left_is_no_prefix():
    batch = batch_of([(20, 3, 2), (20, 1, 6)])
    batch["attention_mask"][0, :4] = 0
    used = batch["labels"][:, 1:] != IGNORED
    assert prefix_length(batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1], used) == 0


def test_the_last_token_is_not_read_since_it_predicts_nothing(build, examples, tokenizer):
    trainer = build(examples)
    alone = examples[0].sequence.input_ids
    assert passes(trainer, examples[:1], tokenizer)[2] == [(1, len(alone) - 1)]


def test_a_sequence_of_one_token_is_still_read(build, examples, tokenizer):
    """Fillers are such rows, and every process has to take a pass."""
    trainer = build(examples)
    filler = Example("", StudentSequence([0], [False]))
    assert passes(trainer, [filler, filler], tokenizer)[2] == [(2, 1)]


@pytest.mark.parametrize("chosen", [slice(1), slice(None)], ids=["one row", "no beginning in common"])
def test_without_a_beginning_in_common_rows_are_packed_all_the_same(chosen, build, examples, tokenizer):
    ids, mask = examples[0].sequence.input_ids, examples[0].sequence.response_mask
    other = Example("x", StudentSequence([5, *ids], [False, *mask]))
    assert_same_as_whole_rows(build(examples), [other, *examples][chosen], tokenizer, atol=1e-5)


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("dtype, plain", [("float32", 0), ("bfloat16", 1024), ("bfloat16", 8)])
def test_each_row_attends_to_the_shared_beginning_and_to_itself(shared, dtype, plain, monkeypatch):
    """Two query heads share keys; row by row against torch's own attention in float64."""
    monkeypatch.setattr(attention, "PACKED_PLAIN_TOKENS", plain)
    lengths, generator = [7, 1, 4], torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, shared + sum(lengths), 16, generator=generator, dtype=torch.float64)
        for heads in (4, 2, 2)
    )
    own = (x.to(getattr(torch, dtype)) for x in (query, key, value))
    found, _ = attention.packed_attention(None, *own, None, shared=shared, lengths=lengths)
    for number, length in enumerate(lengths):
        start = shared + sum(lengths[:number])
        places = [*range(shared), *range(start, start + length)]
        expected = F.scaled_dot_product_attention(
            *(x[:, :, places] for x in (query, key, value)), is_causal=True, enable_gqa=True
        )
        row = found[0, places].transpose(0, 1).double()
        torch.testing.assert_close(
            row, expected[0], **({"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.02, "atol": 0.03})
        )


def test_large_parts_that_all_keys_share_are_not_rounded_into_scores():
    """Some architectures' keys have a bias far above the rest of them; bfloat16 would round scores of 1,000 to 8."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 30, 16, generator=generator).bfloat16() for _ in range(3))
    key = key + 64  # exact in bfloat16 only to 1/2, so this is rounded before anything else
    expected = F.scaled_dot_product_attention(*(x.double() for x in (query, key, value)), is_causal=True)
    found, _ = attention.packed_attention(None, query, key, value, None, shared=0, lengths=[30])
    assert (found.transpose(1, 2).double() - expected).norm() < 0.02 * expected.norm()


def test_packed_rows_are_as_near_to_float32_as_padded_ones(build, examples, tokenizer, lively):
    """In bfloat16, by the norm of all gradients."""
    errors = []
    exact = passes(build(examples), examples, tokenizer)[1]
    for pack in (True, False):
        trainer = build(examples, dtype="bfloat16")
        trainer.model.pack = pack
        trainer.model.model.get_base_model().set_attn_implementation("sdpa")
        found = passes(trainer, examples, tokenizer)[1]
        errors.append(sum(float((found[name] - g).norm() ** 2) for name, g in exact.items()))
    assert 0 < errors[0] < 1.5 * errors[1]


# Left alone.


def test_an_architecture_that_does_more_to_its_scores_is_left_alone(build, examples, tokenizer):
    from peft import LoraConfig, get_peft_model

    base = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8,
            num_attention_heads=2, num_key_value_heads=1, attn_logit_softcapping=30.0,
        )
    )  # fmt: skip
    assert may_pack(base, longest_sequence(examples))
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert_left_alone(build(examples, model), examples, tokenizer)


def test_with_dropout_rows_are_read_whole(build, lively, examples, tokenizer):
    trainer = build(examples, lora=LORA.model_copy(update={"dropout": 0.1}))
    assert_left_alone(trainer, examples, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(lively.removeprefix("path:"), attention_dropout=0.1)
    assert not may_pack(base, longest_sequence(examples))
    base = AutoModelForCausalLM.from_pretrained(lively.removeprefix("path:"), attention_dropout=0.0)
    assert may_pack(base, longest_sequence(examples))


def test_with_recomputed_activations_rows_are_read_whole(build, lively, examples, tokenizer):
    model = lora_model(lively, "float32", LORA, 0)
    model.get_base_model().gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert_left_alone(build(examples, model), examples, tokenizer)


def test_with_several_processes_rows_are_read_whole(lively, examples, monkeypatch):
    model = lora_model(lively, "float32", LORA, 0).get_base_model()
    assert may_pack(model, longest_sequence(examples))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not may_pack(model, longest_sequence(examples))


@pytest.mark.parametrize("slack, shared", [(0, True), (-1, False)])
def test_a_window_has_to_show_the_longest_sequence(slack, shared, build, examples, tokenizer):
    from peft import LoraConfig, get_peft_model

    longest = max(len(e.sequence.input_ids) for e in examples)
    torch.manual_seed(0)
    base = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, sliding_window=longest + slack,
            initializer_range=0.3,
        )
    )  # fmt: skip
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trainer = build(examples, model)
    if shared:
        assert_same_as_whole_rows(trainer, examples, tokenizer, atol=1e-5)
    else:
        assert_left_alone(trainer, examples, tokenizer)


def test_layers_with_another_memory_are_left_alone(lively, examples):
    model = lora_model(lively, "float32", LORA, 0).get_base_model()
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert not may_pack(model, longest_sequence(examples))


def test_a_model_that_takes_no_positions_is_left_alone(examples):
    model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2))
    assert not may_pack(model, longest_sequence(examples))


def test_other_devices_than_the_cpu_are_left_alone(lively, examples):
    """The device here is torch's `meta`, which holds no data."""
    model = AutoModelForCausalLM.from_pretrained(lively.removeprefix("path:"))
    assert may_pack(model, longest_sequence(examples))
    assert not may_pack(model.to("meta"), longest_sequence(examples))
