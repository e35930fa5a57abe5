"""Corrected sentences as they are shown: by language, what labels cost and buy, examples side by side."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from primekd.assessment.logs import LogRow, read_logs
from primekd.capture.jobs import Job, open_signals
from primekd.config import CONTROL, FEW_SHOT, TEACHER, Profile
from primekd.foundation.tables import read_records
from primekd.models import decode_response, load_tokenizer
from primekd.report.cells import Name, Table, table_of
from primekd.report.figures import PALETTE, draw
from primekd.report.formats import between, interval, nats, p_of, p_value, percent, written
from primekd.report.results import model_of, read_optional
from primekd.report.shown import Shown, show_figure, show_table
from primekd.statistics.corrections import ALL, COPY, ERRANT, FILE, LABELS, ErrantRow, LabelRow, LanguageRow
from primekd.tasks import load_items, without_gold
from primekd.tasks.grammar import language_of, plain
from primekd.training.treatment import unfit_responses

SHOWN = 8  # examples
NOTE = (
    "Exact: the answer is the gold sentence, letter by letter, after the stated cleaning; Wilson intervals, "
    "or clustered by document where sentences have one. "
    "Similarity: to the gold sentence by letters (1 less Levenshtein's share). Precision, recall, F0.5: of edits of "
    "words, whatever the language. Over-corrected: of the sentences that had no error, the share that was changed. "
    "`copy` is the sentence as it was asked: it costs nothing; the last column tests the exact ones against it "
    "(McNemar, or clustered alike; Holm-adjusted over all models)."
)
LANGUAGE_NOTE = (
    "p: exact McNemar test, or clustered by document where sentences have one, against the student's base on the same "
    "sentences, Holm-adjusted over all cells of the table."
)
NO_ERRANT = "ERRANT's measure of English was not taken: it needs errant and its spaCy model (docs/labels.md)."
COST_NOTE = (
    "Asked: sentences sent to the teacher. No label: answers that were not trained on, and why. Right: labels that are "
    "the gold sentence; nobody trained by that. The cost of 1,000 labels is that of this run's answers; money is what "
    "the profile's prices make of its tokens."
)
EXAMPLES_NOTE = "The first test sentences on which the models differ."


def correction_table(folder: Path) -> Table:
    """A row a model, over all languages. Empty without such a file."""
    columns = {
        "Model": model_of, "Exact, % [95 %]": between("exact", percent), "Similarity": written("similarity", nats),
        "Precision": written("precision", nats), "Recall": written("recall", nats), "F0.5 [95 %]": between("f05", nats),
        "Over-corrected, % [95 %]": between("overcorrected", percent), "Against copy, p": written("p_copy", p_value),
    }  # fmt: skip
    rows = [row for row in read_optional(Path(folder) / FILE, LanguageRow) if row["language"] == ALL]
    return table_of("Corrections", rows, columns, notes=(NOTE,))


def language_table(folder: Path) -> Table:
    """A row a model, a column a language: exact match, and its p against the base. Empty without such a file."""
    found = {(row["model"], row["language"]): row for row in read_optional(Path(folder) / FILE, LanguageRow)}
    languages = [language for language in dict.fromkeys(language for _, language in found) if language != ALL]
    rows: list[list] = []
    for model in dict.fromkeys(model for model, _ in found):
        cells = [found[model, language] for language in languages]
        tested = [f", {p_of(cell['p_holm'])}" if cell["p_holm"] else "" for cell in cells]
        exact = [interval(cell, "exact", percent) + p for cell, p in zip(cells, tested, strict=True)]
        rows.append([Name(cells[0]["title"], model), *exact])
    head = ["Model", *(f"{language} (n = {found[COPY, language]['n']})" for language in languages)]
    notes = (LANGUAGE_NOTE, *([NO_ERRANT] if "en" in languages and not (Path(folder) / ERRANT).is_file() else []))
    return Table("Exact match by language, % [95 %]", head, rows, notes=notes)


def label_table(folder: Path) -> Table:
    """A row a student that learned from the teacher's text. Empty without such a file."""
    columns = {
        "Student": "model", "Asked": "asked", "No label": "unfit", "Why": "reasons", "Trained on": "trained_on",
        "Right, %": written("right", percent), "Tokens read, written, a label": "tokens",
        "Seconds for 1,000": written("seconds", "{:.0f}".format),
        "USD for 1,000": written("usd", nats),
    }  # fmt: skip
    rows = []
    for row in read_records(Path(folder) / LABELS, LabelRow, needed=False):
        tokens = None if row.input_tokens is None else f"{row.input_tokens:.0f}, {row.output_tokens:.0f}"
        right = None if row.right is None else row.right / row.asked
        counts = {"asked": str(row.asked), "unfit": str(row.unfit), "trained_on": str(row.trained_on)}
        rows.append(vars(row) | counts | {"right": right, "tokens": tokens})
    return table_of("Labels and what they cost", rows, columns, notes=(COST_NOTE,))


