"""What the numbers of a logs folder can and cannot show, in sentences; with their tables, as Markdown or plain text."""

import textwrap
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from primekd.config import UNTRAINED, load_arms, of_role
from primekd.report import results as of_logs
from primekd.report.beyond import beyond_tables, effect_tables
from primekd.report.cells import TERMINAL_WIDTH, Table, to_markdown, to_text
from primekd.report.formats import markdown, percent, percent_range
from primekd.report.results import Results, contrast_table, fit_columns, read_results, response_table, result_table
from primekd.report.text import few_items
from primekd.statistics import sentences as say
from primekd.statistics.effects import ANOTHER_SEED
from primekd.statistics.families import CHECKS, MAIN, family_of, title_of

NOTHING_DECIDED = "No answer was adjudicated, so every accuracy is the same with and without adjudication."


def findings(results: Results) -> list[str]:
    """What the numbers can and cannot show, in sentences."""
    effects = [*say.effect_sentences(results.effects), *say.subset_sentences(results.subsets)]
    controls = say.control_sentences(results.contrasts, results.effects)
    said = say.claims(results.contrasts, numbers=True)
    claimed = [sentence.replace(of_logs.ON_ANSWERS.nll, results.fit.nll) for sentence in said]
    return [*claimed, *effects, *controls, *_limits(results)]


def _limits(results: Results) -> list[str]:
    counts = sorted({int(row["n"]) for row in results.summary})
    items = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    none = {*of_role("positive-control"), *UNTRAINED}  # which are no strategies
    ranked = any(say.is_claimed(r, "accuracy") for r in results.contrasts if not none & {r["model"], r["reference"]})
    width = max(Decimal(row["accuracy_high"]) - Decimal(row["accuracy_low"]) for row in results.summary)
    said = [
        f"With n = {items} items, the 95 % interval of an accuracy is up to {percent(width)} points wide (half-width "
        f"{percent(width / 2)}){'' if ranked else ', so accuracy alone cannot rank the strategies'}.",
        *few_items(results.folder),
    ]
    if results.contrasts:
        said.append(how_tested(results))
        said.append(_detectable([row["mde"] for row in results.contrasts]))
    if results.with_kl:
        said.append(results.fit.said)
    elif results.fitted:
        said.append("The teacher's text alone was kept, so no student's distance to its distribution can be measured.")
    over = "All intervals of single models are over test items."
    if results.fit is of_logs.ON_TEXT:
        over = f"Of single models, intervals of accuracies are over test items, of KL and NLL over {results.fit.over}."
    said.append(
        f"{over} {seeds_said(results)} Claims are of this machine's run: another processor rounds otherwise and "
        "changes single answers."
    )
    return said if results.decided else [*said, NOTHING_DECIDED]


def _detectable(shares: list[str]) -> str:
    """The smallest true differences that the tests would find, as a sentence; 1 where there is none."""
    found = [share for share in shares if say.is_detectable(share)]
    start = "in 80 % of repetitions, at the first threshold of Holm's adjustment"
    if not found:
        return f"No true difference in accuracy, however large, would be found {start}: too few items or seeds."
    none = "" if len(found) == len(shares) else "; in some there is none, however large"
    return (
        f"The smallest true difference in accuracy that these tests would find {start}, is {percent_range(found)} "
        f"points, depending on the comparison (column Detectable){none}; smaller ones are found less often."
    )


def seeds_said(results: Results) -> str:
    """What is known of other training seeds, as a sentence."""
    if results.seeds:
        return "Where several training seeds were trained, the claims cover what another one would change."
    if of := [title_of(row["reference"]) for row in results.effects if row["effect"] == ANOTHER_SEED]:
        return f"One training seed an arm in all comparisons: what another one changes is known of {of[0]} alone."
    return "One training seed a student: neither they nor the claims cover what another one would change."


