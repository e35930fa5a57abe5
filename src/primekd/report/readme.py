"""Generated blocks of the README and of pages under docs/, so that no number in them is typed by hand; the table of
teacher engines, which stands in no other place.

A block stands between two lines of their own:

    <!-- primekd:begin results pocket -->
    <!-- primekd:end -->"""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

from primekd.config import Profile
from primekd.foundation import UserError, project_root, read_json, relative_name, write_text
from primekd.report import claims, corrections, costs, deviations, extraction, inside, primed
from primekd.report import text as text_students
from primekd.report.cells import Cell, Files, Table, to_markdown
from primekd.report.figures import accuracy_forest
from primekd.report.findings import results_page
from primekd.report.formats import percent, significant
from primekd.report.html import write_report
from primekd.report.results import read_results

NOT_RUN = "not run"
ENGINES_NOTE = (
    "From `primekd check-engine`: the engine answers questions of the profile, and its answers are scored by it and by "
    "transformers in float32. KL(transformers || engine); ≥: over the top K tokens and one bucket for the rest, a "
    "lower bound."
)


# Engine, model format, codecs, batches -> the packages whose versions a check names.
ENGINES = {
    ("transformers", "safetensors folder, GGUF (dequantised)", "hidden, full, topk, sampled",
     "batches that rows leave and join"): ("transformers", "torch"),
    ("llamacpp", "GGUF", "hidden, full, topk, sampled", "parallel sequences"): ("llama_cpp_python",),
    ("exllamav2", "EXL2 folder", "hidden, full, topk, sampled", "paged jobs with flash-attn, else one at a time"):
        ("exllamav2",),
    ("vllm", "safetensors folder, quantised or not; GGUF (dequantised)",
     "topk at T = 1; full, sampled with full_logprobs", "continuous"): ("vllm",),
    ("api", "whatever the server has", "topk at T = 1", "concurrent requests"): ("httpx",),
}  # fmt: skip


def engine_table(logs_folder: Path) -> Table:
    """A row a check of logs/engines/, and one for each engine without a check. Raises UserError if one is no JSON."""
    head = ["Engine", "Model format", "Codecs", "Batches", "Checked on", "Versions", "Signals",
            "Same first token, %", "KL, nats a token", "Equal answers", "Check", "Whole study"]  # fmt: skip
    rows = []
    for own, named in ENGINES.items():
        files = sorted(logs_folder.glob(f"{own[0]}-*.json"))
        rows += [[*own, *_check(path, named)] for path in files] or [[*own, NOT_RUN, *["–"] * 5, Files(()), Files(())]]
    return Table("Teacher engines", head, rows, left=7, notes=(ENGINES_NOTE,))


