"""The warm Python does what Python does."""

import os
import signal
import subprocess
import sys
import time

import pytest


def both(warm_python, *words, **more):
    runs = [
        subprocess.run([python, *words], capture_output=True, text=True, **more)
        for python in (sys.executable, warm_python)
    ]
    return [(run.returncode, run.stdout, run.stderr) for run in runs]


@pytest.mark.parametrize(
    "code",
    [
        "import sys, os; print(sys.argv, os.getcwd(), sys.path[0], os.environ['HERE'], sys.stdin.read())",
        "import sys; print('no', file=sys.stderr); sys.exit(3)",
        "import sys; sys.exit('said')",
        "import atexit, threading, time; atexit.register(print, 'end'); "
        "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
        "import sys; print(__name__, 'primekd' in sys.modules); import primekd; print(primekd.__file__)",
        "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'print(5); exit(4)']).returncode)",
    ],
)  # fmt: skip
def test_output_status_and_surroundings_are_the_same(code, warm_python, tmp_path):
    environment = os.environ | {"HERE": "ü", "PYTHONIOENCODING": "utf-8"}
    real, warm = both(warm_python, "-c", code, "a b", cwd=tmp_path, env=environment, input="given")
    assert warm == real


def test_modules_and_scripts_run(warm_python, tmp_path):
    (tmp_path / "tool.py").write_text("import sys, other; print(__name__, sys.argv, other.X)")
    (tmp_path / "other.py").write_text("X = 7")
    script = both(warm_python, str(tmp_path / "tool.py"), "w")
    assert script[0] == script[1] and "7" in script[1][1]
    module = both(warm_python, "-m", "tool", "w", cwd=tmp_path)
    assert module[0] == module[1]
    path = both(warm_python, "-m", "tool", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert path[0] == path[1] and path[1][0] == 0
    error = both(warm_python, "-c", "raise ValueError('x')")
    assert error[0][0] == error[1][0] == 1 and "ValueError: x" in error[1][2]


def waiting(warm_python, tmp_path, code: str):
    process = subprocess.Popen([warm_python, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    return process, int((tmp_path / "pid").read_text())


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


SLEEP = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"


def test_signals_reach_it(warm_python, tmp_path):
    caught = f"try:\n    exec({SLEEP!r})\nexcept KeyboardInterrupt:\n    raise SystemExit(9)"
    process, _ = waiting(warm_python, tmp_path, caught)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 9
    (tmp_path / "pid").unlink()
    process, pid = waiting(warm_python, tmp_path, SLEEP)
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM and not is_alive(pid)


def test_who_kills_it_kills_all_that_it_started(warm_python, tmp_path):
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
    process, pid = waiting(warm_python, tmp_path, nested)
    assert is_alive(pid)
    process.kill()
    process.wait(10)
    end = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(pid)