def how_tested(results: Results) -> str:
    """Which tests the p-values of the contrasts are, as a sentence."""
    arms = load_arms()
    families = Counter(
        family_of((row["model"], row["reference"]), arms, results.named)
        for row in results.contrasts for key in ("p", "kl_p", "nll_gold_p") if row[key]
    )  # fmt: skip
    templates = {row["clusters"] for row in results.contrasts} - {row["n"] for row in results.summary}
    seeds = any(int(row["seeds"]) > 1 for row in results.contrasts)
    test = "exact McNemar"
    if templates:
        test += f", or where it is larger that of a t test over the {'/'.join(sorted(templates))} templates"
    if seeds:
        test += "; with several seeds a t test clustered by seed"
    fits = ""
    if results.fitted:
        over = "templates" if templates else results.fit.over
        fits = f" p of KL and NLL: t test over {over}{' and seeds' if seeds else ''}."
    together = f"one family of {families.total()} tests"
    if len(families) > 1:
        own, checks = families[MAIN], families[CHECKS]
        together = f"two families, {own} tests of the study's own questions and {checks} that check its design"
    return (
        f"p of accuracies: {test}.{fits} All are Holm-adjusted over {together}: every planned "
        f"contrast in every measure.{_naming(results)} Tables of effects and of matched items are families of their "
        "own. The intervals of differences are those of the t tests, not "
        "adjusted."
    )


def _naming(results: Results) -> str:
    """The main family where the profile names it, and whether it did so before the trainings."""
    if not results.named:
        return ""
    when = "before the run"
    if results.named_after:
        when = f"in the profile, but after the training of {', '.join(map(title_of, results.named_after))}"
    pairs = "; ".join(f"{title_of(model)} against {title_of(reference)}" for model, reference in results.named)
    return f" The study's own questions were named {when}: {pairs}."


def results_page(logs_folder: Path) -> Table:
    """The results of a logs folder; below them the contrasts, and what all of it can and cannot show."""
    results = read_results(logs_folder)
    units = "Accuracy: Wilson interval. p: Holm-adjusted, as below."
    between = "Paired differences on the same items, model minus reference; accuracy in points"
    if results.fitted:
        units += f" KL, NLL: nats a token, bootstrap over {results.fit.over}."
        between += ", KL and NLL in nats a token"
    between += ". Detectable: the smallest true difference in accuracy that would be found in 80 % of repetitions."
    said = "\n".join(f"- {markdown(sentence)}" for sentence in findings(results))
    notes = [units, markdown(between), _narrow(contrast_table(results))]
    for table in effect_tables(results):
        notes += [_introduced(table), _narrow(table)]
    if (responses := response_table(logs_folder)).rows:
        notes += [markdown(responses.notes[0]), _narrow(responses)]
    for table in beyond_tables(logs_folder):
        notes += [_introduced(table), _narrow(table)]
    return replace(result_table(results), notes=(*notes, said))


def _narrow(table: Table) -> str:
    return to_markdown(table.without(of_logs.ONLY_ONE, of_logs.UNADJUSTED))


def _introduced(table: Table) -> str:
    return markdown(" ".join((f"{table.label}.", *table.notes)))


def results_text(logs_folder: Path) -> str:
    """The same results for a terminal: plain tables, at most 120 columns wide, and the sentences."""
    results = read_results(logs_folder)
    paired = contrast_table(results, digits=2).without(of_logs.ONLY_ONE, of_logs.UNADJUSTED)
    parts = _halves(result_table(results), "", "Held-out fit, nats a token", 1)
    title = "Paired differences in accuracy, model minus reference, points"
    parts += _halves(paired, title, "Paired differences in held-out fit, nats a token", 2)
    for table in effect_tables(results):
        parts += _halves(table, table.label, f"{table.label}, held-out fit", 2)
    if (responses := response_table(logs_folder)).rows:
        parts += ["The teacher's responses to the training items:", "", to_text(responses)]
    for table in beyond_tables(logs_folder):
        parts += [f"{table.label}:", "", to_text(table.without(of_logs.ONLY_ONE, of_logs.UNADJUSTED))]
    wrapper = textwrap.TextWrapper(TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(parts + [wrapper.fill(sentence) for sentence in findings(results)]) + "\n"


def _halves(table: Table, title: str, fit_title: str, names: int) -> list[str]:
    """A table that is too wide: without held-out fit and, if it has any, that behind its first columns."""
    fit = fit_columns(table)
    parts = [f"{title}:", ""] if title else []
    parts.append(to_text(table.without(*fit)))
    rest = [title for title in table.head[names:] if title not in fit]
    return [*parts, f"{fit_title}:", "", to_text(table.without(*rest))] if fit else parts
