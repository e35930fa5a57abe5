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
ExtractorOption = Annotated[
    str, typer.Option(help="published, validated, strict-match, flexible-extract or math-verify.")
]
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
    question_column: Annotated[
        str | None, typer.Option(help="Column of questions; `question` is used if it is there.")
    ] = None,
    extractor: ExtractorOption = "published",
    out: Annotated[Path | None, typer.Option(help="Write the per-item log here.")] = None,
    json: JsonOption = False,
) -> None:
    """Extracts and grades the answers of any CSV file.

    Columns that are used where they are there: id, question, response_tokens, truncated.

    \b
    primekd grade answers.csv --response-column response --gold-column gold --json
    primekd grade answers.csv --response-column response --gold-column gold --extractor validated --out log.csv
    """
    from primekd.assessment.grade_file import Columns, grade_file, say_result

    result = grade_file(file, Columns(response_column, gold_column, question_column), out, extractor)
    print_json(result) if json else print(say_result(result))


@app.command()
@verb
def compare(
    first: Annotated[Path, typer.Argument(help="A per-item log, or a CSV file of answers.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same items.")],
    response_column: Annotated[str | None, typer.Option(help="Of files that are no per-item logs.")] = None,
    gold_column: Annotated[str | None, typer.Option(help="Of files that are no per-item logs.")] = None,
    question_column: Annotated[str | None, typer.Option(help="Of files that are no per-item logs.")] = None,
    extractor: ExtractorOption = "published",
    adjudicated: Annotated[
        bool, typer.Option("--adjudicated", help="By people's decisions where there are any.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compares two files of answers to the same questions: paired difference, exact McNemar test, what may be claimed.

    \b
    primekd compare logs/pocket/base-KD.csv logs/pocket/ai-KD.csv
    primekd compare a.csv b.csv --response-column response --gold-column gold --extractor validated --json
    """
    from primekd.assessment.compare import compare as run_compare
    from primekd.assessment.compare import pair_up, read_answers, say_comparison
    from primekd.assessment.grade_file import Columns

    if (response_column is None) != (gold_column is None):
        raise UserError("Name both --response-column and --gold-column, or neither for per-item logs.")
    columns = Columns(response_column, gold_column, question_column) if response_column and gold_column else None
    if columns is None and extractor != "published":
        raise UserError("Per-item logs are compared by their logged verdicts: name the columns to grade them anew.")
    pairs = pair_up(*(read_answers(path, columns, extractor) for path in (first, second)))
    result = run_compare(pairs, adjudicated)
    print_json(result) if json else print(say_comparison(result, (str(first), str(second))))


@app.command("published-study")
@verb
def published_study(
    folder: Annotated[Path, typer.Argument(help="Folder of the study's released logs, one CSV file a model.")],
) -> None:
    """Grades the published study's own logs under every extractor, and validates these against the labels.

    Writes logs/published/ (no answer texts) and the tables of docs/.

    \b
    primekd published-study ../shared/data/published-logs
    """
    from primekd.assessment.published_study import grade_published
    from primekd.provenance import relative_name

    print(f"published-study: wrote {relative_name(grade_published(folder))}")
    _update_pages(check=False)


@app.command()
@verb
def adjudicate(
    profile: ProfileOption = "pocket",
    model: Annotated[list[str] | None, typer.Option(help="This model's answers alone; may be given again.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many answers.")] = None,
    audit: Annotated[
        int | None, typer.Option(min=1, help="A blind second look at this many answers, drawn at random from all.")
    ] = None,
    who: Annotated[str | None, typer.Option(help="Who decides; git's user.name, else $USER, if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order and of the sample.")] = 0,
    list_only: Annotated[bool, typer.Option("--list", help="List the open answers, and ask nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Shows answers that no rule settles; you decide. Decisions go to assessment/adjudications.csv, each at once.

    \b
    primekd adjudicate
    primekd adjudicate --model base-KD --limit 20
    primekd adjudicate --audit 50
    primekd adjudicate --list --json
    """
    from primekd.assessment.adjudicate import check_who, default_who
    from primekd.assessment.adjudicate_session import finish, list_cases, open_session
    from primekd.assessment.adjudicate_terminal import list_text, run_session
    from primekd.config import load_profile

    if list_only and audit:
        raise UserError("--list lists the answers that are open for review: leave out --audit.")
    if json and not list_only:
        raise UserError("--json belongs to --list.")
    loaded = load_profile(profile)
    if list_only:
        found = list_cases(loaded, model, limit, seed)
        return print_json(found) if json else print(list_text(found))
    person = default_who() if who is None else check_who(who)
    session, said = open_session(loaded, person, model, limit, audit, seed)
    print(said)
    if session.cases:
        run_session(session)
    print(finish(session))  # also finishes a grading that was cut short before


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
    """Writes the tables of README.md and docs/ from logs/; with --check, fails if one differs.

    \b
    primekd readme
    primekd readme --check
    """
    drifted = _update_pages(check)
    if check and drifted:
        raise UserError(f"{', '.join(drifted)} differ from logs/: run `primekd readme`.")
    print(f"{', '.join(drifted) + ' written anew' if drifted else 'Every table is what logs/ say'}.")


def _update_pages(check: bool) -> list[str]:
    """Generated blocks of README.md and docs/ that are not what the logs say, as `file: block`."""
    from primekd.provenance import project_root, relative_name
    from primekd.report.readme import update_readme

    pages = [project_root() / "README.md", *sorted((project_root() / "docs").glob("*.md"))]
    return [f"{relative_name(page)}: {name}" for page in pages for name in update_readme(page, check=check)]


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
