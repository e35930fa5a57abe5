"""How far a run is: its jobs, by Snakemake's log while it is written and by their progress files, and the time left."""

import collections
import itertools
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from primekd.config import Profile, arms_of
from primekd.foundation import StageState, UserError, clock, now, progress_folder, progress_path, read_state

SILENCE = 30 * 60  # seconds without a word after which a stage on another machine counts as lost
NO_RULES = ("all", "total")  # what else stands in Snakemake's table of jobs


@dataclass
class Job:
    """One job of one rule. `stage` is the name under which it keeps its progress, if it keeps any."""

    rule: str
    label: str
    since: float  # when it was started or submitted, seconds since the epoch
    stage: str = ""
    wanted: str = ""  # the resources that it asks for, as Snakemake prints them
    slurm: str | None = None  # Slurm's number
    log: Path | None = None  # what a job on another machine says goes to a file of its own
    problem: str = ""  # what became of a job that failed, in Snakemake's words


@dataclass
class RunState:
    """What Snakemake's log says so far; lines of several jobs may interleave. `labels`: what a study calls its rules,
    and the file of their progress, where that is not the rule's own name."""

    labels: Mapping[str, str] = field(default_factory=dict)
    planned: dict[str, int] = field(default_factory=dict)  # rule -> jobs
    finished: collections.Counter = field(default_factory=collections.Counter)
    running: dict[int, Job] = field(default_factory=dict)  # by Snakemake's number
    failed: list[Job] = field(default_factory=list)
    idle: bool = False  # Snakemake found nothing to run
    _block: Job | None = None  # the job that the indented lines now being read are about
    _failing: bool = False  # they say that it failed

    def read(self, line: str) -> str | None:
        """Takes in one line of the log; returns what there is to say about it, if a job ended."""
        if (found := re.match(r"(\w+)\s+(\d+)\s*$", line)) and found[1] not in NO_RULES:
            self.planned.setdefault(found[1], int(found[2]))
        elif found := re.match(r"(Error in )?(?:local)?rule (\w+):", line):
            self._failing = bool(found[1])
            name = self.labels.get(found[2], found[2])
            self._block = Job(found[2], name, time.time(), name)
        elif self._block and line.startswith("    "):
            return self._read_detail(self._block, line.strip())
        elif found := re.match(r"Job (\d+) has been submitted with SLURM jobid (\d+) \(log: (.+)\)\.", line):
            if job := self.running.get(int(found[1])):
                job.slurm, job.log = found[2], Path(found[3])
        elif line.startswith("Nothing to be done"):
            self.idle = True
        elif found := re.match(r"Finished jobid: (\d+)", line):
            job = self.running.pop(int(found[1]), None)
            if job and job.rule in self.planned:  # not the target itself
                self.finished[job.rule] += 1
                return f"done: {job.label} ({sum(self.finished.values())} of {sum(self.planned.values())} steps)"
        return None

    def _read_detail(self, job: Job, line: str) -> str | None:
        key, _, value = line.partition(": ")
        if key == "message":
            job.problem = value
        elif key == "wildcards":
            wildcards = dict(one.split("=", 1) for one in value.split(", "))
            named = [wildcards[name] for name in ("strategy", "student", "control", "models") if name in wildcards]
            job.stage = f"{job.rule.removesuffix('_part')} {named[0] if named else ''}"
            job.label = job.stage.replace("+", " + ")
            if "worker" in wildcards:
                job.label += f", part {wildcards['worker']}"
        elif key == "resources":
            job.wanted = value
        elif key == "jobid" and not self._failing:
            self.running[int(value)] = job
        elif key == "jobid" and (failed := self.running.pop(int(value), None)):
            failed.problem = job.problem
            self.failed.append(failed)
            return f"failed: {failed.label}" + (f" (Slurm job {failed.slurm})" if failed.slurm else "")
        return None

    def share(self, costs: dict[str, float], within: dict[int, float]) -> float:
        """The share of the whole run that is done; `within` is the share that each running job has done of itself."""
        total = sum(costs.get(rule, 0) * count for rule, count in self.planned.items())
        done = sum(costs.get(rule, 0) * count for rule, count in self.finished.items())
        done += sum(costs.get(job.rule, 0) * within.get(number, 0) for number, job in self.running.items())
        return done / total if total else 0.0


