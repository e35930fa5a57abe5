"""What `primekd run` reads from Snakemake's log, says of failed jobs and refuses; and what `status` calls lost."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
import yaml
from conftest import write_profile
from typer.testing import CliRunner

import primekd.running.run
from primekd.cli import app
from primekd.config import Profile, load_profile
from primekd.config.arm import CONTROL
from primekd.config.arms import arms_of, default_arms
from primekd.config.deviations import DEVIATIONS
from primekd.foundation import project_root, write_manifest, write_text
from primekd.foundation.errors import UserError
from primekd.foundation.progress import Progress, progress_folder
from primekd.foundation.stage_code import ask_anew, forget_wishes
from primekd.foundation.storage import read_mapping
from primekd.running import slurm
from primekd.running.run import (
    explain_failure,
    forget_lost_stages,
    not_yet_anew,
    only_one,
    planned_jobs,
    queued_beside,
    run_study,
)
from primekd.running.run_progress import Job, RunState, describe, job_progress, stage_states
from primekd.running.slurm import asked_resources, explain_job, job_prefix, open_cluster, queued_jobs
from primekd.studies.priming import STUDY
from primekd.studies.priming import costs as stage_costs
from primekd.studies.study import find_study, trained

BEHIND, TEACHER = {"assessment/assess.ipynb", "report.done"}, "assessment/teacher.ipynb"
OF_CONTROL, OF_AI = SCORED = ["control+base-fine-tune+base-KD", "teacher-KD+ai-KD+reverseKL-KD"]  # as on two cores

pytestmark = pytest.mark.usefixtures("warm")

# As Snakemake 9.27 with snakemake-executor-plugin-slurm 2.8.0 wrote it, inputs and paths shortened.
LOG = """\
Job stats:
job        count
-------  -------
distill        5
teacher        1
capture        4
assess         1
report         1
all            1
total         13

[Sat Nov 21 15:05:28 2026]
rule capture:
    input: runs/ci/notebooks/teacher.done
    jobid: 5
    reason: Missing output files: runs/ci/notebooks/base-KD/inference_gsm8k.ipynb
    wildcards: strategy=base-KD
    resources: tmpdir=<TBD>, mem_mb=400000, runtime=1440, cpus_per_task=32, gpu=8, nodes=1
[Sat Nov 21 15:05:28 2026]
rule capture:
    jobid: 9
    wildcards: strategy=ai-KD
    resources: tmpdir=<TBD>, mem_mb=400000, runtime=1440, cpus_per_task=32, gpu=8, nodes=1
Job 9 has been submitted with SLURM jobid 3 (log: {logs}/rule_capture/ai-KD/3.log).
Job 5 has been submitted with SLURM jobid 4 (log: {logs}/rule_capture/base-KD/4.log).
[Sat Nov 21 15:06:41 2026]
Finished jobid: 5 (Rule: capture)
1 of 13 steps (8%) done
[Sat Nov 21 15:06:41 2026]
Error in rule capture:
    message: SLURM-job '3' failed, SLURM status is: '{status}'. Detailed failure reason unavailable.
    jobid: 9
    log: {logs}/rule_capture/ai-KD/3.log (check log file(s) for error details)
    external_jobid: 3
