"""Checkpoints of a Hugging Face Trainer as safetensors and JSON, each whole or absent.

The Trainer's own are pickled (optimizer.pt, rng_state.pth, training_args.bin) and written in place, so that a kill
can leave half of one.
"""

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from primekd.foundation.errors import UserError
from primekd.foundation.provenance import hash_file, relative_name, write_json
from primekd.models.students import written

WEIGHTS, OPTIMIZER, RANDOM, STATE = "adapter.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"
WATCHED = ("loss", "ce", "kd", "grad_norm", "eval_loss")


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step, or None. A damaged one is named and passed over."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda p: -int(p.name.removeprefix("checkpoint-"))):
        if _is_whole(path):
            return path
        print(f"{relative_name(path)} is damaged: it is passed over.")
    return None


def _is_whole(path: Path) -> bool:
    try:
        hashes = json.loads((path / STATE).read_text())["files"]
        return all(hash_file(path / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state_dict as (tensors for safetensors, the rest for JSON)."""
    tensors = {f"{index}.{key}": value for index, entries in state["state"].items() for key, value in entries.items()}
    return tensors, {"param_groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": rest["param_groups"]}


def _whole(value: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; of a tensor sharded over processes all of it, so every process has to call this."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().contiguous()


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded over the processes as `parameter` is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def _of_process(name: str, process: int) -> str:
    return f"{name}.{process}" if process else name


class SafeCheckpoints(Trainer):
    """A Trainer whose checkpoints hold the trainable parameters, optimiser, schedule, random states and history.

    One checkpoint serves any number of processes: tensors are whole, and each process has its own random state. Only
    the main process writes.
    """

    def _trainable(self) -> dict[str, torch.Tensor]:
        unwrapped = self.accelerator.unwrap_model(self.model)
        return {name: p for name, p in unwrapped.named_parameters() if p.requires_grad}

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights, whole, named as the student's own model names them. Every process has to call this."""
        return {name.removeprefix("model."): value for name, value in self._whole_weights().items()}

    def _whole_weights(self) -> dict[str, torch.Tensor]:
        weights = {name: _whole(p) for name, p in self._trainable().items()}
        require_finite_weights(weights, self.state.global_step)
        return weights

    def _save_checkpoint(self, model, trial) -> None:
        state = self._gather_state()
        if not self.args.should_save:
            return
        target = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        written(target, lambda folder: self._write_checkpoint(folder, *state))
        rotate_checkpoints(output_dir=str(target.parent), save_total_limit=self.args.save_total_limit)

    def _gather_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, torch.Tensor]]:
        """Trainable parameters, optimiser and random states of all processes, whole."""
        optimizer = self.optimizer.state_dict()
        states = {i: {k: _whole(v) for k, v in s.items() if torch.is_tensor(v)} for i, s in optimizer["state"].items()}
        random_states = {"cpu": torch.random.get_rng_state()}
        if torch.cuda.is_available():
            random_states["cuda"] = torch.cuda.random.get_rng_state()
        every = {
            _of_process(name, process): own.clone()
            for name, state in random_states.items()
            for process, own in enumerate(self.accelerator.gather(state[None].to(self.args.device)).cpu())
        }
        return self._whole_weights(), optimizer | {"state": states}, every

    def _write_checkpoint(
        self, folder: Path, weights: dict[str, torch.Tensor], optimizer: dict[str, Any], states: dict[str, torch.Tensor]
    ) -> None:
        save_file(weights, folder / WEIGHTS)
        tensors, rest = _split_optimizer(optimizer)
        save_file(tensors, folder / OPTIMIZER)
        numpy_state = np.random.get_state()
        states["numpy"] = torch.from_numpy(numpy_state[1].astype(np.int64))
        save_file(states, folder / RANDOM)
        own = {
            "optimizer": rest,
            "scheduler": self.lr_scheduler.state_dict(),
            "python_random": random.getstate(),
            "numpy_rest": numpy_state[2:],
        }
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        own["files"] = {name: hash_file(folder / name) for name in (WEIGHTS, OPTIMIZER, RANDOM, TRAINER_STATE_NAME)}
        write_json(folder / STATE, own)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        own = self._trainable()
        if saved.keys() != own.keys():
            raise ValueError(f"{resume_from_checkpoint} is of another student")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(_like(saved[name], parameter))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        own = json.loads((Path(checkpoint) / STATE).read_text())
        state = _join_optimizer(load_file(Path(checkpoint) / OPTIMIZER), own["optimizer"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, entries in state["state"].items():
            state["state"][index] = {key: _like(value, parameters[index]) for key, value in entries.items()}
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(own["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        own, states = json.loads((Path(checkpoint) / STATE).read_text()), load_file(Path(checkpoint) / RANDOM)
        version, words, gauss = own["python_random"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(("MT19937", states["numpy"].numpy().astype(np.uint32), *own["numpy_rest"]))
        process = self.args.process_index
        if _of_process("cpu", process) not in states:  # it was written by fewer processes
            torch.manual_seed(self.args.seed + process + self.state.global_step)
            return
        torch.random.set_rng_state(states[_of_process("cpu", process)])
        if torch.cuda.is_available() and _of_process("cuda", process) in states:
            torch.cuda.random.set_rng_state(states[_of_process("cuda", process)])


# What stops a training that diverged, before anything of it is kept.


def require_finite_step(logs: Mapping[str, float], step: int) -> None:
    """Raises UserError if a loss or the gradient norm of a step is no finite number."""
    found = {name: logs[name] for name in WATCHED if name in logs and not math.isfinite(logs[name])}
    if found:
        _refuse(f"at step {step} ({', '.join(f'{name} {value}' for name, value in found.items())})")


def require_finite_weights(weights: Mapping[str, torch.Tensor], step: int) -> None:
    """Raises UserError if a trained weight is no finite number."""
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        _refuse(f"by step {step} ({len(broken)} of {len(weights)} weight matrices are not finite, first {broken[0]})")


class Diverged(UserError):
    """Losses or weights of a training are no finite numbers any more."""


def _refuse(what: str) -> None:
    raise Diverged(
        f"The training diverged {what}: lower train.learning_rate, clip gradients (train.max_grad_norm) or raise "
        "loss.temperature. No student is written; the last good checkpoint stays."
    )
