"""Training on two real processes over gloo: the loss curve of one, checkpoints of either, FSDP, a killed process."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from conftest import ROOT, make_store, small_profile, stored
from safetensors.torch import load_file

from primekd.foundation.errors import UserError
from primekd.signals.codecs import HiddenCodec, TopKCodec
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.distill import distill, student_inputs
from primekd.training.examples import ProcessBatches
from primekd.training.processes import _config_file, _reason

TRAIN = {
    "optimizer": "sgd", "learning_rate": 0.5, "epochs": 2, "batch_size": 4, "micro_batch_size": 1,
    "evaluations_per_epoch": 1, "checkpoints_per_epoch": 2,
}  # fmt: skip
LORA = {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
SCRATCH = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
LOSS = {"temperature": 2.0, "alpha": 0.3}
COLUMNS = ("loss", "ce", "kd", "grad_norm", "learning_rate", "eval_loss")


# Which sequences a process takes.


@pytest.mark.parametrize("items, size, processes", [(9, 1, 2), (9, 2, 2), (8, 2, 2), (3, 2, 3), (1, 1, 4), (7, 3, 2)])
def test_every_round_of_several_processes_holds_what_one_process_takes_next(items, size, processes):
    lengths, step = [7 * i % 5 for i in range(items)], size * processes
    one = ProcessBatches(lengths, size, 0, 1, step, 2, seed=5)
    several = [ProcessBatches(lengths, size, p, processes, step, 2, seed=5) for p in range(processes)]
    for epoch in range(2):
        for batches in (one, *several):
            batches.set_epoch(epoch)
        order = [i for batch in one for i in batch]
        assert sorted(order) == list(range(items))
        rounds = list(zip(*several, strict=True))  # strict: all take as many passes
        dealt = [i for taken in rounds for batch in taken for i in batch]
        assert [i for i in dealt if i != items] == order
        assert len(rounds) == len(several[0])


# Two processes.


@pytest.fixture(scope="session")
def cases(tmp_path_factory, lively, tokenizer) -> dict[str, dict]:
    """Trainings by name: nine sequences of different lengths, so that neither a step nor a round comes out even."""
    from parallel_worker import Example, StudentSequence

    folder = tmp_path_factory.mktemp("cases")
    random = np.random.default_rng(3)
    examples = []
    for n in range(9):
        ids = random.integers(100, 2000, 6 + 2 * n).tolist()
        examples.append(Example(f"q{n}", StudentSequence(ids, [place >= 4 + n for place in range(len(ids))])))
    engine = TransformersEngine(lively, "float32")
    parts = [(e.sequence.input_ids[: 4 + n], e.sequence.input_ids[4 + n :]) for n, e in enumerate(examples)]
    hidden = engine.score([p for p, _ in parts], [r for _, r in parts], "hidden")
    taught = [h + 0.5 * (-1) ** n for n, h in enumerate(hidden)]  # a teacher that differs from the student
    head = engine.head()
    names = [stored(e.item_id, r) for e, (_, r) in zip(examples, parts, strict=True)]
    make_store(folder / "hidden", HiddenCodec(), [list(zip(names, taught, strict=True))], head=head)
    logits = [h.float() @ head.float().T for h in taught]
    make_store(folder / "topk", TopKCodec(8, 2.0), [list(zip(names, logits, strict=True))])

    def case(name, signals="hidden", fsdp=False, resume=None, dtype="float32", lora=None, scratch=None, **train):
        return {
            "name": name, "model": lively, "dtype": dtype, "lora": LORA | (lora or {}), "loss": LOSS, "fsdp": fsdp,
            "scratch": scratch,
            "train": TRAIN | train, "resume": resume and str(folder / resume), "signals": str(folder / signals),
            "examples": [(e.item_id, e.sequence.input_ids, e.sequence.response_mask) for e in examples],
        }  # fmt: skip

    alone = [
        case("one-hidden"), case("one-topk", "topk", micro_batch_size=2), case("one-bfloat16", dtype="bfloat16"),
        case("one-scratch", scratch=SCRATCH),
    ]  # fmt: skip
    several = [
        case("two-hidden"),
        case("two-topk", "topk", micro_batch_size=2),
        case("two-scratch", scratch=SCRATCH),
        case("fsdp-scratch", scratch=SCRATCH, fsdp=True),
        case("two-from-one", resume="one-hidden/checkpoint-5"),
        case("dropout", lora={"dropout": 0.3}),
        case("dropout-resumed", lora={"dropout": 0.3}, resume="dropout/checkpoint-5"),
        case("fsdp-hidden", fsdp=True),
        case("fsdp-bfloat16", fsdp=True, dtype="bfloat16"),
        case("fsdp-from-one", fsdp=True, resume="one-hidden/checkpoint-5"),
    ]
    return {
        "folder": folder,
        "alone": alone,
        "several": several,
        "back": case("one-from-two", resume="two-hidden/checkpoint-5"),
    }


@pytest.fixture(scope="session")
def trained(cases, tmp_path_factory, warm_python) -> dict[str, dict]:
    """Histories and weights of all cases; those on two processes come from one `accelerate launch`."""
    from parallel_worker import train

    folder = cases["folder"]
    found = {case["name"]: train(case, folder) for case in cases["alone"]}
    (folder / "cases.json").write_text(json.dumps(cases["several"]))
    launcher = [warm_python, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    config = ["--config_file", str(ROOT / "configs/accelerate/fsdp.yaml")]
    script = [str(path) for path in (ROOT / "tests/parallel_worker.py", folder / "cases.json", folder / "results.json")]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *config, *script], capture_output=True, text=True, timeout=600, env=threads)
    assert done.returncode == 0, done.stderr[-4000:]
    found |= json.loads((folder / "results.json").read_text())
    found["one-from-two"] = train(cases["back"], folder)
    for name, result in found.items():
        result["weights"] = load_file(folder / f"{name}.safetensors")
    return found


def curve(result: dict) -> dict[str, list[float]]:
    return {name: [entry[name] for entry in result["history"] if name in entry] for name in COLUMNS}


def assert_same(one: dict, other: dict, rtol: float) -> None:
    assert len(curve(one)["loss"]) == 6 and len(curve(one)["eval_loss"]) >= 2
    for name, values in curve(one).items():
        np.testing.assert_allclose(curve(other)[name], values, rtol=rtol, err_msg=name)
    assert one["weights"].keys() == other["weights"].keys()
    for name, weights in one["weights"].items():
        np.testing.assert_allclose(other["weights"][name], weights, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("one, other, rtol", [
    ("one-hidden", "two-hidden", 1e-4),
    ("one-topk", "two-topk", 1e-4),
    ("one-hidden", "fsdp-hidden", 1e-4),
    # One process alone reads packed rows; each way is 4 % off float32's gradients in bfloat16 (docs/lab-log.md).
    ("one-bfloat16", "fsdp-bfloat16", 5e-2),
    ("one-scratch", "two-scratch", 1e-4),
    ("one-scratch", "fsdp-scratch", 3e-4),  # the gradient's norm is a sum of 786,432 squares in float32
    ("one-hidden", "two-from-one", 1e-4),
    ("one-hidden", "one-from-two", 1e-4),
    ("one-hidden", "fsdp-from-one", 1e-4),
])  # fmt: skip
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(trained, one, other, rtol):
    assert_same(trained[one], trained[other], rtol)


def test_fsdp_really_shards_the_layers(trained):
    assert trained["fsdp-hidden"]["kinds"] == trained["fsdp-bfloat16"]["kinds"] == ["DTensor"]
    assert trained["two-hidden"]["kinds"] == ["Parameter"]


def test_two_processes_resume_with_the_dropout_of_each(trained):
    whole, resumed = trained["dropout"], trained["dropout-resumed"]
    assert curve(resumed) == curve(whole)
    assert all((resumed["weights"][name] == weights).all() for name, weights in whole["weights"].items())
    assert curve(whole)["loss"] != curve(trained["two-hidden"])["loss"]


# The whole stage.

LONG = {"epochs": 9, "checkpoints_per_epoch": 1, "evaluations_per_epoch": 1, "micro_batch_size": 1}


def kill_a_worker_at(folder: Path) -> None:
    """Ends the second process with SIGKILL once `folder` has a checkpoint."""
    while not list(folder.glob("*/checkpoint-*")):
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        if process.environ().get("RANK") == "1":
            process.kill()


def test_a_killed_process_is_one_sentence_and_one_process_goes_on_to_the_same_student(output, capsys):
    """The stage itself on two processes; what they left is resumed by one, which must give what one alone gives."""
    data = {"train_items": 4, "validation_items": 2, "test_items": 2}
    profile = small_profile(output, data=data, train=LONG)
    folder = distill(profile, "base-fine-tune")
    alone = (folder / "loss_curve.csv").read_text().splitlines()
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(folder)

    killer = threading.Thread(target=kill_a_worker_at, args=(profile.runs / "checkpoints",), daemon=True)
    killer.start()
    with pytest.raises(UserError, match="distill base-fine-tune: a process was ended by SIGKILL.*launch.log"):
        distill(profile.launched(2, None), "base-fine-tune")
    assert not (folder / "manifest.json").exists()
    assert "2 processes (cpu.yaml)" in capsys.readouterr().out
    assert not [p for p in psutil.Process().children(recursive=True) if "RANK" in p.environ()]

    assert distill(profile, "base-fine-tune") == folder
    assert "going on from checkpoint-" in capsys.readouterr().out
    resumed = (folder / "loss_curve.csv").read_text().splitlines()
    for one, other in zip(alone[1:], resumed[1:], strict=True):
        first, second = ([float(v) for n, v in enumerate(row.split(",")) if v and n != 1] for row in (one, other))
        np.testing.assert_allclose(second, first, rtol=1e-4)
    for name, value in load_file(folder / "adapter" / "adapter_model.safetensors").items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-4, atol=1e-5)


def test_the_number_of_processes_is_no_part_of_a_student(output):
    profile = small_profile(output)
    assert student_inputs(profile, "base-fine-tune", 0, None) == student_inputs(
        profile.launched(2, None), "base-fine-tune", 0, None
    )


def test_processes_that_do_not_divide_the_batch_are_refused(output):
    with pytest.raises(UserError, match="3 processes: train.batch_size 4 must be a multiple of .*2 \\* 3"):
        small_profile(output).launched(3, None)
    with pytest.raises(UserError, match="launch.processes.*2 \\* 3"):
        small_profile(output, launch={"processes": 3})
    with pytest.raises(UserError, match="two processes or more"):
        small_profile(output).launched(None, "configs/accelerate/fsdp.yaml")


def test_a_missing_accelerate_configuration_is_named(output):
    with pytest.raises(UserError, match="No accelerate configuration configs/accelerate/nothing.yaml"):
        distill(small_profile(output).launched(2, "configs/accelerate/nothing.yaml"), "base-fine-tune")


@pytest.mark.parametrize(
    "changes, said",
    [({"mixed_precision": "bf16"}, 'write mixed_precision: "no"'), ({"mixed_precision": False}, "with the quotes"),
     ({"fp16": True}, "precision alone"), ({"distributed_type": "DEEPSPEED"}, "distributed_type 'DEEPSPEED'"),
     ({"distributed_type": None}, "distributed_type None"), ({"num_machines": 2}, "set num_machines to 1"),
     ("", "holds no mapping"), ("a: [1\nb: 2: 3", "not valid YAML")],
)  # fmt: skip
def test_an_accelerate_file_that_would_change_the_student_or_cannot_be_read_is_one_sentence(changes, said, output):
    path = output / "mine.yaml"
    settings = yaml.safe_load((ROOT / "configs/accelerate/cpu.yaml").read_text())
    path.write_text(changes if isinstance(changes, str) else yaml.safe_dump(settings | changes))
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        distill(small_profile(output).launched(2, str(path)), "base-fine-tune")
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cpu", "fsdp", "multi-gpu"])
def test_the_shipped_accelerate_files_are_taken(name, output, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    path = _config_file(small_profile(output).launched(2, f"configs/accelerate/{name}.yaml"))
    assert path == ROOT / f"configs/accelerate/{name}.yaml"


@pytest.mark.parametrize("name", ["fsdp", "multi-gpu"])
def test_a_configuration_for_gpus_is_refused_where_there_is_none(name, output):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match=f"{name}.yaml is for GPUs and CUDA finds none"):
        distill(small_profile(output).launched(2, f"configs/accelerate/{name}.yaml"), "base-fine-tune")


@pytest.mark.parametrize("text, said", [
    ("noise\nprimekd: The disk is full.\nTraceback\nRuntimeError: x\n", "The disk is full."),
    ("[rank1]: Traceback\n[rank1]: torch.OutOfMemoryError: CUDA out of memory\n", "torch.OutOfMemoryError: CUDA out"),
    ("  exitcode  : -9 (pid: 7)\n", "SIGKILL.*memory ran out"),
    ("nothing known\n", "failed \\(status 3\\)"),
])  # fmt: skip
def test_the_reason_of_a_failed_launch_is_found_in_its_log(text, said, output):
    log = output / "launch.log"
    log.write_text(text)
    reason = _reason(log, "distill ai-KD", 3)
    assert re.search(said, reason) and "\n" not in reason
