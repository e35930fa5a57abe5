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
    fit_columns,
    read_results,
    response_table,
    result_table,
)


def results_page(logs_folder: Path) -> Table:
    """The results of a logs folder; below them the contrasts, and what all of it can and cannot show."""
    results = read_results(logs_folder)
    units = "Accuracy: Wilson interval. p: Holm-adjusted, as below."
    between = "Paired differences on the same items, model minus reference; accuracy in points"
    if results.fitted:
        units += " KL, NLL: nats a token, bootstrap over items."
        between += ", KL and NLL in nats a token"
    between += ". Detectable: the smallest true difference in accuracy that would be found in 80 % of repetitions."
    said = "\n".join(f"- {markdown(sentence)}" for sentence in findings(results))
    notes = [units, markdown(between), _narrow(contrast_table(results))]
    for table in effect_tables(results):
        notes += [_introduced(table), _narrow(table)]
    if (responses := response_table(logs_folder)).rows:
        notes += [markdown(RESPONSES_NOTE), _narrow(responses)]
    for table in beyond_tables(logs_folder):
        notes += [_introduced(table), _narrow(table)]
    return replace(result_table(results), notes=(*notes, said))


def _narrow(table: Table) -> str:
    return to_markdown(table.without(ONLY_ONE, UNADJUSTED))


def _introduced(table: Table) -> str:
    return markdown(" ".join((f"{table.label}.", *table.notes)))


def results_text(logs_folder: Path) -> str:
    """The same results for a terminal: plain tables, at most 120 columns wide, and the sentences."""
    results = read_results(logs_folder)
    paired = contrast_table(results, digits=2).without(ONLY_ONE, UNADJUSTED)
    parts = _halves(result_table(results), "", "Held-out fit, nats a token", 1)
    title = "Paired differences in accuracy, model minus reference, points"
    parts += _halves(paired, title, "Paired differences in held-out fit, nats a token", 2)
    for table in effect_tables(results):
        parts += _halves(table, table.label, f"{table.label}, held-out fit", 2)
    if (responses := response_table(logs_folder)).rows:
        parts += ["The teacher's responses to the training items:", "", to_text(responses)]
    for table in beyond_tables(logs_folder):
        parts += [f"{table.label}:", "", to_text(table.without(ONLY_ONE, UNADJUSTED))]
    wrapper = textwrap.TextWrapper(
        TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )  # fmt: skip
    return "\n".join(parts + [wrapper.fill(sentence) for sentence in findings(results)]) + "\n"


def _halves(table: Table, title: str, fit_title: str, names: int) -> list[str]:
    """A table that is too wide: without held-out fit and, if it has any, that behind its first columns."""
    fit = fit_columns(table)
    parts = [f"{title}:", ""] if title else []
    parts.append(to_text(table.without(*fit)))
    rest = [title for title in table.head[names:] if title not in fit]
    return [*parts, f"{fit_title}:", "", to_text(table.without(*rest))] if fit else parts
