"""Whether a run says the same as the logs that are published: this machine's logs beside those of the checkout. Another
processor sums in another order, so answers change here and there. What has to stay is what is claimed."""

from pathlib import Path
from typing import Any

from primekd.assessment.logs import LogRow, read_logs
from primekd.config import LossConfig, PrepareConfig, Profile, TrainConfig
from primekd.foundation import MANIFEST, UserError, canonical_json, hash_file, read_json, read_manifest, relative_name
from primekd.foundation.storage import write_json
from primekd.foundation.tables import Cells as Row
from primekd.report.claims import short_commit
from primekd.report.formats import percent, significant
from primekd.report.results import read_results
from primekd.statistics.sentences import claims
from primekd.studies.results import logs_in_use

REPRODUCTION = "reproduction.json"
REPRODUCED, NOT_REPRODUCED, NOT_COMPARED = "reproduced", "not reproduced", "not compared"
RULE = (
    "same items and settings, every accuracy inside the other run's 95 % interval, both ways, and the same claims of "
    "planned contrasts"
)
YOUNGER = {"train": TrainConfig, "loss": LossConfig, "prepare": PrepareConfig}  # sections that leave out some defaults
# Mappings whose keys are not the profile's own.
FREE = (
    ("prepare", "solutions"), ("teacher", "api", "request"), ("teacher", "template_arguments"),
    ("student", "template_arguments"),
)  # fmt: skip
INCIDENTAL = ("description", "hardware", "launch")  # of a profile: they say nothing of what is measured


def compare_with_published(profile: Profile) -> dict[str, Any]:
    """Holds this machine's logs against the published ones. Returns, and keeps in reproduction.json: verdict
    (reproduced, not reproduced, not compared), reasons, rule, here and published (`_origin`), models (`_pair`), largest
    (the largest difference of kl and nll_gold, with its model), sentences (same, only_here, only_published). Raises
    UserError if this machine has no logs, or they cannot be read."""
    own = profile.of_machine()
    if not (own.logs / MANIFEST).is_file():
        raise UserError(f"{relative_name(own.logs)} has no logs: run `primekd run --profile {profile.name}` first.")
    found = {"profile": profile.name, "rule": RULE, "here": _origin(own.logs)} | _compare(own, profile.of_published())
    write_json(own.logs / REPRODUCTION, found)
    return found


def _origin(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder / MANIFEST)
    made = manifest.get("answered") or manifest.get("environment") or {}  # on what the answers were made
    return {
        "logs": relative_name(folder), "commit": short_commit(manifest),
        "processor": made.get("hardware", {}).get("cpu"), "manifest_sha256": hash_file(folder / MANIFEST),
    }  # fmt: skip


def _compare(own: Profile, other: Profile) -> dict[str, Any]:
    """Verdict, reasons and what they rest on. Published logs that cannot be read are compared with nothing."""
    results, logs = read_results(own.logs), read_logs(own)
    try:
        logs_in_use(own, published=True)
        published = {"published": _origin(other.logs)}
        results_2, logs_2 = read_results(other.logs), read_logs(other)
    except UserError as error:
        return {"verdict": NOT_COMPARED, "reasons": [str(error)]}
    if unlike := unlike_settings(own.logs, other.logs) + _unlike_items(logs, logs_2):
        return published | {"verdict": NOT_COMPARED, "reasons": unlike}
    rows, rows_2 = ({row["model"]: row for row in r.summary} for r in (results, results_2))
    models = [_pair(rows[m], rows_2[m], logs[m], logs_2[m]) for m in logs]
    here, there = claims(results.contrasts), claims(results_2.contrasts)
    alone = {"only_here": [s for s in here if s not in there], "only_published": [s for s in there if s not in here]}
    largest = {}
    for measure in ("kl", "nll_gold"):
        found = [{"model": m["model"], "difference": m[measure]} for m in models if m[measure] is not None]
        largest[measure] = max(found, key=lambda m: abs(m["difference"]), default=None)
    reasons = [f"{m['model']} has another accuracy" for m in models if not (m["inside"] and m["published_inside"])]
    if said := sum(map(len, alone.values())):
        reasons.append(f"{said} sentence{'s differ' if said > 1 else ' differs'}")
    return published | {
        "verdict": NOT_REPRODUCED if reasons else REPRODUCED, "reasons": reasons, "models": models, "largest": largest,
        "sentences": {"same": [s for s in here if s in there]} | alone,
    }  # fmt: skip


