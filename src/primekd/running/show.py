"""The way back from a number: one test item under one model, down to what the model was made from. Everything is read
from logs, whose text is foreign: what a terminal would obey is taken out of it."""

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from primekd.assessment.answers import answers_folder
from primekd.assessment.logs import LogRow, read_logs
from primekd.assessment.tokens import Token, read_tokens, visible
from primekd.capture.primings import can_speak, priming_of
from primekd.config import NO_STUDENTS, TEACHER, Profile, arms_of, split_seed, unprimed
from primekd.foundation import MANIFEST, UserError, clean, read_manifest, relative_name
from primekd.models import build_prompt, load_tokenizer
from primekd.report import lineage
from primekd.report.browser import words_of
from primekd.report.extraction import read_readings
from primekd.report.formats import percent
from primekd.studies.results import kept_sets
from primekd.tasks.load import load_items
from primekd.tasks.protocol import as_text as bare

FAR = 3  # tokens that are named: those at which the model is furthest from the teacher
Rows = list[tuple[str, str]]


class Part(NamedTuple):
    title: str
    rows: Rows


def show(profile: Profile, item: str, model: str | None = None) -> list[Part]:
    """An item, every model's verdict on it and, of one model (as its log is named), its answer and all that this came
    from. `item`: its id, or the start of it that no other has; of an answer set too, where the test items have none.
    Raises UserError if there is no such item or model, or the logs cannot be read."""
    manifest = read_manifest(profile.logs / MANIFEST)
    views = ((view, read_logs(view)) for view in (profile, *kept_sets(profile)))
    known = (pair for pair in views if any(row.id.startswith(item) for row in next(iter(pair[1].values()), ())))
    whole, (profile, logs) = profile, next(known, None) or (profile, read_logs(profile))
    row_of = {name: {row.id: row for row in rows} for name, rows in logs.items()}
    any_log = next(iter(row_of.values()))
    found = _find(item, list(any_log))
    if model is not None and model not in logs:
        raise UserError(f"{relative_name(profile.logs)} has no model {model!r}: choose from {', '.join(logs)}.")
    asked = [("Id", found), ("Question", any_log[found].question), ("Gold answer", str(any_log[found].gold))]
    verdicts = [(name, _verdict(rows[found])) for name, rows in row_of.items() if found in rows]
    parts = [Part("Item", asked), Part("Verdicts", verdicts)]
    if model is None:
        again = ["primekd", "show", found, "--model", "NAME", *words_of(profile)]
        return [*parts, Part("Next", [("One model", " ".join(again))])]
    trained = manifest.get("models", {}).get(model, {}).get("inputs")
    return [
        *parts,
        Part("What the model read", _prompt(profile, found, model, whole)),
        Part("Answer", _answer(profile, model, row_of[model][found])),
        *_furthest(profile, model, found),
        *([Part("Trained with", lineage.training(trained))] if trained else []),
        Part("Made from", lineage.model_facts(manifest, model)),
        Part("Files", _files(profile, model, manifest, found)),
    ]


def _find(item: str, known: Sequence[str]) -> str:
    if item in known:
        return item
    if not item:
        raise UserError(f"Name a test item, such as {known[0]}: the report and each log's column id have all.")
    begun = [name for name in known if name.startswith(item)]
    if len(begun) == 1:
        return begun[0]
    near = begun[:3] or difflib.get_close_matches(item, known, 3, 0.3) or list(known[:3])
    raise UserError(f"{'Several items begin' if begun else 'No item is called'} {item!r}: {', '.join(near)}, …")


def _verdict(row: LogRow) -> str:
    said = "no number found" if row.rule == "none" else f"read {row.extracted} by the rule {row.rule}"
    by_hand = f"; decided by hand: {row.adjudicated}" if row.adjudicated else ""
    return f"{'right' if row.correct else 'wrong'}, {said}{', truncated' if row.truncated else ''}{by_hand}"


