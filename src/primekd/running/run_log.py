"""Reads Snakemake's log while it is written: which jobs are planned, under way, finished and failed."""

import collections
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