"""


def read(text: str, state: RunState | None = None) -> tuple[RunState, list[str]]:
    state = state or RunState(STUDY.labels)
    return state, [said for line in text.splitlines() if (said := state.read(line))]


def test_jobs_side_by_side_are_told_apart(tmp_path: Path):
    before_the_end = LOG[: LOG.index("[Sat Nov 21 15:06:41")].format(logs=tmp_path, status="-")
    state, said = read(before_the_end)
    assert {job.label: job.slurm for job in state.running.values()} == {"capture base-KD": "4", "capture ai-KD": "3"}
    assert said == [] and state.planned == {"distill": 5, "teacher": 1, "capture": 4, "assess": 1, "report": 1}
    state, said = read(LOG.format(logs=tmp_path, status="FAILED"))
    assert said == ["done: capture base-KD (1 of 12 steps)", "failed: capture ai-KD (Slurm job 3)"]
    assert not state.running and [job.label for job in state.failed] == ["capture ai-KD"]


def test_a_retried_job_is_under_way_again(tmp_path: Path):
    state, _ = read(LOG.format(logs=tmp_path, status="FAILED"))
    read("rule capture:\n    jobid: 9\n    wildcards: strategy=ai-KD\n", state)
    assert [job.label for job in state.running.values()] == ["capture ai-KD"]


def test_every_job_has_its_own_progress(ci, output: Path):
    state, _ = read(LOG[: LOG.index("[Sat Nov 21 15:06:41")].format(logs=output, status="-"))
    with Progress(ci, "capture ai-KD", 8, "item") as progress:
        progress.advance(6)
        progress._write()
        seen = {number: job_progress(ci, job) for number, job in state.running.items()}
        assert seen == {5: ("", 0.0), 9: ("capture ai-KD: 6/8 items", 0.75)}
        text = describe(state, stage_costs(ci), seen, elapsed=60)
        assert "capture base-KD: queued or starting, capture ai-KD: 6/8 items |" in text
        progress.advance(2)
    share = state.share(stage_costs(ci), {number: within for number, (_, within) in seen.items()})
    assert share == pytest.approx(0.75 * state.share(stage_costs(ci), {5: 0.0, 9: 1.0})) and share > 0
    assert job_progress(ci, state.running[9]) == ("capture ai-KD: finishing", 1.0)
    state.running[9].since = time.time() + 60  # what was written before a job was submitted is an earlier run's
    assert job_progress(ci, state.running[9]) == ("", 0.0)


def test_of_models_that_are_scored_one_after_the_other_each_answers_and_is_then_fitted(ci, output: Path):
    state, _ = read("score   2\nreference  1\nrule score:\n    jobid: 1\n    wildcards: models=control+ai-KD\n")
    state, _ = read("rule reference:\n    jobid: 2\n    reason: x\n", state)
    assert [job.label for job in state.running.values()] == ["score control + ai-KD", "capture held-out"]
    assert job_progress(ci, state.running[1]) == ("", 0.0)
    with Progress(ci, "answer control", 8, "item") as answers, Progress(ci, "answer base-KD", 8, "item"):
        answers.advance(4)
        answers._write()
        assert job_progress(ci, state.running[1]) == ("answer control: 4/8 items", 0.125)
        answers.advance(4)
    with Progress(ci, "held-out fit ai-KD", 4, "item") as fit, Progress(ci, "capture held-out", 8, "item") as reference:
        fit.advance(1)
        fit._write()
        assert job_progress(ci, state.running[1]) == ("held-out fit ai-KD: 1/4 items", 0.8125)
        reference.advance(8)
        reference._write()
        assert job_progress(ci, state.running[2]) == ("capture held-out: 8/8 items", 1.0)
    assert job_progress(ci, state.running[2]) == ("capture held-out: finishing", 1.0)
    state.running[1].since = time.time() + 60
    assert job_progress(ci, state.running[1]) == ("", 0.0)


def test_parts_of_one_capture_are_named_once(ci):
    block = "rule capture_part:\n    jobid: {0}\n    wildcards: strategy=ai-KD, worker={0}\n"
    state, _ = read("capture_part   2\n" + block.format(1) + block.format(2))
    seen = dict.fromkeys(state.running, ("capture ai-KD: 6/8 items", 0.75))
    assert describe(state, stage_costs(ci, 2), seen, 60).count("capture ai-KD") == 1


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    {
        "own sentence": ("FAILED", "...\nprimekd: ai-KD is short of items.\nsrun: error", "ai-KD is short of items."),
        "cancelled": ("CANCELLED", "", "Slurm job 3 was cancelled"),
        "time": ("TIMEOUT", "", "ran past its time limit"),
        "stopped": ("TIMEOUT", "primekd: stopped; run the same command again to go on.", "ran past its time limit"),
        "memory": ("OUT_OF_MEMORY", "", "`mem_mb`"),
        "silent": ("FAILED", "Segmentation fault", "Slurm job 3 failed. Its log is"),
    }.values(),
)
def test_a_failed_slurm_job_is_explained(tmp_path: Path, status: str, text: str, expected: str):
    log = tmp_path / "rule_capture/ai-KD/3.log"
    log.parent.mkdir(parents=True)
    log.write_text(text)
    state, _ = read(LOG.format(logs=tmp_path, status=status))
    said = explain_failure("no sentence", tmp_path / "snakemake.log", state.failed)
    assert said.startswith("capture ai-KD: ") and expected in said and "snakemake.log" in said


def test_a_job_that_slurm_refuses_is_explained():
    problem = "SLURM sbatch failed. The error message was 'sbatch: error: invalid partition specified: nowhere"
    assert "Slurm refused the job: invalid partition specified: nowhere." in explain_job(
        Job("capture", "capture ai-KD", 0.0, problem=problem)
    )


def test_the_shipped_slurm_profiles_ask_for_what_the_paper_needs():
    names = ("slurm", "slurm/two-nodes")
    one, two = (read_mapping(project_root() / "configs" / name / "config.yaml") for name in names)
    for settings in (one, two):
        assert settings["set-resources"]["distill"] | {"gpu": 1, "nodes": 1} == settings["set-resources"]["distill"]
        for wanted in settings["set-resources"].values():
            assert not ("tasks" in wanted and {"gpu", "gres"} & wanted.keys()), "would become --ntasks-per-gpu"
    for rule in ("capture", "capture_part", "reference"):
        assert one["set-resources"][rule]["gpu"] == 8 and one["set-resources"][rule]["nodes"] == 1
        assert two["set-resources"][rule]["nodes"] == 2 and "mpi" in two["set-resources"][rule]
        assert "--gpus-per-node=8" in two["set-resources"][rule]["slurm_extra"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, "not valid YAML"),
        ({"executor": "local"}, "executor: slurm"),
        (
            {"set-resources": {"capture": {"gpu": 8}, "score": {"gpu": 1}}},
            "for the rule primed and reference, which",
        ),
        ({"executor": "slurm", "set-resources": {"capture": {"gpu": 8, "tasks": 8}}}, "leave `tasks` out"),
        ({"set-resources": ["capture:gpu=8", "capture:tasks=8"]}, "for capture, .*leave `tasks` out"),
        ({"default-resources": {"tasks": 8}, "set-resources": {"distill": {"gpu": 1}}}, "for distill, .*leave `tasks`"),
        ({"default-resources": ["tasks=8"], "set-resources": ["distill:gres=gpu:1"]}, "for distill, .*leave `tasks`"),
        ({"default-resources": {"gpu": 1, "tasks": 1}}, "for every job, .*leave `tasks`"),
        ({"set-resources": {"capture": {"gpu": 8, "slurm_extra": "'--qos=a --ntasks=8'"}}}, "leave --ntasks out"),
        ({"set-resources": {"capture": {"gpu": 8, "slurm_extra": "'-n 8'"}}}, "leave --ntasks out"),
        ({"set-resources": {"distill": None}}, "no resources for distill"),
        ({"set-resources": ["distill"]}, "entry 'distill' without ':'"),
        ({"set-resources": "distill"}, "set-resources is no mapping"),
        ({"default-resources": 3}, "default-resources is no mapping"),
    ],
)
def test_a_slurm_profile_that_cannot_work_is_refused(tmp_path: Path, settings, expected: str):
    if settings:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"executor": "slurm"} | settings))
    with pytest.raises(UserError, match=expected):
        open_cluster(tmp_path, 1)


def test_both_forms_of_resources_are_read():
    mapped = {"default-resources": {"mem_mb": "9"}, "set-resources": {"distill": {"gres": "gpu:1", "mem_mb": "7"}}}
    listed = {"default-resources": ["mem_mb=9"], "set-resources": ["distill:gres=gpu:1", "distill:mem_mb=7"]}
    expected = {"every job": {"mem_mb": "9"}, "distill": {"gres": "gpu:1", "mem_mb": "7"}}
    assert asked_resources(mapped, "f") == asked_resources(listed, "f") == expected
    assert asked_resources({}, "f") == {"every job": {}}


@pytest.mark.parametrize("name", ["slurm", "slurm/two-nodes"])
def test_nothing_in_the_shipped_slurm_profiles_is_refused_but_a_missing_slurm(name: str, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="executor is not installed|no sbatch here"):
        open_cluster(project_root() / "configs" / name, 1)


def test_the_jobs_of_a_study_are_no_other_studys(ci, output: Path, monkeypatch):
    long = "x" * 60
    names = ["paper", "paper_x", "paper-x", "paper.x", "papér", long + "a", long + "b"]
    profiles = [ci.model_copy(update={"name": name}) for name in names]
    prefixes = [job_prefix(profile) for profile in profiles]
    assert len(set(prefixes)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,50}", prefix) for prefix in prefixes)
    run = "0b9f1c5e-1111-4222-8333-444455556666"
    jobs = [(str(i), f"{prefix}_{run}", str(output.resolve())) for i, prefix in enumerate(prefixes)]
    jobs += [("90", f"{prefixes[0]}_x_{run}", jobs[0][2]), ("91", jobs[0][1], "/elsewhere")]
    said = "".join("|".join(job) + "\n" for job in jobs)
    monkeypatch.setattr(slurm, "ask", lambda command: (True, said))
    assert [queued_jobs(profile) for profile in profiles] == [[str(i)] for i in range(len(names))]
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(output / "other"))
    assert job_prefix(profiles[0]) != prefixes[0]


def test_a_plain_run_is_not_kept_by_a_slurm_that_does_not_answer(ci, monkeypatch):
    monkeypatch.setattr(slurm, "ask", lambda command: (False, "no socket"))
    monkeypatch.setattr("primekd.running.run.shutil.which", lambda name: f"/usr/bin/{name}")
    assert queued_beside(ci, None) == []
    with pytest.raises(UserError, match="Slurm does not answer"):
        queued_beside(ci, slurm.Cluster(Path("configs/slurm"), 1))


def test_no_slurm_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = CliRunner().invoke(app, ["run", "--profile", "ci", "--slurm"])
    assert done.exit_code == 1
    assert "Slurm executor is not installed" in done.output or "no sbatch here" in done.output


@pytest.mark.parametrize("words", [["--capture-workers", "2"], ["--slurm-profile", "x"], ["--slurm", "--cores", "2"]])
def test_options_of_the_other_kind_of_run_are_refused(words: list[str]):
    done = CliRunner().invoke(app, ["run", "--profile", "ci", *words])
    assert done.exit_code == 1 and "lurm" in done.output.splitlines()[-1]


ODD = ["ci", "123", "a: b", "my #1", "it's", '"x"', "1e3", "[a]", "null", "ä 😀", "path=b"]


@pytest.mark.parametrize("name", ODD)
def test_snakemake_is_told_the_profile_as_it_is_called(name: str, output: Path, ci, monkeypatch):
    from snakemake.cli import parse_config

    def told(argument: str) -> list[str]:
        command = primekd.running.run.snakemake_command(ci, argument, 1, True)
        return parse_config(command[command.index("--config") + 1 :])["profile"]

    monkeypatch.chdir(output)
    assert told(name) == [name] and told(f"{name}.yaml") == [str(output.resolve() / f"{name}.yaml")]


def test_a_profile_whose_name_is_a_wildcard_is_refused(ci):
    with pytest.raises(UserError, match="my {strategy}.yaml: a brace is a wildcard"):
        primekd.running.run.snakemake_command(ci, "my {strategy}.yaml", 1, False)


def test_a_dry_run_lists_the_jobs_and_changes_nothing(output: Path):
    """The profile's path is one that YAML and a shell would read otherwise."""
    path = output / "a: b's #1" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("extends: ci\n", encoding="utf-8")
    environment = os.environ | {"PRIMEKD_OUTPUT": str(output)}
    done = subprocess.run(
        [sys.executable, "-m", "primekd.cli", "run", "--profile", str(path), "--dry-run"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()[1:-1]]
    scored = [line.removeprefix("score ").split(" + ") for line in lines if line.startswith("score ")]
    assert len(lines) == 14 + len(scored) and lines[-1] == "write the report"
    assert {"capture ai-KD", "capture held-out"} < set(lines)
    assert sorted(model for models in scored for model in models) == sorted([CONTROL, *default_arms()])
    assert not (output / "runs").exists()


@pytest.mark.parametrize(
    ("lost", "forgotten"),
    [
        ("signals/ai-KD", {"ai-KD/inference_gsm8k.ipynb", "ai-KD/distill.ipynb", f"scored/{OF_AI}.done", *BEHIND}),
        ("students/ai-KD", {"ai-KD/distill.ipynb", f"scored/{OF_AI}.done", *BEHIND}),
        ("answers/control", {f"scored/{OF_CONTROL}.done", *BEHIND}),
        ("held-out/ai-KD", {f"scored/{OF_AI}.done", *BEHIND}),
        ("priming", {TEACHER, *BEHIND}),
        ("signals/held-out", {"reference.done", TEACHER, *BEHIND} | {f"scored/{models}.done" for models in SCORED}),
    ],
)
def test_what_is_lost_is_forgotten_with_all_that_came_of_it(lost: str, forgotten: set[str], output: Path, ci):
    done = pretend_done(ci)
    forget_lost_stages(ci)
    assert all((ci.runs / "notebooks" / name).is_file() for name in done)
    (ci.runs / lost / "manifest.json").unlink()
    forget_lost_stages(ci)
    assert {name for name in done if not (ci.runs / "notebooks" / name).is_file()} == forgotten


def test_what_is_wanted_anew_is_forgotten_until_it_is_made(output: Path, ci):
    done = pretend_done(ci)
    then = time.time() - 100
    for path in ci.runs.rglob("*"):
        os.utime(path, (then, then))
    ask_anew(ci, ["distill"])
    os.utime(ci.runs / "forced" / "distill", (then + 50, then + 50))
    made = ci.runs / "students" / "base-KD" / "manifest.json"
    os.utime(made, (then + 60, then + 60))  # made before the run was killed
    ask_anew(ci, ["distill"])  # the same command again
    forget_lost_stages(ci)
    lost = {name for name in done if not (ci.runs / "notebooks" / name).is_file()}
    students = {f"{name}/distill.ipynb" for name in default_arms() if name != "base-KD"}
    assert lost == students | {f"scored/{models}.done" for models in SCORED} | BEHIND
    forget_wishes(ci)
    assert not list(ci.runs.glob("forced/*"))


def test_a_dry_run_shows_what_would_be_made_anew(output: Path, ci):
    pretend_done(ci, {"teacher.done"})
    rules = {job.rule for job in planned_jobs(ci, "ci", 2, False, None, ["distill"])}
    assert rules == {"distill", "score", "assess", "report"}
    with pytest.raises(UserError, match="--force-stage training: there is no such stage; choose one of"):
        planned_jobs(ci, "ci", 2, False, None, ["training"])
    with pytest.raises(UserError, match="a whole run does not look inside: add --only inside"):
        planned_jobs(ci, "ci", 2, False, None, ["inside"])


def test_a_part_of_a_study_ends_the_wishes_that_it_fulfilled_alone(output: Path, ci):
    pretend_done(ci)
    (ci.runs / "priming" / "manifest.json").unlink()
    ask_anew(ci, ["capture", "distill"])
    later = time.time() + 10
    for store in ci.runs.glob("signals/*/manifest.json"):
        os.utime(store, (later, later))
    for stage in ("capture", "distill"):
        os.utime(ci.runs / "forced" / stage, (later - 5, later - 5))
    assert not_yet_anew(ci) == {"distill"}
    forget_wishes(ci, not_yet_anew(ci))
    assert [path.name for path in ci.runs.glob("forced/*")] == ["distill"]


def test_a_file_system_without_locks_is_no_other_run(output: Path, ci, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match="has no locks"), only_one(ci):
        pytest.fail("this is not the one run")


def test_a_student_that_was_trained_anew_by_hand_is_scored_anew(output: Path, ci):
    """Snakemake sees neither: it knows the executed copies alone."""
    pretend_done(ci)
    folder = ci.runs / "students" / "ai-KD"
    write_text(folder / "adapter.txt", "new")
    write_manifest(folder, "adapter", {}, [folder / "adapter.txt"])
    write_text(ci.logs / "ai-KD.csv", "")
    facts = {"ai-KD": {"outputs": {"adapter.txt": "0" * 64}}}
    write_manifest(ci.logs, "assess", {}, [ci.logs / "ai-KD.csv"], models=facts)
    lost = {path.relative_to(ci.runs / "notebooks").as_posix() for path in find_study(ci).lost(ci)}
    assert {f"scored/{OF_AI}.done", *BEHIND} <= lost and "ai-KD/distill.ipynb" not in lost


def test_as_many_models_are_scored_by_a_job_as_its_stamp_can_name(output: Path):
    """On one core, or beside a GPU, a job takes all of them: 22 names joined are more than a file's name may have."""
    jobs = planned_jobs(load_profile("ablation-pocket"), "ablation-pocket", 1, False, None)
    scored = [job.label.removeprefix("score ") for job in jobs if job.rule == "score"]
    assert len(scored) > 1 and all(len(label.replace(" + ", "+")) <= 200 for label in scored)


def test_other_items_are_nothing_that_is_up_to_date(output: Path, tmp_path: Path):
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(40)]
    files = {f"{side}_file": str(tmp_path / f"{side}.jsonl") for side in ("train", "test")}
    for file in files.values():
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_profile(tmp_path, data={"task": "gsm8k", "source": "jsonl", **files})
    profile = load_profile(str(path))
    pretend_done(profile, {"teacher.done"})
    assert planned_jobs(profile, str(path), 2, False, None) == []
    later = time.time() + 60
    os.utime(files["test_file"], (later, later))
    assert "assess" in {job.rule for job in planned_jobs(profile, str(path), 2, False, None)}


