"""Part `kernel`: what share of a step the loss is, and what a kernel that left nothing but its products would save."""

from collections.abc import Callable

from check.findings import Report, Row
from check.sizes import Sizes

PAYS = 0.05  # of a step: less is not worth a kernel of our own


def run(sizes: Sizes, add: Callable[..., None], report: Report) -> None:
    found = False
    for name in sizes.students:
        for signal in (*(f"hidden, width {width} rows" for width in sizes.teacher_widths), "topk rows", "sampled rows"):
            step, loss = (report.row("steps", f"{name}/{signal}{more}") for more in ("", "/loss"))
            if step is None or loss is None:
                continue
            found, whole = True, step.also["ms"]
            saved = (loss.value - loss.also["ms of products"]) / whole
            note = f"{'would pay' if saved > PAYS else 'would not pay'}: more than {PAYS:.0%} of a step is asked for"
            add(
                Row(f"{name}/{signal}/share", f"{name}: the loss's share of a step, {signal}", loss.value / whole),
                Row(
                    f"{name}/{signal}/saved", f"{name}: a perfect kernel's saving of a step, {signal}", saved, note=note
                ),
            )
    if not found:
        add(Row("none", "the loss's share of a step", None, note="the part `steps` measured nothing"))
