"""The report: one HTML file that needs no network, made from one logs folder and logs/published/. The same logs give
the same bytes: dates come from the manifest, never from the clock."""

import json
from pathlib import Path
from typing import Any

from primekd.assessment.logs import read_logs
from primekd.config import Profile
from primekd.foundation.provenance import MANIFEST, altered_outputs, read_manifest, relative_name, write_text
from primekd.report import extraction, lineage
from primekd.report.beyond import beyond_tables
from primekd.report.browser import browser_data, refuse_other_items, script_json
from primekd.report.claims import claim_note, claim_table
from primekd.report.corrections import corrections_page, learning_figure
from primekd.report.costs import cost_figure, cost_table
from primekd.report.effects import effect_tables
from primekd.report.figures import loss_curves
from primekd.report.findings import NOTHING_DECIDED, findings, how_tested
from primekd.report.forests import accuracy_forest, contrast_forest, extractor_dots, kl_forest
from primekd.report.primed import NOTE, gain_figure, position_figure, primed_sentences, primed_table
from primekd.report.results import (
    AUTOMATIC,
    RESPONSES_NOTE,
    Results,
    contrast_table,
    read_optional,
    read_results,
    response_table,
    result_table,
    seed_table,
    tuning_table,
)
from primekd.report.shown import source, svg_address, templates
from primekd.report.text import text_curves, text_tables
from primekd.statistics.sentences import sentence
from primekd.statistics.validation import ValidationRow
from primekd.studies.published import published_folder
from primekd.studies.results import extractor_of
from primekd.studies.study import find_study

REPORT = "report.html"
SCRIPTS = ("data.js", "list.js", "detail.js", "tokens.js", "controls.js")  # in this order, in one scope


def write_report(profile: Profile) -> Path:
    """Writes report.html from the logs beside it, `profile.logs`; returns its path. Raises UserError if a log,
    summary.csv, contrasts.csv, a loss curve or manifest.json is missing or cannot be read."""
    path = profile.logs / REPORT
    write_text(path, render(profile))
    return path


def render(profile: Profile) -> str:
    """The report's HTML. Raises UserError as write_report does."""
    from markupsafe import Markup

    # Style and script are the package's own files: they are put in as they are, and hold no data.
    script = "\n".join(["(() => {", '"use strict";', *(source(f"assets/{name}") for name in SCRIPTS), "})();"])
    own = {"style": Markup(source("assets/report.css")), "script": Markup(script)}
    return templates().get_template("report.html.j2").render(**own, **_page(profile))


def _page(profile: Profile) -> dict[str, Any]:
    folder = profile.logs
    results, manifest = read_results(folder), read_manifest(folder / MANIFEST)
    logs, titles = read_logs(profile), results.titles
    refuse_other_items(folder, logs)
    accuracies, readings = extraction.read_accuracies(folder), extraction.read_readings(folder)
    extractor = extractor_of(manifest)
    validation = read_optional(published_folder() / "validation.csv", ValidationRow)
    return {
        "profile": profile,
        "title": find_study(profile).title,
        "sections": find_study(profile).sections,
        "header": [*lineage.header(manifest), ("Test items", results.summary[0]["n"]), ("Logs", relative_name(folder))],
        "altered": altered_outputs(folder / MANIFEST, manifest),
        "fitted": results.fitted,
        "decided": results.decided,
        "nothing_decided": NOTHING_DECIDED,
        "results": result_table(results),
        "findings": findings(results),
        "automatic": AUTOMATIC,
        "claims": claim_table(results),
        "claim_note": claim_note(folder),
        "contrasts": contrast_table(results),
        "how_tested": how_tested(results),
        "effects": effect_tables(results),
        "sentences": [sentence(row) for row in results.contrasts],
        "extractor": extractor,
        "rules": extraction.rule_table(logs, titles, extractor),
        "lengths": extraction.length_table(logs, titles, results.decided),
        "extractors": extraction.extractor_table(results, accuracies, readings) if accuracies else None,
        "extractors_adjudicated": extraction.by_extractor(
            results, accuracies, "Accuracy under every extractor, adjudicated", "accuracy_adjudicated"
        ),
        "found": extraction.by_extractor(results, accuracies, "Answers with a value", "found") if accuracies else None,
        "validation": [
            (name, *(extraction.validation_table(validation, name, main) for main in (True, False)))
            for name in extraction.sets_of(validation)
        ],
        "labels": (extraction.LABELS, extraction.MEASURES),
        "decisions": extraction.decision_table(logs, titles),
        "audit": extraction.audit_table(folder),
        "audit_note": extraction.audit_note(folder, titles),
        "seeds": seed_table(results),
        "tuning": tuning_table(folder),
        "students": results.students,
        "beyond": beyond_tables(folder),
        "responses": response_table(folder),
        "responses_note": RESPONSES_NOTE,
        "primed": primed_table(folder),
        "corrections": corrections_page(folder, logs),
        "text": text_tables(folder),
        "spent": cost_table(results),
        "primed_note": NOTE,
        "primed_sentences": primed_sentences(folder),
        "figures": _figures(results, accuracies),
        "settings": lineage.settings(manifest),
        "hardware": lineage.hardware(manifest),
        "energy_method": manifest.get("energy_method"),
        "costs": lineage.costs(manifest, titles),
        "lineage": {title: lineage.model_facts(manifest, name) for name, title in titles.items()},
        "config": json.dumps(manifest.get("config", {}), indent=2, ensure_ascii=False),
        "items": script_json(browser_data(profile, results, logs, readings)),
        "models": [(name, "") for name in titles],
        "pairs": [(row["model"], row["reference"]) for row in results.contrasts],
        "curves": [path.stem for path in (folder / "loss_curves").glob("*.csv")],
    }


def _figures(results: Results, accuracies: dict) -> dict[str, str]:
    """Figures as data addresses: inside <img> their ids and styles cannot meet those of the page or of each other."""
    drawn = {"accuracy": accuracy_forest(results)}
    if results.students:
        drawn["loss"] = loss_curves(results.folder)
    if results.contrasts:
        drawn["contrasts"] = contrast_forest(results)
    if results.with_kl:
        drawn["kl"] = kl_forest(results)
    drawn |= {"positions": position_figure(results.folder), "gains": gain_figure(results),
              "learning": learning_figure(results.folder), "text": text_curves(results.folder),
              "costs": cost_figure(results)}  # fmt: skip
    if accuracies:
        drawn["extractors"] = extractor_dots(results, accuracies)
    return {name: svg_address(svg) for name, svg in drawn.items() if svg}
