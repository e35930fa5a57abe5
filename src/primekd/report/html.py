"""The report: one HTML file that needs no network, of logs and logs/published/; its dates are those of manifests."""

import json
from pathlib import Path
from typing import Any

from primekd.assessment.logs import read_logs
from primekd.config import Profile
from primekd.foundation import MANIFEST, altered_outputs, read_manifest, relative_name, write_text
from primekd.report import corrections, deviations, extraction, figures, findings, inside, lineage, primed, results
from primekd.report import text as text_students
from primekd.report.beyond import beyond_tables, effect_tables
from primekd.report.browser import browser_data, refuse_other_items, script_json
from primekd.report.claims import claim_note, claim_table
from primekd.report.costs import cost_figure, cost_table
from primekd.report.inside_figures import inside_figures
from primekd.report.shown import source, svg_address, templates
from primekd.statistics.sentences import sentence
from primekd.statistics.validation import ValidationRow
from primekd.studies.published import published_folder
from primekd.studies.results import extractor_of
from primekd.studies.study import find_study

REPORT = "report.html"
SCRIPTS = ("data.js", "list.js", "detail.js", "tokens.js", "controls.js", "heads.js")  # in this order, in one scope


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
    folder, study = profile.logs, find_study(profile)
    found, manifest = results.read_results(folder), read_manifest(folder / MANIFEST)
    logs, titles = read_logs(profile), found.titles
    refuse_other_items(folder, logs)
    accuracies, readings = extraction.read_accuracies(folder), extraction.read_readings(folder)
    extractor = extractor_of(manifest)
    validation = results.read_optional(published_folder() / "validation.csv", ValidationRow)
    adjudicated = "Accuracy under every extractor, adjudicated", "accuracy_adjudicated"
    return {
        "profile": profile, "title": study.title, "sections": study.sections,
        "header": [*lineage.header(manifest), ("Test items", found.summary[0]["n"]), ("Logs", relative_name(folder))],
        "altered": altered_outputs(folder / MANIFEST, manifest), "fitted": found.fitted, "over": found.fit.over,
        "decided": found.decided, "nothing_decided": findings.NOTHING_DECIDED, "results": results.result_table(found),
        "findings": findings.findings(found), "automatic": results.AUTOMATIC, "claims": claim_table(found),
        "claim_note": claim_note(folder), "contrasts": results.contrast_table(found),
        "how_tested": findings.how_tested(found), "seeds_said": findings.seeds_said(found),
        "effects": effect_tables(found), "sentences": [sentence(row) for row in found.contrasts],
        "extractor": extractor, "rules": extraction.rule_table(logs, titles, extractor),
        "lengths": extraction.length_table(logs, titles, found.decided),
        "extractors": extraction.extractor_table(found, accuracies, readings) if accuracies else None,
        "extractors_adjudicated": extraction.by_extractor(found, accuracies, *adjudicated),
        "found": extraction.by_extractor(found, accuracies, "Answers with a value", "found") if accuracies else None,
        "validation": [
            (name, *(extraction.validation_table(validation, name, main) for main in (True, False)))
            # The unseen set first.
            for name in sorted({row["set"] for row in validation}, key=lambda name: (name != "validation", name))
        ],
        "labels": (extraction.LABELS, extraction.MEASURES), "decisions": extraction.decision_table(logs, titles),
        "audit": extraction.audit_table(folder), "audit_note": extraction.audit_note(folder, titles),
        "seeds": results.seed_table(found), "tuning": results.tuning_table(folder), "students": found.students,
        "beyond": beyond_tables(folder), "responses": results.response_table(folder),
        "primed": primed.primed_table(folder), "corrections": corrections.corrections_page(folder, logs),
        "text": text_students.text_tables(folder), "spent": cost_table(folder), "inside": inside.inside_page(folder),
        "deviations": (deviating := deviations.deviation_tables(folder)),
        "deviations_said": deviations.said_of(folder) if deviating else [], "step_note": inside.STEP_NOTE,
        "primed_note": primed.NOTE, "primed_sentences": primed.primed_sentences(folder),
        "figures": _figures(found, accuracies), "settings": lineage.settings(manifest),
        "hardware": lineage.hardware(manifest), "energy_method": manifest.get("energy_method"),
        "costs": lineage.costs(manifest, titles),
        "lineage": {title: lineage.model_facts(manifest, name) for name, title in titles.items()},
        "config": json.dumps(manifest.get("config", {}), indent=2, ensure_ascii=False),
        "items": script_json(browser_data(profile, found, logs, readings)), "models": [(name, "") for name in titles],
        "pairs": [(row["model"], row["reference"]) for row in found.contrasts],
        "curves": [path.stem for path in (folder / "loss_curves").glob("*.csv")],
    }  # fmt: skip


def _figures(found: results.Results, accuracies: dict) -> dict[str, str]:
    """Figures as data addresses: inside <img> their ids and styles cannot meet those of the page or of each other."""
    drawn = {
        "accuracy": figures.accuracy_forest(found), "positions": primed.position_figure(found.folder),
        "loss": figures.loss_curves(found.folder, found.fit.nll) if found.students else None,
        "contrasts": figures.contrast_forest(found) if found.contrasts else None,
        "kl": figures.kl_forest(found) if found.with_kl else None, "gains": primed.gain_figure(found),
        "deviations": deviations.deviation_figure(found), "learning": corrections.learning_figure(found.folder),
        "text": text_students.text_curves(found.folder), "costs": cost_figure(found), **inside_figures(found.folder),
        "extractors": figures.extractor_dots(found, accuracies) if accuracies else None,
    }  # fmt: skip
    return {name: svg_address(svg) for name, svg in drawn.items() if svg}