def job_progress(profile: Profile, job: Job) -> tuple[str, float]:
    """How far a running job is, by the file that its stage keeps: text, and the share of it that is done. A file that
    was last written before the job was started or submitted is an earlier run's."""
    if job.rule == "score":
        return score_progress(profile, job)
    pattern = "answer *.json" if job.rule == "assess" else f"{job.stage}.json"
    current = [p for p in progress_folder(profile).glob(pattern) if written(p) >= job.since]
    if not current:
        return "", 0.0
    # An assessment of all models in one job keeps a file a model, and measures held-out fit between two of them.
    answered = min(1.0, len(current) / (len(arms_of(profile)) + 1)) if job.rule == "assess" else None
    entry = since(max(current, key=written), job)
    if entry is None:
        return "", answered or 0.0
    if entry.state == "done" and entry.done == entry.total and answered is None:
        return further_progress(profile, job) or f"{job.stage}: finishing", 1.0
    if entry.state != "running" or not entry.total:
        return f"{job.label}: held-out fit" if answered else "", answered or 0.0
    text = f"{entry.stage}: {entry.done}/{entry.total} {entry.unit}s"
    return text, entry.done / entry.total if answered is None else answered


def further_progress(profile: Profile, job: Job) -> str:
    """How far the training of an arm's other seeds is, which one job trains behind the first where arms are many."""
    seeds = profile.seeds.get(job.stage.removeprefix("distill "), ())
    found = [since(progress_path(profile, f"{job.stage}-seed{seed}"), job) for seed in seeds]
    running = [entry for entry in found if entry and entry.state == "running" and entry.total]
    return "".join(f"{entry.stage}: {entry.done}/{entry.total} {entry.unit}s" for entry in running[:1])


def written(path: Path) -> float:
    """When a file was last written, seconds since the epoch; 0 where it is no more."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def since(path: Path, job: Job) -> StageState | None:
    """What a progress file says that was written after a job began; None for another one, a damaged one, or none."""
    try:
        return read_state(path) if written(path) >= job.since else None
    except UserError:  # `primekd status` says what is wrong with it; the run goes on
        return None


def score_progress(profile: Profile, job: Job) -> tuple[str, float]:
    """`job_progress` of a scoring job: of each model's work all kinds count alike."""
    said, share, models = "", 0.0, job.stage.removeprefix("score ").split("+")
    kinds = ["answer", *(view.answer_set for view in profile.answer_sets()), "held-out fit"]
    kinds += ["forgetting"] if profile.assess.forgetting_items else []
    for place, (model, kind) in enumerate(itertools.product(models, kinds)):
        entry = since(progress_path(profile, f"{kind} {model}"), job)
        if entry and entry.total:
            said = f"{entry.stage}: {entry.done}/{entry.total} {entry.unit}s"
            # What was there already leaves no word, and all that stands before it in this order is done.
            share = (place + entry.done / entry.total) / (len(kinds) * len(models))
    return said, share


def describe(state: RunState, costs: dict[str, float], progress: dict[int, tuple[str, float]], elapsed: float) -> str:
    """One line: what is being done, how far the run is, how long it has taken and may take."""
    share = state.share(costs, {number: within for number, (_, within) in progress.items()})
    left = f"about {clock(elapsed * (1 - share) / share)} left" if share > 0.02 else "time left not known yet"
    details = dict.fromkeys(  # parts of one capture share their progress, and are named once
        text or f"{job.label}: {'queued or starting' if job.slurm else 'starting'}"
        for job, (text, _) in ((state.running[number], found) for number, found in progress.items())
    )
    shown = list(details)[:3] + ([f"{len(details) - 3} more"] if len(details) > 3 else [])
    return f"  {', '.join(shown)} | {share:4.0%} | {clock(elapsed)} so far, {left}"


def stage_states(profile: Profile) -> list[dict[str, Any]]:
    """One entry a stage that was ever started, oldest first: stage, done, total, unit, started, updated, and state:
    running, done, stopped, or lost (its process is there no more). Raises UserError if one of the files is damaged."""
    found = [read_state(path) for path in progress_folder(profile).glob("*.json")]
    states = [entry.model_dump() | ({"state": "lost"} if is_lost(entry) else {}) for entry in found if entry]
    return sorted(states, key=lambda s: (s["started"], s["stage"]))


def is_lost(entry: StageState) -> bool:
    """Whether a stage was killed: its process is gone or, where that cannot be seen from here, has long been silent."""
    if entry.state != "running":
        return False
    if entry.host == socket.gethostname():
        return not psutil.pid_exists(entry.pid)
    silent = datetime.fromisoformat(now()) - datetime.fromisoformat(entry.updated)
    return silent.total_seconds() > SILENCE
