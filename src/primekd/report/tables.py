"""The results and the claim table, as Markdown for the README and as text for a terminal."""

import io
import textwrap
from pathlib import Path

from primekd.report.formats import MISSING, markdown, markdown_code, markdown_table
from primekd.report.results import claim_lines, claim_note, contrast_line, findings, read_results, result_lines

CONTRAST_HEAD = ["Model", "Against", "p (Holm)", "Accuracy [95 %]", "KL to teacher [95 %]", "NLL of gold [95 %]"]
TERMINAL_WIDTH = 120  # columns; fixed, so that a pipe, a log file and a screen show the same


def results_table(logs_folder: Path) -> str:
    """The results of a logs folder as a Markdown table, followed by what they can and cannot show.

    Raises:
        UserError: summary.csv or contrasts.csv is missing or has other columns.
    """
    results = read_results(logs_folder)
    head = [
        "Model", "n", "Correct", "Accuracy % [95 %]", "p against control", "Truncated", "KL to teacher [95 %]",
        "NLL of gold [95 %]",
    ]  # fmt: skip
    rows = [
        [_name(r.title, r.model), r.n, r.correct, r.accuracy, markdown(r.p), r.truncated, r.kl, r.nll]
        for r in result_lines(results)
    ]
    paired = [
        [r["model"], r["reference"], markdown(r["p_holm"]), r["accuracy"], r["kl"], r["nll"]]
        for r in map(contrast_line, results.contrasts)
    ]
    units = "Accuracy: Wilson interval. p: exact McNemar, Holm-adjusted. KL, NLL: nats a token, bootstrap over items."
    said = "\n".join(f"- {markdown(sentence)}" for sentence in findings(results))
    contrasts = markdown_table(CONTRAST_HEAD, paired, left=2)
    between = (
        "Paired differences on the same items, model minus reference; accuracy in points, KL and NLL in nats a token."
    )
    return f"{markdown_table(head, rows)}\n\n{units}\n\n{between}\n\n{contrasts}\n\n{said}\n"


def claim_table(logs_folder: Path) -> str:
    """What is published beside what was measured here, as Markdown, with a note on what may be compared.

    Raises:
        UserError: summary.csv, contrasts.csv or manifest.json is missing or cannot be read.
    """
    head = ["Model", "Log", "Published accuracy %", "Measured here % [95 %]", "n"]
    rows = []
    for line in claim_lines(read_results(logs_folder)):
        name = markdown_code(line.log)
        # A name that is not shown as code is not safe as a link's target either.
        log = f"[{name}]({line.log})" if line.log != MISSING and name.startswith("`") else name
        rows.append([_name(line.title, line.model), log, line.published, line.measured, line.n])
    return f"{markdown_table(head, rows, left=2)}\n\n{markdown(claim_note(logs_folder))}\n"


def _name(title: str, model: str) -> str:
    return f"{markdown(title)} ({markdown_code(model)})"


def results_text(logs_folder: Path) -> str:
    """The same results for a terminal: two plain tables, at most 120 columns wide, and the sentences.

    Raises:
        UserError: summary.csv or contrasts.csv is missing or has other columns.
    """
    results = read_results(logs_folder)
    lines = result_lines(results)
    accuracy = _grid(
        ["Model", "Folder", "n", "Correct", "Accuracy % [95 %]", "p (Holm)", "Truncated"],
        [[r.title, r.model, r.n, r.correct, r.accuracy, r.p, r.truncated] for r in lines],
    )
    fit = _grid(
        ["Model", "Folder", "KL to teacher [95 %]", "NLL of gold [95 %]"],
        [[r.title, r.model, r.kl, r.nll] for r in lines],
    )
    paired = _grid(
        CONTRAST_HEAD,
        [
            [row["model"], row["reference"], r["p_holm"], r["accuracy"], r["kl"], r["nll"]]
            for row in results.contrasts
            for r in [contrast_line(row, digits=2)]
        ],
    )
    between = ["Paired differences, model minus reference (accuracy in points, KL and NLL in nats a token):", ""]
    wrapper = textwrap.TextWrapper(
        TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )  # fmt: skip
    said = [wrapper.fill(sentence) for sentence in findings(results)]
    return "\n".join([accuracy, "Held-out fit, nats a token:", "", fit, *between, paired, *said]) + "\n"


def _grid(head: list[str], rows: list[list[str]]) -> str:
    """A plain table; cells are Text objects, so that no cell is read as rich markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(Text(name), justify="left" if place < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Not the caller's terminal: no colours, no detection, the same bytes everywhere.
    out = io.StringIO()
    Console(file=out, width=TERMINAL_WIDTH, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
