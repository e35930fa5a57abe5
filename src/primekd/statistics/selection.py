"""What it gains to choose among students on the items that they are judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from primekd.assessment.logs import LogRow
from primekd.config.arm import Arm


@dataclass(frozen=True)
class SelectionRow:
    """Students that differ in settings alone. `chosen`: accuracy of the best, on the half of the items that it was
    chosen on; `chosen_other`: on the other half; `mean`, `mean_other`: of all of them. Means over both halves."""

    models: str
    chosen: float
    mean: float
    chosen_other: float
    mean_other: float


def selection_rows(logs: Mapping[str, Sequence[LogRow]], arms: Mapping[str, Arm], baseline: str) -> list[SelectionRow]:
    """One row, of the baseline's student and those with another loss; none where there are fewer than three."""
    others = {name for name, arm in arms.items() if arm.role == "other-loss" and arm.variant_of == baseline}
    models = [name for name in logs if name in {baseline, *others}]
    if len(models) < 3:
        return []
    right_M_I = np.array([[row.correct for row in logs[name]] for name in models], float)
    halves = [right_M_I[:, first::2].mean(1) for first in (0, 1)]  # (M,) each
    found = [(own.max(), own.mean(), other[own.argmax()], other.mean()) for own, other in (halves, halves[::-1])]
    return [SelectionRow(" ".join(models), *map(float, np.mean(found, axis=0)))]
