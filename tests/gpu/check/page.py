"""`tests/gpu/run.sh page [gpu.json]`: takes over what a GPU found, and writes the table of docs/gpu.md from it."""

import argparse
import json
import re
import sys
from pathlib import Path

from check.findings import JSON, Report, line, markdown, write_whole
from check.machine import ROOT

PAGE, KEPT = ROOT / "docs" / "gpu.md", ROOT / "benchmarks" / "results" / JSON
BLOCK = re.compile(r"(<!-- gpu:begin -->\n).*?(<!-- gpu:end -->)", re.S)
NOT_RUN = "**Not run.** Nothing on this page was measured."


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh page", description=__doc__)
    parser.add_argument("found", nargs="*", type=Path, help="gpu.json of runs on a GPU; left out, the one kept here")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not what was found")
    options = parser.parse_args()
    if options.found:
        write_whole(KEPT, json.dumps(merged([take(path) for path in options.found]), indent=1) + "\n")
    text = PAGE.read_text(encoding="utf-8")
    new = BLOCK.sub(lambda block: f"{block[1]}\n{table(KEPT)}\n\n{block[2]}", text)
    if options.check and new != text:
        print("docs/gpu.md is not what was found: run tests/gpu/run.sh page.")
        return 1
    if not options.check:
        write_whole(PAGE, new)
    return 0


def merged(runs: list[dict]) -> dict:
    """Several runs of the same code on the same kind of machine as one; of a part the last one counts.

    Raises:
        SystemExit: they are of different machines or code.
    """
    if any(run["machine"] != runs[0]["machine"] for run in runs):
        raise SystemExit("These runs are of different cards, versions or commits: take those of one.")
    return runs[0] | {"parts": {name: found for run in runs for name, found in run["parts"].items()}}


def take(path: Path) -> dict:
    """What the file says, if it is of a GPU at full size.

    Raises:
        SystemExit: it is not, or cannot be read.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        on_gpu = "CUDA" in facts["machine"] and not facts["tiny"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no {JSON} of the check: name the file that run.sh wrote.") from error
    if not on_gpu:
        raise SystemExit(f"{path} is of a CPU or of tiny shapes, which measures nothing: docs/gpu.md stays as it is.")
    return facts


def table(kept: Path) -> str:
    """The table with what is wrong or farthest from what was hoped in front; a sentence where there is none."""
    if not kept.is_file():
        return NOT_RUN
    report = Report(kept.parent)
    first = [f"**Wrong** ({part}): {line(row)}." for part, row in report.wrong()]
    first += [f"Farthest from what was hoped ({part}): {line(row)}." for part, row in report.missed()[:1]]
    return "\n\n".join([*first, markdown(report).strip()])


if __name__ == "__main__":
    sys.exit(main())
