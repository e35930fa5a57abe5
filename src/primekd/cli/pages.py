"""Verbs on what is shown, checked, taken along and published: export, report, show, readme, verify, publish."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from primekd.cli.common import (
    ArmArgument,
    JsonOption,
    ProfileOption,
    PublishedOption,
    SeedOption,
    load_to_write,
    show_result,
    verb,
)
from primekd.config import load_profile
from primekd.foundation.errors import UserError


@verb()
def export(
    strategy: ArmArgument,
    profile: ProfileOption = "pocket",
    seed: SeedOption = None,
    to: Annotated[Path | None, typer.Option(help="A folder that is not there yet, not runs/…/exports/.")] = None,
    gguf: Annotated[list[str] | None, typer.Option(help="F16, Q8_0 or Q4_K_M; may be repeated.")] = None,
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="Of the safetensors.")] = "bfloat16",
) -> None:
    """Writes a trained student for others: merged, for transformers, and with --gguf for llama.cpp and Ollama.

    \b
    primekd export ai-KD
    primekd export ai-KD --gguf F16 --gguf Q8_0 --gguf Q4_K_M
    primekd export ai-KD --seed 1 --to /elsewhere/ai-KD --dtype float32
    """
    from primekd.running.export import export as run_export

    print(run_export(load_profile(profile), strategy, seed, to, gguf or [], dtype))


@verb()
def report(profile: ProfileOption = "pocket", published: PublishedOption = False) -> None:
    """Writes report.html beside this machine's logs, or beside the published ones where it has none.

    With the published logs' report the README's tables are written too.

    \b
    primekd report
    primekd report --profile pocket --published
    """
    from primekd.report.readme import write_anew
    from primekd.studies.results import logs_in_use

    print("\n".join(write_anew(logs_in_use(load_profile(profile), published))))


@verb()
def show(
    item: Annotated[str, typer.Argument(help="The id of a test item, or the start of one.", show_default=False)] = "",
    model: Annotated[str | None, typer.Option("--model", "-m", help="As its log is named, for example ai-KD.")] = None,
    profile: ProfileOption = "pocket",
    published: PublishedOption = False,
    json: JsonOption = False,
) -> None:
    """Shows where a verdict comes from: item, prompt, answer, value and rule, student, signals, hashes and files.

    \b
    primekd show gsm-symbolic-26-74933082722650
    primekd show gsm-symbolic-26-7493 --model base-KD --json
    """
    from primekd.running import show as way_back
    from primekd.studies.results import logs_in_use

    parts = way_back.show(logs_in_use(load_profile(profile), published), item, model)
    show_result({part.title: dict(part.rows) for part in parts} if json else parts, json, way_back.as_text)


@verb()
def readme(check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if one drifted.")] = False) -> None:
    """Writes the tables of README.md and docs/ from the published logs; with --check, fails if one differs.

    \b
    primekd readme
    primekd readme --check
    """
    from primekd.report.readme import update_pages

    drifted = ", ".join(update_pages(check))
    if check and drifted:
        raise UserError(f"{drifted} differ from logs/: run `primekd readme`.")
    print(f"{drifted} written anew." if drifted else "Every table is what logs/ say.")


@verb()
def verify(
    profile: ProfileOption = "pocket",
    published: PublishedOption = False,
    against_published: Annotated[
        bool, typer.Option("--against-published", help="Only say whether this machine's logs reproduce those.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Recomputes hashes and verdicts of a profile's logs, signals and students; names what differs and what to do.

    Looks at this machine's logs, runs/<profile>/logs/, or at the published ones where it has none. Fails if a problem
    is found or, with --against-published, if this machine's logs do not reproduce the published ones.

    \b
    primekd verify
    primekd verify --profile pocket --published --json
    primekd verify --against-published
    """
    from primekd.running import verify as checking
    from primekd.studies.results import logs_in_use

    loaded = load_profile(profile)
    if against_published:
        from primekd.running.reproduction import REPRODUCED, compare_with_published, verdict_text

        found = compare_with_published(loaded)
        show_result(found, json, verdict_text)
        raise typer.Exit(0 if found["verdict"] == REPRODUCED else 1)
    checks = checking.verify(logs_in_use(loaded, published))
    show_result([vars(c) for c in checks] if json else checks, json, checking.checks_text)
    if any(c.problems for c in checks):
        raise typer.Exit(1)


@verb()
def publish(
    profile: ProfileOption = "pocket",
    mixed: Annotated[bool, typer.Option("--mixed", help="Also what several commits made; manifests name it.")] = False,
    hub: Annotated[str | None, typer.Option("--hub", help="A repository, owner/name; name below what to send.")] = None,
    student: Annotated[str | None, typer.Option(help="An exported student: its folder, or its name.")] = None,
    signals: Annotated[list[str] | None, typer.Option(help="The arm whose signals go; may be repeated.")] = None,
    logs: Annotated[bool, typer.Option("--logs", help="The profile's logs go.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, with sizes, and ask nobody.")] = False,
) -> None:
    """Puts this machine's logs in the place of the published ones, logs/<profile>/, and writes README's tables anew.

    Refused where `primekd verify` finds a problem. Nothing else moves logs; commit what it changed. With --hub nothing
    moves here: what is named goes to the Hugging Face hub, the student as a model, signals and logs as a data set.

    \b
    primekd publish
    primekd publish --profile laptop --mixed
    primekd publish --hub owner/name --student ai-KD --dry-run
    primekd publish --hub owner/name --student ai-KD --signals ai-KD --logs
    """
    if hub is not None:
        from primekd.running.upload import gather, say, send

        for upload in gather(load_profile(profile), hub, student, signals or [], logs):
            print(say(upload))
            if not dry_run:
                print(send(upload))
        return
    if student or signals or logs or dry_run:
        raise UserError("--student, --signals, --logs and --dry-run belong to --hub: name a repository with it.")
    from primekd.report.readme import update_pages
    from primekd.running.publishing import publish as run_publish

    print("\n".join(run_publish(load_to_write(profile), mixed)))
    print("\n".join(f"{block} written anew" for block in update_pages(check=False)) or "No table changed.")
