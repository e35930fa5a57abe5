"""The card of an exported student, README.md of its folder: facts of manifests and logs, none of this machine."""

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

from primekd.assessment.students import Student, weight_hashes
from primekd.config import CONTROL, CORPUS, NONE, Profile, get_arm
from primekd.foundation import MANIFEST, UserError, clean, hide, read_manifest
from primekd.foundation.stage_code import short_commit
from primekd.models import has_token, parse_reference, recorded
from primekd.report.formats import duration, energy, interval, markdown, percent, significant
from primekd.report.results import read_optional
from primekd.statistics.summary import SummaryRow

UNKNOWN = "not known here"
ABSOLUTE = re.compile(r"(^|[\s:'\"=(,\[])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\",)\]]+[/\\])*(?=[^\s/\\])")


def plain(value: object, most: int = 300) -> str:
    """A foreign text for a card: one line, no secret, no folder of a machine, nothing that Markdown or HTML reads."""
    return markdown(ABSOLUTE.sub(r"\1", clean(value, most)))


def accuracy_of(profile: Profile, student: Student) -> dict[str, Any] | None:
    """A student's row in the logs that scored these very weights, this machine's first; None where none did."""
    for view in (profile, profile.of_published()):
        path = view.logs / MANIFEST
        manifest = read_manifest(path) if path.is_file() else {"inputs": {}}
        if (manifest["inputs"].get("students") or {}).get(student.name) != weight_hashes(student.manifest):
            continue
        for row in read_optional(view.logs / "summary.csv", SummaryRow):
            if row["model"] == student.name:
                return {key: row[key] for key in ("n", "accuracy", "accuracy_low", "accuracy_high")}
    return None


def licence(model: str | None) -> str | None:
    """What is known here of a model's licence: from its file, or from its download's record."""
    try:
        reference = parse_reference(model)
        if reference.is_gguf and reference.local and reference.local.is_file():
            import gguf

            field = gguf.GGUFReader(reference.local).get_field("general.license")
            return str(field.contents()) if field else None
        found = recorded(reference) if reference.scheme == "hub" else None
    except UserError:  # no model, or a damaged record: nothing is known
        return None
    return found.licence if found and found.licence != "not stated" else None


def model_card(
    profile: Profile, student: Student, export: Mapping[str, Any], facts: Mapping[str, Any], gguf: Mapping[str, str]
) -> str:
    """The card. `export`: what was asked and the accuracy; `facts`: of the export's manifest; `gguf`: type -> file."""
    base, manifest, last = profile.student.model or profile.student.layers_of, student.manifest, [*gguf.values()][-1:]
    has_token()  # which hides it, whatever text it might stand in
    hide(os.environ.get(profile.teacher.api.key_variable or "", "") if profile.teacher.api else "")
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    head["tags"] = ["knowledge-distillation", *(["gguf"] if gguf else [])]
    if base and parse_reference(base).scheme == "hub":
        head["base_model"] = clean(parse_reference(base).repository)
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", known := licence(base) or ""):
        head["license"] = known
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(profile, student, export).items() if value)
    asked = '[{"role": "user", "content": "QUESTION"}]' if facts["chats"] else '"A TEXT TO GO ON FROM"'
    how = "".join(f"\n    llama-cli -m {file} --temp 0\n    ollama create {student.name.lower()}\n" for file in last)
    merged = ", its adapter merged" if profile.student.model else ""
    seconds, watt_hours = duration(manifest.get("seconds")), energy(manifest.get("energy_kwh"))
    method = f" ({plain(manifest['energy_method'])})" if manifest.get("energy_method") else ""
    return f"""---
{yaml.safe_dump(head, allow_unicode=False)}---
# {student.name}

A student of knowledge distillation{merged}. manifest.json has the hashes of all files.

| | |
|---|---|
{rows}
| Training took | {seconds}, {watt_hours}{method} |

## What exporting changed

{_changes(facts)}

## How to run it

```python
from transformers import pipeline

ask = pipeline("text-generation", model="FOLDER")
print(ask({asked}, max_new_tokens=256))
```
{how}"""


def _facts(profile: Profile, student: Student, export: Mapping[str, Any]) -> dict[str, str]:
    manifest, inputs, config = student.manifest, student.manifest["inputs"], student.manifest.get("config") or {}
    name = inputs["strategy"]
    arm = None if name == CONTROL else get_arm(name)  # the control from scratch is no arm, and learns from text alone
    base, teacher = profile.student.model or profile.student.layers_of, config.get("teacher") or {}
    data = config.get("data") or {}
    if data.get("source") != "hub":  # what a profile would take from there is no data of this student
        data = {key: data[key] for key in data if not re.match("hub_|train_dataset|train_config", key)}
    served = (teacher.get("api") or {}).get("model") or teacher.get("model")
    shape = _settings((inputs.get("student") or {}).get("from_scratch") or {})
    begun = f"{plain(base)}, of which it began with some layers: " if base else "none, from scratch: "
    found = {
        "Base model": f"{begun}{shape}" if shape else plain(base),
        "Its licence": plain(licence(base) or UNKNOWN) if base else "its weights are its own",
    }
    if arm and arm.teacher and (arm.text, arm.signals) != (CORPUS, NONE):
        found["Teacher"] = f"{plain(served)} ({plain(teacher.get('engine'))})"
        found["The teacher's licence"] = plain(licence(teacher.get("model")) or UNKNOWN)
    found |= {
        "Arm": f"{plain(name)} ({plain(arm.title if arm else 'no teacher')}) of the profile {plain(profile.name)}",
        "Data": "" if arm is None or arm.text == CORPUS else _settings(data),  # of text, what it is asked
        "Text": _settings(config.get("text") or {}),
        "Loss": _settings(inputs.get("loss") or {"alpha": 1.0}),
        "Training": _settings(inputs.get("train") or {}),
        "Adapter": _settings((inputs.get("student") or {}).get("lora") or {}),
        "Seed": plain(inputs.get("seed")),
        "Made by": plain(short_commit((manifest.get("environment") or {}).get("git"))),
        "Right, % of test items [95 %]": "not measured",
    }
    if row := export["accuracy"]:
        said = f"{interval(row, 'accuracy', percent)}, n = {row['n']}, before it was exported"
        found["Right, % of test items [95 %]"] = said
    return found


def _settings(section: Mapping[str, Any]) -> str:
    told = {key: " ".join(map(str, v)) if isinstance(v, list) else v for key, v in section.items() if v is not None}
    return ", ".join(f"{plain(key)} {plain(value)}" for key, value in told.items() if value not in ("", {}))


def _changes(facts: Mapping[str, Any]) -> str:
    def said(what: str, found: Mapping[str, Any]) -> str:
        same = f"the most probable token is the same at {percent(found['equal_top'])} % of {found['tokens']} places"
        return f"- {what}: KL {significant(found['kl'], 2)} nats a token, {same}."

    merged, scored, rounding = facts["merge"], facts["as_scored"], facts["rounding"]
    lines = [said("Merging the adapter, in float32", merged)] if merged else []
    lines += [said(f"Rounding float32 weights to {rounding['dtype']}", rounding)]
    if scored["dtype"] != "float32":
        lines += [said(f"From products in {scored['dtype']}, in which it was trained, to float32", scored)]
    for kind, kept in facts["gguf"].items():
        types = ", ".join(f"{percent(share)} % {name}" for name, share in sorted(kept["types"].items()))
        other = percent(kept["of_other_types"])
        lines += [f"- GGUF {kind}: {types} of the weights; {other} % are of another type than {kind} means."]
    return "\n".join(lines)
