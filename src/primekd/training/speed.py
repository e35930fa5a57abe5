"""How fast a training runs: tokens a second, and the share of the machine's arithmetic that the model's own takes."""

import time
import timeit
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from primekd.foundation import write_text
from primekd.models.shapes import Shape

# Dense bfloat16 products a second (vendors' data sheets), by a part of the name that torch gives.
GPU_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
             "4090": 165e12, "3090": 71e12}  # fmt: skip
PROBE = 1024  # rows and columns of the product that tells what a CPU can do


def flops_per_token(shape: Shape, context: int) -> float:
    """Of one token's forward and backward pass where all weights are trained: 6 N + 12 L q T (PaLM, arXiv 2204.02311,
    appendix B), N the weights of all products, q the width of a layer's queries, T the context's tokens."""
    products = shape.layers * shape.layer_weights + shape.embedding_weights  # a lookup is no product, the head is
    return 6 * products + 12 * shape.layers * shape.heads * shape.head_dim * context


def peak_flops() -> tuple[float, str]:
    """(operations a second, where that is from): a data sheet's, or measured here on a CPU; 0 for an unknown GPU."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        found = next((peak for part, peak in GPU_PEAKS.items() if part in name), 0.0)
        return found, f"data sheet of {name}" if found else f"{name} is not in the table"
    factor = torch.ones(PROBE, PROBE, dtype=torch.bfloat16)
    best = min(timeit.repeat(lambda: factor @ factor, number=1, repeat=5))
    return 2 * PROBE**3 / best, f"a bfloat16 product of {PROBE} x {PROBE} measured here"


class Speed(TrainerCallback):
    """Tokens a second of the steps, and the model's FLOPs utilisation (MFU). A step is all from reading its batch, or
    writing it, to the new weights; validation, benchmarks and checkpoints between two steps are not counted."""

    def __init__(self, shape: Shape, context: int):
        self._flops, (self._peak, self.source) = flops_per_token(shape, context), peak_flops()
        self._tokens, self._seconds, self._start = 0, 0.0, 0.0

    def begin(self) -> None:
        self._start = time.perf_counter()

    def add(self, tokens: int) -> None:
        """Counts tokens that the step trains on: all that the student's forward and backward pass reads."""
        self._tokens += tokens

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.cuda.is_available():  # the step's loss is waited for anyway, to be logged
            torch.cuda.synchronize()
        self._seconds += time.perf_counter() - self._start

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / max(self._seconds, 1e-9)

    @property
    def utilisation(self) -> float | None:
        """Between 0 and 1; None where the machine's peak is not known."""
        return self.tokens_per_second * self._flops / self._peak if self._peak else None

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest: tokens a second of this session, utilisation, and the peak that this is a share of."""
        used = {"tokens_per_second": self.tokens_per_second, "flops_utilisation": self.utilisation}
        return used | {"peak_flops": self._peak or None, "peak_source": self.source}

    def __str__(self) -> str:
        used = self.utilisation
        share = "" if used is None else f", {100 * used:.1f} % of peak"
        return f"{self.tokens_per_second:,.0f} tokens/s{share}"


class TextLog(TrainerCallback):
    """Plain text, one `step label value` a line, whole after every line; what a training that goes on makes again is
    taken out. `train` is the cross-entropy of the given text (if `given`), nats a token, `val` that of held-out
    documents. Where a teacher is asked, `kl` is the divergence to it and `loss` the objective, of either sign under
    MiniLLM."""

    def __init__(self, path: Path, taught: bool = False, given: bool = True):
        labels = {"eval_loss": "val", "loss": "loss", "kd": "kl"} if taught else {"eval_loss": "val", "loss": "train"}
        self.path, self.labels = path, ({"ce": "train"} if taught and given else {}) | labels

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        kept = [line for line in read_lines(self.path) if int(line.split()[0]) <= state.global_step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs) -> None:
        self.add(state.global_step, {label: logs[key] for key, label in self.labels.items() if key in (logs or {})})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(f"{step} {label} {value:.6g}\n" for label, value in values.items())


def read_lines(path: Path) -> list[str]:
    """The whole lines of a text log; a last one that a stop cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return text.split("\n")[:-1]
