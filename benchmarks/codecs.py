"""Error of the forward KL's gradient and value against bytes a token, on real signals.

Two teachers on gold solutions: the pocket teacher, which is nearly certain of them, and the untaught base model, which
is not. Each has the other for a student. The gradient is that with respect to the student's logits / temperature,
q - p; its squared error is summed over the vocabulary and averaged over tokens.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.codec_methods import Kept, Rows, entropy_bound, make_rows, methods
from benchmarks.stored_signals import examples_of, score
from primekd.config import Profile, load_profile
from primekd.foundation import write_atomically
from primekd.report.figures import PALETTE, STYLE
from primekd.signals import StoredItem

TEMPERATURES = (1.0, 2.0, 5.942267)
MARKERS = "osD^vP*"


def measure(
    tokens: int = 600, temperatures: tuple[float, ...] = TEMPERATURES, profile: str = "pocket-plain", say=print
) -> dict[str, Any]:
    """Every method on at least so many response tokens.

    Returns:
        {"vocabulary", "hidden_bytes", "tokens", "teachers": {name: {temperature: {"entropy_bits", "gradient_norm",
        "curves": {method: [{"parameter", "bytes", "gradient_error", "loss_error", "loss_bias"}, …]},
        "bound": [{"parameter", "bytes"}]}}}}: bytes a token, and means over tokens. The norm is the exact gradient's
        own |q - p|^2; the loss is in nats, its error absolute for a token, its bias that of the mean over all tokens.
    """
    taught = load_profile(profile)
    untaught = taught.model_copy(update={"teacher": taught.teacher.model_copy(update={"model": taught.student.model})})
    items, (taught_logits, untaught_logits), width = _signals(taught, untaught, tokens)
    both = {
        f"{taught.name} teacher": (taught_logits, untaught_logits),
        "untaught base model": (untaught_logits, taught_logits),
    }
    teachers: dict[str, Any] = {}
    for name, pair in both.items():
        teachers[name] = {f"{t:g}": _one_temperature(items, *pair, t) for t in temperatures}
        for temperature, part in teachers[name].items():
            say(f"{name}, T = {temperature}: {_line(part['curves'])}")
    return {
        "vocabulary": taught_logits[0].shape[1],
        "hidden_bytes": width,
        "tokens": sum(len(i.response_ids) for i in items),
        "teachers": teachers,
    }


def _line(curves: dict[str, list[dict[str, float]]]) -> str:
    """The gradient error of the codec `sampled` against that of `topk` in about as many bytes."""
    found = []
    for x in curves["sampled"]:
        near = min(curves["topk + tail, as stored"], key=lambda y: abs(math.log(y["bytes"] / x["bytes"])))
        ratio = x["gradient_error"] / near["gradient_error"]
        other = f"topk {near['parameter']:g} in {near['bytes']:.1f}"
        found.append(f"sampled {x['parameter']:g} in {x['bytes']:.1f} bytes: {ratio:.2g} x {other}")
    return "; ".join(found)


def _signals(
    taught: Profile, untaught: Profile, tokens: int
) -> tuple[list[StoredItem], tuple[list[Tensor], list[Tensor]], int]:
    """Items, the logits (T, V) of both models, and the bytes of one hidden state."""
    examples, count = [], 0
    for example in examples_of(taught, taught.data.train_items):
        if count >= tokens:
            break
        examples.append(example)
        count += sum(example.sequence.response_mask)
    logits, width = [], 0
    for profile in (taught, untaught):
        items, states, head = score(profile, examples)
        logits.append([s.float() @ head.float().T for s in states])
        width = states[0].shape[1] * states[0].element_size()
    return items, tuple(logits), width


@dataclass(frozen=True)
class Exact:
    """One item's rows and what errors are measured against, float64: log q (T, V) and sums over the vocabulary (T,)."""

    rows: Rows
    log_q: Tensor
    pp: Tensor
    pq: Tensor
    qq: Tensor
    loss: Tensor


@torch.inference_mode()
def _one_temperature(
    items: list[StoredItem], teacher: list[Tensor], student: list[Tensor], temperature: float
) -> dict[str, Any]:
    tokens = sum(map(len, teacher))
    exact = [_exact(make_rows(i, t, temperature), s) for i, t, s in zip(items, teacher, student, strict=True)]
    curves: dict[str, list[dict[str, float]]] = {}
    bound = []
    for name, parameter, method in methods():
        source = torch.Generator().manual_seed(0)
        kept = [method(e.rows, source) for e in exact]
        errors = [_errors(k, e) for k, e in zip(kept, exact, strict=True)]
        gradient, loss = (torch.cat(column) for column in zip(*errors, strict=True))
        point = {"parameter": parameter, "bytes": sum(k.bytes for k in kept) / tokens}
        point |= {"gradient_error": float(gradient.mean())}
        point |= {"loss_error": float(loss.abs().mean()), "loss_bias": float(loss.mean().abs())}
        curves.setdefault(name, []).append(point)
        if name == "sampled":
            responses = [i.response_ids for i in items]
            size = entropy_bound(list(zip(kept, responses, strict=True)), parameter)
            bound.append({"parameter": parameter, "bytes": size / tokens})
    entropy = sum(float(e.rows.entropy.sum()) for e in exact) / tokens
    norm = float(torch.cat([e.pp - 2 * e.pq + e.qq for e in exact]).mean())
    return {"entropy_bits": entropy / math.log(2), "gradient_norm": norm, "curves": curves, "bound": bound}