def test_a_teacher_whose_file_is_lost_is_built_again(output: Path, tmp_path: Path):
    path = write_profile(tmp_path, base="pocket", prepare={"output": "models/teachers/none/none.gguf"})
    profile = load_profile(str(path))
    pretend_done(profile, {"teacher.done"})
    before = planned_jobs(profile, str(path), None, False, None)
    assert "prepare the teacher" in [job.label for job in before], "a dry run says what a run would do"
    forget_lost_stages(profile)
    after = planned_jobs(profile, str(path), None, False, None)
    assert sorted(job.label for job in after) == sorted(job.label for job in before)


def test_models_are_shared_out_among_as_many_jobs_as_run_at_once(output: Path, ci, monkeypatch):
    def scored(cores: int) -> list[str]:
        jobs = planned_jobs(ci, "ci", cores, False, None)
        return sorted(job.stage.removeprefix("score ") for job in jobs if job.rule == "score")

    assert [len(models.split("+")) for models in scored(1)] == [6]
    if not shutil.which("nvidia-smi"):
        assert scored(2) == sorted(SCORED)
    local = primekd.running.run.snakemake_command
    monkeypatch.setattr("primekd.running.run.snakemake_command", lambda *words: [*local(*words), "slurm=true"])
    assert scored(2) == sorted([CONTROL, *default_arms()])


