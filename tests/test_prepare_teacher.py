"""The pocket teacher's file: base + adapter, layer by layer, as transformers reads it back."""

import numpy as np
import pytest
import torch
from conftest import POCKET, small_profile

from primekd.config import LoraSettings
from primekd.config.arms import default_arms, load_arms
from primekd.foundation import hash_file, write_json, write_manifest
from primekd.foundation.errors import UserError
from primekd.models import load_model, parse_reference, require_local
from primekd.models.students import lora_model, save_adapter
from primekd.training.prepare_teacher import (
    LINEAR_LAYERS,
    build_teacher,
    lora_deltas,
    permute_rotary,
    primed_arms,
    primed_examples,
    train_teacher,
    write_merged_gguf,
)

BLOCK = 3


@pytest.fixture(scope="module")
def base():
    """The pocket model's weights as transformers reads them from the GGUF file, in float32."""
    return load_model(POCKET, "float32").state_dict()


@pytest.fixture(scope="module")
def deltas(base) -> dict[str, np.ndarray]:
    """A random change of every linear layer of one block, about a tenth of the weights' size."""
    random = np.random.default_rng(0)
    found = {}
    for layer in LINEAR_LAYERS.values():
        weight = base[f"model.layers.{BLOCK}.{layer}.weight"]
        change = random.normal(size=weight.shape) * 0.1 * float(weight.std())
        found[f"{BLOCK}.{layer}"] = change.astype(np.float32)
    return found


@pytest.fixture(scope="module")
def merged(base, deltas, tmp_path_factory):
    """The weights of the written Q8_0 file, as transformers reads them."""
    from transformers import AutoModelForCausalLM, GgufConfig

    folder = tmp_path_factory.mktemp("merged")
    write_merged_gguf(require_local(parse_reference(POCKET)), deltas, folder / "teacher.gguf", "Q8_0")
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="teacher.gguf", quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    yield model.state_dict()
    (folder / "teacher.gguf").unlink()


@pytest.mark.parametrize("layer", LINEAR_LAYERS.values())
def test_a_merged_layer_is_base_plus_delta_within_the_error_of_the_quantisation(layer, base, deltas, merged):
    """Q8_0 has 32 weights a block in steps of largest / 127: half a step off at most, and the float16 scale's error."""
    name = f"model.layers.{BLOCK}.{layer}.weight"
    expected = base[name].numpy() + deltas[f"{BLOCK}.{layer}"]
    largest = np.abs(expected.reshape(-1, 32)).max(-1, keepdims=True)
    allowed = np.broadcast_to(largest * (0.5 / 127 + 1e-3), (len(largest), 32)).reshape(expected.shape)
    assert (np.abs(merged[name].numpy() - expected) <= allowed).all()
    assert (np.abs(deltas[f"{BLOCK}.{layer}"]) > allowed).mean() > 0.5  # the delta would be seen if it were missing


def test_layers_without_a_delta_are_the_bases_within_the_error_of_the_quantisation(base, merged):
    for layer in LINEAR_LAYERS.values():
        name = f"model.layers.{BLOCK + 1}.{layer}.weight"
        assert (merged[name] - base[name]).abs().max() <= base[name].abs().max() * 5e-3


def test_everything_else_is_copied_bit_for_bit(base, merged):
    linear = tuple(f"{layer}.weight" for layer in LINEAR_LAYERS.values())
    others = [name for name in base if not name.endswith(linear)]
    assert any("embed_tokens" in name for name in others) and any("norm" in name for name in others)
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[name], base[name]) for name in others)


def test_rotary_rows_are_permuted_as_transformers_undoes_it():
    """llama.cpp rotates neighbouring pairs, transformers the two halves of a head."""
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    weight = np.random.default_rng(1).normal(size=(6 * 8, 5))
    there = permute_rotary(weight, heads=6)
    assert not np.array_equal(there, weight)
    undo = LlamaTensorProcessor()._reverse_permute_weights
    np.testing.assert_array_equal(undo(there, 6, 6), weight)
    np.testing.assert_array_equal(permute_rotary(np.arange(8.0)[:, None], heads=2)[:, 0], [0, 2, 1, 3, 4, 6, 5, 7])


