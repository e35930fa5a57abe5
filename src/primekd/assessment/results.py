"""Everything that is computed from graded answers, written to logs/<profile>/."""

from pathlib import Path

from primekd.assessment.adjudicate import AuditRow, apply_decisions, audit_rows, read_decisions
from primekd.assessment.grade import LogRow, read_log, write_log
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.rivals import AccuracyRow, accuracies, read_all, write_readings
from primekd.assessment.seeds import SeedRow, seed_rows
from primekd.assessment.summary import ContrastRow, SummaryRow, contrast, summarise
from primekd.assessment.tables import read_table, write_table
from primekd.config import Profile
from primekd.provenance import hash_json

TABLES = ("summary.csv", "contrasts.csv", "seeds.csv", "accuracies.csv", "extractors.csv", "audit.csv", "held-out.csv")


def read_logs(profile: Profile) -> dict[str, list[LogRow]]:
    """Model -> its log, in the order of summary.csv. Raises UserError if one is missing or cannot be read."""
    models = [row["model"] for row in read_table(profile.logs / "summary.csv")]
    return {model: read_log(profile.logs / f"{model}.csv") for model in models}


def answers_hash(rows: list[LogRow]) -> str:
    """Hash of what a model's log holds of its answers. Everything else in a log is computed from it."""
    return hash_json([[r.id, r.question, r.gold, r.response, r.response_tokens, r.truncated] for r in rows])


def decisions_hash(profile: Profile) -> str:
    """Hash of what people decided on a profile's answers."""
    return hash_json([vars(d) for d in read_decisions() if d.profile == profile.name])


def write_results(profile: Profile, logs: dict[str, list[LogRow]], held_out: list[HeldOutRow]) -> list[Path]:
    """Applies the decisions of assessment/adjudications.csv; writes per-item logs and every table but held-out.csv.

    Returns:
        The files written, all in logs/<profile>/. Logs of models that are no more are deleted.
    """
    folder, samples, decisions = profile.logs, profile.assess.bootstrap_samples, read_decisions()
    logs = {model: apply_decisions(profile.name, model, rows, decisions) for model, rows in logs.items()}
    readings = {model: read_all(model, rows) for model, rows in logs.items()}
    tables = {  # all computed before the first file is touched
        "accuracies.csv": (AccuracyRow, [row for model, found in readings.items() for row in accuracies(model, found)]),
        "summary.csv": (SummaryRow, summarise(logs, held_out, samples)),
        "contrasts.csv": (ContrastRow, contrast(logs, held_out, samples)),
        "seeds.csv": (SeedRow, seed_rows(logs)),
        "audit.csv": (AuditRow, audit_rows(profile.name, logs, decisions)),
    }
    for path in folder.glob("*.csv"):
        if path.name not in TABLES and path.stem not in logs:
            path.unlink()
    for model, rows in logs.items():
        write_log(folder / f"{model}.csv", rows)
    return [
        *(folder / f"{model}.csv" for model in logs),
        write_readings(folder / "extractors.csv", [r for found in readings.values() for r in found]),
        *(write_table(folder / name, kind, rows) for name, (kind, rows) in tables.items()),
    ]