@pytest.mark.parametrize("scored", [[CONTROL, *default_arms()], ["+".join([CONTROL, *default_arms()])]])
def test_models_that_are_scored_stay_shared_out_as_they_were(scored: list[str], output: Path, ci):
    pretend_done(ci, {"teacher.done"}, scored)
    for name in BEHIND:  # Snakemake looks at what is there for the sake of what is not
        (ci.runs / "notebooks" / name).unlink()
    assert [job.rule for job in planned_jobs(ci, "ci", 2, False, None)] == ["assess", "report"]
    anew = [job.stage.removeprefix("score ") for job in planned_jobs(ci, "ci", 1, True, None) if job.rule == "score"]
    assert len(anew) == 1, "all of it again, on one core"
    (ci.runs / "answers" / CONTROL / "manifest.json").unlink()
    forget_lost_stages(ci)
    assert [job for job in planned_jobs(ci, "ci", 2, False, None) if job.rule == "score" and CONTROL in job.stage]


def pretend_done(profile: Profile, more: set[str] = frozenset(), scored: list[str] = SCORED) -> set[str]:
    """Empty files for everything that a whole run leaves, all of one moment; returns the executed copies' names."""
    taught = [name for name, strategy in default_arms().items() if strategy.teacher]
    folders = [f"signals/{name}" for name in (*taught, "held-out")] + [f"students/{name}" for name in default_arms()]
    folders += [f"{kind}/{name}" for kind in ("answers", "held-out") for name in (CONTROL, *default_arms())]
    done = {f"{name}/inference_gsm8k.ipynb" for name in taught} | {f"{name}/distill.ipynb" for name in default_arms()}
    done |= {f"scored/{models}.done" for models in scored} | {"reference.done", TEACHER, *BEHIND}
    folders.append("priming")
    files = [profile.runs / folder / "manifest.json" for folder in folders] + [profile.logs / "manifest.json"]
    copies = [profile.runs / "notebooks" / name for name in (*done, *more)]
    pages = [copy.with_suffix(".html") for copy in copies if copy.suffix == ".ipynb"]
    now = time.time()
    for path in [*files, profile.logs / "report.html", *copies, *pages]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    write_manifest(profile.logs, "assess", {}, [profile.logs / "report.html"])
    for path in [*files, *copies, *pages]:
        os.utime(path, (now, now))
    return done


