"""The results of a logs folder as Markdown for the README and docs/, and as text for a terminal."""

import textwrap
from dataclasses import replace
from pathlib import Path

from primekd.report.beyond import beyond_tables
from primekd.report.cells import TERMINAL_WIDTH, Table, to_markdown, to_text
from primekd.report.effects import effect_tables
from primekd.report.findings import findings
from primekd.report.formats import markdown
from primekd.report.results import (
    ONLY_ONE,
    RESPONSES_NOTE,
    UNADJUSTED,
    contrast_table,
    read_results,
    response_table,
    result_table,
)


def results_page(logs_folder: Path) -> Table:
    """The results of a logs folder; below them the contrasts, and what all of it can and cannot show. Raises UserError
    if summary.csv or contrasts.csv is missing or has other columns."""
    results = read_results(logs_folder)
    units = "Accuracy: Wilson interval. p: Holm-adjusted, as below."
    between = "Paired differences on the same items, model minus reference; accuracy in points"
    if results.fitted:
        units += " KL, NLL: nats a token, bootstrap over items."
        between += ", KL and NLL in nats a token"
    between += ". Detectable: the smallest true difference in accuracy that would be found in 80 % of repetitions."
    said = "\n".join(f"- {markdown(sentence)}" for sentence in findings(results))
    contrasts = to_markdown(contrast_table(results).without(ONLY_ONE, UNADJUSTED))
    notes = [units, markdown(between), contrasts]
    for table in effect_tables(results):
        notes += [markdown(" ".join((f"{table.label}.", *table.notes))), to_markdown(table)]
    if (responses := response_table(logs_folder)).rows:
        notes += [markdown(RESPONSES_NOTE), to_markdown(responses)]
    for table in beyond_tables(logs_folder):
        notes += [
            markdown(" ".join((f"{table.label}.", *table.notes))),
            to_markdown(table.without(ONLY_ONE, UNADJUSTED)),
        ]
    return replace(result_table(results), notes=(*notes, said))


def results_text(logs_folder: Path) -> str:
    """The same results for a terminal: plain tables, at most 120 columns wide, and the sentences. Raises UserError if
    summary.csv or contrasts.csv is missing or has other columns."""
    results = read_results(logs_folder)
    table = result_table(results)
    fit = [title for title in table.head if title.startswith(("KL", "NLL"))]
    parts = [to_text(table.without(*fit))]
    if results.fitted:
        rest = [title for title in table.head[1:] if title not in fit]
        parts += ["Held-out fit, nats a token:", "", to_text(table.without(*rest))]
    paired = contrast_table(results, digits=2).without(ONLY_ONE, UNADJUSTED)
    fit = [title for title in paired.head if title.startswith(("KL", "NLL"))]
    parts += ["Paired differences in accuracy, model minus reference, points:", "", to_text(paired.without(*fit))]
    if results.fitted:
        rest = [title for title in paired.head[2:] if title not in fit]
        parts += ["Paired differences in held-out fit, nats a token:", "", to_text(paired.without(*rest))]
    for table in effect_tables(results):
        fit = [title for title in table.head if title.startswith(("KL", "NLL"))]
        parts += [f"{table.label}:", "", to_text(table.without(*fit))]
        if fit:
            rest = [title for title in table.head[2:] if title not in fit]
            parts += [f"{table.label}, held-out fit:", "", to_text(table.without(*rest))]
    if (responses := response_table(logs_folder)).rows:
        parts += ["The teacher's responses to the training items:", "", to_text(responses)]
    for table in beyond_tables(logs_folder):
        parts += [f"{table.label}:", "", to_text(table.without(ONLY_ONE, UNADJUSTED))]
    wrapper = textwrap.TextWrapper(
        TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )  # fmt: skip
    return "\n".join(parts + [wrapper.fill(sentence) for sentence in findings(results)]) + "\n"
