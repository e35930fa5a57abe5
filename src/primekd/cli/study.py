"""Verbs on a whole study: run, status, doctor, notebook."""

from pathlib import Path
from typing import Annotated

import typer

from primekd.cli.common import JsonOption, ProfileOption, SeedOption, app, print_json, verb


@app.command()
@verb
def run(
    profile: ProfileOption = "pocket",
    cores: Annotated[int | None, typer.Option(help="Cores to use; all of them if left out.")] = None,
    force: Annotated[
        bool, typer.Option(help="Execute every notebook again (stages with unchanged inputs stay).")
    ] = False,
) -> None:
    """Runs the whole study: every notebook that has to be run, in order. Stop it and run it again as you like.

    \b
    primekd run
    primekd run --profile ci --cores 2
    """
    from primekd.config import load_profile
    from primekd.run import run_study

    loaded = load_profile(profile)
    print(f"primekd run: {loaded.name} — {loaded.description}", flush=True)
    if not run_study(loaded, profile, cores, force):
        print("primekd run: nothing to be done, everything is up to date.")
    show_results(loaded)


def show_results(profile) -> None:
    """Prints the results table and where the files are."""
    from primekd.provenance import relative_name
    from primekd.report.tables import results_text

    print(results_text(profile.logs))
    print(f"Report: {relative_name(profile.logs / 'report.html')}")
    print(f"Executed notebooks: {relative_name(profile.runs / 'notebooks')}")


@app.command()
@verb
def status(profile: ProfileOption = "pocket", json: JsonOption = False) -> None:
    """Says how far each stage of a profile is.

    \b
    primekd status
    primekd status --profile pocket --json
    """
    from primekd.config import load_profile
    from primekd.status import stage_states

    states = stage_states(load_profile(profile))
    if json:
        return print_json(states)
    if not states:
        print(f"No stage of {profile} has been started: `primekd run --profile {profile}` starts them all.")
    for entry in states:
        count = f"{entry['done']:>6}/{entry['total']:<6} {entry['unit'] + 's':8}"
        print(f"{entry['stage']:30} {count} {entry['state']:8} {entry['updated']}")


@app.command()
@verb
def doctor(
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="Look at this profile's models alone.")] = None,
    json: JsonOption = False,
) -> None:
    """Says what this machine can run: Python, packages against the pins, hardware, disk, engines, models.

    \b
    primekd doctor
    primekd doctor --profile pocket --json
    """
    from primekd.doctor import examine

    findings = examine(profile)
    if json:
        print_json([vars(f) for f in findings])
    else:
        for finding in findings:
            mark = {"ok": "ok  ", "warning": "!   ", "error": "FAIL"}[finding.level]
            print(f"{mark} {finding.topic:10} {finding.text}")
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


@app.command()
@verb
def notebook(
    source: Annotated[Path, typer.Argument(help="The notebook to execute.")],
    output: Annotated[Path, typer.Argument(help="Where the executed copy goes; its HTML is written beside it.")],
    profile: ProfileOption = "pocket",
    strategy: Annotated[str | None, typer.Option(help="Parameter of that name, where the notebook has one.")] = None,
    seed: SeedOption = None,
) -> None:
    """Executes one notebook unattended, as `primekd run` does.

    \b
    primekd notebook base-KD/distill.ipynb /tmp/distill.ipynb --strategy base-KD --seed 0
    """
    from primekd.notebooks import execute

    given = {"profile": profile, "strategy": strategy, "seed": seed}
    execute(source, output, {name: value for name, value in given.items() if value is not None})
