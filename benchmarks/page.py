"""The tables of docs/performance.md, made from benchmarks/results/ so that no number in them is typed by hand.

A table stands between two lines of their own:

    <!-- bench:begin losses -->
    <!-- bench:end -->
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import distance
from benchmarks.results import read_part
from benchmarks.tables import markdown_table
from primekd.foundation import read_json, relative_name, write_text
from primekd.foundation.errors import UserError
from primekd.report.formats import MISSING, markdown, significant

_BLOCK = re.compile(r"(<!-- bench:begin ([\w-]+) -->\n).*?(<!-- bench:end -->)", re.S)
_MARK = re.compile(r"<!--\s*bench:(?:begin|end)\b")
DISTANCE = "distance"
Found = dict[str, Any]


def update_page(page: Path, folder: Path, check: bool) -> list[str]:
    """Writes every table of a Markdown page anew; returns the names of those that were not what the results say.

    Args:
        folder: of the results.
        check: write nothing, only look.

    Raises:
        UserError: the page is missing, or a marker is unknown or has no partner.
    """
    if not page.is_file():
        raise UserError(f"{relative_name(page)} is missing.")
    old, changed = page.read_text(encoding="utf-8"), []
    if 2 * len(_BLOCK.findall(old)) != len(_MARK.findall(old)):
        raise UserError(f"{relative_name(page)}: a <!-- bench:begin … --> or <!-- bench:end --> has no partner.")

    def replaced(block: re.Match) -> str:
        if block[2] not in (known := [*TABLES, DISTANCE]):
            raise UserError(f"{relative_name(page)}: no table is called '{block[2]}': write {' or '.join(known)}.")
        new = f"{block[1]}\n{table(block[2], folder)}\n\n{block[3]}"
        if new != block[0]:
            changed.append(block[2])
        return new

    new = _BLOCK.sub(replaced, old)
    if changed and not check:
        write_text(page, new)
    return changed


def table(name: str, folder: Path) -> str:
    """One table as Markdown, with a line on what made it; a sentence instead if its part was not run."""
    if name == DISTANCE:  # of several parts
        return distance.table(folder)
    part, make = TABLES[name]
    path = folder / f"{part}.json"
    if not path.is_file():
        return f"Not run: there is no {path.name}."
    if name == "bars":
        return make(read_json(path))
    return f"{make(read_part(folder, part))}\n\n{_source(read_json(path))}"


def _source(facts: Found) -> str:
    hardware = facts["hardware"]
    commit = (facts["git"]["commit"] or "unknown")[:7] + (", with changes" if facts["git"]["dirty"] else "")
    where = ", ".join(hardware.get("gpus", [])) if facts["device"] == "cuda" else f"{facts['threads']} threads"
    text = f"{hardware['cpu']}, {where}; torch {facts['packages']['torch']}; commit {commit}; {facts['end'][:10]}."
    quick = " **Quick run: these numbers measure nothing.**" if facts["quick"] else ""
    return f"{markdown(text)}{quick}"


def _with_spread(values: Found, digits: int = 3) -> str:
    median, low, high = (significant(values[key], digits) for key in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def _losses(found: Found) -> str:
    parts = []
    for section in found["sections"].values():
        title = (
            f"Vocabulary {section['vocabulary']:,}, {section['tokens']:,} tokens of width {section['width']}, "
            f"{section['dtype']}, {section['divergence'].replace('_', ' ')}:"
        )
        rows = [
            [
                markdown(name),
                _with_spread(x["seconds"]),
                _with_spread(x["ratio"]),
                str(x["rounds"]),
                f"{x['peak_mib']:,.0f}",
                *(f"{x[key]:.1e}" if key in x else MISSING for key in ("relative_error", "gradient_error")),
            ]
            for name, x in section["alternatives"].items()
        ]
        head = [
            "Loss",
            "Seconds",
            "Against cross-entropy",
            "Rounds",
            "Peak, MiB",
            "Error of the loss",
            "Of the gradient",
        ]
        parts += [title, markdown_table(head, rows)]
    return "\n\n".join(parts)


def _loss_growth(found: Found) -> str:
    names = list(next(iter(found["growth"].values())))
    head = ["Tokens", *(f"{name}, {unit}" for name in names for unit in ("s", "MiB"))]
    rows = [
        [tokens, *(cell for n in names for cell in (_with_spread(x[n]["seconds"]), f"{x[n]['peak_mib']:,.0f}"))]
        for tokens, x in found["growth"].items()
    ]
    return markdown_table(head, rows)


def _training(found: Found) -> str:
    alternatives = found["alternatives"]
    first = next(iter(alternatives.values()))["peak_mib"]
    rows = [
        [
            markdown(name),
            _with_spread(x["seconds"]),
            _with_spread(x["ratio"]),
            _with_spread(found["to_own"][name]),
            str(x["rounds"]),
            f"{x['peak_mib']:,.0f}",
            significant(x["peak_mib"] / first, 3),
        ]
        for name, x in alternatives.items()
    ]
    rows += [[markdown(name), f"not run: {markdown(why)}", *[MISSING] * 5] for name, why in found["refused"].items()]
    head = [
        "Step",
        "Seconds",
        "Against the first",
        "Against the second",
        "Rounds",
        "Peak, MiB",
        "Peak against the first",
    ]
    note = (
        f"{found['sequences']} sequences a step, {found['tokens']:.0f} tokens of which {found['response_tokens']:.0f} "
        f"are trained on, {found['padded']:.0f} with padding; {found['dtype']}. The same batches in the same order for "
        f"all; memory on the widest of them, {found['peak_batch']['width']} positions."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"


def _stores(found: Found) -> str:
    rows = []
    for name, x in found["alternatives"].items():
        bound = f"{x['entropy_bytes_per_token']:,.1f}" if "entropy_bytes_per_token" in x else MISSING
        cells = [
            cell
            for v in ("write", "read")
            for cell in (f"{x[v]['tokens_per_s']['median']:,.0f}", _with_spread(x[v]["ratio"]))
        ]
        rows.append([markdown(name), f"{x['bytes_per_token']:,.1f}", bound, *cells])
    head = ["Kept", "Bytes a token", "Order-0 bound", "Written, tokens/s", "Time against torch.save"]
    head += ["Read, tokens/s", "Time against torch.load"]
    note = (
        f"{found['tokens']} tokens, vocabulary {found['vocabulary']:,}, temperature {found['temperature']:g}. The "
        f"teacher's own next token takes {found['response_bytes_per_token']:.3f} bytes on average (its entropy)."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"


def _reading_growth(found: Found) -> str:
    rows = [
        [items, f"{x['bytes'] / 2**20:,.0f}", _with_spread(x["seconds"]), f"{x['peak_mib']:,.0f}"]
        for items, x in found["growth"].items()
    ]
    return markdown_table(["Items", "Store, MiB", "Seconds", "Peak, MiB"], rows, left=0)


VERDICTS = {
    (True, True): "met",
    (True, False): "met, not in all rounds",
    (False, False): "**missed**",
    (None, None): "not run",
}  # by whether the median, and whether every round, meets a bar


def _bars(rows: list[Found]) -> str:
    cells = [
        [
            markdown(row["bar"]),
            row["target"],
            MISSING if row["measured"] is None else measured_text(row),
            VERDICTS[row["met"], row["every_round"]],
        ]
        for row in rows
    ]
    return markdown_table(["Bar", "Target", "Measured", ""], cells)


def measured_text(row: Found) -> str:
    """What a bar measured, with its spread and unit."""
    spread = "" if row["spread"] is None else " [{}, {}]".format(*(significant(x, 3) for x in row["spread"]))
    return f"{significant(row['measured'], 3)}{spread} {row['unit']}".strip()


def _capture_transformers(found: Found) -> str:
    rows = [
        [markdown(name), _with_spread(rate), _with_spread(found["seconds"][name]), str(found["rounds"][name])]
        for name, rate in found["rates"].items()
    ]
    note = (
        f"{found['items']} items, {found['tokens']} tokens. Capture's rate against plain generation's, round by round: "
        f"{_with_spread(found['ratio'])}; against the first: {_with_spread(found['to_library'])}. Answers that the "
        f"first gives too: {found['equal']} of {found['compared']}. Collected rows against scored ones: mean KL "
        f"{found['rows']['mean_kl_nats']:.1e} nats. Short responses in small shards, one run each:"
    )
    table = markdown_table(["Run", "Tokens a second", "Seconds", "Rounds"], rows)
    return f"{table}\n\n{markdown(note)}\n\n{_capture_growth(found)}"


def _capture_growth(found: Found) -> str:
    rows = [
        [items, significant(x["seconds"], 3), f"{x['peak_bytes'] / 2**20:,.0f}"] for items, x in found["growth"].items()
    ]
    return markdown_table(["Items", "Seconds", "Peak above the loaded engine, MiB"], rows, left=0)


def _capture_llamacpp(found: Found) -> str:
    rows = [
        [markdown(name), _with_spread(x["tokens_per_second"]), _with_spread(x["ratio"]), str(x["rounds"])]
        for name, x in found["alternatives"].items()
    ]
    note = (
        f"Capture's rate against parallel generation's, round by round: {_with_spread(found['capture_share'])}. Short "
        "responses in small shards, one run each:"
    )
    table = markdown_table(["Run", "Tokens a second", "Against the first", "Rounds"], rows)
    return f"{table}\n\n{markdown(note)}\n\n{_capture_growth(found)}"


def _assessment(found: Found) -> str:
    rows = []
    for name, x in found["models"].items():
        exact, gaps = found["float32"].get(name), x["gaps_nats"]
        rows.append(
            [
                markdown(name),
                *(_with_spread(rate) for rate in x["tokens_per_second"].values()),
                _with_spread(x["ratio"]),
                f"{x['equal']} of {x['compared']}",
                significant(max(gaps), 2) if gaps else MISSING,
                f"{exact['equal']} of {exact['compared']}" if exact else MISSING,
            ]
        )
    head = ["Model", "One by one, tokens/s", "In batches, tokens/s", "Ratio", "Equal answers"]
    head += ["Largest gap, nats", "Equal in float32"]
    asked = next(iter(found["models"].values()))["items"]["in batches"]
    note = (
        f"{asked} items, in batches of up to {found['batch_size']}. Gap: between the log-probabilities of the two "
        "tokens where answers part."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"


def _on_policy(found: Found) -> str:
    names = {"sampling": "Sampling", "scoring": "Teacher's scoring", "student": "Student's step", "whole": "All of it"}
    rows = [
        [name, str(x["written_tokens"]), *(_with_spread(x["seconds"][key]) for key in names), _with_spread(x["ratio"])]
        for name, x in found["objectives"].items()
    ]
    head = ["Objective", "Tokens", *(f"{name}, s" for name in names.values()), "All of it over its parts alone"]
    drawn = "minillm draws from a mixture with the teacher"
    note = f"{found['responses']} responses, models of `{found['profile']}`; {drawn}."
    return f"{markdown_table(head, rows)}\n\n{note}"


def _choices(found: Found) -> str:
    rows = [
        [markdown(name), str(x["items"]), str(x["choices"]), *(_with_spread(s) for s in x["seconds"].values()),
         _with_spread(x["ratio"]), f"{x['largest_difference_nats']:.1e}"]
        for name, x in found["sets"].items()
    ]  # fmt: skip
    head = ["Set", "Items", "Choices", "lm-evaluation-harness, s", "primekd, s", "Ratio", "Largest difference, nats"]
    note = (
        f"The project's own items, in batches of {found['batch_size']}, float32; the students' base model of "
        f"`{found['profile']}`. Difference: between two log-likelihoods of one choice."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"


def _floors(found: Found) -> str:
    rates = ", ".join(f"{name.replace('_per_s', '')} {value:.3g} a second" for name, value in found["machine"].items())
    head = ["Stage", "Unit", "Operations", "Bytes", "Seconds at least"]
    parts = [f"This machine: {rates}."]
    for name in ("pocket-plain", "paper"):
        rows = [
            [markdown(x["stage"]), x["unit"], *(significant(x[key], 3) for key in ("operations", "bytes", "seconds"))]
            for x in found[name]
        ]
        parts += [f"At the size of `{name}`:", markdown_table(head, rows, left=2)]
    return "\n\n".join(parts)


def _codecs(found: Found) -> str:
    from benchmarks.codecs import table

    return table(found).strip("\n")


def _codec_students(found: Found) -> str:
    rows = []
    for name, x in found["codecs"].items():
        kl, ece = (
            "{} [{}, {}]".format(*(significant(v, 3) for v in (x[f"{key}_mean"], min(x[key]), max(x[key]))))
            if x.get(key) else "not measured"
            for key in ("kl", "ece")
        )  # fmt: skip
        rows.append([markdown(name), f"{x['bytes']:.1f}", kl, ece, str(len(x["kl"]))])
    ece = found.get("untrained_ece")
    note = (
        f"{found['items']} items, {found['tokens']} tokens, one epoch, T = {found['temperature']:g}; held out "
        f"{found['held_out_items']} items, {found['held_out_tokens']} tokens. Untrained: "
        f"{significant(found['untrained'], 3)} nats"
        + (f", ECE {significant(ece, 3)}" if ece else "")
        + ". Mean, least "
        "and greatest over the seeds. ECE: of the most probable next token, at temperature 1."
    )
    head = ["Codec", "Bytes a token", "Held-out KL, nats", "ECE of the next token", "Seeds"]
    return f"{markdown_table(head, rows)}\n\n{note}"


def _attention(found: Found) -> str:
    head = ["Layers", "Maps let go, MiB", "Maps kept, MiB"]
    columns = zip(found["layers"], found["reduced_mib"], found["kept_mib"], strict=True)
    rows = [[str(layers), f"{reduced:.0f}", f"{kept:.0f}"] for layers, reduced, kept in columns]
    note = (
        f"{found['rows']} rows of {found['tokens']} tokens, {found['heads']} heads, float32: what a pass needs above "
        "the model and its input, in a process of its own; medians of five."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "floors": ("floors", _floors),
    "losses": ("losses", _losses),
    "loss-growth": ("losses", _loss_growth),
    "training": ("training", _training),
    "stores": ("stores", _stores),
    "reading-growth": ("stores", _reading_growth),
    "codecs": ("codecs", _codecs),
    "codec-students": ("codec_students", _codec_students),
    "attention": ("attention", _attention),
    "capture-transformers": ("capture_transformers", _capture_transformers),
    "capture-llamacpp": ("capture_llamacpp", _capture_llamacpp),
    "assessment": ("assessment", _assessment),
    "choices": ("choices", _choices),
    "on-policy": ("on_policy", _on_policy),
    "bars": ("bars", _bars),
}
