"""Where every number came from: settings, machine, time, energy and hashes, read from the logs' manifest."""

from pathlib import Path
from typing import Any

from primekd.assessment.students import weight_hashes
from primekd.foundation import hash_json, summed
from primekd.report.formats import MISSING, duration, energy

Facts = list[tuple[str, str]]


def header(manifest: dict[str, Any]) -> Facts:
    """Date and commit of the assessment and, if the answers were graded anew since, of that."""
    answered, graded = manifest.get("answered"), manifest.get("environment", {})
    rows = [("Assessed", _date(manifest.get("end"))), ("Commit", _commit((answered or graded).get("git")))]
    anew = ("Graded anew", _date(manifest.get("regraded"))), ("Commit of the grading", _commit(graded.get("git")))
    return [*rows, *anew] if answered else rows


def hardware(manifest: dict[str, Any]) -> Facts:
    """The machine that wrote the answers."""
    facts = (manifest.get("answered") or manifest.get("environment", {})).get("hardware", {})
    names = {"cpu": "Processor", "cores": "Cores", "memory_gib": "Memory, GiB", "gpus": "GPUs", "system": "System",
             "python": "Python"}  # fmt: skip
    rows = [(title, _plain(facts[key])) for key, title in names.items() if facts.get(key) is not None]
    engine = (manifest.get("teacher") or {}).get("engine") or {}
    wanted = ("torch", "transformers", "llama_cpp", "llama-cpp-python", "exllamav2", "vllm")
    return rows + [(name, str(engine[name])) for name in wanted if name in engine]


def settings(manifest: dict[str, Any]) -> Facts:
    """The settings that a reader asks for first; the whole configuration stands beside them."""
    config = manifest.get("config", {})
    teacher, student, data = (config.get(part, {}) for part in ("teacher", "student", "data"))
    codec = ((manifest.get("teacher") or {}).get("spec") or {}).get("codec") or {}
    counts = [f"{n} {side}" for side in ("train", "validation", "test") if (n := data.get(f"{side}_items"))]
    fresh = {"from_scratch": "from scratch"} if student.get("from_scratch") else {}
    rows = [
        ("Teacher", _joined(teacher, "model", "engine", "dtype")),
        ("Student", _joined(student | fresh, "from_scratch", "model", "dtype")),
        ("Text", _named(config.get("text") or {}, "source", "train_tokens", "held_out_documents", "block_tokens")),
        ("Items", f"{data.get('task') or data.get('source')}: {', '.join(counts)}"),
        ("Signals", _plain(codec.get("name", config.get("signals", {}).get("codec")))),
        *training(config),
        ("New tokens at most", _plain(config.get("max_new_tokens"))),
        ("Decoding", "" if data.get("task") == "choices" else "greedy, the same limit for every model"),
        ("Seed", _plain(config.get("seed"))),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value not in ("", "None")]


def training(inputs: dict[str, Any]) -> Facts:
    """How students are trained, by a profile's sections or by those that one student's manifest has."""
    lora, train, loss = inputs.get("student", {}).get("lora") or {}, inputs.get("train", {}), inputs.get("loss", {})
    steps = ("optimizer", "learning_rate", "epochs", "batch_size", "weight_decay", "warmup_ratio")
    rows = [
        ("LoRA", _named(lora, "rank", "alpha", "dropout", "target_modules")),
        ("Training", _named(train, *steps)),
        ("Loss", _named(loss, "divergence", "temperature", "alpha")),
    ]
    return [(name, value) for name, value in rows if value]


def model_facts(manifest: dict[str, Any], name: str) -> Facts:
    """What a model's log was computed from, as far as the manifest knows."""
    rows: Facts = []
    if name in manifest.get("models", {}):
        rows += _of_student(manifest["models"][name], manifest.get("config", {}).get("loss", {}))
    elif name == "teacher":
        facts = manifest.get("teacher") or {}
        rows += [("Model", _joined(facts.get("engine") or {}, "model", "model_sha256"))]
        rows += _of_signals(facts, facts.get("spec_sha256"))
    else:
        answers = manifest.get("inputs", {}).get("answers") or {}
        rows += [("Model", _joined(answers, "model", "model_sha256")), ("Adapter", "none, the student before training")]
        rows += _scored(manifest.get(name) or {})
    rows.append(("Per-item log sha256", _plain(manifest.get("outputs", {}).get(f"{name}.csv"))))
    return [(title, value) for title, value in rows if value]


