"""What architectures do behind their output head: found from the model, and followed by all that makes logits.

The models are tiny and random, their logits large enough that a scale or a cap left out is far off.
"""

import contextlib
import inspect

import pytest
import torch
from conftest import make_store, small_profile, stored
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from primekd.assessment.fit import losses_of
from primekd.assessment.score import Model
from primekd.capture.jobs import training_job
from primekd.capture.run import capture, measure_reconstruction
from primekd.config import LossConfig
from primekd.foundation.errors import UserError
from primekd.models.logits import LogitTransform, best_transform, find_transform, refuse_unknown_architecture
from primekd.signals import StoredItem
from primekd.signals.codecs import FullCodec, HiddenCodec
from primekd.signals.heads import save_head
from primekd.teachers import Sampling
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.distill import distill
from primekd.training.examples import IGNORED
from primekd.training.objective import StudentObjective

COMMON = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.5,
    "pad_token_id": 0,
}  # fmt: skip
LATENT = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16}
ARCHITECTURES = {
    "llama": ({}, LogitTransform()),
    "granite": ({"logits_scaling": 8.0}, LogitTransform(1 / 8)),  # divides
    "granitemoe": ({"logits_scaling": 6.0}, LogitTransform(1 / 6)),
    "hyperclovax": ({"logits_scaling": 0.25}, LogitTransform(0.25)),  # multiplies, by the same name
    "cohere": ({"logit_scale": 0.0625}, LogitTransform(0.0625)),
    "minicpm3": ({"dim_model_base": 8, **LATENT}, LogitTransform(0.25)),  # divides what enters the head
    "gemma2": ({"final_logit_softcapping": 5.0}, LogitTransform(1.0, 5.0)),
    "gemma3_text": ({"final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
    "nanochat": ({}, LogitTransform(1.0, 15.0)),
    "phi": ({}, LogitTransform()),
}
SCALED = ["granite", "cohere", "minicpm3", "gemma2"]
V = 90  # of the tokenizer; the head has 96 columns


def tiny(architecture: str, vocab_size: int = 96):
    settings = ARCHITECTURES[architecture][0]
    config = AutoConfig.for_model(architecture, vocab_size=vocab_size, **(COMMON | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_found_from_the_model(architecture, dtype):
    model = tiny(architecture).to(dtype).train()
    before = torch.get_rng_state()
    assert find_transform(model, V) == ARCHITECTURES[architecture][1]
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_cap_far_above_the_probed_tokens_own_logits_is_found():
    model = tiny("gemma2")
    model.config.final_logit_softcapping = 80.0
    model.lm_head.weight.data *= 1e-3
    assert model(torch.tensor([[4, 5, 6, 7]])).logits.abs().max() < 1
    assert find_transform(model, V) == LogitTransform(1.0, 80.0)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("architecture", SCALED)
def test_a_students_cross_entropy_is_its_own_models(architecture, frozen):
    """It was 7.13 for 4.66 (Granite), 6.69 for 6.03 (Gemma 2), 5.97 for 4.55 (Cohere)."""
    model = tiny(architecture)
    ids = torch.randint(1, V, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :5], labels[1, 9:] = IGNORED, IGNORED
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            model(ids).logits[:, :-1, :V].flatten(0, 1).double(), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
    objective = StudentObjective(model.requires_grad_(not frozen), LossConfig(), V)
    loss, _ = objective(ids, torch.ones_like(ids), labels, tokens=(labels != IGNORED).sum())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture(scope="module", params=SCALED)
def saved(request, tmp_path_factory, tokenizer) -> str:
    """Reference of a tiny model with the pocket's tokenizer and padded columns."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny(request.param, len(tokenizer) + 8).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"path:{folder}"


def test_engine_store_and_held_out_fit_give_its_own_logits(saved, tmp_path):
    engine = TransformersEngine(saved, "float32", 4)
    prompts = [[5 + n, 6, 7, 300 + n] for n in range(3)]
    responses, hidden = engine.generate_scored(prompts, Sampling(5), "hidden")
    ids = [response.ids for response in responses]
    own = engine.own_logits(prompts, ids)
    assert engine.offers == {"hidden", "logits"}
    assert [rows.argmax(-1).tolist() for rows in own] == ids  # greedy
    for rows, expected in zip(engine.score(prompts, ids, "logits"), own, strict=True):
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)

    items = [stored(str(n), response) for n, response in enumerate(ids)]
    reader = make_store(tmp_path / "hidden", HiddenCodec(), [list(zip(items, hidden, strict=True))],
                        head=engine.head(), transform=engine.transform)  # fmt: skip
    for item, expected in zip(items, own, strict=True):
        rows = reader.rows(item.item_id, item.response_ids)
        assert rows.transform == engine.transform != LogitTransform()
        torch.testing.assert_close(rows.to_logits(), expected, rtol=1e-4, atol=1e-4)
    full = make_store(tmp_path / "full", FullCodec(), [list(zip(items, own, strict=True))])
    for teacher in (reader, full):  # of itself it is not a nat away
        rows = teacher.rows(items[0].item_id, items[0].response_ids)
        [(ce, fit)] = losses_of(engine, hidden[:1], ids[:1], rows)
        expected = torch.nn.functional.cross_entropy(own[0].double(), torch.tensor(ids[0]), reduction="sum")
        assert ce == pytest.approx(float(expected), rel=1e-4)
        assert abs(float(fit.kl.sum())) < 1e-3

    asked = [StoredItem(str(n), p, r, False) for n, (p, r) in enumerate(zip(prompts, ids, strict=True))]
    assert measure_reconstruction(engine, asked, hidden)["mean_kl_nats"] < 1e-6


def test_a_student_whose_head_has_a_bias_is_scored_by_its_own_logits(tmp_path, tokenizer):
    """As a teacher it offers no hidden states, since a store keeps no bias."""
    model = tiny("phi", len(tokenizer) + 8)
    model.lm_head.bias.data = torch.randn(len(tokenizer) + 8, generator=torch.Generator().manual_seed(2))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine, prompts, responses = TransformersEngine(f"path:{tmp_path}", "float32"), [[5, 6, 7]], [[8, 9, 10]]
    assert engine.offers == {"logits"} and engine.transform == LogitTransform()
    (own,), (hidden,) = engine.own_logits(prompts, responses), engine.score(prompts, responses, "hidden")
    torch.testing.assert_close(engine.score(prompts, responses, "logits")[0], own, rtol=1e-4, atol=1e-4)
    [(ce, _)] = losses_of(engine, [hidden], responses, None)
    assert ce == pytest.approx(float(torch.nn.functional.cross_entropy(own, torch.tensor([8, 9, 10]), reduction="sum")))


def test_equal_heads_with_another_scale_are_another_head(tmp_path):
    head = torch.randn(7, 3)
    plain, scaled = save_head(tmp_path / "a", head), save_head(tmp_path / "a", head, LogitTransform(0.5))
    assert plain["file"] != scaled["file"] and plain == save_head(tmp_path / "a", head, LogitTransform())


# What is none of these.


@pytest.mark.parametrize(
    "change",
    [lambda z: z.clamp(-100, 100), lambda z: z / 8, lambda z: z.log_softmax(-1), lambda z: z * torch.ones(96)
     .index_fill(0, torch.tensor(7), -1.0), lambda z: z + 1.0],
    ids=["clamp", "a scale that no configuration names", "log-softmax", "one column", "a shift"],
)  # fmt: skip
def test_another_change_is_not_taken_for_a_scale_or_a_cap(change):
    products = 40 * torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    assert best_transform(products, products, [30.0, 7.0], 0.015) == LogitTransform()
    assert best_transform(products, change(products), [30.0, 7.0], 0.015) is None


@pytest.fixture
def clamping(monkeypatch):
    """Every Llama clamps its logits: the same weights and configuration, another architecture."""
    plain = LlamaForCausalLM.forward

    def forward(self, *arguments, **named):
        output = plain(self, *arguments, **named)
        output.logits = output.logits.clamp(-0.5, 0.5)
        return output

    forward.__signature__ = inspect.signature(plain)
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)


def test_a_student_of_an_unknown_kind_is_refused_before_anything_is_spent(clamping, output, monkeypatch):
    profile = small_profile(output)
    monkeypatch.setattr("primekd.capture.run.open_engine", lambda profile: pytest.fail("the teacher was opened"))
    with pytest.raises(UserError, match=r"random:.* cannot be a student: behind its output head .* student.model"):
        capture(training_job(profile, "base-KD"))
    monkeypatch.setattr("primekd.training.train_student.Meter", contextlib.nullcontext)  # it takes a second to start
    with pytest.raises(UserError, match="LlamaForCausalLM cannot be a student"):
        distill(profile, "base-fine-tune")
    assert not list(output.rglob("adapter"))
    with pytest.raises(UserError, match=r"random:.* cannot be a student"):
        Model("control").open(profile)


def test_a_teacher_of_an_unknown_kind_is_refused_with_the_codec_hidden_and_serves_others(clamping, output, monkeypatch):
    monkeypatch.setattr("primekd.capture.run.refuse_unknown_architecture", lambda model: None)
    profile = small_profile(output, signals={"codec": "hidden"}, data={"train_items": 2, "test_items": 2})
    with pytest.raises(UserError, match=r"random:.* offers no hidden signals .* set signals.codec to topk or full"):
        capture(training_job(profile, "base-KD"))
    engine = TransformersEngine(profile.teacher.model, "float32")
    (rows,) = engine.score([[5, 6, 7]], [[8, 9]], "logits")
    assert engine.offers == {"logits"} and rows.abs().max() <= 0.5


def test_an_architecture_that_says_too_little_without_weights_is_left_to_loading(monkeypatch, ci):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: None)
    refuse_unknown_architecture(ci.student.model)
