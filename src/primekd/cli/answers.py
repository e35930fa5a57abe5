"""Verbs on answers: check-engine (those of a teacher), grade, compare, published-study, adjudicate."""

from pathlib import Path
from typing import Annotated

import typer

from primekd.cli.common import ExtractorOption, JsonOption, ProfileOption, PublishedOption, show_result, verb
from primekd.config import load_profile
from primekd.foundation import UserError, relative_name


@verb("check-engine")
def check_engine(
    profile: ProfileOption = "pocket",
    items: Annotated[int, typer.Option(min=1, help="How many test questions are asked.")] = 16,
    strategy: Annotated[str, typer.Option(help="Whose priming text the teacher sees.")] = "base-KD",
    reference: Annotated[str | None, typer.Option(help="For transformers, in float32; else the teacher's own.")] = None,
    json: JsonOption = False,
) -> None:
    """Compares a profile's teacher engine with transformers on the same tokens; writes a file in logs/engines/.

    The table in docs/engines.md is made from these files. Where the engine's format is its own (EXL2), name the
    model that it was converted from with --reference.

    \b
    primekd check-engine --profile pocket-llamacpp
    primekd check-engine --profile single-gpu --reference hub:meta-llama/Llama-3.1-8B-Instruct
    """
    from primekd.running import check_engine as engines

    show_result(engines.check_engine(load_profile(profile), items, strategy, reference), json, engines.say_check)


@verb()
def grade(
    file: Annotated[Path, typer.Argument(help="A CSV file of answers.")],
    response_column: Annotated[str, typer.Option(help="Column that holds the answers.")],
    gold_column: Annotated[str, typer.Option(help="Column of gold values: a number, or a solution ending in #### 18.")],
    question_column: Annotated[str | None, typer.Option(help="Column of questions; `question` if it is there.")] = None,
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
    from primekd.statistics.grade_file import Columns, grade_file, say_result

    result = grade_file(file, Columns(response_column, gold_column, question_column), out, extractor)
    show_result(result, json, say_result)


@verb()
def compare(
    first: Annotated[Path, typer.Argument(help="A per-item log, or a CSV file of answers.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same items.")],
    response_column: Annotated[str | None, typer.Option(help="Of files that are no per-item logs.")] = None,
    gold_column: Annotated[str | None, typer.Option(help="Of files that are no per-item logs.")] = None,
    question_column: Annotated[str | None, typer.Option(help="Of files that are no per-item logs.")] = None,
    extractor: ExtractorOption = "published",
    adjudicated: Annotated[bool, typer.Option("--adjudicated", help="By people's decisions, if any.")] = False,
    json: JsonOption = False,
) -> None:
    """Compares two files of answers to the same questions: paired difference, exact McNemar test, what may be claimed.

    \b
    primekd compare logs/pocket/base-KD.csv logs/pocket/ai-KD.csv
    primekd compare a.csv b.csv --response-column response --gold-column gold --extractor validated --json
    """
    from primekd.statistics import compare as comparison
    from primekd.statistics.grade_file import Columns

    if (response_column is None) != (gold_column is None):
        raise UserError("Name both --response-column and --gold-column, or neither for per-item logs.")
    columns = Columns(response_column, gold_column, question_column) if response_column and gold_column else None
    if columns is None and extractor != "published":
        raise UserError("Per-item logs are compared by their logged verdicts: name the columns to grade them anew.")
    answers = [comparison.read_answers(path, columns, extractor) for path in (first, second)]
    comparison.check_extractors(*answers)
    result = comparison.compare(comparison.pair_up(*answers), adjudicated)
    show_result(result, json, lambda result: comparison.say_comparison(result, (str(first), str(second))))


@verb("compare-models")
def compare_models(
    references: Annotated[list[str], typer.Argument(help="hub:owner/name[@commit], path:folder, package:module/file.")],
    profile: ProfileOption = "online-pocket",
    json: JsonOption = False,
) -> None:
    """Asks any models a profile's facts (or benchmarks, of the study micro), and prints what they know and what that
    costs; what was asked already is read.

    \b
    primekd compare-models hub:timinar/baby-llama-58m path:models/mine
    primekd compare-models hub:openai-community/gpt2 --profile micro-pocket
    """
    from primekd.report.text import compared_rows, show_compared
    from primekd.studies.online import compare as compare_all

    folder = compare_all(load_profile(profile), references)
    show_result(compared_rows(folder) if json else show_compared(folder), json)


@verb("published-study")
def published_study(
    folder: Annotated[Path, typer.Argument(help="Folder of the study's released logs, one CSV file a model.")],
) -> None:
    """Grades the published study's own logs under every extractor, and validates these against the labels.

    Writes logs/published/ (no answer texts) and the tables of docs/.

    \b
    primekd published-study path/to/published-logs
    """
    from primekd.report.readme import update_pages
    from primekd.studies.published import grade_published

    print(f"published-study: wrote {relative_name(grade_published(folder))}")
    update_pages(check=False)


@verb()
def adjudicate(
    profile: ProfileOption = "pocket",
    model: Annotated[list[str] | None, typer.Option(help="This model's answers alone; may be given again.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many answers.")] = None,
    audit: Annotated[int | None, typer.Option(min=1, help="A blind second look at so many random answers.")] = None,
    who: Annotated[str | None, typer.Option(help="Who decides; git's user.name, else $USER, if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order and of the sample.")] = 0,
    list_only: Annotated[bool, typer.Option("--list", help="List the open answers, and ask nothing.")] = False,
    published: PublishedOption = False,
    json: JsonOption = False,
) -> None:
    """Shows answers that no rule settles; you decide. Decisions go to assessment/adjudications.csv, each at once.

    Asks about this machine's answers, or the published ones where it has none. A decision reaches both where both hold
    the answer.

    \b
    primekd adjudicate
    primekd adjudicate --model base-KD --limit 20
    primekd adjudicate --audit 50
    primekd adjudicate --published --list --json
    """
    from primekd.assessment.decisions.decisions import check_who, default_who
    from primekd.assessment.decisions.session import list_cases, open_session
    from primekd.assessment.decisions.terminal import list_text, run_session
    from primekd.report.readme import write_anew
    from primekd.studies.results import logs_in_use
    from primekd.studies.settling import finish

    if list_only and audit:
        raise UserError("--list lists the answers that are open for review: leave out --audit.")
    if json and not list_only:
        raise UserError("--json belongs to --list.")
    loaded = logs_in_use(load_profile(profile), published)
    if list_only:
        return show_result(list_cases(loaded, model, limit, seed), json, list_text)
    person = default_who() if who is None else check_who(who)
    session, said = open_session(loaded, person, model, limit, audit, seed)
    print(f"{relative_name(loaded.logs)}: {said}")
    if session.cases:
        run_session(session)
    print(finish(session, write_anew))  # also finishes a grading that was cut short before
