"""Inside the students, as it is shown: attention, confidence, attribution, reasoning."""

import base64
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup
from safetensors import safe_open

from primekd.assessment.inside import FOLDER, MAPS, attribution, inside_folder
from primekd.assessment.inside.attention import MEASURES
from primekd.config import CONTROL, Profile
from primekd.foundation import MANIFEST, UserError, nested, read_records
from primekd.report.browser import script_json
from primekd.report.cells import Table, table_of
from primekd.report.formats import between, nats, percent, points, signed_nats, written
from primekd.report.inside_figures import head_figure, layer_figure, map_figure, reliability_figure
from primekd.report.results import model_of, read_optional
from primekd.report.shown import Shown, show_figure, show_table
from primekd.statistics import inside as inner
from primekd.statistics.calibration import BINS, CALIBRATION, CalibrationRow
from primekd.statistics.families import title_of
from primekd.statistics.reasoning import ARITHMETIC, CLASSES, WORDS, ArithmeticRow, ClassRow, WordRow

APART, MOVED = between("total_variation", nats), between("difference", signed_nats)
HEADS_A_MODEL = 3
ATTENTION_NOTE = (
    "Student minus control, on the same prompts with their gold solutions, means over all heads with bootstrap "
    "intervals over prompts, or over what these share. entropy: of a query's weights over ln(number of keys); "
    "entropy_rest: without the first token, which most heads lean on; first, diagonal, previous: weight on that key; "
    "distance: in tokens; sharp: weight in places above 0.1; total_variation, cosine: of the maps of one head in "
    "student and control, less the 0 and 1 of equal ones; induction: weight behind the earlier occurrence, on random "
    "tokens written twice (interval over four such texts)."
)
HEAD_NOTE = (
    f"The {HEADS_A_MODEL} heads of each student whose maps lie furthest from the control's; picked for that, so their "
    "distances are too large by some. Entropy and what follows it: student minus control."
)
PAIR_NOTE = (
    "Two students' maps of the same heads on the same text: total variation (the share of a query's weight that lies "
    f"elsewhere) and cosine, means over heads and prompts; then the {HEADS_A_MODEL} heads that differ most "
    "(layer.head), picked for that. An arm against its own second seed says how far chance moves heads."
)
EXPLAINED_NOTE = (
    "Spearman's rank correlation of a measure's shift from the control and accuracy, over arms, each the mean of its "
    "seeds: so few points carry little. Shifts are of the prompts that were looked at, accuracy of all test items. p "
    "over permutations of arms, Holm-adjusted over all measures. A measure that shifts as much in the placebo's "
    "student, or in that of shuffled rows, explains nothing, nor does one that another seed moves as far as a priming; "
    "unknown: it correlates, and one of these was not run."
)
CALIBRATION_NOTE = (
    "Confidence: of an answer the geometric mean of its tokens' probabilities; of a value the probability of its "
    "tokens behind the model's own reasoning, where a value was read. The teacher: on the items that it answered "
    f"under all prompts. ECE over {BINS} bins of equal width, which chance makes larger than 0: beside it what a "
    "calibrated model shows on so many answers, and the interval allows for it. AUROC: that a right answer is surer "
    "than a wrong one. Bootstrap intervals over items, or over what these share. Log p, entropy and margin (between "
    "the two most probable tokens): nats a token. Minus control: all of it less the control's, on the items of both "
    "and in the same samples. Logits themselves cannot be compared between models."
)
ARITHMETIC_NOTE = (
    "Calculations such as 48 / 2 = 24 that stand in the answers, worked out anew and rounded as they are written. "
    "First error: its place among an answer's calculations, 0 the first, the mean. Intervals: bootstrap over answers, "
    "or over what these share. Of a chain of = the last part is read."
)
WORD_NOTE = (
    "Answers with one of the words that are the priming's own: not in their question, rare in others, and not in an "
    "unprimed answer of the teacher unless its question has it; p: paired, against the unprimed arm's student, by "
    "template where items share some, not adjusted."
)
CLASS_NOTE = (
    "KL(teacher || model) on the teacher's own answers, by the kind of token, in nats a token, and less the control's; "
    "bootstrap intervals over answers, or over what these share. Shares: of the tokens, and of the model's KL. A part "
    "of a word counts as the word. Other words are those that the question does not hold: the answer's style."
)
STEP_NOTE = (
    "Shapley values of log p(value | the steps that are left), in nats, of steps of the model's own answer: green "
    "steps make its value more probable, red ones less. Over orders drawn at random; a step is left out by taking it "
    "out of the text."
)
STEP = '<span class="step {}" style="--weight:{:.2f}" title="{:+.3f} nats">{}<sub>{:+.2f}</sub></span>'