def unlike_settings(first: Path, second: Path) -> list[str]:
    """What two logs folders were made with other values of, a sentence for the profile's keys and one for the arms' own
    settings; none if all are alike."""
    manifests = [read_manifest(folder / MANIFEST) for folder in (first, second)]
    keys = [key for key in _unlike(*map(_settings, manifests)) if key.split(".")[0] not in INCIDENTAL]
    said = [f"they were made with other settings: {', '.join(keys)}"] if keys else []
    one, two = ({name: _treated(facts) for name, facts in (m.get("models") or {}).items()} for m in manifests)
    if arms := _unlike(one, two):
        said.append(f"their arms are not the same: {', '.join(arms)}")
    return said


def _settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """A profile as it was resolved, with what is left out of it where it has its default."""
    config = dict(manifest.get("config") or {})
    for name, kind in YOUNGER.items():
        if config.get(name):
            config[name] = {key: kind.model_fields[key].default for key in kind.younger} | config[name]
    for *sections, key in FREE:
        _as_whole(config, sections, key)
    return config


def _as_whole(values: dict[str, Any], sections: list[str], key: str) -> None:
    """Puts text in the place of a mapping: a key that one side lacks is no younger one there."""
    for name in sections:
        if not values.get(name):
            return
        values[name] = values = dict(values[name])
    values[key] = canonical_json(values.get(key) or None)


def _treated(facts: dict[str, Any]) -> dict[str, Any]:
    """What an arm does to its student: these are no keys of a profile."""
    inputs, spec = facts.get("inputs") or {}, (facts.get("signals") or {}).get("spec") or {}
    own = {key: canonical_json(inputs.get(key) or None) for key in ("treatment", "deviations", "text_alone")}
    written = {key: value for key, value in (inputs.get("on_policy") or {}).items() if value is not None}
    own |= {"writes": bool(written), "on_policy": written}
    loss = {key: LossConfig.model_fields[key].default for key in LossConfig.younger} | (inputs.get("loss") or {})
    return own | {"loss": loss} | {key: spec[key] for key in ("priming", "prompt") if key in spec}


