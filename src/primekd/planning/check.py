"""Measured memory, to hold the plan's memory model against: real passes of a profile's teacher and student.

    python -m primekd.planning.check teacher PROFILE --sequences 8 --prompt 96 --response 64

Each case runs in a process of its own. On a GPU the peak is torch's own count (`max_memory_allocated`, over all GPUs);
on a CPU the process's peak resident memory (VmHWM, Linux), less what the imports hold before a model is loaded.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from primekd.config import Profile, load_profile
from primekd.foundation.errors import UserError

TOKEN = 5  # any ordinary token: memory depends on how many there are, not on which


def measure(profile: str, stage: str, sequences: int, prompt: int, response: int) -> dict[str, Any]:
    """Runs one case in a process of its own.

    Args:
        profile: a profile's name or a path of one.
        stage: teacher or student.
        sequences, prompt, response: how many sequences one pass takes, and their lengths in tokens.

    Returns:
        device, response (tokens that were really written), and phases: bytes at their peak, by name.

    Raises:
        UserError: the process failed; its last line says why.
    """
    words = [stage, profile, "--sequences", sequences, "--prompt", prompt, "--response", response]
    command = [sys.executable, "-m", "primekd.planning.check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise UserError(f"The memory of {profile} ({stage}) could not be measured: {last}")
    return json.loads(done.stdout.splitlines()[-1])


class Peaks:
    """Peak memory of named phases."""

    def __init__(self):
        import torch

        self.cuda = torch.cuda if torch.cuda.is_available() else None
        self.phases: dict[str, int] = {}
        self.baseline = 0 if self.cuda else self._resident("VmRSS")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self.cuda:
            for index in range(self.cuda.device_count()):
                self.cuda.reset_peak_memory_stats(index)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident size
        yield
        if self.cuda:
            self.phases[name] = sum(self.cuda.max_memory_allocated(i) for i in range(self.cuda.device_count()))
        else:
            self.phases[name] = self._resident("VmHWM") - self.baseline

    @staticmethod
    def _resident(key: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        raise UserError("This system does not say how much memory a process holds: measure on Linux, or on a GPU.")

    def facts(self, **more: Any) -> dict[str, Any]:
        device = self.cuda.get_device_name() if self.cuda else "CPU"
        return {"device": device, "baseline": self.baseline, "phases": self.phases} | more


def teacher_peaks(profile: Profile, sequences: int, prompt: int, response: int) -> dict[str, Any]:
    """Loads the profile's teacher, generates, scores as the profile's codec asks, and checks the head."""
    import transformers  # noqa: F401 - part of the baseline

    from primekd.capture.run import measure_reconstruction
    from primekd.models import load_tokenizer
    from primekd.signals import StoredItem, make_codec
    from primekd.teachers import Sampling, open_engine

    load_tokenizer(profile.teacher.model)  # a GGUF file is converted here the first time, which is no part of a run
    if profile.teacher.engine == "llamacpp":
        import llama_cpp  # noqa: F401
    else:
        import transformers.models.llama.modeling_llama  # noqa: F401
    peaks = Peaks()
    with peaks.phase("load"):
        engine = open_engine(profile)
    prompts = [[TOKEN] * prompt] * sequences
    with peaks.phase("generate"):
        engine.generate(prompts, Sampling(response))
    # A model may end its turn before the limit; scoring takes the length that was asked for.
    responses = [[TOKEN] * response] * sequences
    codec = make_codec(profile.signals, engine.offers)
    if codec.needs:
        with peaks.phase("score"):
            rows = engine.score(prompts, responses, codec.needs)
    if codec.needs == "hidden":
        stored = [StoredItem(str(i), prompts[i], responses[i], False) for i in range(sequences)]
        with peaks.phase("head check"):
            measure_reconstruction(engine, stored, rows)
    return peaks.facts()


def student_peaks(profile: Profile, sequences: int, prompt: int, response: int) -> dict[str, Any]:
    """Two optimiser steps of the profile's student on made-up hidden states of its own width."""
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from primekd.models import load_tokenizer
    from primekd.models.chat import join
    from primekd.models.students import lora_model
    from primekd.training.examples import Example
    from primekd.training.trainer import build_trainer

    tokenizer = load_tokenizer(profile.student.model)
    train = profile.train.model_copy(
        update={"micro_batch_size": sequences, "batch_size": sequences, "epochs": 1, "checkpoints_per_epoch": 1}
    )
    examples = [Example(str(i), join([TOKEN] * prompt, [TOKEN] * response)) for i in range(2 * sequences)]
    peaks = Peaks()
    with tempfile.TemporaryDirectory() as folder:
        with peaks.phase("load"):
            settings = profile.student
            student = lora_model(settings.model, settings.dtype, settings.lora, 0, settings.quantization)
        head = student.get_base_model().get_output_embeddings().weight.detach()[: len(tokenizer)]
        signals = _made_up_signals(Path(folder), examples, head)
        with peaks.phase("train"):
            trainer = build_trainer(
                student, tokenizer, examples, [], signals, profile.loss, train, Path(folder) / "checkpoints", 0
            )
            trainer.train()
    return peaks.facts()


def _made_up_signals(folder: Path, examples, head):
    """A store with the codec hidden for the examples."""
    import torch

    from primekd.signals import SignalReader, SignalWriter, StoredItem
    from primekd.signals.codecs import HiddenCodec
    from primekd.signals.heads import save_head

    codec = HiddenCodec()
    writer = SignalWriter(folder / "signals", {"codec": codec.describe()}, count=1)
    writer.facts["head"] = save_head(folder / "signals", head)
    rows = []
    for example in examples:
        ids = [t for t, kept in zip(example.sequence.input_ids, example.sequence.response_mask, strict=True) if kept]
        rows.append(StoredItem(example.item_id, [TOKEN], ids, False))
    states = [codec.encode(torch.randn(len(r.response_ids), head.shape[1]).to(head.dtype), r) for r in rows]
    writer.write_shard(0, rows, states)
    writer.complete()
    return SignalReader(folder / "signals")


def main(
    stage: Annotated[str, typer.Argument(help="teacher or student")],
    profile: Annotated[str, typer.Argument(help="A profile in configs/, or a path of a YAML file.")],
    sequences: int = 8,
    prompt: int = 96,
    response: int = 64,
) -> None:
    """Measures one case and prints it as one line of JSON."""
    import contextlib

    run = {"teacher": teacher_peaks, "student": student_peaks}[stage]
    with contextlib.redirect_stdout(sys.stderr):
        facts = run(load_profile(profile), sequences, prompt, response)
    print(json.dumps(facts))


if __name__ == "__main__":
    typer.run(main)