def errant_table(folder: Path) -> Table:
    """ERRANT's measure of the English sentences. Empty where it was not taken."""
    rows = read_optional(Path(folder) / ERRANT, ErrantRow)
    columns = {
        "Model": model_of, "n": "n", "Right": "right", "Wrong": "wrong", "Missing": "missing",
        "Precision": written("precision", nats), "Recall": written("recall", nats), "F0.5": written("f05", nats),
    }  # fmt: skip
    versions = "; ".join(dict.fromkeys(f"errant {row['errant']}, {row['spacy_model']}" for row in rows))
    notes = (f"Edits, span-based correction; {versions}.",)
    return table_of("ERRANT on the English sentences", rows, columns, notes=notes)


def example_table(logs: Mapping[str, list[LogRow]]) -> Table:
    """The sentence, the gold one, and what the base, a student and the teacher made of it, side by side."""
    models = [model for model in (CONTROL, "api-KD", TEACHER) if model in logs]
    rows = []
    for given in zip(*(logs[model] for model in models), strict=True):
        if len({row.extracted for row in given}) > 1 and len(rows) < SHOWN:
            said = [f"{'✓' if r.correct else '✗'} {r.extracted if r.extracted != '-1' else 'no answer'}" for r in given]
            rows.append([given[0].id, given[0].question, given[0].gold, *said])
    head = ["Sentence", "As asked", "Gold", *models]
    return Table("Examples", head, rows, left=len(head), notes=(EXAMPLES_NOTE,))


def learning_figure(folder: Path) -> str | None:
    """Exact match against the number of labels; None where no student had a part of them."""
    languages = read_records(Path(folder) / FILE, LanguageRow, needed=False)
    found = {row.model: row for row in languages if row.language == ALL}
    labels = read_records(Path(folder) / LABELS, LabelRow, needed=False) if found else []
    counts = {row.model: row.trained_on for row in labels}
    students = sorted((m for m in counts if m == "api-KD" or m.startswith("api-KD-")), key=counts.__getitem__)
    if len(students) < 2:
        return None

    def fill(axes):
        xs = [counts[model] for model in students]
        ys = [100 * found[model].exact for model in students]
        below, above = ([100 * abs(getattr(found[m], f"exact_{end}") - found[m].exact) for m in students]
                        for end in ("low", "high"))  # fmt: skip
        axes.errorbar(xs, ys, [below, above], marker="o", color=PALETTE[0], capsize=3, label="students of the labels")
        lines = {TEACHER: "teacher", "base-fine-tune": "ceiling: trained on gold", FEW_SHOT: "base, instructed",
                 CONTROL: "base", COPY: "copied"}  # fmt: skip
        for number, (model, label) in enumerate((m, label) for m, label in lines.items() if m in found):
            style = {"color": PALETTE[number + 1], "linestyle": "--", "linewidth": 1.4}
            axes.axhline(100 * found[model].exact, label=label, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(xs, map(str, xs))
        axes.set_ylim(bottom=0)
        axes.set(xlabel="Labels trained on", ylabel="Exact match, % (95 % interval)")
        axes.figure.legend(loc="outside lower center", ncols=3)

    return draw("learning", (7.6, 4.2), 1, fill)


def corrections_page(folder: Path, logs: Mapping[str, list[LogRow]]) -> list[Table]:
    """The tables of the report's section; empty in other studies."""
    if not (Path(folder) / FILE).is_file():
        return []
    tables = correction_table(folder), language_table(folder), errant_table(folder), label_table(folder)
    return [table for table in (*tables, example_table(logs)) if table.rows]


def show_sentences_of(profile: Profile, count: int = 8) -> Shown:
    """How many sentences each split has in each language, how many of them have no error, and the first test ones."""
    found = {split: load_items(profile, split) for split in ("train", "validation", "test")}
    rows = [
        [split, language, str(len(own)), str(sum(plain(item.question) == item.answer for item in own))]
        for split, items in found.items()
        for language in dict.fromkeys(language_of(item.id) for item in items)
        if (own := [item for item in items if language_of(item.id) == language])
    ]
    counts = Table("Sentences", ["Split", "Language", "Sentences", "Without an error"], rows, left=2)
    first = [[item.id, item.question, str(item.answer)] for item in found["test"][:count]]
    return show_table(counts) + show_table(Table("The first of them", ["Sentence", "As asked", "Gold"], first, left=3))


def show_labels(job: Job) -> Shown:
    """How many of a capture's answers are labels, and why others are none; the first of each."""
    reader, items = open_signals(job), without_gold(job.items())
    unfit, tokenizer = unfit_responses(job.profile, reader, items), load_tokenizer(job.profile.teacher)
    counts = Counter(unfit.get(item.id, "label") for item in items)
    table = Table("Answers", ["What it is", "Answers"], [[name, str(n)] for name, n in counts.most_common()])
    texts = [[item.id, item.question, decode_response(tokenizer, reader.item(item.id).response_ids),
              unfit.get(item.id, "label")] for item in items]  # fmt: skip
    some = [next(row for row in texts if row[3] == name) for name in counts] + texts[:SHOWN]
    return show_table(table) + show_table(Table("Some of them", ["Sentence", "As asked", "Answer", "Is"], some, left=4))


def show_corrections(profile: Profile) -> Shown:
    """The tables of this machine's logs, and what more labels buy."""
    shown = sum(map(show_table, corrections_page(profile.logs, read_logs(profile))))
    return shown + show_figure(learning_figure(profile.logs), "Exact match against the number of labels")
