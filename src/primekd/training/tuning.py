"""Several learning rates: one student a rate, of which the one with the lowest validation loss is kept. Every arm
chooses for itself, by the cross-entropy on the gold solutions of the one validation split, not the test's."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from primekd.config import TrainConfig
from primekd.foundation import AMOUNTS, MANIFEST, UserError, now, read_manifest, summed, write_manifest, write_text
from primekd.foundation.memory import release_gpu_memory
from primekd.foundation.stage_code import maker_of, mixed, stands
from primekd.foundation.tables import Flag, Name, read_records, write_table
from primekd.models.students import written
from primekd.training import habits

FILE = "tuning.csv"
CURVES = "tuning"  # the folder of all rates' loss curves
OWN = ("inputs", "inputs_sha256", "outputs", "start", "end", "validation_loss", "environment", "code", "kind")


@dataclass(frozen=True)
class TuningRow:
    """One learning rate of one student. `validation_loss`: nats a token of its weights; None where it diverged."""

    student: Name
    learning_rate: float
    validation_loss: float | None
    chosen: Flag


def choose(losses: dict[float, float | None]) -> float:
    """The rate with the lowest validation loss, None where it diverged. Raises UserError if all of them did."""
    finite = {rate: loss for rate, loss in losses.items() if loss is not None and math.isfinite(loss)}
    if not finite:
        rates = ", ".join(f"{rate:g}" for rate in losses)
        raise UserError(f"The training diverged under every rate of train.learning_rate ({rates}): name lower ones.")
    return min(finite, key=lambda rate: (finite[rate], rate))


def tune(
    folder: Path, stage: str, train: TrainConfig, inputs: dict[str, Any], checkpoints: Path, code: dict[str, Any],
    run: Callable[..., None],
) -> None:  # fmt: skip
    """Trains a student under each rate by `run` and writes the chosen one into `folder`, with tuning.csv and all loss
    curves; until then single ones lie under `checkpoints`: none is trained twice. Raises UserError if all diverged."""
    from primekd.training.checkpoints import Diverged

    start, made = now(), {}
    for rate in train.rates:
        own, place = train.model_copy(update={"learning_rate": rate}), checkpoints / f"{rate:g}"
        wanted, label, made[rate] = inputs | {"train": own.model_dump(mode="json")}, f"{stage} ({rate:g})", {}
        try:
            if not stands(place, wanted, code, label, "this rate's student is trained."):
                run(place, stage, wanted, place / "checkpoints", own)
            made[rate] = read_manifest(place / MANIFEST)
        except Diverged as error:
            print(f"{label}: {error}")
        release_gpu_memory()
    losses = {rate: manifest.get("validation_loss") for rate, manifest in made.items()}
    best = choose(losses)
    rows = [TuningRow(folder.name, rate, loss, rate == best) for rate, loss in losses.items()]
    outputs = [*_take(checkpoints, folder, made, best), write_table(folder / FILE, TuningRow, rows)]
    facts = {key: value for key, value in made[best].items() if key not in OWN} | {"start": start, "end": now()}
    trained = [manifest for manifest in made.values() if manifest]  # not those that diverged
    facts |= {key: value for key, value in summed(trained).items() if key in AMOUNTS}
    facts["response_tokens"] = sum(manifest.get("response_tokens") or 0 for manifest in trained)
    if makers := mixed({f"rate {rate:g}": maker_of(manifest) for rate, manifest in made.items() if manifest}):
        facts["mixed"] = makers
    tuning = [asdict(row) for row in rows]
    write_manifest(folder, made[best]["kind"], inputs, outputs, code=code, tuning=tuning, **facts)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _take(source: Path, folder: Path, made: dict[float, dict[str, Any]], best: float) -> list[Path]:
    """Copies the chosen student's files, and every rate's curve as tuning/<rate>.csv; returns them."""
    chosen, part = source / f"{best:g}", made[best]["kind"]  # adapter or model
    files = written(folder / part, lambda target: shutil.copytree(chosen / part, target, dirs_exist_ok=True))
    texts = {"loss_curve.csv": chosen / "loss_curve.csv", habits.FILE: chosen / habits.FILE}
    texts |= {f"{CURVES}/{r:g}.csv": source / f"{r:g}" / "loss_curve.csv" for r, manifest in made.items() if manifest}
    for name, file in texts.items():
        if file.is_file():  # not every student writes text of its own
            write_text(folder / name, file.read_text(encoding="utf-8"))
            files.append(folder / name)
    return files


def read_tuning(folders: Sequence[Path]) -> list[TuningRow]:
    """The rows of several students' tuning.csv, of those that chose. Raises UserError if one cannot be read."""
    return [row for folder in folders if (folder / FILE).is_file() for row in read_records(folder / FILE, TuningRow)]
