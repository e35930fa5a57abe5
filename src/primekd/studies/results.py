"""Everything that is computed from graded answers, written to a profile's logs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from primekd.assessment.costs import FILE as COSTS
from primekd.assessment.decisions.decisions import apply_decisions, read_decisions
from primekd.assessment.forgetting import FILE as FORGETTING
from primekd.assessment.held_out import HeldOutRow
from primekd.assessment.logs import TOKENS, LogRow, write_log
from primekd.assessment.reading import EXTRACTORS
from primekd.capture.judged import JUDGED, OF_PRIMING
from primekd.config import ANSWER_SETS, Profile
from primekd.foundation import MANIFEST, UserError, read_manifest, read_records, table_text, write_manifest
from primekd.foundation.storage import hash_json, relative_name, write_text
from primekd.statistics.contrasts import ContrastRow, SeedRow, contrast, seed_rows
from primekd.statistics.corrections import ERRANT, LABELS
from primekd.statistics.corrections import FILE as LANGUAGES
from primekd.statistics.effects import EffectRow, effect_rows
from primekd.statistics.families import Planned
from primekd.statistics.subsets import SubsetRow, read_taught, subset_rows
from primekd.statistics.summary import AccuracyRow, SummaryRow, accuracies, read_all, readings_text, summarise
from primekd.statistics.validation import AuditRow, audit_rows
from primekd.studies.study import Logs, find_study
from primekd.tasks import NumberTask, task_of
from primekd.training.tuning import FILE as TUNING

EFFECTS, SUBSETS, BENCHMARKS, FACTS = "effects.csv", "subsets.csv", "benchmarks.csv", "facts.csv"
FACT_CONTRASTS, BENCHMARK_CONTRASTS = "fact-contrasts.csv", "benchmark-contrasts.csv"
OF_NUMBERS = ("accuracies.csv", "extractors.csv")  # where answers are numbers, which several extractors read
# What comes from the models: no grading makes it anew.
KEPT = ("held-out.csv", "responses.csv", *OF_PRIMING, FORGETTING, TOKENS, TUNING, LABELS, ERRANT, COSTS)
# Not in logs from before there were any, nor where stores are gone, nor where nobody asked.
OPTIONAL = ("responses.csv", *OF_PRIMING, FORGETTING, EFFECTS, SUBSETS, TUNING, LANGUAGES, LABELS, ERRANT, BENCHMARKS)
OPTIONAL += (COSTS, FACTS, FACT_CONTRASTS, BENCHMARK_CONTRASTS)
TABLES = ("summary.csv", "contrasts.csv", "seeds.csv", "audit.csv", "held-out.csv", *OF_NUMBERS, *OPTIONAL)


def logs_in_use(profile: Profile, published: bool = False) -> Profile:
    """The profile with this machine's logs, else the published ones (`published`: those). Raises UserError if none."""
    views = [profile.of_published()] if published else [profile, profile.of_published()]
    found = [view for view in views if (view.logs / MANIFEST).is_file()]
    if not found:
        places = " and ".join(relative_name(view.logs) for view in views)
        fix = "" if published else f": run `primekd run --profile {profile.name}` first"
        raise UserError(f"There are no logs of {profile.name} in {places}{fix}.")
    return found[0]


def kept_sets(profile: Profile) -> list[Profile]:
    """Views of the answer sets that a profile's logs hold, whatever it asks for by now."""
    views = [] if profile.answer_set else [profile.answering(name) for name in ANSWER_SETS]
    return [view for view in views if (view.logs / MANIFEST).is_file()]


def held_out_of(profile: Profile) -> list[HeldOutRow]:
    """The held-out rows of a profile's logs; none of an answer set. Raises UserError if they cannot be read."""
    return [] if profile.answer_set else read_records(profile.logs / "held-out.csv", HeldOutRow)


def extractor_of(manifest: dict[str, Any]) -> str:
    """The extractor that decides in the logs of a manifest. Logs that name none were graded by the published rules.
    Raises UserError if there is no such extractor."""
    name = manifest.get("inputs", {}).get("assess", {}).get("extractor", "published")
    if name not in EXTRACTORS:
        raise UserError(f"The logs' manifest names the extractor {name!r}: there are {', '.join(EXTRACTORS)}.")
    return name


