"""Tokens a second, FLOPs utilisation, and the plain text log of a training."""

from types import SimpleNamespace

import pytest
import torch
from conftest import POCKET
from torch.utils.flop_counter import FlopCounterMode

from primekd.config import Architecture
from primekd.models import load_tokenizer
from primekd.models.shapes import Shape
from primekd.models.students import scratch_model
from primekd.training import speed as of_speed
from primekd.training.speed import GPU_PEAKS, Speed, TextLog, flops_per_token, peak_flops, read_lines

SHAPE = Shape(layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=64, vocab=49152, tied=True)


def test_the_flops_of_a_token_are_those_that_torch_counts():
    """All products of a forward and a backward pass."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    architecture = Architecture(model_type="llama", num_key_value_heads=1, **sizes)
    tokenizer = load_tokenizer(POCKET)
    model = scratch_model(architecture, tokenizer, 0)
    model.set_attn_implementation("eager")
    ids = torch.arange(40)[None] % len(tokenizer)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    counted = counter.get_total_flops() / 40
    # The first layer's inputs and the embedding have no gradient to hand on; nothing else is left out.
    assert flops_per_token(SHAPE, 40) == pytest.approx(counted, rel=0.02)
    assert flops_per_token(SHAPE, 1024) - flops_per_token(SHAPE, 40) == 12 * 2 * 32 * (1024 - 40)


def test_a_cpus_peak_is_measured_and_a_gpus_is_looked_up(monkeypatch):
    peak, source = peak_flops()
    assert 1e9 < peak < 1e14 and "measured here" in source
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert peak_flops() == (GPU_PEAKS["H100"], "data sheet of NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Something else")
    assert peak_flops()[0] == 0 and Speed(SHAPE, 40).utilisation is None


def test_the_clock_runs_in_steps_alone_and_utilisation_is_the_models_arithmetic_over_the_peak(monkeypatch):
    clock = iter([5.0, 7.0, 100.0, 101.0])
    monkeypatch.setattr(of_speed, "peak_flops", lambda: (1e12, "here"))
    monkeypatch.setattr(of_speed.time, "perf_counter", lambda: next(clock))
    speed = Speed(SHAPE, 40)
    for tokens in (3000, 600):  # 2 s and 1 s; between them nobody trains for 93 s
        speed.begin()
        speed.add(tokens)
        speed.on_step_end(None, None, None)
    assert speed.tokens_per_second == 1200
    assert speed.utilisation == pytest.approx(1200 * flops_per_token(SHAPE, 40) / 1e12)
    assert str(speed) == f"1,200 tokens/s, {100 * 1200 * flops_per_token(SHAPE, 40) / 1e12:.1f} % of peak"
    assert speed.facts["tokens_per_second"] == 1200


def at(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step)


def test_the_text_log_has_one_label_and_value_a_line_and_forgets_what_is_made_again(tmp_path):
    path = tmp_path / "own" / "log.txt"
    log = TextLog(path, taught=True)
    log.on_train_begin(None, at(0), None)
    log.on_log(None, at(1), None, {"loss": -2.5, "ce": 3.5, "kd": 0.25, "grad_norm": 1.0})
    log.on_log(None, at(2), None, {"loss": 2.25, "ce": 3.25, "kd": 0.125})
    log.add(2, {"hella": 0.3})
    log.on_log(None, at(2), None, {"eval_loss": 3})
    first = "1 train 3.5\n1 loss -2.5\n1 kl 0.25\n"
    assert path.read_text() == f"{first}2 train 3.25\n2 loss 2.25\n2 kl 0.125\n2 hella 0.3\n2 val 3\n"
    with open(path, "a") as file:
        file.write("3 tra")  # a stop in the middle of a line
    assert len(read_lines(path)) == 8
    TextLog(path).on_train_begin(None, at(1), None)
    assert path.read_text() == first
    assert "train" not in TextLog(path, taught=True, given=False).labels.values()
    assert TextLog(path).labels["loss"] == "train"