WITH_BARS = """
import os, time
JOB = "localrule distill:\\n    jobid: {0}\\n    wildcards: student=arm{0}\\n"
print("distill 3\\n", flush=True)
for job in (1, 2, 3):
    print(JOB.format(job), flush=True)
    with open(f"/proc/{os.getpid()}/fd/2", "a") as bar:  # as a notebook's kernel does
        bar.write("\\r" + "x" * 150)
    time.sleep(0.4)  # it is read meanwhile
    print(f"\\nFinished jobid: {job} (Rule: distill)", flush=True)
"""


def test_bars_that_come_through_a_file_of_their_own_hide_no_job(output: Path, ci, monkeypatch, capsys):
    monkeypatch.setattr("primekd.running.run.snakemake_command", lambda *words: [sys.executable, "-c", WITH_BARS])
    assert run_study(ci, "ci", 1)
    said = capsys.readouterr().out
    assert [line.strip() for line in said.splitlines() if "done" in line] == [
        f"done: distill arm{job} ({job} of 3 steps)" for job in (1, 2, 3)
    ]
    assert "x" * 150 in (ci.runs / "snakemake.log").read_text(), "nothing of it is lost"


def test_a_plain_kill_ends_a_run_with_all_that_it_started_as_ctrl_c_does(output: Path, ci, monkeypatch):
    started = []

    def popen(*words, **settings):
        started.append(subprocess.Popen(*words, **settings))
        return started[-1]

    monkeypatch.setattr("primekd.running.run.snakemake_command", lambda *words: ["sleep", "60"])
    monkeypatch.setattr("primekd.running.run.subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": popen}))
    before, timer = signal.getsignal(signal.SIGTERM), Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        done = CliRunner().invoke(app, ["run", "--profile", "ci", "--cores", "1"])
        assert done.exit_code == 130 and "stopped; run the same command again to go on" in done.output
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
    assert started[0].poll() == -signal.SIGINT


