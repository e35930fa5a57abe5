"""What all verbs share: the app, options, and how mistakes are said."""

import contextlib
import errno
import functools
import json as json_module
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer

import primekd
from primekd.config import Profile, load_profile, refuse_namesake
from primekd.foundation import UserError, git_state, quiet_libraries
from primekd.training.processes import LAUNCHER

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def say_version(asked: bool) -> None:
    """Prints the version and, in a checkout, its commit, and ends."""
    if not asked:
        return
    state: dict[str, Any] = {"commit": None, "dirty": None}
    with contextlib.suppress(UserError):  # outside a checkout there is none to name
        state = git_state()
    changed = ", changed since" if state["dirty"] else ""
    print(f"primekd {primekd.__version__}" + (f" (commit {state['commit'][:7]}{changed})" if state["commit"] else ""))
    raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=say_version, is_eager=True, help="Print version and commit.")
    ] = False,
) -> None:
    """Does the way a quantised teacher is prompted change what a small student learns from its logits?"""


ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="A profile in configs/, or a path of a YAML file.")]
SeedOption = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Student's seed; else the profile's own.")]
ForceOption = Annotated[bool, typer.Option("--force-stage", help="Make it anew all the same; set the old one aside.")]
ArmArgument = Annotated[str, typer.Argument(help="A strategy in configs/strategies.yaml, for example base-KD.")]
ExtractorOption = Annotated[str, typer.Option(help="published, validated, strict-match, flexible-extract, math-verify")]
PublishedOption = Annotated[bool, typer.Option("--published", help="logs/<profile>/, not this machine's logs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


def verb(name: str | None = None):
    """Makes a function a verb, called like it or `name`: a user's mistake or a full disk is one sentence on stderr and
    exits with 1; Ctrl-C and SIGTERM exit with 130."""

    def register(function):
        @functools.wraps(function)
        def run(*arguments, **options):
            quiet_libraries()
            if LAUNCHER not in os.environ and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.default_int_handler)  # which Slurm sends: as Ctrl-C
            try:
                return function(*arguments, **options)
            except UserError as error:
                said, code = str(error), 1
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                    raise
                fix = "free space or mend the rights, then run it again"
                said, code = f"{error.filename or 'a file'}: {error.strerror}: {fix}.", 1
            except KeyboardInterrupt:
                # A wish of one verb is for its own time alone; `run` keeps a list of wishes until it has ended.
                forced = options.get("force") is True and "force_stage" not in options
                again = "without --force-stage " if forced else ""
                kept = "; what it had not reached stays as it was" if forced else ""
                said, code = f"stopped; run the same command again {again}to go on{kept}.", 130
            print(f"primekd: {said}", file=sys.stderr)
            raise typer.Exit(code)

        return app.command(name)(run)

    return register


def load_to_write(name: str) -> Profile:
    """The profile of a verb that writes into its runs. Raises UserError as `load_profile`, and for a namesake's."""
    if LAUNCHER not in os.environ:  # one of several processes has what their parent wrote down for them
        refuse_namesake(name)
    return load_profile(name)


def show_result(value: object, json: bool, text: Callable[[Any], str] = str) -> None:
    """Prints a value as `text` writes it or, for a machine to read, as JSON."""
    print(json_module.dumps(value, indent=2, ensure_ascii=False, default=str) if json else text(value))
