"""Checkpoints of a Hugging Face Trainer as safetensors and JSON, each whole or absent: the Trainer's own are pickled
(optimizer.pt, rng_state.pth, training_args.bin) and written in place, so that a kill can leave half of one."""

import contextlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from primekd.foundation import UserError, hash_file, relative_name, write_json
from primekd.foundation.storage import locked
from primekd.models.students import written

WEIGHTS, OPTIMIZER, RANDOM, STATE = "adapter.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"
WATCHED = ("loss", "ce", "kd", "grad_norm", "eval_loss")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The right to write the checkpoints in a folder, for one process at a time. Raises UserError if another has it."""
    path = folder.with_name(f"{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        if not locked(handle):
            said = f"{relative_name(folder)} is being written by another training of this student"
            raise UserError(f"{said}: wait for it, or stop it.")
        yield
        path.unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step, or None. A damaged one is named and passed over."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda p: -int(p.name.removeprefix("checkpoint-"))):
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            hashes = json.loads((path / STATE).read_text())["files"]
            if all(hash_file(path / name) == digest for name, digest in hashes.items()):
                return path
        print(f"{relative_name(path)} is damaged: it is passed over.")
    return None


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
    """A Trainer whose checkpoints hold all that it goes on from, for any number of processes: tensors are whole."""

    def _trainable(self) -> dict[str, torch.Tensor]:
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights, whole, named as the student's own model names them. Every process has to call this."""
        return {name.removeprefix("model."): value for name, value in self._whole_weights().items()}

    def _whole_weights(self) -> dict[str, torch.Tensor]:
        weights = {name: _whole(p) for name, p in self._trainable().items()}
        if broken := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
            said = f"{len(broken)} of {len(weights)} weight matrices are not finite, first {broken[0]}"
            raise Diverged(f"by step {self.state.global_step} ({said})")
        return weights

    def _save_checkpoint(self, model, trial) -> None:
        # Whole tensors of all processes, by the name of the file that each set lies in.
        tensors = {WEIGHTS: self._whole_weights(), OPTIMIZER: self._optimizer_state(), RANDOM: self._random_states()}
        if not self.args.should_save:
            return

        def write(folder: Path) -> None:
            for name, part in tensors.items():
                save_file(part, folder / name)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            own = {
                "optimizer": {"param_groups": self.optimizer.state_dict()["param_groups"]},
                "scheduler": self.lr_scheduler.state_dict(),
                "python_random": random.getstate(),
                "numpy_rest": np.random.get_state()[2:],
                "files": {name: hash_file(folder / name) for name in (*tensors, TRAINER_STATE_NAME)},
            }
            write_json(folder / STATE, own)

        target = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        written(target, write)
        rotate_checkpoints(output_dir=str(target.parent), save_total_limit=self.args.save_total_limit)

    def _optimizer_state(self) -> dict[str, torch.Tensor]:
        states = self.optimizer.state_dict()["state"]
        return {f"{i}.{k}": _whole(v) for i, state in states.items() for k, v in state.items() if torch.is_tensor(v)}

    def _random_states(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.random.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.random.get_rng_state()
        every = {
            _of_process(name, process): own.clone()
            for name, state in states.items()
            for process, own in enumerate(self.accelerator.gather(state[None].to(self.args.device)).cpu())
        }
        return every | {"numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64))}

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
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        states: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, value in load_file(Path(checkpoint) / OPTIMIZER).items():
            index, _, key = name.partition(".")
            states[int(index)][key] = _like(value, parameters[int(index)])
        self.optimizer.load_state_dict(own["optimizer"] | {"state": dict(states)})
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


def require_finite_step(logs: Mapping[str, float], step: int, items: Sequence[str]) -> None:
    """Raises Diverged, which names the batch (`items`), if a loss or gradient norm of a step is no finite number."""
    if found := [f"{name} {logs[name]}" for name in WATCHED if name in logs and not math.isfinite(logs[name])]:
        read = f", which read {items[0]} to {items[-1]}" if items and "eval_loss" not in logs else ""
        raise Diverged(f"at step {step}{read} ({', '.join(found)})")


class Diverged(UserError):
    """Losses or weights of a training are no finite numbers any more: it stops before anything of it is kept."""

    def __init__(self, where: str):
        super().__init__(
            f"The training diverged {where}: lower train.learning_rate, clip gradients (train.max_grad_norm) or raise "
            "loss.temperature. No student is written; the last good checkpoint stays."
        )
