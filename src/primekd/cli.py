"""The verbs. Nothing but parsing and calls; heavy imports wait until a verb needs them."""

import functools
import json as json_module
import os
import sys
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
    """Prints a UserError as one sentence on stderr and exits with status 1; Ctrl-C exits with 130."""

    @functools.wraps(function)
    def run(*arguments, **options):
        quiet_libraries()
        try:
            return function(*arguments, **options)
        except UserError as error:
            print(f"primekd: {error}", file=sys.stderr)
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
    strategy: StrategyArgument,
    profile: ProfileOption = "pocket",
    seed: SeedOption = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="The unprimed teacher on the test items.")] = False,
) -> None:
    """Asks the teacher, primed, and keeps its responses and signals; goes on where it stopped.

    \b
    primekd capture ai-KD
    primekd capture base-KD --held-out
    """
    from primekd.capture import capture as run_capture
    from primekd.capture import held_out_job, training_job
    from primekd.config import load_profile

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


def print_json(value: object) -> None:
    """Prints a value as JSON."""
    print(json_module.dumps(value, indent=2, ensure_ascii=False, default=str))


if __name__ == "__main__":
    app()
