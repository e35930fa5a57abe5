"""The report and the README's tables of one profile, written anew after its logs changed."""

from primekd.config import Profile
from primekd.foundation.provenance import relative_name
from primekd.report.html import write_report
from primekd.report.readme import update_pages


def write_anew(profile: Profile) -> list[str]:
    """Writes the report and, where the logs are the published ones, the README's tables; a line on each.

    Raises:
        UserError: a log, a table or the README cannot be read.
    """
    lines = [f"Report: {relative_name(write_report(profile))}"]
    if profile.logs == profile.published:
        lines += [f"{name} written anew" for name in update_pages(check=False, only=profile.name)]
    return lines