def test_a_profile_that_changes_while_it_runs_is_said(output: Path, monkeypatch, capsys):
    path = write_profile(output)
    later = f"import os; os.utime({str(path)!r}, (4e9, 4e9))"
    for script, says in (("", False), (later, True)):
        monkeypatch.setattr("primekd.running.run.snakemake_command", lambda *_, own=script: [sys.executable, "-c", own])
        run_study(load_profile(str(path)), str(path), 1)
        assert (f"{path.name}: changed while this ran. With --force" in capsys.readouterr().out) == says


def test_a_killed_stage_is_lost(ci, output: Path):
    died = subprocess.Popen([sys.executable, "-c", ""])
    died.wait()
    with Progress(ci, "capture ai-KD", 8, "item"):
        path = progress_folder(ci) / "capture ai-KD.json"
        assert stage_states(ci)[0]["state"] == "running"
        entry = json.loads(path.read_text())
        assert entry["host"] == socket.gethostname()
        path.write_text(json.dumps(entry | {"pid": died.pid}))
        assert stage_states(ci)[0]["state"] == "lost"
        path.write_text(json.dumps(entry | {"host": "another", "pid": died.pid}))
        assert stage_states(ci)[0]["state"] == "running", "on another machine only silence tells"
        path.write_text(json.dumps(entry | {"host": "another", "updated": "2026-01-01T00:00:00+00:00"}))
        assert stage_states(ci)[0]["state"] == "lost"
    assert stage_states(ci)[0]["state"] == "done"


