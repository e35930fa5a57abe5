"""`python -m check` runs the parts one after the other, each in a process of its own with a time limit.

Needs nothing but Python to start, so that a machine on which nothing imports still leaves a table that says so.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from check.findings import CUT, DONE, FAILED, JSON, TABLE, Report, Row, line
from check.parts import PARTS

SLACK_S = 5  # of the whole time, for what stands between the parts


def main() -> int:
    """Runs what was asked for; 1 if something is wrong, failed or was cut off."""
    options = read_options()
    if options.alone:
        return run_alone(options)
    out = options.out.resolve()
    report = Report(out)
    # The whole time began with run.sh; a part of an earlier run stays if it was the same code on the same machine.
    end = float(os.environ.get("CHECK_BEGAN", time.time())) + 60 * options.minutes - SLACK_S
    report.open({"machine": machine_facts(), "tiny": options.tiny})
    for number, name in enumerate(options.parts, 1):
        limit = min(PARTS[name].limit_s, end - time.time())
        print(f"[{number}/{len(options.parts)}] {name}: {PARTS[name].does} (at most {max(limit, 0):.0f} s)", flush=True)
        run_part(name, limit, out, options.tiny)
    return summary(Report(out))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/gpu/run.sh",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Checks this project on one GPU. Parts, in the order in which they run:\n"
        + "\n".join(f"  {name:12} {part.does} (at most {part.limit_s} s)" for name, part in PARTS.items()),
        epilog="examples:\n  tests/gpu/run.sh\n  tests/gpu/run.sh --parts losses steps --out results\n"
        "  tests/gpu/run.sh --tiny            on a CPU: shows that all of it runs, measures nothing\n"
        "  tests/gpu/run.sh page gpu.json     puts what a run found into docs/gpu.md",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where gpu.json and gpu.md go (runs/gpu)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="these alone")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything together (9.5)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    parser.add_argument("--alone", choices=PARTS, help=argparse.SUPPRESS)  # what run_part starts
    return parser.parse_args()


def machine_facts() -> dict:
    """In a process of its own: this one stays small, and holds no GPU memory."""
    code = "import json; from check.machine import facts; print(json.dumps(facts()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        return {"card": "unknown", "why": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def run_part(name: str, limit: float, out: Path, tiny: bool) -> None:
    """Runs one part and ends it, with all its processes, when its time is over; what it found by then stays."""
    Report(out).begin(name, limit_s=round(max(limit, 0), 1))
    if limit <= 1:
        Report(out).end(name, CUT, why="not begun: the whole time was over")
        return
    command = [sys.executable, "-m", "check", "--alone", name, "--out", str(out), *(["--tiny"] if tiny else [])]
    start = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    why = ""
    try:
        state = DONE if process.wait(limit) == 0 else FAILED
    except subprocess.TimeoutExpired:
        state, why = CUT, f"stopped after {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started itself, too
        process.wait()
    report = Report(out)
    if state == FAILED:
        why = report.facts["parts"][name].get("why") or f"its process ended with {process.returncode}"
    report.end(name, state, seconds=round(time.monotonic() - start, 1), **({"why": why} if why else {}))
    print(f"  {state} after {time.monotonic() - start:.0f} s {why}".rstrip(), flush=True)


def run_alone(options: argparse.Namespace) -> int:
    """One part, in the process that run_part started."""
    out, name = options.out.resolve(), options.alone
    report = Report(out)
    try:
        from check.sizes import FULL, SMALL

        run = import_module(f"check.{PARTS[name].module}").run

        def add(*rows: Row) -> None:
            # Of times at tiny shapes nothing is asked, nor of what is made of them alone.
            def free(row: Row) -> bool:
                return options.tiny and (row.hope or name == "alone")

            report.add(name, *(replace(r, most=None, least=None) if free(r) else r for r in rows))

        run(SMALL if options.tiny else FULL, add, report)
    except Exception as error:  # said in the table; the next parts go on
        traceback.print_exc()
        report.end(name, FAILED, why=f"{type(error).__name__}: {str(error)[-300:]}")
        return 1
    return 0


def summary(report: Report) -> int:
    """Prints what is wrong, and what is farthest from what was hoped."""
    states = {name: found["state"] for name, found in report.facts["parts"].items()}
    wrong, missed = report.wrong(), report.missed()
    print("\n" + ", ".join(f"{name}: {state}" for name, state in states.items()))
    for part, row in wrong:
        print(f"WRONG ({part}): {line(row)}")
    if missed:
        print(f"Farthest from what was hoped ({missed[0][0]}): {line(missed[0][1])}")
    print(
        f"Table: {report.folder / TABLE}. A GPU's goes into docs/gpu.md: tests/gpu/run.sh page {report.folder / JSON}"
    )
    return int(bool(wrong) or any(state != DONE for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
