"""What the numbers of one logs folder can and cannot show, in sentences, and how they were tested."""

from collections import Counter
from decimal import Decimal

from primekd.config.arms import load_arms
from primekd.report.formats import percent, percent_range
from primekd.report.results import Results
from primekd.statistics.families import CHECKS, MAIN, family_of, title_of
from primekd.statistics.sentences import claims, control_sentences, effect_sentences, subset_sentences

NOTHING_DECIDED = "No answer was adjudicated, so every accuracy is the same with and without adjudication."


def findings(results: Results) -> list[str]:
    """What the numbers can and cannot show, in sentences."""
    effects = [*effect_sentences(results.effects), *subset_sentences(results.subsets)]
    controls = control_sentences(results.contrasts, results.effects)
    return [*claims(results.contrasts, numbers=True), *effects, *controls, *_limits(results)]


def _limits(results: Results) -> list[str]:
    counts = sorted({int(row["n"]) for row in results.summary})
    items = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    width = max(Decimal(row["accuracy_high"]) - Decimal(row["accuracy_low"]) for row in results.summary)
    said = [
        f"With n = {items} items, the 95 % interval of an accuracy is up to {percent(width)} points wide (half-width "
        f"{percent(width / 2)}), so accuracy alone cannot rank the strategies."
    ]
    if results.contrasts:
        said.append(how_tested(results))
        detectable = percent_range([row["mde"] for row in results.contrasts])
        said.append(
            "The smallest true difference in accuracy that these tests would find in 80 % of repetitions, at the first "
            f"threshold of Holm's adjustment, is {detectable} points, depending on the comparison (column Detectable); "
            "smaller ones would mostly be missed."
        )
    if results.with_kl:
        said.append(
            "KL is measured from the unprimed teacher, token by token on the teacher's own answers to the test items: "
            "it says how close a student is to that teacher, not whether its answers are right. The unprimed teacher "
            "is the reference for every strategy, whatever prompt its signals were captured with."
        )
    elif results.fitted:
        said.append("The teacher's text alone was kept, so no student's distance to its distribution can be measured.")
    seeds = "One training seed a student: neither they nor the claims cover what another one would change."
    if results.seeds:
        seeds = "Where several training seeds were trained, the claims cover what another one would change."
    said.append(
        f"All intervals of single models are over test items. {seeds} Claims are of this machine's run: another "
        "processor rounds otherwise and changes single answers."
    )
    return said if results.decided else [*said, NOTHING_DECIDED]


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
        fits = f" p of KL and NLL: t test over {'templates' if templates else 'items'}{' and seeds' if seeds else ''}."
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
