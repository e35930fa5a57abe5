"""Verbs on a whole study: run, status, doctor, notebook, plan."""

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from primekd.cli.common import JsonOption, ProfileOption, SeedOption, load_to_write, show_result, verb
from primekd.config import load_profile
from primekd.foundation import UserError, project_root, relative_name


@verb()
def run(
    profile: ProfileOption = "pocket",
    cores: Annotated[int | None, typer.Option(help="Cores to use; all of them if left out.")] = None,
    force: Annotated[bool, typer.Option(help="Execute every notebook again (unchanged stages stay).")] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Every stage is a Slurm job, strategies in parallel.")] = False,
    slurm_profile: Annotated[Path | None, typer.Option(help="Snakemake profile's folder; else configs/slurm.")] = None,
    capture_workers: Annotated[int, typer.Option(min=1, help="With --slurm: so many jobs share a capture.")] = 1,
    force_stage: Annotated[
        list[str] | None,
        typer.Option(
            help="Make all results of a stage anew: prepare-teacher, capture, distill, assess or inside, as far as the "
            "study has it; may be repeated."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="A part alone: teacher (what priming did to it, no student is trained), inside (the students), "
            "ablation (the published protocol's deviations, where a profile has any)."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be run or submitted.")] = False,
) -> None:
    """Runs the whole study: every notebook that has to be run, in order. Stop it and run it again as you like.

    \b
    primekd run
    primekd run --profile ci --cores 2
    primekd run --only teacher
    primekd run --only ablation --profile ablation-pocket
    primekd run --force-stage distill
    primekd run --profile paper --slurm --slurm-profile my-cluster --capture-workers 4
    """
    from primekd.running.run import planned_jobs, run_study
    from primekd.running.slurm import open_cluster
    from primekd.studies.study import find_study

    if not slurm and (slurm_profile or capture_workers > 1):
        raise UserError("--slurm-profile and --capture-workers belong to --slurm: add it, or leave them out.")
    if slurm and cores:
        raise UserError("--cores is for one machine: on Slurm a job's cores stand in the Slurm profile.")
    cluster = open_cluster(slurm_profile or project_root() / "configs/slurm", capture_workers) if slurm else None
    loaded = load_to_write(profile)
    asked = loaded, profile, cores, force, cluster, force_stage or (), only
    if only is not None and only not in (parts := find_study(loaded).parts(loaded)):
        choice = f"choose {' or '.join(parts)}, or leave" if parts else "leave"
        raise UserError(f"--only {only}: {loaded.name} has no such part; {choice} it out.")
    print(f"primekd run: {loaded.name} — {loaded.description}", flush=True)
    if dry_run:
        return show_plan(planned_jobs(*asked), cluster is not None)
    if not run_study(*asked):
        print("primekd run: nothing to be done, everything is up to date.")
    if only == "teacher":
        return show_teacher(loaded)
    if only == "ablation":
        return print(f"Notebook: {relative_name(loaded.runs / 'notebooks/assessment/ablation.html')}")
    if only:
        return print(f"Report: {relative_name(loaded.logs / 'report.html')}")
    from primekd.running.publishing import other_code_text

    show_results(loaded)
    if said := other_code_text(loaded):
        print(said)


def show_plan(jobs: list, on_slurm: bool) -> None:
    """Prints what a run would do: one line a job and, on Slurm, what it would ask for."""
    left_out = ("tmpdir=", "mem=", "mem_mib=", "disk")  # Snakemake's own, or the same in another unit
    for job in jobs:
        wanted = sorted(one for one in job.wanted.split(", ") if not one.startswith(left_out))
        print(f"  {job.label:28}" + (" ".join(wanted) if on_slurm and job.rule != "report" else ""))
    print("primekd run: nothing was run." if jobs else "primekd run: nothing to be done, everything is up to date.")


def show_teacher(profile) -> None:
    """Prints what priming did to the teacher, and where the table is."""
    from primekd.capture.judged import judged_folder
    from primekd.report.cells import to_text
    from primekd.report.primed import primed_sentences, primed_table

    folder = judged_folder(profile)
    wide = "n", "Difference, points [95 %]", "Difference [95 %]", "Entropy", "Unsure, %"  # a terminal has no room for
    print(to_text(primed_table(folder).without(*wide)))
    print("\n".join(primed_sentences(folder)))
    page = relative_name(profile.runs / "notebooks/assessment/teacher.html")
    print(f"Files: {relative_name(folder)}; notebook: {page}")


def show_results(profile) -> None:
    """Prints the results table, whether they are the published ones, and where the files are."""
    from primekd.report.findings import results_text
    from primekd.running.reproduction import compare_with_published, verdict_text
    from primekd.studies.study import find_study

    print(results_text(profile.logs))
    if known := find_study(profile).expected.get(profile.name):
        print(f"To be expected: {known}")
    print(verdict_text(compare_with_published(profile)))
    print(f"Report: {relative_name(profile.logs / 'report.html')}")
    print(f"Executed notebooks: {relative_name(profile.runs / 'notebooks')}")


@verb()
def status(profile: ProfileOption = "pocket", json: JsonOption = False) -> None:
    """Says how far each stage of a profile is, and whether its logs are there and are the published ones.

    With --json the stages alone; for the logs see `primekd verify --against-published --json`.

    \b
    primekd status
    primekd status --profile pocket --json
    """
    from primekd.running.reproduction import logs_lines
    from primekd.running.run_progress import stage_states

    loaded = load_profile(profile)
    states = stage_states(loaded)
    if json:
        return show_result(states, json)
    if not states:
        print(f"No stage of {profile} has been started: `primekd run --profile {profile}` starts them all.")
    for entry in states:
        count = f"{entry['done']:>6}/{entry['total']:<6} {entry['unit'] + 's':8}"
        print(f"{entry['stage']:30} {count} {entry['state']:8} {entry['updated']}")
    print("\n".join(logs_lines(loaded)))


@verb()
def doctor(
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="Look at this profile's models alone.")] = None,
    json: JsonOption = False,
) -> None:
    """Says what this machine can run: Python, packages against the pins, hardware, disk, engines, models.

    \b
    primekd doctor
    primekd doctor --profile pocket --json
    """
    from primekd.running.doctor import examine

    findings, marks = examine(profile), {"ok": "ok  ", "warning": "!   ", "error": "FAIL"}
    lines = [f"{marks[finding.level]} {finding.topic:10} {finding.text}" for finding in findings]
    show_result([vars(f) for f in findings] if json else lines, json, "\n".join)
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


