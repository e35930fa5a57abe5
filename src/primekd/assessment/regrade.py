"""Grading logged answers anew, without models: after a decision of a person, or when the rules changed."""

from pathlib import Path

from primekd.assessment.grade import LogRow, grade_row, read_log
from primekd.assessment.held_out import read_rows
from primekd.assessment.results import decisions_hash, write_results
from primekd.assessment.tables import read_table
from primekd.config import Profile
from primekd.errors import UserError
from primekd.provenance import MANIFEST, altered_outputs, hash_file, now, read_json, relative_name, write_manifest

RULES_FOLDER = Path(__file__).parent


def rules_hashes() -> dict[str, str]:
    """The assessment's own code: a change of it asks for a new grading."""
    return {p.relative_to(RULES_FOLDER).as_posix(): hash_file(p) for p in sorted(RULES_FOLDER.rglob("*.py"))}


def read_logs(folder: Path) -> dict[str, list[LogRow]]:
    """Every model's log in the order of summary.csv."""
    return {row["model"]: read_log(folder / f"{row['model']}.csv") for row in read_table(folder / "summary.csv")}


def regrade(profile: Profile) -> Path:
    """Extracts, grades and sums up the logged answers of a profile anew; returns logs/<profile>/.

    The answers, their lengths and the held-out rows are taken from the logs, which must be what their manifest says.

    Raises:
        UserError: there are no logs, or one was altered since it was written.
    """
    path = profile.logs / MANIFEST
    if not path.is_file():
        raise UserError(f"{relative_name(profile.logs)} has no logs: run `primekd run --profile {profile.name}` first.")
    manifest = read_json(path)
    if altered := altered_outputs(path, manifest):
        raise UserError(
            f"{relative_name(profile.logs)}: {', '.join(altered)} missing or altered since written: bring the "
            "files back (`git checkout`), or run the assessment again."
        )
    logs = {model: [grade_row(row) for row in rows] for model, rows in read_logs(profile.logs).items()}
    outputs = write_results(profile, logs, read_rows(profile.logs / "held-out.csv"))
    kept = [profile.logs / name for name in manifest["outputs"] if name.startswith("loss_curves/")]
    inputs = manifest["inputs"] | {"rules": rules_hashes(), "adjudications": decisions_hash(profile)}
    known = ("kind", "inputs", "inputs_sha256", "outputs", "environment", "answered", "regraded")
    facts = {key: value for key, value in manifest.items() if key not in known}
    write_manifest(
        profile.logs, manifest["kind"], inputs, [*outputs, *kept, profile.logs / "held-out.csv"],
        # The environment of the answers stays; the one of this grading stands beside it.
        **facts, answered=manifest.get("answered", manifest["environment"]), regraded=now(),
    )  # fmt: skip
    return profile.logs