def _check(path: Path, packages: tuple[str, ...]) -> list[Cell]:
    check = read_json(path)
    try:
        found, profile, facts = check["agreement"], check["profile"], check["environment"]["hardware"]
        versions = check["environment"]["packages"] | check["identity"]
        return [
            f"{profile}, {'; '.join(facts['gpus']) if facts.get('gpus') else facts['cpu']}",
            ", ".join(f"{name} {versions[name]}" for name in packages if versions.get(name)),
            check["codec"],
            percent(found["top1_agreement"]),
            f"{'' if found['compared'] == 'every token' else '≥ '}{significant(found['mean_kl_nats'], 2)}",
            f"{check['equal_answers']} of {check['items']}",
            Files((f"logs/engines/{path.name}",)),
            # Where a whole study with that engine was run.
            Files((f"logs/{profile}/report.html",) if (path.parents[1] / profile / "report.html").is_file() else ()),
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{relative_name(path)} is no check of an engine: run `primekd check-engine` again.") from error


# Block -> the table of a folder of logs/ that it holds.
KINDS: dict[str, Callable[..., Table]] = {
    "results": results_page,
    "claims": lambda folder: claims.claim_table(read_results(folder)),
    "headline": claims.headline_table,  # what priming did to teacher and students
    "primed": primed.primed_table,
    "corrections": corrections.correction_table,
    "languages": corrections.language_table,
    "errant": corrections.errant_table,
    "label-costs": corrections.label_table,
    "facts": text_students.fact_table,
    "costs": costs.cost_table,
    "expected": claims.expected_table,  # of several folders
    "labels": extraction.label_table,  # from here on: of logs/published
    "validation": extraction.validation_short,
    "validation-strata": extraction.validation_strata,
    "published-study": extraction.study_table,
    "published-disagreements": extraction.disagreement_table,
    "published-contrasts": extraction.contrast_matrix,
    "engine-table": engine_table,  # of logs/engines
    "deviations": deviations.deviation_table,
    "released-control": deviations.control_table,
    "selection": deviations.selection_table,
    "attention": lambda folder: inside.attention_table(folder / "inside"),
    "explained": lambda folder: inside.explained_table(folder / "inside"),
    "arithmetic": lambda folder: inside.arithmetic_table(folder / "inside"),
}

FIGURE = "figure"  # a block of this kind is a link to a drawing in docs/figures/
_MARK = re.compile(r"^[ \t]*<!--\s*primekd:(?:begin\b(?P<name>.*?)|end\s*)-->[ \t]*$", re.M)
_NAME = re.compile(r"(\S+)((?:\s+[\w-]+)+)")  # a kind and a folder of logs/, or several; no path


def update_readme(readme: Path, check: bool, only: str | None = None) -> list[str]:
    """Writes every generated block of a Markdown file anew, from logs/<name>/ of the checkout; links start at its own
    folder. Returns the names of the blocks (`results pocket`) that were not what the logs say. `check`: write nothing,
    only look. `only`: leave blocks of other profiles (or of logs/published) as they are. Raises UserError if the file
    is missing, a marker is unknown or has no partner, or a profile's logs are missing."""
    readme = Path(readme)
    if not readme.is_file():
        raise UserError(f"{relative_name(readme)} is missing.")
    old = readme.read_text(encoding="utf-8")
    logs = Path(os.path.relpath(project_root() / "logs", readme.parent)).as_posix()  # as links of this page start
    new, changed = _regenerate(old, relative_name(readme), only, logs, check)
    if changed and not check:
        write_text(readme, new)
    return changed


def update_pages(check: bool, only: str | None = None) -> list[str]:
    """`update_readme` of README.md and every page of docs/; the blocks that changed, as `file: block`."""
    pages = [project_root() / "README.md", *sorted((project_root() / "docs").glob("*.md"))]
    return [f"{relative_name(page)}: {name}" for page in pages for name in update_readme(page, check, only)]


def write_anew(profile: Profile) -> list[str]:
    """Writes the report and, of published logs, tables; a line on each. Raises UserError if a file cannot be read."""
    lines = [f"Report: {relative_name(write_report(profile))}"]
    if profile.logs == profile.published:
        lines += [f"{name} written anew" for name in update_pages(check=False, only=profile.name)]
    return lines


def _regenerate(text: str, file: str, only: str | None, logs: str, check: bool) -> tuple[str, list[str]]:
    """The text with every block made anew, and the names of the blocks that changed."""
    out, changed, last, marks = [], [], 0, list(_MARK.finditer(text))
    for begin, end in itertools.zip_longest(marks[::2], marks[1::2]):
        line = text.count("\n", 0, begin.start()) + 1
        if begin["name"] is None or end is None or end["name"] is not None:
            raise UserError(f"{file}, line {line}: <!-- primekd:begin … --> and primekd:end stand in turn: mend them.")
        name, body = " ".join(begin["name"].split()), text[begin.end() : end.start()]
        wanted = body
        if only is None or only in name.split()[1:]:
            made = _block(name, f"{file}, line {line}", check).replace("](logs/", f"]({logs}/").strip("\n")
            wanted = f"\n\n{made}\n\n"
        changed += [name] if body != wanted else []
        out += [text[last : begin.end()], wanted]
        last = end.start()
    return "".join([*out, text[last:]]), changed


def _block(name: str, place: str, check: bool) -> str:
    match = _NAME.fullmatch(name)
    folders = match[2].split() if match else []
    if match and match[1] == FIGURE and len(folders) == 1:
        return _figure(folders[0], check)
    if not match or match[1] not in KINDS or (len(folders) > 1 and match[1] != "expected"):
        raise UserError(f"{place}: no block is called '{name}': write {' or '.join(KINDS)}, then a folder of logs/.")
    return block(match[1], *(project_root() / "logs" / folder for folder in folders))


def _figure(folder: str, check: bool) -> str:
    """A link to the accuracies of a folder of logs, which are drawn anew; with `check` it says where they differ."""
    path = project_root() / "docs" / "figures" / f"{folder}.svg"
    drawn = accuracy_forest(read_results(project_root() / "logs" / folder))
    differs = not path.is_file() or path.read_text(encoding="utf-8") != drawn
    if differs and not check:
        write_text(path, drawn)
    link = f"![Accuracy of every model of {folder} with its 95 % interval](docs/figures/{folder}.svg)"
    return f"{link} (outdated)" if differs and check else link


def block(kind: str, *folders: Path) -> str:
    """The Markdown of a block of these folders of logs. Raises UserError if a file is missing or cannot be read."""
    table = KINDS[kind](*folders)
    return "\n\n".join([to_markdown(table), *table.notes]) + "\n"
