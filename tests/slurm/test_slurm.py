"""`primekd run --slurm` on a real Slurm, started on this machine's loopback by start_slurm.sh.

Two nodes with eight pretended GPUs each; the shipped Snakemake profile, but for how often jobs are asked after.
Needs Debian's slurmd, slurmctld, slurm-client and munge, and the extra `slurm`.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
START = ROOT / "tests/slurm/start_slurm.sh"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [tool for tool in TOOLS if not shutil.which(tool, path="/usr/sbin:/usr/bin")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no Slurm here: {', '.join(MISSING)} not installed"),
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake_executor_plugin_slurm") is None, reason="the extra slurm is not installed"
    ),
]


@pytest.fixture(scope="module", autouse=True)
def asked_for(request):
    """These tests take minutes: they run when they are named, not with the whole suite."""
    if not any("slurm" in Path(argument).name for argument in request.config.args):
        pytest.skip("takes minutes: run `pytest tests/slurm`")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a command inside a Slurm of its own; SBATCH_LINES is the file with all calls of sbatch."""
    show = "import json, os; print(json.dumps(dict(os.environ)), flush=True); input()"
    given = os.environ | {"CPUS": "256", "SBATCH_LINES": str(tmp_path_factory.mktemp("slurm") / "sbatch.txt")}
    given |= {"OMP_NUM_THREADS": "1"}  # many jobs share few real cores
    process = subprocess.Popen(
        ["bash", START, sys.executable, "-c", show], env=given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line, "start_slurm.sh failed: see above"
    yield json.loads(line)
    process.communicate("\n", timeout=60)


def snakemake_profile(folder: Path, source: str = "slurm", **changes) -> Path:
    """A shipped Snakemake profile that asks after its jobs more often, with other default resources."""
    settings = yaml.safe_load((ROOT / "configs" / source / "config.yaml").read_text())
    settings |= {"slurm-init-seconds-before-status-checks": 2, "latency-wait": 20}
    settings["default-resources"] |= changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def start(environment: dict, output: Path, *words: str, profile: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "primekd.cli", "run", "--profile", "ci", "--slurm", "--slurm-profile", profile, *words],
        env=environment | {"PRIMEKD_OUTPUT": str(output), "PRIMEKD_ROOT": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ask(environment: dict, *words: str) -> str:
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout


def wait_for_job(environment: dict, comment: str, state: str = "R", patience: int = 240) -> str:
    """The number of the job with that comment (rule and wildcards) when it is in that state."""
    for _ in range(patience * 2):
        for line in ask(environment, "squeue", "-h", "-o", "%i|%k|%t").splitlines():
            number, says, is_in = line.split("|")
            if comment in says and is_in == state:
                return number
        time.sleep(0.5)
    raise AssertionError(f"no job {comment} in state {state}")


@pytest.fixture(scope="module")
def study(slurm, tmp_path_factory) -> dict:
    """The `ci` study in two runs: in the first a capture is cancelled while it runs; the second goes on from there."""
    output = tmp_path_factory.mktemp("study")
    profile = snakemake_profile(output / "cluster")
    first = start(slurm, output, profile=profile)
    ask(slurm, "scancel", wait_for_job(slurm, "rule_capture_wildcards_ai-KD"))
    said = first.communicate(timeout=900)[0]
    captured = sorted(p.parent.name for p in (output / "runs/ci/signals").glob("*/manifest.json"))
    lines = Path(slurm["SBATCH_LINES"]).read_text().splitlines()
    second = start(slurm, output, profile=profile)
    said_again = second.communicate(timeout=900)[0]
    return {
        "output": output, "profile": profile, "codes": (first.returncode, second.returncode), "captured": captured,
        "first": said, "second": said_again, "lines": lines, "all_lines": Path(slurm["SBATCH_LINES"]).read_text(),
    }  # fmt: skip


def test_a_cancelled_job_is_named_and_the_other_strategies_go_on(study):
    assert study["codes"][0] == 1, study["first"]
    assert re.search(r"failed: capture ai-KD \(Slurm job \d+\)", study["first"])
    assert re.search(r"primekd: capture ai-KD: Slurm job \d+ was cancelled", study["first"])
    for name in ("base-KD", "teacher-KD", "reverseKL-KD", "base-fine-tune"):
        assert f"done: distill {name}" in study["first"]


def test_the_second_run_goes_on_and_finishes(study):
    assert study["codes"][1] == 0, study["second"]
    assert "done: capture ai-KD (1 of 6 steps)" in study["second"], "capture, distill, score, primed, assess, report"
    assert "No distillation" in study["second"]
    output = study["output"]
    environment = os.environ | {"PRIMEKD_OUTPUT": str(output), "PRIMEKD_ROOT": str(ROOT)}
    command = [sys.executable, "-m", "primekd.cli", "verify", "--profile", "ci"]
    verified = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    assert "ok   runs/ci/students/ai-KD" in verified
    assert not re.search(r"FAIL.*(logs|runs)/ci", verified), verified


def test_strategies_are_captured_side_by_side(study):
    spans = []
    for manifest in study["output"].glob("runs/ci/notebooks/*/inference_gsm8k.manifest.json"):
        entry = json.loads(manifest.read_text())
        spans.append((entry["start"], entry["end"]))
    spans.sort()
    assert any(later[0] < earlier[1] for earlier, later in zip(spans, spans[1:], strict=False)), spans


def test_sbatch_lines_ask_for_what_the_profile_says(study):
    for line in study["all_lines"].splitlines():
        asked = line.split(" --wrap=")[0]
        assert "--ntasks-per-gpu" not in asked
        if any(rule in asked for rule in ("rule_distill", "rule_score", "rule_assess")):
            assert "--gpus=1" in asked and "--cpus-per-task=8" in asked and "-t 720" in asked
        elif any(rule in asked for rule in ("rule_capture", "rule_reference", "rule_primed")):
            assert "--gpus=8" in asked and "--nodes=1" in asked and "--mem 400000" in asked and "-t 1440" in asked
        else:
            assert "rule_teacher" in asked and "--gpus" not in asked
    assert len(study["lines"]) == 15, (
        "in the first run the teacher, four captures, the reference, the students but the one of ai-KD, all of these "
        "scored, and the control"
    )


def test_a_third_run_has_nothing_to_do(slurm, study):
    third = start(slurm, study["output"], profile=study["profile"])
    assert "nothing to be done" in third.communicate(timeout=120)[0] and third.returncode == 0


def test_a_local_run_finds_everything_up_to_date(study):
    environment = os.environ | {"PRIMEKD_OUTPUT": str(study["output"]), "PRIMEKD_ROOT": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "primekd.cli", "run", "--profile", "ci"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "nothing to be done" in done.stdout, done.stdout + done.stderr


def test_ctrl_c_cancels_the_jobs(slurm, tmp_path: Path):
    run = start(slurm, tmp_path, profile=snakemake_profile(tmp_path / "cluster"))
    wait_for_job(slurm, "rule_distill_wildcards_base-fine-tune")
    again = start(slurm, tmp_path, profile=tmp_path / "cluster")
    assert "is under way" in again.communicate(timeout=60)[0]
    run.send_signal(signal.SIGINT)
    assert "run the same command again to go on" in run.communicate(timeout=120)[0]
    assert run.returncode == 130
    for _ in range(60):
        if not ask(slurm, "squeue", "-h").strip():
            break
        time.sleep(0.5)
    assert not ask(slurm, "squeue", "-h").strip()


def test_jobs_that_a_killed_run_left_are_not_doubled(slurm, tmp_path: Path):
    run = start(slurm, tmp_path, profile=snakemake_profile(tmp_path / "cluster"))
    number = wait_for_job(slurm, "rule_distill_wildcards_base-fine-tune")
    run.kill()
    os.killpg(int((tmp_path / "runs/ci/run.lock").read_text()), signal.SIGKILL)
    run.wait()
    again = start(slurm, tmp_path, profile=tmp_path / "cluster")
    said = again.communicate(timeout=60)[0]
    assert again.returncode == 1 and "earlier run are still queued" in said and number in said
    ask(slurm, "scancel", *re.search(r"`scancel ([\d ]+)`", said)[1].split())


def test_a_job_that_slurm_refuses(slurm, tmp_path: Path):
    profile = snakemake_profile(tmp_path / "cluster", slurm_partition="nowhere")
    run = start(slurm, tmp_path, profile=profile)
    said = run.communicate(timeout=120)[0]
    assert run.returncode == 1 and "Slurm refused the job: invalid partition specified: nowhere" in said, said


def test_a_dry_run_says_what_would_be_submitted(slurm, tmp_path: Path):
    run = start(slurm, tmp_path, "--dry-run", "--capture-workers", "2", profile=snakemake_profile(tmp_path / "cluster"))
    said = run.communicate(timeout=120)[0]
    assert run.returncode == 0, said
    assert said.count("capture ai-KD") == 3 and "capture ai-KD, part 2" in said, "two parts and the notebook"
    assert re.search(r"distill ai-KD +cpus_per_task=8 gpu=1 mem_mb=64000 nodes=1 runtime=720", said), said


RAY = """#!/usr/bin/env bash
# Stands in for Ray, which is not installed here: keeps the list of nodes that joined, and blocks as Ray would.
case "$1" in
    start) echo " 1 node_$SLURMD_NODENAME" >>"$RAY_NODES"; sleep 600 ;;
    status) [ -s "$RAY_NODES" ] && cat "$RAY_NODES" ;;
esac
"""


def test_a_two_node_job_starts_ray_on_both_and_then_its_command(slurm, tmp_path: Path):
    (tmp_path / "ray").write_text(RAY)
    (tmp_path / "command").write_text(f'#!/usr/bin/env bash\necho "at $RAY_ADDRESS" >{tmp_path}/said\n')
    for tool in ("ray", "command"):
        (tmp_path / tool).chmod(0o755)
    wanted = yaml.safe_load((ROOT / "configs/slurm/two-nodes/config.yaml").read_text())["set-resources"]["capture"]
    asked = [f"--nodes={wanted['nodes']}", f"--ntasks={wanted['tasks']}", "--cpus-per-task=64", "--gpus-per-node=8"]
    # As the executor starts a job with `mpi`: straight from the batch script, with most of SLURM_* hidden.
    hide = "unset SLURM_JOB_NODELIST SLURM_NODELIST SLURM_NTASKS SLURM_NPROCS SLURM_CPUS_PER_TASK; "
    script = f"{hide} exec {ROOT}/workflow/with_ray.sh {tmp_path}/command"
    environment = slurm | {"RAY_NODES": str(tmp_path / "nodes")}
    ask(environment, "sbatch", "--wait", "-o", str(tmp_path / "log"), *asked, f"--wrap={script}")
    log = (tmp_path / "log").read_text()
    assert sorted((tmp_path / "nodes").read_text().split()) == ["1", "1", "node_node1", "node_node2"], log
    assert re.fullmatch(r"at \S+:\d+\n", (tmp_path / "said").read_text()), log


def test_eight_gpus_are_never_collected_from_two_nodes(slurm, tmp_path: Path):
    """What `nodes: 1` in the shipped profile is for: without it Slurm puts the teacher's GPUs together as it can."""
    submit = ["sbatch", "--parsable", "-o", "/dev/null", "--wrap=sleep 60"]
    hold = [ask(slurm, *submit, "--gpus=4", f"--nodelist=node{i}").strip() for i in (1, 2)]
    for number in hold:
        while "RUNNING" not in ask(slurm, "squeue", "-h", "-j", number, "-o", "%T"):
            time.sleep(0.2)
    loose = ask(slurm, *submit, "--gpus=8").strip()
    time.sleep(5)
    where = ask(slurm, "squeue", "-h", "-j", loose, "-o", "%T %D").strip()
    strict = ask(slurm, *submit, "--gpus=8", "--nodes=1").strip()
    time.sleep(5)
    waits = ask(slurm, "squeue", "-h", "-j", strict, "-o", "%T %D").strip()
    ask(slurm, "scancel", *hold, loose, strict)
    assert where == "RUNNING 2"
    assert waits.startswith("PENDING")
