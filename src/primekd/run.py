"""One command over all notebooks: starts Snakemake, says what it is doing and about how long is left."""

import collections
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from primekd.config import Profile
from primekd.errors import UserError
from primekd.progress import progress_folder
from primekd.provenance import MANIFEST, output_root, project_root, relative_name

# Rough seconds on two cores, measured with `pocket`: only their ratios matter, the clock does the rest.
START = 15  # starting a kernel, loading a model
CAPTURE_ITEM, TRAIN_ITEM, TEST_ITEM = (
    0.3,
    0.3,
    0.2,
)  # generating and scoring; one pass of training; answering and scoring
RULE_NAMES = {"teacher": "prepare the teacher", "report": "write the report"}


def stage_costs(profile: Profile) -> dict[str, float]:
    """Rule -> expected cost of one job of it, in arbitrary units."""
    from primekd.strategies import load_strategies

    data = profile.data
    models = len(load_strategies()) + 2  # control and teacher too
    return {
        "teacher": START,
        "capture": START + CAPTURE_ITEM * data.train_items,
        "distill": START + TRAIN_ITEM * data.train_items * profile.train.epochs,
        "assess": START + models * (START / 3 + TEST_ITEM * data.test_items),
        "report": START / 3,
    }


@dataclass
class RunState:
    """What Snakemake's log says so far."""

    planned: dict[str, int] = field(default_factory=dict)  # rule -> jobs
    finished: collections.Counter = field(default_factory=collections.Counter)
    current: str | None = None  # rule
    label: str = ""
    idle: bool = False  # Snakemake found nothing to run
    since: float = 0.0  # when the current job started, seconds since the epoch

    def read(self, line: str) -> None:
        """Takes in one line of Snakemake's log."""
        if found := re.match(r"(teacher|capture|distill|assess|report)\s+(\d+)\s*$", line):
            self.planned.setdefault(found[1], int(found[2]))
        elif found := re.match(r"(?:local)?rule (\w+):", line):
            self.current, self.label = found[1], RULE_NAMES.get(found[1], found[1])
            self.since = time.time()
        elif (found := re.match(r"\s+wildcards: strategy=(\S+)", line)) and self.current:
            self.label = f"{self.current} {found[1]}"
        elif line.startswith("Nothing to be done"):
            self.idle = True
        elif line.startswith("Finished job") and self.current:
            if self.current in self.planned:  # not the target itself
                self.finished[self.current] += 1
            self.current = None

    def share(self, costs: dict[str, float], within: float) -> float:
        """The share of the whole run that is done; `within` is the share of the current job."""
        total = sum(costs.get(rule, 0) * count for rule, count in self.planned.items())
        done = sum(costs.get(rule, 0) * count for rule, count in self.finished.items())
        if self.current:
            done += costs.get(self.current, 0) * within
        return done / total if total else 0.0


