"""Training one student on several processes: which one this is, and starting them with `accelerate launch`."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml

from primekd.config import Profile
from primekd.foundation import UserError, open_bar, progress_path, project_root, read_json, relative_name, write_text
from primekd.foundation.storage import read_mapping

LAUNCHER = "PRIMEKD_LAUNCHER_PID"
LAUNCHERS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")  # the distributed_type that training was written for


def process_count() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Whether this process writes and speaks for all."""
    return int(os.environ.get("RANK", 0)) == 0


def join_processes() -> None:
    """Meets the other processes, and ends with the launcher. Raises UserError if there are too few GPUs."""
    import torch
    from accelerate import PartialState

    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if 0 < gpus < here:
        raise UserError(f"{here} processes were asked for and there are {gpus} GPUs here: lower launch.processes.")
    if launcher := os.environ.get(LAUNCHER):
        threading.Thread(target=_end_with, args=(int(launcher),), daemon=True).start()
    PartialState(cpu=not gpus)


def leave_processes() -> None:
    from accelerate import PartialState

    PartialState().destroy_process_group()


def _end_with(process: int) -> None:
    # A killed launcher cannot end its workers, and they would write the same checkpoints as the next training.
    while True:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(2)


def launch(profile: Profile, strategy: str, seed: int, stage: str) -> None:
    """Runs `primekd distill` on `profile.launch.processes` processes and waits for it; launch.log in
    runs/<profile>/launch/ has what they print. Raises UserError if the configuration cannot be used, or a process
    failed, in its own words."""
    config, processes = _config_file(profile), profile.launch.processes
    folder = profile.runs / "launch" / stage.replace(" ", "-")
    log = folder / "launch.log"
    written = folder / f"{profile.name}.yaml"
    write_text(written, yaml.safe_dump(profile.model_dump(mode="json", exclude={"name"}, exclude_none=True)))
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
        "--num_processes", str(processes), "--main_process_port", "0", "-m", "primekd.cli",
        "distill", strategy, "--profile", str(written), "--seed", str(seed),
    ]  # fmt: skip
    print(f"{stage}: {processes} processes ({config.name}); their messages are in {relative_name(log)}.")
    environment = os.environ | {LAUNCHER: str(os.getpid())}
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            _follow(process, progress_path(profile, stage), stage)
        finally:
            if process.poll() is None:  # Ctrl-C: let the launcher end its workers
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
    if process.returncode:
        raise UserError(_reason(log, stage, process.returncode))


def _config_file(profile: Profile) -> Path:
    import torch

    usual = f"configs/accelerate/{'multi-gpu' if torch.cuda.is_available() else 'cpu'}.yaml"
    name = profile.launch.accelerate or usual
    path = project_root() / name
    if not path.is_file():
        raise UserError(f"No accelerate configuration {name}: mend launch.accelerate, or leave it out.")
    settings, gpus = read_mapping(path), torch.cuda.device_count()
    # No adapter's identity holds what the file says, so that nothing in it may change one. `fp16` is its older name;
    # a bare `no` is YAML's false, on which accelerate stumbles.
    if settings.get("mixed_precision", "no") != "no" or settings.get("fp16"):
        fix = 'write mixed_precision: "no", with the quotes, and set student.dtype in the profile'
        raise UserError(f"{name} must leave the student's precision alone: {fix}.")
    if settings.get("distributed_type") not in LAUNCHERS:
        kind = settings.get("distributed_type")
        raise UserError(f"{name} has the distributed_type {kind!r}: set it to {', '.join(LAUNCHERS)}.")
    if settings.get("num_machines", 1) != 1:
        raise UserError(f"{name} asks for several machines: a student is trained on one, set num_machines to 1.")
    if settings.get("use_cpu"):
        return path
    if not gpus:
        raise UserError(f"{name} is for GPUs and CUDA finds none: use configs/accelerate/cpu.yaml, or one process.")
    if profile.launch.processes > gpus:
        raise UserError(f"{profile.launch.processes} processes need as many GPUs, {gpus} are here: lower --processes.")
    return path


def _follow(process: subprocess.Popen, progress: Path, stage: str) -> None:
    """A bar of the main process's progress until the launcher ends."""
    before = read_json(progress) if progress.is_file() else None  # of an earlier training
    with open_bar(unit="step", desc=stage) as bar:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            if progress.is_file() and (state := read_json(progress)) != before:
                bar.total = state["total"]
                bar.update(state["done"] - bar.n)
            if process.returncode is not None:
                return


def _reason(log: Path, stage: str, status: int) -> str:
    """One sentence for a launch that failed, out of its log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if said := re.search(r"^(?:\[rank\d+\]: ?)?primekd: (.+)$", text, re.MULTILINE):
        return said[1]
    place = f"See {relative_name(log)}; run the same command again to go on from the newest checkpoint."
    if killed := re.search(r"exitcode\s*: -(\d+)", text):
        name = signal.Signals(int(killed[1])).name
        fix = " Most often memory ran out: lower train.micro_batch_size." if name == "SIGKILL" else ""
        return f"{stage}: a process was ended by {name}.{fix} {place}"
    raised = re.search(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception): .+)$", text, re.MULTILINE)
    return f"{stage}: a process failed ({raised[1] if raised else f'status {status}'}). {place}"
