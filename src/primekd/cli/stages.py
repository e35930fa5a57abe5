"""Verbs of the stages: prepare-teacher, capture, distill, assess, analyse."""

from pathlib import Path
from typing import Annotated

import typer

from primekd.cli.common import ArmArgument, ForceOption, ProfileOption, SeedOption, load_to_write, verb
from primekd.foundation.errors import UserError


@verb("prepare-teacher")
def prepare_teacher(
    profile: ProfileOption = "pocket",
    train: Annotated[bool, typer.Option(help="Train the adapter before building the file.")] = False,
    force: ForceOption = False,
) -> None:
    """Builds the profile's teacher from its adapter; with --train, trains the adapter first.

    \b
    primekd prepare-teacher
    primekd prepare-teacher --profile pocket --train
    """
    from primekd.training.prepare_teacher import build_teacher, train_teacher

    loaded = load_to_write(profile)
    if loaded.prepare is None:
        print(f"prepare-teacher: nothing to do, the profile {loaded.name} takes its teacher as it is.")
        return
    if train:
        train_teacher(loaded, force)
    build_teacher(loaded, force)


@verb()
def capture(
    strategies: Annotated[list[str] | None, typer.Argument(help="Strategies with a teacher, loaded once.")] = None,
    profile: ProfileOption = "pocket",
    seed: SeedOption = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="The unprimed teacher on the test items.")] = False,
    responses: Annotated[
        str | None, typer.Option(help="Score the responses of this file (id and response a row), and write none.")
    ] = None,
    worker: Annotated[str | None, typer.Option(help="A fixed share, such as 2/4, not what others leave.")] = None,
    force: ForceOption = False,
) -> None:
    """Asks the teacher, primed, and keeps its responses and signals; goes on where it stopped.

    Start it several times at once, on any machines that share the folder runs/, and they share the work.

    \b
    primekd capture ai-KD
    primekd capture base-KD teacher-KD ai-KD
    primekd capture --held-out
    primekd capture ai-KD --worker 2/4
    primekd capture base-KD --responses human.csv
    """
    from primekd.capture.jobs import held_out_job, scoring_job, training_job
    from primekd.capture.run import capture_all
    from primekd.capture.workers import Part

    if held_out == bool(strategies):
        raise UserError("Name either a strategy or --held-out, which is the unprimed teacher on the test items.")
    if responses and (held_out or len(strategies) > 1):
        raise UserError("--responses are scored under the prompt of one strategy: name one, and no --held-out.")
    part, loaded = Part.parse(worker) if worker else None, load_to_write(profile)
    if responses:
        jobs = [scoring_job(loaded, strategies[0], str(Path(responses).resolve()))]
    elif held_out:
        jobs = [held_out_job(loaded)]
    else:
        jobs = [training_job(loaded, strategy, seed) for strategy in strategies]
    for folder in capture_all(jobs, part, force):
        print(folder)


@verb()
def distill(
    strategy: ArmArgument,
    profile: ProfileOption = "pocket",
    seed: SeedOption = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes, one a GPU; else the profile's.")] = None,
    accelerate_config: Annotated[
        str | None, typer.Option(help="For two processes or more, for example configs/accelerate/fsdp.yaml.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Trains the student of one strategy on captured signals (base-fine-tune: on the gold solutions).

    \b
    primekd distill ai-KD
    primekd distill base-fine-tune --seed 1
    primekd distill ai-KD --processes 8 --accelerate-config configs/accelerate/fsdp.yaml
    """
    from primekd.training.distill import distill as run_distill

    loaded = load_to_write(profile)
    loaded = loaded.launched(processes, accelerate_config) if processes or accelerate_config else loaded
    print(run_distill(loaded, strategy, seed, force))


@verb()
def assess(
    profile: ProfileOption = "pocket",
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only answers and held-out fit of this model (or control); may be repeated."),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Scores control, students and teacher on the test items; writes runs/<profile>/logs/.

    With --model it stops before the logs: after `primekd capture --held-out`, several such commands may run at once, on
    any machines that share the folder runs/. A plain `primekd assess` finds what they made.

    \b
    primekd assess
    primekd assess --model control --model ai-KD
    """
    loaded = load_to_write(profile)
    if model:
        from primekd.assessment.score import score_some

        score_some(loaded, model, force)
        print(f"assess: answers and held-out fit of {', '.join(model)} are there; `primekd assess` writes the logs.")
    else:
        from primekd.studies.study import find_study

        print(find_study(loaded).assess(loaded, force))


@verb()
def analyse(profile: ProfileOption = "pocket", force: ForceOption = False) -> None:
    """Looks inside the students that were assessed (attention, confidence, which steps an answer hangs on), and writes
    the report anew.

    \b
    primekd analyse
    """
    from primekd.report.readme import write_anew
    from primekd.studies.inside import analyse as look

    loaded = load_to_write(profile)
    print(look(loaded, force))
    print("\n".join(write_anew(loaded)))  # with the sections of what was found