def run_study(profile: Profile, profile_argument: str, cores: int | None = None, force: bool = False) -> bool:
    """Runs every notebook that has to be run; returns False if nothing was to be done.

    Raises:
        UserError: another run of this profile is under way, or a notebook failed; the sentence is the notebook's own.
    """
    with only_one(profile) as lock:
        forget_lost_stages(profile)
        log = profile.runs / "snakemake.log"
        command = snakemake_command(profile_argument, cores, force)
        start, costs, state = time.monotonic(), stage_costs(profile), RunState()
        environment = os.environ | {"PRIMEKD_ROOT": str(project_root()), "PRIMEKD_OUTPUT": str(output_root())}
        with open(log, "w", encoding="utf-8") as sink, open(log, encoding="utf-8", errors="replace") as lines:
            process = subprocess.Popen(
                command,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
            lock.truncate(0)
            lock.write(str(process.pid))
            lock.flush()
            try:
                watch(process, lines, profile, state, costs, start)
            except KeyboardInterrupt:
                stop(process)
                raise
        text = log.read_text(encoding="utf-8", errors="replace")
        if process.returncode:
            raise UserError(explain_failure(text, log))
        return not state.idle


def forget_lost_stages(profile: Profile) -> None:
    """Removes the executed copy of every stage whose result is gone, and of the stages behind it.

    Snakemake knows the copies alone (it would delete signals and adapters before a rerun if they were its outputs), and
    it makes no missing file anew on which nothing missing depends.
    """
    from primekd.strategies import load_strategies

    done = profile.runs / "notebooks"
    assessed, reported = done / "assessment" / "assess.ipynb", done / "report.done"
    behind_students = [assessed, reported]
    lost: list[Path] = []
    if profile.prepare and not (project_root() / profile.prepare.output).is_file():
        lost += [done / "teacher.done", *behind_students]
    for name, strategy in load_strategies().items():
        captured, distilled = done / name / "inference_gsm8k.ipynb", done / name / "distill.ipynb"
        if strategy.teacher and not (profile.signals_folder(name) / MANIFEST).is_file():
            lost += [captured, distilled, *behind_students]
        if not (profile.student_folder(name) / MANIFEST).is_file():
            lost += [distilled, *behind_students]
    if not (profile.logs / MANIFEST).is_file():
        lost += behind_students
    if not (profile.logs / "report.html").is_file():
        lost.append(reported)
    for copy in lost:
        copy.unlink(missing_ok=True)


def snakemake_command(profile_argument: str, cores: int | None, force: bool) -> list[str]:
    """The call of Snakemake. Its own lock is replaced by `only_one`: a killed run must not need an unlock."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(project_root() / "workflow" / "Snakefile")]
    command += ["--directory", str(output_root()), "--cores", str(cores or "all"), "--rerun-incomplete", "--nolock"]
    if force:
        command.append("--forceall")
    if profile_argument.endswith((".yaml", ".yml")):
        profile_argument = str(Path(profile_argument).resolve())
    return [*command, "--config", f"profile={profile_argument}"]


@contextlib.contextmanager
def only_one(profile: Profile):
    """Holds a lock on the profile's runs folder and yields its file.

    The kernel frees the lock when every process that holds the file has ended, however it ended. Snakemake is handed
    the file too: should this process be killed alone, a second run is refused while the first one's jobs go on.
    """
    profile.runs.mkdir(parents=True, exist_ok=True)
    with open(profile.runs / "run.lock", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise UserError(
                f"Another run of the profile {profile.name} is under way (process {owner}): wait for it or stop it."
            ) from error
        yield handle


def stop(process: subprocess.Popen) -> None:
    """Ends Snakemake and everything it started; what is on disk stays."""
    for kind, patience in ((signal.SIGINT, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def watch(process, lines, profile: Profile, state: RunState, costs: dict[str, float], start: float) -> None:
    """Follows the log until the process ends, and reports on the way."""
    interactive, said, last, rest = sys.stdout.isatty(), "", 0.0, ""
    while True:
        ended = process.poll() is not None
        *whole, rest = (rest + lines.read()).split("\n")  # the last line may still be in the writing
        for line in whole:
            before = state.current
            state.read(line)
            if before in state.planned and state.current is None and line.startswith("Finished"):
                say(
                    f"  done: {state.label} ({sum(state.finished.values())} of {sum(state.planned.values())} steps)",
                    interactive,
                )
        if state.current:
            detail, within = newest_progress(profile)
            if state.current == "assess":
                within = answered_share(profile, state.since)  # the bar on the screen is one model's
            text = describe(state, costs, detail, within, time.monotonic() - start)
            due = 1 if interactive else 30
            if text != said and time.monotonic() - last > due:
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


def newest_progress(profile: Profile) -> tuple[str, float]:
    """The running stage's own progress: text, and the share of it that is done."""
    files = sorted(progress_folder(profile).glob("*.json"), key=lambda p: p.stat().st_mtime)
    if not files or time.time() - files[-1].stat().st_mtime > 120:
        return "", 0.0
    try:
        entry = json.loads(files[-1].read_text())
    except (OSError, json.JSONDecodeError):
        return "", 0.0
    if entry["state"] != "running" or not entry["total"]:
        return "", 0.0
    return f"{entry['stage']}: {entry['done']}/{entry['total']} {entry['unit']}s", entry["done"] / entry["total"]


def answered_share(profile: Profile, since: float) -> float:
    """The share of the assessment's models that have answered since it started."""
    from primekd.strategies import load_strategies

    answered = [p for p in progress_folder(profile).glob("answer *.json") if p.stat().st_mtime >= since]
    return min(1.0, len(answered) / (len(load_strategies()) + 1))


def describe(state: RunState, costs: dict[str, float], detail: str, within: float, elapsed: float) -> str:
    """One line: what is being done, how far the run is, how long it has taken and may take."""
    share = state.share(costs, within)
    left = f"about {clock(elapsed * (1 - share) / share)} left" if share > 0.02 else "time left not known yet"
    return f"  {detail or state.label + ': starting'} | {share:4.0%} | {clock(elapsed)} so far, {left}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def explain_failure(text: str, log: Path) -> str:
    """The stage's own sentence, if it said one, else where to look."""
    said = re.findall(r"^primekd: (.+)$", text, re.M)
    if said:
        return f"{said[-1]} (The whole log is {relative_name(log)}.)"
    return f"A stage failed; the end of {relative_name(log)} says:\n{text[-1500:]}"
