"""What leaves this machine in others' formats: the verb export, and `publish --hub`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from primekd.cli.common import ProfileOption, SeedOption, StrategyArgument, verb
from primekd.config import Profile, load_profile

HubOption = Annotated[str | None, typer.Option("--hub", help="A repository, owner/name; what to send is named below.")]
StudentOption = Annotated[str | None, typer.Option(help="An exported student: its folder, or its name.")]
SignalsOption = Annotated[list[str] | None, typer.Option(help="The arm whose signals go; may be repeated.")]
LogsOption = Annotated[bool, typer.Option("--logs", help="The profile's logs go.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would go, with sizes, and ask nobody.")]


class Dtype(StrEnum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@verb()
def export(
    strategy: StrategyArgument,
    profile: ProfileOption = "pocket",
    seed: SeedOption = None,
    to: Annotated[
        Path | None, typer.Option(help="A folder that is not there yet, in place of runs/…/exports/.")
    ] = None,
    gguf: Annotated[list[str] | None, typer.Option(help="F16, Q8_0 or Q4_K_M; may be repeated.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the safetensors.")] = Dtype.bfloat16,
) -> None:
    """Writes a trained student for others: merged, for transformers, and with --gguf for llama.cpp and Ollama.

    \b
    primekd export ai-KD
    primekd export ai-KD --gguf F16 --gguf Q8_0 --gguf Q4_K_M
    primekd export ai-KD --seed 1 --to /elsewhere/ai-KD --dtype float32
    """
    from primekd.running.export import export as run_export

    print(run_export(load_profile(profile), strategy, seed, to, gguf or [], dtype.value))


def to_hub(profile: Profile, hub: str, student: str | None, signals: list[str], logs: bool, dry_run: bool) -> None:
    """Says what goes to the hub and, unless it is a dry run, sends it."""
    from primekd.running.upload import gather, say, send

    for upload in gather(profile, hub, student, signals, logs):
        print(say(upload))
        if not dry_run:
            print(send(upload))
