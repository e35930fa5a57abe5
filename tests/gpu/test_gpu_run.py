"""A whole study on the GPU in about two minutes: the pocket profile cut down, by the one command."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import POCKET, write_profile
from gpu_models import missing_cuda

pytestmark = pytest.mark.skipif(missing_cuda() is not None, reason=f"no GPU: {missing_cuda()}")


def test_a_cut_down_pocket_study_runs_end_to_end(tmp_path):
    """Notebooks, capture, training, answers and the report; the teacher is the plain pocket model, nothing is built."""
    profile = write_profile(
        tmp_path,
        name="gpu",
        base="pocket-plain",
        description="the pocket study cut down, for a GPU's first two minutes",
        max_new_tokens=48,
        data={"templates": [6, 10, 16], "train_items": 12, "validation_items": 6, "test_items": 12},
        teacher={"model": POCKET},
        train={"epochs": 1},
        assess={"batch_size": 64, "bootstrap_samples": 200},
        prepare=None,
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "primekd.cli", "run", "--profile", str(profile)],
        env=os.environ | {"PRIMEKD_OUTPUT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    seconds = time.monotonic() - began
    print(f"\nend to end: {seconds:.0f} s on {torch.cuda.get_device_name(0)}")
    logs = tmp_path / "runs" / "gpu" / "logs"
    manifest = json.loads((logs / "manifest.json").read_text(encoding="utf-8"))
    assert (logs / "report.html").is_file() and "gpus" in json.dumps(manifest)
    assert seconds < 600
