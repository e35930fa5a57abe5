"""What the notebooks show of a stage's files: settings, prompts, responses, certainty, losses, results and tokens."""

from collections.abc import Mapping, Sequence

from primekd.assessment.logs import LogRow, read_logs
from primekd.assessment.tokens import Token, TokenLog, read_tokens, tokens_of
from primekd.capture.jobs import Job, open_signals, training_job
from primekd.capture.judged import judged_folder
from primekd.capture.primings import priming_of
from primekd.config import TEACHER, WORDS, Profile, get_arm, how_to_train, unprimed
from primekd.foundation import MANIFEST, UserError, relative_name
from primekd.models import build_prompt, decode_response, load_tokenizer
from primekd.report.cells import Table
from primekd.report.costs import cost_figure, cost_table
from primekd.report.figures import loss_curve
from primekd.report.findings import findings, how_tested
from primekd.report.formats import MISSING, duration, percent, significant
from primekd.report.primed import NOTE, position_figure, primed_sentences, primed_table
from primekd.report.results import contrast_table, read_results, result_table
from primekd.report.shown import Shown, show_facts, show_figure, show_sentences, show_table, show_texts, side_by_side
from primekd.report.token_view import models_view, teachers_view
from primekd.signals import moved_probability, read_certainty, read_store
from primekd.studies.results import logs_in_use
from primekd.tasks.load import load_items

REBUILT = (
    "KL {mean_kl_nats:.3g} nats a token on average, {max_kl_nats:.3g} at most; the same most probable token at "
    "{top1_agreement:.1%} of {tokens:.0f} tokens"
)


def settings(profile: Profile, *first: str) -> Shown:
    """Every setting of a profile by section, those named first open. Raises UserError if there is no such section."""
    resolved = profile.resolved()
    sections = {name: values for name, values in resolved.items() if isinstance(values, dict)}
    if unknown := [name for name in first if name not in sections]:
        raise UserError(f"A profile has no section {unknown[0]!r}: choose from {', '.join(sections)}.")
    plain = [(name, str(value)) for name, value in resolved.items() if name not in sections]
    shown = [show_facts(_flat(sections[name]), name) for name in first]
    rest = [show_facts(_flat(values), name, folded=True) for name, values in sections.items() if name not in first]
    return sum([show_facts(plain, "profile", folded=True), *rest], side_by_side(shown))