def _exact(rows: Rows, student: Tensor) -> Exact:
    # A sure student leaves a bucket of all other tokens less than float32 resolves next to 1.
    log_q = (student.double() / rows.temperature).log_softmax(-1)
    p, q = rows.p.double(), log_q.exp()
    loss = -rows.entropy - (p * log_q).sum(-1)
    return Exact(rows, log_q, p.square().sum(-1), (p * q).sum(-1), q.square().sum(-1), loss)


def _errors(kept: Kept, exact: Exact) -> tuple[Tensor, Tensor]:
    """Squared error of the gradient, summed over the vocabulary, and error of the loss, (T,) each.

    The gradient is q times all that is kept minus what is kept; a tail's mass is spread in proportion to q. So the
    error is p + a * q at every token that is not kept, with one a a row, and p + (kept - 1) * q - weight at the others.
    """
    at = kept.rows, kept.ids
    p, q = exact.rows.p[at].double(), exact.log_q[at].exp()

    def per_row(values: Tensor) -> Tensor:
        return torch.zeros_like(exact.loss).index_add_(0, kept.rows, values)

    whole = per_row(kept.weights) - 1  # what is kept, but for the 1 that it should be
    loss = kept.log_weights - per_row(kept.weights * exact.log_q[at]) - exact.loss
    slope = whole
    if kept.tail is not None:
        outside = (1 - per_row(q)).clamp(min=1e-12)
        whole = whole + kept.tail
        slope = whole - kept.tail / outside
        loss = loss - kept.tail * outside.log()
    others = exact.pp - per_row(p * p) + 2 * slope * (exact.pq - per_row(p * q))
    others += slope.square() * (exact.qq - per_row(q * q))
    return per_row((p + whole[kept.rows] * q - kept.weights).square()) + others.clamp(min=0), loss


def table(found: dict[str, Any]) -> str:
    """All points as a Markdown table."""
    lines = [
        "| teacher | T | method | parameter | bytes a token | gradient error | loss error, nats | loss bias, nats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for teacher, temperatures in found["teachers"].items():
        for temperature, part in temperatures.items():
            for name, points in part["curves"].items():
                for x in points:
                    values = [f"{x[key]:.2g}" for key in ("gradient_error", "loss_error", "loss_bias")]
                    cells = [teacher, temperature, name, f"{x['parameter']:g}", f"{x['bytes']:.1f}", *values]
                    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """One panel a temperature, one row a teacher: gradient error over bytes a token, both logarithmic."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    teachers = found["teachers"]
    columns = max(map(len, teachers.values()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * columns, 3.9 * len(teachers) + 0.8), layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(teachers), columns, squeeze=False)
        for row, (teacher, temperatures) in zip(grid, teachers.items(), strict=True):
            for axes, (temperature, part) in zip(row, temperatures.items(), strict=True):
                _panel(axes, part, found)
                axes.set_title(f"{teacher}, T = {temperature} ({part['entropy_bits']:.2g} bits)", fontsize=10)
        figure.supxlabel("Bytes a token")
        figure.supylabel("Squared error of the gradient")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5)
        with write_atomically(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _panel(axes, part: dict[str, Any], found: dict[str, Any]) -> None:
    for place, (name, points) in enumerate(part["curves"].items()):
        line = {"color": PALETTE[place], "marker": MARKERS[place], "markersize": 4.5, "linewidth": 1.3}
        axes.plot([x["bytes"] for x in points], [x["gradient_error"] for x in points], label=name, **line)
    errors = [x["gradient_error"] for x in part["curves"]["sampled"]]
    bound = [x["bytes"] for x in part["bound"]]
    axes.plot(bound, errors, color="#222222", linestyle=":", linewidth=1, label="sampled, entropy bound")
    label = "the exact gradient's own square"
    axes.axhline(part["gradient_norm"], color="#222222", linestyle="--", linewidth=1, label=label)
    marks = (found["hidden_bytes"], "hidden: exact"), (4 * found["vocabulary"], "full: exact")
    for place, label in marks:
        axes.axvline(place, color="#999999", linewidth=1)
        axes.annotate(label, (place, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7.5, ha="right")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
