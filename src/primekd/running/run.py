"""One command over all notebooks: starts Snakemake, says what it is doing and about how long is left."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

from primekd.assessment.inside import FOLDER as INSIDE
from primekd.config import Profile, profile_files
from primekd.config.arms import arms_file
from primekd.foundation import MANIFEST, UserError, ask_anew, forget_wishes, output_root, project_root, relative_name
from primekd.foundation.stage_code import forced_since, is_older
from primekd.foundation.storage import locked
from primekd.running.run_progress import Job, RunState, describe, job_progress
from primekd.running.slurm import Cluster, ask, explain_job, queued_jobs
from primekd.studies.study import Study, find_study


def run_study(
    profile: Profile, profile_argument: str, cores: int | None = None, force: bool = False,
    cluster: Cluster | None = None, force_stages: Collection[str] = (), only: str | None = None,
) -> bool:  # fmt: skip
    """Runs every stage that has to be run; returns False if nothing was to be done. `only` stops behind a part of the
    study. With `cluster` every stage is a Slurm job. All results of `force_stages` are made anew; a run that is killed
    meanwhile goes on with those still missing. Raises UserError if there is no such stage, the study cannot run the
    profile, another run of it is under way, or a notebook failed, with its own sentence."""
    study = open_study(profile, force_stages, only)
    with only_one(profile) as lock:
        if jobs := queued_beside(profile, cluster):  # two would write the same files
            fix = f"wait for them or `scancel {' '.join(jobs)}`"
            raise UserError(f"Jobs of an earlier run are still queued or running: {fix}.")
        ask_anew(profile, force_stages)
        forget_lost_stages(profile)
        log = profile.runs / "snakemake.log"
        command = snakemake_command(profile, profile_argument, cores, force, cluster, only)
        state, start, began = RunState(study.labels), time.monotonic(), time.time()
        settings = [*profile_files(profile_argument), arms_file()]
        log.write_bytes(b"")
        # Appended to by all: a notebook's bars come through a file of their own, and would be written over.
        with open(log, "a", encoding="utf-8") as sink, open(log, encoding="utf-8", errors="replace") as lines:
            streams = {"stdout": sink, "stderr": subprocess.STDOUT, "pass_fds": [lock.fileno()]}
            process = subprocess.Popen(command, env=environment(), start_new_session=True, **streams)
            lock.truncate(0)
            lock.write(str(process.pid))
            lock.flush()
            try:
                watch(process, lines, profile, state, cluster.capture_workers if cluster else 1, start)
            except KeyboardInterrupt:
                stop(process, patience=90 if cluster else 10)
                if cluster and (jobs := queued_jobs(profile)):  # whose numbers Snakemake had not read yet
                    ask(["scancel", *jobs])
                raise
        if changed := [p for p in settings if not p.is_file() or p.stat().st_mtime > began]:
            names = ", ".join(map(relative_name, changed))
            print(f"{names}: changed while this ran. With --force, the next run asks every stage again.", flush=True)
        if process.returncode:
            raise UserError(explain_failure(log.read_text(encoding="utf-8", errors="replace"), log, state.failed))
        forget_wishes(profile, not_yet_anew(profile) - {*force_stages} if only else ())
        return not state.idle


def open_study(profile: Profile, force_stages: Collection[str], only: str | None = None) -> Study:
    """A profile's study. Raises UserError if it cannot run the profile, or a stage is none that can be forced, or is of
    a part that is not asked for."""
    study = find_study(profile)
    if unknown := [stage for stage in force_stages if stage not in study.forced]:
        raise UserError(f"--force-stage {unknown[0]}: there is no such stage; choose one of {', '.join(study.forced)}.")
    if INSIDE in force_stages and only != INSIDE:
        raise UserError(f"--force-stage {INSIDE}: a whole run does not look inside: add --only {INSIDE}.")
    study.refuse(profile)
    return study


def not_yet_anew(profile: Profile) -> set[str]:
    """The stages that are to be made anew, of a run that broke off, of which a part of the study left results."""
    from primekd.running.publishing import FORCED_BY, results_of

    named = ((FORCED_BY.get(stage, stage), folder / MANIFEST) for stage, _, folder in results_of(profile))
    return {stage for stage, path in named if is_older(path, forced_since(profile, stage))}


def planned_jobs(
    profile: Profile, profile_argument: str, cores: int | None, force: bool, cluster: Cluster | None,
    force_stages: Collection[str] = (), only: str | None = None,
) -> list[Job]:  # fmt: skip
    """The jobs that a run would start now, in an order in which they could be; nothing is run, submitted or changed.
    Raises UserError if Snakemake cannot plan the run, or the study cannot run the profile."""
    study = open_study(profile, force_stages, only)
    command = [*snakemake_command(profile, profile_argument, cores, force, cluster, only), "--dry-run"]
    wanted = [rule for stage in force_stages for rule in study.forced[stage]]
    if only is None:  # what is lost; but what is inside the students, which Snakemake would take for asked for, too
        lost = [copy for copy in study.lost(profile) if copy.is_file() and is_planned(copy)]
        wanted += [copy.relative_to(output_root()).as_posix() for copy in lost]
    if wanted:
        command += ["--forcerun", *dict.fromkeys(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    text = done.stdout + done.stderr
    if done.returncode:
        raise UserError(f"Snakemake cannot plan the run; the end of what it says:\n{text[-1500:]}")
    state = RunState(study.labels)
    for line in text.splitlines():
        state.read(line)
    return [job for job in state.running.values() if job.rule in state.planned]


def is_planned(copy: Path) -> bool:
    """Whether a run of the whole study makes an executed copy, as it is shared out today."""
    if copy.name.startswith("captured-") or {"analysis", "inside.done"} & {*copy.parts}:
        return False
    stamps = "+".join(stamp.stem for stamp in copy.parent.glob("*.done")).split("+")  # of scoring jobs
    return copy.parent.name != "scored" or len(stamps) == len(set(stamps))


def queued_beside(profile: Profile, cluster: Cluster | None) -> list[str]:
    """Jobs of an earlier run that Slurm still has, which a run on this machine would be in the way of, too. There it is
    asked where it is; one that does not answer has none."""
    if cluster:
        return queued_jobs(profile)
    with contextlib.suppress(UserError):
        return queued_jobs(profile) if shutil.which("squeue") else []
    return []


def environment() -> dict[str, str]:
    """What Snakemake and every job find in their environment."""
    return os.environ | {"PRIMEKD_ROOT": str(project_root()), "PRIMEKD_OUTPUT": str(output_root())}


def forget_lost_stages(profile: Profile) -> None:
    """Removes the executed copy of every stage whose result is gone or wanted anew, and of the stages behind it.
    Snakemake knows the copies alone (it would delete signals and adapters before a rerun if they were its outputs), and
    it makes no missing file anew on which nothing missing depends."""
    for copy in find_study(profile).lost(profile):
        copy.unlink(missing_ok=True)


def snakemake_command(
    profile: Profile, profile_argument: str, cores: int | None, force: bool, cluster: Cluster | None = None,
    only: str | None = None,
) -> list[str]:  # fmt: skip
    """The call of Snakemake. Its own lock is replaced by `only_one`: a killed run must not need an unlock."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(project_root() / "workflow" / "Snakefile")]
    command += ["--directory", str(output_root()), "--rerun-incomplete", "--nolock"]
    if profile_argument.endswith((".yaml", ".yml")):
        profile_argument = str(Path(profile_argument).resolve())
    if set("{}") & set(profile_argument):
        raise UserError(f"{profile_argument}: a brace is a wildcard to Snakemake: rename the profile, or its folder.")
    # Snakemake strips quotes off a value and reads the rest as a number or YAML, in which 123, a #1 or a: b is no text
    # or half of one; a list of one text in quotes stays what it is.
    settings = [f"profile={json.dumps([profile_argument], ensure_ascii=False)}"]
    settings += [f"only={only}"] if only else []
    if cluster:
        command += cluster.arguments(profile)
        settings += ["slurm=true", f"capture_workers={cluster.capture_workers}"]
    else:
        command += ["--cores", str(cores or "all"), "--keep-going"]  # what does not wait for a failed stage goes on
    if force:
        command.append("--forceall")
        settings.append("force=true")
    return [*command, "--config", *settings]