def _of_student(facts: dict[str, Any], loss: dict[str, Any]) -> Facts:
    inputs, adapters = facts.get("inputs", {}), weight_hashes(facts)
    served = (facts.get("served") or {}).get("held_out") or {}
    merging = _named(served, "kl_merging", "kl_noise", "on_grid")  # what that was measured to cost, nats a token
    speed, used = facts.get("tokens_per_second"), facts.get("flops_utilisation")
    own = {key: value for key, value in inputs.get("loss", {}).items() if value != loss.get(key)}
    rows = [
        ("Seed", _plain(inputs.get("seed"))),
        ("Base model sha256", _plain((inputs.get("student") or {}).get("model_sha256"))),
        ("Loss, where it is not the profile's", _named(own, *own)),
        *((f"{Path(name).name} sha256", digest) for name, digest in adapters.items()),
        ("Training items sha256", _plain(inputs.get("items_sha256"))),
        ("Training manifest sha256", _plain(facts.get("manifest_sha256"))),
        ("Commit of training", _commit(facts.get("git"))),
        ("Trained", _date(facts.get("end")) + (", resumed" if facts.get("resumed") else "")),
        ("Trained by different code", _several(facts)),
        ("Left out of the store before training", _named(facts.get("dropped") or {}, "items", "tokens")),
        ("Tokens a second in training", f"{speed:,.0f}" if speed else ""),
        ("Share of the machine's peak", f"{100 * used:.1f} % ({facts.get('peak_source')})" if used else ""),
        ("Adapter in scoring", _plain(served.get("adapter")) + (f" ({merging})" if merging else "")),
        *_scored(facts),
    ]
    signals = facts.get("signals")
    if signals is None:
        return [*rows, ("Signals", f"none, trained on the {'text' if 'text' in inputs else 'gold solutions'} alone")]
    alone = bool(inputs.get("text_alone"))
    rows.append(("Trained on", "the responses of this store alone, and none of its signals" if alone else ""))
    return rows + _of_signals(signals, (inputs.get("signals") or {}).get("spec_sha256"), alone)


def _scored(facts: dict[str, Any]) -> Facts:
    """Whose code made a model's answers and held-out rows: not always that of the assessment."""
    return [
        (f"Commit of {what}", _commit(maker.get("git")) + _several(maker, ", in parts by "))
        for what, key in (("answers", "answers"), ("held-out fit", "held_out"))
        if (maker := facts.get(key))
    ]


def _several(facts: dict[str, Any], before: str = "") -> str:
    """The commits of what was made in parts by different code."""
    commits = dict.fromkeys(_commit(maker.get("git")) for maker in facts.get("mixed") or ())
    return before + " and ".join(commits) if commits else ""


def _of_signals(signals: dict[str, Any], spec_sha256: str | None, alone: bool = False) -> Facts:
    spec, rebuilt = signals.get("spec") or {}, signals.get("reconstruction") or {}
    shards = signals.get("shards") or {}
    named = ", ".join(f"{Path(name).stem} {str(digest)[:16]}" for name, digest in shards.items())
    named = f"{len(shards)}, sha256 of their list {hash_json(shards)[:16]}" if len(shards) > 3 else named
    text = spec.get("text") or {}  # of a crossed arm: its responses were written under another prompt than scored under
    return [
        ("Priming text of the responses", (_plain(text.get("priming")) or "none") if text else ""),
        ("What the teacher read when it wrote them", _plain(text.get("prompt"))),
        ("Responses taken from", _joined(text, "store", "spec_sha256", "shards_sha256")),
        ("Priming text", _plain(spec.get("priming")) or "none"),
        ("What the teacher reads", _plain(spec.get("prompt"))),
        ("Signals spec sha256", spec_sha256 or (hash_json(spec) if spec else "")),
        ("Signals", f"{signals['items']} items, {signals.get('tokens')} tokens{_size(signals.get('bytes'))}"
                    if "items" in signals else "of the live teacher, none of them stored"),
        ("Shards with these responses" if alone else "Shards trained on", named),
        ("Signal codec", _plain((spec.get("codec") or {}).get("name"))),
        ("Codec against the engine's logits", _named(rebuilt, "mean_kl_nats", "max_kl_nats", "top1_agreement")),
        ("Commit of capture", _commit(signals.get("git")) if signals.get("git") else ""),
        ("Captured by different code", _several(signals)),
    ]  # fmt: skip