def test_the_share_of_an_assessment_does_not_fall_back_between_two_models(output, ci):
    job = Job("assess", "assess", 0.0)
    assert job_progress(ci, job) == ("", 0.0)
    with Progress(ci, "answer control", 8, "item") as progress:
        progress.advance(3)
        first = job_progress(ci, job)[1]
    text, share = job_progress(ci, job)
    assert text == "assess: held-out fit" and share == first > 0
    with Progress(ci, "answer base-KD", 8, "item"):
        assert job_progress(ci, job)[1] > share


def test_further_seeds_of_an_arm_are_trained_and_scored_with_it(output):
    path = write_profile(output, arms=["base-KD", "base-fine-tune"], seeds={"base-KD": [1, 2]})
    jobs = planned_jobs(load_profile(str(path)), str(path), 2, False, None)
    assert sorted(job.label for job in jobs if job.rule == "distill") == [
        "distill base-KD", "distill base-KD-seed1", "distill base-KD-seed2", "distill base-fine-tune",
    ]  # fmt: skip
    with Progress(load_profile(str(path)), "distill base-KD", 8, "step") as progress:
        progress.advance(8)
    with Progress(load_profile(str(path)), "distill base-KD-seed2", 8, "step"):
        shown = job_progress(load_profile(str(path)), Job("distill", "distill base-KD", 0.0, "distill base-KD"))
        assert shown == ("distill base-KD-seed2: 0/8 steps", 1.0)
    with pytest.raises(UserError, match="seeds names 'ai-KD': it must be one of base-KD, with"):
        arms_of(load_profile(str(write_profile(output, arms=["base-KD"], seeds={"ai-KD": [1]}))))
    with pytest.raises(UserError, match="with seeds that differ from each other and from 0"):
        arms_of(load_profile(str(write_profile(output, arms=["base-KD"], seeds={"base-KD": [0]}))))


