"""Results, claims and the published study as Markdown for the README and docs/, and results as text for a terminal."""

import io
import textwrap
from pathlib import Path

from primekd.report.cells import Cell, Files, Name, Table, to_markdown
from primekd.report.claims import claim_lines, claim_note
from primekd.report.engines import engine_table
from primekd.report.expected import expected_lines
from primekd.report.extraction import LABELS, MEASURES
from primekd.report.formats import markdown
from primekd.report.published import (
    contrast_matrix,
    disagreement_table,
    label_table,
    study_table,
    validation_rest,
    validation_short,
)
from primekd.report.responses import NOTE as RESPONSES_NOTE
from primekd.report.responses import response_table
from primekd.report.results import ONLY_ONE, UNADJUSTED, contrast_table, findings, read_results, result_table

TERMINAL_WIDTH = 120  # columns; fixed, so that a pipe, a log file and a screen show the same


def results_table(logs_folder: Path) -> str:
    """The results of a logs folder as a Markdown table, followed by what they can and cannot show.

    Raises:
        UserError: summary.csv or contrasts.csv is missing or has other columns.
    """
    results = read_results(logs_folder)
    units = "Accuracy: Wilson interval. p: Holm-adjusted, as below."
    between = "Paired differences on the same items, model minus reference; accuracy in points"
    if results.fitted:
        units += " KL, NLL: nats a token, bootstrap over items."
        between += ", KL and NLL in nats a token"
    between += ". Detectable: the smallest true difference in accuracy that would be found in 80 % of repetitions."
    said = "\n".join(f"- {markdown(sentence)}" for sentence in findings(results))
    contrasts = to_markdown(contrast_table(results).without(ONLY_ONE, UNADJUSTED))
    parts = [to_markdown(result_table(results)), units, markdown(between), contrasts]
    if (responses := response_table(logs_folder)).rows:
        parts += [markdown(RESPONSES_NOTE), to_markdown(responses)]
    return "\n\n".join([*parts, said]) + "\n"


def claim_table(logs_folder: Path) -> str:
    """What is published beside what was measured here, as Markdown, with a note on what may be compared.

    Raises:
        UserError: summary.csv, contrasts.csv or manifest.json is missing or cannot be read.
    """
    table = claim_lines(read_results(logs_folder))
    return f"{to_markdown(table)}\n\n{markdown(claim_note(logs_folder))}\n"


def expected_table(*logs_folders: Path) -> str:
    """What profiles are known to give, as Markdown, a row a logs folder. Raises UserError as expected_lines does."""
    note = (
        "n: test items. KL to the unprimed teacher, nats a token. Differences claimed: of all planned tests, after "
        "adjustment, by measure. Its jobs took: captures, trainings and answers, added up; some run side by side, so "
        "a whole run is shorter."
    )
    return f"{to_markdown(expected_lines(logs_folders))}\n\n{markdown(note)}\n"


def engines_markdown(logs_folder: Path) -> str:
    """The table of teacher engines as Markdown. Raises UserError if a check's file is no JSON."""
    note = (
        "From `primekd check-engine`: the engine answers questions of the profile, and its answers are scored by it "
        "and by transformers in float32. KL(transformers || engine); ≥: over the top K tokens and one bucket for the "
        "rest, a lower bound."
    )
    return f"{to_markdown(engine_table(logs_folder))}\n\n{note}\n"


def published_study(logs_folder: Path) -> str:
    """The published accuracies as stated, recounted and regraded, as Markdown. Raises UserError as study_table does."""
    note = (
        "Recounted: right verdicts in the released log. The other columns grade the released answers anew, each with "
        "another extractor; 95 % Wilson intervals."
    )
    return f"{to_markdown(study_table(logs_folder))}\n\n{note}\n"


def published_disagreements(logs_folder: Path) -> str:
    """Released verdicts against the published rules', as Markdown. Raises UserError as disagreement_table does."""
    note = "Rules: the published rules by themselves, as they are implemented here (column published above)."
    return f"{to_markdown(disagreement_table(logs_folder))}\n\n{note}\n"


def published_contrasts(logs_folder: Path) -> str:
    """The published contrasts under every extractor, as Markdown. Raises UserError as contrast_matrix does."""
    table, detectable = contrast_matrix(logs_folder)
    note = (
        "Difference in accuracy, points, with its 95 % t interval over paired items; p: exact McNemar, Holm-adjusted "
        f"over all contrasts of one extractor. {detectable}"
    )
    return f"{to_markdown(table)}\n\n{markdown(note)}\n"


def labels_markdown(logs_folder: Path) -> str:
    """The labelled answers by set and kind, as Markdown. Raises UserError as label_table does."""
    return f"{to_markdown(label_table(logs_folder))}\n"


def validation_markdown(logs_folder: Path) -> str:
    """Extractors against labels, short form, as Markdown. Raises UserError as validation_short does."""
    return f"{to_markdown(validation_short(logs_folder))}\n\n{markdown(LABELS)}\n\n{markdown(MEASURES)}\n"


def validation_strata(logs_folder: Path) -> str:
    """Extractors against labels by log and by rule, as Markdown. Raises UserError as validation_rest does."""
    return f"{to_markdown(validation_rest(logs_folder))}\n"


def results_text(logs_folder: Path) -> str:
    """The same results for a terminal: plain tables, at most 120 columns wide, and the sentences.

    Raises:
        UserError: summary.csv or contrasts.csv is missing or has other columns.
    """
    results = read_results(logs_folder)
    table = result_table(results)
    fit = [title for title in table.head if title.startswith(("KL", "NLL"))]
    parts = [_grid(table.without(*fit))]
    if results.fitted:
        rest = [title for title in table.head[1:] if title not in fit]
        parts += ["Held-out fit, nats a token:", "", _grid(table.without(*rest))]
    paired = contrast_table(results, digits=2).without(ONLY_ONE, UNADJUSTED)
    fit = [title for title in paired.head if title.startswith(("KL", "NLL"))]
    parts += ["Paired differences in accuracy, model minus reference, points:", "", _grid(paired.without(*fit))]
    if results.fitted:
        rest = [title for title in paired.head[2:] if title not in fit]
        parts += ["Paired differences in held-out fit, nats a token:", "", _grid(paired.without(*rest))]
    if (responses := response_table(logs_folder)).rows:
        parts += ["The teacher's responses to the training items:", "", _grid(responses)]
    wrapper = textwrap.TextWrapper(
        TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )  # fmt: skip
    return "\n".join(parts + [wrapper.fill(sentence) for sentence in findings(results)]) + "\n"


def _grid(table: Table) -> str:
    """A plain table; cells are Text objects, so that no cell is read as rich markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, name in enumerate(table.head):
        grid.add_column(Text(name), justify="left" if place < table.left else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(_plain(cell)) for cell in row))
    # Not the caller's terminal: no colours, no detection, the same bytes everywhere.
    out = io.StringIO()
    Console(file=out, width=TERMINAL_WIDTH, color_system=None, force_terminal=False, legacy_windows=False).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _plain(cell: Cell) -> str:
    if isinstance(cell, Name):
        return cell.model if cell.title == cell.model else f"{cell.title} ({cell.model})"
    return ", ".join(cell.names) if isinstance(cell, Files) else cell