def _unlike(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Dotted keys that both have with other values. A key that one lacks came into the profiles later."""
    keys = []
    for key in first.keys() & second.keys():
        one, two = first[key], second[key]
        if isinstance(one, dict) and isinstance(two, dict):
            keys += [f"{key}.{inner}" for inner in _unlike(one, two)]
        elif one != two:
            keys.append(key)
    return sorted(keys)


def _unlike_items(logs: dict[str, list[LogRow]], logs_2: dict[str, list[LogRow]]) -> list[str]:
    if other := logs.keys() ^ logs_2.keys():
        return [f"they are of other models: {', '.join(sorted(other))}"]
    asked, asked_2 = ([[(r.id, r.question, r.gold) for r in each[m]] for m in logs] for each in (logs, logs_2))
    return [] if asked == asked_2 else ["they are of other test items"]


def _pair(row: Row, row_2: Row, log: list[LogRow], log_2: list[LogRow]) -> dict[str, Any]:
    """One model in both runs. Accuracies (value, low, high of the 95 % interval) and shares are of its n items; kl and
    nll_gold are here minus published, nats a token. `inside`: in the published interval; and the reverse."""
    pairs = list(zip(log, log_2, strict=True))
    here, there = (tuple(float(r[f"accuracy{end}"]) for end in ("", "_low", "_high")) for r in (row, row_2))
    return {
        "model": row["model"], "n": len(pairs), "accuracy": here, "published_accuracy": there,
        "inside": there[1] <= here[0] <= there[2], "published_inside": here[1] <= there[0] <= here[2],
        "same_verdicts": sum(a.correct == b.correct for a, b in pairs) / len(pairs),
        "same_texts": sum(a.response == b.response for a, b in pairs) / len(pairs),
        **{m: float(row[m]) - float(row_2[m]) if row[m] and row_2[m] else None for m in ("kl", "nll_gold")},
    }  # fmt: skip


def verdict_text(found: dict[str, Any]) -> str:
    """A comparison in a few lines, the verdict last."""
    lines = []
    if origin := found.get("published"):
        named = f"{origin['logs']} (commit {origin['commit']}, {origin['processor'] or 'unknown processor'})"
        lines.append(f"Compared with the published logs: {named}.")
    if "models" in found:
        sentences = found["sentences"]
        lines += _table(found["models"])
        said = [
            f"{name} {significant(one['difference'], digits=2, signed=True)} ({one['model']})"
            for name, key in (("KL", "kl"), ("NLL", "nll_gold"))
            if (one := found["largest"][key])
        ]
        lines += [f"  Largest difference, nats a token: {', '.join(said)}."] if said else []
        lines.append(f"  Sentences that are the same: {len(sentences['same'])}.")
        lines += [f"  Only here: {sentence}" for sentence in sentences["only_here"]]
        lines += [f"  Only published: {sentence}" for sentence in sentences["only_published"]]
    reasons = f": {'; '.join(found['reasons'])}" if found["reasons"] else ""
    return "\n".join([*lines, f"{found['verdict']}{reasons}.".replace("..", "."), f"  (Reproduced: {RULE}.)"])


def _table(models: list[dict[str, Any]]) -> list[str]:
    head = ("model", "here, % [95 %]", "published, % [95 %]", "inside", "same verdict, %", "same text, %")
    rows = []
    for m in models:
        ranges = [map(percent, m[key]) for key in ("accuracy", "published_accuracy")]
        shares = [f"{value} [{low}, {high}]" for value, low, high in ranges]
        inside = "yes" if m["inside"] and m["published_inside"] else "NO"
        rows.append((m["model"], *shares, inside, percent(m["same_verdicts"]), percent(m["same_texts"])))
    return [f"  {name:16} {' '.join(f'{cell:>19}' for cell in cells)}" for name, *cells in (head, *rows)]


def logs_lines(profile: Profile) -> list[str]:
    """Which logs there are, this machine's and published, and how they differ; a line each."""
    own, published = profile.logs / MANIFEST, profile.published / MANIFEST
    lines = [_described("This machine's logs", own), _described("Published logs", published)]
    if not (own.is_file() and published.is_file()):
        return lines
    said = ["the same"]
    if own.read_bytes() != published.read_bytes():
        older = str(read_manifest(published).get("end")) < str(read_manifest(own).get("end"))
        said = [f"other, and {'older' if older else 'newer'}", *unlike_settings(own.parent, published.parent)]
    lines[1] += f": {'; '.join(said)}"
    kept = own.parent / REPRODUCTION
    found = read_json(kept) if kept.is_file() else {}
    hashes = [found.get(side, {}).get("manifest_sha256") for side in ("here", "published")]
    if hashes == [hash_file(own), hash_file(published)]:
        return [*lines, f"This machine's logs against the published ones: {found['verdict']}"]
    return [*lines, f"Not compared yet: `primekd verify --against-published --profile {profile.name}`"]


def _described(what: str, path: Path) -> str:
    if not path.is_file():
        return f"{what}: none in {relative_name(path.parent)}"
    made = read_manifest(path)
    return f"{what}: {relative_name(path.parent)}, of {made.get('end', 'unknown date')}, commit {short_commit(made)}"
