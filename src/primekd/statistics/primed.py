"""What priming did to the teacher, each arm against the unprimed one on the same items (priming-arms.csv)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from primekd.capture.judged import JudgedRow
from primekd.config.arms import of_role
from primekd.foundation.tables import Estimated, MaybeEstimated, table_row
from primekd.statistics.families import title_of
from primekd.statistics.inference import LEVEL, UNKNOWN, accuracy, clustered, compare_verdicts, holm_of
from primekd.tasks.clusters import cluster_of

Found = dict[str, JudgedRow]  # item -> its row
SMALL_KL = 0.01  # nats a token: less than a student's own distance from its teacher by an order or more
SMALL_LENGTH = 0.05  # of the unprimed text's: what a student would hardly learn
OF_LENGTH, OF_KL = f"of length by {SMALL_LENGTH:.0%} or more", f"of the distribution by {SMALL_KL} nats a token or more"
ALIKE = f"its text is as long as the unprimed one to within {SMALL_LENGTH:.0%}, and its distribution hardly another"
TESTED = ("accuracy_p", "tokens_p", "kl_p")


@table_row
class PrimedRow:
    """The teacher under one arm's prompt on the items of a split. Differences are primed minus unprimed, paired.
    `accuracy` by the profile's reading; differences of `clustered`, `accuracy_p` of `Comparison`. `tokens`: the mean of
    a response. `kl_p`: that the KL is SMALL_KL. The columns `p_holm` are adjusted over all three measures of all arms
    of a split. `same_share`: mean share of positions with the unprimed token; `same_whole`: responses that are the
    unprimed one. Of `measured` items: `entropy` (nats a token) and `unsure` (share of tokens written with p below 0.9);
    of those scored again `kl`, KL(primed || unprimed), nats a token."""

    split: str
    arm: str
    n: int
    correct: int
    accuracy: Estimated
    accuracy_difference: MaybeEstimated
    accuracy_p: float | None
    accuracy_p_holm: float | None
    tokens: float
    tokens_difference: MaybeEstimated
    tokens_p: float | None
    tokens_p_holm: float | None
    truncated: int
    same_share: float | None
    same_whole: int | None
    measured: int
    entropy: float | None
    unsure: float | None
    kl: MaybeEstimated
    kl_p: float | None
    kl_p_holm: float | None


def primed_rows(rows: Sequence[JudgedRow], unprimed: str) -> list[PrimedRow]:
    """A row for every split and arm. Raises ValueError if an arm has other items than the unprimed one."""
    by_split: dict[str, dict[str, Found]] = {}
    for row in rows:
        by_split.setdefault(row.split, {}).setdefault(row.arm, {})[row.id] = row
    made = []
    for split, arms in by_split.items():
        plain = arms.get(unprimed)
        made += _adjusted([_row(split, arm, found, None if found is plain else plain) for arm, found in arms.items()])
    return made


def _row(split: str, arm: str, found: Found, plain: Found | None) -> PrimedRow:
    own, groups = list(found.values()), [cluster_of(item) for item in found]
    verdicts, tokens = (np.array([getattr(r, name) for r in own], float) for name in ("correct", "tokens"))
    difference, p, longer, longer_p, alike = UNKNOWN, None, UNKNOWN, None, (None, None)
    if plain:
        if plain.keys() != found.keys():
            raise ValueError(f"{arm} and the unprimed teacher answered different items of {split}")
        pairs = [plain[item] for item in found]
        compared = compare_verdicts({"": verdicts}, {"": np.array([r.correct for r in pairs], float)}, groups)
        lengths = np.array([r.tokens for r in pairs], float)
        length = clustered({"": tokens}, {"": lengths}, np.ones(len(own)), groups)
        difference, p, longer, longer_p = compared.effect.estimate, compared.p, length.estimate, length.p
        alike = float(np.mean([r.same for r in own])), sum(r.same == 1 for r in own)
    sure = [r for r in own if r.entropy is not None]
    counted = sum(r.tokens for r in sure) or None
    return PrimedRow(
        split, arm, len(own), int(verdicts.sum()), *accuracy(verdicts), *difference, p, None,
        float(tokens.mean()), *longer, longer_p, None, sum(r.truncated for r in own), *alike, len(sure),
        counted and sum(r.entropy for r in sure) / counted, counted and sum(r.unsure for r in sure) / counted,
        *_kl(own), None,
    )  # fmt: skip


def _adjusted(rows: list[PrimedRow]) -> list[PrimedRow]:
    found = {(row.arm, name): getattr(row, name) for row in rows for name in TESTED}
    adjusted = holm_of({test: p for test, p in found.items() if p is not None})
    return [replace(row, **{f"{name}_holm": adjusted.get((row.arm, name)) for name in TESTED}) for row in rows]


def _kl(rows: Sequence[JudgedRow]) -> tuple[float | None, ...]:
    """Nats a token with an interval over items, and the p of its being SMALL_KL."""
    known = [r for r in rows if r.kl is not None]
    if len(known) < 2:
        return *UNKNOWN, None
    sums, counts = np.array([r.kl for r in known]), np.array([r.tokens for r in known], float)
    groups = [cluster_of(r.id) for r in known]
    beyond = clustered({"": sums - SMALL_KL * counts}, {}, counts, groups)
    return *clustered({"": sums}, {}, counts, groups).estimate, beyond.p


def expectation(rows: Sequence[PrimedRow]) -> list[str]:
    """Whether students can be expected to differ at all, one sentence a primed arm, from its training items."""
    return [_sentence(row) for row in rows if row.split == "train" and row.accuracy_difference is not None]


def _sentence(row: PrimedRow) -> str:
    title, said = title_of(row.arm), []
    share = row.tokens_difference / (row.tokens - row.tokens_difference)
    if row.tokens_p_holm < LEVEL and abs(share) >= SMALL_LENGTH:
        said.append(f"its text is {abs(share):.0%} {'longer' if share > 0 else 'shorter'}")
    if row.accuracy_p_holm < LEVEL and row.accuracy_difference:
        points = 100 * row.accuracy_difference
        said.append(f"{abs(points):.1f} points {'more' if points > 0 else 'fewer'} of its answers are right")
    if row.kl_p_holm is not None and row.kl_p_holm < LEVEL and row.kl > SMALL_KL:
        said.append(f"it moves the teacher by {row.kl:.3f} nats a token")
    same = f"{row.same_whole} of {row.n} responses are the unprimed ones, word for word"
    nothing = _nothing(row)
    if row.arm in of_role("placebo"):
        what = ", and ".join(said) or nothing
        return f"{title}, whose prompt is about nothing, shows what any such text does: {what} ({same})."
    if said:
        return f"{title} can be expected to differ: {', and '.join(said)} ({same})."
    start = f"{title} can hardly be expected to differ" if nothing == ALIKE else f"Whether {title} differs is open"
    return f"{start}: {nothing} ({same})."


def _nothing(row: PrimedRow) -> str:
    """What is known where no change can be claimed: of which measures it can be ruled out, and of which not."""
    longest = max(abs(row.tokens_difference_low), abs(row.tokens_difference_high))
    small = {
        OF_LENGTH: longest < SMALL_LENGTH * (row.tokens - row.tokens_difference),
        OF_KL: row.kl is not None and row.kl_high < SMALL_KL,
    }
    if all(small.values()):
        return ALIKE
    unknown = {OF_KL} if row.kl is None else set()
    open_ones = ["of accuracy", *(what for what, is_small in small.items() if not is_small and what not in unknown)]
    said = [f"no change {' or '.join(open_ones)} can be claimed or ruled out"]
    said += [f"one {what} can be ruled out" for what, is_small in small.items() if is_small]
    return "; ".join([*said, *["that of the distribution is unknown"][: len(unknown)]])
