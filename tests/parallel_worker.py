"""What tests/test_parallel_training.py launches on two processes: trainings by the settings in a JSON file.

    accelerate launch … tests/parallel_worker.py cases.json results.json

Launched with configs/accelerate/fsdp.yaml. FSDP is accelerate's own, over gloo. Accelerate turns it on for GPUs alone,
so the one thing that is not real here is that it is told that the two processes have GPUs; sharding, gathering and
saving are torch's.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import save_file

from primekd.config import Architecture, LoraSettings, LossConfig, TrainConfig
from primekd.models import load_tokenizer
from primekd.models.students import lora_model, scratch_model
from primekd.signals import SignalReader
from primekd.training.examples import Example, StudentSequence
from primekd.training.processes import is_main_process, join_processes, leave_processes
from primekd.training.trainer import build_trainer


def use_fsdp() -> None:
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._prepare_backend = lambda *arguments, **options: ("gloo", DistributedType.MULTI_GPU)


def train(case: dict, folder: Path) -> dict:
    """One training; returns its history. The main process keeps its weights under the case's name."""
    if case["fsdp"]:
        use_fsdp()
    if case["scratch"]:
        model = scratch_model(Architecture(**case["scratch"]), load_tokenizer(case["model"]), seed=0)
    else:
        model = lora_model(case["model"], case["dtype"], LoraSettings(**case["lora"]), seed=0)
    examples = [Example(name, StudentSequence(ids, mask)) for name, ids, mask in case["examples"]]
    signals = SignalReader(Path(case["signals"])) if case["signals"] else None
    trainer = build_trainer(
        model, load_tokenizer(case["model"]), examples, examples[:3], signals, LossConfig(**case["loss"]),
        TrainConfig(**case["train"]), folder / case["name"], seed=0,
    )  # fmt: skip
    if case["fsdp"]:
        trainer.args.use_cpu = False
    trainer.train(resume_from_checkpoint=case["resume"])
    weights = trainer.trained_weights()
    layers = [type(p).__name__ for n, p in trainer.model.named_parameters() if "layers" in n]
    if is_main_process():
        save_file(weights, folder / f"{case['name']}.safetensors")
    return {"history": trainer.state.log_history, "kinds": sorted(set(layers))}


def main() -> None:
    cases, results = (Path(a) for a in sys.argv[1:])
    torch.set_num_threads(1)
    os.environ.pop("ACCELERATE_USE_FSDP")  # until a case asks for it
    join_processes()
    found = {case["name"]: train(case, results.parent) for case in json.loads(cases.read_text())}
    if is_main_process():
        results.write_text(json.dumps(found))
    leave_processes()


if __name__ == "__main__":
    main()