@contextlib.contextmanager
def only_one(profile: Profile):
    """Holds a lock on the profile's runs folder and yields its file. The kernel frees it when every process that holds
    the file has ended, Snakemake too: should this process be killed alone, its jobs go on, and no second run."""
    profile.runs.mkdir(parents=True, exist_ok=True)
    with open(profile.runs / "run.lock", "a+") as handle:
        if not locked(handle):
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            under_way = f"is under way (process {owner}): wait for it or stop it"
            raise UserError(f"Another run of the profile {profile.name} {under_way}.")
        yield handle


def stop(process: subprocess.Popen, patience: int) -> None:
    """Ends Snakemake and everything it started, cluster jobs included; what is on disk stays."""
    for kind, seconds in ((signal.SIGINT, patience), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def watch(process, lines, profile: Profile, state: RunState, capture_workers: int, start: float) -> None:
    """Follows the log until the process ends, and reports on the way."""
    interactive, said, last, rest, costs = sys.stdout.isatty(), "", 0.0, "", None
    while True:
        ended = process.poll() is not None
        *whole, rest = (rest + lines.read()).split("\n")  # the last line may still be in the writing
        for line in whole:
            if event := state.read(line):
                say(f"  {event}", interactive)
        if state.running:
            costs = costs or find_study(profile).costs(profile, capture_workers, state.planned.get("score", 1))
            progress = {number: job_progress(profile, job) for number, job in state.running.items()}
            text = describe(state, costs, progress, time.monotonic() - start)
            if text != said and time.monotonic() - last > (1 if interactive else 30):
                say(text, interactive, moving=True)
                said, last = text, time.monotonic()
        if ended:
            if interactive:
                print()
            return
        time.sleep(0.2)


def say(text: str, interactive: bool, moving: bool = False) -> None:
    """Prints a line; on a terminal a moving one is written over by the next."""
    if interactive:
        print(f"\r\x1b[2K{text}", end="" if moving else "\n", flush=True)
    else:
        print(text, flush=True)


def explain_failure(text: str, log: Path, failed: list[Job]) -> str:
    """The stages' own sentences, if they said any, else where to look."""
    where = f"(The whole log is {relative_name(log)}.)"
    if on_cluster := [job for job in failed if job.slurm or "sbatch" in job.problem]:
        return " ".join([*dict.fromkeys(map(explain_job, on_cluster)), where])
    if said := re.findall(r"^primekd: (.+)$", text, re.M):
        return f"{' '.join(dict.fromkeys(said))} {where}"
    return f"A stage failed; the end of {relative_name(log)} says:\n{text[-1500:]}"
