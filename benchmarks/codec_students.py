"""The judge of the codecs: students trained from each at equal bytes, and their held-out KL to the teacher.

All students see the same gold solutions in the same order from the same fresh adapter; alpha is 0, so nothing but the
teacher's signal teaches them. The KL is that of the teacher's exact distribution, on items that no student saw. At
temperature 2, where the pocket teacher is not nearly certain any more. Minutes, so `make bench` leaves it out:

    python -m benchmarks run codec_students
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.plain_losses import forward_kl
from benchmarks.scale import Scale
from benchmarks.stored_signals import as_needed, examples_of, score, write_store
from benchmarks.timing import Clock
from primekd.config import LossConfig, Profile, load_profile
from primekd.models import load_tokenizer
from primekd.models.students import lora_model
from primekd.signals import Codec, SignalReader, concatenate
from primekd.signals.codecs import HiddenCodec, TopKCodec
from primekd.signals.sampled import SampledCodec
from primekd.statistics.calibration import calibration_error
from primekd.training.examples import Collator, Example
from primekd.training.trainer import build_trainer

TEMPERATURE = 2.0
HELD_OUT_AT_ONCE = 8


def codecs(temperature: float) -> dict[str, Codec]:
    """Those compared: `hidden` for a ceiling, and pairs of about as many bytes at T = 2 (topk: 16 and 32 a token)."""
    return {
        "hidden": HiddenCodec(),
        "topk 1": TopKCodec(1, temperature),
        "sampled 256": SampledCodec(256, temperature),
        "topk 3": TopKCodec(3, temperature),
        "sampled 512": SampledCodec(512, temperature),
    }


def measure(scale: Scale, say=print) -> dict[str, Any]:
    """Trains and scores a student for each codec and seed, one epoch each.

    Seeds that would not end within the scale's time are left out, except for the first two.

    Returns:
        {"temperature", "items", "tokens", "held_out_items", "held_out_tokens", "untrained": KL, "untrained_ece",
        "codecs": {name: {"bytes": a token, "kl": [one a seed], "kl_mean", "ece": [one a seed], "ece_mean"}}}. KLs are
        means over held-out tokens, in nats, at that temperature. ECE: of the most probable next token at temperature 1
        (top-k is known to harm it, arXiv 2503.16870).
    """
    clock, temperature, items = Clock(scale.students_s), TEMPERATURE, scale.student_items
    settings = load_profile(scale.profile)
    loss = LossConfig(divergence="forward_kl", temperature=temperature, alpha=0.0)
    settings = settings.model_copy(update={"loss": loss, "train": settings.train.model_copy(update={"epochs": 1})})
    examples = examples_of(settings, items + scale.student_held_out)
    train, test = examples[:items], examples[items:]
    found: dict[str, Any] = {"temperature": temperature, "items": items, "held_out_items": scale.student_held_out}
    found["codecs"] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stored, states, head = score(settings, examples)
        found["tokens"] = sum(len(i.response_ids) for i in stored[:items])
        found["held_out_tokens"] = sum(len(i.response_ids) for i in stored[items:])
        for name, codec in codecs(temperature).items():
            seen = as_needed(codec, states[:items], head)
            write_store(folder / name, codec, stored[:items], seen, head)
            found["codecs"][name] = {"bytes": _row_bytes(folder / name, codec) / found["tokens"], "kl": []}
        write_store(folder / "exact", HiddenCodec(), stored[items:], states[items:], head)
        exact = SignalReader(folder / "exact")
        found["untrained"], found["untrained_ece"] = _student(settings, [], None, test, exact, 0, folder)
        taken = 0.0  # by the seed before
        for seed in range(scale.student_seeds):
            if seed >= 2 and clock.left() < taken:
                break
            began = time.monotonic()
            for name, entry in found["codecs"].items():
                kl, ece = _student(settings, train, SignalReader(folder / name), test, exact, seed, folder)
                for key, value in (("kl", kl), ("ece", ece)):
                    entry.setdefault(key, []).append(value)
                    entry[f"{key}_mean"] = statistics.mean(entry[key])
                said = f"held-out KL {kl:.5f} nats, ECE {ece:.4f}"
                say(f"seed {seed}, {name}: {entry['bytes']:.1f} bytes a token, {said}")
            taken = time.monotonic() - began
    for name, entry in found["codecs"].items():
        kls = entry["kl"]
        say(f"{name}: held-out KL {entry['kl_mean']:.5f} [{min(kls):.5f}, {max(kls):.5f}] nats in {len(kls)} seeds")
    return found


def _row_bytes(folder: Path, codec: Codec) -> int:
    """Bytes of the codec's columns alone: ids, prompts and header are the same for all."""
    from safetensors import safe_open

    with safe_open(folder / "shard-00000.safetensors", framework="pt") as handle:
        names = [n for n in handle.keys() if n.startswith(("row.", "packed_lengths"))]  # noqa: SIM118 - no mapping
        return sum(t.numel() * t.element_size() for t in map(handle.get_tensor, names))


def _student(
    profile: Profile, train: list[Example], signals: SignalReader | None, test: list[Example], exact: SignalReader,
    seed: int, folder: Path,
) -> tuple[float, float]:  # fmt: skip
    """Held-out KL and ECE of a student trained from `signals`; of the untrained one if there is nothing to train on."""
    tokenizer = load_tokenizer(profile.student.model)
    student = lora_model(profile.student.model, profile.student.dtype, profile.student.lora, seed)
    with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
        trainer = build_trainer(
            student, tokenizer, train or test, [], signals, profile.loss, profile.train, Path(checkpoints), seed
        )
        if train:
            trainer.train()
    return held_out(trainer.model.eval(), test, exact, Collator(tokenizer.pad_token_id), profile.loss.temperature)


@torch.inference_mode()
def held_out(
    objective, examples: list[Example], exact: SignalReader, collator: Collator, temperature: float
) -> tuple[float, float]:
    """Mean KL(teacher || student) a response token, in nats; expected calibration error of the next token."""
    total, tokens, sure, right = 0.0, 0, [], []
    head, bias = objective.head()
    for start in range(0, len(examples), HELD_OUT_AT_ONCE):
        chosen = examples[start : start + HELD_OUT_AT_ONCE]
        batch = collator(chosen)
        hidden, targets = objective.response_states(batch["input_ids"], batch["attention_mask"], batch["labels"])
        student = objective.transform.apply(torch.nn.functional.linear(hidden.float(), head.float(), bias))
        teacher = concatenate([exact.rows(e.item_id, exact.item(e.item_id).response_ids) for e in chosen]).to_logits()
        total += float(forward_kl(teacher, student, temperature).sum())
        tokens += len(targets)
        best = student.softmax(-1).max(-1)
        sure.append(best.values)
        right.append(best.indices == targets)
    once = np.ones((1, tokens))
    columns = (torch.cat(column).double().numpy() for column in (sure, right))
    return total / tokens, float(calibration_error(*columns, once)[0])
