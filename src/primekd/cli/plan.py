"""The verb plan."""

import typer

from primekd.cli.common import JsonOption, ProfileOption, app, print_json, verb


@app.command()
@verb
def plan(
    profile: ProfileOption = "pocket",
    json: JsonOption = False,
) -> None:
    """Says what a run needs before it starts: memory for each GPU, disk for each codec, tokens, hours.

    Works offline and without the models; exits with 1 if something will not fit.

    \b
    primekd plan
    primekd plan --profile paper
    primekd plan --profile single-gpu --json
    """
    from primekd.config import load_profile
    from primekd.planning.plan import make_plan, plan_text

    found = make_plan(load_profile(profile))
    if json:
        print_json(found.as_json())
    else:
        print(plan_text(found))
    if not found.works:
        raise typer.Exit(1)