def _prompt(profile: Profile, item: str, model: str, whole: Profile) -> Rows:
    """`whole`: the profile that `profile` is the view of an answer set of; solved examples are its."""
    if not can_speak(profile):
        return [("Prompt", "not in this checkout: the tokenizer is not here")]
    from primekd.assessment.score import untrained_models

    arm, speaker, priming = arms_of(profile).get(split_seed(model)[0]), profile.student, None
    if model == TEACHER and not profile.text:
        speaker, priming = profile.teacher, priming_of(unprimed(), profile.teacher)
    found = [i for i in load_items(profile, "test") if i.id == item]
    as_it_is = profile.text is not None or (arm and "no-template" in arm.deviates)  # text to go on with
    found = bare(found) if as_it_is else found
    for known in untrained_models(profile):  # one of them is shown solved items first
        found = known.asked(whole, found) if known.name == model else found
    if not found:
        return [("Prompt", "not known: the profile has other test items than these logs")]
    return [("Prompt", build_prompt(load_tokenizer(speaker), found[0].messages, priming).text)]


def _answer(profile: Profile, model: str, row: LogRow) -> Rows:
    read = read_readings(profile.logs).get(model, {}).get(row.id, {})
    values = [(f"Read by {name}", value) for name, value in read.items() if name not in ("model", "id", "gold")]
    place = f"characters {row.span}" if row.span else "nowhere"
    facts = [("Verdict", _verdict(row)), ("Value stands at", place), ("Tokens", str(row.response_tokens))]
    return [("Answer", row.response), *facts, *values]


def _furthest(profile: Profile, model: str, item: str) -> list[Part]:
    log = read_tokens(profile.logs)
    if log is None or model not in log.models or not (tokens := log.tokens(item, [model])):
        return []
    far = sorted(range(len(tokens)), key=lambda n: -tokens[n].kl[model])[:FAR]
    title = "Where the model is furthest from the teacher, on the teacher's own answer"
    return [Part(title, [_token(tokens, n, model) for n in sorted(far)])]


def _token(tokens: list[Token], place: int, model: str) -> tuple[str, str]:
    before = "".join(visible(t.text) for t in tokens[max(0, place - 5) : place])
    best = [", ".join(f"“{visible(text)}” {percent(p)} %" for text, p in found[:3])
            for found in (tokens[place].teacher, tokens[place].top[model])]  # fmt: skip
    name = f"Token {place + 1}, “{visible(tokens[place].text)}” after “{before}”"
    return name, f"KL {tokens[place].kl[model]:.3f} nats; teacher: {best[0]}; {model}: {best[1]}"


def _files(profile: Profile, model: str, manifest: dict[str, Any], item: str) -> Rows:
    spec = (manifest.get("models", {}).get(model, {}).get("signals") or {}).get("spec") or {}
    line = next((n for n, row in enumerate(read_logs(profile)[model], 1) if row.id == item), 0)
    rows, runs = [("Log", f"{relative_name(profile.logs / f'{model}.csv')}, row {line}")], profile.runs
    wanted = {"Answers": answers_folder(profile, model)}
    if not profile.answer_set:
        rows.append(("Report", f"{relative_name(profile.logs / 'report.html')}#item={item}"))
        wanted["Held-out fit"] = runs / "held-out" / model
    if model not in NO_STUDENTS:
        wanted |= {"Student": runs / "students" / model}
        wanted |= {"Signals": runs / "signals" / str(spec["strategy"])} if spec.get("strategy") else {}
    if model == TEACHER:
        wanted = {"Signals": runs / "signals" / "held-out"}
    return rows + [
        (what, relative_name(folder) + ("" if (folder / MANIFEST).is_file() else ": not in this checkout"))
        for what, folder in wanted.items()
    ]


def as_text(parts: Sequence[Part]) -> str:
    """For a terminal: a heading a part, long texts below their names."""
    lines: list[str] = []
    for part in parts:
        lines += ["", part.title, "-" * len(part.title)]
        for name, value in part.rows:
            value = "\n".join(clean(line, 4000) for line in value.split("\n"))
            below = value.replace("\n", "\n    ")
            lines.append(f"{clean(name, 200)}:" + (f"\n    {below}" if "\n" in value else f" {value}"))
    return "\n".join(lines[1:])
