"""A study on a Slurm cluster: what must be there, what is still queued, and what a job that failed has said."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from primekd.config import Profile
from primekd.foundation import UserError, output_root, read_mapping, relative_name
from primekd.running.run_progress import Job

NTASKS = re.compile(r"(?:^|[\s'\"])(?:--ntasks|-n(?=[\s=\d]))")


@dataclass(frozen=True)
class Cluster:
    """A Snakemake profile for a Slurm cluster, and how many jobs capture one strategy together."""

    folder: Path
    capture_workers: int = 1

    def arguments(self, profile: Profile) -> list[str]:
        arguments = ["--profile", str(self.folder.resolve()), "--slurm-jobname-prefix", job_prefix(profile)]
        # Left to itself the executor asks sacct wherever it is installed. Where accounting is off, that answers nothing
        # but errors, and the run would wait for ever.
        settings = read_mapping(self.folder / "config.yaml")
        if "slurm-status-command" not in settings and not ask(["sacct", "-X", "--name=none"])[0]:
            arguments += ["--slurm-status-command", "squeue"]
        return arguments


def open_cluster(folder: Path, capture_workers: int) -> Cluster:
    """Checks that jobs can be submitted from here with the Snakemake profile in `folder`. Raises UserError if Slurm or
    its executor is missing, or the profile is none or would ask for the wrong thing."""
    settings, file = read_mapping(folder / "config.yaml"), f"{relative_name(folder)}/config.yaml"
    if settings.get("executor") != "slurm":
        raise UserError(f"{file} does not say `executor: slurm`: see configs/slurm.")
    asked = asked_resources(settings, file)
    for rule, wanted in asked.items():
        if not any(str(wanted.get(name) or "0") != "0" for name in ("gpu", "gres")):
            continue
        if "tasks" in wanted:
            fix = "which becomes --ntasks-per-gpu: leave `tasks` out"
            raise UserError(f"{file} sets `tasks` beside GPUs for {rule}, {fix}.")
        if NTASKS.search(str(wanted.get("slurm_extra") or "")):
            fix = "which would start its notebook several times: leave --ntasks out"
            raise UserError(f"{file} gives --ntasks in `slurm_extra` beside GPUs for {rule}, {fix}.")
    if "capture" in asked and (missing := {"reference", "primed", "score"} - asked.keys()):
        fix = "which would get no GPU: copy it from configs/slurm/config.yaml"
        raise UserError(f"{file} asks for nothing for the rule {' and '.join(sorted(missing))}, {fix}.")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        raise UserError("Snakemake's Slurm executor is not installed: `pip install -e '.[slurm]'`.")
    if shutil.which("sbatch") is None:
        raise UserError("There is no sbatch here: run this on a machine from which Slurm jobs are submitted.")
    return Cluster(folder, capture_workers)


def asked_resources(settings: dict, file: str) -> dict[str, dict]:
    """What a Snakemake profile asks for, as mappings or lists of `resource=value` and `rule:resource=value`: of every
    job, and of each rule that it names, defaults included. Raises UserError if the settings have neither form."""
    defaults, own = settings.get("default-resources") or {}, settings.get("set-resources") or {}
    if isinstance(defaults, list):
        defaults = dict(_divided(entry, "=", "default-resources", file) for entry in defaults)
    if isinstance(own, list):
        listed, own = own, {}
        for entry in listed:
            rule, resource = _divided(entry, ":", "set-resources", file)
            own.setdefault(rule, {}).update([_divided(resource, "=", "set-resources", file)])
    for name, values in (("default-resources", defaults), ("set-resources", own)):
        if not isinstance(values, dict):
            raise UserError(f"{file}: {name} is no mapping of resources to values: see configs/slurm.")
    for rule, values in own.items():
        if not isinstance(values, dict):
            raise UserError(f"{file}: set-resources names no resources for {rule}: write some, or leave {rule} out.")
    return {"every job": defaults} | {rule: defaults | values for rule, values in own.items()}


def _divided(entry: object, sign: str, name: str, file: str) -> tuple[str, str]:
    left, found, right = str(entry).partition(sign)
    if not found:
        raise UserError(f"{file}: {name} has an entry {entry!r} without {sign!r}: see configs/slurm.")
    return left.strip(), right.strip()


def job_prefix(profile: Profile) -> str:
    """What the names of this study's jobs begin with, in the characters and the length (50) that the executor takes; a
    hash tells apart what replaced or cut characters would not."""
    digest = hashlib.sha256(f"{profile.name}\0{output_root().resolve()}".encode()).hexdigest()[:8]
    return f"primekd-{re.sub(r'[^A-Za-z0-9_-]', '-', profile.name)[:32]}-{digest}"


def ask(command: list[str]) -> tuple[bool, str]:
    """Runs one of Slurm's commands; returns whether it went well, and what it printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, done.stdout if done.returncode == 0 else done.stderr.strip()


def queued_jobs(profile: Profile) -> list[str]:
    """Numbers of the jobs of this profile and output folder that Slurm still has. Raises UserError if it is silent."""
    well, said = ask(["squeue", "--me", "--noheader", "--format=%i|%j|%Z"])
    if not well:
        raise UserError(f"Slurm does not answer: {said}")
    rows = [line.split("|", 2) for line in said.splitlines()]
    ours = re.compile(re.escape(job_prefix(profile)) + "_[0-9a-f-]{36}")  # the executor adds a UUID of the run
    return [number for number, name, folder in rows if ours.fullmatch(name) and folder == str(output_root().resolve())]


ENDS = {
    "CANCELLED": "was cancelled (scancel, or an administrator): run it again to go on where it stopped.",
    "TIMEOUT": "ran past its time limit: run it again to go on where it stopped, or give it more `runtime`.",
    "OUT_OF_MEMORY": "needed more memory than it had asked for: give it more `mem_mb`.",
    "NODE_FAIL": "lost its node: run it again to go on where it stopped.",
    "BOOT_FAIL": "got a node that did not start: run it again.",
    "PREEMPTED": "was preempted: run it again to go on where it stopped.",
}


def explain_job(job: Job) -> str:
    """One sentence about a job that failed: its own, if it said one, else what Slurm says."""
    if refused := re.search(r"sbatch: error: ([^']+)", job.problem):
        return f"{job.label}: Slurm refused the job: {refused[1]}."
    text = job.log.read_text(encoding="utf-8", errors="replace") if job.log and job.log.is_file() else ""
    status = re.search(r"SLURM status is: '(\w+)", job.problem)
    ended = status and status[1] in ENDS  # then the job's own last word may be that it was stopped
    said = [line for line in re.findall(r"^primekd: (.+)$", text, re.M) if not (ended and line.startswith("stopped;"))]
    if said:
        return f"{job.label}: {said[-1]} (Slurm job {job.slurm}.)"
    where = f" Its log is {relative_name(job.log)}." if text else ""
    return f"{job.label}: Slurm job {job.slurm} {ENDS.get(status[1] if status else '', 'failed.')}{where}"
