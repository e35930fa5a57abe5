"""This machine's logs become the published ones: runs/<profile>/logs/ -> logs/<profile>/, on a person's word alone."""

import shutil
from pathlib import Path

from primekd.config import Profile
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import MANIFEST, read_manifest, relative_name, sync_folder, write_atomically
from primekd.report.html import write_report
from primekd.running.made_by import refuse_unpublishable
from primekd.running.run import only_one
from primekd.running.verify import check_logs
from primekd.running.verify_run import check_run

OTHERS = ("engines", "plan", "published")  # folders of logs/ that are no profile's


def publish(profile: Profile, mixed: bool = False) -> list[str]:
    """Puts this machine's logs (what their manifest names) in the place of the published ones, with a report of their
    own; says what it did. Until all is copied, the old ones stay. `mixed`: also where several commits made it. Raises
    UserError if there are no logs, a run is under way, `verify` finds something, or not one commit made all of it."""
    if not (profile.logs / MANIFEST).is_file():
        raise UserError(f"{relative_name(profile.logs)} has no logs: run `primekd run --profile {profile.name}` first.")
    with only_one(profile):
        require_verified(profile)
        refuse_unpublishable(profile, mixed)
        names = [*read_manifest(profile.logs / MANIFEST)["outputs"], MANIFEST]
        exchange(profile.logs, profile.published, names)
    report = write_report(profile.of_published())
    source, target = relative_name(profile.logs), relative_name(profile.published)
    return [f"{target} now holds the {len(names)} files of {source}.", f"Report: {relative_name(report)}"]


def require_verified(profile: Profile) -> None:
    """Raises UserError where a number of this machine's logs could not be vouched for, and says why."""
    checks = check_logs(profile) + check_run(profile)
    reasons = [f"{check.what}: {problem}" for check in checks for problem in check.problems]
    if profile.name in OTHERS:
        reasons.append(f"logs/{profile.name} is no profile's folder: give the profile's file another name")
    if reasons:
        more = f" (and {len(reasons) - 5} more: `primekd verify`)" if len(reasons) > 5 else ""
        raise UserError(f"{relative_name(profile.logs)} is not published: {'; '.join(reasons[:5])}{more}.")


def exchange(source: Path, target: Path, names: list[str]) -> None:
    """Copies files of one folder into a new one and puts that in the place of `target`. If this is stopped, `target` is
    the old folder or the new one; between two renames it is neither for a moment, which the next call mends first."""
    new, old = (target.with_name(f".{target.name}.{kind}") for kind in ("new", "old"))
    if old.is_dir() and not target.exists():
        old.rename(target)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        for name in names:
            with write_atomically(new / name) as temporary:
                shutil.copyfile(source / name, temporary)
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.is_dir() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
