"""What follows a sitting: logs are regraded with what was decided, and the change is told."""

from collections.abc import Callable, Iterable

from primekd.assessment.decisions.decisions import apply_decisions, read_decisions
from primekd.assessment.decisions.session import Session, counted, readable, spoken
from primekd.assessment.logs import read_logs
from primekd.config import Profile
from primekd.foundation import MANIFEST, altered_outputs, read_manifest, read_records, table_text
from primekd.statistics.summary import SummaryRow
from primekd.statistics.validation import ALL_MODELS, AuditRow, audit_rows, audit_scope
from primekd.studies.regrade import regrade


def finish(session: Session, write_report: Callable[[Profile], list[str]]) -> str:
    """Regrades this machine's logs and the published ones, as far as they lack a decision, of other people too, has the
    report written anew (`write_report` says what it wrote, a line each), and says what that changed."""
    profile, count = session.profile, len(session.decided)
    views = [profile] + [view for view in (profile.of_machine(), profile.of_published()) if view.logs != profile.logs]
    behind = [view for view in views if (view.logs / "summary.csv").is_file() and _is_behind(view)]
    if not count and not behind:
        return "Nothing was decided."
    lines = [f"{counted(count, 'decision')} saved."]
    for view in behind:
        regrade(view)
        lines += write_report(view)
    lines += ["", accuracies_text(read_records(profile.logs / "summary.csv", SummaryRow))]
    if session.blind:
        logs = read_logs(profile)
        lines += ["", audit_text(audit_rows(profile.name, logs, read_decisions()), logs)]
        lines += differences(session)
    return "\n".join(lines)


def _is_behind(profile: Profile) -> bool:
    """Whether the logs lack a decision, hold one that was taken back, or were left half way by a grading."""
    decisions, manifest, logs = read_decisions(), profile.logs / MANIFEST, read_logs(profile)
    if manifest.is_file() and altered_outputs(manifest, read_manifest(manifest)):
        return True
    if any(apply_decisions(profile.name, model, log, decisions) != log for model, log in logs.items()):
        return True
    audits, written = audit_rows(profile.name, logs, decisions), profile.logs / "audit.csv"
    text = written.read_text(encoding="utf-8") if written.is_file() else table_text(AuditRow, [])
    return text != table_text(AuditRow, audits)


def accuracies_text(summary: list[SummaryRow]) -> str:
    lines = [
        f"{readable(row.model):24} {row.accuracy:10.2%} {row.accuracy_adjudicated:12.2%} {row.adjudicated:>8}"
        for row in summary
    ]
    return "\n".join([f"{'accuracy':24} {'automatic':>10} {'adjudicated':>12} {'decided':>8}", *lines])


def audit_text(rows: list[AuditRow], models: Iterable[str]) -> str:
    """The error rate of the automatic grading by all audits of the profile, overall and a model of `models`."""
    lines = ["Audits so far: how often the automatic value differs from the one that a person read blind"]
    for row in sorted(rows, key=lambda r: r.model != ALL_MODELS):
        interval = f"95 % interval {row.rate_low:.2%} to {row.rate_high:.2%}"
        lines.append(f"{row.model:24} {row.errors} of {row.n}: {row.rate:.2%} ({interval})")
    scope = audit_scope((row.model for row in rows if row.model != ALL_MODELS), models)
    return "\n".join([*lines, *([scope] if scope else [])])


def differences(session: Session) -> list[str]:
    """The audited answers of this session whose automatic value differs, shown only now."""
    return [
        f"  differs: {d.model} {readable(d.id)}: automatic {spoken(d.automatic)}, you {spoken(d.value)}"
        for d in session.decided
        if d.automatic != d.value
    ]
