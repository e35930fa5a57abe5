"""Verbs on what is shown and checked: report, readme, verify."""

from typing import Annotated

import typer

from primekd.cli.common import JsonOption, ProfileOption, app, print_json, verb
from primekd.errors import UserError


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
    drifted = update_pages(check)
    if check and drifted:
        raise UserError(f"{', '.join(drifted)} differ from logs/: run `primekd readme`.")
    print(f"{', '.join(drifted) + ' written anew' if drifted else 'Every table is what logs/ say'}.")


def update_pages(check: bool) -> list[str]:
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