def _flat(values: dict, before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        shown = MISSING if value is None else str(value)
        rows += _flat(value, f"{before}{key}.") if isinstance(value, dict) else [(f"{before}{key}", shown)]
    return rows


def prompts(profile: Profile, strategy: str) -> Shown:
    """Whose text and signals an arm has, and the first training question as the teacher that scores it reads that, with
    and without the priming text (which may replace the model's default system text), and as the student does."""
    asked, arm = load_items(profile, "train")[0].messages, get_arm(strategy)
    scored = arm if arm.signals in WORDS else get_arm(arm.signals)
    teacher, priming = load_tokenizer(profile.teacher), priming_of(scored, profile.teacher)
    whose = [("Arm", arm.title), ("Text written under", arm.cell[0]), ("Signals scored under", arm.cell[1])]
    views = [
        ("What the teacher reads", build_prompt(teacher, asked, priming).text),
        ("The same without a priming", build_prompt(teacher, asked).text),
        ("What the student reads", build_prompt(load_tokenizer(profile.student), asked).text),
    ]
    return show_facts(whose) + show_texts(views)


def responses(job: Job, count: int = 3) -> Shown:
    """The teacher's first responses, whole."""
    reader, tokenizer = open_signals(job), load_tokenizer(job.profile.teacher)
    cards = []
    for item in load_items(job.profile, job.split)[:count]:
        stored = reader.item(item.id)
        said = f"The teacher's response, {len(stored.response_ids)} tokens{', cut off' if stored.truncated else ''}"
        cards.append((f"{item.id}, gold {item.answer}", item.question))
        cards.append((said, decode_response(tokenizer, stored.response_ids)))
    return show_texts(cards)


def signals(job: Job) -> Shown:
    """Size and quality of a captured store."""
    manifest = read_store(job.folder)
    size, tokens, rebuilt = manifest["bytes"], manifest["tokens"], manifest.get("reconstruction", {})
    rows = [
        ("Codec", manifest["spec"]["codec"]["name"]),
        ("What decoding loses", manifest["spec"]["codec"]["error"].replace("see `reconstruction`", "measured below")),
        ("Items, response tokens", f"{manifest['items']}, {tokens}"),
        ("Size", f"{size / 2**20:.1f} MiB, {size / max(1, tokens):.0f} bytes a token"),
        ("Time", duration(sum(s["seconds"] for s in manifest["sessions"]))),
    ]
    if rebuilt:
        rows.append(("Rebuilt logits against the engine's", REBUILT.format(**rebuilt)))
    return show_facts(rows)


def certainty(job: Job) -> Shown:
    """How sure the teacher was of what it wrote: what a distribution can teach beyond its text."""
    import torch

    reader, ids = open_signals(job), [item.id for item in load_items(job.profile, job.split)]
    found = read_certainty(reader, ids)
    if not found:
        return show_sentences(["The teacher's text alone was kept: nothing is known of how sure it was."])
    entropy, written = (torch.cat([getattr(c, name) for c in found.values()]) for name in ("entropy", "written"))
    known = written[~written.isnan()]
    below = lambda p: f"{percent(float((known < p).float().mean()))} %" if len(known) else MISSING  # noqa: E731
    lengths = torch.tensor([len(reader.item(item).response_ids) for item in ids], dtype=torch.float32)
    rows = [
        ["Entropy a token, mean", f"{significant(float(entropy.mean()), 3)} nats"],
        ["Entropy a token, median", f"{significant(float(entropy.median()), 3)} nats"],
        ["Tokens that it wrote with p below 0.9", below(0.9)],
        ["Tokens that it wrote with p below 0.5", below(0.5)],
        ["Length of a response, mean, longest", f"{float(lengths.mean()):.1f}, {int(lengths.max())} tokens"],
        ["Cut off at the token limit", f"{sum(reader.item(item).truncated for item in ids)} of {len(ids)}"],
        *_moved(job, reader, ids),
    ]  # fmt: skip
    note = (
        f"Entropy and probabilities over {len(entropy)} tokens of {len(found)} items. Where the entropy is near 0, "
        "there is almost nothing to distil beyond the text."
    )
    return show_table(Table("How sure the teacher was", ["Measure", "Value"], rows), note)


def _moved(job: Job, reader, ids: Sequence[str]) -> list[list[str]]:
    """How much probability the priming moves, or why that is not known; nothing where there is no priming."""
    plain = training_job(job.profile, unprimed().name, job.seed)
    if job.split != "train" or plain.folder == job.folder:
        return []
    try:
        if not (plain.folder / MANIFEST).is_file():
            raise UserError(f"{plain.arm.name} is not captured yet")
        moved = _moved_tokens(reader, open_signals(plain), ids)
        said = f"{percent(float(moved.mean()))} % over {len(moved)} tokens"
    except (UserError, ValueError) as error:  # not captured, or otherwise, or no whole distributions
        said = f"not known: {error}"
    return [["Probability that the priming moved, up to where the responses part", said]]


def _moved_tokens(reader, other, ids: Sequence[str], most: int = 2_000):
    """(T,) at the tokens up to where the two responses part, of the first items that have `most` of them together."""
    import torch

    parts = []
    for item in ids:
        one, two = reader.item(item).response_ids, other.item(item).response_ids
        same = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
        count = min(same + 1, len(one), len(two))  # the rows up to the first token that differs saw the same tokens
        rows = reader.rows(item, one), other.rows(item, two)
        if any(each is None for each in rows):
            raise ValueError("the teacher's text alone was kept")
        parts.append(moved_probability(*(each.part(slice(count)) for each in rows)))
        if (most := most - count) < 0:
            break
    return torch.cat(parts)


def primed(profile: Profile) -> Shown:
    """What priming did to the teacher, as this machine measured it."""
    folder = judged_folder(profile)
    drawn = show_figure(position_figure(folder), "KL between the primed and the unprimed teacher along its answers")
    return show_sentences(primed_sentences(folder)) + show_table(primed_table(folder), NOTE) + drawn


def loss(profile: Profile, strategy: str, seed: int, *further: int) -> Shown:
    """Training and validation loss of an arm's student, of each seed. Raises UserError if one is not trained."""
    return sum((_loss(profile, strategy, one) for one in further), _loss(profile, strategy, seed))


def _loss(profile: Profile, strategy: str, seed: int) -> Shown:
    title = f"{get_arm(strategy).title} on {profile.name}" + (f", seed {seed}" if seed != profile.seed else "")
    path = profile.student_folder(strategy, seed) / "loss_curve.csv"
    if not path.is_file():
        raise UserError(f"{relative_name(path)} is missing: {how_to_train(strategy, profile)} with the seed {seed}.")
    return show_figure(loss_curve(path, title), f"Training and validation loss of {title} over the steps, nats a token")


def results(profile: Profile) -> Shown:
    """The results of this machine's logs."""
    found = read_results(profile.logs)
    note = f"Accuracy: Wilson interval. KL to the unprimed teacher, NLL of {found.fit.nll}: nats a token, bootstrap."
    return show_table(result_table(found), note)


def contrasts(profile: Profile) -> Shown:
    found = read_results(profile.logs)
    return show_table(contrast_table(found), how_tested(found)) if found.contrasts else show_sentences(["None."])


def costs(profile: Profile) -> Shown:
    found = read_results(profile.logs)
    return show_table(cost_table(found.folder)) + show_figure(cost_figure(found), "Right answers over energy")


def claims(profile: Profile) -> Shown:
    return show_sentences(findings(read_results(profile.logs)))


def tokens(profile: Profile, item: str | None, models: str | Sequence[str]) -> Shown:
    """The unprimed teacher's answer to a test item, token by token, under each model; from the published logs, and so
    it says, where this machine has none. Without `item`: where the teacher is right and the last model is not, the one
    on which this model is furthest from it. Raises UserError if no model is named, or no tokens are kept."""
    view, models = logs_in_use(profile), [models] if isinstance(models, str) else list(models)
    log, rows = read_tokens(view.logs), read_logs(view)
    if log is None:
        raise UserError(f"{relative_name(view.logs)} keeps no tokens: run the assessment with a teacher's signals.")
    if not models or (unknown := [model for model in models if model not in log.models]):
        what = f"No tokens are kept of {unknown[0]!r}" if models else "No model is named"
        raise UserError(f"{what}: choose from {', '.join(log.models)}.")
    item = item or _telling_item(log, rows, models[-1])
    if item not in log.items:
        raise UserError(f"No tokens are kept of the item {item!r}: choose one like {', '.join(log.items[:3])}.")
    question = next(row.question for row in next(iter(rows.values())) if row.id == item)
    where = "" if view.logs == profile.logs else f" (published, {relative_name(view.logs)}: here are no own logs yet)"
    return show_texts([(item + where, question)]) + models_view(log, item, models)


def _telling_item(log: TokenLog, rows: Mapping[str, Sequence[LogRow]], model: str) -> str:
    """Where a model went wrong and its teacher did not, the item with the largest KL; of all items if there is none."""
    sums, right = log.sums(model), {name: {row.id for row in own if row.correct} for name, own in rows.items()}
    telling = right.get(TEACHER, set()) - right.get(model, set())
    return max(telling & sums.keys() or sums, key=sums.__getitem__)


def primings(profile: Profile, item: str | None, strategies: Sequence[str], seed: int | None = None) -> Shown:
    """The teacher's responses to a training item under several primings, token by token with its own entropy; a store
    that cannot be read (not captured yet, say) is a sentence. Raises UserError if there is no such strategy or item."""
    asked = load_items(profile, "train")
    question = {i.id: i.question for i in asked}
    item = item or asked[0].id
    if item not in question:
        raise UserError(f"There is no training item {item!r}: choose one like {', '.join(list(question)[:3])}.")
    answers, missing = {}, []
    for strategy, job in [(strategy, training_job(profile, strategy, seed)) for strategy in strategies]:
        try:
            answers[job.arm.title] = _taught(job, item)
        except UserError as error:
            missing.append(f"{strategy}: {error}")
    shown = show_texts([(item, question[item])]) + teachers_view(answers)
    return shown + show_sentences(missing) if missing else shown


def _taught(job: Job, item: str) -> list[Token]:
    reader = open_signals(job)
    ids = reader.item(item).response_ids
    rows = reader.rows(item, ids)
    if rows is None:
        raise UserError("the teacher's text alone was kept, and no distribution of its tokens.")
    return tokens_of(load_tokenizer(job.profile.teacher), ids, rows, {})
