"""What priming did to the teacher, as it is shown: a table, sentences, and two figures."""

from pathlib import Path

from primekd.capture.judged import ARMS, JUDGED, POSITIONS, JudgedRow, PositionRow
from primekd.config.arms import unprimed
from primekd.foundation.tables import read_records
from primekd.report.cells import Name, Table, table_of
from primekd.report.figures import DASHES, PALETTE, draw
from primekd.report.formats import between, markdown, nats, percent, points, written
from primekd.report.results import Results, read_optional
from primekd.statistics.families import title_of
from primekd.statistics.primed import PrimedRow, expectation

ENDS = ("", "_low", "_high")
NOTE = (
    "The teacher's own answers by prompt, before any student. Differences are against the unprimed prompt on the same "
    "items. KL(primed || unprimed): both read the primed answer, in nats a token. Unsure: tokens written with a "
    "probability below 0.9. Entropy and unsure are of the first items alone (`assess.teacher_items`), KL of the first "
    "of those (`assess.rescored_items`, if that is set). "
    "Same tokens: an answer's share of positions with the unprimed token, the mean. Sentences are of the training "
    "items; what they claim has p < 0.05 after Holm's adjustment over accuracy, length and KL of all prompts. KL is "
    "tested against 0.01 nats, not against 0."
)


def primed_table(folder: Path) -> Table:
    """A row for each split and prompt; without rows where nothing was measured."""
    columns = {
        "Prompt": lambda row: Name(title_of(row["arm"]), row["arm"]), "Items": "split", "n": "n",
        "Right, % [95 %]": between("accuracy", percent),
        "Difference, points [95 %]": between("accuracy_difference", points),
        "Tokens": lambda row: f"{float(row['tokens']):.0f}",
        "Difference [95 %]": between("tokens_difference", lambda tokens: f"{float(tokens):+.0f}"),
        "Cut off": "truncated", "Same tokens, %": written("same_share", percent), "Entropy": written("entropy", nats),
        "Unsure, %": written("unsure", percent), "KL to unprimed [95 %]": between("kl", nats),
    }  # fmt: skip
    rows = read_optional(Path(folder) / ARMS, PrimedRow)
    return table_of("What priming did to the teacher", rows, columns, left=2, notes=(markdown(NOTE),))


def kl_items(folder: Path) -> int:
    """Of how many training items KL(primed || unprimed) was measured."""
    return len({r["id"] for r in read_optional(Path(folder) / JUDGED, JudgedRow) if r["split"] == "train" and r["kl"]})


def primed_sentences(folder: Path) -> list[str]:
    """Whether students can be expected to differ at all."""
    return expectation(read_records(Path(folder) / ARMS, PrimedRow, needed=False))


def position_figure(folder: Path) -> str | None:
    """KL(primed || unprimed) along the answers to the training items; None where it was not measured."""
    rows = [r for r in read_records(Path(folder) / POSITIONS, PositionRow, needed=False) if r.split == "train"]
    if not rows:
        return None
    arms, bins = (list(dict.fromkeys(keys)) for keys in ((r.arm for r in rows), ((r.start, r.end) for r in rows)))

    def fill(axes):
        for number, arm in enumerate(arms):
            own = [row for row in rows if row.arm == arm]
            places = [bins.index((row.start, row.end)) for row in own]
            axes.plot(
                places, [row.kl for row in own], marker="o", markersize=5, color=PALETTE[number % len(PALETTE)],
                linestyle=DASHES[number % len(DASHES)], label=title_of(arm),
            )  # fmt: skip
        names = [f"{start + 1}" if end == start + 1 else f"{start + 1}–{end or ''}" for start, end in bins]
        axes.set_xticks(range(len(bins)), names)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="Token of the answer", ylabel="KL(primed || unprimed), nats")
        axes.legend()

    return draw("positions", (7.6, 3.4), 1, fill)


def gain_figure(results: Results) -> str | None:
    """What a prompt changed in the teacher, on the training items, against what its student gained; None if unknown."""
    base = unprimed().name
    taught = {r["arm"]: r for r in read_optional(results.folder / ARMS, PrimedRow) if r["split"] == "train" and r["kl"]}
    gained = [row for row in results.contrasts if row["reference"] == base and row["model"] in taught]
    if not gained:
        return None

    def fill(answers, distribution):
        for number, row in enumerate(gained):
            value, low, high = (100 * float(row[f"accuracy{end}"]) for end in ENDS)
            style = {"color": PALETTE[number % len(PALETTE)], "linewidth": 1.5}
            for axes, measure, scale in ((answers, "accuracy_difference", 100), (distribution, "kl", 1)):
                x, *across = (scale * float(taught[row["model"]][f"{measure}{end}"]) for end in ENDS)
                axes.plot([x, x], [low, high], **style)
                axes.plot(across, [value, value], **style)
                axes.plot([x], [value], "o", markersize=7, color=style["color"])
            answers.plot([], [], "o", color=style["color"], label=title_of(row["model"]))
        for axes in (answers, distribution):
            axes.axhline(0, color="#333333", linewidth=1)
            axes.margins(x=0.1)
        answers.set(xlabel="Teacher, primed minus unprimed: right answers, points",
                    ylabel=f"Student minus {title_of(base)}, points")  # fmt: skip
        distribution.set_xlim(left=0)
        distribution.set_xlabel("Teacher: KL(primed || unprimed), nats a token")
        answers.figure.legend(loc="outside lower center", ncols=4)

    return draw("gains", (9.6, 4.0), 2, fill)
