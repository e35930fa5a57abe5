"""Part `losses`: every objective's value and gradient against float64 on the same device.

In float32, and from bfloat16 states and heads, whose logits are exact in float32; the gradient is then rounded to
bfloat16, as the states' own is. The whole-logits path is what trains an unfrozen head.
"""

from collections.abc import Callable
from itertools import product

from benchmarks.losses import errors
from benchmarks.objectives import FROZEN, WHOLE, exact_gradient, make_case
from check.findings import Report, Row
from check.sizes import Sizes

TEMPERATURES = (1.0, 5.94)  # plain, and the one that the published study trained its teacher's students at
DENSE, SPARSE = ("full", "hidden"), ("topk", "sampled")
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
VALUE = 1e-5  # of the loss, relative
GRADIENT = {"float32": 1e-5, "bfloat16": 5e-3}


def run(sizes: Sizes, add: Callable[..., None], report: Report) -> None:
    for dtype, signal in product(GRADIENT, (*DENSE, *SPARSE)):
        names = (FROZEN, WHOLE) if dtype == "float32" else (FROZEN,)
        found = {name: [] for name in names}
        divergences = DIVERGENCES if signal in DENSE else DIVERGENCES[:1]
        for divergence, temperature in product(divergences, TEMPERATURES):
            case = make_case(
                sizes.checked, sizes.checked_width, sizes.vocabulary, dtype, signal, divergence, temperature
            )
            exact = exact_gradient(case)
            for name in names:
                found[name].append((f"{divergence}, T {temperature:g}", errors(name, case, *exact)))
        for name in names:
            add(*rows_of(name, dtype, signal, found[name]))


def rows_of(name: str, dtype: str, signal: str, found: list[tuple[str, dict[str, float]]]) -> list[Row]:
    """The largest error over divergences and temperatures, of the value and of the gradient."""
    rows = []
    for what, bound in (("relative_error", VALUE), ("gradient_error", GRADIENT[dtype])):
        # nan is larger than everything: max would pass it over.
        of, worst = max(found, key=lambda entry: (entry[1][what] != entry[1][what], entry[1][what]))
        kind = "loss" if what == "relative_error" else "gradient"
        rows.append(
            Row(
                f"{name}/{dtype}/{signal}/{kind}", f"{kind}'s relative error, {name}, {signal} rows, {dtype}",
                worst[what], most=bound, note=f"largest of {len(found)}: {of}",
            )
        )  # fmt: skip
    return rows