def test_a_teacher_that_samples_answers_again_for_every_further_seed(output):
    profile = {"arms": ["base-KD", "base-text-KD", "ai-KD"], "seeds": {"base-KD": [1], "base-text-KD": [2]}}
    for temperature in (0.0, 0.7):
        path = write_profile(output, **profile, teacher={"sampling_temperature": temperature})
        command = primekd.running.run.snakemake_command(load_profile(str(path)), str(path), 2, False)
        asked = subprocess.run([*command, "--dry-run", "--printshellcmds"], capture_output=True, text=True).stdout
        seeds = re.findall(r"for seed in ([\d ]*); do .*? capture (\S+) --profile \S+ --seed \$seed", asked)
        assert sorted(seeds) == [("", "ai-KD"), ("1 2" if temperature else "", "base-KD")]
        own, copy = load_profile(str(path)), "runs/small/notebooks/base-KD/inference_gsm8k.ipynb"
        write_text(output / copy, "{}")
        write_text(own.signals_folder("base-KD") / "manifest.json", "{}")
        missing = [path.relative_to(output).as_posix() for path in STUDY.lost(own)]
        assert (copy in missing) == bool(temperature), "the stores of seeds 1 and 2 are not there"


def test_where_arms_are_many_all_seeds_of_one_are_trained_in_one_notebook(output):
    many = [*default_arms(), *(f"{name}-KD" for name in DEVIATIONS)][:16]
    path = write_profile(output, arms=many, seeds={"base-KD": [1, 2]})
    profile = load_profile(str(path))
    jobs = [job for job in planned_jobs(profile, str(path), 2, False, None) if job.rule == "distill"]
    assert sorted(job.label for job in jobs) == sorted(f"distill {name}" for name in many)
    copies = {copy.parent.name for stage, _, own in trained(profile) if stage == "distill" for copy in own}
    assert {"base-KD", "base-KD-seed1"} <= copies, "whoever trained a student that is lost does it again"


def test_a_run_that_stops_behind_the_teacher_trains_nothing(output):
    path = write_profile(output)
    rules = [job.rule for job in planned_jobs(load_profile(str(path)), str(path), 2, False, None, only="teacher")]
    assert "primed" in rules and "capture" in rules and not {"distill", "score", "assess", "report"} & {*rules}


def test_the_deviations_are_a_part_of_their_own_where_there_are_any(output):
    path = write_profile(output, arms=["base-KD", "reverse-kl-KD"])
    profile = load_profile(str(path))
    ablation = profile.runs / "notebooks/assessment/ablation.ipynb"
    parts = "ablation", "inside", None
    jobs = {only: planned_jobs(profile, str(path), 2, False, None, only=only) for only in parts}
    rules = {only: {job.rule for job in found} for only, found in jobs.items()}
    assert rules["ablation"] >= {"distill", "assess", "ablation"} and "report" not in rules["ablation"]
    assert rules[None] == rules["ablation"] | {"report"}, "a whole run executes the notebook"
    assert rules["inside"] == rules[None] - {"ablation", "report"} | {"attention", "confidence", "inside"}
    assert ablation in list(STUDY.lost(profile)) and STUDY.parts(profile)[-1] == "ablation"
    plain = write_profile(output, "plain", arms=["base-KD"])
    said = CliRunner().invoke(app, ["run", "--profile", str(plain), "--only", "ablation"]).stderr
    assert "plain has no such part; choose teacher or inside, or leave it out." in said
