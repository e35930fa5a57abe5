"""The verb plan."""

from typing import Annotated

import typer

from primekd.cli.common import JsonOption, ProfileOption, app, print_json, verb


@app.command()
@verb
def plan(
    profile: ProfileOption = "pocket",
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Load the models, run one batch of each kind, compare with the prediction."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Says what a run needs before it starts: memory for each GPU, disk for each codec, tokens, hours, energy.

    Works offline and without the models; exits with 1 if something will not fit. With --measure the memory of this
    machine's own passes is set beside what was predicted.

    \b
    primekd plan
    primekd plan --profile paper
    primekd plan --profile single-gpu --json
    primekd plan --profile pocket --measure
    """
    from primekd.config import load_profile

    loaded = load_profile(profile)
    if measure:
        return show_measured(profile, json)
    from primekd.planning.build import make_plan
    from primekd.planning.text import plan_text

    found = make_plan(loaded)
    if json:
        print_json(found.as_json())
    else:
        print(plan_text(found))
    if not found.works:
        raise typer.Exit(1)


def show_measured(profile: str, json: bool) -> None:
    """Prints predicted and measured memory, phase by phase."""
    from primekd.planning.compare import compare_case, comparison_text

    cases = [case for stage in ("teacher", "student") for case in compare_case(profile, stage)]
    if json:
        return print_json(cases)
    print(comparison_text(cases))
