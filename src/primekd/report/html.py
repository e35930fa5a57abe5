"""The report: one HTML file that needs no network, made from one logs folder.

The same logs give the same bytes: dates come from the manifest, never from the clock.
"""

import base64
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from primekd.assessment.extract import RULES
from primekd.assessment.grade import LogRow
from primekd.config import Profile
from primekd.provenance import relative_name, write_text
from primekd.report import lineage
from primekd.report.browser import browser_data, read_logs, script_json
from primekd.report.figures import accuracy_forest, kl_forest, loss_curves
from primekd.report.formats import MISSING, percent, significant
from primekd.report.results import (
    Results,
    claim_lines,
    claim_note,
    contrast_line,
    findings,
    read_manifest,
    read_results,
    result_lines,
)

REPORT = "report.html"


def write_report(profile: Profile) -> Path:
    """Writes logs/<profile>/report.html from the logs beside it; returns its path.

    Raises:
        UserError: a log, summary.csv, contrasts.csv, a loss curve or manifest.json is missing or cannot be read.
    """
    path = profile.logs / REPORT
    write_text(path, render(profile))
    return path


def render(profile: Profile) -> str:
    """The report's HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    sources = files("primekd.report")

    def source(name: str) -> str:
        return sources.joinpath(name).read_text(encoding="utf-8")

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Style and script are the package's own files: they are put in as they are, and hold no data.
    own = {"style": Markup(source("report.css")), "script": Markup(source("report.js"))}
    return environment.from_string(source("report.html.j2")).render(**own, **_page(profile))


def _page(profile: Profile) -> dict[str, Any]:
    folder = profile.logs
    results = read_results(folder)
    manifest = read_manifest(folder)
    logs = read_logs(results)
    titles = {row["model"]: row["title"] for row in results.summary}
    return {
        "profile": profile,
        "header": [*lineage.header(manifest), ("Test items", results.summary[0]["n"]), ("Logs", relative_name(folder))],
        "altered": lineage.altered(folder, manifest),
        "results": result_lines(results),
        "findings": findings(results),
        "claims": claim_lines(results),
        "claim_note": claim_note(folder),
        "contrasts": [contrast_line(row) for row in results.contrasts],
        "rules": _rules(logs, titles),
        "rule_names": RULES,
        "lengths": _lengths(logs, titles),
        "figures": _figures(results),
        "settings": lineage.settings(manifest),
        "hardware": lineage.hardware(manifest),
        "energy_method": manifest.get("energy_method"),
        "costs": lineage.costs(manifest, titles),
        "lineage": {titles[name]: facts for name, facts in lineage.model_facts(manifest, titles).items()},
        "config": json.dumps(manifest.get("config", {}), indent=2, ensure_ascii=False),
        "items": script_json(browser_data(results, logs)),
    }


def _rules(logs: dict[str, list[LogRow]], titles: dict[str, str]) -> list[tuple[str, list[str]]]:
    """For each model and extraction rule: how often it fired, and how often the number it gave was right."""
    table = []
    for name, log in logs.items():
        cells = []
        for rule in RULES:
            fired = [row for row in log if row.rule == rule]
            right = sum(row.correct for row in fired)
            cells.append(MISSING if not fired else f"{len(fired)}" if rule == "none" else f"{right} of {len(fired)}")
        table.append((titles[name], cells))
    return table


def _lengths(logs: dict[str, list[LogRow]], titles: dict[str, str]) -> list[list[str]]:
    """Model, truncated, of these right, no number found, mean and greatest length in tokens."""
    rows = []
    for name, log in logs.items():
        cut = [row for row in log if row.truncated]
        tokens = [row.response_tokens for row in log]
        share = percent(len(cut) / len(log)) if log else MISSING
        rows.append([
            titles[name], f"{len(cut)} ({share} %)", str(sum(row.correct for row in cut)),
            str(sum(row.rule == "none" for row in log)),
            significant(sum(tokens) / len(tokens), 3) if tokens else MISSING, str(max(tokens, default=0)),
        ])  # fmt: skip
    return rows


def _figures(results: Results) -> dict[str, str]:
    """Figures as data addresses: inside <img> their ids and styles cannot meet those of the page or of each other."""
    drawn = {
        "accuracy": accuracy_forest(results),
        "kl": kl_forest(results),
        "loss": loss_curves(results.folder),
    }
    return {name: f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}" for name, svg in drawn.items()}
