"""The verb on teacher engines: check-engine."""

from typing import Annotated

import typer

from primekd.cli.common import JsonOption, ProfileOption, app, print_json, verb


@app.command("check-engine")
@verb
def check_engine(
    profile: ProfileOption = "pocket",
    items: Annotated[int, typer.Option(min=1, help="How many test questions are asked.")] = 16,
    strategy: Annotated[str, typer.Option(help="Whose priming text the teacher sees.")] = "base-KD",
    reference: Annotated[
        str | None, typer.Option(help="Model that transformers loads in float32; the teacher's own if left out.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compares a profile's teacher engine with transformers on the same tokens; writes a file in logs/engines/.

    The README's table of engines is made from these files. Where the engine's format is its own (EXL2), name the
    model that it was converted from with --reference.

    \b
    primekd check-engine --profile pocket-llamacpp
    primekd check-engine --profile single-gpu --reference hub:meta-llama/Llama-3.1-8B-Instruct
    """
    from primekd.config import load_profile
    from primekd.running.check_engine import check_engine as run_check
    from primekd.running.check_engine import say_check

    result = run_check(load_profile(profile), items, strategy, reference)
    print_json(result) if json else print(say_check(result))
