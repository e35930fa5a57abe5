"""Part `losses`: every divergence's value and gradient, and the cross-entropy's, against float64 on the same device.

In float32, and from bfloat16 states and heads, whose logits are exact in float32; the gradient is then rounded to
bfloat16, as the states' own is. The whole-logits path is what trains an unfrozen head.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from benchmarks.losses import errors
from benchmarks.objectives import FROZEN, WHOLE, exact_gradient, make_case
from check.findings import Report, Row
from check.sizes import Sizes

TEMPERATURES = (1.0, 5.94)  # plain, and the one that the published study trained its teacher's students at
DENSE, SPARSE = ("full", "hidden"), ("topk", "sampled")
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "skewed_forward_kl", "skewed_reverse_kl")
VALUE = 1e-5  # of the loss, relative
# Products sum over the whole vocabulary, which costs float32 up to 7e-6; slopes rounded to bfloat16 cost 3e-3.
GRADIENT = {"float32": 3e-5, "bfloat16": 1e-2}


def run(sizes: Sizes, add: Callable[..., None], report: Report) -> None:
    for dtype, signal in product(GRADIENT, (*DENSE, *SPARSE)):
        names = (FROZEN, WHOLE) if dtype == "float32" else (FROZEN,)
        found = {name: [] for name in names}
        divergences = DIVERGENCES if signal in DENSE else DIVERGENCES[:1]
        # Each term alone: beside the cross-entropy's gradient that of a divergence would hardly be seen.
        terms = [*product(divergences, TEMPERATURES, [0.0]), ("forward_kl", 1.0, 1.0)]
        for divergence, temperature, alpha in terms:
            case = make_case(
                sizes.checked, sizes.checked_width, sizes.vocabulary, dtype, signal, divergence, temperature
            )
            case = replace(case, loss=case.loss.model_copy(update={"alpha": alpha}))
            of = "cross-entropy" if alpha else f"{divergence}, T {temperature:g}"
            exact = exact_gradient(case)
            # Near 0 a loss is right to 1e-6 nats, which is 1e-5 of a tenth of one.
            size = abs(exact[0]) / max(abs(exact[0]), 0.1 * temperature**2)
            for name in names:
                apart = errors(name, case, *exact)
                found[name].append((of, apart | {"relative_error": apart["relative_error"] * size}))
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