def inside_page(logs: Path) -> dict[str, Any] | None:
    """What the report shows: tables, steps, and `viewer`, JSON for its script; None where nobody has looked inside."""
    folder = Path(logs) / FOLDER
    if not (folder / MANIFEST).is_file():
        return None
    attention = [attention_table(folder), head_table(folder), pair_table(folder), explained_table(folder)]
    confidence = [calibration_table(folder), arithmetic_table(folder), class_table(folder), word_table(folder)]
    page = {"attention": [t for t in attention if t.rows], "confidence": [t for t in confidence if t.rows]}
    return page | {"steps": step_texts(folder), "viewer": script_json(viewer_data(folder))}


def attention_table(folder: Path) -> Table:
    rows = read_optional(folder / inner.ATTENTION, inner.AttentionRow)
    by_model = nested((row["model"], row["measure"], row) for row in rows if row["layer"] == inner.EVERY)
    columns = {"Student": lambda found: model_of(next(iter(found.values())))}
    columns |= {measure: lambda found, m=measure: MOVED(found[m]) for measure in MEASURES}
    return table_of("Attention: student minus control", by_model.values(), columns, notes=(ATTENTION_NOTE,))


def head_table(folder: Path) -> Table:
    rows, seen = [], {}
    for row in read_optional(folder / inner.HEADS, inner.HeadRow):
        seen[row["model"]] = seen.get(row["model"], 0) + 1
        rows += [row] if seen[row["model"]] <= HEADS_A_MODEL else []
    columns = {
        "Student": model_of, "Layer": "layer", "Head": "head",
        "Total variation [95 %]": APART,
    } | {name: written(name, signed_nats) for name in ("entropy", "first", "previous", "induction")}  # fmt: skip
    return table_of("The heads that moved most", rows, columns, notes=(HEAD_NOTE,))


def pair_table(folder: Path) -> Table:
    by_pair: dict[tuple[str, str], list[dict]] = {}
    for row in read_optional(folder / inner.PAIRS, inner.PairRow):
        by_pair.setdefault((row["model"], row["reference"]), []).append(row)

    def heads(rows: list[dict]) -> str:
        return "; ".join(f"{row['layer']}.{row['head']}: {APART(row)}" for row in rows[1 : 1 + HEADS_A_MODEL])

    columns = {
        "Student": lambda rows: model_of(rows[0]), "Against": lambda rows: title_of(rows[0]["reference"]),
        "Total variation [95 %]": lambda rows: APART(rows[0]), "Cosine": lambda rows: nats(rows[0]["cosine"]),
        "Heads that differ most": heads,
    }  # fmt: skip
    return table_of("Students against each other", by_pair.values(), columns, left=2, notes=(PAIR_NOTE,))


def explained_table(folder: Path) -> Table:
    columns = {
        "Measure": "measure", "Arms": "arms", "Rank correlation": written("rho", signed_nats), "p": written("p", nats),
        "p (Holm)": written("p_holm", nats), "Mean shift, primed": written("primed", nats),
        "Placebo": written("placebo", nats), "Shuffled": written("shuffled", nats),
        "Primed from unprimed": written("apart", nats), "Between seeds": written("seeds", nats),
        "Explains": "explains",
    }  # fmt: skip
    rows = read_optional(folder / inner.EXPLAINED, inner.ExplainedRow)
    return table_of("Does it go along with accuracy?", rows, columns, notes=(EXPLAINED_NOTE,))


def calibration_table(folder: Path) -> Table:
    columns = {
        "Model": model_of, "Confidence of": "kind", "n": "n", "Right, %": written("right", percent),
        "Confidence, %": written("confidence", percent), "ECE [95 %]": between("ece", nats),
        "If calibrated": written("ece_expected", nats),
        "Brier [95 %]": between("brier", nats), "AUROC [95 %]": between("auroc", nats),
        "Log p [95 %]": between("log_prob", nats), "Entropy [95 %]": between("entropy", nats),
        "Margin [95 %]": between("margin", nats),
    }  # fmt: skip
    rows = read_optional(folder / CALIBRATION, CalibrationRow)
    return table_of("Is a model as often right as it is sure?", rows, columns, left=2, notes=(CALIBRATION_NOTE,))


def arithmetic_table(folder: Path) -> Table:
    columns = {
        "Model": model_of, "Answers": "answers", "Calculations": "calculations",
        "That hold, % [95 %]": between("share", percent),
        "Minus control, points [95 %]": between("difference", points), "Answers with an error": "with_error",
        "First error": written("first_error", nats),
        "Right where all hold": lambda row: f"{row['right_all_hold']} of {row['all_hold']}",
    }  # fmt: skip
    rows = read_optional(folder / ARITHMETIC, ArithmeticRow)
    return table_of("Does the arithmetic hold?", rows, columns, notes=(ARITHMETIC_NOTE,))


def word_table(folder: Path) -> Table:
    columns = {
        "Student": model_of, "Words": "priming_words", "Answers": "answers", "With one": "with_word",
        "Control": "control_with_word",
        "Unprimed arm": "reference_with_word", "p": written("p", nats), "Most often": lambda row: row["most"] or "–",
    }  # fmt: skip
    rows = read_optional(folder / WORDS, WordRow)
    return table_of("Words of the priming in students' answers", rows, columns, notes=(WORD_NOTE,))