def test_a_delta_for_an_unknown_layer_is_refused_and_leaves_no_file(tmp_path):
    deltas = {name: np.zeros((576, 576), np.float32) for name in ("0.self_attn.x_proj", "99.self_attn.q_proj")}
    with pytest.raises(UserError, match=r"0\.self_attn\.x_proj, 99\.self_attn\.q_proj"):
        write_merged_gguf(require_local(parse_reference(POCKET)), deltas, tmp_path / "x.gguf", "Q8_0")
    assert not (tmp_path / "x.gguf").exists()


# Adapters.


@pytest.fixture
def adapter(lively, tmp_path):
    """A random adapter with rank and alpha that differ."""
    model = lora_model(lively, "float32", LoraSettings(rank=2, alpha=6), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_adapter(model, tmp_path, lively)
    return model, tmp_path / "adapter"


def test_deltas_are_what_peft_itself_merges(adapter, lively):
    model, folder = adapter
    before = load_model(lively, "float32").state_dict()
    after = model.merge_and_unload().state_dict()
    deltas = lora_deltas(folder)
    assert len(deltas) == 2 * len(LINEAR_LAYERS)
    for name, delta in deltas.items():
        expected = after[f"model.layers.{name}.weight"] - before[f"model.layers.{name}.weight"]
        torch.testing.assert_close(torch.from_numpy(delta), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_is_no_plain_lora_is_refused(change, adapter):
    from primekd.foundation import read_json

    _, folder = adapter
    write_json(folder / "adapter_config.json", read_json(folder / "adapter_config.json") | change)
    with pytest.raises(UserError, match="no plain LoRA adapter"):
        lora_deltas(folder)


def prepare_section(folder, **changes):
    train = {"optimizer": "adamw", "learning_rate": 0.001, "epochs": 1, "batch_size": 2, "micro_batch_size": 2}
    section = {"base": POCKET, "adapter": str(folder / "adapter"), "output": str(folder / "built" / "teacher.gguf")}
    return section | {"quantization": "Q8_0", "items": 4, "lora": {"rank": 2, "alpha": 4}, "train": train} | changes


def test_building_without_an_adapter_names_the_command_that_trains_it(output):
    with pytest.raises(UserError, match="primekd prepare-teacher --train"):
        build_teacher(small_profile(output, prepare=prepare_section(output)))


def test_building_from_an_altered_adapter_is_refused(output):
    (output / "adapter").mkdir()
    weights = output / "adapter" / "weights.safetensors"
    weights.write_bytes(b"abc")
    write_manifest(output / "adapter", "adapter", {}, [weights])
    weights.write_bytes(b"abd")
    with pytest.raises(UserError, match=r"weights\.safetensors missing or altered.*git checkout"):
        build_teacher(small_profile(output, prepare=prepare_section(output)))
    assert not (output / "built").exists()


def test_a_built_teacher_is_not_built_again_until_it_is_damaged(output, capsys, monkeypatch):
    (output / "adapter").mkdir()
    (output / "adapter" / "weights").write_bytes(b"abc")
    write_manifest(output / "adapter", "adapter", {}, [output / "adapter" / "weights"])
    monkeypatch.setattr("primekd.training.prepare_teacher.lora_deltas", lambda folder: {})
    monkeypatch.setattr(
        "primekd.training.prepare_teacher.write_merged_gguf",
        lambda base, deltas, target, kind: target.write_bytes(b"GGUF"),
    )
    profile = small_profile(output, prepare=prepare_section(output))
    built = build_teacher(profile)
    first = hash_file(built)
    capsys.readouterr()
    build_teacher(profile)
    assert "nothing to do" in capsys.readouterr().out
    changed = build_teacher(profile, force=True)
    assert "wrote" in capsys.readouterr().out and hash_file(changed) == first
    built.write_bytes(b"damaged")
    build_teacher(profile)
    assert hash_file(built) == first


# The teacher's own items.


def test_some_examples_are_primed_with_the_strategies_own_texts_and_the_rest_are_plain(output, tokenizer, items):
    profile = small_profile(output, prepare=prepare_section(output))
    texts = [tokenizer.decode(e.sequence.input_ids) for e in primed_examples(profile, tokenizer, items * 4, 0.5)]
    primings = [s.priming for s in default_arms().values() if s.priming]
    primed = [next((p for p in primings if p in text), None) for text in texts]
    assert 8 <= sum(p is not None for p in primed) <= 24
    assert set(primed) == {None, *primings}
    plain = [tokenizer.decode(e.sequence.input_ids) for e in primed_examples(profile, tokenizer, items, 0.0)]
    assert not any(p in text for text in plain for p in primings)


PLANTED = {"base-KD": "varied", "teacher-KD": "explained", "ai-KD": "answer", "placebo-KD": "gold"}


def test_each_arms_prompt_is_taught_its_own_form_of_the_solution(output, tokenizer, items):
    """reverseKL-KD is not named: it is taught what the unprimed teacher is."""
    profile = small_profile(output, prepare=prepare_section(output, solutions=PLANTED))
    seen = set()
    for example, item in zip(primed_examples(profile, tokenizer, items * 16, 0.8), items * 16, strict=True):
        ids, mask = example.sequence.input_ids, example.sequence.response_mask
        prompt = tokenizer.decode([i for i, own in zip(ids, mask, strict=True) if not own])
        text = tokenizer.decode([i for i, own in zip(ids, mask, strict=True) if own]).removesuffix("<|im_end|>")
        arm = next((a.name for a in load_arms().values() if a.priming and a.priming in prompt), "base-KD")
        seen.add(arm)
        *steps, answer = item.solution.splitlines()
        assert text.endswith(answer)
        assert (text == answer) == (arm == "ai-KD")
        assert ("This step gives" in text) == (arm == "teacher-KD")
        if arm == "placebo-KD":
            assert text == item.solution
        if arm in ("base-KD", "reverseKL-KD"):
            assert len(text.splitlines()) == len(steps) + 1
    assert seen == {*PLANTED, "reverseKL-KD"}


def test_a_form_for_an_arm_that_is_none_or_reads_no_prompt_is_refused_before_anything_is_spent(output):
    for arm, said in (("ai-Kd", "No strategy is called 'ai-Kd'"), ("base-text-KD", "has no priming of its own")):
        profile = small_profile(output, prepare=prepare_section(output, solutions={arm: "answer"}))
        with pytest.raises(UserError, match=said):
            train_teacher(profile)
    with pytest.raises(UserError, match="solutions"):
        small_profile(output, prepare=prepare_section(output, solutions={"ai-KD": "short"}))


def test_where_nothing_is_planted_a_section_is_what_it_was_before_that_could_be_said(output):
    plain = small_profile(output, prepare=prepare_section(output)).prepare
    planted = small_profile(output, prepare=prepare_section(output, solutions={"ai-KD": "answer"})).prepare
    assert "solutions" not in plain.model_dump(mode="json")
    assert planted.model_dump(mode="json")["solutions"] == {"ai-KD": "answer"}
    assert [arm.name for arm in primed_arms({})] == [name for name, arm in default_arms().items() if arm.priming]


def test_the_teachers_items_that_stand_in_a_students_split_are_refused(ci, items):
    from primekd.tasks.load import load_items
    from primekd.tasks.splits import refuse_overlap

    others = {split: load_items(ci, split) for split in ("train", "validation", "test")}
    refuse_overlap(load_items(ci, "teacher", 20), "teacher", others)
    for split in others:
        with pytest.raises(UserError, match=f"1 questions stand in the teacher items and in the {split} items"):
            refuse_overlap([*load_items(ci, "teacher", 3), others[split][0]], "teacher", others)