def captures(manifest: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Hash of all that a store's bytes depend on -> (its first student or `teacher`, facts): every store that the
    results come from, once, however many arms read it; a live teacher has none."""
    used = [(name, facts.get("signals")) for name, facts in manifest.get("models", {}).items()]
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, store in [*used, ("teacher", manifest.get("teacher"))]:
        if store and "items" in store:
            found.setdefault(hash_json(store.get("spec") or store.get("spec_sha256") or name), (name, store))
    return found


def costs(manifest: dict[str, Any], titles: dict[str, str]) -> list[list[str]]:
    """Rows of (stage, model, time, energy, steps, response tokens), and their sum."""
    stages: list[tuple[str, str, float | None, float | None, Any, Any]] = []
    captured = dict(captures(manifest).values())
    for name, facts in manifest.get("models", {}).items():
        title = titles.get(name, name)
        if signals := captured.get(name):
            stages.append(("Capture", title, *_sessions(signals), None, signals.get("tokens")))
        work = (facts.get("seconds"), facts.get("energy_kwh"), facts.get("steps"), facts.get("response_tokens"))
        stages.append(("Training", title, *work))
    if "items" in (teacher := manifest.get("teacher") or {}):
        stages.append(("Capture, test items", "Teacher, unprimed", *_sessions(teacher), None, teacher.get("tokens")))
    stages.append(("Assessment", "all", manifest.get("seconds"), manifest.get("energy_kwh"), None, None))
    rows = [[a, b, duration(s), energy(e), _plain(n) or MISSING, _plain(t) or MISSING] for a, b, s, e, n, t in stages]
    timed = [(s, e) for _, _, s, e, *_ in stages if s is not None]  # the energy of them all, or of none
    kwh = None if None in (e for _, e in timed) else sum(e for _, e in timed)
    return [*rows, ["All", "", duration(sum(s for s, _ in timed)), energy(kwh), "", ""]]


def _sessions(signals: dict[str, Any]) -> tuple[float | None, float | None]:
    found = summed(signals.get("sessions") or [])
    return found["seconds"], found["energy_kwh"]


def job_seconds(manifest: dict[str, Any]) -> float:
    """Seconds of all captures, trainings and answers, added up."""
    captured = [_sessions(store)[0] for _, store in captures(manifest).values()]
    worked = [facts.get("seconds") for facts in [*manifest.get("models", {}).values(), manifest]]
    return sum(seconds or 0 for seconds in [*captured, *worked])


def _size(count: int | None) -> str:
    if count is None:
        return ""
    return f", {count / 2**20:.1f} MiB" if count >= 2**20 else f", {count / 2**10:.1f} KiB"


def _date(stamp: str | None) -> str:
    return stamp.replace("T", " ").replace("+00:00", " UTC") if stamp else "unknown"


def _commit(git: dict[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return "unknown"
    return git["commit"] + (", with uncommitted changes" if git.get("dirty") else "")


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _joined(values: dict[str, Any], *keys: str) -> str:
    return ", ".join(_plain(values[key]) for key in keys if values.get(key) is not None)


def _named(values: dict[str, Any], *keys: str) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_plain(values[key])}" for key in keys if values.get(key) is not None)
