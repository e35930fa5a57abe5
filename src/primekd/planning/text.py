"""A plan as text for people."""

from collections.abc import Sequence

from primekd.planning.build import Plan
from primekd.planning.machine import GIB
from primekd.planning.stages import Need

KINDS = ("weights", "KV cache", "activations", "logits", "optimiser")  # everything else is one column


def plan_text(plan: Plan) -> str:
    """All tables of a plan and what it found."""
    parts = [f"Plan for {plan.profile}: {plan.description}", f"Machine: {plan.machine_text}"]
    parts += [f"{role}: {text}" for role, text in plan.models.items()]
    parts += ["", *_memory(plan), "", *_disk(plan), "", *_time(plan), "", *_findings(plan)]
    return "\n".join(parts)


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Aligned columns; the first `left` of them to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _gib(value: float) -> str:
    size = value / GIB
    if not value:
        return "–"
    if size >= 10:
        return f"{size:,.0f}" if size >= 1000 else f"{size:.1f}"
    return f"{size:.2f}" if size >= 0.1 else f"{size:.1g}" if size >= 1e-4 else "<0.0001"


def _memory(plan: Plan) -> list[str]:
    rows = [["stage", "phase", "where", *KINDS, "other", "total", "+ margin", "there is", ""]]
    for places, need in _grouped(plan.needs):
        other = sum(value for kind, value in need.parts.items() if kind not in KINDS)
        rows.append(
            [
                need.stage, need.phase, places, *(_gib(need.parts.get(kind, 0)) for kind in KINDS), _gib(other),
                _gib(need.total), _gib(need.asked), _gib(need.capacity),
                "fits" if need.fits else "TOO LARGE",
            ]
        )  # fmt: skip
    batch = f"For prompts of {plan.lengths.longest_prompt} tokens and responses of {plan.lengths.most}, the longest."
    title = f"Memory at its peak, GiB. {batch} {plan.margin_text}"
    other = "  other: heads in float32, rows of a shard, files being read, imports, CUDA's context and kernels."
    return [title, *table(rows, left=3), other]


def _grouped(needs: list[Need]) -> list[tuple[str, Need]]:
    """Neighbouring GPUs with equal contents as one row."""
    groups: list[list[Need]] = []
    for need in needs:
        last = groups[-1][0] if groups else None
        if last and (last.stage, last.phase, last.parts) == (need.stage, need.phase, need.parts):
            groups[-1].append(need)
        else:
            groups.append([need])
    return [(g[0].place if len(g) == 1 else f"{g[0].place}-{g[-1].place.removeprefix('GPU ')}", g[0]) for g in groups]


def _disk(plan: Plan) -> list[str]:
    rows = [["codec", "bytes a token", "a strategy", "in all", "at the limit", "serves the loss"]]
    for cost in plan.codecs:
        serves = "yes" if cost.refusal is None else "no" if cost.offered else "not by this engine"
        rows.append(
            [
                f"{cost.name}{' (this profile)' if cost.chosen else ''}", f"{cost.token:,.0f}", _gib(cost.strategy),
                _gib(cost.total), _gib(cost.most), serves,
            ]
        )  # fmt: skip
    parts = [["on disk", "GiB", ""]] + [[p.what, _gib(p.bytes), p.note] for p in plan.storage]
    total = sum(p.bytes for p in plan.storage)
    there = f"{_gib(plan.disk_bytes)} free" if plan.disk_bytes else "free space not stated"
    parts.append(["all", _gib(total), there])
    lines = [f"{what.ljust(28)}{size.rjust(9)}  {note}".rstrip() for what, size, note in parts]
    return ["Disk, GiB", *table(rows), "", *(f"  {line}" for line in lines)]


def _time(plan: Plan) -> list[str]:
    rows = [["stage", "times", "items", "tokens", "at most", "tokens/s", "hours", "kWh", "rate"]]
    for stage, took in zip(plan.stages, plan.durations, strict=True):
        rate = took.rate
        rows.append(
            [
                stage.name, str(stage.runs), str(stage.items), f"{stage.response_tokens:,.0f}", f"{stage.most:,.0f}",
                f"{rate.tokens_per_second:,.1f}" if rate else "–", "–" if took.hours is None else f"{took.hours:.2f}",
                "–" if took.kwh is None else f"{took.kwh:.3g}", rate.source.split(":")[0] if rate else "unknown",
            ]
        )  # fmt: skip
    known = [took for took in plan.durations if took.hours is not None]
    if known:
        energy = [took.kwh for took in known]
        rows.append(
            [
                "all" if len(known) == len(plan.durations) else "all that is known", "", "", "", "", "",
                f"{sum(took.hours for took in known):.2f}",
                "–" if None in energy else f"{sum(energy):.3g}", "",
            ]
        )  # fmt: skip
    sources = dict.fromkeys(took.rate.source for took in known)
    lengths = plan.lengths
    stated = any(source.startswith("stated") for source in sources)
    energy = "  Energy of stated rates: a stage's GPUs and their whole nodes at rated power, so at most that."
    return [
        f"Tokens and time. Responses: {lengths.response:.0f} tokens ({lengths.response_source}). "
        f"Prompts: {lengths.prompt:.0f} ({lengths.prompt_source}).",
        *table(rows),
        "  Hours are those of all runs of a stage one after the other.",
        *(f"  {source}" for source in sources),
        *([energy] if stated else []),
    ]


def _findings(plan: Plan) -> list[str]:
    marks = {"error": "WILL NOT WORK", "warning": "WARNING", "note": "note"}
    return [f"{marks[f.level]}: {f.text}" for f in plan.findings] or ["Everything fits."]
