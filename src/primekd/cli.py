"""The verbs. Nothing but parsing and calls; heavy imports wait until a verb needs them."""

import errno
import functools
import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from primekd.errors import UserError

app = typer.Typer(
    help="Does the way a quantised teacher is prompted change what a small student learns from its logits?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="A profile in configs/, or a path of a YAML file.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the student; the profile's own if left out.")]
StrategyArgument = Annotated[str, typer.Argument(help="A strategy in configs/strategies.yaml, for example base-KD.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


def verb(function):
    """Prints a user's mistake or a full disk as one sentence on stderr and exits with 1; Ctrl-C exits with 130."""

    @functools.wraps(function)
    def run(*arguments, **options):
        quiet_libraries()
        try:
            return function(*arguments, **options)
        except UserError as error:
            print(f"primekd: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            fix = "free space or mend the rights, then run it again"
            print(f"primekd: {error.filename or 'a file'}: {error.strerror}: {fix}.", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("primekd: stopped; run the same command again to go on.", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


def quiet_libraries() -> None:
    """Keeps library chatter and bars of no interest off the screen, unless the user has set them."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)


@app.command("prepare-teacher")
@verb
def prepare_teacher(
    profile: ProfileOption = "pocket",
    train: Annotated[bool, typer.Option(help="Train the adapter anew before building the file.")] = False,
) -> None:
    """Builds the profile's teacher from its adapter; with --train, trains the adapter first.

    \b
    primekd prepare-teacher
    primekd prepare-teacher --profile pocket --train
    """
    from primekd.config import load_profile
    from primekd.prepare_teacher import build_teacher, train_teacher

    loaded = load_profile(profile)
    if loaded.prepare is None:
        print(f"prepare-teacher: nothing to do, the profile {loaded.name} takes its teacher as it is.")
        return
    if train:
        train_teacher(loaded)
    build_teacher(loaded)


@app.command()
@verb
def capture(
    strategy: Annotated[str | None, typer.Argument(help="A strategy with a teacher, for example ai-KD.")] = None,
    profile: ProfileOption = "pocket",
    seed: SeedOption = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="The unprimed teacher on the test items.")] = False,
) -> None:
    """Asks the teacher, primed, and keeps its responses and signals; goes on where it stopped.

    \b
    primekd capture ai-KD
    primekd capture --held-out
    """
    from primekd.capture import capture as run_capture
    from primekd.capture import held_out_job, training_job
    from primekd.config import load_profile

    if held_out == bool(strategy):
        raise UserError("Name either a strategy or --held-out, which is the unprimed teacher on the test items.")
    loaded = load_profile(profile)
    print(run_capture(held_out_job(loaded) if held_out else training_job(loaded, strategy, seed)))


@app.command()
@verb
def distill(strategy: StrategyArgument, profile: ProfileOption = "pocket", seed: SeedOption = None) -> None:
    """Trains the student of one strategy on captured signals (base-fine-tune: on the gold solutions).

    \b
    primekd distill ai-KD
    primekd distill base-fine-tune --seed 1
    """
    from primekd.config import load_profile
    from primekd.distill import distill as run_distill

    print(run_distill(load_profile(profile), strategy, seed))


@app.command()
@verb
def assess(profile: ProfileOption = "pocket") -> None:
    """Scores control, students and teacher on the test items; writes logs/<profile>/.

    \b
    primekd assess
    primekd assess --profile ci
    """
    from primekd.assessment.assess import assess as run_assess
    from primekd.config import load_profile

    print(run_assess(load_profile(profile)))


@app.command()
@verb
def grade(
    file: Annotated[Path, typer.Argument(help="A CSV file of answers.")],
    response_column: Annotated[str, typer.Option(help="Column that holds the answers.")],
    gold_column: Annotated[str, typer.Option(help="Column of gold values: a number, or a solution ending in #### 18.")],
    question_column: Annotated[str | None, typer.Option(help="Column of questions, for the log.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the per-item log here.")] = None,
    json: JsonOption = False,
) -> None:
    """Extracts and grades the answers of any CSV file by the published rules.

    \b
    primekd grade answers.csv --response-column response --gold-column gold --json
    primekd grade answers.csv --response-column response --gold-column gold --question-column question --out log.csv
    """
    from primekd.assessment.grade_file import grade_file, say_result

    result = grade_file(file, response_column, gold_column, question_column, out)
    print_json(result) if json else print(say_result(result))


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
def report(profile: ProfileOption = "pocket") -> None:
    """Writes logs/<profile>/report.html from the logs, and the README's tables with it.

    \b
    primekd report
    primekd report --profile ci
    """
    from primekd.config import load_profile
    from primekd.provenance import output_root, project_root, relative_name
    from primekd.report.html import write_report
    from primekd.report.readme import update_readme

    print(f"report: wrote {relative_name(write_report(load_profile(profile)))}")
    if output_root() == project_root():
        for name in update_readme(project_root() / "README.md", check=False, only=profile):
            print(f"README.md: block {name!r} written anew")


@app.command()
@verb
def readme(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a number drifted.")] = False,
) -> None:
    """Writes the README's tables from logs/; with --check, fails if one differs.

    \b
    primekd readme
    primekd readme --check
    """
    from primekd.provenance import project_root
    from primekd.report.readme import update_readme

    drifted = update_readme(project_root() / "README.md", check=check)
    if check and drifted:
        raise UserError(f"README.md: the blocks {', '.join(drifted)} differ from logs/: run `primekd readme`.")
    print(f"README.md: {', '.join(drifted) + ' written anew' if drifted else 'every table is what logs/ say'}.")


@app.command()
@verb
def verify(profile: ProfileOption = "pocket", json: JsonOption = False) -> None:
    """Recomputes hashes and verdicts of a profile's logs, signals and students; names what differs.

    \b
    primekd verify
    primekd verify --profile pocket --json
    """
    from primekd.config import load_profile
    from primekd.verify import verify as run_verify

    checks = run_verify(load_profile(profile))
    if json:
        print_json([vars(c) for c in checks])
    else:
        for check in checks:
            print(f"{'FAIL' if check.problems else 'ok  '} {check.what}")
            for problem in check.problems:
                print(f"       {problem}")
    if any(c.problems for c in checks):
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


def print_json(value: object) -> None:
    """Prints a value as JSON."""
    print(json_module.dumps(value, indent=2, ensure_ascii=False, default=str))


if __name__ == "__main__":
    app()
