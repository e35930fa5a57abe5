"""`python -m benchmarks run` (`make bench`) measures and writes the tables; `page` alone writes or checks them.

The profile `pocket-plain` must have its teacher, which `primekd prepare-teacher` builds.
"""

import gc
import os
import signal
import tempfile
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.parts import DEFAULT, LIMIT, PARTS
from benchmarks.scale import FULL, QUICK
from primekd.cli.common import quiet_libraries
from primekd.foundation import now, project_root, write_json
from primekd.foundation.errors import UserError
from primekd.report.formats import duration

RESULTS = project_root() / "benchmarks" / "results"
PAGE = project_root() / "docs" / "performance.md"


class PartTooLong(BaseException):
    """A part has used up its time. No part takes it for a failure of something that it measures."""


app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Measurements side by side; see docs/performance.md."
)
Out = Annotated[Path, typer.Option(help="Where the JSON files and figures are, or are to be.")]


@app.command()
def run(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"Any of {', '.join(PARTS)}; if left out: {', '.join(DEFAULT)}.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Tiny sizes: shows that all of it runs, measures nothing.")] = False,
    out: Out = RESULTS,
) -> None:
    """Runs parts, writes <part>.json, bars.json, figures and the tables of docs/performance.md, prints the bars.

    Examples:  python -m benchmarks run    python -m benchmarks run losses training    python -m benchmarks run --quick
    """
    start = time.monotonic()
    # Bars of loading and capturing would stand between the lines of a part; tqdm reads this when it is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from benchmarks.bars import judge
    from benchmarks.figures import draw_all
    from benchmarks.page import VERDICTS, measured_text, update_page
    from benchmarks.results import WHOLE

    quiet_libraries()
    chosen, out = list(parts or DEFAULT), out.resolve()
    if unknown := [name for name in chosen if name not in PARTS]:
        raise SystemExit(f"No part is called {', '.join(unknown)}: take any of {', '.join(PARTS)}.")
    if quick and out == RESULTS:
        out = Path(tempfile.mkdtemp(prefix="bench-quick-"))
    out.mkdir(parents=True, exist_ok=True)
    if chosen == DEFAULT:
        (out / WHOLE).unlink(missing_ok=True)
    seconds = {name: _run_part(name, chosen, quick, out) for name in chosen}
    draw_all(out)
    if chosen == DEFAULT and None not in seconds.values():
        write_json(out / WHOLE, {"seconds": round(time.monotonic() - start, 1), "quick": quick, "end": now()})
    bars = judge(out)
    write_json(out / "bars.json", bars)
    if out == RESULTS and PAGE.is_file():
        update_page(PAGE, out, check=False)
    for row in bars:
        measured = "" if row["measured"] is None else f", measured {measured_text(row)}"
        verdict = VERDICTS[row["met"], row["every_round"]].replace("*", "")
        print(f"{verdict:23} {row['bar']}: {row['target']}{measured}")
    taken = {name: duration(value) if value is not None else "failed" for name, value in seconds.items()}
    print("Durations: " + ", ".join(f"{name} {text}" for name, text in taken.items()))
    print(f"In all: {duration(time.monotonic() - start)}.")
    print("Results are in benchmarks/results/." if out == RESULTS else f"Results are in {out}.")
    if failed := [name for name, value in seconds.items() if value is None]:
        raise SystemExit(f"These parts failed, see above: {', '.join(failed)}.")


@app.command()
def page(
    out: Out = RESULTS,
    check: Annotated[bool, typer.Option(help="Write nothing; fail if a table is not what the results say.")] = False,
) -> None:
    """Writes the tables of docs/performance.md anew from the results."""
    from benchmarks.page import update_page

    if not PAGE.is_file() and not check:
        print("There is no docs/performance.md, so no table was written.")
        return
    try:
        changed = update_page(PAGE, out, check)
    except UserError as error:
        raise SystemExit(str(error)) from error
    if check and changed:
        raise SystemExit(
            f"These tables are not what the results say: {', '.join(changed)}. Run: python -m benchmarks page"
        )


def _run_part(name: str, chosen: list[str], quick: bool, out: Path) -> float | None:
    """Runs one part and writes its file; returns its seconds, None if it failed, which stops no other part."""
    from benchmarks.results import write_part

    number, part = chosen.index(name), PARTS[name]
    left = "" if quick else f"; about {duration(sum(PARTS[n].seconds for n in chosen[number:]))} left"
    print(f"[{number + 1}/{len(chosen)}] {name}: {part.does}{left}", flush=True)
    start = time.monotonic()

    def say(*texts: str) -> None:
        print(f"  {time.monotonic() - start:5.0f} s  {': '.join(texts)}", flush=True)

    def stop(number, frame) -> None:
        raise PartTooLong(f"{name} took more than {duration(LIMIT * part.seconds)} and was stopped")

    (out / f"{name}.json").unlink(missing_ok=True)  # what fails has no result, rather than an old one
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(round(LIMIT * part.seconds))
    try:
        found = part.measure(QUICK if quick else FULL, say)
    except (Exception, PartTooLong):
        traceback.print_exc()
        return None
    finally:
        signal.alarm(0)
        gc.collect()
    seconds = time.monotonic() - start
    write_part(out, name, quick, seconds, found)
    return seconds


if __name__ == "__main__":
    app()