def stop_quietly(*_: object) -> None:
    """SIGTERM as Ctrl-C, without what asyncio and zmq then say of the loose ends of a notebook's kernel."""
    logging.disable()
    sys.unraisablehook = lambda _: None
    raise KeyboardInterrupt


@verb()
def notebook(
    source: Annotated[Path, typer.Argument(help="The notebook to execute.")],
    output: Annotated[Path, typer.Argument(help="Where the executed copy goes; its HTML is written beside it.")],
    profile: ProfileOption = "pocket",
    strategy: Annotated[str | None, typer.Option(help="Parameter of that name, where the notebook has one.")] = None,
    seed: SeedOption = None,
    further: Annotated[list[int] | None, typer.Option(help="Another seed, as the one before; may be repeated.")] = None,
) -> None:
    """Executes one notebook unattended, as `primekd run` does. SIGTERM, which Slurm sends, stops it as Ctrl-C does.

    \b
    primekd notebook base-KD/distill.ipynb /tmp/distill.ipynb --strategy base-KD --seed 0 --further 1
    """
    from primekd.running.notebooks import execute

    signal.signal(signal.SIGTERM, stop_quietly)
    given = {"profile": profile, "strategy": strategy, "seed": seed, "further": further or None}
    execute(source, output, {name: value for name, value in given.items() if value is not None})


@verb()
def plan(profile: ProfileOption = "pocket", json: JsonOption = False) -> None:
    """Says what a run needs before it starts: memory for each GPU, disk for each codec, tokens, hours.

    Works offline and without the models; exits with 1 if something will not fit.

    \b
    primekd plan
    primekd plan --profile paper
    primekd plan --profile single-gpu --json
    """
    from primekd.planning.plan import make_plan, plan_text

    found = make_plan(load_profile(profile))
    show_result(found.as_json() if json else found, json, plan_text)
    if not found.works:
        raise typer.Exit(1)
