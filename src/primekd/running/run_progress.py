"""How far a run is: what the progress files of its jobs say, in one line with the time that is left."""

import itertools
from pathlib import Path

from primekd.config import Profile
from primekd.config.arms import arms_of
from primekd.foundation.errors import UserError
from primekd.foundation.progress import StageState, progress_folder, progress_path, read_state
from primekd.running.run_log import Job, RunState


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
        return f"{job.stage}: finishing", 1.0
    if entry.state != "running" or not entry.total:
        return f"{job.label}: held-out fit" if answered else "", answered or 0.0
    text = f"{entry.stage}: {entry.done}/{entry.total} {entry.unit}s"
    return text, entry.done / entry.total if answered is None else answered


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


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