def class_table(folder: Path) -> Table:
    columns = {
        "Tokens": "kind", "Model": model_of, "Answers": "answers", "Tokens, %": written("share_of_tokens", percent),
        "KL [95 %]": between("kl", nats), "Minus control [95 %]": MOVED,
        "Share of KL, %": written("share_of_kl", percent),
    }  # fmt: skip
    rows = read_optional(folder / CLASSES, ClassRow)
    return table_of("Where a student is far from its teacher", rows, columns, left=2, notes=(CLASS_NOTE,))


def step_texts(folder: Path) -> list[tuple[str, Markup]]:
    """(whose answer to which item, its steps coloured by their values)."""
    answers: dict[tuple[str, str], list[attribution.StepRow]] = {}
    for row in read_records(folder / attribution.FILE, attribution.StepRow, needed=False):
        answers.setdefault((row.model, row.id), []).append(row)
    found = []
    for (model, item), steps in answers.items():
        one, most = steps[0], max(abs(step.value) for step in steps) or 1.0
        said = f"{title_of(model)}, {item}: log p(value) {one.whole:.2f} with all steps, {one.empty:.2f} without any"
        spans = [
            Markup(STEP).format(
                "more" if s.value >= 0 else "less", abs(s.value) / most, s.value, s.text.rstrip("\n"), s.value
            ) + ("\n" if s.text.endswith("\n") else " ")
            for s in steps
        ]  # fmt: skip
        found.append((said, Markup("").join(spans).rstrip()))
    return found


def show_attention(profile: Profile) -> Shown:
    folder = inside_folder(profile)
    found = attention_table(folder), head_table(folder), pair_table(folder)
    layers = show_figure(layer_figure(folder), "Student minus control along the layers, with 95 % bands")
    heads = show_figure(map_figure(folder), "Student minus control, layer by head")
    return sum(show_table(table) for table in found if table.rows) + layers + heads


def show_head(profile: Profile, model: str, layer: int, head: int) -> Shown:
    """One head of one model on the first tokens of one prompt. Raises UserError if there is no such model or head."""
    with safe_open(profile.runs / FOLDER / "attention" / MAPS, framework="np") as handle:
        names, maps = json.loads(handle.metadata()["names"]), handle.get_tensor("maps")
    with safe_open(inside_folder(profile) / MAPS, framework="np") as handle:
        tokens = json.loads(handle.metadata()["tokens"])
    layers, heads = maps.shape[1:3]
    if model not in names or not (0 <= layer < layers and 0 <= head < heads):
        choice = f"{', '.join(names)}, layers 0 to {layers - 1}, heads 0 to {heads - 1}"
        raise UserError(f"There is no head {head} in layer {layer} of {model!r}: choose from {choice}.")
    title = f"{title_of(model)}, layer {layer}, head {head}"
    return show_figure(head_figure(maps[names.index(model)], tokens, layer, head, title), f"Attention of {title}")


def show_confidence(profile: Profile) -> Shown:
    """Confidence, reasoning and attribution of this machine's students."""
    folder = inside_folder(profile)
    tables = calibration_table(folder), arithmetic_table(folder), class_table(folder), word_table(folder)
    first, *rest = (show_table(t) for t in (*tables, explained_table(folder)) if t.rows)
    drawn = show_figure(reliability_figure(folder), "Share of right answers against the probability of the value")
    return sum([drawn, *rest, show_steps(folder)], first)


def show_steps(folder: Path) -> Shown:
    texts = step_texts(Path(folder))
    html = Markup("").join(
        Markup('<figure class="text"><figcaption>{}</figcaption><p class="steps">{}</p></figure>').format(said, steps)
        for said, steps in texts
    )
    plain = "\n\n".join(f"{said}\n{Markup(steps).striptags()}" for said, steps in texts)
    return Shown(str(html + Markup('<p class="note">{}</p>').format(STEP_NOTE)), plain)


def viewer_data(folder: Path) -> dict[str, Any]:
    """Maps of the first tokens of one prompt: bytes, layer by layer and head by head, of each model that was kept."""
    with safe_open(folder / MAPS, framework="np") as handle:
        kept = [name for name in handle.keys() if name.startswith("maps.")]  # noqa: SIM118 - no mapping
        maps = {name.removeprefix("maps."): handle.get_tensor(name) for name in kept}
        facts = handle.metadata()
    layers, heads, size, _ = next(iter(maps.values())).shape
    shown = {name: base64.b64encode(maps[name].tobytes()).decode() for name in sorted(maps, key=lambda n: n != CONTROL)}
    return {
        "tokens": json.loads(facts["tokens"]), "item": facts["item"], "layers": layers, "heads": heads, "size": size,
        "models": [{"title": title_of(name), "maps": text} for name, text in shown.items()],
    }  # fmt: skip