def log_extractor(folder: Path) -> str:
    """The same for a folder of logs; published where it has no manifest."""
    path = folder / MANIFEST
    return extractor_of(read_manifest(path)) if path.is_file() else "published"


def answers_hash(rows: list[LogRow]) -> str:
    """Hash of what a model's log holds of its answers. Everything else in a log is computed from it."""
    return hash_json([[r.id, r.question, r.gold, r.response, r.response_tokens, r.truncated] for r in rows])


def verdicts_hash(rows: list[LogRow]) -> str:
    """Hash of answers and automatic verdicts, whatever people decided since."""
    return hash_json([answers_hash(rows), [[r.id, r.extracted, r.rule, r.span, r.correct] for r in rows]])


def vouch(
    profile: Profile, inputs: dict[str, Any], outputs: list[Path], logs: Logs, code: dict[str, Any], **facts: Any
) -> Path:
    """Writes the manifest of a profile's logs; returns their folder."""
    hashes = {model: answers_hash(rows) for model, rows in logs.items()}
    facts |= {"answers_sha256": hashes, "config": profile.resolved(), "code": code}
    write_manifest(profile.logs, "assessment", inputs, outputs, **facts)
    return profile.logs


def decisions_hash(profile: Profile) -> str:
    """Hash of what people decided on a profile's answers."""
    return hash_json([vars(d) for d in read_decisions() if d.profile == profile.name])


def planned_inputs(profile: Profile) -> dict[str, Any]:
    """What the tables depend on beside the answers: the contrasts that a profile names, where it names any."""
    return {"planned": [list(pair) for pair in profile.planned.main]} if profile.planned.main else {}


def copy_text(file: Path, target: Path) -> Path:
    write_text(target, file.read_text(encoding="utf-8"))
    return target


def compute_tables(profile: Profile, logs: Logs, held_out: list[HeldOutRow], planned: Planned) -> dict[str, str]:
    """Every table that follows from the logs (their decisions applied), as far as they can be had: name -> text."""
    samples = profile.assess.bootstrap_samples
    audits = audit_rows(profile.name, logs, read_decisions())
    task, ended = task_of(profile.data), logs
    if not task.end_matters:  # then no claim is withheld because answers were cut off
        ended = {model: [replace(row, truncated=False) for row in rows] for model, rows in logs.items()}
    contrasts = contrast(ended, held_out, planned)
    subsets = subset_rows(logs, read_taught(profile.logs / JUDGED), planned)
    some = {EFFECTS: (EffectRow, effect_rows(ended, held_out, contrasts)), SUBSETS: (SubsetRow, subsets)}
    tables = {}
    if isinstance(task, NumberTask):  # every answer is read by every extractor
        readings = {model: read_all(model, rows) for model, rows in logs.items()}
        by_extractor = [row for model, found in readings.items() for row in accuracies(model, found)]
        tables["extractors.csv"] = readings_text([r for found in readings.values() for r in found])
        tables["accuracies.csv"] = table_text(AccuracyRow, by_extractor)
    return tables | {
        "summary.csv": table_text(SummaryRow, summarise(logs, held_out, samples)),
        "contrasts.csv": table_text(ContrastRow, contrasts),
        "seeds.csv": table_text(SeedRow, seed_rows(logs, planned)),
        "audit.csv": table_text(AuditRow, audits),
        **{name: table_text(kind, rows) for name, (kind, rows) in some.items() if rows},
    }


def write_results(profile: Profile, logs: dict[str, list[LogRow]], held_out: list[HeldOutRow]) -> list[Path]:
    """Applies people's decisions; writes logs and every table but those kept, deletes old ones, returns the files."""
    folder, decisions = profile.logs, read_decisions()
    logs = {model: apply_decisions(profile.name, model, rows, decisions) for model, rows in logs.items()}
    tables = find_study(profile).tables(profile, logs, held_out)  # all of it before the first file is touched
    for path in folder.glob("*.csv"):
        if path.name not in (*KEPT, *tables) and path.stem not in logs:
            path.unlink()
    for model, rows in logs.items():
        write_log(folder / f"{model}.csv", rows)
    for name, text in tables.items():
        write_text(folder / name, text)
    return [folder / name for name in (*(f"{model}.csv" for model in logs), *tables)]
